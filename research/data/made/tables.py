"""The small sets that come in scikit-learn's package: digits (Alpaydin and Kaynak 1998), diabetes (Efron et al. 2004), breast cancer (Street, Wolberg
and Mangasarian 1993)."""

from typing import Any

import numpy as np

from research.core.errors import UserError
from research.data.examples import Examples, source, split

HELD_OUT = 0.2  # of the records


def _sklearn() -> Any:
    """The library's sets. Raises UserError where it is not installed."""
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise UserError(
            "this set comes with scikit-learn, which is not installed: pip install 'purestep[tasks]'"
        ) from error
    return datasets


def seed_of(rest: str, name: str) -> int:
    """The seed of a split, as it stands behind a source's colon. Raises UserError for what is no whole number."""
    if rest and not rest.isdecimal():
        raise UserError(f"{name}:{rest}: expected the seed of the split, a whole number, as in {name}:1")
    return int(rest or 0)


@source("digits")
def digits(rest: str = "") -> Examples:
    """1,797 handwritten digits: `image` uint8 (n, 8, 8, 1) and `label`; a fifth is held out. `digits:SEED` holds out another fifth."""
    found = _sklearn().load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)[..., None]
    arrays = {"image": images, "label": found.target.astype(np.int32)}
    return Examples(*split(arrays, HELD_OUT, seed_of(rest, "digits")), classes=tuple("0123456789"))

"""Fill in the middle (Bavarian et al. 2022, arXiv 2207.14255): a document's middle moved to its end, where it is learned last.

A document is cut at two places into a prefix, a middle and a suffix, none of them empty, and put together again by token as

    PSM    [prefix] prefix [suffix] suffix [middle] middle [end]
    SPM    [prefix] [suffix] suffix [middle] prefix middle [end]

SPM is the paper's form for training on both (section 3.1): the middle follows its prefix in either.
"""

from dataclasses import dataclass

import numpy as np

from research.core.errors import UserError
from research.data.permutation import mix

SHORTEST = 3  # tokens, one for each part


@dataclass(frozen=True)
class Sentinels:
    """The ids that stand before the parts, and the one behind the middle; None where the document's separator is enough."""

    prefix: int
    middle: int
    suffix: int
    end: int | None = None

    def __post_init__(self):
        if len({self.prefix, self.middle, self.suffix}) < 3:
            raise UserError(f"the sentinels of fill in the middle are not three different ids: {self}.")


def fill_in_middle(
    ids: np.ndarray, key: int, sentinels: Sentinels, rate: float = 0.5, spm_rate: float = 0.5
) -> np.ndarray:
    """Returns the document's ids, [n] without its separator, rearranged with probability `rate`, of its dtype: [n], [n + 3] or,
    with an end, [n + 4]. A share `spm_rate` of those rearranged is SPM, the others PSM.

    Whether and how depends on `key` alone, a whole number below 2^64, and n. The two cuts are uniform among all pairs of
    different places between tokens. Documents of fewer than 3 tokens are returned as they are. By default half of the
    documents are rearranged, as in the paper, half of them to each form. Raises UserError for rates outside
    [0, 1].
    """
    if not (0 <= rate <= 1 and 0 <= spm_rate <= 1):
        raise UserError(f"the rates of fill in the middle are {rate} and {spm_rate}. Give shares from 0 to 1.")
    draws = mix(mix(np.array([key], np.uint64)) ^ np.arange(4, dtype=np.uint64))
    uniform = (draws >> np.uint64(11)) * 2.0**-53
    if len(ids) < SHORTEST or uniform[0] >= rate:
        return ids
    first, second = int(draws[2]) % (len(ids) - 1), int(draws[3]) % (len(ids) - 2)
    second += second >= first
    prefix, middle, suffix = np.split(ids, sorted((first + 1, second + 1)))
    if uniform[1] < spm_rate:
        parts = [[sentinels.prefix, sentinels.suffix], suffix, [sentinels.middle], prefix, middle]
    else:
        parts = [[sentinels.prefix], prefix, [sentinels.suffix], suffix, [sentinels.middle], middle]
    end = [] if sentinels.end is None else [sentinels.end]
    return np.concatenate([np.asarray(part, ids.dtype) for part in [*parts, end]])

"""Data sets of TensorFlow Datasets prepared from files that are here already, or from what is fetched where that is asked for.

A builder names the files that it is made of by where they lie in the network, with their own names and checksums. Those that lie in a folder are
taken from there, and checked. TensorFlow is needed where a builder itself computes with it; most of them only open files with it, for which
Python's own functions stand in where it is not installed.
"""

import contextlib
import glob
import importlib.util
import os
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from research.core.errors import UserError


def prepare(builder: Any, spec: str, files: Path | None, fetch: bool) -> None:
    """Prepares the data set of a builder in its own folder, unless it is there. `files`: a folder with the files that it is made of; `fetch`: whether
    others may be downloaded. Raises UserError, naming it, for a file that is not there or is not the registered one, for a builder that needs
    TensorFlow, and for what cannot be written."""
    import promise
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    if files is not None and not files.is_dir():
        raise UserError(
            f"--downloads is {str(files)!r}, which is no folder; expected one with the files that {spec} is made of"
        )
    make = builder._make_download_manager

    def manager(*args: Any, **options: Any) -> Any:
        made = make(*args, **options)
        download = made._download

        def found_or_fetched(resource: Any) -> Any:
            name = resource.url.rpartition("/")[2]
            if files is not None and (files / name).is_file():  # of a file without a registered name
                return promise.Promise.resolve(tfds.core.Path(files / name))
            if fetch:
                return download(resource)
            known = made._url_infos.get(resource.url)
            name = known.filename if known is not None and known.filename else name
            where = f"{files} has no" if files is not None else "there is no"
            raise UserError(
                f"{spec} is made of {resource.url}, and {where} file {name!r}. Put it into a folder and name that by --downloads, "
                "or let it be fetched: --download"
            )

        made._download = found_or_fetched
        return made

    builder._make_download_manager = manager
    config = tfds.download.DownloadConfig(manual_dir=None if files is None else files.resolve())
    try:
        with _silent(), _without_tensorflow(builder):
            builder.download_and_prepare(download_config=config)
    except UserError:
        raise
    except NonMatchingChecksumError as error:
        raise UserError(f"{spec}: {_mismatch(error)}") from error
    except ImportError as error:
        raise UserError(
            f"preparing {spec} needs {missing(error)}, which is not installed; reading it afterwards does not: pip install {missing(error)}"
        ) from error
    except OSError as error:
        raise UserError(f"cannot prepare {spec} in {builder.data_dir}: {error.strerror or _one_line(error)}") from error
    except Exception as error:
        raise UserError(f"{spec} cannot be prepared: {_one_line(error)}") from error


def missing(error: ImportError) -> str:
    """The package that an import lacked."""
    return error.name or "tensorflow"


def _mismatch(error: Exception) -> str:
    url, _, rest = str(error).removeprefix("Artifact ").partition(", downloaded to ")
    path = rest.partition(", has wrong checksum")[0]
    return f"{path} is not the file that the data set is made of, {url}: its size or SHA-256 is another. Get that file."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the library's progress bars and its dependencies' warnings."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        with contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
            yield


@contextlib.contextmanager
def _without_tensorflow(builder: Any) -> Iterator[None]:
    """Lets a builder's module open files where TensorFlow, which it would do that with, is not installed."""
    module: Any = sys.modules[type(builder).__module__]
    if importlib.util.find_spec("tensorflow") is not None or not hasattr(module, "tf"):
        yield
        return
    before = module.tf
    module.tf = _Files("tensorflow", io=_Files("tensorflow.io", gfile=_gfile()))
    try:
        yield
    finally:
        module.tf = before


class _Files(types.SimpleNamespace):
    """What stands in for a module; of anything else it says that the module is missing."""

    def __init__(self, name: str, **members: Any):
        super().__init__(**members)
        self._name = name

    def __getattr__(self, name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {self._name!r} (for {name})", name="tensorflow")


def _gfile() -> Any:
    def opened(path: Any, mode: str = "r") -> Any:
        return open(path, mode, encoding=None if "b" in mode else "utf-8")

    return _Files(
        "tensorflow.io.gfile", GFile=opened, Open=opened, exists=os.path.exists, isdir=os.path.isdir, listdir=os.listdir, walk=os.walk,
        glob=glob.glob,
    )  # fmt: skip

"""TensorFlow Datasets builders for the corpora that every Python carries: prepared offline and without TensorFlow.

| name            | a record                                                   | identity that the split hashes |
| --------------- | ---------------------------------------------------------- | ------------------------------ |
| `python_stdlib` | a `*.py` file of the standard library: `text`, `path`       | the path                       |
| `python_topics` | a topic of Python's reference (`help("LOOPING")`): `text`, `topic` | the topic               |

Importing this module registers them, so that `tfds.data_source("python_stdlib", split="train")` prepares and opens.
`python -m research.data.tables.builders` prepares both; from then on every program that reads the same folder
(TFDS_DATA_DIR, else `~/tensorflow_datasets`) opens them by name, this package installed or not.

The version of the data set is the version of the Python it was made from. The parts are those of
`research.data.tables.splits.bucket`.
"""

import contextlib
import os
import sys
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from research.core.errors import UserError
from research.data.sources import resolve
from research.data.tables.splits import PARTS, bucket

with warnings.catch_warnings():  # its dependencies' own
    warnings.simplefilter("ignore")
    import tensorflow_datasets as tfds

NAMES = ("python_stdlib", "python_topics")
_VERSION = ".".join(map(str, sys.version_info[:3]))


class _Embedded(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Texts with a name each, from this Python itself."""

    VERSION = tfds.core.Version(_VERSION)
    RELEASE_NOTES: ClassVar[dict[str, str]] = {_VERSION: f"As Python {_VERSION} has it."}
    NAME_FIELD = ""
    # Where TFDS looks for checksums of downloads, of which there are none here; version 4.9.10 finds the path of a
    # builder in a package only with importlib_resources, which it does not ask for.
    code_path = None

    def __init__(self, *, file_format: Any = "array_record", **arguments: Any):
        super().__init__(file_format=file_format or "array_record", **arguments)

    @abstractmethod
    def texts(self) -> Iterator[tuple[str, str]]:
        """Yields (name, text) of every record, in a fixed order."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text(), self.NAME_FIELD: tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, description=self.__doc__, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        filled = {bucket(name) for name, _ in self.texts()}
        return {part: self._generate_examples(part) for part in PARTS if part in filled}

    def _generate_examples(self, part: str) -> Iterator[tuple[str, dict[str, str]]]:
        for name, text in self.texts():
            if bucket(name) == part:
                yield name, {"text": text, self.NAME_FIELD: name}


class PythonStdlib(_Embedded):
    """The source files of Python's standard library that every installation has."""

    NAME_FIELD = "path"

    def texts(self) -> Iterator[tuple[str, str]]:
        """Yields (path below the library, text) of the files that the data source `python_stdlib` has."""
        table = resolve("python_stdlib").tables["all"]
        records = (table.record(i) for i in range(len(table)))
        return ((record["path"], record["text"]) for record in records if record["text"])


class PythonTopics(_Embedded):
    """The topics of Python's language reference that `help` shows."""

    NAME_FIELD = "topic"

    def texts(self) -> Iterator[tuple[str, str]]:
        """Yields (topic, text) in the order of the topics' names."""
        from pydoc_data.topics import topics

        return iter(sorted(topics.items()))


def prepare(builder: Any) -> None:
    """Writes the data set of one of these builders where it belongs, if it is not there. Raises UserError where the
    folder cannot be written."""
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
                builder.download_and_prepare()
    except OSError as error:
        raise UserError(
            f"cannot write the data set {builder.name} to {builder.data_dir}: {error.strerror or error}. "
            "Name a folder that can be written in the environment variable TFDS_DATA_DIR."
        ) from error


def main() -> None:
    """Prepares every data set here and prints where it lies."""
    for name in NAMES:
        builder = tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR") or None)
        prepare(builder)
        print(builder.data_dir)


if __name__ == "__main__":
    main()

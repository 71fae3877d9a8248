"""Tables of TensorFlow Datasets: `tfds:NAME[/CONFIG][:VERSION][:SPLIT]`, read by index and without TensorFlow.

The data set must have been prepared in a format with random access, in the folder that TFDS_DATA_DIR names (else
`~/tensorflow_datasets`). The embedded corpora (`research.data.tables.builders`) are prepared when they are first opened.
Features in features are flattened, named with dots. Text is text, and images are their encoded bytes;
in a sequence of images, which the library cannot read undecoded, their pixels.
"""

import contextlib
import difflib
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.data.files import decode_utf8, digest_files
from research.data.tables import tfds_prepare
from research.data.tables.finding import named_splits
from research.data.tables.table import (
    Record,
    Table,
    check_index,
    check_text,
    content_identity,
    flatten,
    options_digest,
)

MANY = 1 << 16
_SPEC = re.compile(r"(?P<name>\w+)(?P<rest>(/[\w.+-]+)?(:\d+\.[\d*]+\.[\d*]+)?)(:(?P<split>.+))?")


@dataclass(frozen=True)
class TfdsTable:
    """The records of one split."""

    name: str
    builder: Any
    split: str
    rows: Any  # what as_data_source gave: a sequence
    elements: Mapping[str, Any]  # field -> its feature, or what it is a sequence of
    text_field: str | None
    classes: Mapping[str, tuple[str, ...]]  # see `classes_of`

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(self.elements)

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, i: int) -> Record:
        check_index(i, len(self), self.name)
        try:
            row = self.rows[i]
        except Exception as error:
            raise UserError(f"{self._where(i)} cannot be read: {_one_line(error)}") from error
        values = flatten(row)
        where = self._where(i)
        record = {field: _plain(values.get(field), feature, where) for field, feature in self.elements.items()}
        if self.text_field is not None:
            check_text(record, self.text_field, lambda: self._where(i))
        return record

    def identity(self, i: int) -> str:
        record = self.record(i)
        return content_identity(record) if self.text_field is None else record[self.text_field]

    def digest(self) -> tuple[str, int]:
        """Of what the records hold, since one that prepares a data set again writes them as other bytes; of many records, of the files."""
        files = [(Path(path).name, Path(path)) for path in self.builder.info.splits[self.split].filepaths]
        options = f"tfds {self.split} {self.text_field}"
        if len(self) > MANY:
            return options_digest(options, digest_files(files))
        content = hashlib.sha256()
        for i in range(len(self)):
            content.update(hashlib.sha256(content_identity(self.record(i)).encode("utf-8", "surrogateescape")).digest())
        return options_digest(options, (content.hexdigest(), sum(path.stat().st_size for _, path in files)))

    def _where(self, i: int) -> str:
        return f"{self.name}, record {i} of {self.split}"


def open_tfds(spec: str, rest: str, text_field: str | None = None) -> dict[str, Table]:
    """Returns the tables of `NAME[/CONFIG][:VERSION][:SPLIT]`: {"all": table} with a SPLIT, else every split, by part.

    With `text_field` that field is the identity of a record, and each record has to have text in it.
    Raises UserError for a data set or split that is not there, with the nearest names, and for one that is not
    prepared, with the command that does it.
    """
    match = _match(spec, rest)
    builder = _builder(spec, match["name"], match["rest"])
    if match["split"]:
        return {"all": _table(spec, builder, match["split"], text_field)}
    splits = named_splits(builder.info.splits)
    return {part: _table(spec, builder, name, text_field) for part, name in splits.items()}


def prepare_tfds(spec: str, files: Path | None, fetch: bool) -> Path:
    """Makes sure that the data set of `tfds:NAME...` is prepared, from the files in a folder and, with `fetch`, from the network; returns where it
    lies. Raises UserError as `open_tfds` and `tfds_prepare.prepare` do."""
    match = _match(spec, spec.partition(":")[2])
    builder, prepared = _found(spec, match["name"], match["rest"], to_write=True)
    if not prepared:
        tfds_prepare.prepare(builder, spec, files, fetch)
    return Path(builder.data_dir)


def _match(spec: str, rest: str) -> re.Match:
    match = _SPEC.fullmatch(rest)
    if match is None:
        raise UserError(f"cannot read {spec!r} as tfds:NAME[/CONFIG][:SPLIT], for example tfds:ag_news_subset:train")
    return match


def _builder(spec: str, name: str, rest: str) -> Any:
    from research.data.tables import builders

    builder, prepared = _found(spec, name, rest)
    if not prepared and name in builders.NAMES:
        builders.prepare(builder)
    elif not prepared:
        raise UserError(f"{spec} is not prepared in {_where()}. {_advice(name, rest)}")
    return builder


def _where() -> str:
    return os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"


def _advice(name: str, rest: str) -> str:
    command = f"research data prepare tfds:{name}{rest}"
    return (
        f"Prepare it from files that you have: {command} --downloads FOLDER, or from the network: {command} --download"
    )


def _found(spec: str, name: str, rest: str, to_write: bool = False) -> tuple[Any, bool]:
    """A data set's builder, and whether it is prepared."""
    import tensorflow_datasets as tfds

    from research.data.tables import builders  # which registers our own

    assert builders.NAMES
    where, advice = _where(), _advice(name, rest)
    data_dir = os.environ.get("TFDS_DATA_DIR") or None
    options: dict[str, Any] = {"file_format": "array_record"} if to_write else {}
    try:
        with _quiet():
            builder = tfds.builder(name + rest, data_dir=data_dir, **options)
            prepared = builder.is_prepared() and bool(builder.info.features)
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(f"{spec}: there is no data set {name!r}. {_nearest(name, where)}") from error
    except ModuleNotFoundError as error:
        lacking = tfds_prepare.missing(error)
        raise UserError(
            f"{spec}: its builder needs {lacking}, which is not installed: pip install {lacking}. Once prepared it is read without."
        ) from error
    except Exception as error:
        raise UserError(f"{spec} cannot be opened in {where}: {_one_line(error)}. {advice}") from error
    return builder, prepared


def _nearest(name: str, where: str) -> str:
    """Returns what to do about an unknown name: the nearest names that there are."""
    import tensorflow_datasets as tfds

    folder = Path(where).expanduser()
    prepared = (
        [path.name for path in folder.iterdir() if path.is_dir() and path.name != "downloads"]
        if folder.is_dir()
        else []
    )
    with _quiet():
        known = [*tfds.list_builders(with_community_datasets=False), *prepared]
    near = difflib.get_close_matches(name, sorted(set(known)), n=3)
    advice = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    return (
        f"{advice}TensorFlow Datasets builds {len(known) - len(prepared)} by name, "
        f"and {where} holds {sorted(prepared) or 'none'}."
    )


def _table(spec: str, builder: Any, split: str, text_field: str | None) -> TfdsTable:
    import tensorflow_datasets as tfds

    features = flatten(_nested(builder.info.features))
    elements = {name: _element(feature) for name, feature in features.items()}
    images = {name: tfds.decode.SkipDecoding() for name, f in features.items() if isinstance(f, tfds.features.Image)}
    try:
        with _quiet():
            rows = builder.as_data_source(split=split, decoders=_unflatten(images) or None)
    except NotImplementedError as error:
        raise UserError(
            f"{spec} was prepared as {builder.info.file_format.name}, which has no access by index. "
            "Prepare it again with file_format='array_record'."
        ) from error
    except Exception as error:
        raise UserError(
            f"{spec}: cannot open the split {split!r}: {_one_line(error)}. It has {sorted(builder.info.splits)}."
        ) from error
    labels = {name: f for name, f in elements.items() if isinstance(f, tfds.features.ClassLabel)}
    classes = {name: tuple(label.names) for name, label in labels.items() if label.names}
    return TfdsTable(spec, builder, split, rows, elements, text_field, classes)


def _nested(feature: Any) -> Any:
    """Returns the features of a data set as nested dicts: what is in a sequence of several features is one deeper."""
    import tensorflow_datasets as tfds

    inner = feature.feature if _is_sequence(feature) else feature
    if isinstance(inner, tfds.features.FeaturesDict):
        return {name: _nested(inner[name]) for name in inner}
    return feature


def _element(feature: Any) -> Any:
    """Returns what a sequence is a sequence of, all the way in."""
    return _element(feature.feature) if _is_sequence(feature) else feature


def _is_sequence(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    return isinstance(feature, tfds.features.Sequence) and not isinstance(feature, tfds.features.Dataset)


def _unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, last = path.split(".")
        here = nested
        for folder in folders:
            here = here.setdefault(folder, {})
        here[last] = value
    return nested


def _plain(value: Any, element: Any, where: str) -> Any:
    """A value of a data source as a record has it (see Record); `element` is the feature that it is, or is made of."""
    import tensorflow_datasets as tfds

    if isinstance(value, bytes):
        return decode_utf8(value, where) if isinstance(element, tfds.features.Text) else value
    if isinstance(element, tfds.features.Dataset):
        inner: Any = element.feature
        return [{name: _plain(leaf, inner[name], where) for name, leaf in row.items()} for row in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value
    if not isinstance(value, (list, np.ndarray)):
        return value
    if element.np_dtype in (np.object_, np.str_, np.bytes_) or isinstance(element, tfds.features.Image):
        return [_plain(inner, element, where) for inner in value]
    same = len({np.shape(inner) for inner in value}) < 2
    return np.array(value, element.np_dtype) if same else [_plain(inner, element, where) for inner in value]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own warnings about folders that it looked into."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logger.setLevel(before)

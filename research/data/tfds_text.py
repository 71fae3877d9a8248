"""Text from TensorFlow Datasets, read by record index with `tfds.data_source` (no TensorFlow needed, nothing
downloaded).

The data set must have been prepared in a format with random access:
`tfds build NAME --file_format=array_record`, in the folder that TFDS_DATA_DIR names (else `~/tensorflow_datasets`).
"""

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from research.core.errors import UserError
from research.data.files import decode_utf8
from research.data.sources import Records, Source, digest_files

_SPEC = re.compile(r"(?P<name>\w+(/[\w.+-]+)?(:\d+\.[\d*]+\.[\d*]+)?)(:(?P<split>.+))?")
_RECORDS_AT_ONCE = 256
_HELD_OUT_SPLITS = ("validation", "valid", "dev", "test")


def tfds_source(rest: str, text_field: str) -> Source:
    """Returns the source for `NAME[/CONFIG][:SPLIT]`.

    With a SPLIT: that split, a part of it held out by hash. Without: the split "train", and as held-out part the first
    there is of validation, valid, dev and test, else a part of "train" by hash. Raises UserError for a data set, split
    or feature that is not there, with the names that are.
    """
    spec = f"tfds:{rest}"
    match = _SPEC.fullmatch(rest)
    if match is None:
        raise UserError(f"cannot read {spec!r} as tfds:NAME[/CONFIG][:SPLIT], for example tfds:ag_news_subset:train")
    builder = _builder(spec, match["name"])
    features = builder.info.features
    if text_field not in features:
        raise UserError(
            f"{spec} has no feature {text_field!r}; it has {sorted(features)}. Name one of text by text_field."
        )
    split = match["split"] or "train"
    held_out = (
        next((name for name in _HELD_OUT_SPLITS if name in builder.info.splits), None) if not match["split"] else None
    )
    chosen = [split] if held_out is None else [split, held_out]
    readers = [_reader(spec, builder, name, text_field) for name in chosen]

    def digest() -> tuple[str, int]:
        content, size = digest_files(
            [
                (f"{name}/{Path(path).name}", Path(path))
                for name in chosen
                for path in builder.info.splits[name].filepaths
            ]
        )
        return hashlib.sha256(f"tfds {chosen} {text_field} {content}".encode()).hexdigest(), size

    return Source(spec, readers[0], digest, eval_records=readers[1] if held_out else None)


def _builder(spec: str, name: str) -> Any:
    import tensorflow_datasets as tfds

    data_dir = os.environ.get("TFDS_DATA_DIR") or None
    where = data_dir or "~/tensorflow_datasets"
    advice = f"Prepare it with: tfds build {name} --file_format=array_record --data_dir={where}"
    try:
        with _quiet():
            builder = tfds.builder(name, data_dir=data_dir)
            prepared = builder.is_prepared()
    except Exception as error:
        summary = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(
            f"{spec}: TensorFlow Datasets knows no such data set in {where} ({summary}). {advice}"
        ) from error
    if not prepared:
        raise UserError(f"{spec} is not prepared in {where}. {advice}")
    return builder


def _reader(spec: str, builder: Any, split: str, text_field: str) -> Records:
    try:
        with _quiet():
            table = builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise UserError(
            f"{spec} was prepared as {builder.info.file_format.name}, which has no access by index. "
            "Prepare it again with --file_format=array_record."
        ) from error
    except Exception as error:
        raise UserError(
            f"{spec}: cannot open the split {split!r}: {_one_line(error)}. It has {sorted(builder.info.splits)}."
        ) from error
    return partial(_records, spec, table, split, text_field)


def _records(spec: str, table: Any, split: str, text_field: str) -> Iterator[tuple[str, str]]:
    for start in range(0, len(table), _RECORDS_AT_ONCE):
        indices = range(start, min(start + _RECORDS_AT_ONCE, len(table)))
        try:
            rows = table.__getitems__(indices)
        except Exception as error:
            raise UserError(
                f"{spec}: cannot read the records {start} to {indices[-1]} of {split}: {_one_line(error)}"
            ) from error
        for index, row in zip(indices, rows, strict=True):
            text = _as_text(row[text_field], f"{spec}, record {index} of {split}", text_field)
            yield text, text


def _as_text(value: Any, where: str, text_field: str) -> str:
    if isinstance(value, str):  # what tfds.testing.mock_data gives
        return value
    if isinstance(value, bytes):
        return decode_utf8(value, where)
    raise UserError(f"{where}: the feature {text_field!r} is not text but {type(value).__name__}.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own warnings about folders that it looked into."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)

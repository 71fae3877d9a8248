"""Tables in columns: Parquet files, and folders that Hugging Face `datasets` saved on disk, both read with pyarrow.

| form           | what is read                                                                                       |
| -------------- | -------------------------------------------------------------------------------------------------- |
| `parquet:PATH` | a file, a folder or a glob. A record costs the decoding of its row group; the last ones are kept    |
| `hf:FOLDER`    | what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote (datasets 1.0 to 5.2), memory-mapped |

A structure of columns is flattened, its fields named with dots. A list of numbers is an array. What `datasets` stores of
an image or a sound, a structure of bytes and a path, is its encoded bytes.
"""

import datetime
import decimal
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.data.files import digest_files
from research.data.tables.finding import find_parts, named_splits
from research.data.tables.splits import Part
from research.data.tables.table import (
    Record,
    Table,
    check_index,
    check_text,
    content_identity,
    flatten,
    join,
    locate,
    options_digest,
)

_DECODED_BYTES = 256 * 2**20  # of row groups that are kept, by their size in the file before compression
_MEDIA = ["bytes", "path"]  # the fields of the structure that `datasets` stores of an Image or Audio feature


@dataclass(frozen=True)
class ArrowTable:
    """Records that lie in pieces of columns: the row groups of a Parquet file, the batches of an Arrow stream."""

    name: str
    fields: tuple[str, ...]
    path: Path
    ends: np.ndarray  # [pieces], the rows up to and with each piece
    piece: Callable[[int], Any]  # the pyarrow.Table or RecordBatch at an index
    text_field: str | None
    classes: Mapping[str, tuple[str, ...]]  # see `classes_of`

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def record(self, i: int) -> Record:
        check_index(i, len(self), self.name)
        piece, place = locate(self.ends, i)
        columns = self._columns(piece)
        values = flatten({name: _plain(columns[name][place], self.path) for name in columns.schema.names})
        record = {field: values.get(field) for field in self.fields}
        if self.text_field is not None:
            check_text(record, self.text_field, lambda: f"{self.path}, record {i}")
        return record

    def identity(self, i: int) -> str:
        record = self.record(i)
        return content_identity(record) if self.text_field is None else record[self.text_field]

    def digest(self) -> tuple[str, int]:
        return digest_files([("", self.path)])

    def _columns(self, piece: int) -> Any:
        try:
            return self.piece(piece)
        except (OSError, ValueError) as error:  # pyarrow's errors are kinds of these
            raise UserError(f"{self.path} is damaged at piece {piece} of its rows: {_one_line(error)}") from error


def open_parquet(spec: str, pattern: str, text_field: str | None = None) -> dict[str, Table]:
    """Returns the tables of the Parquet files that `pattern` names, by part.

    With `text_field` that field is the identity of a record, and each record has to have text in it.
    Raises UserError for files that cannot be read, hold no record, or have columns that disagree.
    """
    tables = {}
    for part, files in find_parts(spec, pattern, (".parquet",)).items():
        opened = [_parquet_file(spec, path, text_field) for _, path in files]
        _same_columns(opened)
        digest = functools.partial(_digest, f"parquet {text_field}", files)
        tables[part] = join(spec, opened, digest)
    return tables


def open_saved(spec: str, folder: str, text_field: str | None = None) -> dict[str, Table]:
    """Returns the tables in a folder that Hugging Face `datasets` saved: {"all": table}, or the splits by part.

    With `text_field` that field is the identity of a record, and each record has to have text in it.
    Raises UserError for a folder that is not there or is none of those, and for damaged files.
    """
    root = Path(folder).expanduser()
    if (root / "state.json").is_file():
        return {"all": _saved_dataset(spec, root, text_field)}
    if not (root / "dataset_dict.json").is_file():
        raise UserError(
            f"{spec}: {folder!r} is no folder that `datasets` saved: it has neither state.json nor dataset_dict.json. "
            "Write one by dataset.save_to_disk(FOLDER)."
        )
    splits = _read_json(root / "dataset_dict.json", "splits")
    return {part: _saved_dataset(spec, root / name, text_field) for part, name in named_splits(splits).items()}


def _parquet_file(spec: str, path: Path, text_field: str | None) -> ArrowTable:
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path, memory_map=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a Parquet file that can be read: {_one_line(error)}") from error
    groups = [file.metadata.row_group(k) for k in range(file.metadata.num_row_groups)]
    kept = _DECODED_BYTES // max([1, *(group.total_byte_size for group in groups)])

    @functools.lru_cache(max(1, kept))
    def read(k: int) -> Any:  # a reader of its own for each: one is not to be used by several threads at once
        reader = pyarrow.parquet.ParquetFile(path, metadata=file.metadata, memory_map=True)
        return reader.read_row_group(k, use_threads=False)

    ends = np.cumsum([group.num_rows for group in groups])
    return ArrowTable(spec, _fields(file.schema_arrow), path, ends, read, text_field, {})


def _saved_dataset(spec: str, folder: Path, text_field: str | None) -> Table:
    files = _state_files(folder, "_data_files")
    classes = _class_names(folder)
    mapping = _state_files(folder, "_indices_data_files")
    digest = functools.partial(_digest, f"arrow {text_field}", [(path.name, path) for path in files + mapping])
    table = join(spec, [_arrow_file(spec, path, text_field, classes) for path in files], digest)
    if not mapping:
        return table
    rows = np.concatenate([_indices(_arrow_file(spec, path, None, {}), path) for path in mapping])
    if len(rows) and int(rows.max()) >= len(table):
        raise UserError(f"{mapping[0]} names row {rows.max()}, and the data in {folder} has {len(table)} rows.")
    return Part(table, rows)


def _arrow_file(spec: str, path: Path, text_field: str | None, classes: Mapping[str, tuple[str, ...]]) -> ArrowTable:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            batches = pa.ipc.open_stream(source).read_all()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not an Arrow stream that can be read: {_one_line(error)}") from error
    pieces = batches.to_batches()
    ends = np.cumsum([len(piece) for piece in pieces])
    return ArrowTable(spec, _fields(batches.schema), path, ends, pieces.__getitem__, text_field, classes)


def _indices(table: ArrowTable, path: Path) -> np.ndarray:
    """The rows that a mapping of indices names, in its order: one column of whole numbers, in files of `datasets` 1.x."""
    if len(table.fields) != 1:
        raise UserError(f"{path} is no mapping of indices: it has the columns {list(table.fields)}, expected one.")
    columns = [table.piece(k).column(0).to_numpy(zero_copy_only=False) for k in range(len(table.ends))]
    return np.concatenate([*columns, np.empty(0, np.uint64)]).astype(np.uint64)


def _state_files(folder: Path, key: str) -> list[Path]:
    state = folder / "state.json"
    if not state.is_file():
        raise UserError(f"{folder} is no split that `datasets` saved: there is no {state.name} in it.")
    files = _read_json(state, key, optional=key != "_data_files")
    try:
        paths = [folder / Path(file["filename"]).name for file in files]
    except (KeyError, TypeError) as error:
        raise UserError(f"{state}: {key!r} is not a list of file names, as save_to_disk writes it.") from error
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise UserError(f"{state} names {missing.name}, which is not in {folder}: copy the whole folder.")
    return paths


def _read_json(path: Path, key: str, optional: bool = False) -> Any:
    try:
        content = json.loads(path.read_bytes())
        return (content.get(key) or []) if optional else content[key]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: expected JSON with {key!r}, as save_to_disk writes it.") from error


def _class_names(folder: Path) -> dict[str, tuple[str, ...]]:
    """The names of the values of every ClassLabel feature, from dataset_info.json where there is one."""
    info = folder / "dataset_info.json"
    features = _read_json(info, "features", optional=True) if info.is_file() else {}
    labels = {name: feature for name, feature in dict(features).items() if isinstance(feature, dict)}
    return {name: tuple(f["names"]) for name, f in labels.items() if f.get("_type") == "ClassLabel" and "names" in f}


def _fields(schema: Any) -> tuple[str, ...]:
    return tuple(name for field in schema for name in _leaf_names(field.name, field.type))


def _leaf_names(name: str, kind: Any) -> list[str]:
    import pyarrow as pa

    inner = [kind.field(k) for k in range(kind.num_fields)] if pa.types.is_struct(kind) else []
    if not inner or sorted(field.name for field in inner) == _MEDIA:
        return [name]
    return [leaf for field in inner for leaf in _leaf_names(f"{name}.{field.name}", field.type)]


def _same_columns(tables: list[ArrowTable]) -> None:
    for table in tables[1:]:
        if table.fields != tables[0].fields:
            raise UserError(
                f"{table.path} has the columns {list(table.fields)}, and {tables[0].path} has {list(tables[0].fields)}: "
                "files of one table have the same columns."
            )


def _plain(scalar: Any, path: Path) -> Any:
    """A pyarrow scalar as a record has it (see Record)."""
    import pyarrow as pa

    if isinstance(scalar, pa.ExtensionScalar):
        scalar = scalar.value
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.StructScalar):
        if sorted(scalar.keys()) == _MEDIA:
            return _media_bytes(scalar.as_py(), path)
        return {name: _plain(inner, path) for name, inner in scalar.items()}
    if isinstance(scalar, pa.ListScalar) and not isinstance(scalar, pa.MapScalar):  # large and fixed-size lists too
        return _list(scalar.values, path)
    value = scalar.as_py()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value) if isinstance(value, (decimal.Decimal, datetime.timedelta)) else value


def _list(values: Any, path: Path) -> Any:
    """Numbers, or lists of as many numbers each, as an array; anything else, and what has gaps, as a list."""
    import pyarrow as pa

    kind = values.type
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if numbers and values.null_count == 0:
        return values.to_numpy(zero_copy_only=False).copy()
    plain = [_plain(value, path) for value in values]
    arrays = all(isinstance(value, np.ndarray) for value in plain)
    if plain and arrays and len({value.shape for value in plain}) == 1:
        return np.stack(plain)
    return plain


def _media_bytes(value: dict[str, Any], path: Path) -> bytes | None:
    if value["bytes"] is None and value["path"] is not None:
        raise UserError(f"{path} holds the path {value['path']!r} and not the bytes behind it. Save it with its bytes.")
    return value["bytes"]


def _digest(options: str, files: list[tuple[str, Path]]) -> tuple[str, int]:
    return options_digest(options, digest_files(files))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")

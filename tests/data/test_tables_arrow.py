"""Parquet files and folders that Hugging Face `datasets` saved, laid out here as its `save_to_disk` does."""

import datetime
import decimal
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data.tables import arrow
from research.data.tables.spec import open_tables
from research.data.tables.table import classes_of

MEDIA = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def texts(table) -> list[str]:
    return [table.record(i)["text"] for i in range(len(table))]


def write_stream(path: Path, table: pa.Table, batch: int = 4) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)


def save(folder: Path, *tables: pa.Table, features: dict | None = None, indices: list[int] | None = None) -> Path:
    """The layout of datasets 5.2 (state.json, dataset_info.json, data-*.arrow); with `indices` that of 1.x."""
    folder.mkdir(parents=True)
    names = [f"data-{k:05d}-of-{len(tables):05d}.arrow" for k in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        write_stream(folder / name, table)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_format_columns": None}
    state |= {"_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None}
    if indices is not None:
        write_stream(folder / "indices.arrow", pa.table({"indices": pa.array(indices, pa.uint64())}))
        state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"citation": "", "features": features or {}}))
    return folder


def numbered(count: int, start: int = 0) -> pa.Table:
    return pa.table({"text": [f"sätze {k}" for k in range(start, start + count)], "label": list(range(count))})


@given(groups=st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any), size=st.integers(1, 3))
def test_parquet_finds_every_record_in_files_of_any_row_groups(groups, size, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parquet")
    start = 0
    for number, count in enumerate(groups):
        pq.write_table(numbered(count, start), folder / f"{number}.parquet", row_group_size=size)
        start += count
    table = open_tables(f"parquet:{folder}")["all"]
    assert texts(table) == [f"sätze {k}" for k in range(start)]
    assert table.fields == ("text", "label")
    with pytest.raises(IndexError):
        table.record(start)


def test_row_groups_are_kept_within_a_bound(tmp_path, monkeypatch):
    pq.write_table(numbered(40), tmp_path / "x.parquet", row_group_size=10)
    for bytes_kept, reads in ((10**9, 4), (1, 8)):
        monkeypatch.setattr(arrow, "_DECODED_BYTES", bytes_kept)
        read = open_tables(f"parquet:{tmp_path}")["all"].tables[0]
        for i in [0, 10, 20, 30] * 2:
            read.record(i)
        assert read.piece.cache_info().misses == reads


def test_parts_and_identities_of_parquet(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        pq.write_table(numbered(3), tmp_path / f"{name}.parquet")
    tables = open_tables(f"parquet:{tmp_path}", text_field="text")
    assert {part: len(table) for part, table in tables.items()} == {"train": 6, "test": 3}
    assert tables["test"].identity(2) == "sätze 2"
    assert open_tables(f"parquet:{tmp_path}")["test"].digest() != tables["test"].digest()


def test_values_are_plain(tmp_path):
    rows = {
        "image": pa.array([{"bytes": b"png", "path": "a.png"}, None], MEDIA),
        "vector": pa.array([[1.5, 2.5], []], pa.list_(pa.float32())),
        "matrix": pa.array([[[1, 2], [3, 4]], [[5], [6, 7]]], pa.list_(pa.list_(pa.int32()))),
        "gaps": pa.array([[1, None], None], pa.list_(pa.int64())),
        "words": pa.array([["a", "b"], []], pa.list_(pa.string())),
        "meta": pa.array([{"id": 7, "inner": {"day": datetime.date(2020, 1, 2)}}, None]),
        "price": pa.array([decimal.Decimal("1.50"), None]),
        "kind": pa.array(["x", "y"]).dictionary_encode(),
    }
    pq.write_table(pa.table(rows), tmp_path / "x.parquet")
    table = open_tables(f"parquet:{tmp_path}")["all"]
    assert table.fields == (
        *("image", "vector", "matrix", "gaps", "words", "meta.id", "meta.inner.day", "price", "kind"),
    )
    first, second = table.record(0), table.record(1)
    assert first["vector"].dtype == np.float32
    assert (first.pop("vector").tolist(), second.pop("vector").tolist()) == ([1.5, 2.5], [])
    assert first.pop("matrix").tolist() == [[1, 2], [3, 4]]
    assert [row.tolist() for row in second.pop("matrix")] == [[5], [6, 7]]
    assert first == {
        "image": b"png",
        "gaps": [1, None],
        "words": ["a", "b"],
        "meta.id": 7,
        "meta.inner.day": "2020-01-02",
        "price": "1.50",
        "kind": "x",
    }
    assert second == {**dict.fromkeys(first), "words": [], "kind": "y"}


def test_a_saved_dataset_with_several_files_and_names_of_classes(tmp_path):
    features = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": ["no", "yes"], "_type": "ClassLabel"}}
    folder = save(tmp_path / "saved", numbered(9), numbered(0), numbered(2, 9), features=features)
    table = open_tables(f"hf:{folder}")["all"]
    assert texts(table) == [f"sätze {k}" for k in range(11)]
    assert classes_of(table) == {"label": ("no", "yes")}
    before = table.digest()
    assert open_tables(f"hf:{folder.rename(tmp_path / 'moved')}")["all"].digest() == before


def test_a_mapping_of_indices_is_honoured(tmp_path):
    folder = save(tmp_path / "saved", numbered(9), features={}, indices=[8, 0, 0, 4])
    table = open_tables(f"hf:{folder}", text_field="text")["all"]
    assert texts(table) == ["sätze 8", "sätze 0", "sätze 0", "sätze 4"]
    assert table.identity(3) == "sätze 4"
    outside = save(tmp_path / "outside", numbered(9), indices=[9])
    with pytest.raises(UserError, match="names row 9, and the data .* has 9 rows"):
        open_tables(f"hf:{outside}")


def test_splits_of_a_saved_dict(tmp_path):
    for name in ("train", "dev", "unsupervised"):
        save(tmp_path / name, numbered(2))
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "dev", "unsupervised"]}))
    assert list(open_tables(f"hf:{tmp_path}")) == ["train", "validation", "unsupervised"]
    assert list(open_tables(f"hf:{tmp_path}/dev")) == ["all"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "state.json").unlink(), "neither state.json nor dataset_dict.json.*save_to_disk"),
        (lambda f: (f / "state.json").write_text("{"), r"state\.json is damaged"),
        (lambda f: (f / "state.json").write_text('{"_data_files": [1]}'), "not a list of file names"),
        (lambda f: (f / "data-00000-of-00001.arrow").unlink(), "names data-00000-of-00001.arrow, which is not in"),
        (lambda f: (f / "data-00000-of-00001.arrow").write_bytes(b"?" * 99), "arrow is not an Arrow stream"),
        (lambda f: (f / "data-00000-of-00001.arrow").write_bytes(b""), "arrow is not an Arrow stream"),
        (lambda f: (f / "dataset_info.json").write_text("?"), r"dataset_info\.json is damaged"),
    ],
)
def test_damaged_folders_are_named(tmp_path, damage, message):
    folder = save(tmp_path / "saved", numbered(9))
    damage(folder)
    with pytest.raises(UserError, match=message):
        open_tables(f"hf:{folder}")


def test_bad_parquet_is_named(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(UserError, match=r"x\.parquet is not a Parquet file"):
        open_tables(f"parquet:{path}")
    pq.write_table(numbered(1000), path, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.parquet is damaged at piece 0"):
        open_tables(f"parquet:{path}")["all"].record(0)
    pq.write_table(numbered(0), path)
    with pytest.raises(UserError, match="holds no record"):
        open_tables(f"parquet:{path}")


def test_fields_that_are_not_there_not_text_or_not_the_same(tmp_path):
    pq.write_table(numbered(2), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no field 'story'; it has \['text', 'label'\]"):
        open_tables(f"parquet:{tmp_path}", text_field="story")
    with pytest.raises(UserError, match=r"a\.parquet, record 1: field 'label' is not text but int"):
        open_tables(f"parquet:{tmp_path}", text_field="label")["all"].record(1)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet has the columns \['text'\]"):
        open_tables(f"parquet:{tmp_path}")


def test_a_path_without_its_bytes_is_an_error(tmp_path):
    rows = pa.array([{"bytes": None, "path": "/elsewhere/a.png"}], MEDIA)
    pq.write_table(pa.table({"image": rows}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="holds the path '/elsewhere/a.png' and not the bytes"):
        open_tables(f"parquet:{tmp_path}")["all"].record(0)

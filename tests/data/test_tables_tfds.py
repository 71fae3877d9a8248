"""TensorFlow Datasets as tables, and the builders of the embedded corpora; everything is built here without TensorFlow."""

import io
import sys
import warnings

import numpy as np
import pytest
import tiny_tfds

from research.core.errors import UserError
from research.data.sources import resolve
from research.data.tables.spec import open_tables
from research.data.tables.splits import PARTS, bucket
from research.data.tables.table import classes_of

with warnings.catch_warnings():  # its dependencies' own
    warnings.simplefilter("ignore")
    import tensorflow_datasets as tfds

PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def png() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format="PNG")
    return buffer.getvalue()


class PurestepTinyRecords(tfds.core.GeneratorBasedBuilder):
    """Every kind of feature that a record may have, in three splits."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # no checksums of downloads

    def _info(self):
        features = {
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["no", "yes"]),
            "image": tfds.features.Image(shape=(4, 4, 3)),
            "raw": tfds.features.Tensor(shape=(), dtype=np.object_),
            "counts": tfds.features.Sequence(np.int32),
            "inner": tfds.features.Dataset({"id": np.int64, "name": tfds.features.Text()}),
            "words": tfds.features.Sequence(tfds.features.Text()),
            "vector": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            "meta": {"id": np.int64, "author": tfds.features.Text()},
            "turns": tfds.features.Sequence({"who": tfds.features.Text(), "length": np.int32}),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(30),
            "dev": self._generate_examples(3),
            "extra": self._generate_examples(2),
        }

    def _generate_examples(self, count):
        for number in range(count):
            yield (
                number,
                {
                    "text": f"sätze {number}",
                    "label": number % 2,
                    "image": png(),  # encoded, as turning pixels into a file would take TensorFlow
                    "raw": b"\xff\0",
                    "counts": [1] * number,
                    "inner": [{"id": number, "name": "é"}] * 2,
                    "words": ["ä", "b"],
                    "vector": [number, 0.5],
                    "meta": {"id": number, "author": "ö"},
                    "turns": {"who": ["ü", "v"], "length": [1, 2]},
                },
            )


data_dir, in_data_dir = tiny_tfds.prepared(PurestepTinyRecords)


@pytest.mark.usefixtures("in_data_dir")
class TestPrepared:
    def test_splits_become_parts_and_features_flat_and_plain(self):
        tables = open_tables("tfds:purestep_tiny_records")
        assert {part: len(table) for part, table in tables.items()} == {"train": 30, "validation": 3, "extra": 2}
        table = tables["train"]
        record = next(r for r in map(table.record, range(30)) if r["meta.id"] == 7)
        assert set(record) == set(table.fields)
        assert record.pop("vector").tolist() == [7, 0.5]
        assert record.pop("turns.length").tolist() == [1, 2]
        counts = record.pop("counts")
        assert (counts.dtype, counts.tolist()) == (np.int32, [1] * 7)
        assert record.pop("image") == png()
        assert type(record["label"]) is type(record["inner"][0]["id"]) is int
        assert record == {
            "text": "sätze 7",
            "label": 1,
            "raw": b"\xff\0",
            "inner": [{"id": 7, "name": "é"}] * 2,
            "words": ["ä", "b"],
            "meta.id": 7,
            "meta.author": "ö",
            "turns.who": ["ü", "v"],
        }
        assert classes_of(table) == {"label": ("no", "yes")}

    def test_a_named_split_is_the_whole_and_text_is_its_identity(self):
        table = open_tables("tfds:purestep_tiny_records:1.0.0:train[:10]", text_field="text")["all"]
        assert len(table) == 10
        assert {table.identity(i) for i in range(10)} <= {f"sätze {k}" for k in range(30)}
        assert table.digest() != open_tables("tfds:purestep_tiny_records:train", text_field="text")["all"].digest()
        with pytest.raises(IndexError):
            table.record(10)

    @pytest.mark.parametrize(
        ("spec", "field", "message"),
        [
            ("tfds:purestep_tiny_recods", None, r"no data set .* Did you mean 'purestep_tiny_records'"),
            ("tfds:mnits", None, "Did you mean .*'mnist'"),
            (
                "tfds:ag_news_subset",
                None,
                "not prepared in .*research data prepare tfds:ag_news_subset --downloads FOLDER",
            ),
            ("tfds:purestep_tiny_records:valid", None, r"split 'valid'.*\['dev', 'extra', 'train'\]"),
            ("tfds:purestep_tiny_records", "story", r"no field 'story'; it has \["),
            ("tfds:two words", None, "cannot read 'tfds:two words'"),
        ],
    )
    def test_bad_names_say_what_there_is(self, spec, field, message):
        with pytest.raises(UserError, match=message) as caught:
            open_tables(spec, text_field=field)
        assert "\n" not in str(caught.value)

    def test_a_field_that_is_no_text(self):
        with pytest.raises(UserError, match="record 0 of dev: field 'label' is not text but int"):
            open_tables("tfds:purestep_tiny_records:dev", text_field="label")["all"].record(0)


def test_a_damaged_data_set_is_an_error_and_not_a_crash(data_dir, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(data_dir, tmp_path / "damaged")
    [shard] = (tmp_path / "damaged").glob("purestep_tiny_records/1.0.0/*train.array_record*")
    shard.write_bytes(shard.read_bytes()[:100])
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "damaged"))
    with pytest.raises(UserError, match="tfds:purestep_tiny_records"):
        open_tables("tfds:purestep_tiny_records")["train"].record(0)


def test_the_standard_library_is_prepared_when_it_is_first_opened(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    tables = open_tables("tfds:python_stdlib", text_field="path")
    assert tuple(tables) == PARTS
    assert capfd.readouterr().out == ""
    source = resolve("python_stdlib")
    held_out = {tables["validation"].record(i)["text"] for i in range(len(tables["validation"]))}
    assert held_out == set(source.documents("validation"))
    files = source.tables["all"]
    records = [files.record(i) for i in range(len(files))]
    texts = {record["path"]: record["text"] for record in records if record["text"]}
    for part, table in tables.items():
        for i in range(0, len(table), 37):
            record = table.record(i)
            assert texts[record["path"]] == record["text"]
            assert bucket(table.identity(i)) == part
    assert sum(map(len, tables.values())) == len(texts)


def test_topics_open_by_name_in_a_program_that_has_only_imported_the_builders(tmp_path, run_python):
    code = f"""
import sys, warnings
warnings.simplefilter("ignore")
import research.data.tables.builders
import tensorflow_datasets as tfds
rows = tfds.data_source("python_topics", split="train", data_dir={str(tmp_path)!r})
assert "tensorflow" not in sys.modules
print(len(rows), rows[0]["topic"].decode())
"""
    count, topic = run_python(code).split("\n")[-2].split()
    from pydoc_data.topics import topics

    assert int(count) == sum(bucket(name) == "train" for name in topics)
    assert topic in topics
    plain = f"""
import sys, warnings
warnings.simplefilter("ignore")
import tensorflow_datasets as tfds
print(len(tfds.data_source("python_topics", split="train", data_dir={str(tmp_path)!r})), "research" in sys.modules)
"""
    assert run_python(plain).split("\n")[-2] == f"{count} False"
    assert (tmp_path / "python_topics" / ".".join(map(str, sys.version_info[:3]))).is_dir()

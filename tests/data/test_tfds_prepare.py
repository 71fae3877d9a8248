"""Public data sets of TensorFlow Datasets prepared from local files, offline and without TensorFlow."""

import importlib.util
import warnings

import pytest
from data_commands import assert_refused, last

from research.data.tables.spec import open_tables

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow opens the files here"
)
PLAY = "".join(f"Citizen {n}:\nSpeak, speak, {n} times.\n\n" for n in range(400))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with the file that `tiny_shakespeare` is made of, and the checksums of that one instead of the real play's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.download import checksums

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / "input.txt"
    path.write_text(PLAY)
    builder = tfds.builder_cls("tiny_shakespeare")
    [url] = builder.url_infos
    own = checksums.compute_url_info(path)
    monkeypatch.setitem(builder.url_infos, url, own)
    monkeypatch.setattr(checksums, "get_all_url_infos", lambda: {url: own})
    return path.parent


def test_a_public_data_set_is_prepared_from_its_file_and_read(call, files):
    unprepared = call("prepare", "tfds:tiny_shakespeare")
    assert_refused(unprepared, "not prepared", "--downloads FOLDER", "--download")
    found = last(call("prepare", "tfds:tiny_shakespeare", "--downloads", files, "--json"))
    assert {split: one["bytes"] for split, one in found["splits"].items()} == {
        "train": int(0.9 * len(PLAY)), "validation": len(PLAY) // 20, "test": len(PLAY) - int(0.9 * len(PLAY)) - len(PLAY) // 20,
    }  # fmt: skip
    assert open_tables("tfds:tiny_shakespeare:train")["all"].record(0)["text"] == PLAY[: int(0.9 * len(PLAY))]
    assert last(call("prepare", "tfds:tiny_shakespeare", "--json"))["found_ready"]
    row = last(call("preview", "tfds:tiny_shakespeare", "--step", 3, "--context", 20, "--json"))["rows"][0]
    assert bytes(row["tokens"]).decode() in PLAY and row["records"] == [0]


def test_without_the_file_it_is_named_and_nothing_is_fetched(call, files, tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr(socket, "socket", None)
    (files / "input.txt").rename(files / "other.txt")
    answer = call("prepare", "tfds:tiny_shakespeare", "--downloads", files)
    assert_refused(answer, "https://raw.githubusercontent.com", f"{files} has no file 'input.txt'", "--download")
    assert not list((tmp_path / "tfds").glob("tiny_shakespeare/1*"))
    assert_refused(call("prepare", "tfds:tiny_shakespeare", "--downloads", files / "nowhere"), "is no folder")


def test_a_file_that_is_not_the_registered_one_is_refused(call, files, tmp_path):
    (files / "input.txt").write_text(PLAY + "!")
    answer = call("prepare", "tfds:tiny_shakespeare", "--downloads", files)
    assert_refused(answer, f"{files}/input.txt is not the file that the data set is made of", "SHA-256")
    assert not list((tmp_path / "tfds").glob("tiny_shakespeare/1*"))


def test_a_builder_that_computes_with_tensorflow_says_so(call, files, monkeypatch):
    import tensorflow_datasets as tfds

    def split_generators(self, dl_manager):
        import sys

        sys.modules[type(self).__module__].tf.constant(1)

    monkeypatch.setattr(tfds.builder_cls("tiny_shakespeare"), "_split_generators", split_generators)
    answer = call("prepare", "tfds:tiny_shakespeare", "--downloads", files)
    assert_refused(answer, "needs tensorflow, which is not installed", "pip install tensorflow")


def test_a_data_set_without_text_is_prepared_and_told_of(call, files, monkeypatch):
    import tensorflow_datasets as tfds

    cls = tfds.builder_cls("tiny_shakespeare")
    features = tfds.features.FeaturesDict({"line": tfds.features.Text()})
    monkeypatch.setattr(cls, "_info", lambda self: tfds.core.DatasetInfo(builder=self, features=features))
    monkeypatch.setattr(
        cls, "_generate_examples", lambda self, split_key, split_text: iter([(split_key, {"line": split_text})])
    )
    found = last(call("prepare", "tfds:tiny_shakespeare", "--downloads", files, "--json"))
    assert found["splits"] == {"train": 1, "validation": 1, "test": 1}


def test_the_options_are_of_data_sets_alone(call, source, tmp_path):
    assert_refused(call("prepare", source, "--downloads", tmp_path), "--downloads and --download are of tfds:NAME")

"""Text data sets of TensorFlow Datasets: small ones, built here without TensorFlow."""

import warnings

import numpy as np
import pytest

from research.core.errors import UserError
from research.data.sources import resolve
from research.data.tokens import prepare

with warnings.catch_warnings():  # its dependencies' own
    warnings.simplefilter("ignore")
    import tensorflow_datasets as tfds


class PurestepTinyText(tfds.core.GeneratorBasedBuilder):
    """Three splits of numbered sentences."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {"text": tfds.features.Text(), "title": tfds.features.Text(), "label": np.int64}
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(300), "test": self._generate_examples(7)}

    def _generate_examples(self, count):
        for number in range(count):
            yield number, {"text": f"sätze {number}", "title": f"title {number}", "label": number}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PurestepTinyText(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def in_data_dir(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))


@pytest.mark.usefixtures("in_data_dir")
class TestPrepared:
    def test_uses_the_split_that_is_held_out_by_the_data_set(self):
        source = resolve("tfds:purestep_tiny_text")
        assert sorted(source.documents("train")) == sorted(f"sätze {number}" for number in range(300))
        assert sorted(source.documents("eval")) == sorted(f"sätze {number}" for number in range(7))

    def test_a_named_split_is_divided_by_hash(self):
        source = resolve("tfds:purestep_tiny_text:1.0.0:train")
        train, held_out = list(source.documents("train")), list(source.documents("eval"))
        assert sorted(train + held_out) == sorted(f"sätze {number}" for number in range(300))
        assert 3 < len(held_out) < 40
        assert source.fingerprint == resolve("tfds:purestep_tiny_text:1.0.0:train").fingerprint

    def test_parts_of_splits_and_other_features(self):
        source = resolve("tfds:purestep_tiny_text:train[:10%]", text_field="title")
        documents = [*source.documents("train"), *source.documents("eval")]
        assert len(documents) == 30
        assert all(document.startswith("title ") for document in documents)
        fingerprints = {
            resolve(f"tfds:purestep_tiny_text{rest}", field).fingerprint
            for rest, field in [
                ("", "text"),
                ("", "title"),
                (":train", "text"),
                (":test", "text"),
                (":train[:10%]", "text"),
            ]
        }
        assert len(fingerprints) == 5

    def test_prepares_to_tokens(self, tmp_path):
        corpus = prepare("tfds:purestep_tiny_text", "byte", cache_dir=tmp_path)
        documents = corpus.tokenizer.decode_bytes(corpus.eval.tokens)
        assert documents.count("sätze ".encode()) == 7
        assert (corpus.eval.tokens == 256).sum() == 6

    @pytest.mark.parametrize(
        ("spec", "field", "message"),
        [
            ("tfds:purestep_tiny_text:valid", "text", r"split 'valid'.*\['test', 'train'\]"),
            ("tfds:purestep_tiny_text:train[", "text", r"split 'train\['"),
            ("tfds:purestep_tiny_text", "story", r"no feature 'story'; it has \['label', 'text', 'title'\]"),
            ("tfds:purestep_no_such_thing", "text", "no such data set.*tfds build purestep_no_such_thing"),
            ("tfds:ag_news_subset", "text", "not prepared in .*--file_format=array_record"),
            ("tfds:two words", "text", "cannot read 'tfds:two words'"),
            ("tfds:", "text", "names nothing"),
        ],
    )
    def test_bad_names_say_what_there_is(self, spec, field, message):
        with pytest.raises(UserError, match=message) as caught:
            resolve(spec, field)
        assert "\n" not in str(caught.value)

    def test_a_feature_that_is_no_text(self):
        with pytest.raises(UserError, match="record 0 of train: the feature 'label' is not text"):
            list(resolve("tfds:purestep_tiny_text", "label").documents("train"))


def test_a_damaged_data_set_is_an_error_and_not_a_crash(data_dir, tmp_path, monkeypatch):
    import shutil

    copy = tmp_path / "damaged"
    shutil.copytree(data_dir, copy)
    [shard] = copy.glob("purestep_tiny_text/1.0.0/*train.array_record*")
    shard.write_bytes(shard.read_bytes()[:100])
    monkeypatch.setenv("TFDS_DATA_DIR", str(copy))
    with pytest.raises(UserError, match="tfds:purestep_tiny_text"):
        list(resolve("tfds:purestep_tiny_text").documents("train"))

"""Text data sets of TensorFlow Datasets: small ones, built here without TensorFlow."""

import re
import warnings

import numpy as np
import pytest
import tiny_tfds

from research.core.errors import UserError
from research.data.sources import SPLITS, resolve
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


data_dir, in_data_dir = tiny_tfds.prepared(PurestepTinyText)


@pytest.mark.usefixtures("in_data_dir")
class TestPrepared:
    def test_a_test_split_stays_that_and_validation_is_held_out_of_what_is_trained_on(self):
        source = resolve("tfds:purestep_tiny_text")
        train, held_out = list(source.documents("train")), list(source.documents("validation"))
        assert sorted(train + held_out) == sorted(f"sätze {number}" for number in range(300))
        assert 3 < len(held_out) < 40
        assert sorted(source.documents("test")) == sorted(f"sätze {number}" for number in range(7))

    def test_a_named_split_is_divided_by_hash(self):
        source = resolve("tfds:purestep_tiny_text:1.0.0:train")
        found = [text for split in SPLITS for text in source.documents(split)]
        assert sorted(found) == sorted(f"sätze {number}" for number in range(300))
        assert source.fingerprint == resolve("tfds:purestep_tiny_text:1.0.0:train").fingerprint

    def test_parts_of_splits_other_features_and_texts_made_of_several(self):
        source = resolve("tfds:purestep_tiny_text:train[:10%]", text_field="{title}: {text}")
        documents = [text for split in SPLITS for text in source.documents(split)]
        assert len(documents) == 30
        assert all(re.fullmatch(r"title (\d+): sätze \1", document) for document in documents)
        fields = [("", "text"), ("", "title"), (":train", "text"), (":test", "text"), (":train[:10%]", "text")]
        assert len({resolve(f"tfds:purestep_tiny_text{rest}", field).fingerprint for rest, field in fields}) == 5

    def test_prepares_to_tokens(self, tmp_path):
        corpus = prepare("tfds:purestep_tiny_text", "byte", cache_dir=tmp_path)
        assert corpus.tokenizer.decode_bytes(np.asarray(corpus.test.tokens)).count("sätze ".encode()) == 7
        assert (np.asarray(corpus.test.tokens) == 256).sum() == 6

    @pytest.mark.parametrize(
        ("spec", "field", "message"),
        [
            ("tfds:purestep_tiny_text:valid", "text", r"split 'valid'.*\['test', 'train'\]"),
            ("tfds:purestep_tiny_text:train[", "text", r"split 'train\['"),
            ("tfds:purestep_tiny_text", "story", r"no field 'story'; it has \['text', 'title', 'label'\]"),
            (
                "tfds:purestep_no_such_thing",
                "text",
                "no data set 'purestep_no_such_thing'. Did you mean 'purestep_tiny_text'",
            ),
            (
                "tfds:ag_news_subset",
                "text",
                "not prepared in .*research data prepare tfds:ag_news_subset --downloads FOLDER",
            ),
            ("tfds:two words", "text", "cannot read 'tfds:two words'"),
            ("tfds:", "text", "names nothing"),
        ],
    )
    def test_bad_names_say_what_there_is(self, spec, field, message):
        with pytest.raises(UserError, match=message) as caught:
            resolve(spec, field)
        assert "\n" not in str(caught.value)

    def test_a_feature_that_is_no_text(self):
        with pytest.raises(UserError, match="record 0 of train: field 'label' is not text"):
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

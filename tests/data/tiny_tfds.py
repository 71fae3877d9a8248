"""Data sets of TensorFlow Datasets, built without TensorFlow where a test wants them."""

import warnings

import pytest


def prepared(builder):
    """`(data_dir, in_data_dir)`: fixtures of a folder with the data set of a builder, and of TFDS looking there."""

    @pytest.fixture(scope="module")
    def data_dir(tmp_path_factory):
        folder = tmp_path_factory.mktemp("tfds")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            builder(data_dir=folder, file_format="array_record").download_and_prepare()
        return folder

    @pytest.fixture
    def in_data_dir(data_dir, monkeypatch):
        monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))

    return data_dir, in_data_dir

"""Parquet files: missing files and a full temporary folder are named."""

import tempfile
from pathlib import Path

import pytest

from sharding import OutputError, SourceError
from sharding.sources import list_split
from tests.sharding import synthetic
from tests.sharding.builds import pack
from tests.sharding.synthetic import train_images, validation_images


def test_a_missing_parquet_file_is_named(tmp_path: Path):
    synthetic.write_parquet(tmp_path, train_images(1), validation_images(4))
    (tmp_path / "data" / "train-00001-of-00002.parquet").unlink()
    assert len(list_split(str(tmp_path), "validation")) == 4
    with pytest.raises(SourceError, match=r"1 of the 2 files .* the first is data/train-00001-of-00002.parquet"):
        list_split(str(tmp_path), "train")


def test_a_temporary_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = synthetic.write_parquet(tmp_path / "parquet", train_images(1), validation_images(2))
    monkeypatch.setattr("sharding.sources.parquet._SPOOL_IN_MEMORY", 1000)
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(OutputError, match=r"could not be written to a temporary file: .*/nowhere.*Set TMPDIR"):
        pack(source, tmp_path / "out")

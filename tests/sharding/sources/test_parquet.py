"""Parquet files: missing files and a full temporary folder are named, and all splits have the same labels."""

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharding import OutputError, SourceError
from sharding.sources import list_source, list_split
from tests.sharding import synthetic
from tests.sharding.builds import pack
from tests.sharding.synthetic import WNIDS, train_images, validation_images


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


def without_names(table: pa.Table) -> pa.Table:
    """The same images without the names of their files, which have the WordNet ids."""
    field = table.schema.field("image")
    images = [{**image, "path": None} for image in table["image"].to_pylist()]
    return table.set_column(0, field, pa.array(images, field.type))


@pytest.mark.parametrize("metadata", [True, False])
@pytest.mark.parametrize("ids", [True, False])
def test_a_split_that_lacks_classes_has_the_labels_of_the_other(ids: bool, metadata: bool, tmp_path: Path):
    """The WordNet ids in the names of the images, or the names in the metadata, of either split rule."""
    validation = [image for image in validation_images() if image.wnid not in (WNIDS[3], WNIDS[9])]
    synthetic.write_parquet(tmp_path, train_images(1), validation)
    for file in (tmp_path / "data").iterdir():
        table = pq.read_table(file)
        if not ids:
            table = without_names(table)
        if not metadata and (ids or file.name.startswith("validation")):
            table = table.replace_schema_metadata()
        pq.write_table(table, file)
    listings = list_source(str(tmp_path), None)
    assert [listing.split for listing in listings] == ["train", "validation"]
    assert listings[0].classes == listings[1].classes
    expected = WNIDS if ids else list(synthetic.NAMES.values())
    assert [entry.wnid for entry in listings[1].classes] == expected
    assert set(listings[1].labels.tolist()) == {0, 1, 2, 4, 5, 6, 7, 8}
    (alone,) = list_source(str(tmp_path), "validation")
    assert alone.classes == listings[1].classes


def test_splits_whose_metadata_names_other_classes_are_refused(tmp_path: Path):
    synthetic.write_parquet(tmp_path, train_images(1), validation_images(4))
    for file in (tmp_path / "data").iterdir():
        table = without_names(pq.read_table(file))
        if file.name.startswith("validation"):
            features = table.schema.metadata[b"huggingface"].replace(b"thing 0, object 0", b"tench")
            table = table.replace_schema_metadata({"huggingface": features})
        pq.write_table(table, file)
    with pytest.raises(SourceError, match=r"has 1 classes that the train split does not have \(tench\)"):
        list_source(str(tmp_path), None)

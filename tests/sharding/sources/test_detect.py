"""The same small ImageNet in every form in which it is stored: same keys, same labels, same bytes."""

from pathlib import Path

import pytest

from sharding import ShardingError, SourceError, load_index
from sharding.build import BuildOptions, build
from sharding.sources import list_split, list_splits
from tests.sharding import synthetic
from tests.sharding.synthetic import WNIDS, train_images, validation_images

FORMS = {
    "ilsvrc": synthetic.write_archives,
    "folder": synthetic.write_folders,
    "kaggle": synthetic.write_kaggle,
    "parquet": synthetic.write_parquet,
}


@pytest.fixture(scope="module")
def imagenets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("imagenets")
    return {form: write(root / form, train_images(), validation_images()) for form, write in FORMS.items()}


@pytest.fixture(scope="module")
def packed(imagenets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list]]:
    """The folder of the shards and the manifests of each form."""
    root = tmp_path_factory.mktemp("packed")
    return {
        form: (
            root / form,
            build(BuildOptions(source=str(source), output=str(root / form), shard_mb=1, workers=1)),
        )
        for form, source in imagenets.items()
    }


@pytest.mark.parametrize("form", FORMS)
def test_labels_and_bytes_are_the_same_in_every_form(form: str, imagenets: dict[str, Path], packed: dict):
    source = str(imagenets[form])
    assert list_splits(source) == ["train", "validation"]
    output, manifests = packed[form]
    for manifest, images in zip(manifests, (train_images(), validation_images()), strict=True):
        assert list_split(source, manifest.split).source_format == form
        assert [entry.wnid for entry in manifest.classes] == WNIDS
        assert [entry.name for entry in manifest.classes] == [synthetic.NAMES[wnid] for wnid in WNIDS]
        index = load_index(str(output), manifest)
        contents = [(output / shard.name).read_bytes() for shard in manifest.shards]
        found = {
            row["key"]: (row["label"], contents[row["shard"]][row["offset"] : row["offset"] + row["size"]])
            for row in index.to_pylist()
        }
        assert found == {image.stem: (image.label, image.data) for image in images}


def test_archives_folders_and_kaggle_give_the_same_shards(packed: dict):
    digests = [[manifest.digest for manifest in packed[form][1]] for form in ("ilsvrc", "folder", "kaggle")]
    assert digests[0] == digests[1] == digests[2]


@pytest.mark.parametrize(
    ("remove", "form", "message"),
    [
        ("ILSVRC2012_devkit_t12.tar.gz", "ilsvrc", "ILSVRC2012_devkit_t12.tar.gz is missing"),
        ("LOC_val_solution.csv", "kaggle", "LOC_val_solution.csv is missing"),
        ("LOC_synset_mapping.txt", "kaggle", "LOC_synset_mapping.txt is missing"),
    ],
)
def test_a_missing_table_is_named(remove: str, form: str, message: str, tmp_path: Path):
    FORMS[form](tmp_path, train_images(1), validation_images())
    (tmp_path / remove).unlink()
    with pytest.raises(ShardingError, match=message):
        list_split(str(tmp_path), "validation")


def test_a_missing_source_is_named(tmp_path: Path):
    with pytest.raises(ShardingError, match="does not exist"):
        list_split(str(tmp_path / "nowhere"), "train")
    with pytest.raises(ShardingError, match="no images in class folders"):
        list_split(str(tmp_path), "train")


def test_an_archive_as_the_source_means_its_split(tmp_path: Path, source: str):
    root = synthetic.write_archives(tmp_path / "imagenet", train_images(1), validation_images(2))
    archive = str(root / "ILSVRC2012_img_val.tar")
    assert list_splits(archive) == ["validation"]
    assert list_split(str(root / "ILSVRC2012_img_train.tar"), "train").source_format == "ilsvrc"
    (manifest,) = build(BuildOptions(source=archive, output=str(tmp_path / "out"), workers=1))
    assert (manifest.split, manifest.num_samples) == ("validation", 2)
    (root / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(SourceError, match=f"{root}/ILSVRC2012_devkit_t12.tar.gz is missing"):
        list_split(archive, "validation")
    other = root / "imagenet1k-train-0000.tar"
    other.write_bytes(b"")
    with pytest.raises(ShardingError, match="is a file that is none of ImageNet's archives"):
        list_splits(str(other))

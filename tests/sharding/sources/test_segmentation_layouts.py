"""Segmentation data sets as they are downloaded: ADE20K's zip, Cityscapes, Pascal VOC; label maps in colour."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sharding import Manifest, SourceError, load_index, zips
from sharding.build import BuildOptions, build
from sharding.sources import list_source, list_split
from tests.sharding.builds import digests, faults_of
from tests.sharding.synthetic import write_class_folders
from tests.support.label_maps import NAMES, write_masks
from tests.support.small_shards import photograph

PALETTE = {0: (128, 64, 128), 1: (0, 0, 142), 5: (70, 130, 180), 255: (0, 0, 0)}


def packed(source: Path | str, output: Path, **options: str) -> dict[str, Manifest]:
    manifests = build(BuildOptions(source=str(source), output=str(output), workers=1, **options))
    return {manifest.split: manifest for manifest in manifests}


def target(shards: Path, manifest: Manifest, key: str) -> bytes:
    (row,) = (row for row in load_index(str(shards), manifest).to_pylist() if row["key"] == key)
    tar = (shards / manifest.shards[row["shard"]].name).read_bytes()
    return tar[row["target_offset"] : row["target_offset"] + row["target_size"]]


def write(path: Path, values: np.ndarray, mode: str = "L") -> bytes:
    """Write a label map; mode P gives it a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([value // 3 for value in range(768)])
    image.save(path, "PNG")
    return path.read_bytes()


def write_image(path: Path, number: int) -> np.ndarray:
    """Write a photograph, as PNG if the path says so; return zeros of its size: uint8 [height, width]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(photograph(number))
    with Image.open(path) as image:
        size = image.size
        if path.suffix == ".png":
            image.save(path, "PNG")
    return np.zeros(size[::-1], np.uint8)


def zipped(folder: Path, top: str) -> Path:
    """A zip archive of a folder, named `top` in it, with what macOS adds."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir(top)
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, f"{top}/{file.relative_to(folder)}")
        archive.writestr(f"__MACOSX/{top}/._x", b"")
    return path


@pytest.fixture
def ade20k(tmp_path: Path) -> Path:
    root = write_masks(tmp_path / "ADEChallengeData2016", {"training": 3, "validation": 2})
    (root / "classes.json").unlink()
    (root / "masks").rename(root / "annotations")
    for path in root.glob("annotations/*/*.png"):
        values = np.asarray(Image.open(path))
        Image.fromarray(np.where(values == 255, 0, values + 1).astype(np.uint8)).save(path)
    return root


def test_the_zip_of_ade20k_is_read_in_place(ade20k: Path, tmp_path: Path):
    path = zipped(ade20k, "ADEChallengeData2016")
    expected = packed(ade20k, tmp_path / "expected")
    assert {split: manifest.num_samples for split, manifest in expected.items()} == {"train": 3, "validation": 2}
    shutil.rmtree(ade20k)
    build(BuildOptions(source=str(path), output=str(tmp_path / "shards"), workers=2))
    assert digests(tmp_path / "shards") == digests(tmp_path / "expected")


def test_class_folders_in_a_zip_are_read_too(tmp_path: Path):
    write_class_folders(tmp_path / "pets/train", {"cat": 3, "dog": 2})
    packed(tmp_path / "pets", tmp_path / "expected")
    packed(zipped(tmp_path / "pets", "pets"), tmp_path / "shards")
    assert digests(tmp_path / "shards") == digests(tmp_path / "expected")


def test_a_damaged_zip_is_named(ade20k: Path, tmp_path: Path):
    path = zipped(ade20k, "ADE")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError, match=r"\.zip is damaged or no zip archive: .* Fetch the file again"):
        list_source(str(path), None)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    with pytest.raises(SourceError, match=r"\.zip is a pointer of Git LFS"):
        list_source(str(path), None)
    with zipfile.ZipFile(ade20k.with_suffix(".zip"), "w") as archive:  # stored: a changed byte is in an image
        for file in sorted(ade20k.rglob("*.*")):
            archive.write(file, str(file.relative_to(ade20k)))
    changed = bytearray(path.read_bytes())
    place = changed.index((ade20k / "images/training/001.jpg").read_bytes()) + 400
    changed[place] ^= 255
    path.write_bytes(changed)
    with pytest.raises(SourceError, match=r"images/training/001.jpg cannot be read: .*Bad CRC-32"):
        packed(path, tmp_path / "shards")


def test_a_zip_that_would_fill_the_memory_is_to_be_unpacked(
    ade20k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = zipped(ade20k, "ADE")
    monkeypatch.setattr(zips, "_MOST_FILES", 11)
    with pytest.raises(SourceError, match=r"\.zip has 12 files; up to 11 are read in place. Unpack"):
        list_source(str(path), None)
    monkeypatch.setattr(zips, "_MOST_FILES", 12)
    monkeypatch.setattr(zips, "_MOST_BYTES", 1000)
    with pytest.raises(SourceError, match=r"images/training/00.\.jpg, which is too large to be read there: unpack it"):
        packed(path, tmp_path / "shards")


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    root = tmp_path / "cityscapes"
    for number, (split, city) in enumerate(
        [("train", "aachen"), ("train", "ulm"), ("val", "lindau"), ("test", "bonn")]
    ):
        name = f"{split}/{city}/{city}_{number:06d}_000019"
        values = write_image(root / f"leftImg8bit/{name}_leftImg8bit.png", number)
        values[:8], values[8:16], values[16:24] = 7, 33, 3
        values[24:26] = 255
        write(root / f"gtFine/{name}_gtFine_labelIds.png", values)
        write(root / f"gtFine/{name}_gtFine_color.png", values)
        (root / f"gtFine/{name}_gtFine_polygons.json").write_text("{}")
    return root


def test_cityscapes_is_packed_as_it_is_downloaded(cityscapes: Path, tmp_path: Path):
    manifests = packed(cityscapes, tmp_path / "shards")
    assert {split: manifest.num_samples for split, manifest in manifests.items()} == {"train": 2, "validation": 1}
    manifest = manifests["validation"]
    assert (len(manifest.classes), manifest.classes[0].name, manifest.classes[18].name) == (19, "road", "bicycle")
    assert [manifest.class_of[value] for value in (7, 8, 33, 0, 3, 9, 30, 255)] == [0, 1, 18, 255, 255, 255, 255, 255]
    stored = target(tmp_path / "shards", manifest, "lindau_000002_000019")
    assert stored == (cityscapes / "gtFine/val/lindau/lindau_000002_000019_gtFine_labelIds.png").read_bytes()
    assert faults_of(tmp_path / "shards") == []


def test_what_does_not_fit_cityscapes_is_refused_by_name(cityscapes: Path, tmp_path: Path):
    path = cityscapes / "gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png"
    values = np.asarray(Image.open(path)).copy()
    values[0, 0] = 34
    write(path, values)
    with pytest.raises(
        SourceError, match=r"ulm/ulm_000001_000019_gtFine_labelIds\.png: the label map has the value 34"
    ):
        packed(cityscapes, tmp_path / "shards")
    path.unlink()
    with pytest.raises(SourceError, match=r"ulm_000001_000019_leftImg8bit\.png has no label map"):
        list_split(str(cityscapes), "train")
    shutil.rmtree(cityscapes / "gtFine/val")
    with pytest.raises(SourceError, match=r"no split 'validation' of Cityscapes: both leftImg8bit/val and gtFine/val"):
        list_split(str(cityscapes), "validation", "cityscapes")


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit/VOC2012"
    for number, stem in enumerate(["2007_000032", "2007_000039", "2007_000033", "2008_000001"]):
        values = write_image(root / f"JPEGImages/{stem}.jpg", number)
        values[:9], values[9:11] = 20, 255
        if number < 3:
            write(root / f"SegmentationClass/{stem}.png", values, "P")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("2007_000032\n2007_000039\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("2007_000033\n")
    return root


@pytest.mark.parametrize("above", [0, 1, 2])
def test_voc_is_packed_by_its_lists(voc: Path, above: int, tmp_path: Path):
    source = [voc, voc.parent, voc.parent.parent][above]
    manifests = packed(source, tmp_path / "shards")
    assert {split: manifest.num_samples for split, manifest in manifests.items()} == {"train": 2, "validation": 1}
    manifest = manifests["validation"]
    assert [entry.name for entry in manifest.classes][::20] == ["background", "tvmonitor"]
    assert [manifest.class_of[value] for value in (0, 20, 255)] == [0, 20, 255]
    stored = target(tmp_path / "shards", manifest, "2007_000033")
    assert stored == (voc / "SegmentationClass/2007_000033.png").read_bytes()
    assert faults_of(tmp_path / "shards") == []


def test_what_is_missing_in_voc_is_refused_by_name(voc: Path):
    (voc / "ImageSets/Segmentation/val.txt").write_text("2008_000001\n")
    with pytest.raises(SourceError, match=r"SegmentationClass/2008_000001\.png is missing, which .*/val\.txt lists"):
        list_split(str(voc), "validation")
    assert "1 label maps are in no list" in list_split(str(voc), "train").notes[0]
    (voc / "ImageSets/Segmentation/val.txt").write_text("2009_000001\n")
    with pytest.raises(SourceError, match=r"JPEGImages/2009_000001\.jpg is missing"):
        list_split(str(voc), "validation")


@pytest.mark.parametrize("split", ["train", None])
def test_a_part_of_a_layout_is_not_packed_as_classes(cityscapes: Path, voc: Path, split: str | None):
    shutil.rmtree(cityscapes / "gtFine")
    with pytest.raises(SourceError, match=r"holds leftImg8bit of Cityscapes, which needs .* gtFine/{train,val}"):
        list_source(str(cityscapes), split)
    shutil.rmtree(voc / "ImageSets")
    with pytest.raises(SourceError, match=r"holds JPEGImages of Pascal VOC, which needs .*ImageSets/Segmentation"):
        list_source(str(voc), split)


def write_colours(root: Path, palette: dict[int, tuple[int, int, int]] = PALETTE) -> Path:
    """The data set in the form `masks` with label maps in colour."""
    write_masks(root)
    table = np.zeros((256, 3), np.uint8)
    for value, colour in PALETTE.items():
        table[value] = colour
    for path in root.glob("masks/*/*.png"):
        Image.fromarray(table[np.asarray(Image.open(path))]).save(path)
    classes = {str(value): {"name": name, "color": palette[value]} for value, name in NAMES.items()}
    (root / "classes.json").write_text(json.dumps(classes | {"ignore_color": palette[255]}))
    return root


def test_label_maps_in_colour_are_packed_as_the_values_of_their_colours(tmp_path: Path):
    expected = packed(write_masks(tmp_path / "gray"), tmp_path / "expected")["train"]
    lines: list[str] = []
    source = write_colours(tmp_path / "colour")
    in_palette = source / "masks/train/000.png"
    Image.open(in_palette).quantize(8).save(in_palette)  # the numbers of its colours are no classes
    manifest, _ = build(BuildOptions(source=str(source), output=str(tmp_path / "shards"), workers=1), log=lines.append)
    assert manifest.class_of == expected.class_of
    for key in ("000", "012"):
        values = Image.open(tmp_path / f"gray/masks/train/{key}.png")
        stored = target(tmp_path / "shards", manifest, key)
        (tmp_path / "stored.png").write_bytes(stored)
        assert Image.open(tmp_path / "stored.png").mode == "L"
        assert np.array_equal(np.asarray(Image.open(tmp_path / "stored.png")), np.asarray(values))
    assert "  label maps in colour are packed as gray PNGs with the values of classes.json" in lines
    assert faults_of(tmp_path / "shards") == []


def test_an_unknown_colour_is_named_with_its_place(tmp_path: Path):
    source = write_colours(tmp_path / "colour")
    path = source / "masks/train/003.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[7, 2] = (1, 2, 3)
    Image.fromarray(pixels).save(path)
    with pytest.raises(
        SourceError, match=r"masks/train/003\.png: .* the colour \(1, 2, 3\) at x = 2, y = 7, which is no"
    ):
        packed(source, tmp_path / "shards")


@pytest.mark.parametrize(
    ("palette", "message"),
    [
        (PALETTE | {1: (128, 64, 128)}, "two classes have the same colour"),
        (PALETTE | {1: (128, 64)}, r"the colour \[128, 64\] is not red, green and blue from 0 to 255\. Write {"),
        (PALETTE | {1: (128, 64, 256)}, "is not red, green and blue from 0 to 255"),
        (PALETTE | {1: "red"}, "the colour red is not red, green and blue from 0 to 255"),
    ],
)
def test_wrong_colours_in_the_list_are_refused(palette: dict, message: str, tmp_path: Path):
    with pytest.raises(SourceError, match=message):
        list_split(str(write_colours(tmp_path, palette)), "train")

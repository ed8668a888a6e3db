"""Images beside label maps: what is packed, what the index says, and what is refused."""

import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from sharding import load_index, load_manifest
from sharding.build import BuildOptions, build
from sharding.errors import ShardingError, SourceError
from sharding.verify import VerifyOptions, verify
from tests.support.label_maps import IGNORED, NAMES, SPLITS, pack_masks, write_masks


def test_label_maps_are_packed_byte_for_byte_with_their_places_and_digests(tmp_path):
    manifests = {manifest.split: manifest for manifest in pack_masks(tmp_path)}
    assert {split: manifest.num_samples for split, manifest in manifests.items()} == SPLITS
    content = json.loads((tmp_path / "shards/small-train.json").read_text())
    assert (content["schema"], content["task"], content["ignore_index"]) == (2, "segmentation", IGNORED)
    manifest = load_manifest(str(tmp_path / "shards"), "train")
    assert [entry.name for entry in manifest.classes] == list(NAMES.values())
    assert [manifest.class_of[value] for value in (0, 1, 5, 2, IGNORED)] == [0, 1, 2, 255, 255]
    for row in load_index(str(tmp_path / "shards"), manifest).to_pylist():
        tar = tmp_path / "shards" / manifest.shards[row["shard"]].name
        target = tar.read_bytes()[row["target_offset"] : row["target_offset"] + row["target_size"]]
        assert target == (tmp_path / "masks/masks/train" / f"{row['key']}.png").read_bytes()
    with tarfile.open(tmp_path / "shards/small-validation-0000.tar") as tar:
        names = tar.getnames()
    assert [name.partition(".")[2] for name in names[:3]] == ["jpg", "png", "json"]
    assert verify(VerifyOptions(shards=str(tmp_path / "shards"), workers=1)) == []


def test_verify_finds_a_flipped_byte_of_a_label_map_and_of_a_label(tmp_path):
    pack_masks(tmp_path)
    shards = tmp_path / "shards"
    row = load_index(str(shards), load_manifest(str(shards), "validation")).to_pylist()[2]
    tar = shards / "small-validation-0000.tar"
    content = bytearray(tar.read_bytes())
    content[row["target_offset"] + row["target_size"] // 2] ^= 1
    tar.write_bytes(content)
    faults = verify(VerifyOptions(shards=str(shards), split="validation", workers=1))
    assert row["key"] in {fault.key for fault in faults}


def _break(folder, how: str) -> None:
    mask, image = folder / "masks/train/003.png", folder / "images/train/003.jpg"
    values = np.asarray(Image.open(mask))
    match how:
        case "size":
            Image.fromarray(values[:-1]).save(mask)
        case "value":
            changed = values.copy()
            changed[0, 0] = 9
            Image.fromarray(changed).save(mask)
        case "16 bits":
            Image.fromarray(values.astype(np.uint16)).save(mask)
        case "colour":
            Image.fromarray(np.repeat(values[..., None], 3, 2)).save(mask)
        case "no png":
            Image.fromarray(values).save(mask, "JPEG")
        case "cut":
            mask.write_bytes(mask.read_bytes()[:-40])
        case "no mask":
            mask.unlink()
        case "no image":
            image.unlink()
        case "no classes":
            (folder / "classes.json").unlink()
        case "ignored class":
            (folder / "classes.json").write_text(json.dumps(NAMES | {"ignore_index": 5}))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("size", r"masks/train/003\.png: the label map has \d+ x \d+ pixels, its image"),
        ("value", r"masks/train/003\.png: the label map has the value 9, which is no class; classes have 0, 1, 5"),
        ("16 bits", r"003\.png: the label map has 16 bits a pixel"),
        ("colour", r"003\.png: the label map is in colour \(RGB, with the colour"),
        ("no png", r"003\.png: the label map is no PNG"),
        ("cut", r"003\.png: the label map cannot be decoded"),
        ("no mask", r"images/train/003\.jpg has no label map with the same stem"),
        ("no image", r"masks/train/003\.png has no image with the same stem"),
        ("no classes", r"classes\.json is missing"),
        ("ignored class", r"names 3 classes with values 0 to 5, and 5 is ignored"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, how, message):
    source = write_masks(tmp_path / "masks")
    _break(source, how)
    with pytest.raises(ShardingError, match=message):
        build(BuildOptions(source=str(source), output=str(tmp_path / "shards"), workers=1))


def test_another_extension_is_refused_where_images_lie_beside_label_maps(tmp_path):
    source = write_masks(tmp_path / "masks")
    options = BuildOptions(source=str(source), output=str(tmp_path / "shards"), workers=1, image_member="png")
    with pytest.raises(ShardingError, match=r"--image-member png is for images in class folders; .* held as masks"):
        build(options)


def test_a_list_of_classes_is_refused_where_label_maps_have_their_own(tmp_path):
    source = write_masks(tmp_path / "masks")
    options = BuildOptions(source=str(source), output=str(tmp_path / "shards"), workers=1, classes="names.txt")
    with pytest.raises(SourceError, match=r"--classes names\.txt .* is held as masks, which names its classes itself"):
        build(options)


def test_a_list_of_names_stands_for_the_values_from_0(tmp_path):
    source = write_masks(tmp_path / "masks", {"train": 2})
    (source / "classes.json").write_text(json.dumps(["ground", "thing", "a", "b", "c", "sky"]), encoding="utf-8")
    [manifest] = build(BuildOptions(source=str(source), output=str(tmp_path / "shards"), workers=1))
    assert [(entry.wnid, entry.name) for entry in manifest.classes] == [
        *(("0", "ground"), ("1", "thing"), ("2", "a"), ("3", "b"), ("4", "c"), ("5", "sky"))
    ]


def test_ade20k_is_read_as_it_is_downloaded(tmp_path):
    root = write_masks(tmp_path / "ADEChallengeData2016", {"training": 3, "validation": 2})
    (root / "classes.json").unlink()
    (root / "masks").rename(root / "annotations")
    for path in root.glob("annotations/*/*.png"):
        values = np.asarray(Image.open(path))
        Image.fromarray(np.where(values == IGNORED, 0, values + 1).astype(np.uint8)).save(path)
    lines = [f"{k}\t0.1\t1\t1\tname {k}, other" for k in range(1, 151)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *lines]) + "\n")
    manifests = build(BuildOptions(source=str(root), output=str(tmp_path / "shards"), name="ade20k", workers=1))
    assert {manifest.split: manifest.num_samples for manifest in manifests} == {"train": 3, "validation": 2}
    manifest = manifests[0]
    assert (len(manifest.classes), manifest.classes[0].name, manifest.ignore_index) == (150, "name 1, other", 0)
    assert (manifest.class_of[0], manifest.class_of[1], manifest.class_of[150]) == (255, 0, 149)

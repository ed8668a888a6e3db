"""A small data set with objects, in the form `coco-json`."""

import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from sharding import Manifest
from sharding.build import BuildOptions, build
from tests.support.small_shards import photograph

CATEGORIES = {3: "car", 7: "dog", 44: "bottle"}
SPLITS = {"train": 13, "validation": 5}


def objects_of(number: int, height: int, width: int) -> list[dict]:
    """Up to three objects: a polygon, run lengths, or a crowd."""
    generator = np.random.default_rng(number)
    found = []
    for k in range(number % 4):
        w, h = int(generator.integers(width // 4, width // 2)), int(generator.integers(height // 4, height // 2))
        x, y = int(generator.integers(0, width - w)), int(generator.integers(0, height - h))
        entry = {"category_id": list(CATEGORIES)[(number + k) % 3], "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
        entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        if k == 1:
            first, runs = x * height + y, []
            for column in range(w):
                runs += [first if column == 0 else height - h, h]
            entry["segmentation"] = {"size": [height, width], "counts": [*runs, height * width - sum(runs)]}
        if k == 2:
            entry["iscrowd"] = 1
        found.append(entry)
    return found


def write_coco_json(folder: Path, splits: dict[str, int] = SPLITS) -> Path:
    """Write `images/SPLIT/NNN.jpg` and `annotations/SPLIT.json`; return the folder."""
    number = 0
    (folder / "annotations").mkdir(parents=True)
    categories = [{"id": key, "name": name} for key, name in CATEGORIES.items()]
    for split, count in splits.items():
        content: dict = {"images": [], "annotations": [], "categories": categories}
        (folder / "images" / split).mkdir(parents=True)
        for _ in range(count):
            path = folder / "images" / split / f"{number:03d}.jpg"
            path.write_bytes(photograph(number))
            width, height = Image.open(path).size
            content["images"].append({"id": number, "file_name": path.name, "width": width, "height": height})
            for entry in objects_of(number, height, width):
                content["annotations"].append({**entry, "id": len(content["annotations"]), "image_id": number})
            number += 1
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_coco_zips(folder: Path) -> Path:
    """Write the same set as COCO's zips; return the folder."""
    source = write_coco_json(folder / "source")
    (folder / "zips").mkdir()
    with zipfile.ZipFile(folder / "zips/annotations_trainval2017.zip", "w", zipfile.ZIP_DEFLATED) as annotations:
        for split, name in (("train", "train2017"), ("validation", "val2017")):
            annotations.write(source / f"annotations/{split}.json", f"annotations/instances_{name}.json")
            with zipfile.ZipFile(folder / f"zips/{name}.zip", "w") as images:
                for path in sorted((source / "images" / split).iterdir()):
                    images.write(path, f"{name}/{path.name}")
    return folder / "zips"


def write_yolo(folder: Path) -> Path:
    """Write the set of `write_coco_json` as `images/SPLIT`, `labels/SPLIT` and `data.yaml`; return the folder."""
    write_coco_json(folder)
    for split in SPLITS:
        content = json.loads((folder / f"annotations/{split}.json").read_text())
        (folder / "labels" / split).mkdir(parents=True)
        for image in content["images"]:
            lines = []
            for entry in (e for e in content["annotations"] if e["image_id"] == image["id"]):
                x, y, w, h = entry["bbox"]
                shares = [(x + w / 2) / image["width"], (y + h / 2) / image["height"]]
                shares += [w / image["width"], h / image["height"]]
                if isinstance(entry["segmentation"], list):
                    sides = (image["width"], image["height"]) * 4
                    shares = [v / s for v, s in zip(entry["segmentation"][0], sides, strict=True)]
                lines.append(" ".join(map(str, [list(CATEGORIES).index(entry["category_id"]), *shares])))
            if lines:
                path = folder / "labels" / split / f"{Path(image['file_name']).stem}.txt"
                path.write_text("\n".join(lines) + "\n")
        (folder / f"annotations/{split}.json").unlink()
    (folder / "data.yaml").write_text(f"names: {list(CATEGORIES.values())}\nnc: 3\n")
    return folder


def write_voc_xml(folder: Path) -> Path:
    """Write the set of `write_coco_json` as `images/SPLIT` and `annotations/SPLIT/NAME.xml`; return the folder."""
    write_coco_json(folder)
    for split in SPLITS:
        content = json.loads((folder / f"annotations/{split}.json").read_text())
        (folder / "annotations" / split).mkdir()
        for image in content["images"]:
            objects = ""
            for entry in (e for e in content["annotations"] if e["image_id"] == image["id"]):
                x, y, w, h = entry["bbox"]
                corners = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
                name = CATEGORIES[entry["category_id"]]
                objects += f"<object><name>{name}</name><difficult>{entry['iscrowd']}</difficult>"
                objects += f"<bndbox>{corners}</bndbox></object>"
            size = f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"
            path = folder / "annotations" / split / f"{Path(image['file_name']).stem}.xml"
            path.write_text(f"<annotation>{size}{objects}</annotation>")
        (folder / f"annotations/{split}.json").unlink()
    (folder / "classes.txt").write_text("\n".join(CATEGORIES.values()))
    return folder


def pack_objects(folder: Path, **options) -> list[Manifest]:
    """Pack the data set into `folder / "shards"`."""
    source = write_coco_json(folder / "objects")
    return build(BuildOptions(source=str(source), output=str(folder / "shards"), name="small", workers=1, **options))

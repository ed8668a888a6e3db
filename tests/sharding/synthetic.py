"""A small ImageNet of drawn photographs, written in each of the forms in which people hold the real one.

Ten classes whose ILSVRC ids are not in the order of their WordNet ids, as in the real development kit.
"""

import csv
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from scipy.io import savemat

WNIDS = [f"n{1440764 + 7919 * number:08d}" for number in range(10)]
NAMES = {wnid: f"thing {number}, object {number}" for number, wnid in enumerate(WNIDS)}
# ILSVRC id of each class, 1-based: a fixed shuffle.
ILSVRC_IDS = dict(zip(WNIDS, [4, 9, 1, 7, 10, 2, 6, 3, 8, 5], strict=True))


@dataclass(frozen=True)
class SyntheticImage:
    wnid: str
    stem: str
    data: bytes

    @property
    def label(self) -> int:
        return WNIDS.index(self.wnid)


def photograph(seed: int, width: int = 60, height: int = 44) -> bytes:
    """A smooth random picture as JPEG bytes."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    pixels = np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1)[:height, :width])
    return simplejpeg.encode_jpeg(pixels, quality=90)


def train_images(per_class: int = 6) -> list[SyntheticImage]:
    return [
        SyntheticImage(wnid, f"{wnid}_{17 * number + 3}", photograph(1000 * label + number, 40 + label, 50 + number))
        for label, wnid in enumerate(WNIDS)
        for number in range(per_class)
    ]


def validation_images(count: int = 20) -> list[SyntheticImage]:
    return [
        SyntheticImage(
            WNIDS[(3 * number + 1) % len(WNIDS)], f"ILSVRC2012_val_{number + 1:08d}", photograph(90_000 + number)
        )
        for number in range(count)
    ]


def write_folders(root: Path, train: list[SyntheticImage], validation: list[SyntheticImage]) -> Path:
    for split, images in (("train", train), ("val", validation)):
        for image in images:
            folder = root / split / image.wnid
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{image.stem}.JPEG").write_bytes(image.data)
    (root / "LOC_synset_mapping.txt").write_text(synset_mapping())
    return root


def synset_mapping() -> str:
    return "".join(f"{wnid} {NAMES[wnid]}\n" for wnid in WNIDS)


def add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def write_archives(root: Path, train: list[SyntheticImage], validation: list[SyntheticImage]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w", format=tarfile.GNU_FORMAT) as outer:
        for wnid in WNIDS[::-1]:
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w", format=tarfile.GNU_FORMAT) as archive:
                for image in train:
                    if image.wnid == wnid:
                        add_member(archive, f"{image.stem}.JPEG", image.data)
            add_member(outer, f"{wnid}.tar", inner.getvalue())
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for image in validation[::-1]:
            add_member(archive, f"{image.stem}.JPEG", image.data)
    write_devkit(root / "ILSVRC2012_devkit_t12.tar.gz", validation)
    return root


def write_devkit(path: Path, validation: list[SyntheticImage]) -> None:
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "f8")]
    leaves = sorted(WNIDS, key=lambda wnid: ILSVRC_IDS[wnid])
    rows = [(ILSVRC_IDS[wnid], wnid, NAMES[wnid], "a thing", 0) for wnid in leaves]
    rows.append((len(WNIDS) + 1, "n00001740", "entity", "all of it", len(WNIDS)))
    synsets = np.array(rows, dtype=kinds)[:, None]
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(f"{ILSVRC_IDS[image.wnid]}\n" for image in validation)
    with tarfile.open(path, "w:gz") as kit:
        add_member(kit, "ILSVRC2012_devkit_t12/readme.txt", b"kit")
        add_member(kit, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        add_member(kit, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())


def write_kaggle(root: Path, train: list[SyntheticImage], validation: list[SyntheticImage]) -> Path:
    data = root / "ILSVRC" / "Data" / "CLS-LOC"
    for image in train:
        folder = data / "train" / image.wnid
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{image.stem}.JPEG").write_bytes(image.data)
    (data / "val").mkdir()
    for image in validation:
        (data / "val" / f"{image.stem}.JPEG").write_bytes(image.data)
    (data / "test").mkdir()
    (data / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(validation[0].data)
    (root / "LOC_synset_mapping.txt").write_text(synset_mapping())
    with open(root / "LOC_val_solution.csv", "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["ImageId", "PredictionString"])
        for image in validation[::-1]:
            table.writerow([image.stem, f"{image.wnid} 1 2 30 40 {image.wnid} 5 6 7 8 "])
    return root


def write_parquet(
    root: Path, train: list[SyntheticImage], validation: list[SyntheticImage], row_group_size: int = 8
) -> Path:
    """As Hugging Face holds it: image struct{bytes, path}, label, class names in the schema's metadata."""
    (root / "data").mkdir(parents=True)
    names = ", ".join(f'"{NAMES[wnid]}"' for wnid in WNIDS)
    features = f'{{"info": {{"features": {{"label": {{"names": [{names}], "_type": "ClassLabel"}}}}}}}}'
    for split, images in (("train", train), ("validation", validation)):
        shuffled = [images[position] for position in np.random.default_rng(7).permutation(len(images))]
        halves = [shuffled[: len(shuffled) // 2], shuffled[len(shuffled) // 2 :]]
        for number, half in enumerate(halves):
            table = pa.table(
                {
                    "image": [{"bytes": image.data, "path": f"{image.stem}_{image.wnid}.JPEG"} for image in half],
                    "label": pa.array([image.label for image in half], pa.int64()),
                }
            ).replace_schema_metadata({"huggingface": features})
            pq.write_table(
                table, root / "data" / f"{split}-{number:05d}-of-00002.parquet", row_group_size=row_group_size
            )
    return root

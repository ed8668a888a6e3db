"""Generators of test data: a small ImageNet of drawn photographs in each form of the real one, and tar archives.

Ten classes whose ILSVRC ids are not in the order of their WordNet ids, as in the real development kit.
"""

import csv
import gzip
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image
from scipy.io import savemat

WNIDS = [f"n{1440764 + 7919 * number:08d}" for number in range(10)]
NAMES = {wnid: f"thing {number}, object {number}" for number, wnid in enumerate(WNIDS)}
# Images of the fixture `source`.
SOURCE_IMAGES = 34
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
    """A random picture of 8 x 8 squares as JPEG bytes."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    pixels = np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1)[:height, :width])
    return simplejpeg.encode_jpeg(pixels, quality=90)


def noise(seed: int, side: int) -> bytes:
    """A square picture of noise as JPEG bytes: large in bytes, small in pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return simplejpeg.encode_jpeg(pixels, quality=90)


def picture() -> Image.Image:
    """The same small RGB picture each time, decoded."""
    return Image.open(io.BytesIO(photograph(5))).convert("RGB")


def encode(image: Image.Image, form: str, **options) -> bytes:
    """An image in any of Pillow's formats."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def smooth_picture(seed: int, width: int, height: int) -> bytes:
    """A picture without edges as JPEG bytes, in which only the size matters."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return encode(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), "JPEG", quality=95)


def large_images(count: int) -> list[SyntheticImage]:
    """Images of some 170 kB, so that few images are several shards of one MB."""
    return [
        SyntheticImage(WNIDS[number % 10], f"{WNIDS[number % 10]}_{100 + number}", noise(number, 300))
        for number in range(count)
    ]


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


def write_nameless_folders(root: Path) -> Path:
    """One image per class in class folders, without a file that names the classes."""
    for image in train_images(1):
        (root / "train" / image.wnid).mkdir(parents=True)
        (root / "train" / image.wnid / f"{image.stem}.JPEG").write_bytes(image.data)
    return root


def write_folders(root: Path, train: list[SyntheticImage], validation: list[SyntheticImage]) -> Path:
    """Class folders of both splits, with a mapping from WordNet ids to names."""
    for split, images in (("train", train), ("val", validation)):
        for image in images:
            folder = root / split / image.wnid
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{image.stem}.JPEG").write_bytes(image.data)
    (root / "LOC_synset_mapping.txt").write_text(synset_mapping())
    return root


def synset_mapping() -> str:
    return "".join(f"{wnid} {NAMES[wnid]}\n" for wnid in WNIDS)


def write_class_folders(root: Path, classes: dict[str, int]) -> Path:
    """Class folders with the given numbers of images."""
    for name, count in classes.items():
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"{number}.jpg").write_bytes(photograph(len(str(folder)) + number))
    return root


def tar_bytes(members: list[tuple[str, bytes]], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar archive with the given members."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def tar_member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The blocks of one member of a tar archive."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def write_tar_of_two(path: Path) -> Path:
    """A shard of two samples of class 0."""
    members = []
    for number in range(2):
        members += [(f"{number}.jpg", photograph(number, 800, 800)), (f"{number}.cls", b"0")]
    path.write_bytes(tar_bytes(members))
    return path


def write_webdataset(folder: Path, names: list[str]) -> None:
    """Shards by WebDataset's own writer; every second sample has its label only in KEY.json."""
    import webdataset  # imports torch, which takes seconds

    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        with webdataset.TarWriter(str(folder / name)) as writer:
            for position, image in enumerate(train_images()[number :: len(names)]):
                sample = {"__key__": image.stem, "jpg": image.data, "json": {"label": image.label}}
                writer.write(sample if position % 2 else sample | {"cls": image.label})


def write_archives(root: Path, train: list[SyntheticImage], validation: list[SyntheticImage]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    classes = [
        (f"{wnid}.tar", tar_bytes([(f"{image.stem}.JPEG", image.data) for image in train if image.wnid == wnid]))
        for wnid in WNIDS[::-1]
    ]
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(classes))
    images = [(f"{image.stem}.JPEG", image.data) for image in validation[::-1]]
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(images))
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
    members = [
        ("ILSVRC2012_devkit_t12/readme.txt", b"kit"),
        ("ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue()),
        ("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode()),
    ]
    path.write_bytes(gzip.compress(tar_bytes(members)))


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
    with open(root / "LOC_val_solution.csv", "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["ImageId", "PredictionString"])
        for image in validation[::-1]:
            table.writerow([image.stem, f"{image.wnid} 1 2 30 40 {image.wnid} 5 6 7 8 "])
    return root


def write_parquet(
    root: Path, train: list[SyntheticImage], validation: list[SyntheticImage], row_group_size: int = 8
) -> Path:
    """Hugging Face's form: image struct{bytes, path}, label, class names in the schema's metadata."""
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


def lossless_jpeg(width: int = 64, height: int = 64) -> bytes:
    """A valid lossless JPEG (SOF3), which Pillow cannot write: grey, all pixels 128."""
    frame = b"\xff\xc3\x00\x0b\x08" + height.to_bytes(2) + width.to_bytes(2) + b"\x01\x01\x11\x00"
    table = b"\xff\xc4\x00\x14\x00\x01" + bytes(15) + b"\x00"  # the code 0 for a difference of 0
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x00\x00"
    return b"\xff\xd8" + frame + table + scan + bytes(width * height // 8) + b"\xff\xd9"

"""Sources and shards that several test files share."""

import shutil
from pathlib import Path

import pytest

from sharding.build import BuildOptions, build
from tests.sharding.builds import digests, pack
from tests.sharding.synthetic import SOURCE_IMAGES, large_images, train_images, validation_images, write_folders


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`SOURCE_IMAGES` images in class folders: several shards of one MB."""
    root = tmp_path_factory.mktemp("source")
    write_folders(root, [*train_images(1), *large_images(SOURCE_IMAGES - 10)], validation_images(10))
    return str(root)


@pytest.fixture(scope="session")
def reference_shards(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed build of the train split of `source`; not to be changed."""
    output = tmp_path_factory.mktemp("reference")
    pack(source, output)
    return output


@pytest.fixture(scope="session")
def reference(reference_shards: Path) -> dict[str, str]:
    """SHA-256 of each file of an undisturbed build."""
    found = digests(reference_shards)
    assert sum(name.endswith(".tar") for name in found) >= 5
    return found


@pytest.fixture
def finished(reference_shards: Path, tmp_path: Path) -> Path:
    """A copy of an undisturbed build, to damage."""
    return Path(shutil.copytree(reference_shards, tmp_path / "finished"))


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both splits of the small ImageNet, one shard each; not to be changed."""
    root = tmp_path_factory.mktemp("packed")
    write_folders(root / "source", train_images(), validation_images())
    build(BuildOptions(source=str(root / "source"), output=str(root / "shards"), shard_mb=1, workers=1))
    return root / "shards"


@pytest.fixture
def shards(small_shards: Path, tmp_path: Path) -> Path:
    """A copy of `small_shards`, to damage."""
    return Path(shutil.copytree(small_shards, tmp_path / "shards"))

"""A source large enough for several shards, and what packing it undisturbed gives."""

import pytest

from tests.sharding.packing import contents, pack
from tests.sharding.synthetic import photograph, train_images, validation_images, write_folders


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Some sixty images of 60 kB, so that shards of one MB are several."""
    root = tmp_path_factory.mktemp("source")
    write_folders(root, train_images(1), validation_images(10))
    for number in range(60):
        folder = root / "train" / train_images(1)[number % 10].wnid
        (folder / f"{folder.name}_{100 + number}.JPEG").write_bytes(photograph(number, 1200, 1200))
    return str(root)


@pytest.fixture(scope="session")
def reference(source: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """SHA-256 of each file that the train split gives in one quiet run."""
    output = tmp_path_factory.mktemp("reference")
    pack(source, output)
    digests = contents(output)
    assert sum(name.endswith(".tar") for name in digests) >= 5
    return digests

"""Shards of a shared folder are copied to the node's own disk ahead of need, and give the same samples."""

import time

import pytest

from pipeline.data.index import CacheFolderError
from pipeline.data.loader import build_train_loader
from pipeline.launch.checks import check_container_sees
from pipeline.launch.data_checks import check_shards
from pipeline.launch.options import LaunchError
from tests.pipeline.data.reading import SHARDS, evaluation_loader, read
from tests.support.small_shards import config, pack


@pytest.fixture
def shared(tmp_path):
    """A shared folder with small shards of its own, which a test may remove."""
    folder = tmp_path / "shared"
    folder.mkdir()
    pack(folder, SHARDS)
    pack(folder, (13, 8), split="validation")
    return folder


def staged(shared, tmp_path, **data):
    return config(shared, tmp_path / "index", data={"stage": str(tmp_path / "stage"), **data})


def evaluated(settings) -> list[int]:
    with evaluation_loader(settings) as loader:
        return [row for batch in loader for row in batch.indices.tolist()]


def test_staged_shards_give_the_same_batches_and_are_read_from_the_node_alone(shared, tmp_path):
    expected = read(config(shared, tmp_path / "index"))
    assert read(staged(shared, tmp_path, workers=1)) == expected
    assert evaluated(staged(shared, tmp_path)) == list(range(21))
    copies = sorted(path.name.partition("-small-")[2] for path in (tmp_path / "stage").glob("shard-*"))
    assert copies == sorted(path.name.removeprefix("small-") for path in shared.glob("*.tar"))
    for path in shared.glob("*.tar"):
        path.unlink()
    assert read(staged(shared, tmp_path)) == expected
    assert evaluated(staged(shared, tmp_path)) == list(range(21))
    assert not list((tmp_path / "index").glob("shard-*"))


def test_shards_are_staged_before_they_are_needed(shared, tmp_path):
    with build_train_loader(
        staged(shared, tmp_path), world_size=1, rank=0, start_step=0, total_steps=12, device="cpu"
    ) as loader:
        list(next(iter(loader)))
        limit = time.monotonic() + 60
        while len(list((tmp_path / "stage").glob("shard-*"))) < len(SHARDS):
            assert time.monotonic() < limit, list((tmp_path / "stage").iterdir())
            time.sleep(0.02)


def test_the_copies_stay_within_the_limit_and_the_users_own_files_stay(shared, tmp_path):
    own = tmp_path / "stage" / "shard-000000.tar"
    own.parent.mkdir()
    own.write_bytes(b"the user's")
    limit = 3.2 * max(path.stat().st_size for path in shared.glob("*.tar"))
    assert read(staged(shared, tmp_path, cache_gb=limit / 1e9)) == read(config(shared, tmp_path / "index"))
    copies = [path for path in own.parent.glob("shard-*") if path != own]
    assert 0 < sum(path.stat().st_size for path in copies) <= limit
    assert len(copies) < len(SHARDS)
    assert own.read_bytes() == b"the user's"


def test_the_folder_may_name_a_variable_of_the_node(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    evaluated(staged(shared, tmp_path, stage="$NODE_DISK/stage"))
    assert len(list((tmp_path / "disk" / "stage").glob("shard-*"))) == 2
    monkeypatch.delenv("NODE_DISK")
    with pytest.raises(CacheFolderError, match=r"\$NODE_DISK/stage names a variable .*--train\.data\.stage"):
        evaluated(staged(shared, tmp_path, stage="$NODE_DISK/stage"))


def test_a_stage_that_cannot_work_is_refused_before_anything_is_queued(shared, tmp_path, monkeypatch):
    assert check_shards(staged(shared, tmp_path)).num_validation == 21
    with pytest.raises(LaunchError, match=r"--train\.data\.cache-gb 1e-06 is less than a shard of"):
        check_shards(staged(shared, tmp_path, cache_gb=1e-6))
    monkeypatch.chdir(shared)
    with pytest.raises(LaunchError, match=r"--train\.data\.stage \$TMPDIR is not seen in the container"):
        check_container_sees(staged(shared, tmp_path, stage="$TMPDIR").data, tmp_path)

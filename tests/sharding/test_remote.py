"""Source and output in an object store: moto's S3 server, as a separate process."""

import hashlib
import multiprocessing
import os
import pickle
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from sharding import load_index, load_manifest, object_store, open_filesystem
from sharding.pool import prepare_workers
from sharding.verify import VerifyOptions, verify
from tests.sharding.builds import digests, flags, pack, pack_process, run_build
from tests.sharding.synthetic import (
    large_images,
    train_images,
    validation_images,
    write_archives,
    write_class_folders,
    write_folders,
)
from tests.support.object_store import KEYS, FaultyProxy, place, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """Port of the server."""
    with s3_server() as port, pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        yield port


@pytest.fixture(scope="module")
def endpoint(server: int) -> str:
    """The query of a URI that leads to the server."""
    return place(server)


@pytest.fixture
def proxy(server: int) -> Iterator[FaultyProxy]:
    """A proxy before the server."""
    proxy = FaultyProxy(server)
    yield proxy
    proxy.close()


def names(uri: str) -> list[str]:
    """Names of all objects."""
    filesystem, path = open_filesystem(uri)
    infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    return [info.path[len(path) + 1 :] for info in infos if info.type == fs.FileType.File]


def objects(uri: str) -> dict[str, str]:
    """SHA-256 of every object, by its name."""
    filesystem, path = open_filesystem(uri)
    return {
        name: hashlib.sha256(filesystem.open_input_file(f"{path}/{name}").read()).hexdigest() for name in names(uri)
    }


def upload(folder: Path, uri: str) -> str:
    filesystem, path = open_filesystem(uri)
    filesystem.create_dir(path, recursive=True)
    fs.copy_files(str(folder), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=filesystem)
    return uri


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A few images in class folders, three shards, and the SHA-256 of each file of a local build."""
    root = tmp_path_factory.mktemp("pictures")
    write_folders(root / "source", large_images(15), validation_images(1))
    pack(root / "source", root / "expected")
    return root / "source", digests(root / "expected")


@pytest.mark.thorough
def test_a_killed_build_publishes_no_manifest_and_resumes(endpoint: str, pictures: tuple[Path, dict[str, str]]):
    source, reference = pictures
    uri = f"s3://killed/shards?{endpoint}"
    prepare_workers("tests.sharding.builds")
    keys = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    context = multiprocessing.get_context("forkserver")
    build = context.Process(target=pack_process, args=(str(source), uri, keys))
    build.start()
    while not any(name.endswith(".tar") for name in names(uri)):
        assert build.is_alive()
        time.sleep(0.05)  # the server answers one request at a time
    build.kill()
    build.join()
    before = {name: digest for name, digest in objects(uri).items() if not name.startswith(".")}
    assert before.items() <= reference.items()
    assert "imagenet1k-train.json" not in before
    pack(source, uri)
    assert objects(uri) == reference
    assert verify(VerifyOptions(shards=uri, workers=1)) == []


@pytest.mark.parametrize("write", [write_folders, pytest.param(write_archives, marks=pytest.mark.thorough)])
def test_a_remote_source_gives_the_same_bytes(write, endpoint: str, tmp_path: Path):
    local = write(tmp_path / "imagenet", train_images(1), validation_images(4))
    uri = upload(local, f"s3://{write.__name__.replace('_', '-')}/imagenet?{endpoint}")
    (here,) = pack(local, tmp_path / "here", split="validation")
    (there,) = pack(uri, tmp_path / "there", split="validation", workers=2)
    assert here.digest == there.digest
    assert load_index(str(tmp_path / "there"), load_manifest(str(tmp_path / "there"), "validation")).num_rows == 4


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Five images in class folders, one shard, and the SHA-256 of each file of a local build."""
    root = tmp_path_factory.mktemp("few")
    write_class_folders(root / "source/train", {"cat": 3, "dog": 2})
    pack(root / "source", root / "expected")
    return root / "source", digests(root / "expected")


@pytest.mark.thorough
def test_a_slow_store_that_lists_late_gives_the_same_shards_and_the_user_reads_about_it(
    proxy: FaultyProxy,
    few: tuple[Path, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    source, expected = few
    monkeypatch.setenv("AWS_SESSION_TOKEN", "for one hour")
    uri = f"s3://late/shards?{place(proxy.port)}"
    proxy.lag_seconds = 60.0
    pack(source, uri)
    assert load_manifest(uri, "train").num_samples == 5
    monkeypatch.setattr(object_store, "FIRST_WORD_S", 0.1)
    proxy.lag_seconds, proxy.list_seconds = 0.0, 0.3
    assert objects(uri) == expected
    assert "waited 0 s for s3://late/shards so far; a request is tried 7 times" in capsys.readouterr().err
    assert proxy.tokens == {"for one hour"}


@pytest.mark.slow  # the pauses between attempts are seconds
def test_a_store_that_fails_every_third_request_gives_the_same_shards(
    proxy: FaultyProxy, pictures: tuple[Path, dict[str, str]]
):
    source, expected = pictures
    uri = f"s3://faulty/shards?{place(proxy.port)}"
    proxy.fail_every = 3
    pack(source, uri)
    proxy.fail_every = 0
    assert objects(uri) == expected


def test_a_store_that_always_fails_is_a_one_line_error_after_the_last_attempt(
    proxy: FaultyProxy, few: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    proxy.fail_every = 1
    done = run_build(*flags(few[0], f"s3://down/x?{place(proxy.port)}"))
    assert done.returncode == 1
    assert re.fullmatch(r"error: s3://down/x.* did not serve .* in 2 attempts .*is overloaded or down.*\n", done.stderr)
    assert 2 <= proxy.requests <= 8


def test_a_listing_may_take_longer_than_pyarrows_three_seconds(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch):
    filesystem, path = open_filesystem(f"s3://slow/x?{place(proxy.port)}")
    assert object_store.REQUEST_TIMEOUT_S >= 10
    for copy in (filesystem, pickle.loads(pickle.dumps(filesystem))):
        options = fs.S3FileSystem.__reduce__(copy)[1][0]
        assert options["request_timeout"] == object_store.REQUEST_TIMEOUT_S
        assert options["connect_timeout"] == object_store.CONNECT_TIMEOUT_S
    monkeypatch.setattr(object_store, "REQUEST_TIMEOUT_S", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    filesystem, path = open_filesystem(f"s3://slow/x?{place(proxy.port)}")
    proxy.list_seconds = 2.5
    with pytest.raises(OSError, match=r"in 1 attempts .*Timeout was reached.* Check endpoint_override and the network"):
        filesystem.get_file_info(fs.FileSelector(path))


def test_a_store_that_does_not_answer_is_a_one_line_error(source: str, monkeypatch: pytest.MonkeyPatch):
    for name, value in {**KEYS, "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    nowhere = "s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    done = run_build(*flags(source, nowhere))
    assert done.returncode == 1
    assert done.stderr.startswith("error: s3://bucket/x")
    assert "Traceback" not in done.stderr

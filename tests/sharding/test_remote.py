"""Source and output in an object store: moto's S3 server, as a separate process."""

import hashlib
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from sharding import load_index, load_manifest, open_filesystem
from sharding.pool import prepare_workers
from sharding.verify import VerifyOptions, verify
from tests.sharding.builds import flags, pack, run_build, run_build_process
from tests.sharding.synthetic import train_images, validation_images, write_archives, write_folders


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The query of a URI that leads to the server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
    program = shutil.which("moto_server", path=str(Path(sys.executable).parent))
    assert program is not None
    server = subprocess.Popen(
        [program, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        while True:
            assert server.poll() is None
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    server.terminate()
    server.wait()


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


def test_a_killed_build_publishes_no_manifest_and_resumes(
    endpoint: str, source: str, reference: dict[str, str], tmp_path: Path
):
    uri = f"s3://killed/shards?{endpoint}"
    prepare_workers("tests.sharding.builds")
    keys = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    context = multiprocessing.get_context("forkserver")
    build = context.Process(target=run_build_process, args=(flags(source, uri), keys))
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


@pytest.mark.parametrize("write", [write_folders, write_archives])
def test_a_remote_source_gives_the_same_bytes(write, endpoint: str, tmp_path: Path):
    local = write(tmp_path / "imagenet", train_images(1), validation_images(4))
    uri = upload(local, f"s3://{write.__name__.replace('_', '-')}/imagenet?{endpoint}")
    (here,) = pack(local, tmp_path / "here", split="validation")
    (there,) = pack(uri, tmp_path / "there", split="validation", workers=2)
    assert here.digest == there.digest
    assert load_index(str(tmp_path / "there"), load_manifest(str(tmp_path / "there"), "validation")).num_rows == 4


@pytest.mark.slow  # the client tries for ten seconds and more
def test_a_store_that_does_not_answer_is_a_one_line_error(source: str, monkeypatch: pytest.MonkeyPatch):
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    nowhere = "s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    done = run_build(*flags(source, nowhere))
    assert done.returncode == 1
    assert done.stderr.startswith("error: s3://bucket/x")
    assert "Traceback" not in done.stderr

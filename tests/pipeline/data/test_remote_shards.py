"""Shards on an S3 server are read as local ones are, also while the server fails."""

import hashlib
import http.client
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path

import pytest

from pipeline.data.loader import build_train_loader
from pipeline.data.reader import LoaderError
from pipeline.launch.checks import check_shards
from pipeline.launch.options import LaunchError
from sharding import open_filesystem
from tests.pipeline.data.reading import evaluation_loader
from tests.support.small_shards import config, pack

SHARDS = (17, 9, 23, 4, 30, 12)


class _Proxy(BaseHTTPRequestHandler):
    """Forwards requests to the real server; breaks off, or answers with an error, each `fail_every`th request."""

    protocol_version = "HTTP/1.1"
    target, fail_every, requests, fetched = ("127.0.0.1", 0), 0, 0, []
    lock = threading.Lock()

    def _forward(self) -> None:
        with _Proxy.lock:
            _Proxy.requests += 1
            number = _Proxy.requests
        if _Proxy.fail_every and number % _Proxy.fail_every == 0:
            if number // _Proxy.fail_every % 2:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            else:
                self.send_error(500)
            return
        upstream = http.client.HTTPConnection(*_Proxy.target, timeout=60)
        upstream.request(self.command, self.path, headers=dict(self.headers))
        answer = upstream.getresponse()
        data = answer.read()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(data)
        if self.command == "GET" and ".tar" in self.path:
            _Proxy.fetched.append(self.path.split("?")[0])

    do_GET = do_HEAD = _forward

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def server():
    """Port of moto's S3 server."""
    pytest.importorskip("moto", reason="needs an S3 server: moto[server] of the dev group")
    program = shutil.which("moto_server", path=str(Path(sys.executable).parent))
    assert program is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            assert process.poll() is None
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def bucket(server, tmp_path_factory):
    """Small shards on the server: (URI through the proxy, local copy)."""
    local = tmp_path_factory.mktemp("local")
    pack(local, SHARDS)
    pack(local, (13, 8), split="validation")
    place = "s3://shards/small?scheme=http&region=us-east-1&allow_bucket_creation=true&endpoint_override=127.0.0.1"
    _Proxy.target = ("127.0.0.1", server)
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        filesystem, path = open_filesystem(f"{place}:{server}")
        filesystem.create_dir(path, recursive=True)
        for file in local.iterdir():
            with filesystem.open_output_stream(f"{path}/{file.name}") as stream:
                stream.write(file.read_bytes())
        yield f"{place}:{proxy.server_port}", local
    proxy.shutdown()
    proxy.server_close()


def read(settings, *, world_size: int = 1, rank: int = 0, steps: int = 12) -> dict[tuple[int, int], str]:
    seen = {}
    with build_train_loader(
        settings, world_size=world_size, rank=rank, start_step=0, total_steps=steps, device="cpu"
    ) as loader:
        for batches in loader:
            for batch in batches:
                for row, image in zip(batch.indices.tolist(), batch.images, strict=True):
                    seen[batch.step, row] = hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
    return seen


def test_a_remote_split_equals_the_local_one_over_a_failing_server(bucket, tmp_path):
    uri, local = bucket
    expected = read(config(local, tmp_path / "index"))
    _Proxy.fail_every, _Proxy.requests = 10, 0
    try:
        largest = max(path.stat().st_size for path in local.glob("*.tar"))
        room = {"workers": 2, "cache_gb": 3.2 * largest / 1e9}
        cache = tmp_path / "cache"
        seen = {}
        for rank in range(2):
            seen |= read(config(uri, cache, data=room), world_size=2, rank=rank)
    finally:
        _Proxy.fail_every = 0
    assert seen == expected
    assert _Proxy.requests > 20  # at least two requests failed
    taken = sum(path.stat().st_size for path in cache.glob("shard-*"))
    assert 0 < taken <= room["cache_gb"] * 1e9


def test_ranks_of_a_node_fetch_each_shard_once(bucket, tmp_path):
    uri, _ = bucket
    _Proxy.fetched.clear()
    settings = config(uri, tmp_path / "cache", data={"workers": 1})
    loaders = [
        build_train_loader(settings, world_size=2, rank=rank, start_step=0, total_steps=8, device="cpu")
        for rank in range(2)
    ]
    for pair in zip(*loaders, strict=True):
        for batches in pair:
            list(batches)
    for loader in loaders:
        loader.close()
    assert sorted(_Proxy.fetched) == [f"/shards/small/small-train-{shard:04d}.tar" for shard in range(len(SHARDS))]


def test_evaluation_reads_remote_shards(bucket, tmp_path):
    uri, _ = bucket
    rows = []
    for rank in range(2):
        settings = config(uri, tmp_path / "cache")
        with evaluation_loader(settings, world_size=2, rank=rank) as loader:
            rows += [row for batch in loader for row in batch.indices.tolist()]
    assert sorted(rows) == list(range(21))


def test_a_cache_that_no_shard_fits_into_is_refused_before_anything_is_queued(bucket, tmp_path):
    uri, local = bucket
    assert check_shards(config(uri, tmp_path)).num_validation == 21
    small = {"cache_gb": 1e-6}
    with pytest.raises(LaunchError, match=r"--train.data.cache-gb 1e-06 is less than a shard of s3://"):
        check_shards(config(uri, tmp_path, data=small))
    check_shards(config(local, tmp_path, data=small))


def test_a_failing_server_is_reported_with_the_sample(bucket, tmp_path, monkeypatch):
    uri, _ = bucket
    monkeypatch.setattr("pipeline.data.cache._ATTEMPTS", 1)
    with build_train_loader(
        config(uri, tmp_path / "cache"), world_size=1, rank=0, start_step=0, total_steps=12, device="cpu"
    ) as loader:
        steps = iter(loader)
        monkeypatch.setattr(_Proxy, "fail_every", 1)
        with pytest.raises(LoaderError, match=r"sample photo_\d+ of s3://.*tar could not be fetched in 1 attempts"):
            list(chain.from_iterable(steps))

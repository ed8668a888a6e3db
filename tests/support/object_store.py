"""moto's S3 server as a process, and a proxy before it that fails, is slow, or lists objects late."""

import contextlib
import http.client
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
"""Environment of a client."""
_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@contextlib.contextmanager
def s3_server(address: str = "127.0.0.1") -> Iterator[int]:
    """Start the server, at an address of this machine; yield its port."""
    program = shutil.which("moto_server", path=str(Path(sys.executable).parent))
    assert program is not None, "needs an S3 server: moto[server] of the dev group"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "-H", address, "-p", str(port)]
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


def place(port: int) -> str:
    """The query of a URI that leads to a server or proxy."""
    return f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"


class FaultyProxy:
    """Forwards requests to a server.

    Attributes:
        port: its own port.
        fail_every: each so many requests one fails; 0 for none.
        faults: the statuses that failing requests are answered with, in turn; 0 breaks the connection.
        list_seconds: seconds before a listing is answered.
        lag_seconds: seconds for which a listing lacks an object after it was written.
        requests: number of requests so far.
        tokens: session tokens that clients sent.
        fetched: path of each tar that was read.
    """

    def __init__(self, server_port: int) -> None:
        """Listen on a free port."""
        self.fail_every, self.list_seconds, self.lag_seconds = 0, 0.0, 0.0
        self.faults: tuple[int, ...] = (503,)
        self.requests, self.tokens, self.fetched = 0, set[str | None](), list[str]()
        self.written: dict[str, float] = {}
        self.upstream = ("127.0.0.1", server_port)
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def fault(self) -> int | None:
        """Count a request; return the fault that it meets."""
        with self.lock:
            self.requests += 1
            if not self.fail_every or self.requests % self.fail_every:
                return None
            return self.faults[self.requests // self.fail_every % len(self.faults)]

    def without_recent(self, listing: bytes) -> bytes:
        """A listing without the objects written in the last `lag_seconds`."""
        recent = {path for path, at in self.written.items() if time.monotonic() - at < self.lag_seconds}

        def keep(match: re.Match[bytes]) -> bytes:
            return b"" if any(path.endswith(match[1].decode()) for path in recent) else match[0]

        return re.sub(rb"<Contents>.*?<Key>(.*?)</Key>.*?</Contents>", keep, listing, flags=re.DOTALL)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def _forward(self) -> None:
        proxy, body = self.proxy, self._body()
        fault = proxy.fault()
        proxy.tokens.add(self.headers.get("x-amz-security-token"))
        if fault == 0:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault is not None:
            self._answer(fault, [], _SLOW_DOWN)
        else:
            self._pass_on(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _pass_on(self, body: bytes) -> None:
        proxy, path = self.proxy, self.path.split("?")[0]
        is_list = self.command == "GET" and "list-type" in self.path
        if is_list:
            time.sleep(proxy.list_seconds)
        kept = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "content-length")}
        upstream = http.client.HTTPConnection(*proxy.upstream, timeout=60)
        upstream.request(self.command, self.path, body=body, headers=kept)
        answer = upstream.getresponse()
        data = answer.read()
        if self.command in ("PUT", "POST") and answer.status == 200:
            proxy.written[path] = time.monotonic()
        if is_list and proxy.lag_seconds:
            data = proxy.without_recent(data)
        if self.command == "GET" and ".tar" in path:
            proxy.fetched.append(path)
        self._answer(answer.status, answer.getheaders(), data)

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response_only(status)
        length = str(len(data))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client gave up
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

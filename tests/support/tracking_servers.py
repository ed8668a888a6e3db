"""Real MLflow servers for tests, and a relay in front of them that is slow, broken or refusing on demand."""

import contextlib
import http.client
import http.server
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

START_TIMEOUT_S = 200


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class MlflowServer:
    """`mlflow server` on a port of this machine; it keeps its data when it is killed and started again."""

    def __init__(
        self, folder: Path, *, store: str | None = None, artifacts: str | None = None, env: dict | None = None
    ):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.store = store or f"sqlite:///{folder / 'server.db'}"
        self.artifacts = artifacts or str(folder / "artifacts")
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._env = env or {}
        self._process: subprocess.Popen | None = None

    def launch(self) -> None:
        """Start the process; `start` also waits for the first answer."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.store, "--artifacts-destination", self.artifacts]
        env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        env |= {"OMP_NUM_THREADS": "1", **self._env}
        env.pop("MLFLOW_TRACKING_URI", None)
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=env, start_new_session=True
            )

    def start(self) -> "MlflowServer":
        if self._process is None:
            self.launch()
        try:
            wait_for(lambda: self._process.poll() is not None or answers(f"{self.uri}/health"), START_TIMEOUT_S)
            assert self._process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
        except BaseException:
            self.kill()
            raise
        return self

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> "MlflowServer":
        return self.start()

    def __exit__(self, *_) -> None:
        self.kill()


class Relay(http.server.ThreadingHTTPServer):
    """Forwards requests to a server as `mode` says; `served` counts its answers."""

    daemon_threads = True
    mode: Literal["pass", "slow", "broken", "login"] = "pass"

    def __init__(self, target_port: int, certificate: tuple[Path, Path] | None = None):
        super().__init__(("127.0.0.1", 0), _RelayHandler)
        self.target_port, self.served = target_port, 0
        self.scheme = "https" if certificate else "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_) -> None:
        """Ignore clients that refuse the certificate or disconnect."""

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()


class _RelayHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    server: Relay
    slow_s: ClassVar[float] = 2.0

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.mode == "slow":
            time.sleep(self.slow_s)
        if self.server.mode in ("broken", "login"):
            status = 500 if self.server.mode == "broken" else 401
            self._answer(status, b"<html>You are not authenticated.</html>" if status == 401 else b"out of order", [])
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.target_port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        upstream.request(self.command, self.path, body, headers)
        response = upstream.getresponse()
        self._answer(response.status, response.read(), [("Content-Type", response.getheader("Content-Type") or "")])

    def _answer(self, status: int, body: bytes, headers: list[tuple[str, str]]) -> None:
        self.send_response(status)
        for name, value in [*headers, ("Content-Length", str(len(body)))]:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.server.served += 1

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _forward

    def log_message(self, *_) -> None:
        pass


def self_signed_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """Start PostgreSQL in a temporary folder; yields the URI, with a password, of an empty database."""
    # PostgreSQL's user may not enter pytest's folders.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    port, owner = free_port(), []
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root.
        shutil.chown(folder, "postgres", "postgres")
        owner = ["runuser", "-u", "postgres", "--"]
    (folder / "password").write_text("s3cret-word")
    if owner:
        shutil.chown(folder / "password", "postgres")
    data = folder / "data"
    initialise = [programs[-1] / "initdb", "-D", data, "-A", "scram-sha-256", "-U", "mlflow"]
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": "/"}
    subprocess.run([*owner, *initialise, f"--pwfile={folder / 'password'}"], **quiet)
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [*owner, programs[-1] / "pg_ctl", "-D", data, "-l", folder / "log", "-w"]
    subprocess.run([*control, "-o", options, "start"], **quiet)
    try:
        yield f"postgresql+psycopg2://mlflow:s3cret-word@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
        shutil.rmtree(folder, ignore_errors=True)


def has_postgres() -> str:
    """The reason why PostgreSQL cannot be started here, or an empty text."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        return "needs PostgreSQL: apt-get install postgresql"
    try:
        import psycopg2  # noqa: F401
    except ImportError:
        return "needs psycopg2: pip install psycopg2-binary"
    return ""


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def wait_for(condition, timeout_s: float, pause_s: float = 0.1) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not become true within {timeout_s} s"
        time.sleep(pause_s)

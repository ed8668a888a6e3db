"""A small server that speaks the part of the Hugging Face hub's API that an upload and a download of a model use.

Large files go by Git LFS's batch API, as on the hub; the README's header is checked as YAML, as there.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import yaml

COMMIT = "c" * 40
TOKEN = "hf_of_the_test"


@dataclass
class Hub:
    """What the server holds."""

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve an empty hub on this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        words = urlsplit(self.path).path.strip("/").split("/")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid username or password."}, status=401)
        if words == ["api", "repos", "create"]:
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
            self.hub.repositories.setdefault(name, {})
            return self._answer({"url": f"{self.hub.address}/{name}", "name": name})
        if words == ["api", "validate-yaml"]:
            return self._answer({"errors": _errors(json.loads(body)["content"]), "warnings": []})
        if words[0] == "api" and words[4] == "preupload":
            files = [
                {"path": file["path"], "uploadMode": _mode(file["path"]), "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if words[-2:] == ["objects", "batch"]:
            objects = [
                entry | {"actions": {"upload": {"href": f"{self.hub.address}/lfs/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            return self._answer({"transfer": "basic", "objects": objects})
        if words[0] == "api" and words[4] == "commit":
            return self._commit("/".join(words[2:4]), [json.loads(line) for line in body.splitlines()])
        return self._answer({"error": f"no such address: {self.path}"}, status=404)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != oid:
            return self._answer({"error": "other content"}, status=400)
        self.hub.objects[oid] = content
        return self._answer({})

    def do_HEAD(self) -> None:
        self._send_file(with_body=False)

    def do_GET(self) -> None:
        words = urlsplit(self.path).path.strip("/").split("/")
        if words[:2] == ["api", "models"]:
            files = self.hub.repositories.get("/".join(words[2:4]))
            if files is None:
                return self._answer({"error": "Repository not found"}, status=404)
            return self._answer(
                {"id": "/".join(words[2:4]), "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}
            )
        return self._send_file(with_body=True)

    def _send_file(self, with_body: bool) -> None:
        words = urlsplit(self.path).path.strip("/").split("/")
        content = self.hub.repositories.get("/".join(words[:2]), {}).get("/".join(words[4:]))
        if content is None:
            return self._answer({"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}, status=404)
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)
        return None

    def _commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        files = self.hub.repositories[repository]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        self._answer({"commitUrl": f"{self.hub.address}/{repository}/commit/{COMMIT}", "commitOid": COMMIT})

    def _answer(self, content: Any, headers: dict[str, str] | None = None, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".png")) else "regular"


def _errors(page: str) -> list[dict[str, str]]:
    """What the hub would say of the header of a README."""
    try:
        header = yaml.safe_load(page.split("---")[1])
    except (yaml.YAMLError, IndexError) as error:
        return [{"message": str(error)}]
    missing = {"license", "library_name", "pipeline_tag", "tags"} - header.keys()
    return [{"message": f"missing: {missing}"}] if missing else []

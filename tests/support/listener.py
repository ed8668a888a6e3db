"""A web server that keeps the JSON that is posted to it."""

import http.server
import json
import threading
from typing import Any, Self

from tests.support.tracking_servers import free_port


class Listener:
    """Listens on a port of this machine while it is entered."""

    def __init__(self, status: int = 200) -> None:
        """Answer each POST with `status`."""
        self.posts: list[dict[str, Any]] = []
        """What was posted, in order."""
        listener = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                listener.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(status)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        port = free_port()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.address = f"http://127.0.0.1:{port}/services/T0/secret-room"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

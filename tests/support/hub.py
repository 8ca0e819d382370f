"""A hub of models with one repository, me/model."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1, sha256
from typing import Any

import orjson


@contextmanager
def hub(files: dict[str, bytes], *, damaged: str = "") -> Iterator[str]:
    """A hub with one repository, me/model.

    Args:
        damaged: A file of which other bytes come than it names.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/me/model/revision/") or path == "/api/models/me/model":
                self._send(orjson.dumps({"id": "me/model", "sha": "c" * 40, "siblings": _siblings(files)}))
            elif path.startswith("/api/models/me/model/tree/"):
                self._send(orjson.dumps(_tree(files)))
            elif path.startswith(f"/me/model/resolve/{'c' * 40}/") and path.split("/", 5)[5] in files:
                content = files[path.split("/", 5)[5]]
                content = content[:-1] + b"?" if path.split("/", 5)[5] == damaged else content
                self._send(content, {"etag": f'"{sha1(content).hexdigest()}"', "x-repo-commit": "c" * 40})
            else:
                self._send(b'{"error": "Repository not found"}', {"x-error-code": "RepoNotFound"}, status=404)

        def _send(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
            self.send_response(status)
            for name, value in {"content-type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _siblings(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Weights are large files, whose digest the hub names."""
    return [
        {"rfilename": name}
        | (
            {
                "size": len(content),
                "lfs": {"size": len(content), "sha256": sha256(content).hexdigest(), "pointerSize": 1},
            }
            if name.endswith((".onnx", ".safetensors"))
            else {}
        )
        for name, content in files.items()
    ]


def _tree(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": name, "size": len(content), "oid": sha1(content).hexdigest()}
        for name, content in files.items()
    ]

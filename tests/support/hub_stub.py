"""Hugging Face's HTTP interface for one data set, org/name, as far as its library asks for files. In a thread."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(files: Mapping[str, bytes], *, status: int | None = None) -> Iterator[str]:
    """The endpoint of a hub with these files.

    Args:
        status: What it answers to everything, where that is not None.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *said: Any) -> None:
            pass

        def _answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _json(self, found: Any, status: int = 200, **headers: str) -> None:
            self._answer(status, json.dumps(found).encode(), Content_Type="application/json", **headers)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if status is not None:
                return self._json({"error": "no"}, status)
            api, raw = "/api/datasets/org/name", f"/datasets/org/name/resolve/{COMMIT}/"
            if path in (f"{api}/revision/main", f"{api}/revision/v1", f"{api}/revision/{COMMIT}", api):
                return self._json({"id": "org/name", "sha": COMMIT})
            if path.startswith(f"{api}/revision/"):
                return self._json({"error": "no"}, 404, X_Error_Code="RevisionNotFound")
            if path.startswith(f"{api}/tree/{COMMIT}"):
                folder = path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")
                below = [one for one in entries() if not folder or one["path"].startswith(f"{folder}/")]
                return self._json(below) if below else self._json({}, 404, X_Error_Code="EntryNotFound")
            if path.startswith(raw) and (content := files.get(path.removeprefix(raw))) is not None:
                first, _, last = (
                    self.headers.get("Range", f"bytes=0-{len(content)}").removeprefix("bytes=").partition("-")
                )
                return self._answer(206, content[int(first) : int(last) + 1], ETag='"x"')
            return self._json({"error": "no"}, 404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if status is not None:
                return self._json({"error": "no"}, status)
            try:
                asked = json.loads(body)["paths"]
            except ValueError:
                asked = parse_qs(body.decode())["paths"]
            return self._json([one for one in entries() if one["path"] in asked])

    def entries() -> list[dict[str, Any]]:
        folders = {name.rsplit("/", depth)[0] for name in files for depth in range(1, name.count("/") + 1)}
        found: list[dict[str, Any]] = [
            {"type": "directory", "path": one, "size": 0, "oid": "0" * 40} for one in folders
        ]
        for name, content in files.items():
            found.append({"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()})
        return found

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

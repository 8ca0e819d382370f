"""Google Cloud Storage as obstore asks it, by its XML interface, in memory: `python -m tests.support.gcs_stub`.

Real are: the condition that nothing has the name, generations and entity tags, metadata, ranges, pages of a listing,
If-Match. With --overwrites it takes the condition and ignores it, as some gateways do. It prints its port, and ends
when stdin does.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000
BUCKET = "bucket"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet: else each answer waits 40 ms for an acknowledgement
    objects: dict[str, tuple[bytes, dict[str, str], int, str]]  # content, metadata, generation, entity tag
    lock: threading.Lock
    overwrites: bool

    def log_message(self, *said: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", *, size: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode())

    def _place(self) -> tuple[str, str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        bucket, _, name = parts.path.lstrip("/").partition("/")
        return bucket, unquote(name), parse_qs(parts.query, keep_blank_values=True)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        bucket, name, _ = self._place()
        if bucket != BUCKET:
            return self._refuse(404, "NoSuchBucket")
        kept = {key.lower(): value for key, value in self.headers.items() if key.lower().startswith("x-goog-meta-")}
        with self.lock:
            before = self.objects.get(name)
            if before and self.headers.get("x-goog-if-generation-match") == "0" and not self.overwrites:
                return self._refuse(412, "PreconditionFailed")
            generation = before[2] + 1 if before else 1
            etag = f'"{hashlib.sha256(body + str(generation).encode()).hexdigest()[:32]}"'
            self.objects[name] = (body, kept, generation, etag)
        return self._answer(200, ETag=etag, x_goog_generation=str(generation))

    def do_GET(self) -> None:
        bucket, name, query = self._place()
        if bucket != BUCKET:
            return self._refuse(404, "NoSuchBucket")
        if not name:
            return self._list(query)
        found = self.objects.get(name)
        if found is None:
            return self._refuse(404, "NoSuchKey")
        etag = found[3]
        if (wanted := self.headers.get("If-Match")) and wanted != etag:
            return self._refuse(412, "PreconditionFailed")
        body, headers = found[0], {
            "ETag": etag, "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", "x-goog-generation": str(found[2]),
            **found[1],
        }  # fmt: skip
        if (asked := self.headers.get("Range")) is None:
            return self._answer(200, body, **headers)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, len(body) - int(last))
        end = min(len(body), int(last) + 1) if first and last else len(body)
        if start >= len(body):
            return self._refuse(416, "InvalidRange")
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
        return self._answer(206, body[start:end], **headers)

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        bucket, name, _ = self._place()
        with self.lock:
            gone = self.objects.pop(name, None)
        if bucket != BUCKET or gone is None:
            return self._refuse(404, "NoSuchKey")
        return self._answer(204)

    def _list(self, query: dict[str, list[str]]) -> None:
        prefix, parted = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        after = query.get("continuation-token", query.get("start-after", [""]))[0]
        rows, folders = [], set()
        names = sorted(name for name in self.objects if name.startswith(prefix) and name > after)
        more = None
        for name in names:
            below = name[len(prefix) :]
            if parted and parted in below:
                folders.add(prefix + below.partition(parted)[0] + parted)
                continue
            if len(rows) == PAGE:
                more = rows[-1][0]
                break
            rows.append((name, self.objects[name]))
        text = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<Size>{len(found[0])}</Size><ETag>{escape(found[3])}</ETag></Contents>"
            for name, found in rows
        )
        text += "".join(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in sorted(folders))
        if more is not None:
            text += f"<NextContinuationToken>{escape(more)}</NextContinuationToken>"
        self._answer(200, f"<?xml version='1.0'?><ListBucketResult>{text}</ListBucketResult>".encode())


def main() -> None:
    """Serve until stdin ends."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--overwrites", action="store_true")
    handler = type("Handler", (_Handler,), {
        "objects": {}, "lock": threading.Lock(), "overwrites": arguments.parse_args().overwrites
    })  # fmt: skip
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()

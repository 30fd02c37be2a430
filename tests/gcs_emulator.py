"""A Cloud Storage of one process, in memory: what gcsfs, TensorStore and google-cloud-storage ask.

`python -m tests.gcs_emulator` prints its port. The subset of the JSON API that they use: objects
are uploaded (media, multipart, resumable), read (also a range), listed, moved, copied and deleted,
with the preconditions on generations. gcp-storage-emulator, which could have served, heeds no
precondition: of several creators of an object all would win.
"""

import base64
import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "bucket"
FORBIDDEN = "forbidden"  # a bucket that nobody may use


@dataclass
class Object:
    data: bytes
    generation: int
    updated: float = field(default_factory=time.time)


class Store:
    """Buckets, their objects, and the uploads that are under way."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.buckets: dict[str, dict[str, Object]] = {BUCKET: {}, FORBIDDEN: {}}
        self.uploads: dict[str, tuple[str, str, dict, bytearray]] = {}
        self.numbers = itertools.count(1)


class Failure(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # an answer's head and body go out together
    store: Store

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # of clients that were killed
            super().handle()

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        # All of the body, or what is left would be taken for the next request.
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b""
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        # Of objects the slashes of their names are quoted.
        parts = [unquote(part) for part in url.path.split("/")[1:]]
        try:
            with self.store.lock:
                self._route(parts)
        except Failure as failure:
            error = {"code": failure.status, "message": str(failure)}
            self._json({"error": error}, failure.status)

    def _route(self, parts: list[str]) -> None:
        upload = parts[0] == "upload"
        match self.command, parts[parts.index("v1") + 1 :]:
            case "GET", ["b", bucket]:
                self._objects(bucket)
                self._json({"kind": "storage#bucket", "name": bucket, "id": bucket})
            case "GET", ["b", bucket, "o"]:
                self._list(bucket)
            case "POST" | "PUT", ["b", bucket, "o"] if upload:
                self._upload(bucket)
            case "GET", ["b", bucket, "o", name]:
                self._get(bucket, name)
            case "DELETE", ["b", bucket, "o", name]:
                self._check(bucket, name)
                self._delete(bucket, name)
                self._answer(204)
            case "POST", ["b", bucket, "o", name, "moveTo", "o", new]:
                copy = self._put(bucket, new, self._object(bucket, name).data)
                self._delete(bucket, name)
                self._json(copy)
            case "POST", ["b", bucket, "o", name, "rewriteTo", "b", other, "o", new]:
                copy = self._put(other, new, self._object(bucket, name).data)
                self._json({"done": True, "resource": copy})
            case _:
                raise Failure(501, f"{self.command} {self.path} is not emulated")

    def _objects(self, bucket: str) -> dict[str, Object]:
        if bucket == FORBIDDEN:
            raise Failure(403, f"nobody has storage.objects.list access to {bucket}")
        if bucket not in self.store.buckets:
            raise Failure(404, "The specified bucket does not exist.")
        return self.store.buckets[bucket]

    def _object(self, bucket: str, name: str) -> Object:
        found = self._objects(bucket).get(name)
        if found is None:
            raise Failure(404, f"No such object: {bucket}/{name}")
        return found

    def _delete(self, bucket: str, name: str) -> None:
        self._object(bucket, name)
        del self.store.buckets[bucket][name]

    def _check(self, bucket: str, name: str, query: dict[str, str] | None = None) -> None:
        """The preconditions; a generation of 0 is that of no object."""
        query = self.query if query is None else query
        found = self._objects(bucket).get(name)
        generation = str(found.generation if found else 0)
        if query.get("ifGenerationMatch", generation) != generation:
            raise Failure(412, "At least one of the pre-conditions you specified did not hold.")
        if query.get("ifGenerationNotMatch") == generation:
            raise Failure(304 if self.command == "GET" else 412, "not modified")

    def _put(self, bucket: str, name: str, data: bytes) -> dict[str, Any]:
        made = Object(data, time.time_ns() // 1000 + next(self.store.numbers))
        self._objects(bucket)[name] = made
        return _metadata(bucket, name, made)

    def _list(self, bucket: str) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        first, last = self.query.get("startOffset", ""), self.query.get("endOffset")
        token = self.query.get("pageToken", "")
        most = int(self.query.get("maxResults", 1000))
        items: list[dict] = []
        folders: list[str] = []
        following, before = None, ""
        for name in sorted(self._objects(bucket)):
            if not name.startswith(prefix) or name < first or name <= token:
                continue
            if last is not None and name >= last:
                break
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            folder = prefix + head + found if found else None
            if folder is not None and (folder in folders or token.startswith(folder)):
                continue
            if len(items) + len(folders) == most:
                following = before
                break
            if folder is None:
                items.append(_metadata(bucket, name, self._objects(bucket)[name]))
            else:
                folders.append(folder)
            before = name
        page = {"kind": "storage#objects", "items": items, "prefixes": folders}
        self._json(page | ({"nextPageToken": following} if following else {}))

    def _get(self, bucket: str, name: str) -> None:
        found = self._object(bucket, name)
        self._check(bucket, name)
        if self.query.get("alt") != "media":
            self._json(_metadata(bucket, name, found))
            return
        headers = {"x-goog-generation": str(found.generation), "ETag": f'"{found.generation}"'}
        size = len(found.data)
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            self._answer(200, found.data, headers)
            return
        first, last = (int(number) if number else None for number in wanted.groups())
        if first is None:
            first, last = max(size - last, 0), None
        last = size - 1 if last is None else min(last, size - 1)
        if first > last:
            raise Failure(416, "no such range")
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._answer(206, found.data[first : last + 1], headers)

    def _upload(self, bucket: str) -> None:
        number = self.query.get("upload_id")
        if number:
            self._continue(number)
            return
        name, data = self.query.get("name"), self.body
        if self.query["uploadType"] == "multipart":
            about, data = _parts(self.headers["Content-Type"], self.body)
            name = name or json.loads(about)["name"]
        elif self.query["uploadType"] == "resumable":
            name = name or json.loads(self.body)["name"]
            self._objects(bucket)
            number = str(next(self.store.numbers))
            self.store.uploads[number] = bucket, name, dict(self.query), bytearray()
            place = f"http://{self.headers['Host']}{self.path}&upload_id={number}"
            self._answer(200, headers={"Location": place})
            return
        self._check(bucket, name)
        self._json(self._put(bucket, name, data))

    def _continue(self, number: str) -> None:
        """A piece of a resumable upload, or the last: the one that knows the size of all."""
        bucket, name, query, data = self.store.uploads[number]
        data += self.body
        whole = re.search(r"/(\d+)$", self.headers.get("Content-Range", f"/{len(data)}"))
        if whole is None or len(data) < int(whole[1]):
            self._answer(308, headers={"Range": f"bytes=0-{len(data) - 1}"})
            return
        del self.store.uploads[number]
        self._check(bucket, name, query)
        self._json(self._put(bucket, name, bytes(data)))

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(body)


def _metadata(bucket: str, name: str, found: Object) -> dict[str, Any]:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(found.updated))
    moment += f".{int(found.updated % 1 * 1e6):06d}Z"
    return {
        "kind": "storage#object", "id": f"{bucket}/{name}/{found.generation}", "name": name,
        "bucket": bucket, "generation": str(found.generation), "metageneration": "1",
        # (not that of CRC32C, but as good as one to those who only compare)
        "crc32c": base64.b64encode(zlib.crc32(found.data).to_bytes(4)).decode(),
        "size": str(len(found.data)), "timeCreated": moment, "updated": moment,
    }  # fmt: skip


def _parts(content_type: str, body: bytes) -> tuple[bytes, bytes]:
    """The two parts of a multipart upload: JSON about the object, and its content."""
    opening = b"--" + re.search(r'boundary="?([^";]+)', content_type)[1].encode()
    end = b"\r\n" if body.startswith(opening + b"\r\n") else b"\n"
    _, about, data = body.split(opening + end, 2)
    about, data = (part.split(2 * end, 1)[1] for part in (about, data))
    return about, data[: data.rindex(end + opening + b"--")]


def environment(port: int) -> dict[str, str]:
    """What makes clients talk to the emulator, and not look for credentials."""
    address = f"http://127.0.0.1:{port}"
    return {
        "STORAGE_EMULATOR_HOST": address,  # gcsfs, google-cloud-storage
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anybody",  # TensorStore's
        "GOOGLE_CLOUD_PROJECT": "nobody",
        "FSSPEC_GCS": '{"token": "anon"}',  # else google-auth looks for Google's machines, 10 s
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else it asks by gRPC what kind of bucket
    }


@contextlib.contextmanager
def running() -> Iterator[int]:
    """An emulator in a process of its own; gives its port."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    command = [sys.executable, "-m", "tests.gcs_emulator"]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    Handler.store = Store()
    ThreadingHTTPServer.request_queue_size = 128
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()

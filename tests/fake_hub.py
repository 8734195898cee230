"""A server on 127.0.0.1 that speaks what `huggingface_hub` needs of the hub's API, and misbehaves as a test says."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

REPOSITORY = "org/tiny"
_LFS = (".safetensors", ".npz", ".pt")


class Request(NamedTuple):
    """A request that came in."""

    method: str
    path: str
    range: str | None
    authorization: str | None


def commit_of(files: Mapping[str, bytes]) -> str:
    """A commit's name: it depends on the content alone."""
    sha = hashlib.sha1(usedforsecurity=False)
    for name, content in sorted(files.items()):
        sha.update(f"{name}\0{len(content)}\0".encode() + content)
    return sha.hexdigest()


def files_below(folder: Path) -> dict[str, bytes]:
    """The files below *folder*, as `FakeHub.push` takes them."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclass
class FakeHub:
    """What the server holds, does wrong, and was asked. Whatever a test changes holds from the next request on."""

    address: str = ""
    refs: dict[tuple[str, str], str] = field(default_factory=dict)
    """Commit of each repository's branches and tags."""
    commits: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    """Files of each repository's commits."""
    requests: list[Request] = field(default_factory=list)
    """Everything that was asked."""
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    """Bytes of a file after which the connection breaks, for each of the next answers."""
    wrong: dict[str, bytes] = field(default_factory=dict)
    """Content that a file is answered with, in place of its own."""
    statuses: dict[str, int] = field(default_factory=dict)
    """HTTP status that everything below a path is answered with."""
    token: str | None = None
    """What everybody has to show."""
    gated: bool = False
    """Whether the repositories want terms to be accepted."""

    def push(self, files: Mapping[str, bytes], *, repository: str = REPOSITORY, ref: str = "main") -> str:
        """Make a commit of *files*, and *ref* a name of it."""
        commit = commit_of(files)
        self.commits[repository, commit] = dict(files)
        self.refs[repository, ref] = commit
        return commit

    @property
    def fetched(self) -> list[str]:
        """The names of the files whose content was asked for, in order."""
        return [one.path.split("/", 5)[5] for one in self.requests if one.method == "GET" and "/resolve/" in one.path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class names it so
        del format, args

    def _answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        authorization = self.headers["Authorization"]
        hub.requests.append(Request(self.command, path, self.headers["Range"], authorization))
        parts = path.strip("/").split("/")
        for prefix, status in hub.statuses.items():
            if path.startswith(prefix):
                self._send(status, b"{}")
                return
        if hub.token is not None and authorization != f"Bearer {hub.token}":
            self._fail(401, "RepoNotFound")
        elif hub.gated:
            self._fail(403, "GatedRepo")
        elif parts[0] == "blobs":
            repository, commit, name = "/".join(parts[1:3]), parts[3], "/".join(parts[4:])
            self._content(name, hub.commits[repository, commit][name])
        elif parts[:2] == ["api", "models"]:
            self._api("/".join(parts[2:4]), parts[4], "/".join(parts[5:]))
        else:
            self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def _api(self, repository: str, what: str, revision: str) -> None:
        commit = self._commit(repository, revision)
        if commit is None:
            return
        files = self.hub.commits[repository, commit]
        if what == "revision":
            siblings = [{"rfilename": name} for name in files]
            self._json({"id": repository, "modelId": repository, "sha": commit, "siblings": siblings, "private": False})
        else:
            self._json([_listed(name, content) for name, content in files.items()])

    def _resolve(self, repository: str, revision: str, name: str) -> None:
        commit = self._commit(repository, revision)
        if commit is None:
            return
        content = self.hub.commits[repository, commit].get(name)
        if content is None:
            self._fail(404, "EntryNotFound")
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_git_id(content)}"'}
        if name.endswith(_LFS):
            sha = hashlib.sha256(content).hexdigest()
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{sha}"'}
            self._send(302, b"", headers | {"Location": f"/blobs/{repository}/{commit}/{name}"})
        else:
            self._content(name, content, headers)

    def _content(self, name: str, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        content = self.hub.wrong.get(name, content)
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        status, extra = 200, dict(headers or {})
        if self.headers["Range"]:
            status = 206
            extra["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cuts = self.hub.cut_after.get(name)
        self._send(status, content[start:], extra, cut_after=cuts.pop(0) if cuts else None)

    def _commit(self, repository: str, revision: str) -> str | None:
        if not any(repository == known for known, _ in self.hub.commits):
            self._fail(404, "RepoNotFound")
            return None
        commit = self.hub.refs.get((repository, revision), revision)
        if (repository, commit) not in self.hub.commits:
            self._fail(404, "RevisionNotFound")
            return None
        return commit

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, *, cut_after: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut_after])
        if cut_after is not None:
            self.close_connection = True


def _listed(name: str, content: bytes) -> dict[str, object]:
    listed: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": _git_id(content)}
    if name.endswith(_LFS):
        listed["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return listed


def _git_id(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that holds nothing yet."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()

"""Pulling: fetches the files that a registry file names on the hub into the cache folder.

A file is fetched next to its destination, checked against the digests of the repository and of the registry file, and
only then moved there; an interrupted fetch is resumed. The only module that uses `huggingface_hub`, whose rules apply
for tokens, proxies and redirects.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast

from filelock import FileLock
from huggingface_hub import HfApi, errors, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, disable_progress_bars  # type: ignore[attr-defined]  # unmarked

from dst_grpc.errors import DataLoss, InvalidRequest, NotAllowed, NotFound, Reason, Unavailable
from dst_grpc.sources.hub_cache import LOCK, Commit, HubCache, Lock, PulledFile
from dst_grpc.sources.selections import model_files, model_key, set_files, set_key
from dst_grpc.sources.specs import HubSource, field_of, is_commit, toml_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from dst_grpc.sources.specs import AutoencoderSpec, ModelSpec

    OnFile = Callable[[str, int, int], None]
    """Called with the name of a file in the repository, the bytes fetched, and its size."""

_BLOCK_BYTES = 1 << 20
_RETRY_SECONDS = 10.0
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG}


@dataclass(frozen=True, slots=True, kw_only=True)
class PullReport:
    """The result of pulling a model or an autoencoder set."""

    name: str
    """Name of the model, or MODEL/SET."""
    source: HubSource
    """Its source."""
    commit: str
    """The commit of its revision."""
    folder: Path
    """Its folder in the cache."""
    n_files: int
    """Number of its files."""
    total_bytes: int
    """Bytes of its files."""
    fetched_bytes: int
    """Bytes that were fetched now."""


class Puller:
    """Fetches into one cache folder."""

    def __init__(self, cache: HubCache, *, endpoint: str | None = None, verify: bool = False) -> None:
        """Fetch into *cache*.

        Args:
            cache: the cache folder.
            endpoint: base address of a server that speaks the hub's API; None = as `huggingface_hub` is configured.
            verify: whether to check the digests of existing files, rather than only their sizes.
        """
        self._cache, self._verify = cache, verify
        self._api = HfApi(endpoint=endpoint)
        disable_progress_bars()

    def pull(self, model: ModelSpec, on_file: OnFile) -> Iterator[PullReport]:
        """Fetch *model* and its autoencoder sets, as far as they are on the hub; yields a report for each once it is
        complete.

        Raises:
            NotFound: for a repository or revision that does not exist, or is hidden from this token.
            NotAllowed: for one whose terms must be accepted first.
            InvalidRequest: for a pattern without a match.
            DataLoss: if files are missing, or a file has a wrong digest; that file is removed.
            Unavailable: if the server cannot be reached, or fails; bytes fetched so far are kept.
        """
        if isinstance(model.source, HubSource):
            yield self._pull(model.source, _Wanted.model(model), on_file)
        for autoencoders in model.autoencoders:
            source = model.source_of(autoencoders)
            if isinstance(source, HubSource):
                yield self._pull(source, _Wanted.autoencoders(model, autoencoders, source), on_file)

    def _pull(self, source: HubSource, wanted: _Wanted, on_file: OnFile) -> PullReport:
        folder = self._cache.repository_folder(source)
        folder.mkdir(parents=True, exist_ok=True)
        with _named(wanted, source), FileLock(folder / ".lock"):
            lock = Lock.read(folder / LOCK)
            commit, listed = self._listing(source)
            fetch = _Fetch(self._api, source, commit, folder, lock, on_file, verify=self._verify)
            prefix = f"{source.path}/" if source.path else ""
            files = {name.removeprefix(prefix): file for name, file in listed.items() if name.startswith(prefix)}
            if not files:
                raise DataLoss(f"there is no folder {source.path!r}" if source.path else "it is empty")
            _check_named(wanted.digests, files)

            def fetched(name: str) -> Path:
                return fetch.fetch(files[name], wanted.digests.get(name))

            names = wanted.files(files.keys(), lambda name: fetched(name).read_bytes())
            for name in names:
                fetched(name)
            done = lock.commits[commit]
            done.selections[wanted.key] = tuple(prefix + name for name in names)
            if not source.is_pinned:
                lock.revisions[source.revision] = commit
            lock.write(folder / LOCK)
        return PullReport(
            name=wanted.name,
            source=source,
            commit=commit,
            folder=folder / commit / source.path,
            n_files=len(names),
            total_bytes=sum(done.files[prefix + name].size for name in names),
            fetched_bytes=fetch.fetched_bytes,
        )

    def _listing(self, source: HubSource) -> tuple[str, dict[str, RepoFile]]:
        """The present commit of *source*, and its files, by name in the repository."""
        with _translated(source, self._api.endpoint):
            commit = self._api.model_info(source.repository, revision=source.revision).sha or ""
        if not is_commit(commit) or (source.is_pinned and commit != source.revision):
            raise DataLoss(f"the server answers that {source.revision} is the commit {commit!r}")
        with _translated(source, self._api.endpoint):
            tree = list(self._api.list_repo_tree(source.repository, revision=commit, recursive=True))
        return commit, {entry.path: entry for entry in tree if isinstance(entry, RepoFile) and _is_plain(entry.path)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A selection of a source's files."""

    name: str
    field: str
    key: str
    digests: Mapping[str, str]
    files: Callable[[Iterable[str], Callable[[str], bytes]], tuple[str, ...]]

    @classmethod
    def model(cls, spec: ModelSpec) -> _Wanted:
        source = cast("HubSource", spec.source)
        return cls(
            name=spec.name,
            field=field_of(spec.name),
            key=model_key(source.path),
            digests=spec.digests,
            files=lambda names, read: model_files(set(names), read),
        )

    @classmethod
    def autoencoders(cls, model: ModelSpec, spec: AutoencoderSpec, source: HubSource) -> _Wanted:
        return cls(
            name=f"{model.name}/{spec.name}",
            field=field_of(model.name, spec.name),
            key=set_key(source.path, spec),
            digests=spec.digests,
            files=lambda names, _: set_files(names, spec),
        )


class _Fetch:
    """Fetches files of one commit, and adds them to the lock in memory."""

    def __init__(
        self, api: HfApi, source: HubSource, commit: str, folder: Path, lock: Lock, on_file: OnFile, *, verify: bool
    ) -> None:
        self._api, self._source, self._folder = api, source, folder / commit
        self._commit, self._lock, self._on_file, self._verify = commit, lock, on_file, verify
        self._files = lock.commits.setdefault(commit, Commit()).files
        self._checked: set[str] = set()
        self.fetched_bytes = 0

    def fetch(self, file: RepoFile, registered: str | None) -> Path:
        """Ensure that *file* is complete at its destination; *registered* is its SHA-256 in the registry file, if that
        has one."""
        place = self._folder / file.path
        if file.path not in self._checked:
            facts = self._there(file, place) or self._fetched(file, place)
            if registered not in {None, facts.sha256}:
                self._forget(file, place)
                raise _mismatch(file, f"has the SHA-256 {facts.sha256}, but {registered} in the registry file")
            self._files[file.path] = facts
            self._lock.write(self._folder.parent / LOCK)
            self._checked.add(file.path)
        self._on_file(file.path, file.size, file.size)
        return place

    def _there(self, file: RepoFile, place: Path) -> PulledFile | None:
        """The facts of *file* if it exists already, or can be linked from another commit."""
        facts = self._files.get(file.path)
        if facts is not None and facts.is_at(place) and not (self._verify and _sha256_of(place) != facts.sha256):
            return facts
        self._forget(file, place)
        if file.lfs is None or self._verify:
            return None
        for commit, other in self._lock.commits.items():
            path = self._folder.parent / commit / file.path
            found = other.files.get(file.path)
            if found is not None and found.sha256 == file.lfs.sha256 and found.is_at(path):
                place.parent.mkdir(parents=True, exist_ok=True)
                _link(path, place)
                return found
        return None

    def _fetched(self, file: RepoFile, place: Path) -> PulledFile:
        """Fetch *file* and check it, resuming an earlier attempt."""
        place.parent.mkdir(parents=True, exist_ok=True)
        # Named after the content, so that a partial file of another commit is not resumed.
        identity = file.lfs.sha256 if file.lfs is not None else file.blob_id
        partial = place.with_name(f"{place.name}.{identity[:16]}.part")
        with partial.open("ab") as out:
            if out.tell() < file.size or not file.size:
                self._get_rest(file, out)
        facts = PulledFile(size=partial.stat().st_size, sha256=_sha256_of(partial))
        problem = _problem(file, partial, facts)
        if problem:
            partial.unlink()
            raise _mismatch(file, f"{problem}; it was removed, so that the next pull fetches it anew")
        partial.replace(place)
        return facts

    def _get_rest(self, file: RepoFile, out: IO[bytes]) -> None:
        """Fetch the rest of *file* that *out* lacks, reconnecting as long as each connection makes progress."""
        while True:
            before = out.tell()
            try:
                self._get(file, out, before)
            except Unavailable:
                if out.tell() <= before:
                    raise
            else:
                return

    def _get(self, file: RepoFile, out: IO[bytes], before: int) -> None:
        counted = _Counted(out, lambda done: self._on_file(file.path, done, file.size))
        url = hf_hub_url(self._source.repository, file.path, revision=self._commit, endpoint=self._api.endpoint)
        headers = build_hf_headers(library_name="dst-grpc") | {"Accept-Encoding": "identity"}
        try:
            with _translated(self._source, self._api.endpoint):
                http_get(url, cast("Any", counted), resume_size=before, headers=headers)
        finally:
            self.fetched_bytes += counted.written_bytes

    def _forget(self, file: RepoFile, place: Path) -> None:
        self._files.pop(file.path, None)
        place.unlink(missing_ok=True)


class _Counted:
    """A file that reports its progress. Has the methods that `http_get` calls."""

    def __init__(self, out: IO[bytes], on_bytes: Callable[[int], None]) -> None:
        self._out, self._on_bytes = out, on_bytes
        self.written_bytes = 0
        on_bytes(out.tell())

    def write(self, block: bytes) -> int:
        written = self._out.write(block)
        self.written_bytes += written
        self._on_bytes(self._out.tell())
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)


def _problem(file: RepoFile, path: Path, facts: PulledFile) -> str:
    """How the content at *path* differs from the repository's size and digest of *file*; empty if it does not."""
    if facts.size != file.size:
        return f"has {facts.size} bytes, not {file.size}"
    if file.lfs is not None:
        return "" if facts.sha256 == file.lfs.sha256 else f"has the SHA-256 {facts.sha256}, not {file.lfs.sha256}"
    # The digest by which git, and so the hub, identifies a small file.
    found = _fed(hashlib.sha1(f"blob {facts.size}\0".encode(), usedforsecurity=False), path)
    return "" if found == file.blob_id else f"has the git id {found}, not {file.blob_id}"


def _sha256_of(path: Path) -> str:
    return _fed(hashlib.sha256(), path)


def _fed(sha: hashlib._Hash, path: Path) -> str:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            sha.update(block)
    return sha.hexdigest()


def _link(path: Path, place: Path) -> None:
    """Put the file at *path* at *place* too, without a copy if the file system allows it."""
    try:
        os.link(path, place)
    except OSError:
        shutil.copyfile(path, place)


def _is_plain(name: str) -> bool:
    """Whether the path *name* stays below its folder."""
    return "\\" not in name and not any(part in {"", ".", ".."} for part in name.split("/"))


def _check_named(digests: Mapping[str, str], files: Mapping[str, RepoFile]) -> None:
    for name in digests:
        if name not in files:
            raise InvalidRequest.of(f"digests.{toml_key(name)}", "is no file of the source")


def _mismatch(file: RepoFile, problem: str) -> DataLoss:
    return DataLoss(f"{file.path}: {problem}", reason=Reason.DIGEST_MISMATCH, metadata={"file": file.path})


@contextmanager
def _named(wanted: _Wanted, source: HubSource) -> Iterator[None]:
    """Add the name of what was pulled to DstErrors."""
    try:
        yield
    except InvalidRequest as error:
        raise error.under(wanted.field) from None
    except DataLoss as error:
        message = f"{wanted.name}, from {source.repository} at {source.revision}: {error.message}"
        raise DataLoss(message, reason=error.reason, metadata=error.metadata) from error


@contextmanager
def _translated(source: HubSource, endpoint: str) -> Iterator[None]:
    """Translate errors of the hub's library to DstErrors."""
    name = f"{source.repository} at {source.revision}"
    about = {"resource_type": "repository", "resource_name": source.repository}
    try:
        yield
    except errors.GatedRepoError as error:
        problem = f"{source.repository} wants its terms accepted, and a token of who did so in HF_TOKEN"
        raise NotAllowed(problem, metadata=about) from error
    except errors.RevisionNotFoundError as error:
        raise NotFound(f"{source.repository} has no revision {source.revision!r}", metadata=about) from error
    except errors.RepositoryNotFoundError as error:
        problem = f"{endpoint} has no repository {source.repository!r}, or hides it without the right token in HF_TOKEN"
        raise NotFound(problem, metadata=about) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in {401, 403}:
            raise NotAllowed(f"{endpoint} refuses {name} with HTTP {status}: see HF_TOKEN", metadata=about) from error
        if status == 404:
            raise NotFound(f"{endpoint} lists a file of {name}, but has it not", metadata=about) from error
        raise _unavailable(f"{endpoint} answers for {name} with HTTP {status}") from error
    except errors.OfflineModeIsEnabled as error:
        raise _unavailable("HF_HUB_OFFLINE forbids to fetch anything") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise
        # The library's transport, which differs by version, has its own errors.
        raise _unavailable(f"the transfer of {name} from {endpoint} broke off ({type(error).__name__})") from error


def _unavailable(problem: str) -> Unavailable:
    advice = "run the same command again to go on where it stopped"
    return Unavailable(f"{problem}; {advice}", reason=Reason.LOAD_FAILED, retry_after_seconds=_RETRY_SECONDS)

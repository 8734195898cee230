"""Files that clients name, over a real socket: each is refused for what it is, and nothing of it is left."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import torch

from dst_grpc._gen.dst.v1 import config_pb2, derived_scalar_type_pb2, inference_pb2
from dst_grpc._gen.dst.v1.derived_scalar_service_pb2_grpc import DerivedScalarServiceStub
from dst_grpc.contexts import AutoencoderContext, ContextCache, ModelContext, Registry
from dst_grpc.contexts.entries import AutoencoderEntry
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.domain.results import AssembledAnswer
from dst_grpc.errors import Reason
from dst_grpc.pipeline import Pipeline
from dst_grpc.rpc.parts import Parts
from dst_grpc.rpc.server import running_server
from dst_grpc.rpc.settings import Settings
from dst_grpc.wire.assembly import assemble
from tests import checkpoints
from tests.e2e.conftest import CALL_SECONDS, error_of

T = derived_scalar_type_pb2.DerivedScalarType
Code = grpc.StatusCode
WIDTH = checkpoints.NEURONS
SOUND = "sound.safetensors"


@dataclass(frozen=True)
class Case:
    """A file, or what looks like one, and the refusal that it must meet."""

    name: str
    make: Callable[[Path], str | None]
    """Makes it in the allowed folder; returns what the client says instead of the name, if that is something else."""
    code: grpc.StatusCode
    reason: Reason
    words: str
    """What the message says."""
    swap: Callable[[Path], None] | None = None
    """What somebody does to the file once it was checked, just before it is loaded."""


def state_dict() -> dict[str, torch.Tensor]:
    return checkpoints.state_dict(WIDTH)


def sound(path: Path) -> Path:
    return checkpoints.write_autoencoder(path, state_dict())


def untouched(path: Path) -> None:
    sound(path)


def written(**changes: torch.Tensor | None) -> Callable[[Path], None]:
    """A file of a sound autoencoder with *changes*: a tensor in the place of another, or None for none at all."""

    def make(path: Path) -> None:
        tensors = {name: tensor for name, tensor in (state_dict() | changes).items() if tensor is not None}
        checkpoints.write_autoencoder(path, tensors)

    return make


def said(text: str | Callable[[Path], str]) -> Callable[[Path], str]:
    """No file; the client says *text*."""
    return lambda path: text if isinstance(text, str) else text(path)


def header(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and values of a sound file."""
    raw = sound(path).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def forged(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A file whose header was changed."""

    def make(path: Path) -> None:
        entries, values = header(path)
        change(entries)
        raw = json.dumps(entries).encode()
        path.write_bytes(len(raw).to_bytes(8, "little") + raw + values)

    return make


def duplicate(path: Path) -> None:
    """A header that names a tensor twice, which JSON allows."""
    entries, values = header(path)
    raw = json.dumps(entries).encode()
    raw = raw[:-1] + b', "pre_bias": ' + json.dumps(entries["pre_bias"]).encode() + b"}"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + values)


def bytes_of(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A file whose bytes were changed."""

    def make(path: Path) -> None:
        sound(path)
        path.write_bytes(change(path.read_bytes()))

    return make


def state_dict_file(**entries: Any) -> Callable[[Path], str]:
    """A file as the reference implementation writes them, with *entries* in the place of others."""

    def make(path: Path) -> str:
        return checkpoints.write_state_dict(path.with_suffix(".pt"), state_dict() | entries).name

    return make


def state_dict_file_of_text(path: Path) -> str:
    path.with_suffix(".pt").write_text("no archive")
    return f"{path.stem}.pt"


def state_dict_file_cut(path: Path) -> str:
    name = state_dict_file()(path)
    cut(path.with_name(name))
    return name


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def written_for_another_width(path: Path) -> None:
    checkpoints.write_autoencoder(path)


def flipped(raw: bytes, position: int) -> bytes:
    return raw[:position] + bytes([raw[position] ^ 0x40]) + raw[position + 1 :]


def filled(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """An encoder of which one weight is *value*."""
    tensor = state_dict()["encoder.weight"].to(dtype)
    tensor[0, 0] = value
    return tensor


def as_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else is put in the file's place."""

    def swap(path: Path) -> None:
        path.unlink()
        make(path)

    return swap


DENIED, LOST, MISSING, WRONG = Code.PERMISSION_DENIED, Code.DATA_LOSS, Code.NOT_FOUND, Code.INVALID_ARGUMENT
PATH, CORRUPT, CHANGED = Reason.PATH_NOT_ALLOWED, Reason.CHECKPOINT_CORRUPT, Reason.DIGEST_MISMATCH
ABSENT, FIELD = Reason.AUTOENCODER_NOT_FOUND, Reason.INVALID_FIELD
E, D = "encoder.weight", "decoder.weight"

CASES = [
    # Where it lies.
    Case("climbs-out", said("../secret.safetensors"), DENIED, PATH, "lies outside"),
    Case("climbs-out-below", said("sub/../../secret.safetensors"), DENIED, PATH, "lies outside"),
    Case("absolute", said(lambda path: str(path.parents[1] / "secret.safetensors")), DENIED, PATH, "lies outside"),
    Case("absolute-absent", said("/no/such/file.safetensors"), DENIED, PATH, "lies outside"),
    Case("proc", said("/proc/self/environ"), DENIED, PATH, "lies outside"),
    Case("url", said("https://example.org/a.safetensors"), DENIED, PATH, "is a URL"),
    Case("file-url", said("file:///etc/passwd"), DENIED, PATH, "is a URL"),
    Case("nul", said("a\0b.safetensors"), DENIED, PATH, "NUL"),
    Case("long", said("x" * 5000), WRONG, FIELD, "must take at most 4096 bytes, not 5000"),
    Case("long-name", said("x" * 4000), DENIED, PATH, "xxx"),
    Case("long-name", said("x" * 256 + ".safetensors"), DENIED, PATH, "name too long"),
    Case("absent", said("absent.safetensors"), MISSING, ABSENT, "there is no file"),
    Case("below-a-file", said(f"{SOUND}/a.safetensors"), MISSING, ABSENT, "there is no file"),
    Case("link-out", lambda p: p.symlink_to(p.parents[1] / "secret.safetensors"), DENIED, PATH, "lies outside"),
    Case("link-dangling", lambda p: p.symlink_to(p.with_name("gone")), MISSING, ABSENT, "there is no file"),
    Case("link-dangling-out", lambda p: p.symlink_to("/no/such/file"), DENIED, PATH, "lies outside"),
    Case("link-loop", lambda p: p.symlink_to(p), DENIED, PATH, "leads round in a circle"),
    # What it is.
    Case("folder", lambda p: p.mkdir(), DENIED, PATH, "but a folder"),
    Case("fifo", os.mkfifo, DENIED, PATH, "but a FIFO"),
    Case("socket", as_socket, DENIED, PATH, "but a socket"),
    Case("device", lambda p: p.symlink_to("/dev/zero"), DENIED, PATH, "lies outside"),
    Case("other-suffix", lambda p: str(sound(p).rename(p.with_suffix(".bin")).name), WRONG, FIELD, "must end in"),
    # What is in it.
    Case("empty", bytes_of(lambda _: b""), LOST, CORRUPT, "is truncated: 0 bytes"),
    Case(
        "10-GB-header", bytes_of(lambda b: (10**10).to_bytes(8, "little") + b[8:]), LOST, CORRUPT, "10000000000 bytes"
    ),
    Case("huge-header", bytes_of(lambda b: b"\xff" * 8 + b[8:]), LOST, CORRUPT, "claims a header"),
    Case(
        "long-header", bytes_of(lambda b: (10**6).to_bytes(8, "little") + b[8:]), LOST, CORRUPT, "longer than the file"
    ),
    Case("truncated", bytes_of(lambda b: b[:-1]), LOST, CORRUPT, "is truncated"),
    Case("truncated-in-header", bytes_of(lambda b: b[:40]), LOST, CORRUPT, "is truncated"),
    Case("longer", bytes_of(lambda b: b + b"\0"), LOST, CORRUPT, "behind its last tensor"),
    Case("bit-in-length", bytes_of(lambda b: flipped(b, 4)), LOST, CORRUPT, "claims a header"),
    Case("bit-in-header", bytes_of(lambda b: flipped(b, 8)), LOST, CORRUPT, "no sound JSON"),
    Case("deep-header", bytes_of(lambda _: (10**5).to_bytes(8, "little") + b"[" * 10**5), LOST, CORRUPT, "JSON"),
    Case("overlap", forged(lambda h: h[E].update(data_offsets=h[D]["data_offsets"])), LOST, CORRUPT, "an overlap"),
    Case("out-of-range", forged(lambda h: h[E].update(shape=[10**6, WIDTH])), LOST, CORRUPT, "needs 48000000 bytes"),
    Case("negative", forged(lambda h: h[E].update(data_offsets=[-480, 0])), LOST, CORRUPT, "an overlap"),
    Case("huge-shape", forged(lambda h: h[E].update(shape=[2**64, 2**64])), LOST, CORRUPT, "no sound shape"),
    Case("duplicate-key", duplicate, LOST, CORRUPT, "occurs twice"),
    Case("missing", written(**{"decoder.weight": None}), LOST, CORRUPT, "lacks the float tensor 'decoder.weight'"),
    Case("integers", written(**{E: torch.ones(10, WIDTH, dtype=torch.int32)}), LOST, CORRUPT, "lacks the float tensor"),
    Case("transposed", written(**{D: torch.ones(10, WIDTH)}), LOST, CORRUPT, "is a weight transposed?"),
    Case("vector", written(**{E: torch.ones(10)}), LOST, CORRUPT, "must have two axes"),
    Case("other-width", written_for_another_width, WRONG, FIELD, "reads 8 inputs"),
    Case("nan", written(**{E: filled(float("nan"))}), LOST, CORRUPT, "NaN or infinite"),
    Case("infinite", written(**{E: filled(float("inf"), torch.float16)}), LOST, CORRUPT, "NaN or infinite"),
    Case("too-large", written(**{E: filled(1e300, torch.float64)}), LOST, CORRUPT, "NaN or infinite"),
    Case("pt-cut", state_dict_file_cut, LOST, CORRUPT, "is truncated"),
    Case("pt-text", state_dict_file_of_text, LOST, CORRUPT, "is truncated"),
    Case("pt-pickle", state_dict_file(path=Path()), LOST, CORRUPT, "only running its pickle could make"),
    Case("pt-nan", state_dict_file(**{E: filled(float("nan"))}), LOST, CORRUPT, "NaN or infinite"),
    Case("pt-stride", state_dict_file(**{E: torch.ones(1).expand(10, 10**6)}), LOST, CORRUPT, "claims 40000000 bytes"),
    # What happens to it between the check and the load.
    Case("swapped", untouched, LOST, CHANGED, "changed since", replaced(sound)),
    Case("swapped-cut", untouched, LOST, CHANGED, "changed since", cut),
    Case("swapped-pt", state_dict_file(), LOST, CHANGED, "changed since", replaced(state_dict_file())),
    Case("swapped-gone", untouched, LOST, CORRUPT, "No such file", lambda p: p.unlink()),
    Case("swapped-fifo", untouched, LOST, CORRUPT, "not a regular", replaced(os.mkfifo)),
    Case("swapped-folder", untouched, LOST, CORRUPT, "not a regular", replaced(Path.mkdir)),
    Case(
        "swapped-link",
        untouched,
        LOST,
        CHANGED,
        "changed since",
        replaced(lambda p: p.symlink_to(p.parents[1] / "secret.safetensors")),
    ),
]


class Swapping(FileLoader):
    """Loads from files, once somebody has done to them what a case says."""

    def __init__(self) -> None:
        super().__init__(allow_failed_checks=True)
        self.swaps: dict[str, Callable[[Path], None]] = {}

    def load_autoencoders(
        self, entry: AutoencoderEntry, model: ModelContext, on_progress: Callable[[int], None]
    ) -> AutoencoderContext:
        path = next(iter(entry.by_layer.values())).path
        if path.name in self.swaps:
            self.swaps[path.name](path)
        return super().load_autoencoders(entry, model, on_progress)


@dataclass
class Rig:
    """A server that honours paths below *root*, and what it holds."""

    root: Path
    loader: Swapping
    cache: ContextCache
    channel: grpc.aio.Channel

    async def derive(self, *paths: str, model: str = "a") -> AssembledAnswer:
        stub: Any = DerivedScalarServiceStub(self.channel)
        named = [config_pb2.AutoencoderPath(layer_index=i, path=path) for i, path in enumerate(paths)]
        config = config_pb2.DstConfig(
            autoencoder_config=config_pb2.AutoencoderConfig(
                dst=T.DERIVED_SCALAR_TYPE_MLP_POST_ACT, autoencoder_path_by_layer_index=named
            )
        )
        request = inference_pb2.DeriveRequest(
            model=model,
            prompt=inference_pb2.Prompt(text="Mary gave"),
            config=config if paths else None,
            derived_scalars=[
                inference_pb2.DerivedScalarSpec(
                    dst=T.DERIVED_SCALAR_TYPE_MLP_AUTOENCODER_LATENT if paths else T.DERIVED_SCALAR_TYPE_MLP_POST_ACT
                )
            ],
        )
        responses = stub.Derive(request, timeout=CALL_SECONDS)
        return assemble([frame async for response in responses for frame in response.frames])

    def held(self) -> tuple[list[str], list[str], int]:
        """Contexts in the cache, files that are open or mapped, and the number of threads that neither load nor plan.

        Those that load end with their work, a moment after its outcome is known; they are waited for. Those that plan
        stay, and are started as they are needed.
        """
        gc.collect()
        for thread in threading.enumerate():
            if thread.name.startswith("dst-load"):
                thread.join(CALL_SECONDS)
                assert not thread.is_alive()
        contexts = [f"{status.handle} {status.state}" for status in self.cache.statuses()]
        files = []
        for link in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                files.append(str(link.readlink()))
        opened = sorted(file for file in files if file.startswith("/") and not file.startswith("/proc"))
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(self.root) in line]
        others = [thread for thread in threading.enumerate() if not thread.name.startswith("dst-plan")]
        return contexts, opened + mapped, len(others)


def with_a_vocabulary_too_large(folder: Path) -> Path:
    """A model whose tokenizer knows more tokens than it embeds."""
    checkpoints.write_model(folder)
    tokenizer = json.loads(checkpoints.tokenizer_json())
    tokenizer["model"]["vocab"] |= {f"<{i}>": 300 + i for i in range(50)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"a": checkpoints.write_model(folder / "a"), "b": with_a_vocabulary_too_large(folder / "b")}


@pytest.fixture
async def rig(tmp_path: Path, models: dict[str, Path]) -> AsyncIterator[Rig]:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    sound(tmp_path / "secret.safetensors")
    sound(root / SOUND)
    registry = Registry.build(models=models, autoencoder_roots=[root], device="cpu", include_embedded=False)
    loader = Swapping()
    cache = ContextCache(registry, loader=loader)
    parts = Parts.of(Pipeline(cache), cache, lambda: registry)
    async with (
        running_server(Settings(port=0), parts) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield Rig(root, loader, cache, channel)


async def test_whatever_a_path_leads_to_is_refused_for_what_it_is_and_leaves_nothing(rig: Rig) -> None:
    answer = await rig.derive(SOUND)
    before = rig.held()
    assert len(before[0]) == 2
    for case in CASES:
        path = rig.root / f"{case.name}.safetensors"
        text = case.make(path)
        if case.swap is not None:
            rig.loader.swaps[text or path.name] = case.swap
        for _ in range(1 if case.swap else 2):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await rig.derive(path.name if text is None else text)
            error = error_of(caught.value)
            found = (caught.value.code(), error.reason, error.message)
            assert found[:2] == (case.code, case.reason), (case.name, found)
            assert case.words in error.message, (case.name, found)
            assert str(rig.root.parent) not in error.message.replace(text or "", ""), case.name
        # The server answers the next request, with what was loaded before.
        again = await rig.derive(SOUND)
        assert again.trailer.provenance == answer.trailer.provenance, case.name
    assert rig.held() == before


async def test_every_path_of_a_config_is_looked_at(rig: Rig) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.derive(SOUND, "../secret.safetensors")
    assert error_of(caught.value).reason is Reason.PATH_NOT_ALLOWED


async def test_any_bit_of_a_header_may_be_wrong(rig: Rig) -> None:
    """A flipped bit is an error that names the file, or harmless; never a fault of the server."""
    raw = (rig.root / SOUND).read_bytes()
    length = 8 + int.from_bytes(raw[:8], "little")
    for position in range(0, length, 7):
        (rig.root / "bits.safetensors").write_bytes(flipped(raw, position))
        try:
            await rig.derive("bits.safetensors")
        except grpc.aio.AioRpcError as error:
            assert error.code() in {LOST, WRONG}, (position, error)  # noqa: PT017  it may raise or not


async def test_a_tokenizer_that_knows_more_tokens_than_its_model_is_refused(rig: Rig) -> None:
    for paths in ((), (SOUND,)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.derive(*paths, model="b")
        error = error_of(caught.value)
        assert (caught.value.code(), error.reason) == (LOST, CORRUPT)
        assert "tokens, but the model embeds only 300" in error.message
    assert not rig.cache.statuses()
    assert (await rig.derive(SOUND)).trailer.provenance.autoencoder_digests


async def test_the_next_request_gets_the_file_that_is_there_by_then(rig: Rig) -> None:
    first = await rig.derive(SOUND)
    checkpoints.write_autoencoder(rig.root / "new", checkpoints.state_dict(WIDTH, seed=5))
    (rig.root / "new").replace(rig.root / SOUND)
    second = await rig.derive(SOUND)
    assert first.trailer.provenance.autoencoder_digests != second.trailer.provenance.autoencoder_digests


async def test_many_bad_paths_at_once_leave_nothing(rig: Rig) -> None:
    bytes_of(lambda raw: raw[:-1])(rig.root / "cut.safetensors")
    await rig.derive(SOUND)
    before = rig.held()
    outcomes = await asyncio.gather(
        *(rig.derive(path) for path in ["cut.safetensors", "../x", "absent.pt"] * 20), return_exceptions=True
    )
    codes = [outcome.code() for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert codes == [LOST, DENIED, MISSING] * 20
    assert rig.held() == before

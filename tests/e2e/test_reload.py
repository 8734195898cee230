"""Reloading the registry over a real socket, by RPC and by signal: all of it or nothing, and everybody follows."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import torch
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from dst_grpc.client import AsyncClient, ContextState, RegistryChange
from dst_grpc.errors import DataLoss, DstError, InvalidRequest, NotFound, Reason, Unavailable
from dst_grpc.rpc.parts import StartupError
from dst_grpc.rpc.server import Server, running_server
from dst_grpc.rpc.settings import Settings
from tests import checkpoints
from tests.e2e.conftest import CALL_SECONDS, READY, process_of, rigged
from tests.e2e.scripts import half_until
from tests.fake_parts import FakeRegistry, context_status

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    """Models `a` and `b`, the former with autoencoders, and a registry of `a` alone."""
    checkpoints.write_autoencoders(checkpoints.write_model(tmp_path / "a") / "autoencoders")
    checkpoints.write_model(tmp_path / "b", tensors=checkpoints.weights(seed=1))
    register(tmp_path, a="a")
    return tmp_path


def register(folder: Path, extra: str = "", /, **models: str) -> None:
    """Write a registry of *models*: a folder by each name."""
    lines = [f'[models.{name}]\nsource = {{ folder = "{where}" }}\n' for name, where in models.items()]
    (folder / "registry.toml").write_text("".join(lines) + extra)


@asynccontextmanager
async def serving(folder: Path, **settings: Any) -> AsyncGenerator[tuple[Server, AsyncClient, grpc.aio.Channel], None]:
    usual: dict[str, Any] = {"port": 0, "device": "cpu", "registry": folder / "registry.toml"}
    async with (
        running_server(Settings(**usual | settings)) as server,
        AsyncClient(server.address) as client,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield server, client, channel


async def statuses(channel: grpc.aio.Channel) -> dict[str, int]:
    """Health of every model."""
    stub: Any = HealthStub(channel)
    names = ("model/a", "model/b")
    found = {}
    for name in names:
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=CALL_SECONDS)
        found[name] = (await watch.read()).status
        watch.cancel()
    return found


async def test_models_come_and_go(folder: Path) -> None:
    async with serving(folder) as (_, client, channel):
        before = await client.derive("Mary", "logits", model="a")
        assert await statuses(channel) == {"model/a": SERVING, "model/b": SERVICE_UNKNOWN}
        register(folder, b="b")
        sets = ("a/mlp_post_act", "a/resid_delta_attn", "a/resid_delta_mlp")
        assert await client.reload_registry() == RegistryChange(added=("b",), removed=("a", *sets))
        assert [model.name for model in await client.models()] == ["b"]
        with pytest.raises(NotFound) as caught:
            await client.derive("Mary", "logits", model="a")
        assert caught.value.reason is Reason.MODEL_NOT_FOUND
        with pytest.raises(NotFound):
            await client.tokenize("Mary", model="a")
        assert await statuses(channel) == {"model/a": SERVICE_UNKNOWN, "model/b": SERVING}
        after = await client.derive("Mary", "logits")
        assert after.model != before.model
        assert [status.handle.partition("@")[0] for status in await client.contexts()] == ["b"]


async def test_a_name_may_come_to_mean_another_model(folder: Path) -> None:
    async with serving(folder) as (_, client, channel):
        before = await client.derive("Mary", "logits")
        register(folder, a="b")
        change = await client.reload_registry()
        assert (change.added, change.changed) == ((), ("a",))
        after = await client.derive("Mary", "logits")
        assert after.model != before.model
        assert (await statuses(channel))["model/a"] == SERVING
        assert [status.handle for status in await client.contexts()] == [after.model]


async def test_a_changed_file_is_reloaded_without_being_told(folder: Path) -> None:
    async with serving(folder, watch_seconds=0.005) as (_, client, channel):
        stub: Any = HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="model/b"), timeout=CALL_SECONDS)
        assert (await watch.read()).status == SERVICE_UNKNOWN
        register(folder, a="a", b="b")
        while (await watch.read()).status != SERVING:
            pass
        assert [model.name for model in await client.models()] == ["a", "b"]
        watch.cancel()


async def test_what_did_not_change_stays_loaded(folder: Path) -> None:
    async with serving(folder) as (_, client, channel):
        (before,) = [await client.load_context("a")]
        register(folder, a="a", b="b")
        assert (await client.reload_registry()).added == ("b",)
        assert [status.handle for status in await client.contexts()] == [before.handle]
        assert await statuses(channel) == {"model/a": SERVING, "model/b": SERVING}
        assert await client.reload_registry() == RegistryChange()


async def test_a_wrong_file_changes_nothing(folder: Path) -> None:
    async with serving(folder) as (_, client, _channel):
        expected = await client.models()
        register(folder, 'device = "gpu"\nautoencoders.x.layers = "all"\n', a="a", b="b")
        with pytest.raises(InvalidRequest) as caught:
            await client.reload_registry()
        assert {violation.field for violation in caught.value.violations} == {
            "models.b.device", "models.b.autoencoders.x.layers",
        }  # fmt: skip
        register(folder, a="a", b="none")
        with pytest.raises(InvalidRequest, match=r"models\.b\.source: there is no folder"):
            await client.reload_registry()
        register(folder, 'digests = { "model.safetensors" = "' + "0" * 64 + '" }\n', a="a", b="b")
        with pytest.raises(DataLoss, match=r"b: model\.safetensors") as mismatch:
            await client.reload_registry()
        assert mismatch.value.reason is Reason.DIGEST_MISMATCH
        register(folder, a="a", b="b")
        (folder / "b" / "config.json").write_text("{")
        with pytest.raises(DataLoss, match=r"b: config\.json"):
            await client.reload_registry()
        assert await client.models() == expected


async def test_what_is_new_and_to_be_preloaded_is(folder: Path) -> None:
    register(folder, "preload = true\n", a="a")
    async with serving(folder) as (_, client, channel):
        assert await statuses(channel) == {"model/a": SERVING, "model/b": SERVICE_UNKNOWN}
        stub: Any = HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="model/b"), timeout=CALL_SECONDS)
        assert (await watch.read()).status == SERVICE_UNKNOWN
        register(folder, "preload = true\n", a="a", b="b")
        await client.reload_registry()
        while (await watch.read()).status != SERVING:
            pass
        watch.cancel()


async def test_without_a_file_folders_are_read_again(folder: Path) -> None:
    async with serving(folder, registry=None, models={"m": folder / "b"}) as (_, client, _channel):
        before = await client.model("m")
        checkpoints.write_model(folder / "b", tensors=checkpoints.weights(seed=2))
        assert await client.reload_registry() == RegistryChange(changed=("m",))
        assert (await client.model("m")).digest != before.digest
        assert "embedded" in {model.name for model in await client.models()}


async def test_a_call_in_progress_goes_on() -> None:
    async with rigged() as rig, AsyncClient(rig.server.address) as client:
        gate = asyncio.Event()
        rig.parts.pipeline.scripts["x"] = half_until(gate)
        call = asyncio.create_task(client.derive("ab", "logits", request_id="x"))
        while rig.parts.pipeline.started != ["x"]:
            await client.models()
        rig.parts.next_registry = FakeRegistry(2)
        assert (await client.reload_registry()).added == ("model-000",)
        gate.set()
        assert (await call).request_id == "x"


async def test_health_follows_the_new_registry_and_not_late_news_of_the_old() -> None:
    async with rigged() as rig, AsyncClient(rig.server.address) as client:
        rig.parts.next_registry = FakeRegistry(2)
        await client.reload_registry()
        rig.parts.cache.tell(context_status("model-000@0123456789ab:float32:cpu"))
        rig.parts.cache.tell(context_status("gone@0123456789ab:float32:cpu"))
        rig.parts.cache.tell(context_status("tiny@0123456789ab:float32:cpu"))
        stub: Any = HealthStub(rig.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="model/tiny"), timeout=CALL_SECONDS)
        while (await watch.read()).status != SERVING:
            pass
        assert await client.health("model/model-000") == "serving"
        with pytest.raises(NotFound):
            await client.health("model/gone")


async def test_an_error_of_the_build_is_the_callers() -> None:
    async with rigged() as rig, AsyncClient(rig.server.address) as client:
        rig.parts.next_registry = Unavailable("not now", reason=Reason.LOAD_FAILED)
        with pytest.raises(Unavailable, match="not now"):
            await client.reload_registry()


def test_a_strict_server_does_not_start_with_what_it_cannot_serve(folder: Path) -> None:
    async def start() -> None:
        async with serving(folder, strict=True):
            raise AssertionError

    register(folder, 'device = "gpu"\n', b="b")
    with pytest.raises(StartupError, match=r"the models cannot be served:\n  models\.b\.device: must be"):
        asyncio.run(start())
    register(folder, '[models.far]\nsource = { hub = "org/tiny", revision = "main" }\n', a="a")
    with pytest.raises(StartupError) as caught:
        asyncio.run(start())
    command = f"dst-grpc pull --registry {folder / 'registry.toml'} far"
    assert f"models.far.source: org/tiny at main is not pulled; run: {command}" in str(caught.value)
    (folder / "a" / "config.json").write_text("{")
    register(folder, a="a")
    with pytest.raises(StartupError, match=r"a: config\.json: is no sound JSON"):
        asyncio.run(start())


async def test_a_server_serves_what_it_can_and_tells_of_the_rest(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "b" / "config.json").write_text("{")
    register(folder, a="a", b="b")
    async with serving(folder) as (_, client, channel):
        assert (await client.derive("ab", "logits", model="a")).model.startswith("a@")
        with pytest.raises(DataLoss, match=r"'b' cannot be served: config\.json: is no sound JSON"):
            await client.derive("ab", "logits", model="b")
        assert "cannot be served: b: config.json: is no sound JSON" in caplog.text
        assert await statuses(channel) == {"model/a": SERVING, "model/b": NOT_SERVING}
        checkpoints.write_model(folder / "c")
        register(folder, a="a", b="b", c="c")
        assert (await client.reload_registry()).added == ("c",), "what failed before keeps nothing from being served"
        (folder / "a" / "tokenizer.json").unlink()
        with pytest.raises(DataLoss, match=r"a: tokenizer\.json: "):
            await client.reload_registry()
        assert (await client.derive("ab", "logits", model="a")).model.startswith("a@")
        checkpoints.write_model(folder / "a")
        checkpoints.write_model(folder / "b")
        assert (await client.reload_registry()).added == ("b",)
        assert await statuses(channel) == {"model/a": SERVING, "model/b": SERVING}


async def test_what_cannot_be_loaded_is_listed_with_the_reason(folder: Path) -> None:
    (folder / "b" / "config.json").write_text("{")
    autoencoder = folder / "a" / "autoencoders" / "resid_delta_mlp" / "1.safetensors"
    autoencoder.write_bytes(autoencoder.read_bytes()[:-9])
    register(folder, a="a", b="b")
    async with serving(folder) as (_, client, _channel):
        a, b = await client.models()
        assert (a.state, a.error, a.autoencoders) == (
            ContextState.NOT_LOADED, None, ("a/mlp_post_act", "a/resid_delta_attn")
        )  # fmt: skip
        assert (b.name, b.state, b.source, b.handle, b.element_type) == ("b", ContextState.FAILED, "folder", "", None)
        assert isinstance(b.error, DataLoss)
        assert (b.error.reason, b.error.metadata["file"]) == (Reason.CHECKPOINT_CORRUPT, "config.json")
        assert b.error.message.startswith("'b' cannot be served: config.json: is no sound JSON")
        assert str((await client.model("b")).error) == str(b.error)
        sets = {one.name: one for one in await client.autoencoders()}
        assert [name for name, one in sets.items() if one.error is not None] == ["a/resid_delta_mlp"]
        failed = sets["a/resid_delta_mlp"]
        assert (failed.state, failed.model, failed.dst, failed.node_type) == (ContextState.FAILED, "a", None, None)
        assert "'a/resid_delta_mlp' cannot be served: 1.safetensors: " in str(failed.error)
        assert [one.name for one in await client.autoencoders("a")] == [*sets]
        assert await client.autoencoders("b") == []
        with pytest.raises(DataLoss) as caught:
            await client.load_context("b")
        assert str(caught.value) == str(b.error)


async def test_no_error_tells_where_the_server_keeps_its_files(folder: Path) -> None:
    """Whatever is wrong, and whoever asks: files are named below their model's folder, folders by their last name."""
    (folder / "a" / "autoencoders" / "resid_delta_mlp" / "1.safetensors").write_bytes(b"cut short")
    (folder / "b" / "config.json").write_text("{")
    (folder / "c.gguf").write_bytes(b"GGUF")
    far = '[models.far]\nsource = { hub = "org/tiny", revision = "main" }\n'
    register(folder, far, a="a", b="b", c="c.gguf", gone="gone")
    async with serving(folder, hub_cache=folder / "hub") as (_, client, _channel):

        async def tell(what: str, call: Awaitable[object]) -> None:
            try:
                await call
            except DstError as error:
                told[what] = f"{error} {error.metadata} {getattr(error, 'violations', '')}"

        states = [(info.name, info.error) for info in await client.models()]
        states += [(info.name, info.error) for info in await client.autoencoders()]
        told = {f"state of {name}": f"{error} {error.metadata}" for name, error in states if error is not None}
        for name in ("b", "c", "gone", "far"):
            await tell(f"derive {name}", client.derive("ab", "logits", model=name))
            await tell(f"load {name}", client.load_context(name))
            await tell(f"tokenize {name}", client.tokenize("ab", model=name))
        register(folder, far.replace("far", "farther"), a="b", new="gone", other="c.gguf")
        await tell("reload", client.reload_registry())
        register(folder, 'nonsense = "', a="a")
        await tell("reload of no TOML", client.reload_registry())
        (folder / "registry.toml").unlink()
        await tell("reload of no file", client.reload_registry())
    assert len(told) == 5 + 4 * 3 + 3
    assert not {what: text for what, text in told.items() if str(folder) in text}
    assert "there is no folder 'gone'" in told["derive gone"]
    assert "'c.gguf' is a file and no folder: make one of it with dst-grpc convert" in told["load c"]
    assert "org/tiny at main is not pulled" in told["tokenize far"]


async def test_a_load_that_fails_is_told_with_the_model(folder: Path) -> None:
    tensors = checkpoints.weights() | {"transformer.h.1.ln_1.bias": torch.full((checkpoints.WIDTH,), torch.nan)}
    checkpoints.write_model(folder / "b", tensors=tensors)
    register(folder, b="b")
    async with serving(folder, preload=("b",)) as (_, client, channel):
        model = await client.model("b")
        assert (model.state, model.dimensions.n_layers) == (ContextState.FAILED, checkpoints.LAYERS)
        assert "tensor 'transformer.h.1.ln_1.bias' has values that are NaN or infinite" in str(model.error)
        assert (await statuses(channel))["model/b"] == NOT_SERVING


async def test_a_hangup_reloads_and_a_wrong_file_is_logged(folder: Path) -> None:
    command = ("-m", "dst_grpc.cli", "serve", "--port", "0", "--registry", str(folder / "registry.toml"))
    async with process_of(*command) as (process, logged):
        found = READY.search(await logged("listening on"))
        assert found is not None
        async with AsyncClient(found[1]) as client:
            register(folder, a="a", b="b")
            process.send_signal(signal.SIGHUP)
            assert "added=b" in await logged(" reloaded ")
            assert [model.name for model in await client.models()] == ["a", "b"]
            register(folder, 'colour = "red"\n', a="a")
            process.send_signal(signal.SIGHUP)
            assert "models.a.colour: there is no such key" in await logged("nothing reloaded")
            assert [model.name for model in await client.models()] == ["a", "b"]

"""Large messages of many kinds: each is answered or refused, and nobody else waits meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import Message

from dst_grpc._gen.dst.v1 import catalog_service_pb2, explain_pb2, inference_pb2
from tests.load.common import DERIVE, EXPLAIN, TOP_K, Findings, Target, call, health_checked, simple

_CATALOG = "/dst.v1.CatalogService/"
_SECONDS = 15.0
_STALL = 0.05


async def attack(target: Target, found: Findings) -> None:
    """Send one after the other."""
    async with target.channel() as channel:
        await call(channel, DERIVE, simple().SerializeToString())
        for name, method, message in _messages():
            data = message.SerializeToString()
            before = target.memory_mib
            async with health_checked(target) as waits:
                outcome = await call(channel, method, data, within=_SECONDS)
            stall = max(waits, default=0.0)
            measured = (
                f"{outcome.code} {outcome.seconds:.2f} s, stall {stall:.3f} s, {target.memory_mib - before:+d} MiB"
            )
            is_right = stall <= _STALL and outcome.code in {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
            found.say(f"{name}, {len(data) / 1e6:.1f} MB", measured, f"an answer, stall <= {_STALL} s", is_right)


def _messages() -> Iterator[tuple[str, str, Message]]:
    """Name, method, and what to send."""
    for name, request in _derivations():
        yield name, DERIVE, request
    yield "TopK of 64 runs x 256 tokens", TOP_K, _top_k_of_runs()
    yield "TopK of 1e6 empty runs", TOP_K, explain_pb2.TopKRequest(runs=[inference_pb2.DeriveRequest()] * 1_000_000)
    group = explain_pb2.TopKGroup(group_id="g", dsts=[1] * 2_000_000)  # type: ignore[list-item]  # a number is one
    yield "TopK of a group of 2e6 types", TOP_K, explain_pb2.TopKRequest(runs=[simple()], groups=[group])
    groups = [explain_pb2.TopKGroup()] * 1_000_000
    yield "TopK of 1e6 empty groups", TOP_K, explain_pb2.TopKRequest(runs=[simple()], groups=groups)
    run = explain_pb2.ExplainRun(prompt=inference_pb2.Prompt(text="a"))
    parts = [1] * 3_000_000
    yield "Explain of 3e6 parts", EXPLAIN, explain_pb2.ExplainRequest(runs=[run], parts=parts)  # type: ignore[arg-type]  # likewise
    ablated = explain_pb2.ExplainRun(
        prompt=inference_pb2.Prompt(text="a"), node_ablations=[explain_pb2.NodeAblation()] * 700_000
    )
    yield "Explain of 7e5 empty node ablations", EXPLAIN, explain_pb2.ExplainRequest(runs=[ablated])
    words, letters = "ab " * 1_300_000, "a" * 4_000_000
    yield "Tokenize of 1.3e6 words", f"{_CATALOG}Tokenize", catalog_service_pb2.TokenizeRequest(text=words)
    yield "Tokenize of 4e6 letters", f"{_CATALOG}Tokenize", catalog_service_pb2.TokenizeRequest(text=letters)
    for name, token in (("valid", 5), ("bad", 1 << 30)):
        tokens = catalog_service_pb2.DetokenizeRequest(token_ids=[token] * 800_000)
        yield f"Detokenize of 8e5 {name} tokens", f"{_CATALOG}Detokenize", tokens
    yield "GetModel of a long name", f"{_CATALOG}GetModel", catalog_service_pb2.GetModelRequest(name=letters)
    yield (
        "ListModels from a long token",
        f"{_CATALOG}ListModels",
        catalog_service_pb2.ListModelsRequest(page_token=letters),
    )


def _derivations() -> Iterator[tuple[str, inference_pb2.DeriveRequest]]:
    """Requests of Derive, each with one thing of which there is too much."""
    for name, layers in (("different", range(1_000_000)), ("equal", [1] * 1_000_000)):
        request = simple()
        request.config.layer_indices.layer_indices.extend(layers)
        yield f"1e6 {name} layers", request
    for name, token, count in (("valid", 5, 4_000_000), ("bad", 1 << 30, 600_000)):
        request = simple()
        request.prompt.token_ids.token_ids.extend([token] * count)
        yield f"{count:.0e} {name} tokens", request
    texts = {
        "letters": "a" * 4_000_000,
        "spaces": " " * 4_000_000,
        "words": "ab " * 1_300_000,
        "signs": "\u4e00" * 1_300_000,
    }
    for name, text in texts.items():
        yield f"4 MB of {name}", simple(text)
    yield "7e5 empty ablations", simple(ablation_specs=[{}] * 700_000)
    yield "7e5 empty interventions", simple(interventions=[{}] * 700_000)
    yield "3e5 equal autoencoders", simple(autoencoders=["embedded"] * 300_000)
    yield "2e5 unknown autoencoders", simple(autoencoders=[f"embedded/x{i}" for i in range(200_000)])
    yield "6e5 empty derived scalars", simple(derived_scalars=[{}] * 600_000)
    yield "6e5 derived scalars", simple(types=["MLP_POST_ACT"] * 600_000)
    yield "2000 derived scalars of little", simple(types=["ALWAYS_ONE"] * 2000)
    request = simple()
    request.loss_fn_config.target_tokens.extend(["zz zz"] * 300_000)
    yield "3e5 bad target tokens", request
    request = simple()
    request.loss_fn_config.target_token_ids.extend([5] * 3_000_000)
    yield "3e6 target tokens", request
    request = simple()
    index = request.ablation_specs.add().index
    for _ in range(1_000_000):
        index.tensor_indices.add()
    yield "1e6 empty indices", request
    request = simple()
    for i in range(200_000):
        request.config.autoencoder_config.autoencoder_path_by_layer_index.add(layer_index=i, path="../x")
    yield "2e5 paths", request
    request = simple()
    request.config.multi_autoencoder_context.autoencoder_contexts.extend(["embedded/mlp_post_act"] * 150_000)
    yield "1.5e5 contexts", request
    yield "an id of 4 MB", simple(request_id="x" * 4_000_000)
    yield "a model of 4 MB", simple(model="x" * 4_000_000)
    yield "a handle of 4 MB", simple(model="embedded@" + "x:" * 2_000_000)


def _top_k_of_runs() -> explain_pb2.TopKRequest:
    """As many runs as may be, of 256 tokens each."""
    request = explain_pb2.TopKRequest()
    for _ in range(64):
        run = request.runs.add()
        run.prompt.token_ids.token_ids.extend([5] * 256)
        run.loss_fn_config.CopyFrom(simple().loss_fn_config)
    types = simple(types=["MLP_ACT_TIMES_GRAD"]).derived_scalars
    request.groups.add(group_id="g", dsts=[types[0].dst], k=9)
    return request

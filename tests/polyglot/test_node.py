"""The TypeScript client says what this file reads from the same server, with the generated stubs and numpy alone.

Neither side uses `dst_grpc.client` or `dst_grpc.wire`: what is compared is the protocol, read twice.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from dst_grpc._gen.dst.v1 import (
    catalog_service_pb2,
    catalog_service_pb2_grpc,
    component_pb2,
    config_pb2,
    derived_scalar_service_pb2_grpc,
    derived_scalar_type_pb2,
    inference_pb2,
    resolution_pb2,
    tensor_pb2,
    trace_pb2,
)

CLIENT = Path(__file__).resolve().parents[2] / "examples" / "clients" / "node"
PROMPT = "When Mary and John went to the store, John gave a drink to"
DIRECT_EFFECT = "UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD"
RELATIVE_TOLERANCE = 1e-6

Json = dict[str, Any]


@pytest.fixture(scope="module")
def report(address: str) -> Json:
    """What the client prints."""
    command = ["make", "--silent", "run", f"ADDRESS={address}"]
    done = subprocess.run(command, cwd=CLIENT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    printed: Json = json.loads(done.stdout)
    return printed


@pytest.fixture(scope="module")
def channel(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address) as channel:
        yield channel


@pytest.fixture(scope="module")
def catalog(channel: grpc.Channel) -> catalog_service_pb2_grpc.CatalogServiceStub:
    return catalog_service_pb2_grpc.CatalogServiceStub(channel)


@pytest.fixture(scope="module")
def scalars(channel: grpc.Channel) -> derived_scalar_service_pb2_grpc.DerivedScalarServiceStub:
    return derived_scalar_service_pb2_grpc.DerivedScalarServiceStub(channel)


class Received(NamedTuple):
    """An answer, its tensors as float64 arrays; of a sparse one the values alone."""

    header: inference_pb2.Header
    values: list[np.ndarray[Any, Any]]
    trailer: inference_pb2.Trailer


# ---- the same requests, and the same reading


def question(*specs: inference_pb2.DerivedScalarSpec, **fields: Any) -> inference_pb2.DeriveRequest:
    """A request about the prompt."""
    return inference_pb2.DeriveRequest(
        prompt=inference_pb2.Prompt(text=PROMPT),
        loss_fn_config=config_pb2.LossFnConfig(
            name=component_pb2.LOSS_FN_NAME_LOGIT_DIFF, target_tokens=[" Mary"], distractor_tokens=[" John"]
        ),
        derived_scalars=specs,
        **fields,
    )


def scalar(name: str, config: config_pb2.DstConfig | None = None) -> inference_pb2.DerivedScalarSpec:
    return inference_pb2.DerivedScalarSpec(dst=f"DERIVED_SCALAR_TYPE_{name}", config=config)


def type_name(number: derived_scalar_type_pb2.DerivedScalarType) -> str:
    return derived_scalar_type_pb2.DerivedScalarType.Name(number).removeprefix("DERIVED_SCALAR_TYPE_")


def layers(*indices: int) -> config_pb2.DstConfig:
    return config_pb2.DstConfig(layer_indices=config_pb2.LayerIndices(layer_indices=indices))


def requests_by_name(autoencoder: str) -> dict[str, inference_pb2.DeriveRequest]:
    """The client's requests, by their names in its report."""
    pattern = scalar("ATTN_QK_PROBS", config_pb2.DstConfig(derive_gradients=True))
    return {
        "direct_effects": question(scalar(DIRECT_EFFECT), scalar("ATTN_QK_LOGITS"), scalar("MLP_WRITE", layers(0))),
        "float16": question(pattern, element_type=tensor_pb2.TENSOR_ELEMENT_TYPE_FLOAT16),
        "bfloat16": question(pattern, element_type=tensor_pb2.TENSOR_ELEMENT_TYPE_BFLOAT16),
        "latents": question(
            scalar("ONLINE_AUTOENCODER_LATENT"),
            scalar("ONLINE_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD"),
            autoencoders=[autoencoder],
            encoding=tensor_pb2.TENSOR_ENCODING_SPARSE_LATENTS,
        ),
    }


def bad_requests() -> dict[str, inference_pb2.DeriveRequest]:
    """The client's wrong requests, by their names in its report."""
    unspecified = trace_pb2.TraceConfig()
    unspecified.node_index.layer_index = 0
    of_no_server = inference_pb2.DerivedScalarSpec.FromString(b"\x08\x8f\x4e")  # dst: 9999
    return {
        "layer_out_of_range": question(scalar("MLP_POST_ACT"), config=layers(0, 999)),
        "bad_enums": question(
            inference_pb2.DerivedScalarSpec(),
            of_no_server,
            config=config_pb2.DstConfig(trace_config=unspecified),
        ),
    }


def receive(
    scalars: derived_scalar_service_pb2_grpc.DerivedScalarServiceStub, request: inference_pb2.DeriveRequest
) -> Received:
    frames = [frame for response in scalars.Derive(request, timeout=60) for frame in response.frames]
    header, trailer = frames[0].header, frames[-1].trailer
    pieces: list[list[bytes]] = [[] for _ in header.tensors]
    for frame in frames[1:-1]:
        pieces[frame.chunk.tensor_id].append(frame.chunk.data)
    values = [decode(info, b"".join(data)) for info, data in zip(header.tensors, pieces, strict=True)]
    return Received(header, values, trailer)


def decode(info: inference_pb2.TensorInfo, data: bytes) -> np.ndarray[Any, Any]:
    assert len(data) == info.byte_length
    shape = tuple(axis.size for axis in info.axes)
    is_sparse = info.encoding == tensor_pb2.TENSOR_ENCODING_SPARSE_LATENTS
    count = info.nonzero_count if is_sparse else math.prod(shape)
    if info.element_type == tensor_pb2.TENSOR_ELEMENT_TYPE_BFLOAT16:
        values = (np.frombuffer(data, "<u2", count).astype(np.uint32) << 16).view(np.float32)
    else:
        is_half = info.element_type == tensor_pb2.TENSOR_ELEMENT_TYPE_FLOAT16
        values = np.frombuffer(data, "<f2" if is_half else "<f4", count)
    return values.astype(np.float64).reshape(count if is_sparse else shape)


def error_report(status: status_pb2.Status) -> Json:
    """An error as the client prints it."""
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad_request)
    violations = [{"field": v.field, "description": v.description} for v in bad_request.field_violations]
    return {
        "code": code_pb2.Code.Name(status.code),
        "message": status.message,
        "reason": info.reason,
        "domain": info.domain,
        "violations": violations,
    }


# ---- the comparisons


def test_health(report: Json) -> None:
    assert report["health"] == "SERVING"


def test_models(report: Json, catalog: catalog_service_pb2_grpc.CatalogServiceStub) -> None:
    models = catalog.ListModels(catalog_service_pb2.ListModelsRequest()).models
    assert [model["name"] for model in report["models"]] == [model.name for model in models]
    assert [model["is_default"] for model in report["models"]] == [model.is_default for model in models]
    for printed, model in zip(report["models"], models, strict=True):
        for field in ("n_layers", "n_heads", "d_model", "vocab_size"):
            assert printed[field] == getattr(model.dimensions, field)
        assert printed["parameter_bytes"] == model.parameter_bytes > 0


def test_autoencoders(report: Json, catalog: catalog_service_pb2_grpc.CatalogServiceStub) -> None:
    sets = catalog.ListAutoencoders(catalog_service_pb2.ListAutoencodersRequest()).autoencoders
    assert [(entry["name"], entry["layer_indices"], entry["n_latents"]) for entry in report["autoencoders"]] == [
        (entry.name, list(entry.layer_indices), entry.n_latents) for entry in sets
    ]


def test_pagination_reaches_every_type(report: Json) -> None:
    assert report["derived_scalar_types"]["count"] == len(derived_scalar_type_pb2.DerivedScalarType.keys()) - 1
    assert report["derived_scalar_types"]["first"][0]["name"] == "logits"


def test_tokens(report: Json, catalog: catalog_service_pb2_grpc.CatalogServiceStub) -> None:
    tokens = catalog.Tokenize(catalog_service_pb2.TokenizeRequest(text=PROMPT))
    assert report["prompt"]["token_ids"] == list(tokens.token_ids)
    assert report["prompt"]["token_strings"] == list(tokens.token_strings)
    assert "".join(report["prompt"]["token_strings"]) == PROMPT


def test_resolve_shows_its_stages(report: Json) -> None:
    assert report["resolve"]["stages"] in (["VALIDATED", "RESOLVED"], ["VALIDATED", "LOADING", "RESOLVED"])


def test_resolve(report: Json, scalars: derived_scalar_service_pb2_grpc.DerivedScalarServiceStub) -> None:
    request = requests_by_name(report["resolve"]["autoencoders"][0])["latents"]
    *_, last = scalars.Resolve(resolution_pb2.ResolveRequest(request=request, load=True), timeout=60)
    resolved = last.resolved
    assert report["resolve"]["device"] == resolved.device
    assert report["resolve"]["output_bytes"] == resolved.cost.output_bytes
    assert [
        (entry["dst"], entry["requires_grad"], entry["layer_indices"], [size for _, size in entry["axes"]])
        for entry in report["resolve"]["scalars"]
    ] == [
        (
            type_name(entry.dst),
            entry.requires_grad,
            list(entry.layer_indices),
            [axis.size for axis in entry.axes],
        )
        for entry in resolved.scalars
    ]


def test_a_bad_item_of_a_stream_fails_alone(report: Json) -> None:
    answers = report["resolve_stream"]
    assert answers.keys() == {"direct-effects", "layer-out-of-range", "latents"}
    assert "scalars" in answers["direct-effects"]
    assert "scalars" in answers["latents"]
    found, alone = answers["layer-out-of-range"]["error"], report["errors"]["layer_out_of_range"]
    assert (found["code"], found["reason"]) == (alone["code"], alone["reason"])
    # A path begins at the message that was sent: a ResolveRequest holds the DeriveRequest.
    below = [{**violation, "field": f"request.{violation['field']}"} for violation in alone["violations"]]
    assert found["violations"] == below


@pytest.mark.parametrize("name", ["direct_effects", "float16", "bfloat16", "latents"])
def test_tensors(name: str, report: Json, scalars: derived_scalar_service_pb2_grpc.DerivedScalarServiceStub) -> None:
    request = requests_by_name(report["resolve"]["autoencoders"][0])[name]
    header, values, trailer = receive(scalars, request)
    printed = report["derive"][name]
    assert printed["model"] == header.model
    assert math.isclose(printed["loss"], header.loss, rel_tol=RELATIVE_TOLERANCE)
    assert printed["byte_count"] == trailer.byte_count
    assert [tensor["checksum"] for tensor in printed["tensors"]] == list(trailer.checksums)
    for tensor, info, array in zip(printed["tensors"], header.tensors, values, strict=True):
        assert tensor["dst"] == type_name(info.dst)
        assert f"PASS_TYPE_{tensor['pass_type']}" == component_pb2.PassType.Name(info.pass_type)
        assert tensor["layer_index"] == (info.layer_index if info.HasField("layer_index") else None)
        assert [size for _, size in tensor["axes"]] == [axis.size for axis in info.axes]
        assert tensor["nonzero_count"] == (info.nonzero_count if info.HasField("nonzero_count") else None)
        assert tensor["minus_infinities"] == np.isneginf(array).sum()
        finite = array[np.isfinite(array)]
        assert abs(tensor["sum"] - finite.sum()) <= RELATIVE_TOLERANCE * np.abs(finite).sum()


def test_what_the_tour_covers(report: Json) -> None:
    derived = report["derive"]
    tensors = {name: answer["tensors"] for name, answer in derived.items()}
    assert any(tensor["minus_infinities"] for tensor in tensors["direct_effects"])
    assert {tensor["element_type"] for tensor in tensors["float16"]} == {"FLOAT16"}
    assert {tensor["element_type"] for tensor in tensors["bfloat16"]} == {"BFLOAT16"}
    assert {tensor["pass_type"] for tensor in tensors["bfloat16"]} == {"FORWARD", "BACKWARD"}
    assert {tensor["encoding"] for tensor in tensors["latents"]} == {"SPARSE_LATENTS"}
    assert derived["direct_effects"]["byte_count"] > 1 << 20, "no tensor needs several chunks"


def test_top_head(report: Json, scalars: derived_scalar_service_pb2_grpc.DerivedScalarServiceStub) -> None:
    header, values, _ = receive(scalars, question(scalar(DIRECT_EFFECT)))
    by_layer = {info.layer_index: array for info, array in zip(header.tensors, values, strict=True)}
    effects = {
        (layer, head): array[:, :, head].sum() for layer, array in by_layer.items() for head in range(array.shape[2])
    }
    layer, head = max(effects, key=lambda position: effects[position])
    top = report["top_head"]
    assert (top["layer"], top["head"]) == (layer, head)
    assert math.isclose(top["direct_effect"], effects[layer, head], rel_tol=RELATIVE_TOLERANCE)
    key = int(by_layer[layer][:, :, head].sum(axis=0).argmax())
    assert top["attends_to"] == header.token_strings[key]


@pytest.mark.parametrize("name", ["layer_out_of_range", "bad_enums"])
def test_errors(name: str, report: Json, scalars: derived_scalar_service_pb2_grpc.DerivedScalarServiceStub) -> None:
    call = scalars.Derive(bad_requests()[name], timeout=60)
    with pytest.raises(grpc.RpcError):
        list(call)
    status = rpc_status.from_call(call)
    assert status is not None
    assert report["errors"][name] == error_report(status)
    assert report["errors"][name]["code"] == "INVALID_ARGUMENT"
    assert report["errors"][name]["domain"] == "dst.v1"


def test_errors_name_their_fields(report: Json) -> None:
    def fields(name: str) -> list[str]:
        return [violation["field"] for violation in report["errors"][name]["violations"]]

    assert fields("layer_out_of_range")
    assert all(field.startswith("config.layer_indices") for field in fields("layer_out_of_range"))
    assert {
        "derived_scalars[0].dst",
        "derived_scalars[1].dst",
        "config.trace_config.node_index.node_type",
        "config.trace_config.pre_or_post_act",
    } <= set(fields("bad_enums"))

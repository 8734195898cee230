"""The real path over a real socket: the embedded model, from a request's bytes to numbers."""

from __future__ import annotations

import math
from typing import Any, cast

import grpc
import grpc.aio
import numpy as np
import pytest

from dst_grpc._gen.dst.v1 import (
    catalog_service_pb2,
    component_pb2,
    config_pb2,
    context_pb2,
    context_service_pb2,
    derived_scalar_type_pb2,
    index_pb2,
    inference_pb2,
    resolution_pb2,
    trace_pb2,
)
from dst_grpc._gen.dst.v1.catalog_service_pb2_grpc import CatalogServiceStub
from dst_grpc._gen.dst.v1.context_service_pb2_grpc import ContextServiceStub
from dst_grpc._gen.dst.v1.derived_scalar_service_pb2_grpc import DerivedScalarServiceStub
from dst_grpc.domain.results import AssembledAnswer
from dst_grpc.errors import DstError, InvalidRequest, NotFound, PreconditionFailed, Reason
from dst_grpc.wire.assembly import assemble
from dst_grpc.wire.errors import error_from_status
from tests.e2e.conftest import CALL_SECONDS, error_of

SENTENCE = "When Mary and John went to the store, John gave a drink to"
T = derived_scalar_type_pb2.DerivedScalarType
LOSS = config_pb2.LossFnConfig(
    name=component_pb2.LOSS_FN_NAME_LOGIT_DIFF, target_tokens=[" Mary"], distractor_tokens=[" John"]
)


def request(*types: int, loss: bool = False, text: str = SENTENCE, **fields: Any) -> inference_pb2.DeriveRequest:
    if loss:
        fields["loss_fn_config"] = LOSS
    return inference_pb2.DeriveRequest(
        prompt=inference_pb2.Prompt(text=text),
        derived_scalars=[inference_pb2.DerivedScalarSpec(dst=cast("Any", dst)) for dst in types],
        **fields,
    )


async def derive(channel: grpc.aio.Channel, message: inference_pb2.DeriveRequest) -> AssembledAnswer:
    stub: Any = DerivedScalarServiceStub(channel)
    responses = stub.Derive(message, timeout=CALL_SECONDS)
    return assemble([frame async for response in responses for frame in response.frames])


async def refusal(channel: grpc.aio.Channel, message: inference_pb2.DeriveRequest) -> tuple[grpc.StatusCode, DstError]:
    """Code and error of a request that must be refused, by Derive and by Resolve alike."""
    stub: Any = DerivedScalarServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as derived:
        await derive(channel, message)
    with pytest.raises(grpc.aio.AioRpcError) as resolved:
        _ = [r async for r in stub.Resolve(resolution_pb2.ResolveRequest(request=message), timeout=CALL_SECONDS)]
    assert resolved.value.code() is derived.value.code()
    error, of_resolve = error_of(derived.value), error_of(resolved.value)
    assert of_resolve.reason is error.reason
    if isinstance(error, InvalidRequest | PreconditionFailed):
        assert fields_of(of_resolve) == [violation.under("request").field for violation in error.violations]
    return derived.value.code(), error


def fields_of(error: DstError) -> list[str]:
    assert isinstance(error, InvalidRequest | PreconditionFailed)
    return [violation.field for violation in error.violations]


async def test_the_catalogue_offers_the_embedded_model_and_every_type(embedded: grpc.aio.Channel) -> None:
    stub: Any = CatalogServiceStub(embedded)
    models = (await stub.ListModels(catalog_service_pb2.ListModelsRequest(), timeout=CALL_SECONDS)).models
    assert [model.name for model in models if model.default_model] == ["embedded"]
    answer = await stub.GetModel(catalog_service_pb2.GetModelRequest(), timeout=CALL_SECONDS)
    sets = await stub.ListAutoencoders(
        catalog_service_pb2.ListAutoencodersRequest(model="embedded"), timeout=CALL_SECONDS
    )
    assert sorted(answer.model.autoencoders) == sorted(info.name for info in sets.autoencoders)
    types = await stub.ListDerivedScalarTypes(
        catalog_service_pb2.ListDerivedScalarTypesRequest(page_size=1000), timeout=CALL_SECONDS
    )
    assert sorted(info.dst for info in types.types) == sorted(number for number in T.values() if number)


async def test_tokens_go_there_and_back(embedded: grpc.aio.Channel) -> None:
    stub: Any = CatalogServiceStub(embedded)
    call = stub.Tokenize(catalog_service_pb2.TokenizeRequest(text=SENTENCE), timeout=CALL_SECONDS)
    (tokens,) = [answer async for answer in call]
    assert "".join(tokens.token_strings) == SENTENCE
    request = catalog_service_pb2.DetokenizeRequest(token_ids=tokens.token_ids)
    assert [answer.text async for answer in stub.Detokenize(request, timeout=CALL_SECONDS)] == [SENTENCE]
    bad = stub.Detokenize(catalog_service_pb2.DetokenizeRequest(token_ids=[1 << 31]), timeout=CALL_SECONDS)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bad.read()
    assert fields_of(error_of(caught.value)) == ["token_ids[0]"]


async def test_the_model_knows_who_gets_the_drink(embedded: grpc.aio.Channel) -> None:
    answer = await derive(embedded, request(loss=True))
    assert answer.header.loss is not None
    assert answer.header.loss > 0
    assert "".join(answer.header.token_strings) == SENTENCE


async def test_forward_and_backward_types_come_with_the_axes_that_resolve_promised(embedded: grpc.aio.Channel) -> None:
    types = [T.DERIVED_SCALAR_TYPE_MLP_POST_ACT, T.DERIVED_SCALAR_TYPE_ATTN_WRITE_NORM]
    types += [T.DERIVED_SCALAR_TYPE_MLP_ACT_TIMES_GRAD, T.DERIVED_SCALAR_TYPE_MLP_WRITE_TO_FINAL_RESIDUAL_GRAD]
    message = request(*types, loss=True)
    answer = await derive(embedded, message)
    stub: Any = DerivedScalarServiceStub(embedded)
    call = stub.Resolve(resolution_pb2.ResolveRequest(request=message), timeout=CALL_SECONDS)
    resolved = [frame async for response in call for frame in response.frames][-1].resolved
    assert [scalar.dst for scalar in resolved.scalars] == types
    for i, scalar in enumerate(resolved.scalars):
        tensors = [tensor for tensor in answer.tensors if tensor.info.spec_index == i]
        assert [tensor.info.layer_index for tensor in tensors] == list(scalar.layer_indices)
        for tensor in tensors:
            assert tensor.values.shape == tuple(axis.size for axis in scalar.axes)
            assert np.isfinite(tensor.values).all()
        assert sum(tensor.info.byte_length for tensor in tensors) == scalar.output_bytes
    assert answer.trailer.provenance.model_digest == resolved.model.digest


async def test_a_trace_starts_from_one_neuron(embedded: grpc.aio.Channel) -> None:
    node = index_pb2.NodeIndex(
        node_type=component_pb2.NODE_TYPE_MLP_NEURON,
        tensor_indices=[index_pb2.TensorIndex(at=3), index_pb2.TensorIndex(at=7)],
        layer_index=2,
        pass_type=component_pb2.PASS_TYPE_FORWARD,
    )
    trace = trace_pb2.TraceConfig(node_index=node, pre_or_post_act=component_pb2.PRE_OR_POST_ACT_POST)
    message = request(T.DERIVED_SCALAR_TYPE_MLP_POST_ACT, trace_config=trace)
    answer = await derive(embedded, message)
    (layer,) = [tensor for tensor in answer.tensors if tensor.info.layer_index == 2]
    assert answer.header.activation_value is not None
    assert math.isclose(answer.header.activation_value, float(layer.values[3, 7]), rel_tol=1e-5, abs_tol=1e-6)


async def test_an_autoencoder_is_spliced_in_by_name(embedded: grpc.aio.Channel) -> None:
    message = request(T.DERIVED_SCALAR_TYPE_ONLINE_MLP_AUTOENCODER_LATENT, autoencoders=["embedded/mlp_post_act"])
    answer = await derive(embedded, message)
    assert len(answer.tensors) == 4
    assert all((tensor.values >= 0).all() for tensor in answer.tensors)


async def test_a_stream_of_mixed_prompts_answers_each_and_keeps_errors_apart(embedded: grpc.aio.Channel) -> None:
    texts = {f"p{i}": SENTENCE[: 5 + 5 * i] for i in range(10)}
    messages = [
        request(T.DERIVED_SCALAR_TYPE_MLP_POST_ACT, text=text, request_id=request_id)
        for request_id, text in texts.items()
    ]
    messages.insert(3, request(0, request_id="bad"))
    stub: Any = DerivedScalarServiceStub(embedded)
    items = iter([inference_pb2.DeriveStreamRequest(request=message) for message in messages])
    frames: dict[str, list[inference_pb2.DeriveFrame]] = {}
    async for response in stub.DeriveStream(items, timeout=CALL_SECONDS):
        frames.setdefault(response.request_id, []).extend(response.frames)
    error = error_from_status(frames.pop("bad")[-1].error)
    assert fields_of(error) == ["request.derived_scalars[0].dst"]
    for request_id, text in texts.items():
        alone = await derive(embedded, request(T.DERIVED_SCALAR_TYPE_MLP_POST_ACT, text=text))
        for tensor, other in zip(assemble(frames[request_id]).tensors, alone.tensors, strict=True):
            np.testing.assert_allclose(tensor.values, other.values, rtol=1e-4, atol=1e-5)


async def test_an_unknown_model_is_not_found_and_the_nearest_are_named(embedded: grpc.aio.Channel) -> None:
    code, error = await refusal(embedded, request(T.DERIVED_SCALAR_TYPE_MLP_POST_ACT, model="embeded"))
    assert code is grpc.StatusCode.NOT_FOUND
    assert isinstance(error, NotFound)
    assert error.reason is Reason.MODEL_NOT_FOUND
    assert error.nearest == ("embedded",)


async def test_an_unknown_autoencoder_is_not_found(embedded: grpc.aio.Channel) -> None:
    code, error = await refusal(
        embedded,
        request(T.DERIVED_SCALAR_TYPE_ONLINE_MLP_AUTOENCODER_LATENT, autoencoders=["embedded/mlp_post_acts"]),
    )
    assert code is grpc.StatusCode.NOT_FOUND
    assert isinstance(error, NotFound)
    assert error.reason is Reason.AUTOENCODER_NOT_FOUND
    assert "embedded/mlp_post_act" in error.nearest


async def test_an_enum_number_that_is_none_names_its_field(embedded: grpc.aio.Channel) -> None:
    code, error = await refusal(embedded, request(T.DERIVED_SCALAR_TYPE_MLP_POST_ACT, 9999))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields_of(error) == ["derived_scalars[1].dst"]
    assert "9999" in error.message


async def test_a_layer_beyond_the_model_names_its_field(embedded: grpc.aio.Channel) -> None:
    config = config_pb2.DstConfig(layer_indices=config_pb2.LayerIndices(layer_indices=[0, 99]))
    code, error = await refusal(embedded, request(T.DERIVED_SCALAR_TYPE_MLP_POST_ACT, config=config))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert any("layer_indices" in field for field in fields_of(error))
    assert "99" in error.message


async def test_every_bad_field_is_reported_at_once(embedded: grpc.aio.Channel) -> None:
    message = request(0, 9999, text="", element_type=77)
    code, error = await refusal(embedded, message)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    fields = fields_of(error)
    assert {"derived_scalars[0].dst", "derived_scalars[1].dst", "element_type"} <= set(fields)
    assert any(field.startswith("prompt") for field in fields)


async def test_a_prompt_beyond_the_context_window_is_refused(embedded: grpc.aio.Channel) -> None:
    message = request(T.DERIVED_SCALAR_TYPE_MLP_POST_ACT, text="John gave a drink to Mary. " * 200)
    code, error = await refusal(embedded, message)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason is Reason.PROMPT_TOO_LONG
    assert fields_of(error)[0].startswith("prompt")


async def test_a_target_of_two_tokens_is_refused_with_the_split(embedded: grpc.aio.Channel) -> None:
    loss = config_pb2.LossFnConfig(
        name=component_pb2.LOSS_FN_NAME_LOGIT_DIFF, target_tokens=[" Mary and John"], distractor_tokens=[" John"]
    )
    message = request(T.DERIVED_SCALAR_TYPE_MLP_ACT_TIMES_GRAD, loss_fn_config=loss)
    code, error = await refusal(embedded, message)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason is Reason.NOT_ONE_TOKEN
    assert fields_of(error) == ["loss_fn_config.target_tokens[0]"]


async def test_a_gradient_without_an_origin_is_a_failed_precondition(embedded: grpc.aio.Channel) -> None:
    code, error = await refusal(embedded, request(T.DERIVED_SCALAR_TYPE_MLP_ACT_TIMES_GRAD))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason is Reason.ORIGIN_REQUIRED


async def test_a_latent_without_an_autoencoder_is_a_failed_precondition(embedded: grpc.aio.Channel) -> None:
    code, error = await refusal(embedded, request(T.DERIVED_SCALAR_TYPE_ONLINE_MLP_AUTOENCODER_LATENT))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason is Reason.AUTOENCODER_REQUIRED


async def test_a_context_is_loaded_listed_and_unloaded(embedded: grpc.aio.Channel) -> None:
    stub: Any = ContextServiceStub(embedded)
    name = "embedded/resid_delta_attn"
    loading = stub.LoadContext(context_service_pb2.LoadContextRequest(context=name), timeout=CALL_SECONDS)
    states = [response.status.state async for response in loading]
    assert states[-1] == context_pb2.CONTEXT_STATE_AVAILABLE
    listed = await stub.ListContexts(context_service_pb2.ListContextsRequest(), timeout=CALL_SECONDS)
    assert any(status.handle.startswith(f"{name}@") for status in listed.contexts)
    unload = context_service_pb2.UnloadContextRequest(context=name)
    gone = await stub.UnloadContext(unload, timeout=CALL_SECONDS)
    assert gone.status.state == context_pb2.CONTEXT_STATE_NOT_LOADED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.UnloadContext(unload, timeout=CALL_SECONDS)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_resolve_with_load_tells_how_far_it_is(embedded: grpc.aio.Channel) -> None:
    stub: Any = DerivedScalarServiceStub(embedded)
    message = resolution_pb2.ResolveRequest(request=request(T.DERIVED_SCALAR_TYPE_MLP_POST_ACT), load=True)
    frames = [frame async for response in stub.Resolve(message, timeout=CALL_SECONDS) for frame in response.frames]
    kinds = [frame.WhichOneof("frame") for frame in frames]
    assert kinds[0] == "validated"
    assert kinds[-1] == "resolved"
    assert set(kinds[1:-1]) <= {"loading"}
    (status,) = [s for s in frames[-1].resolved.contexts if s.handle.startswith("embedded@")]
    assert status.state == context_pb2.CONTEXT_STATE_AVAILABLE


async def test_a_path_outside_the_roots_is_not_allowed(embedded: grpc.aio.Channel) -> None:
    paths = [config_pb2.AutoencoderPath(layer_index=0, path="/etc/hostname")]
    config = config_pb2.DstConfig(
        autoencoder_config=config_pb2.AutoencoderConfig(
            dst=T.DERIVED_SCALAR_TYPE_MLP_POST_ACT, autoencoder_path_by_layer_index=paths
        )
    )
    code, error = await refusal(embedded, request(T.DERIVED_SCALAR_TYPE_ONLINE_MLP_AUTOENCODER_LATENT, config=config))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert error.reason is Reason.PATH_NOT_ALLOWED

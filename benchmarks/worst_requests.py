"""Requests that take the most of a server before it refuses or runs them, for every method: each list to its limit and
beyond, long texts, deep nesting, many violations, large tensors, much metadata. None is larger than 4 MiB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor

from dst_grpc._gen.dst.v1 import (
    attribute_pb2,
    catalog_service_pb2,
    circuit_pb2,
    component_pb2,
    derived_scalar_type_pb2,
    explain_pb2,
    inference_pb2,
    patch_pb2,
    resolution_pb2,
    tensor_service_pb2,
)
from dst_grpc.wire.limits import MAX_ENTRIES, MAX_LONG_TEXT_BYTES
from dst_grpc.wire.messages import MESSAGES
from tests.services import SERVICES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from google.protobuf.descriptor import Descriptor, MethodDescriptor
    from google.protobuf.message import Message

MAX_BYTES = (4 << 20) - 1024
"""Most bytes of a message, less what surrounds it."""
_OPERATORS_OWN = {"LoadContext", "UnloadContext", "UnpinContext", "WatchContexts", "ReloadRegistry"}
_TAP = component_pb2.ACTIVATION_LOCATION_TYPE_MLP_POST_ACT


class WorstRequest(NamedTuple):
    """A call."""

    name: str
    """What there is much of."""
    method: str
    """Full name, e.g. `/dst.v1.DerivedScalarService/Derive`."""
    messages: tuple[bytes, ...]
    """What is sent."""
    metadata: tuple[tuple[str, str], ...] = ()
    """Metadata that goes with it."""


def worst_requests() -> Iterator[WorstRequest]:
    """All of them."""
    for method in methods():
        name = f"/{method.containing_service.full_name}/{method.name}"
        for path, message in _filled(method.input_type):
            yield WorstRequest(f"{method.name}: {path}", name, (message.SerializeToString(),))
        for field in method.input_type.fields:
            if field.is_repeated:
                entry = bytes((field.number << 3 | 2, 0))
                yield WorstRequest(f"{method.name}: 4 MB of {field.name}", name, (entry * (MAX_BYTES // len(entry)),))
        yield WorstRequest(f"{method.name}: unknown fields", name, (b"\xf8\x7f\x01" * (MAX_BYTES // 3),))
        yield WorstRequest(f"{method.name}: noise", name, (b"\x0a\xff\xff\x7f" + bytes(MAX_BYTES),))
        yield WorstRequest(f"{method.name}: metadata", name, (b"",), (("x-much", "x" * 7000),))
    yield from _full()


def methods() -> Iterator[MethodDescriptor]:
    """The methods of our services that do not change what is served."""
    for service in SERVICES:
        yield from (method for method in service.methods if method.name not in _OPERATORS_OWN)


def _filled(descriptor: Descriptor) -> Iterator[tuple[str, Message]]:
    """Messages in each of which one list is full or fuller, or one text long; with its path."""
    for path, fields in _paths(descriptor, (), 6):
        *above, last = fields
        if last.is_repeated:
            limit = MAX_ENTRIES[last.full_name]
            for n_entries in (limit, 10 * limit):
                message, holder = _holder(descriptor, above)
                _fill(holder, last, n_entries)
                if message.ByteSize() <= MAX_BYTES:
                    yield f"{n_entries} {path}", message
        elif last.type == FieldDescriptor.TYPE_STRING:
            message, holder = _holder(descriptor, above)
            setattr(holder, last.name, "x:" * (MAX_LONG_TEXT_BYTES.get(last.full_name, 4096) // 2))
            yield f"long {path}", message


def _paths(descriptor: Any, above: tuple[Any, ...], depth: int) -> Iterator[tuple[str, tuple[FieldDescriptor, ...]]]:
    """The lists and texts of a message, each with the fields that lead to it; of messages within themselves, once."""
    for field in descriptor.fields:
        fields = (*above, field)
        if field.is_repeated or field.type == FieldDescriptor.TYPE_STRING:
            yield ".".join(each.name for each in fields), fields
        is_ours = field.message_type is not None and field.message_type.full_name.startswith("dst.")
        if is_ours and depth and all(each.message_type is not field.message_type for each in above):
            yield from _paths(field.message_type, fields, depth - 1)


def _holder(descriptor: Any, above: list[Any]) -> tuple[Message, Any]:
    """A message, and the message within it that the fields *above* lead to."""
    message: Any = MESSAGES[descriptor.name]()
    holder = message
    for field in above:
        holder = getattr(holder, field.name).add() if field.is_repeated else getattr(holder, field.name)
        if not field.is_repeated:
            holder.SetInParent()
    return message, holder


def _fill(holder: Any, field: Any, n_entries: int) -> None:
    """*n_entries* of nothing in particular."""
    entries = getattr(holder, field.name)
    if field.message_type is not None:
        entries.extend([MESSAGES[field.message_type.name]()] * n_entries)
    else:
        entries.extend([_zero(field)] * n_entries)


def _zero(field: Any) -> Any:
    return "" if field.type == FieldDescriptor.TYPE_STRING else 0


def small(text: str = "John gave a drink to") -> inference_pb2.DeriveRequest:
    """A request that any server answers at once."""
    request = inference_pb2.DeriveRequest(prompt=inference_pb2.Prompt(text=text))
    request.loss_fn_config.name = component_pb2.LOSS_FN_NAME_LOGIT_DIFF
    request.loss_fn_config.target_tokens.append(" Mary")
    request.derived_scalars.add(dst=derived_scalar_type_pb2.DERIVED_SCALAR_TYPE_MLP_POST_ACT)
    return request


def _full() -> Iterator[WorstRequest]:
    """Requests that are valid, or nearly, and large."""
    for name, request in _full_derivations():
        yield WorstRequest(f"Derive: {name}", f"{_DERIVED}/Derive", (request.SerializeToString(),))
        resolve = resolution_pb2.ResolveRequest(request=request).SerializeToString()
        yield WorstRequest(f"Resolve: {name}", f"{_DERIVED}/Resolve", (resolve,))
        item = inference_pb2.DeriveStreamRequest(request=request)
        item.request.request_id = "a"
        nameless = inference_pb2.DeriveStreamRequest(request=request)
        messages = (item.SerializeToString(), nameless.SerializeToString())
        yield WorstRequest(f"DeriveStream: {name}", f"{_DERIVED}/DeriveStream", messages)
        top_k = explain_pb2.TopKRequest(runs=[request], groups=[_group()])
        top_k.runs[0].ClearField("derived_scalars")
        yield WorstRequest(f"TopK: {name}", f"{_DERIVED}/TopK", (top_k.SerializeToString(),))
    runs = explain_pb2.TopKRequest(groups=[_group()])
    explained = explain_pb2.ExplainRequest()
    for _ in range(64):
        run = runs.runs.add()
        run.CopyFrom(small())
        run.ClearField("derived_scalars")
        run.prompt.token_ids.token_ids.extend([5] * 256)
        explained.runs.add(prompt=run.prompt, loss_fn_config=run.loss_fn_config)
    yield WorstRequest("TopK: 64 runs", f"{_DERIVED}/TopK", (runs.SerializeToString(),))
    yield WorstRequest("Explain: 64 runs", f"{_DERIVED}/Explain", (explained.SerializeToString(),))
    for name, asked in _causal():
        method = type(asked).__name__.removesuffix("Request")
        yield WorstRequest(f"{method}: {name}", f"/dst.v1.CausalService/{method}", (asked.SerializeToString(),))
    for name, text in _texts(500_000):
        tokenize = catalog_service_pb2.TokenizeRequest(text=text)
        yield WorstRequest(f"Tokenize: {name}", f"{_CATALOG}/Tokenize", (tokenize.SerializeToString(),))
    for name, token in (("tokens", 5), ("bad tokens", 1 << 30)):
        tokens = catalog_service_pb2.DetokenizeRequest(token_ids=[token] * 500_000)
        yield WorstRequest(f"Detokenize: {name}", f"{_CATALOG}/Detokenize", (tokens.SerializeToString(),))
    description = tensor_service_pb2.TensorDescription(element_type=1, sizes=[16 << 18])  # type: ignore[arg-type]  # FLOAT32
    pieces = [tensor_service_pb2.PutTensorRequest(data=bytes(4_000_000)).SerializeToString()] * 4
    first = tensor_service_pb2.PutTensorRequest(description=description).SerializeToString()
    yield WorstRequest("PutTensor: pieces of 4 MB", "/dst.v1.TensorService/PutTensor", (first, *pieces))


def _causal() -> Iterator[tuple[str, Any]]:
    """Requests about pairs: what is there for each pair, or of each, is much."""
    neurons = _about_pairs(patch_pb2.PatchRequest, [8])
    neurons.grids.add(node=attribute_pb2.ATTRIBUTED_NODE_NEURON, entries=range(512), layers=range(4))
    for name, count in (("cells", 1), ("cells of many grids", 100)):
        asked = patch_pb2.PatchRequest(pairs=_about_pairs(patch_pb2.PatchRequest, [48]).pairs)
        asked.loss_fn_config.CopyFrom(neurons.loss_fn_config)
        asked.grids.extend(list(neurons.grids) * count)
        yield name, asked
    for lengths in ([8], range(1, 257)):
        asked = _about_pairs(patch_pb2.PatchRequest, lengths)
        for i in range(10_000):
            one = asked.cells.add().interventions.add()
            one.at.activation_location_type, one.at.layer_index = _TAP, i % 4
            one.scale.factor = 0.5
        yield f"own cells of {len(lengths)} lengths", asked
    ablated = _about_pairs(circuit_pb2.CircuitRequest, [256] * 250)
    request = inference_pb2.DeriveRequest()
    _ablations(request)
    ablated.ablation_specs.extend(request.ablation_specs)
    ablated.circuits.add()
    yield "ablations of many pairs", ablated
    for cls in (attribute_pb2.AttributeRequest, circuit_pb2.CircuitRequest):
        for name, text, count in (
            ("targets", " Mary", 99),
            ("targets beyond", " Mary", 999),
            ("bad targets", "zz", 99),
        ):
            aimed = _about_pairs(cls, [8] * 1000)
            aimed.loss_fn_config.target_tokens.extend([text] * count)
            if isinstance(aimed, circuit_pb2.CircuitRequest):
                aimed.circuits.add()
            yield f"{name} of many pairs", aimed


def _about_pairs(cls: Any, lengths: Sequence[int]) -> Any:
    """A request about pairs of so many tokens."""
    asked = cls()
    asked.loss_fn_config.CopyFrom(small().loss_fn_config)
    for seed, length in enumerate(lengths):
        pair = asked.pairs.add()
        for prompt, step in ((pair.clean, 7), (pair.corrupt, 5)):
            prompt.token_ids.token_ids.extend((seed * 31 + i * step) % 5900 for i in range(length))
    return asked


_DERIVED, _CATALOG = "/dst.v1.DerivedScalarService", "/dst.v1.CatalogService"


def _group() -> explain_pb2.TopKGroup:
    return explain_pb2.TopKGroup(
        group_id="g", dsts=[derived_scalar_type_pb2.DERIVED_SCALAR_TYPE_MLP_ACT_TIMES_GRAD], k=9
    )


def _texts(size: int) -> Iterator[tuple[str, str]]:
    yield "letters", "a" * size
    yield "spaces", " " * size
    yield "words", "ab " * (size // 3)
    yield "signs", "\u4e00" * (size // 3)
    yield "one long line", "".join(chr(33 + i * i % 90) for i in range(size))


def _full_derivations() -> Iterator[tuple[str, inference_pb2.DeriveRequest]]:
    for name, text in _texts(500_000):
        yield name, small(text)
    for name, fill in _FILLS.items():
        request = small()
        fill(request)
        yield name, request


def _tokens(request: inference_pb2.DeriveRequest) -> None:
    request.prompt.token_ids.token_ids.extend([5] * 100_000)


def _bad_tokens(request: inference_pb2.DeriveRequest) -> None:
    request.prompt.token_ids.token_ids.extend([1 << 30] * 100_000)


def _derived_scalars(request: inference_pb2.DeriveRequest) -> None:
    request.derived_scalars.extend(list(request.derived_scalars) * 4999)


def _derived_scalars_of_little(request: inference_pb2.DeriveRequest) -> None:
    request.derived_scalars[0].dst = derived_scalar_type_pb2.DERIVED_SCALAR_TYPE_ALWAYS_ONE
    _derived_scalars(request)


def _bad_configs(request: inference_pb2.DeriveRequest) -> None:
    request.derived_scalars[0].config.layer_indices.layer_indices.extend([1, 77])
    _derived_scalars(request)


def _ablations(request: inference_pb2.DeriveRequest, layer: int = 0) -> None:
    for i in range(10_000):
        index = request.ablation_specs.add().index
        index.activation_location_type = _TAP
        index.layer_index = layer
        index.tensor_indices.add().at = i % 4
        index.tensor_indices.add().at = i % 64


def _bad_ablations(request: inference_pb2.DeriveRequest) -> None:
    _ablations(request, layer=99)


def _interventions(request: inference_pb2.DeriveRequest) -> None:
    for i in range(10_000):
        one = request.interventions.add()
        one.at.activation_location_type = _TAP
        one.at.axes.add().at = i % 4
        one.scale.factor = 0.5


def _positions(request: inference_pb2.DeriveRequest) -> None:
    for _ in range(40):
        one = request.interventions.add()
        one.at.activation_location_type = _TAP
        one.at.axes.add().list.positions.extend(range(30_000))
        one.scale.factor = 0.5


def _tensor(request: inference_pb2.DeriveRequest) -> None:
    one = request.interventions.add()
    one.at.activation_location_type = _TAP
    tensor = one.add.vector.tensor
    tensor.data = bytes(4_000_000)
    tensor.axes.add().size = 1_000_000


def _targets(request: inference_pb2.DeriveRequest) -> None:
    request.loss_fn_config.target_tokens.extend([" Mary"] * 999)


def _bad_targets(request: inference_pb2.DeriveRequest) -> None:
    request.loss_fn_config.target_tokens.extend(["zz zz"] * 999)


def _target_ids(request: inference_pb2.DeriveRequest) -> None:
    request.loss_fn_config.target_token_ids.extend([5] * 10_000)


def _traces(request: inference_pb2.DeriveRequest) -> None:
    trace = request.trace_config
    for _ in range(95):
        trace.node_index.node_type = component_pb2.NODE_TYPE_ATTENTION_HEAD
        for _ in range(100):
            trace.node_index.tensor_indices.add()
        trace = trace.downstream_trace_config


def _files(request: inference_pb2.DeriveRequest) -> None:
    for i in range(1000):
        request.config.autoencoder_config.autoencoder_path_by_layer_index.add(layer_index=i, path="../x")


def _autoencoders(request: inference_pb2.DeriveRequest) -> None:
    request.autoencoders.extend(f"embedded/x{i}" for i in range(100))


_FILLS = {
    "tokens": _tokens,
    "bad tokens": _bad_tokens,
    "derived scalars": _derived_scalars,
    "derived scalars of little": _derived_scalars_of_little,
    "bad configs": _bad_configs,
    "ablations": _ablations,
    "bad ablations": _bad_ablations,
    "interventions": _interventions,
    "positions": _positions,
    "a tensor": _tensor,
    "targets": _targets,
    "bad targets": _bad_targets,
    "target ids": _target_ids,
    "traces": _traces,
    "paths": _files,
    "autoencoders": _autoencoders,
}

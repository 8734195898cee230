"""DstConfig and AutoencoderConfig: how a derived scalar is to be computed.

Fields and their meaning are those of the reference implementation. What is a live object there (`model_context`,
`autoencoder_context`, `multi_autoencoder_context`) is here the name or handle of a context that the server holds.
"""

from __future__ import annotations

from dataclasses import dataclass

from dst_grpc.domain.components import InferenceEngineType, NodeType, PassType
from dst_grpc.domain.enum_names import json_name
from dst_grpc.domain.handles import ContextRef, is_device
from dst_grpc.domain.indices import ActivationIndex, NodeIndex, check_number
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.texts import check_text
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.errors import InvalidRequest, Violations


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderConfig:
    """Autoencoders by path rather than by registered name."""

    dst: DerivedScalarType
    """The derived scalar that the autoencoders read."""
    autoencoder_path_by_layer_index: tuple[tuple[int | None, str], ...]
    """Pairs of layer and path, by layer; a lone None key means the same autoencoder for a type without layers."""

    def __post_init__(self) -> None:
        """Check rule 17; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        field = "autoencoder_path_by_layer_index"
        layers = [layer for layer, _ in self.autoencoder_path_by_layer_index]
        problems.check(bool(layers), field, "must not be empty")
        if len(layers) > 1 and None in layers:
            problems.add(field, "an entry without a layer must be the only entry")
        if len(set(layers)) < len(layers):
            problems.add(field, "names a layer twice")
        for i, (layer, path) in enumerate(self.autoencoder_path_by_layer_index):
            check_number(problems, f"{field}[{i}].layer_index", layer)
            problems.check(bool(path), f"{field}[{i}].path", "must not be empty")
            check_text(problems, f"{field}[{i}].path", path)
        problems.raise_if_any()
        # Order carries no meaning, so entries are sorted: equal configs compare and digest equal.
        pairs = sorted(self.autoencoder_path_by_layer_index, key=lambda pair: -1 if pair[0] is None else pair[0])
        object.__setattr__(self, "autoencoder_path_by_layer_index", tuple(pairs))


@dataclass(frozen=True, slots=True, kw_only=True)
class DstConfig:
    """How a derived scalar is to be computed. Every field has a default; a plain request needs none."""

    derive_gradients: bool = False
    """Also yield the BACKWARD pass."""
    model_name: str | None = None
    """Registered name of the model; superseded by `model_context`, and must agree with it."""
    inference_engine_type: InferenceEngineType = InferenceEngineType.STANDARD
    """Which engine runs the model."""
    layer_indices: tuple[int, ...] | None = None
    """Layers of the result; None or empty means every layer."""
    autoencoder_config: AutoencoderConfig | None = None
    """Autoencoders by path; superseded by the contexts below."""
    model_context: str | None = None
    """Name or handle of a model context."""
    autoencoder_context: str | None = None
    """Name or handle of one autoencoder context."""
    multi_autoencoder_context: tuple[str, ...] | None = None
    """Names or handles of autoencoder contexts, at most one per node type."""
    trace_config: TraceConfig | None = None
    """The trace that the backward pass starts from, or the latent to read; None = a loss."""
    node_index_for_attention_write: NodeIndex | None = None
    """Validated, but no type uses it."""
    device_for_raw_activations: str | None = None
    """Device where nothing else determines one: cpu, cuda:N or mps:N."""
    activation_index_for_fake_grad: ActivationIndex | None = None
    """The node that VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION is about."""
    node_index_for_attribution: NodeIndex | None = None
    """The node at the fixed end of the edges."""
    detach_layer_norm_scale_for_attribution: bool = False
    """Whether edge attributions hold the scales of layer norms constant."""

    def __post_init__(self) -> None:
        """Check rules 1 to 6 and the numbers; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        self._check_contexts(problems)
        for i, layer in enumerate(self.layer_indices or ()):
            check_number(problems, f"layer_indices.layer_indices[{i}]", layer)
        if self.layer_indices and len(set(self.layer_indices)) < len(self.layer_indices):
            problems.add("layer_indices", "names a layer twice")
        self._check_attention_write(problems)
        trace = self.trace_config
        problems.check(
            trace is None or trace.pass_type is PassType.FORWARD,
            "trace_config.node_index.pass_type",
            f"must be {json_name(PassType.FORWARD)}: a gradient cannot be traced",
        )
        problems.raise_if_any()

    def _check_contexts(self, problems: Violations) -> None:
        """Rules 1 to 3, as far as names and handles show."""
        references: dict[str, ContextRef] = {}
        named = [("model_name", self.model_name), ("model_context", self.model_context)]
        named.append(("autoencoder_context", self.autoencoder_context))
        named += [
            (f"multi_autoencoder_context.autoencoder_contexts[{i}]", n)
            for i, n in enumerate(self.multi_autoencoder_context or ())
        ]
        for field, text in named:
            if text is None:
                continue
            try:
                references[field] = ContextRef.parse(text)
            except InvalidRequest as error:
                problems.extend(error, field)
        model, context = references.get("model_name"), references.get("model_context")
        if model and context and model.name != context.name:
            problems.add("model_name", f"is {model.name!r}, but model_context is of {context.name!r}")
        device = self.device_for_raw_activations
        if device is not None and not is_device(device):
            problems.add("device_for_raw_activations", f"{device!r} is not a device: cpu, cuda, cuda:N, mps or mps:N")
        devices = {ref.device for ref in references.values() if ref.device} | ({device} if device else set())
        if len(devices) > 1:
            problems.add("device_for_raw_activations", f"all devices must be equal, not {', '.join(sorted(devices))}")

    def _check_attention_write(self, problems: Violations) -> None:
        """Rules 4 and 5."""
        node = self.node_index_for_attention_write
        if node is None:
            return
        field = "node_index_for_attention_write"
        problems.check(
            node.node_type is NodeType.ATTENTION_HEAD,
            f"{field}.node_type",
            f"must be {json_name(NodeType.ATTENTION_HEAD)}, not {json_name(node.node_type)}",
        )
        problems.check(node.layer_index is not None, f"{field}.layer_index", "is required")
        trace = self.trace_config
        if trace is not None and trace.node_index.node_type is not NodeType.VOCAB_TOKEN:
            problems.check(
                trace.node_index.layer_index is not None,
                "trace_config.node_index.layer_index",
                f"is required beside {field}",
            )

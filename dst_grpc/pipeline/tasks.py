"""Building one task: the rules of a derived scalar type against its config, the run and the autoencoders.

What is wrong and what is missing are collected by the planner over all tasks; nothing here raises for one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dst_grpc.domain.autoencoder_inputs import TRACED_INPUTS, accepted_inputs
from dst_grpc.domain.components import Component, NodeType, PassType
from dst_grpc.domain.indices import AttnSubNodeIndex
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.nodes import NODES
from dst_grpc.domain.scalar_facts import Backward, Direction, ScalarFacts
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.errors import InvalidRequest, Reason
from dst_grpc.pipeline.checks import (
    check_covered,
    check_layer,
    check_node,
    check_positions,
    check_trace_can_run,
    check_trace_indices,
)
from dst_grpc.scalars.derive import taps_of
from dst_grpc.scalars.task import Task
from dst_grpc.scalars.topology import AutoencoderInputs, Topology

if TYPE_CHECKING:
    from dst_grpc.contexts.entries import AutoencoderEntry, ModelEntry
    from dst_grpc.domain.config import DstConfig
    from dst_grpc.domain.indices import NodeIndex
    from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest
    from dst_grpc.domain.trace import TraceConfig
    from dst_grpc.pipeline.findings import Findings
    from dst_grpc.pipeline.sizes import Sizes
    from dst_grpc.scalars.origins import LossOrigin
    from dst_grpc.scalars.recorded_taps import Tap

_L = ActivationLocationType
_T = DerivedScalarType


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskBuilder:
    """One derived scalar of a request, on its way to a task."""

    request: DeriveRequest
    spec: DerivedScalarSpec
    config: DstConfig
    path: str
    """Where its config stands in the request."""
    spec_path: str
    """Where it stands itself."""
    model: ModelEntry
    sizes: Sizes
    topology: Topology
    """The model, with these autoencoders."""
    sets: tuple[AutoencoderEntry, ...]
    """The autoencoders that its config names."""
    spliced: tuple[AutoencoderEntry, ...]
    """Those in the graph."""
    loss: LossOrigin | None
    findings: Findings

    @property
    def _facts(self) -> ScalarFacts:
        return FACTS[self.spec.dst]

    @property
    def _name(self) -> str:
        return self.spec.dst.value

    @property
    def _inputs(self) -> AutoencoderInputs:
        return self.topology.inputs

    @property
    def _trace(self) -> TraceConfig | None:
        """The trace that the type is about: its config's, else the request's."""
        return self.config.trace_config or self.request.trace_config

    def build(self) -> tuple[Task, frozenset[Tap]] | None:
        """The task and what it reads, or None if anything is wrong or missing."""
        before = self.findings.count
        passes = self._passes()
        self._check_model()
        self._check_autoencoder()
        self._check_trace()
        self._check_node()
        self._check_fake_grad()
        layers = self._layers()
        if self.findings.count != before:
            return None
        task = Task(
            facts=self._facts,
            layers=layers,
            passes=passes,
            topology=self.topology,
            trace=self._trace,
            loss=self.loss,
            node=self.config.node_index_for_attribution,
            detach_scale=self.config.detach_layer_norm_scale_for_attribution,
            fake_grad=self.config.activation_index_for_fake_grad,
        )
        found = frozenset(taps_of(task))
        self._check_origin(found)
        return task, found

    def _passes(self) -> tuple[PassType, ...]:
        """Rule 27 and 33: which passes the type yields."""
        if not self.config.derive_gradients:
            return (PassType.FORWARD,)
        if self._facts.backward is Backward.REFUSED:
            self.findings.add(f"{self.path}.derive_gradients", f"must be false: {self._name} has no gradient")
        if self._facts.backward in {Backward.GRADIENT, Backward.RATIO}:
            return (PassType.FORWARD, PassType.BACKWARD)
        return (PassType.FORWARD,)

    def _check_model(self) -> None:
        """What the model's architecture rules out."""
        reason = None if self._facts.tap is None else self.model.architecture.why_without(self._facts.tap)
        if reason is not None:
            description = f"{self._name} has no meaning in {self.model.name!r}: {reason}"
            self.findings.add(f"{self.spec_path}.dst", description, Reason.UNSUPPORTED_BY_MODEL)

    # Autoencoders

    def _own_set(self) -> AutoencoderEntry | None:
        """The autoencoder that the type itself is about."""
        wanted = self._facts.autoencoder
        kind = self._inputs.of(wanted) if wanted is not None else None
        return None if kind is None else next((info for info in self.sets if info.input is kind), None)

    def _check_autoencoder(self) -> None:
        wanted, info = self._facts.autoencoder, self._own_set()
        if wanted is None:
            return
        if info is None:
            generic = wanted is NodeType.AUTOENCODER_LATENT and len(self.sets) > 1
            has = f"has {', '.join(sorted(i.name for i in self.sets))}" if self.sets else "has none"
            hint = "; use the MLP_ or ATTENTION_ type instead" if generic else ""
            description = f"{self._name} needs {NODES[wanted].autoencoder}, and the request {has}{hint}"
            self.findings.lack("autoencoders", description, Reason.AUTOENCODER_REQUIRED)
            return
        allowed = accepted_inputs(self._facts)
        if allowed is not None and info.input not in allowed:
            names = " or ".join(kind.type.value for kind in allowed)
            description = f"{self._name} needs an autoencoder that reads {names}, not {info.dst} ({info.name})"
            self.findings.lack("autoencoders", description, Reason.AUTOENCODER_REQUIRED)
        if self._facts.is_of_writes and not info.input.writes_to_residual:
            description = f"{self._name}: what {info.name} reads, {info.dst}, is not written to the residual stream"
            self.findings.add("autoencoders", description, Reason.IMPOSSIBLE_COMBINATION)
        if self._facts.direction is Direction.ALL_LATENT_READS:
            self._check_reads_are_rows(info)
        if self._facts.component.is_spliced:
            self._check_is_spliced(info)

    def _check_reads_are_rows(self, entry: AutoencoderEntry) -> None:
        """Only then is what an active latent reads its row of the encoder."""
        if not entry.reads_rows_of_encoder:
            info = entry.info()
            has = f"{'/'.join(info.activations)}, with the normalization {'/'.join(info.normalizations)}"
            self.findings.add(
                "autoencoders", f"{self._name} needs a ReLU autoencoder of raw inputs; {info.name} is {has}"
            )

    def _check_is_spliced(self, info: AutoencoderEntry) -> None:
        if info not in self.spliced:
            description = f"{self._name} reads latents in the run: name {info.name!r} in autoencoders"
            self.findings.lack("autoencoders", description, Reason.AUTOENCODER_REQUIRED)

    # The trace

    def _check_trace(self) -> None:
        facts, trace, own = self._facts, self._trace, self.config.trace_config
        path = f"{self.path}.trace_config" if own is not None else "trace_config"
        if facts.needs_trace and trace is None:
            self.findings.lack(path if own else f"{self.path}.trace_config", f"{self._name} needs a traced node")
        if own is not None and own != self.request.trace_config and self._reads_origin():
            description = f"differs from the request's origin, whose gradients {self._name} reads"
            self.findings.add(path, description, Reason.IMPOSSIBLE_COMBINATION)
        if trace is None:
            return
        if own is not None:
            check_trace_indices(self.findings, own, path, self.sizes, self.sets)
        if facts.direction is Direction.LATENT_READ:
            self._check_latent_read(trace, path)
        elif facts.direction is Direction.FINAL_ACTIVATION_RESIDUAL_GRAD:
            try:
                trace.check_can_run()
            except InvalidRequest as error:
                self.findings.extend(error, path)
                return
        if facts.direction in {Direction.FINAL_ACTIVATION_RESIDUAL_GRAD, Direction.FINAL_RESIDUAL_GRAD}:
            check_trace_can_run(self.findings, trace, path, self._inputs, has_loss=self.loss is not None)

    def _reads_origin(self) -> bool:
        return self._facts.requires_grad_for_forward_pass or (
            self.config.derive_gradients and self._facts.backward in {Backward.GRADIENT, Backward.RATIO}
        )

    def _check_latent_read(self, trace: TraceConfig, path: str) -> None:
        """Rules 34 and 35."""
        node = trace.node_index
        self.findings.check(
            NODES[node.node_type].is_autoencoder_latent,
            f"{path}.node_index.node_type",
            f"{self._name} reads a latent, not a node of {node.node_type}",
        )
        indices = node.tensor_indices
        self.findings.check(
            len(indices) == 2 and indices[0] is None and indices[1] is not None,
            f"{path}.node_index.tensor_indices",
            f"{self._name} needs all tokens and one latent",
        )
        info = self._own_set()
        if info is not None:
            # The latent is looked up in the type's own autoencoder, whatever type of latent the node is.
            axes = [(axis, self.sizes.of(axis, info.n_latents)) for axis in NODES[info.node_type].axes]
            check_positions(self.findings, indices, axes, f"{path}.node_index.tensor_indices")
        if self._facts.single_layer and self.config.layer_indices not in {None, (), (node.layer_index,)}:
            given = list(self.config.layer_indices or ())
            description = f"must be the traced layer {node.layer_index}, not {given}"
            self.findings.add(f"{self.path}.layer_indices", description)

    # The one node of an edge

    def _check_node(self) -> None:
        """Rule 37."""
        if not self._facts.needs_attribution_node:
            return
        node, path = self.config.node_index_for_attribution, f"{self.path}.node_index_for_attribution"
        if node is None:
            self.findings.lack(path, f"{self._name} needs the one node of the edges")
            return
        check_node(self.findings, node, path, self.sizes, self.sets)
        self.findings.check(node.pass_type is PassType.FORWARD, f"{path}.pass_type", "must be forward")
        self.findings.check(node.layer_index is not None, f"{path}.layer_index", "is required")
        facts = NODES[node.node_type]
        if facts.component is None:
            names = "attention_head, mlp_neuron or a type of autoencoder latent"
            self.findings.add(f"{path}.node_type", f"must be {names}, not {node.node_type}")
            return
        self.findings.check(node.ndim == 0, f"{path}.tensor_indices", f"must name one node; {node.ndim} axes are open")
        self._check_subnode(node, path)
        if facts.is_autoencoder_latent:
            self._check_node_autoencoder(node)

    def _check_subnode(self, node: NodeIndex, path: str) -> None:
        if self._facts.direction is not Direction.SUBNODE_GRAD:
            return
        is_head = node.node_type is NodeType.ATTENTION_HEAD
        if is_head and not isinstance(node, AttnSubNodeIndex):
            self.findings.lack(f"{path}.q_k_or_v", f"{self._name} needs the query, key or value of a head")

    def _check_node_autoencoder(self, node: NodeIndex) -> None:
        kind = self._inputs.of(node.node_type)
        if kind is None or not kind.is_traced:
            reads = " or ".join(each.type for each in TRACED_INPUTS)
            description = f"{self._name} needs {NODES[node.node_type].autoencoder} that reads {reads} for this node"
            self.findings.lack("autoencoders", description, Reason.AUTOENCODER_REQUIRED)
            return
        self._check_is_spliced(next(info for info in self.sets if info.input is kind))

    # Reads of the vocabulary

    def _check_fake_grad(self) -> None:
        """Rule 36."""
        if not self._facts.needs_fake_grad_index:
            return
        index, path = self.config.activation_index_for_fake_grad, f"{self.path}.activation_index_for_fake_grad"
        if index is None:
            self.findings.lack(path, f"{self._name} needs the node that reads")
            return
        location = index.activation_location_type
        taps = [facts.tap for facts in NODES.values() if facts.may_read_mlp_input and facts.tap is not None]
        self.findings.check(
            location in taps,
            f"{path}.activation_location_type",
            f"must be one of {', '.join(taps)}, not {location}",
        )
        self.findings.check(index.layer_index is not None, f"{path}.layer_index", "is required")
        check_layer(self.findings, index.layer_index, f"{path}.layer_index", self.sizes.n_layers)
        entry = index.tensor_indices[1] if len(index.tensor_indices) > 1 else None
        if entry is None:
            self.findings.add(f"{path}.tensor_indices", "must name the neuron or latent in its second place")
            return
        if location is _L.MLP_POST_ACT:
            width = self.sizes.model.d_mlp
        elif self._inputs.mlp is None:
            description = f"{self._name} of a latent needs {NODES[NodeType.MLP_AUTOENCODER_LATENT].autoencoder}"
            self.findings.lack("autoencoders", description, Reason.AUTOENCODER_REQUIRED)
            return
        else:
            info = next(info for info in self.sets if info.input is self._inputs.mlp)
            check_covered(self.findings, info, index.layer_index, f"{path}.layer_index")
            width = info.n_latents
        self.findings.check(entry < width, f"{path}.tensor_indices[1]", f"must be below {width}, not {entry}")

    # Layers and origin

    def _layers(self) -> tuple[int | None, ...]:
        """Keys of the result (specification, 9.1), restricted to the config's layers."""
        facts, wanted, path = self._facts, self.config.layer_indices or (), f"{self.path}.layer_indices"
        for i, layer in enumerate(wanted):
            check_layer(self.findings, layer, f"{path}.layer_indices[{i}]", self.sizes.n_layers)
        if facts.single_layer:
            return self._single_layer(wanted, path)
        if facts.once:
            return (None,)
        node = self.config.node_index_for_attribution
        one_layer = facts.component is Component.SINGLE_NODE
        if one_layer and node is not None:
            covered: tuple[int, ...] = (node.layer_index or 0,)
        else:
            info = self._own_set()
            if info is not None and FACTS[info.dst].once:
                self.findings.check(
                    not wanted, path, f"must be empty: {info.name} reads {info.dst}, which has no layers"
                )
                return (None,)
            covered = info.layer_indices if info is not None else tuple(range(self.sizes.n_layers))
        uncovered = [layer for layer in wanted if layer not in covered and layer < self.sizes.n_layers]
        if uncovered and not one_layer:
            self.findings.add(path, f"{self._name}: no autoencoder is configured for layers {uncovered}")
        return tuple(layer for layer in covered if not wanted or layer in wanted)

    def _single_layer(self, wanted: tuple[int, ...], path: str) -> tuple[int | None, ...]:
        """Rule 34."""
        if len(wanted) != 1:
            self.findings.lack(path, f"{self._name} needs exactly one layer, not {len(wanted) or 'every one'}")
        info = self._own_set()
        if info is not None and wanted and wanted[0] not in info.layer_indices:
            self.findings.add(path, f"{info.name} does not cover layer {wanted[0]}")
        return wanted

    def _check_origin(self, found: frozenset[Tap]) -> None:
        """Rule 29."""
        if any(pass_type is PassType.BACKWARD for pass_type, _ in found) and not self.request.has_origin:
            self.findings.lack(
                "loss_fn_config",
                f"{self._name} reads gradients, and the request has no origin: give loss_fn_config or trace_config",
                Reason.ORIGIN_REQUIRED,
            )

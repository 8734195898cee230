"""Requests of Circuit, and their answers: which edges of a model carry a behaviour, and how well. Plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from dst_grpc.domain.components import PassType
from dst_grpc.domain.enum_names import json_name
from dst_grpc.domain.explanations import RunsTrailer
from dst_grpc.domain.graph_nodes import Edge, Source, check_named, node_named
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.pairs import Alternative, Orientation, PromptPair, check_pairs, check_reference
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.requests import Prompt, check_id, check_names
from dst_grpc.errors import Violations

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The fractions of the Mechanistic Interpretability Benchmark."""
DEFAULT_STEPS = 5
DEFAULT_WANTED_FAITHFULNESS = 0.8
MAX_STEPS = 1000


class CircuitSelection(StrEnum):
    """Which edges, or nodes, a circuit of a given size keeps."""

    ABSOLUTE = "absolute"
    """Those of the largest magnitude."""
    SIGNED = "signed"
    """Those that matter most for the behaviour, in the sense of the scores' orientation: the most negative of NOISING
    scores, the most positive of DENOISING ones; of computed ones of a divergence or a cross entropy the reverse."""
    GREEDY = "greedy"
    """One by one from the logits on: always the edge of the largest magnitude that ends in a node which is reached
    already. For scores of edges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCircuit:
    """A circuit: the edges and nodes that it keeps. Without either it is the empty circuit."""

    edges: tuple[str, ...] = ()
    """Edges, by name, such as "a0.h1->a2.h0<q>"."""
    nodes: tuple[str, ...] = ()
    """Nodes, by name, such as "a0.h1", all of whose outgoing edges are kept. In requests with `latents` also "m0.l17",
    a latent, "m0.error", and "m0", all of the MLP's."""

    def __post_init__(self) -> None:
        """Check the names as far as no model is needed; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        check_named(problems, "edges", self.edges, Edge.named)
        check_named(problems, "nodes", self.nodes, node_named)
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitCurve:
    """Circuits of growing size, by scores of edges or nodes."""

    scores: RequestTensor | None = None
    """Scores of edges [S, D] or of nodes [S], with latents [N]; None = of edges, with latents of nodes, by EAP-IG."""
    scores_orientation: Orientation = Orientation.NOISING
    """Which sign of given scores matters: of NOISING ones the negative, of DENOISING ones the positive."""
    selection: CircuitSelection = CircuitSelection.ABSOLUTE
    """Which of them a circuit keeps."""
    fractions: tuple[float, ...] = ()
    """The fractions of all edges, or nodes, that circuits keep, ascending; empty = those of the benchmark."""
    wanted_faithfulness: float = DEFAULT_WANTED_FAITHFULNESS
    """The edges of the smallest circuit that is at least so faithful are sent."""
    steps: int = DEFAULT_STEPS
    """Steps of EAP-IG."""
    with_scores: bool = False
    """Whether to send the scores of all edges, with latents of all nodes."""

    def __post_init__(self) -> None:
        """Check what needs no model; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        for i, fraction in enumerate(self.fractions):
            problems.check(0 <= fraction <= 1, f"fractions[{i}]", f"must be between 0 and 1, not {fraction}")
            if i:
                before = self.fractions[i - 1]
                problems.check(fraction > before, f"fractions[{i}]", f"must be above the one before, {before}")
        problems.check(math.isfinite(self.wanted_faithfulness), "wanted_faithfulness", "must be finite")
        problems.check(0 < self.steps <= MAX_STEPS, "steps", f"must be between 1 and {MAX_STEPS}, not {self.steps}")
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class AcdcSearch:
    """A circuit found by trying to cut each edge in turn (ACDC)."""

    threshold: float
    """An edge stays cut if what should stay small grows by less."""
    of_metric: bool = False
    """Whether that is how far the pairs' metric falls, or rises if it is a distance; else the divergence KL(whole
    model, circuit) at the last token, in nats."""
    absolute: bool = False
    """Whether a change in the other direction counts alike."""

    def __post_init__(self) -> None:
        """Check the threshold; raises InvalidRequest."""
        problems = Violations()
        problems.check(math.isfinite(self.threshold), "threshold", "must be finite")
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitRequest:
    """Which edges carry a behaviour? Evaluates circuits, and finds them."""

    pairs: tuple[PromptPair, ...]
    """The prompts. Metrics are means over them."""
    request_id: str = ""
    """The client's own id."""
    model: str | None = None
    """Name or handle of the model; None = the server's default."""
    loss_fn_config: LossFnConfig | None = None
    """The metric of pairs without one of their own."""
    autoencoders: tuple[str, ...] = ()
    """Names or handles of autoencoders to splice into the runs."""
    ablation_specs: tuple[AblationSpec, ...] = ()
    """Entries to overwrite with a number in all runs, applied in order: circuits are those of the model without them.
    At taps within heads and MLPs, or at what MLPs write."""
    orientation: Orientation = Orientation.NOISING
    """Which prompt of a pair is run; values come from the other one."""
    alternative: Alternative = Alternative.PATCHING
    """What readers read of sources that they are cut from."""
    reference: tuple[Prompt, ...] = ()
    """The prompts of a mean."""
    prune: bool | None = None
    """Whether edges on no path from the embedding to the logits are left out too; None = they are, of edges."""
    latents: bool = False
    """Whether the latents of the autoencoders, and their errors, are nodes: circuits are then of nodes, and what is not
    kept has its alternative wherever it is read. What only an autoencoder reads is no node then: an MLP, or the heads
    of a layer, whose write it reconstructs."""
    circuits: tuple[KeptCircuit, ...] = ()
    """Circuits to evaluate."""
    curve: CircuitCurve | None = None
    """Circuits of growing size."""
    acdc: AcdcSearch | None = None
    """A circuit to search for."""

    def __post_init__(self) -> None:
        """Check what needs no model; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        check_id(problems, "request_id", self.request_id)
        check_names(problems, self.model, self.autoencoders)
        for i, spec in enumerate(self.ablation_specs):
            path, location = f"ablation_specs[{i}].index", spec.index.activation_location_type
            problem = f"must be within heads or MLPs, or what MLPs write, not {json_name(location)}"
            problems.check(location.facts.is_within_source, f"{path}.activation_location_type", problem)
            problems.check(spec.index.pass_type is PassType.FORWARD, f"{path}.pass_type", "must be FORWARD")
        check_pairs(problems, self.pairs, self.loss_fn_config, self._corrupt)
        check_reference(problems, self.reference, reads_mean=self.alternative.is_mean)
        if self.latents:
            self._check_latents(problems)
        else:
            self._check_no_latents(problems)
        asks = self.circuits or self.curve is not None or self.acdc is not None
        problems.check(bool(asks), "", "give circuits, a curve or acdc")
        problems.raise_if_any()

    def _check_latents(self, problems: Violations) -> None:
        """Note what circuits of edges can be asked alone."""
        problems.check(
            self.prune is not True, "prune", "must not be true with latents: circuits of nodes are not pruned"
        )
        for i, circuit in enumerate(self.circuits):
            problems.check(not circuit.edges, f"circuits[{i}].edges", "must be empty with latents: name nodes")

    def _check_no_latents(self, problems: Violations) -> None:
        for i, circuit in enumerate(self.circuits):
            for j, name in enumerate(circuit.nodes):
                problem = f"{name} is of an autoencoder, and those are nodes with latents alone"
                problems.check(isinstance(node_named(name), Source), f"circuits[{i}].nodes[{j}]", problem)

    @property
    def _corrupt(self) -> str | None:
        """What is wrong with a pair without corrupt prompt; None if it is not needed."""
        if self.orientation is Orientation.DENOISING:
            return "is required to be run"
        return "is required for what cut edges carry" if self.alternative is Alternative.PATCHING else None

    @property
    def is_of_distance(self) -> bool:
        """Whether the metric of every pair grows as the behaviour is lost."""
        metrics = (pair.loss_fn_config or self.loss_fn_config for pair in self.pairs)
        return all(metric is not None and metric.name.is_distance for metric in metrics)

    @property
    def is_pruned(self) -> bool:
        """Whether circuits are pruned."""
        return self.prune is not False and not self.latents


# Answers


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitParts:
    """The nodes of one layer's autoencoder: its latents, one after the other, and then its error, if that is a node."""

    autoencoder: str
    """Handle of the set."""
    name: str
    """Name of them all, such as "m0"; of the latents "m0.l0", ..., of the error "m0.error"."""
    first_node: int
    """Place of the first latent among the nodes."""
    latent_count: int
    """How many latents there are."""
    has_error: bool
    """Whether the error is a node, as it is of every autoencoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitHeader:
    """The start of an answer: the graph, and how its circuits are made."""

    model: str
    """Handle of the model that ran."""
    sources: tuple[str, ...]
    """Names of the sources (S), in their order."""
    readers: tuple[str, ...]
    """Names of the readers (D), in their order."""
    edge_count: int
    """Edges of the graph."""
    d_model: int
    """Channels of the residual stream."""
    pair_count: int
    """Pairs of prompts."""
    orientation: Orientation
    """Which prompt of a pair is run."""
    alternative: Alternative
    """What cut edges carry."""
    prune: bool
    """Whether circuits are pruned."""
    node_count: int = 0
    """Nodes that circuits are of, with latents; else 0."""
    parts: tuple[CircuitParts, ...] = ()
    """The nodes after the sources: those of autoencoders."""


class CircuitStage(StrEnum):
    """What an answer is made by."""

    SCORES = "scores"
    """Scores of edges are computed."""
    EVALUATION = "evaluation"
    """Circuits are run."""
    SEARCH = "search"
    """ACDC tries edges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitProgress:
    """How far the work is."""

    stage: CircuitStage
    """At what."""
    done: int
    """How much of it is done: pairs that are scored, runs, edges that were tried."""
    total: int
    """How much there is."""
    kept_edge_count: int | None = None
    """Edges, or with latents nodes, kept so far, in a search."""
    metric: float | None = None
    """What should stay small so far, in a search."""


class CircuitKind(StrEnum):
    """Which circuit was evaluated."""

    WHOLE = "whole"
    """All edges: the run itself."""
    EMPTY = "empty"
    """No edge."""
    GIVEN = "given"
    """One of the request's."""
    CURVE = "curve"
    """One of the curve's."""
    ACDC = "acdc"
    """The one that ACDC found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitEvaluation:
    """How good a circuit is."""

    kind: CircuitKind
    """Which one."""
    index: int = 0
    """Its place among those of its kind."""
    chosen_edge_count: int
    """Edges that it was to keep, before pruning; 0 with latents."""
    edge_count: int
    """Edges that it keeps; 0 with latents."""
    node_count: int
    """Sources with a kept edge; with latents, nodes that it keeps."""
    metric: float
    """Mean metric over the pairs."""
    metrics: tuple[float, ...]
    """The metric of each pair."""
    fraction: float | None = None
    """In a curve, the fraction of edges or nodes to keep."""
    faithfulness: float | None = None
    """(metric - empty) / (whole - empty), of means over the pairs; None if the two hardly differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveSummary:
    """A curve as a whole."""

    selection: CircuitSelection
    """How its circuits were selected."""
    of_nodes: bool
    """Whether fractions are of nodes rather than edges."""
    cpr: float | None = None
    """Area under faithfulness over the fraction kept, by the trapezoid rule; None without faithfulness, or with one
    fraction."""
    cmd: float | None = None
    """The same of the distance of faithfulness from 1."""
    chosen_index: int | None = None
    """The smallest circuit that is as faithful as wanted; None if none is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitEdges:
    """Edges, with scores if there are any."""

    sources: tuple[int, ...] = ()
    """The source of each edge, by its place in the header."""
    readers: tuple[int, ...] = ()
    """Its reader."""
    scores: tuple[float, ...] = ()
    """Its score; empty if edges have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitNodes:
    """Nodes, with scores if there are any."""

    nodes: tuple[int, ...] = ()
    """Their places: the sources of the header first, then its parts."""
    scores: tuple[float, ...] = ()
    """The score of each; empty if they have none."""


class CircuitPartKind(StrEnum):
    """What a frame of an answer of Circuit holds."""

    HEADER = "header"
    """A CircuitHeader, the first."""
    PROGRESS = "progress"
    """A CircuitProgress, any number."""
    EVALUATION = "evaluation"
    """A CircuitEvaluation, one for each circuit; first of all edges and of none."""
    CURVE = "curve"
    """The CurveSummary."""
    CIRCUIT = "circuit"
    """The CircuitEdges of the curve's chosen circuit, the largest magnitudes first."""
    FOUND = "found"
    """The CircuitEdges of what ACDC found."""
    SCORES = "scores"
    """The CircuitEdges of all edges, with their scores."""
    NODES = "nodes"
    """With latents, the CircuitNodes of the curve's chosen circuit, the largest magnitudes first."""
    FOUND_NODES = "found_nodes"
    """With latents, the CircuitNodes of what ACDC found."""
    NODE_SCORES = "node_scores"
    """With latents, the CircuitNodes of all nodes, with their scores."""
    TRAILER = "trailer"
    """A RunsTrailer, the last."""


CircuitValue = (
    CircuitHeader | CircuitProgress | CircuitEvaluation | CurveSummary | CircuitEdges | CircuitNodes | RunsTrailer
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitPart:
    """One frame of an answer of Circuit."""

    kind: CircuitPartKind
    """What it holds."""
    value: CircuitValue
    """Its content."""

"""Requests of Graph: the attribution graph of a prompt. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from dst_grpc.domain.handles import ContextRef
from dst_grpc.domain.indices import check_number
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.requests import Prompt, check_id, check_names
from dst_grpc.domain.texts import check_text
from dst_grpc.errors import InvalidRequest, Violations

DEFAULT_MAX_N_LOGITS: Final = 10
DEFAULT_LOGIT_PROB: Final = 0.95
DEFAULT_BATCH_SIZE: Final = 512
DEFAULT_UPDATE_INTERVAL: Final = 4
DEFAULT_NODE_THRESHOLD: Final = 0.8
DEFAULT_EDGE_THRESHOLD: Final = 0.98
MAX_TARGETS: Final = 1000
LEAST_WEIGHT: Final = 1e-20
MOST_WEIGHT: Final = 1e20
MOST_DIRECTION: Final = 1e20
"""Beyond, sums of influences would be no float32."""
MAX_BATCH_SIZE: Final = 65_536
MAX_TARGET_NAME_CHARACTERS: Final = 256
DEFAULT_NEURON_NODES: Final = 500
"""Units that are nodes if neurons are among the sources and the request names no number: nearly all are active."""


class BeginToken(StrEnum):
    """What a prompt begins with."""

    AUTOMATIC = "automatic"
    """A special token: if the prompt has none there, the tokenizer's begin token is put before it, else its pad token,
    else its end token, else any other."""
    AS_GIVEN = "as_given"
    """The prompt's own first token, whatever it is."""


class GraphSource(StrEnum):
    """What units are: the nodes that others act on and that act on others."""

    FEATURES = "features"
    """Features of transcoders, which stand for what MLPs write."""
    NEURONS = "neurons"
    """Neurons, which are what MLPs write."""
    HEADS = "heads"
    """Heads, which are what attention writes."""
    LATENTS = "latents"
    """Latents of autoencoders, which stand for what these reconstruct."""


class GraphEdgeSelection(StrEnum):
    """What an answer holds of the edges."""

    PRUNED = "pruned"
    """Those that are left after pruning."""
    WHOLE = "whole"
    """All that are not 0."""
    NONE = "none"
    """None: they are asked for later, of the kept graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphTarget:
    """A node that effects are traced back from, at the prompt's last token."""

    token: str | None = None
    """The logit of a token, by its text."""
    token_id: int | None = None
    """The logit of a token, by its id."""
    direction: RequestTensor | None = None
    """The projection of the final residual, after the final norm and its gain, on a vector [d]."""
    name: str = ""
    """What a direction is called in the answer; empty for a token."""
    weight: float | None = None
    """How much the node counts when influences are added up; None = the probability of a token, 1 for a direction."""

    def __post_init__(self) -> None:
        """Check what needs no model; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        given = [one for one in (self.token, self.token_id, self.direction) if one is not None]
        problems.check(len(given) == 1, "", "give exactly one of token, token_id and direction")
        problems.check(self.token != "", "token", "must not be empty")
        check_text(problems, "token", self.token or "")
        check_number(problems, "token_id", self.token_id)
        check_text(problems, "name", self.name)
        if self.direction is None:
            problems.check(not self.name, "name", "must be absent for a token")
        else:
            long = f"must have between 1 and {MAX_TARGET_NAME_CHARACTERS} characters"
            problems.check(0 < len(self.name) <= MAX_TARGET_NAME_CHARACTERS, "name", long)
            numbers = self.direction.tensor
            if numbers is not None:
                problems.check(numbers.ndim == 1, "direction", f"must have one axis, not {numbers.ndim}")
                problems.check(bool(numbers.any()), "direction", "must not be 0 everywhere")
                largest = float(np.abs(numbers).max(initial=0))
                is_small = not largest > MOST_DIRECTION  # NaN is told of by itself
                problems.check(is_small, "direction", f"must have no entry beyond {MOST_DIRECTION:g}")
        if self.weight is not None:
            problems.check(
                LEAST_WEIGHT <= self.weight <= MOST_WEIGHT,
                "weight",
                f"must be between {LEAST_WEIGHT:g} and {MOST_WEIGHT:g}, not {self.weight}",
            )
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRequest:
    """The attribution graph of a prompt."""

    prompt: Prompt
    """The prompt."""
    transcoders: str | None = None
    """Name or handle of a set of transcoders, or of cross-layer transcoders, if features are among the sources; None =
    the only one of the model."""
    request_id: str = ""
    """The client's own id."""
    model: str | None = None
    """Name or handle of the model; None = the server's default."""
    begin_token: BeginToken = BeginToken.AUTOMATIC
    """What the prompt begins with."""
    targets: tuple[GraphTarget, ...] = ()
    """The nodes that effects are traced back from; empty = the logits of the most probable tokens."""
    max_n_logits: int = DEFAULT_MAX_N_LOGITS
    """Without targets: at most so many logits."""
    desired_logit_prob: float = DEFAULT_LOGIT_PROB
    """Without targets: as few logits as have so much probability together."""
    max_feature_nodes: int | None = None
    """At most so many units are nodes, those of the largest influence; None = all that are active, but
    `DEFAULT_NEURON_NODES` if neurons are among the sources."""
    batch_size: int = DEFAULT_BATCH_SIZE
    """Units whose edges are computed together."""
    update_interval: int = DEFAULT_UPDATE_INTERVAL
    """Batches after which influences are ranked again."""
    node_threshold: float = DEFAULT_NODE_THRESHOLD
    """The share of all influence that the nodes have together that pruning keeps."""
    edge_threshold: float = DEFAULT_EDGE_THRESHOLD
    """The same of edges."""
    edges: GraphEdgeSelection = GraphEdgeSelection.PRUNED
    """Which edges are sent."""
    max_bytes: int | None = None
    """Bytes of memory that the graph and its computation may take, beyond weights; None = what the server allows."""
    keep: bool | None = None
    """Whether the server keeps the graph, else refuses to compute it; None = unless it takes more than it may keep."""
    sources: tuple[GraphSource, ...] = ()
    """What units are; empty = latents if there are autoencoders, else features."""
    autoencoders: tuple[str, ...] = ()
    """Names or handles of the sets of autoencoders whose latents are units."""

    @property
    def chosen_sources(self) -> tuple[GraphSource, ...]:
        """What units are, each once."""
        if self.sources:
            return self.sources
        return (GraphSource.LATENTS if self.autoencoders else GraphSource.FEATURES,)

    @property
    def most_feature_nodes(self) -> int | None:
        """At most so many units are nodes; None if all are that are active."""
        if self.max_feature_nodes is None and GraphSource.NEURONS in self.chosen_sources:
            return DEFAULT_NEURON_NODES
        return self.max_feature_nodes

    def __post_init__(self) -> None:
        """Check what needs no model; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        check_id(problems, "request_id", self.request_id)
        check_names(problems, self.model, self.autoencoders)
        if self.transcoders is not None:
            try:
                ContextRef.parse(self.transcoders)
            except InvalidRequest as error:
                problems.extend(error, "transcoders")
        self._check_sources(problems)
        self._check_targets(problems)
        for field, most in (("max_n_logits", MAX_TARGETS), ("batch_size", MAX_BATCH_SIZE)):
            value = getattr(self, field)
            problems.check(1 <= value <= most, field, f"must be between 1 and {most}, not {value}")
        rounds = self.update_interval
        fits = 1 <= rounds <= MAX_BATCH_SIZE
        problems.check(fits, "update_interval", f"must be between 1 and {MAX_BATCH_SIZE}, not {rounds}")
        probability = self.desired_logit_prob
        is_share = 0 < probability <= 1
        problems.check(is_share, "desired_logit_prob", f"must be above 0 and at most 1, not {probability}")
        check_number(problems, "max_feature_nodes", self.max_feature_nodes, least=1)
        check_number(problems, "max_bytes", self.max_bytes, most=2**64 - 1)
        check_thresholds(problems, self.node_threshold, self.edge_threshold)
        problems.raise_if_any()

    def _check_sources(self, problems: Violations) -> None:
        """Note sources that exclude one another, and sets that are needed for none of them."""
        chosen = self.chosen_sources
        for i, source in enumerate(chosen):
            problems.check(chosen.index(source) == i, f"sources[{i}]", f"{source} are sources already")
        both = GraphSource.FEATURES in chosen and GraphSource.NEURONS in chosen
        problems.check(not both, "sources", "must not hold features and neurons: both stand for what MLPs write")
        if GraphSource.FEATURES not in chosen:
            unread = "must be absent, as features are not among the sources; or add features to the sources"
            problems.check(self.transcoders is None, "transcoders", unread)
        if GraphSource.LATENTS in chosen:
            named = "is required, as latents are among the sources: the names of sets of autoencoders"
            problems.check(bool(self.autoencoders), "autoencoders", named)
        else:
            unread = "must be absent, as latents are not among the sources; or add latents to the sources"
            problems.check(not self.autoencoders, "autoencoders", unread)

    def _check_targets(self, problems: Violations) -> None:
        """Note targets that are asked for twice; by their texts, tokens are compared once they are known."""
        for field in ("token", "token_id", "name"):
            seen: dict[object, int] = {}
            for i, target in enumerate(self.targets):
                value = getattr(target, field)
                if value in {None, ""}:
                    continue
                first = seen.setdefault(value, i)
                problems.check(first == i, f"targets[{i}].{field}", f"is that of targets[{first}] too")


def check_thresholds(problems: Violations, node_threshold: float, edge_threshold: float) -> None:
    """Note thresholds of pruning that are no shares."""
    for field, value in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
        problems.check(0 <= value <= 1, field, f"must be between 0 and 1, not {value}")

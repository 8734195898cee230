"""Plans of TopK and Explain: the plans of their runs, the groups, and the parts to send. Plain values.

Both have the same form: runs, groups to select nodes by, and parts of the explanation.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from dst_grpc.domain.components import NodeType
from dst_grpc.domain.explain import TopKSelection
from dst_grpc.domain.explanations import ExplainPart
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.pipeline.answer_memory import MESSAGE_BYTES, of_layer
from dst_grpc.pipeline.sizes import BYTES_OF_FLOAT32
from dst_grpc.scalars.token_scoring import scoring_bytes
from dst_grpc.scalars.topk import STEP_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.domain.explain import TopKGroup
    from dst_grpc.domain.scalar_types import DerivedScalarType
    from dst_grpc.pipeline.findings import Findings
    from dst_grpc.pipeline.plan import Plan

_L = ActivationLocationType
_P = ExplainPart
MAX_TABLE_NODES = 20_000
"""Most nodes of one table."""
KEPT_BYTES = 2 << 20
"""Bytes of derived scalars that are kept between choosing nodes and looking them up: those of short prompts."""
_SCORES_OF_A_MESSAGE = 20_000
_COPIES_OF_CHOSEN = 2
_BYTES_OF_SCORE = 256
"""A scored token as objects: itself (64), two floats (48), its id (32), its place in a list (8), and the numbers of the
lists that it is made of, as Python's (104)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainPlan:
    """A request of TopK or Explain, checked and completed."""

    request_id: str
    plans: tuple[Plan, ...]
    """Its runs."""
    groups: tuple[TopKGroup, ...]
    """What to select nodes by."""
    component_groups: tuple[TopKGroup, ...]
    """The groups of the component sums; empty if these are not asked for."""
    k: int
    token_indices: tuple[int | None, ...]
    """The token of each run to select nodes at; None = every token."""
    logit_tokens: tuple[int, ...]
    """The token of each run whose logits are ranked."""
    is_shared: bool
    """Whether the runs share one list of nodes."""
    with_sums: bool
    parts: frozenset[ExplainPart]
    """The parts to send, including the node table if another part refers to it."""
    scored_token_count: int = 0
    token_pair_count: int = 0
    top_logit_count: int = 0
    unit_length_embeddings: bool = False
    """Whether input tokens are scored by embeddings of unit length."""

    @property
    def peak_bytes(self) -> int:
        """Estimated memory of all its runs together, and of the answer."""
        return sum(plan.cost.peak_bytes - MESSAGE_BYTES for plan in self.plans) + self._answer_bytes

    @property
    def held_bytes(self) -> int:
        """Estimated bytes that what its runs recorded, and the making of the answer, take once the passes are over."""
        return sum(plan.held_bytes - MESSAGE_BYTES for plan in self.plans) + self._answer_bytes

    @property
    def _answer_bytes(self) -> int:
        """Bytes of making the answer of all runs, and of one message of it."""
        return max(self._scoring_bytes, self._choosing_bytes) + MESSAGE_BYTES

    @property
    def _choosing_bytes(self) -> int:
        """Bytes of the layers of a derived scalar that are searched together for its largest entries: what may be
        chosen from, in rows and in blocks, besides the tensors themselves; and of the scalars that are kept
        meanwhile."""
        scalars = [one for plan in self.plans for one in plan.scalars]
        kept = min(sum(one.output_bytes for one in scalars), KEPT_BYTES)
        searched = (max(of_layer(one), min(one.output_bytes, STEP_BYTES)) for one in scalars)
        return kept + _COPIES_OF_CHOSEN * max(searched, default=0)

    @property
    def _vectors_of_a_run(self) -> int:
        """The most vectors of one run that tokens are scored for."""
        if not any(part.scores_tokens for part in self.parts):
            return 0
        return sum(_vectors_of(node_type) * n for node_type, n in self._chosen_of_types.items())

    @property
    def _scoring_bytes(self) -> int:
        """Bytes while tokens are scored for the nodes of a message: of their scores, and of the tokens that were found,
        of which one part is sent while those of the next message are made."""
        if not (in_all := self._vectors_of_a_run):
            return 0
        at_once = min(1.0, self.nodes_of_a_message / self._chosen)
        n_vectors, n_nodes = int(len(self.plans) * in_all * at_once), int(len(self.plans) * self._chosen * at_once)
        vocabulary = self.plans[0].model.dimensions.vocab_size
        count = min(self.scored_token_count, vocabulary)
        return scoring_bytes(n_vectors, vocabulary, count) + 2 * count * _BYTES_OF_SCORE * (n_vectors + n_nodes)

    @property
    def _chosen(self) -> int:
        """The most nodes that all groups can select in one run."""
        return sum(self._chosen_of_types.values())

    @property
    def _chosen_of_types(self) -> Counter[NodeType]:
        """The most nodes of each type: groups may select the same, and no more than there are."""
        chosen, there_are = Counter[NodeType](), Counter[NodeType]()
        for group in self.groups:
            for dst, n in self._choices(group).items():
                chosen[FACTS[dst].node_type] += n
        for scalar in (scalar for plan in self.plans for scalar in plan.scalars):
            node_type, n = scalar.facts.node_type, scalar.output_bytes // BYTES_OF_FLOAT32
            there_are[node_type] = max(there_are[node_type], n)
        return chosen & there_are

    @property
    def nodes_of_a_message(self) -> int:
        """Nodes of one run whose tokens are scored, and sent, together."""
        return max(_SCORES_OF_A_MESSAGE // max(2 * self.scored_token_count, 1), 1)

    def _choices(self, group: TopKGroup) -> dict[DerivedScalarType, int]:
        """The most nodes of each type that *group* can select in one run."""
        sizes: dict[DerivedScalarType, int] = {}
        for scalar in (scalar for plan in self.plans for scalar in plan.scalars):  # prompts differ in length
            sizes[scalar.facts.type] = max(sizes.get(scalar.facts.type, 0), scalar.output_bytes // BYTES_OF_FLOAT32)
        wanted = (self.k if group.k is None else group.k) * len(ends_of(group.selection))
        return {dst: min(wanted, sizes.get(dst, 0)) for dst in group.dsts}

    def check_size(self, findings: Findings) -> None:
        """Note a k that is too large: one that may overfill the table of a single run."""
        sums = list(accumulate(sum(self._choices(group).values()) for group in self.groups))
        for i, (group, total) in enumerate(zip(self.groups, sums, strict=True)):
            if total > MAX_TABLE_NODES:
                field, k = ("k", self.k) if group.k is None else (f"groups[{i}].k", group.k)
                problem = f"{k} makes the groups choose up to {sums[-1]} nodes; a table holds at most {MAX_TABLE_NODES}"
                findings.add(field, problem)
                return

    @property
    def floating_point_operations(self) -> int:
        """Approximate operations of all its runs, and of the products of what is scored with the vocabulary."""
        dimensions = self.plans[0].model.dimensions
        of_runs = sum(plan.cost.floating_point_operations for plan in self.plans)
        return of_runs + 2 * len(self.plans) * self._vectors_of_a_run * dimensions.d_model * dimensions.vocab_size

    @property
    def n_steps(self) -> int:
        """Steps of the answer besides the first, approximately: all but the scored tokens, which come node by node, are
        one of each part."""
        scoring = sum(part.scores_tokens for part in self.parts)
        messages = -(-self._chosen // self.nodes_of_a_message) if scoring else 0
        return len(self.parts) - scoring + scoring * messages

    def digest(self, model: str, autoencoders: Sequence[str]) -> str:
        """SHA-256 of everything that determines the answer's numbers, given the handles of what was loaded for it."""
        of_runs = tuple(plan.digest(model, autoencoders) for plan in self.plans)
        rest = replace(self, request_id="", plans=(), parts=frozenset())
        return hashlib.sha256(repr((of_runs, rest, sorted(self.parts))).encode()).hexdigest()


def _vectors_of(node_type: NodeType) -> int:
    """How many vectors of a node tokens are scored for: its write, and what it reads, if it does, or a head's query and
    its key read."""
    if node_type is NodeType.ATTENTION_HEAD:
        return 3
    return 1 if node_type in {NodeType.LAYER, NodeType.VOCAB_TOKEN, NodeType.AUTOENCODER_ERROR} else 2


def ends_of(selection: TopKSelection) -> tuple[bool, ...]:
    """The ends to select from: True for the largest."""
    return {TopKSelection.TOP: (True,), TopKSelection.BOTTOM: (False,)}.get(selection, (True, False))


def logits_are_changed(plan: Plan) -> bool:
    """Whether an intervention makes the logits differ from those of the last residual."""
    return any(one.at.activation_location_type.facts.is_after_layers for one in plan.run.interventions)

"""Answers of TopK and Explain: the selected nodes, their values, and what they read and write. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from dst_grpc.domain.indices import NodeIndex
from dst_grpc.domain.results import RunHeader, RunSummary
from dst_grpc.domain.scalar_types import DerivedScalarType

MAX_TOKENS_OF_PAIR_SUMS = 1000
"""Longest prompt whose sums are kept by pair of tokens: [T, U] must fit into a message of 4 MiB."""


class ExplainPart(StrEnum):
    """The parts that an explanation can have."""

    NODE_TABLE = "node_table"
    """The nodes of the groups, and their sums."""
    COMPONENT_SUMS = "component_sums"
    """Sums of neurons and heads by token, whatever the groups are."""
    UPVOTED_OUTPUT_TOKENS = "upvoted_output_tokens"
    """Tokens of the vocabulary that the write of a node promotes and demotes."""
    INPUT_TOKENS_THAT_UPVOTE_MLP = "input_tokens_that_upvote_mlp"
    """Tokens whose embedding would raise the activation of a neuron, or of a latent of the MLPs."""
    INPUT_TOKENS_THAT_UPVOTE_ATTN_Q = "input_tokens_that_upvote_attn_q"
    """Tokens that, at the query, would raise a head's score for its pair of tokens."""
    INPUT_TOKENS_THAT_UPVOTE_ATTN_K = "input_tokens_that_upvote_attn_k"
    """Tokens that, at the key, would raise a head's score for its pair of tokens."""
    TOKEN_PAIRS = "token_pairs"
    """Tokens that contribute to the activation of a latent of attention."""
    TOP_LOGITS = "top_logits"
    """The largest and smallest output logits at the traced node's token, else at the last."""

    @property
    def scores_tokens(self) -> bool:
        """Whether it scores the tokens of the vocabulary for each node."""
        return self in {
            ExplainPart.UPVOTED_OUTPUT_TOKENS,
            ExplainPart.INPUT_TOKENS_THAT_UPVOTE_MLP,
            ExplainPart.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q,
            ExplainPart.INPUT_TOKENS_THAT_UPVOTE_ATTN_K,
        }

    @property
    def is_about_nodes(self) -> bool:
        """Whether it refers to nodes of the table."""
        return self.scores_tokens or self is ExplainPart.TOKEN_PAIRS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScalarSum:
    """The sum of a whole derived scalar over all layers and all axes but those of the tokens."""

    dst: DerivedScalarType
    """Which type."""
    values: np.ndarray[Any, Any]
    """[T], or [T, U] for pairs of tokens of a prompt of at most `MAX_TOKENS_OF_PAIR_SUMS`; float32."""
    first_token: int = 0
    """Query token of the first entry or row; 0 unless this is a piece of a sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualShares:
    """The effect of the residual stream at one layer, split into what its autoencoder says of it."""

    layer_index: int
    """The layer of the autoencoder."""
    listed: float
    """Sum over the listed latents and errors of the layer."""
    latents: float
    """Sum over all latents."""
    error: float
    """Of what the autoencoder does not reconstruct."""
    decoder_bias: float
    """Of what the decoder writes without any latent."""

    @property
    def total(self) -> float:
        """Of the whole residual, which is that of all that was written before."""
        return self.latents + self.error + self.decoder_bias


@dataclass(frozen=True, slots=True, kw_only=True)
class Completeness:
    """How much of the whole the listed nodes of a group account for."""

    listed: float
    """Sum of the group's values over the listed nodes."""
    total: float
    """Sum over all nodes of the group's types, listed or not."""
    target: float | None
    """The loss or traced value; None without an origin, and in a group of nothing but the residual stream."""
    reconstruction_error: float | None = None
    """Direct effect of what autoencoders do not reconstruct where their latents stand; None where none do."""
    uncovered_layers: float | None = None
    """Direct effect of MLPs and attention at the layers without latents to stand for them; None as before."""
    residuals: tuple[ResidualShares, ...] = ()
    """Of groups of effects that have latents of the residual stream: the residual at each layer of their autoencoders.
    These say again what was written before, so that they take no part in the fields above."""
    skip_connections: float | None = None
    """Direct effect of what skip connections write where latents of transcoders stand; None where there are none."""

    @property
    def unaccounted(self) -> float | None:
        """What of the target belongs to no node, listed or not: biases, and what is not linear; None without one."""
        if self.target is None:
            return None
        left_out = (self.reconstruction_error, self.uncovered_layers, self.skip_connections)
        return self.target - self.total - sum(effect or 0.0 for effect in left_out)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupValues:
    """The values of a table's nodes in one group, and which of them the group selected."""

    group_id: str
    """Which group."""
    values: np.ndarray[Any, Any]
    """Value of each node [N], float32, parallel to the table's nodes; NaN where the group has none of its type."""
    top: tuple[int, ...]
    """Positions, among the nodes, of the largest that the group itself selected in this run, descending by value."""
    bottom: tuple[int, ...]
    """Likewise of the smallest, descending by value."""
    completeness: Completeness | None = None
    """What the listed nodes account for."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class NodeTable:
    """A list of nodes and their values in each group."""

    nodes: tuple[NodeIndex, ...]
    """The nodes, none twice: those that each group selected, in the order of the groups."""
    groups: tuple[GroupValues, ...]
    """One per group, in the request's order."""
    vocab_tokens: tuple[str, ...] = ()
    """Text of each node that is a token of the vocabulary, "" for others; empty if no node is one."""
    log_normalizer: float | None = None
    """Of output logits: the logarithm of the sum of the exponentials of all of the token's, listed or not."""

    def group(self, group_id: str) -> GroupValues:
        """The group of that name; raises KeyError listing the existing names."""
        for group in self.groups:
            if group.group_id == group_id:
                return group
        raise KeyError(f"no group {group_id!r}; there are {', '.join(group.group_id for group in self.groups)}")

    @property
    def probabilities(self) -> np.ndarray[Any, Any]:
        """Of output logits, the probability [N] of each listed token among all of the vocabulary, float64.

        Raises:
            ValueError: If it is a table of something else.
        """
        if self.log_normalizer is None:
            raise ValueError("only a table of output logits has probabilities")
        (logits,) = self.groups
        with np.errstate(invalid="ignore", over="ignore"):
            return np.exp(logits.values.astype(np.float64) - self.log_normalizer)

    def __repr__(self) -> str:
        """Counts only."""
        return f"<NodeTable of {len(self.nodes)} nodes, by {', '.join(group.group_id for group in self.groups)}>"


@dataclass(frozen=True, slots=True)
class TokenScore:
    """The score of a token of the vocabulary."""

    token_id: int
    """The token."""
    token: str
    """Its text."""
    score: float
    """Its score."""
    normalized_score: float
    """The score divided by the largest absolute score of the node's lists; 0 if that is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTokens:
    """Scored tokens of one node."""

    node: int
    """The node: its position in the run's node table."""
    top: tuple[TokenScore, ...]
    """The highest scores, descending."""
    bottom: tuple[TokenScore, ...]
    """The lowest scores, ascending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTokens:
    """Scored tokens of the nodes of a table."""

    part: ExplainPart
    """How they are scored."""
    nodes: tuple[NodeTokens, ...]
    """The nodes that can be scored so, in the table's order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTokenPairs:
    """The tokens that contribute most to a latent of attention."""

    node: int
    """The node: its position in the run's node table."""
    attended_tokens: tuple[tuple[int, float], ...]
    """Position of each token in the prompt, and its attribution; descending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPairs:
    """Token pairs of the latents of attention in a table."""

    nodes: tuple[NodeTokenPairs, ...]
    """The latents that are active offline, in the table's order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsTrailer(RunSummary):
    """The last frame of an answer about runs, with their cost together. Without it the answer is truncated."""

    frame_count: int
    """Frames of the answer, this one included."""


class PartKind(StrEnum):
    """What a frame of an answer holds."""

    HEADER = "header"
    """A RunHeader, the first of its run."""
    NODE_TABLE = "node_table"
    """The NodeTable of the groups."""
    COMPONENT_SUMS = "component_sums"
    """A NodeTable of neurons and heads with k = 1."""
    SCALAR_SUM = "scalar_sum"
    """A ScalarSum, one for each type of the tables."""
    SCORED_TOKENS = "scored_tokens"
    """ScoredTokens; those of many nodes are sent in several frames."""
    TOKEN_PAIRS = "token_pairs"
    """TokenPairs; those of many nodes are sent in several frames."""
    TOP_LOGITS = "top_logits"
    """A NodeTable with the one group "logits"."""
    TRAILER = "trailer"
    """A RunsTrailer, the last of all."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExplanationPart:
    """One frame of an answer of Explain or TopK."""

    kind: PartKind
    """What it holds."""
    value: RunHeader | NodeTable | ScalarSum | ScoredTokens | TokenPairs | RunsTrailer
    """Its content."""
    run_index: int = 0
    """Which run, by its position in the request; 0 in the trailer."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RunExplanation:
    """The whole answer about one run. Parts that were not asked for, or do not apply to the request, are None or
    empty."""

    header: RunHeader
    """Model, tokens and origin of the run."""
    node_table: NodeTable | None = None
    """The nodes that the groups selected."""
    component_sums: NodeTable | None = None
    """The same groups for neurons and heads, with k = 1."""
    sums: tuple[ScalarSum, ...] = ()
    """Sums of the types of both tables, each type once."""
    scored_tokens: tuple[ScoredTokens, ...] = ()
    """Scored tokens, one for each way to score."""
    token_pairs: TokenPairs | None = None
    """Token pairs."""
    top_logits: NodeTable | None = None
    """Output logits, as the one group "logits"."""

    def sum_of(self, dst: DerivedScalarType) -> np.ndarray[Any, Any]:
        """The sum [T] or [T, U] of a whole derived scalar; raises KeyError listing the types that have one."""
        for found in self.sums:
            if found.dst is dst:
                return found.values
        raise KeyError(f"no sum of {dst}; there are {', '.join(found.dst.value for found in self.sums)}")

    def tokens_of(self, part: ExplainPart) -> ScoredTokens | None:
        """The tokens scored in one way; None if they were not asked for."""
        return next((scored for scored in self.scored_tokens if scored.part is part), None)

    def __repr__(self) -> str:
        """What there is, in a line."""
        header = self.header
        parts = [header.model, f"{len(header.token_strings)} tokens"]
        parts += [f"loss={header.loss:.4g}", header.convention] if header.loss is not None else []
        parts += [f"activation_value={header.activation_value:.4g}"] if header.activation_value is not None else []
        tables = {name: getattr(self, name) for name in ("node_table", "component_sums", "top_logits")}
        parts += [f"{name}[{len(table.nodes)}]" for name, table in tables.items() if table is not None]
        parts += [f"{len(self.sums)} sums"] if self.sums else []
        return f"<RunExplanation {', '.join(parts)}>"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Explanation:
    """A whole answer of Explain, or of TopK."""

    request_id: str
    """The request's own id."""
    runs: tuple[RunExplanation, ...]
    """One per run of the request, in its order."""
    trailer: RunsTrailer
    """How it ended."""

    def __repr__(self) -> str:
        """What there is, a line for each run."""
        own = f"{self.request_id!r}, " if self.request_id else ""
        return "\n".join(
            [f"<Explanation {own}{len(self.runs)} run{'s' * (len(self.runs) > 1)}>", *map(repr, self.runs)]
        )

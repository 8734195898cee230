"""Texts for entries of derived scalars: node and place."""

from __future__ import annotations

from collections.abc import Sequence

from dst_grpc.client import Dimension, Entry
from dst_grpc.domain.nodes import NODES


def node_name(entry: Entry) -> str:
    """The node without its layer and token: "head 1", "neuron 33", "latent 7"; empty if the last axis has size 1."""
    if entry.node is None:
        return ""
    kind = NODES[entry.node_type].word
    if Dimension.ATTN_HEADS in entry.dimensions[:-1]:
        head = entry.indices[entry.dimensions.index(Dimension.ATTN_HEADS)]
        return f"head {head} {kind} {entry.node}"
    return f"{kind} {entry.node}"


def place(entry: Entry, tokens: Sequence[str]) -> str:
    """The place of the entry: "' to' (13)", or, at a pair of tokens, "' to' (13) <- ' Mary' (1)"."""
    parts = [
        f"{tokens[at]!r} ({at})" for at in (entry.token, entry.attended_token) if at is not None and at < len(tokens)
    ]
    return " <- ".join(parts)


def entry_facts(entry: Entry, tokens: Sequence[str]) -> dict[str, object]:
    """An entry for programs."""

    def text(at: int | None) -> str | None:
        return tokens[at] if at is not None and at < len(tokens) else None

    return {
        "layer_index": entry.layer_index,
        "pass_type": entry.pass_type.value,
        "indices": list(entry.indices),
        "node_type": entry.node_type.value,
        "node": entry.node,
        "token": entry.token,
        "token_string": text(entry.token),
        "attended_token": entry.attended_token,
        "attended_token_string": text(entry.attended_token),
        "value": entry.value,
    }

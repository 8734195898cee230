"""What nodes write and read, as vectors of the residual stream, and which tokens of the vocabulary lie along them.

All products with the vocabulary are one per list of nodes, in chunks bounded in memory. What a node writes is a number
times a direction, which nodes at other tokens share, so that each direction is scored once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.components import Component, NodeType, PreOrPostAct
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.nodes import NODES
from dst_grpc.engine.layer import unit_write
from dst_grpc.errors import require
from dst_grpc.scalars.components import HeadPairs, times, write_factor
from dst_grpc.scalars.extremes import extremes
from dst_grpc.scalars.reads import latent_location, output_scale
from dst_grpc.scalars.recompute import activation
from dst_grpc.scalars.rows import latent_rows
from dst_grpc.scalars.topology import residual_entering

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dst_grpc.domain.architecture import Architecture
    from dst_grpc.domain.indices import NodeIndex
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.explained_model import ExplainedModel
    from dst_grpc.scalars.recorded_taps import RecordedTaps
    from dst_grpc.scalars.topology import AutoencoderInputs, Topology

_L = ActivationLocationType
CHUNK_TOKENS = 4096
"""Tokens scored at a time: memory is bounded, and what is multiplied stays in the caches."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """One vector of the residual stream for each of some nodes: a coefficient times a row of *directions*."""

    nodes: tuple[int, ...]
    """Positions of the nodes in their list."""
    directions: torch.Tensor
    """[M, d], M at most the number of nodes."""
    rows: tuple[int, ...]
    """Which direction is each node's."""
    coefficients: tuple[float, ...]
    """What it is multiplied by."""


@dataclass(frozen=True, slots=True)
class TokenExtremes:
    """For each of N vectors the tokens along it: the best first, the worst first."""

    top: torch.Tensor
    """Scores [N, count], descending."""
    top_ids: torch.Tensor
    """Their tokens."""
    bottom: torch.Tensor
    """Scores [N, count], ascending."""
    bottom_ids: torch.Tensor
    """Their tokens."""


def extreme_tokens(vectors: torch.Tensor, vocabulary: torch.Tensor, count: int, *, centred: bool) -> TokenExtremes:
    """The tokens with the highest and lowest inner products.

    Args:
        vectors: [N, d].
        vocabulary: a column per token, [d, V].
        count: tokens at each end.
        centred: whether each vector's mean over all tokens is subtracted.
    """
    n_tokens = vocabulary.shape[1]
    # Runs share what neurons and latents write, and equal prompts more than that.
    vectors, which = vectors.unique(dim=0, return_inverse=True)
    found: tuple[list[torch.Tensor], ...] = ([], [], [], [])
    sums = vectors.new_zeros(len(vectors), 1, dtype=torch.float64)
    for start in range(0, n_tokens, CHUNK_TOKENS):
        scores = (vectors @ vocabulary[:, start : start + CHUNK_TOKENS]).float()
        if centred:
            sums += scores.sum(dim=1, keepdim=True)
        for end, largest in enumerate((True, False)):
            values, ids = extremes(scores, count, largest=largest)
            found[2 * end].append(values)
            found[2 * end + 1].append(ids + start)
    mean = (sums / n_tokens).float()
    ends = []
    for end, largest in enumerate((True, False)):
        values, ids = torch.cat(found[2 * end], dim=1), torch.cat(found[2 * end + 1], dim=1)
        values, places = values.topk(min(count, n_tokens), dim=1, largest=largest)
        ends += [(values - mean)[which], ids.gather(1, places)[which]]
    return TokenExtremes(*ends)


def sites_of_vectors(node_types: frozenset[NodeType], layers: Sequence[int], topology: Topology) -> Iterator[Site]:
    """Taps that what nodes of these types write, and what they read, is made of, at *layers*."""
    if NodeType.LAYER in node_types:
        yield _L.RESID_POST_EMBEDDING, None
    for layer in layers:
        if NodeType.MLP_NEURON in node_types:
            yield _L.MLP_POST_ACT, layer
        if NodeType.ATTENTION_HEAD in node_types:
            for tap in (_L.ATTN_QK_PROBS, _L.ATTN_VALUE, _L.ATTN_QUERY, _L.ATTN_KEY):
                yield tap, layer
        for node_type in node_types:
            facts = NODES[node_type]
            if facts.may_read_mlp_input or node_type is NodeType.ATTENTION_HEAD:
                yield topology.residual_before(node_type, layer).site
            if facts.component is not None:
                kind = topology.inputs.of(node_type)
                scale = output_scale(facts.component, kind, topology.architecture)
                if scale is not None:
                    yield scale, layer


_Grouped = dict[tuple[NodeType, "int | None"], tuple[list[int], list[tuple[int, ...]]]]


def _grouped(nodes: Sequence[NodeIndex]) -> _Grouped:
    """Positions in the list, and indices, of the nodes of each type and layer that stand for one entry."""
    found: _Grouped = {}
    for place, node in enumerate(nodes):
        indices = tuple(index for index in node.tensor_indices if index is not None)
        if len(indices) == len(node.tensor_indices):
            places, entries = found.setdefault((node.node_type, node.layer_index), ([], []))
            places.append(place)
            entries.append(indices)
    return found


# What nodes write


@torch.no_grad()
def writes(model: ExplainedModel, recorded: RecordedTaps, nodes: Sequence[NodeIndex]) -> Vectors:
    """What each node adds to the residual stream at its own token; nodes of which that is not known are left out.

    The embedding's node is one of type LAYER outside any layer. A latent writes if its autoencoder is in the run, and
    an attention head for a pair of tokens.
    """
    places: list[int] = []
    rows: list[torch.Tensor] = []
    coefficients: list[torch.Tensor] = []
    directions: list[torch.Tensor] = []
    n_directions = 0
    for (node_type, layer), (where, entries) in _grouped(nodes).items():
        indices = torch.tensor(entries, device=model.decoder.device).t()
        found = _writes_of(model, recorded, node_type, layer, indices)
        if found is None:
            continue
        of_each, which, of_layer = found
        if layer is not None:
            factor = write_factor(model, recorded, require(NODES[node_type].component), node_type, layer)
            of_each = times(of_each, None if factor is None else factor[indices[0]])
        places += where
        coefficients.append(of_each)
        rows.append(which + n_directions)
        directions.append(of_layer)
        n_directions += len(of_layer)
    return _vectors(model, places, directions, rows, coefficients)


def _writes_of(
    model: ExplainedModel, recorded: RecordedTaps, node_type: NodeType, layer: int | None, indices: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Of n nodes: coefficients [n], which direction is whose [n], and the directions [m, d]; None if unknown.

    *indices* are [axes, n].
    """
    if layer is None:
        if node_type is not NodeType.LAYER:
            return None
        tokens, which = indices[0].unique(return_inverse=True)
        embedded = recorded.value((_L.RESID_POST_EMBEDDING, None))[tokens]
        return torch.ones_like(which, dtype=embedded.dtype), which, embedded
    block = model.decoder.layers[layer]
    if node_type is NodeType.MLP_NEURON:
        neurons, which = indices[1].unique(return_inverse=True)
        directions = unit_write(block.mlp_out[neurons], block.mlp_post_norm)
        return recorded.value((_L.MLP_POST_ACT, layer))[tuple(indices)], which, directions
    if node_type is NodeType.ATTENTION_HEAD and len(indices) == 3:
        probs, values = recorded.value((_L.ATTN_QK_PROBS, layer)), recorded.value((_L.ATTN_VALUE, layer))
        sources, which = indices[1:].unique(dim=1, return_inverse=True)
        u, h = sources
        directions = unit_write(torch.einsum("nc,ncd->nd", values[u, h], block.attn_out[h]), block.attn_post_norm)
        return probs[tuple(indices)], which, directions
    kind = model.inputs.of(node_type) if NODES[node_type].is_autoencoder_latent else None
    if kind is not None and kind.is_spliceable:
        latents, which = indices[1].unique(return_inverse=True)
        found = recorded.value((latent_location(node_type, model.inputs), layer))
        return found[tuple(indices)], which, latent_rows(model, node_type, layer).rows(latents)
    return None


# What nodes read


def mlp_reads(model: ExplainedModel, recorded: RecordedTaps, nodes: Sequence[NodeIndex]) -> Vectors:
    """What raises each neuron, and each latent of the MLPs, before its nonlinearity; other nodes are left out.

    The gradient at the residual before the node, at its token, with the norm's scale held.
    """
    places: list[int] = []
    gradients: list[torch.Tensor] = []
    for (node_type, layer), (where, entries) in _grouped(nodes).items():
        if layer is None or not _reads_mlp_input(node_type, model.inputs):
            continue
        tokens, which = torch.tensor(entries, device=model.decoder.device).t()
        rho = recorded.value(model.topology.residual_before(node_type, layer).site)[tokens]
        with torch.enable_grad():
            # Rows are tokens of their own here: an MLP reads one token at a time.
            rho = rho.requires_grad_()
            if node_type is NodeType.MLP_NEURON:
                block = model.decoder.layers[layer]
                pre = block.neuron_pre_act(block.mlp_norm(rho, detach_scale=True), which)
            else:
                latents = activation(model, node_type, layer, rho, at=PreOrPostAct.PRE, detach_scale=True)
                pre = latents.gather(1, which.unsqueeze(1))
            gradients += torch.autograd.grad(pre.sum(), rho)
        places += where
    return _vectors(model, places, gradients)


def _reads_mlp_input(node_type: NodeType, inputs: AutoencoderInputs) -> bool:
    if node_type is NodeType.MLP_NEURON:
        return True
    kind = inputs.of(node_type) if NODES[node_type].may_read_mlp_input else None
    return kind is not None and kind.is_of_mlp and kind.is_traced


def score_reads(model: ExplainedModel, recorded: RecordedTaps, nodes: Sequence[NodeIndex]) -> tuple[Vectors, Vectors]:
    """What raises the score of each attention head for its pair of tokens.

    Other nodes are left out, and pairs that a sliding window hides.

    Returns:
        The gradients at the query's residual with the key held, and at the key's with the query held; the norm's scale
        is held in both.
    """
    places: list[int] = []
    of_queries: list[torch.Tensor] = []
    of_keys: list[torch.Tensor] = []
    for (node_type, layer), (where, entries) in _grouped(nodes).items():
        if layer is None or node_type is not NodeType.ATTENTION_HEAD or len(entries[0]) != 3:
            continue
        block = model.decoder.layers[layer]
        seen = [i for i, (t, u, _) in enumerate(entries) if block.window is None or t - u < block.window]
        if not seen:
            continue
        where = [where[i] for i in seen]  # noqa: PLW2901  of the pairs that have a score
        t, u, h = torch.tensor([entries[i] for i in seen], device=model.decoder.device).t()
        rho = recorded.value(residual_entering(layer).site)[torch.cat((t, u))]
        keys, queries = recorded.value((_L.ATTN_KEY, layer))[u], recorded.value((_L.ATTN_QUERY, layer))[t]
        n = len(h)
        with torch.enable_grad():
            rho = rho.requires_grad_()
            q, k, _ = block.qkv(block.attn_norm(rho, detach_scale=True), torch.cat((t, u)))
            raised = torch.cat((q[:n], queries)).unsqueeze(1)
            held = torch.cat((keys, k[n:])).unsqueeze(1)
            scores = block.attn_scores(raised, held)[torch.arange(2 * n, device=h.device), 0, 0, h.repeat(2)]
            (gradient,) = torch.autograd.grad(scores.sum(), rho)
        places += where
        of_queries.append(gradient[:n])
        of_keys.append(gradient[n:])
    return _vectors(model, places, of_queries), _vectors(model, places, of_keys)


def _vectors(
    model: ExplainedModel,
    places: list[int],
    directions: list[torch.Tensor],
    rows: list[torch.Tensor] | None = None,
    coefficients: list[torch.Tensor] | None = None,
) -> Vectors:
    """Vectors of nodes in the order of their list; without *rows*, each has a direction of its own."""
    if not places:
        empty = model.decoder.embedding.new_zeros(0, model.decoder.config.d_model)
        return Vectors((), empty, (), ())
    n = len(places)
    row_of = range(n) if rows is None else torch.cat(rows).tolist()
    coefficient_of = [1.0] * n if coefficients is None else torch.cat(coefficients).tolist()
    in_order = sorted(zip(places, row_of, coefficient_of, strict=True))
    ordered = [tuple(column) for column in zip(*in_order, strict=True)]
    return Vectors(ordered[0], torch.cat(directions), ordered[1], ordered[2])


# Where latents of attention get their activation from


def attended_tokens(
    model: ExplainedModel, recorded: RecordedTaps, nodes: Sequence[NodeIndex], count: int
) -> list[tuple[int, list[tuple[int, float]]]]:
    """For each active latent of attention, the *count* tokens that most of its activation comes from, descending.

    What all heads write from a token to the latent's own, along what the latent reads. Inactive latents, and other
    nodes, are left out.
    """
    found = []
    for (node_type, layer), (where, entries) in _grouped(nodes).items():
        kind = model.inputs.of(node_type) if NODES[node_type].is_autoencoder_latent else None
        if layer is None or kind is None or not kind.is_of_attention_write:
            continue
        t, latents = torch.tensor(entries, device=model.decoder.device).t()
        autoencoder = model.autoencoder(node_type, layer)
        taps = (_L.RESID_DELTA_ATTN, _L.ATTN_QK_PROBS, _L.ATTN_VALUE)
        delta, probs, values = (recorded.value((tap, layer)) for tap in taps)
        active = autoencoder.encode(delta[t]).gather(1, latents.unsqueeze(1)).squeeze(1) > 0
        pairs = HeadPairs(probs[t], None, values, model.decoder.layers[layer])
        attributions = pairs.project(autoencoder.encoder[latents]).sum(dim=2)
        factor = write_factor(model, recorded, Component.HEAD_PAIR, NodeType.ATTENTION_HEAD, layer)
        attributions = times(attributions, None if factor is None else factor[t])
        for place, token, is_active, of_node in zip(where, t.tolist(), active.tolist(), attributions, strict=True):
            if is_active:
                best = of_node[: token + 1].topk(min(count, token + 1))
                found.append((place, list(zip(best.indices.tolist(), best.values.tolist(), strict=True))))
    return sorted(found)


def sites_of_attended_tokens(layers: Sequence[int], architecture: Architecture) -> Iterator[Site]:
    """Taps that `attended_tokens` reads."""
    scale = output_scale(Component.HEAD_PAIR, None, architecture)
    taps = (_L.RESID_DELTA_ATTN, _L.ATTN_QK_PROBS, _L.ATTN_VALUE)
    for layer in layers:
        for tap in taps if scale is None else (*taps, scale):
            yield tap, layer

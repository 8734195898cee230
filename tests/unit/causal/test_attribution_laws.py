"""Laws of attribution, on float64 models of every architecture: scores are slopes of exact patches, and add up."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dst_grpc.causal.attribution import Attribution, Pair, Question
from dst_grpc.causal.graph import Graph
from dst_grpc.causal.integrated_gradients import IntegratedGradients
from dst_grpc.causal.nodes import Nodes
from dst_grpc.causal.passes import Batch, run
from dst_grpc.causal.rules import (
    Frozen,
    FrozenNorms,
    FrozenPatterns,
    GradientInteractionModifications,
    RelP,
    RelPWithFrozenPatterns,
)
from dst_grpc.domain.attribute import AttributedNode, AttributionMethod, PathGroups, PathRule
from dst_grpc.domain.components import AttentionTraceType, LossFnName
from dst_grpc.domain.graph_nodes import Edge
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.pairs import SOURCE
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.engine.decoder import Decoder
from dst_grpc.engine.layer import Layer
from dst_grpc.engine.propagation import PLAIN, Propagation
from dst_grpc.engine.taps import Site, Taps, site_entering
from dst_grpc.errors import require
from dst_grpc.scalars.origins import LossOrigin
from tests import families, models, plain
from tests.unit.causal import cutting

M, N = AttributionMethod, AttributedNode
LOSS = LossOrigin(models.LOSS)
PAIR = Pair(models.TOKENS, (3, 1, 2, 1, 5, 0), LOSS)
OTHER = Pair((8, 2, 8), (8, 4, 8), LOSS)
RULES: tuple[Propagation, ...] = (
    PLAIN,
    FrozenNorms(),
    FrozenPatterns(),
    Frozen(),
    RelP(),
    RelPWithFrozenPatterns(),
    GradientInteractionModifications(),
)
SOURCES = (N.INPUT, N.HEAD, N.MLP_OUT)
METHODS: tuple[dict[str, Any], ...] = (
    {},
    {"method": M.CLEAN_CORRUPT},
    {"method": M.INTEGRATED_INPUTS, "rule": PathRule.MIDDLE, "steps": 3},
    {"method": M.INTEGRATED_ACTIVATIONS, "steps": 2},
    {"method": M.INTEGRATED_ACTIVATIONS, "steps": 2, "groups": PathGroups.EVERY_LAYER},
)


@cache
def decoder_of(name: str) -> Decoder:
    return models.decoder(config=models.ARCHITECTURES[name])


def asked(decoder: Decoder, *pairs: Pair, **question: Any) -> Attribution:
    found = Attribution(decoder, Question(**question))
    found.add(pairs or [PAIR])
    return found


@pytest.mark.parametrize("question", METHODS)
@pytest.mark.parametrize("kind", SOURCES)
def test_a_kind_of_node_asked_alone_has_the_scores_that_it_has_among_others(
    kind: AttributedNode, question: dict[str, Any]
) -> None:
    decoder = decoder_of("gpt2")
    (alone,) = asked(decoder, nodes=(kind,), **question).nodes.values()
    among = {nodes.kind: scores for nodes, scores in asked(decoder, nodes=SOURCES, **question).nodes.items()}
    torch.testing.assert_close(alone, among[kind], rtol=1e-10, atol=1e-12)


def edges_of(found: Attribution) -> torch.Tensor:
    assert found.edges is not None
    return found.edges


def of_sources(found: Attribution) -> torch.Tensor:
    """Scores of the sources [S], in the order of the graph, from those of nodes by kind."""
    kinds = {nodes.kind: scores for nodes, scores in found.nodes.items()}
    by_layer = torch.cat((kinds[N.HEAD], kinds[N.MLP_OUT][:, None]), dim=1)
    return torch.cat((kinds[N.INPUT][None], by_layer.flatten()))


class EdgePatches(Taps):
    """Each row adds *step* times the change that one edge carries, to what that edge's reader reads."""

    def __init__(self, rows: list[tuple[Edge, torch.Tensor]]) -> None:
        super().__init__()
        self._rows = rows

    def _readers(
        self, layer: int | None, part: AttentionTraceType | None
    ) -> list[tuple[int, int | None, torch.Tensor]]:
        return [
            (i, edge.reader.head, added)
            for i, (edge, added) in enumerate(self._rows)
            if (edge.reader.layer, edge.reader.part) == (layer, part)
        ]

    def qkv(
        self, index: int, layer: Layer, x: torch.Tensor, qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q, k, v = qkv[0].clone(), layer.for_each_head(qkv[1]).clone(), layer.for_each_head(qkv[2]).clone()
        for part, tensor in zip("QKV", (q, k, v), strict=True):
            for i, head, added in self._readers(index, AttentionTraceType(part)):
                assert head is not None
                tensor[i, :, head] = layer.head_input(AttentionTraceType(part), head, layer.attn_norm(x[i] + added))
        return q, k, v

    def mlp_input(self, index: int, x: torch.Tensor) -> torch.Tensor:
        return self._changed(x, index)

    def final_input(self, x: torch.Tensor) -> torch.Tensor:
        return self._changed(x, None)

    def _changed(self, x: torch.Tensor, layer: int | None) -> torch.Tensor:
        x = x.clone()
        for i, _, added in self._readers(layer, None):
            x[i] += added
        return x


def slopes_of_patches(decoder: Decoder, pair: Pair, step: float = 1e-5) -> torch.Tensor:
    """The derivative of the metric along each edge [S, D], as a central difference of exact patches."""
    graph = Graph.of(decoder.config.dimensions, decoder.config.architecture)
    base, source = (written_by_sources(decoder, tokens) for tokens in (pair.base, pair.source))
    edges = graph.edges
    rows = [(edge, change(decoder, edge, base, source, sign * step)) for edge in edges for sign in (1, -1)]
    logits = decoder.forward(torch.tensor([pair.base] * len(rows)), EdgePatches(rows))
    assert logits is not None
    metrics = torch.stack([LOSS(row[-1]) for row in logits])
    found = torch.zeros(len(graph.sources), len(graph.readers), dtype=metrics.dtype)
    for edge, up, down in zip(edges, metrics[::2], metrics[1::2], strict=True):
        found[graph.index_of_source(edge.source), graph.index_of_reader(edge.reader)] = (up - down) / (2 * step)
    return found


def written_by_sources(decoder: Decoder, tokens: tuple[int, ...]) -> dict[Site, torch.Tensor]:
    layers = range(decoder.config.n_layers)
    sites: list[Site] = [(L.RESID_POST_EMBEDDING, None)]
    sites += [(tap, layer) for layer in layers for tap in (L.ATTN_WEIGHTED_SUM_OF_VALUES, L.RESID_DELTA_MLP)]
    taps = Taps(values=sites)
    decoder.forward(torch.tensor([tokens]), taps)
    return {site: x[0] for site, x in taps.values.items()}


def change(
    decoder: Decoder, edge: Edge, base: dict[Site, torch.Tensor], other: dict[Site, torch.Tensor], step: float
) -> torch.Tensor:
    """What reaches the residual if the source's output moves by *step* of the way."""
    layer, head = edge.source.layer, edge.source.head
    if layer is None or head is None:
        site: Site = (L.RESID_POST_EMBEDDING, None) if layer is None else (L.RESID_DELTA_MLP, layer)
        return step * (other[site] - base[site])
    site = (L.ATTN_WEIGHTED_SUM_OF_VALUES, layer)
    moved = base[site].clone()
    moved[:, head] += step * (other[site] - base[site])[:, head]
    return decoder.layers[layer].attn_write(moved) - decoder.layers[layer].attn_write(base[site])


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_scores_of_edges_are_slopes_of_exact_patches(name: str) -> None:
    found, slopes = edges_of(asked(decoder_of(name), edges=True)), slopes_of_patches(decoder_of(name), PAIR)
    # A central difference is exact to the square of its step, and loses half the digits to rounding.
    assert (found - slopes).abs().max() < 1e-7 * slopes.abs().max()


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_edges_are_scored_and_patched_in_families_with_norms_of_queries_and_keys(family: str, tmp_path: Path) -> None:
    decoder = open_checkpoint(families.save(families.make(family), tmp_path)).load("cpu", torch.float64)
    assert decoder.config.qk_norm
    found, slopes = edges_of(asked(decoder, edges=True)), slopes_of_patches(decoder, PAIR)
    assert (found - slopes).abs().max() < 1e-7 * slopes.abs().max()
    two = cutting.Pair(decoder, PAIR.base, PAIR.source)
    base, source = (written_by_sources(decoder, tokens) for tokens in (PAIR.base, PAIR.source))
    rows = [(edge, change(decoder, edge, base, source, 1.0)) for edge in two.graph.edges]
    patched = require(decoder.forward(torch.tensor([PAIR.base] * len(rows)), EdgePatches(rows)))
    places = [(two.graph.index_of_source(edge.source), two.graph.index_of_reader(edge.reader)) for edge, _ in rows]
    torch.testing.assert_close(two.runs.logits([two.edge(*place) for place in places]), patched[:, -1])


@pytest.mark.parametrize(
    ("rule", "question"),
    [*((rule, {}) for rule in RULES), *((PLAIN, question) for question in METHODS[1:]), (RULES[-1], METHODS[2])],
    ids=str,
)
@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_edges_that_leave_a_source_add_up_to_its_score(name: str, rule: Propagation, question: dict[str, Any]) -> None:
    found = asked(decoder_of(name), edges=True, nodes=SOURCES, propagation=rule, **question)
    nodes = of_sources(found)
    assert nodes.abs().min() > 0 or isinstance(rule, FrozenPatterns | RelPWithFrozenPatterns)
    torch.testing.assert_close(edges_of(found).sum(dim=1), nodes, rtol=1e-8, atol=1e-8 * nodes.abs().max().item())


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_scores_of_nodes_are_slopes_of_their_patches(name: str) -> None:
    decoder, step = decoder_of(name), 1e-5
    kinds = [kind for kind in N if kind not in {N.LATENT, N.LATENT_ERROR}]
    if decoder.config.parallel:
        kinds.remove(N.RESID_MID)
    found = asked(decoder, nodes=tuple(kinds), by_position=True)
    sites = frozenset(site for nodes in found.nodes for site in nodes.sites)
    values = run(
        Batch(tokens=[PAIR.base, PAIR.source], metrics=[LOSS] * 2, differentiated=[False] * 2, values=sites), decoder
    )
    for nodes, scores in found.nodes.items():
        sums = scores.flatten(1).sum(dim=1) if nodes.layers else scores.sum()[None]
        for site, total in zip(nodes.sites, sums, strict=True):
            base, source = values.values[site]
            moved = torch.stack([step * (source - base), -step * (source - base)])
            metrics = run(
                Batch(tokens=[PAIR.base] * 2, metrics=[LOSS] * 2, differentiated=[False] * 2, shifts={site: moved}),
                decoder,
            ).metrics
            assert total.item() == pytest.approx((metrics[0] - metrics[1]) / (2 * step), rel=1e-6, abs=1e-8), site


@pytest.mark.parametrize("question", METHODS, ids=str)
def test_scores_by_position_add_up(question: dict[str, Any]) -> None:
    kinds = (N.INPUT, N.HEAD, N.MLP_OUT)
    together, apart = (
        asked(decoder_of("gemma"), edges=True, nodes=kinds, by_position=by_position, **question)
        for by_position in (False, True)
    )
    torch.testing.assert_close(edges_of(apart).sum(dim=0), edges_of(together))
    assert edges_of(apart).shape[0] == len(PAIR.base)
    for nodes, scores in together.nodes.items():
        torch.testing.assert_close(apart.nodes[nodes].sum(dim=1 if nodes.layers else 0), scores)


@pytest.mark.parametrize(
    "question",
    [*METHODS, {"nodes": (N.KEY, N.QUERY), "fixes_qk": True}, {"nodes": SOURCES, "drops_gradients": True}],
    ids=str,
)
@pytest.mark.parametrize("name", ["gpt2", "gemma"])
def test_a_pair_scores_the_same_beside_a_longer_one(name: str, question: dict[str, Any]) -> None:
    """Prompts are padded on the right; the mean is over pairs."""
    question = {"edges": "nodes" not in question, "nodes": SOURCES, **question}
    together = asked(decoder_of(name), OTHER, PAIR, **question)
    one, other = asked(decoder_of(name), OTHER, **question), asked(decoder_of(name), PAIR, **question)
    for nodes, scores in together.nodes.items():
        torch.testing.assert_close(scores, (one.nodes[nodes] + other.nodes[nodes]) / 2)
    if question["edges"]:
        torch.testing.assert_close(edges_of(together), (edges_of(one) + edges_of(other)) / 2)


def test_blocks_of_pairs_add_up_to_their_mean() -> None:
    once = asked(decoder_of("llama"), PAIR, OTHER, PAIR, edges=True, nodes=(N.HEAD,))
    apart = Attribution(decoder_of("llama"), Question(edges=True, nodes=(N.HEAD,)))
    for pair in (PAIR, OTHER, PAIR):
        apart.add([pair])
    torch.testing.assert_close(edges_of(apart), edges_of(once))
    for nodes, scores in once.nodes.items():
        torch.testing.assert_close(apart.nodes[nodes], scores)


def test_magnitudes_do_not_cancel_between_pairs() -> None:
    reverse = Pair(
        PAIR.base, PAIR.source, LossOrigin(replace(models.LOSS, target_token_ids=(11,), distractor_token_ids=(2, 7, 7)))
    )
    plain, found, alone = (
        asked(decoder_of("gpt2"), *pairs, nodes=(N.MLP_OUT,), magnitudes=magnitudes)
        for pairs, magnitudes in (((PAIR, reverse), False), ((PAIR, reverse), True), ((PAIR,), False))
    )
    for nodes, scores in alone.nodes.items():
        torch.testing.assert_close(plain.nodes[nodes], torch.zeros_like(scores), atol=1e-12, rtol=0)
        torch.testing.assert_close(found.nodes[nodes], scores.abs())


PARTS = {
    T.RESID_DELTA_MLP: N.MLP_OUT,
    T.RESID_DELTA_ATTN: N.ATTN_OUT,
    T.RESID_POST_ATTN: N.RESID_MID,
    T.RESID_POST_MLP: N.RESID_POST,
    plain.Transcoder.RAW: N.MLP_OUT,
}


@pytest.mark.parametrize(("kind", "part"), PARTS.items(), ids=str)
def test_latents_and_their_error_add_up_to_what_they_reconstruct(kind: plain.Kind, part: AttributedNode) -> None:
    """And a spliced autoencoder changes no score of other nodes, nor of edges."""
    world = models.world(kind, config=models.ARCHITECTURES["gemma"])
    (splice,) = world.sets.values()
    splices = models.splices(splice)
    question = Question(nodes=(N.LATENT, N.LATENT_ERROR, part, N.HEAD), edges=True)
    found = Attribution(world.decoder, question, splices)
    found.add([PAIR])
    scores = {nodes.kind: each for nodes, each in found.nodes.items()}
    assert scores[N.LATENT].shape == (3, models.LATENTS[kind])
    torch.testing.assert_close(scores[N.LATENT].sum(dim=1) + scores[N.LATENT_ERROR], scores[part])
    plain = asked(world.decoder, nodes=(N.HEAD,), edges=True)
    torch.testing.assert_close(edges_of(found), edges_of(plain))
    torch.testing.assert_close(scores[N.HEAD], next(iter(plain.nodes.values())))


class Widest(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """The most entries of any tensor that is computed, views of weights apart."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        weights = [weight for part in (decoder, *decoder.layers) for weight in vars(part).values()]
        self._weights = {each.untyped_storage().data_ptr() for each in weights if isinstance(each, torch.Tensor)}
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self._weights:
                self.count = max(self.count, tensor.numel())
        return result


def test_passes_make_no_copy_of_the_residual_for_each_head() -> None:
    """The widest tensor of the passes is that of queries, keys and values, not one of H residuals."""
    decoder = models.decoder(config=replace(models.CONFIG, d_model=40, n_heads=8, n_key_value_heads=8))
    per_token = 2 * len(PAIR.base)
    gradients = frozenset({(tap, layer) for layer in range(3) for tap in (L.ATTN_QUERY, L.ATTN_KEY, L.ATTN_VALUE)})
    batch = Batch(
        tokens=[PAIR.base, PAIR.source],
        metrics=[LOSS] * 2,
        differentiated=[True, False],
        gradients=gradients | {site_entering(3)},
        reads_mlps=True,
    )
    with Widest(decoder) as widest:
        run(batch, decoder)
    assert widest.count == per_token * 3 * decoder.config.n_heads * decoder.config.d_head
    assert widest.count < per_token * decoder.config.n_heads * decoder.config.d_model


def test_nothing_is_found_of_nodes_that_the_metric_does_not_depend_on() -> None:
    """With constant patterns no gradient reaches queries and keys."""
    found: dict[Nodes, torch.Tensor] = dict(
        asked(decoder_of("llama"), nodes=(N.QUERY, N.KEY, N.PATTERN), propagation=FrozenPatterns()).nodes
    )
    assert all(not scores.any() for scores in found.values())


def metric(**config: Any) -> LossOrigin:
    """A metric at places of the usual prompt."""
    places = {key: config.pop(key) for key in ("positions", "answers", "reference") if key in config}
    return LossOrigin(LossFnConfig(**config), **places)


METRICS = {
    "log probability": metric(name=LossFnName.LOG_PROB, target_token_ids=(2,)),
    "probability difference, earlier": metric(
        name=LossFnName.PROBS, target_token_ids=(2,), distractor_token_ids=(7,), positions=(3,)
    ),
    "entropy": metric(name=LossFnName.ENTROPY),
    "sequence": metric(name=LossFnName.SEQUENCE_LOG_PROB, target_token_ids=(5, 1), positions=(3, 5), answers=(5, 1)),
    "cross entropy": metric(name=LossFnName.CROSS_ENTROPY, positions=(0, 1, 2), answers=(1, 4, 1)),
    "divergence": metric(name=LossFnName.KL_DIVERGENCE, reference=("unchanged", 5)),
    "divergence, earlier": metric(name=LossFnName.KL_DIVERGENCE, positions=(4,), reference=("unchanged", 2)),
}


def _towards(of: LossOrigin, *, is_clean: bool) -> LossOrigin:
    """A divergence as one from the run of the clean prompt, which is the base run or not; another metric as it is."""
    return of if of.reference is None or is_clean else replace(of, reference=(SOURCE, of.reference[1]))


@pytest.mark.parametrize("of", METRICS)
@pytest.mark.parametrize("is_clean", [True, False])
def test_any_metric_of_logits_has_slopes(of: str, is_clean: bool) -> None:
    """The change along the path between two prompts is the sum of integrated gradients of all positions."""
    decoder = decoder_of("gpt2")
    asked_of = Pair(PAIR.base, PAIR.source, _towards(METRICS[of], is_clean=is_clean))
    attributions = IntegratedGradients(decoder, steps=120)
    (found,) = attributions.add([asked_of])
    assert found.residual == pytest.approx(0, abs=1e-4 * attributions.attributions.abs().sum().item())
    if of == "divergence":
        assert (found.metric if is_clean else found.at_baseline) == pytest.approx(0, abs=1e-12)
    # Attribution along the same path takes the same gradients, pair by pair, beside another pair.
    path: dict[str, Any] = {"method": M.INTEGRATED_INPUTS, "rule": PathRule.GAUSS_LEGENDRE, "steps": 120}
    nodes = asked(decoder, asked_of, OTHER, nodes=(N.INPUT,), **path).nodes
    alone = asked(decoder, OTHER, nodes=(N.INPUT,), **path).nodes
    (total,), (other,) = nodes.values(), alone.values()
    assert (2 * total - other).item() == pytest.approx(
        found.at_baseline - found.metric + found.residual, rel=1e-6, abs=1e-9
    )

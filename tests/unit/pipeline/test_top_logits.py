"""Probabilities of output tokens are those among the whole vocabulary, whatever part of it is listed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dst_grpc.domain.components import NodeType, PreOrPostAct
from dst_grpc.domain.explain import ExplainRun
from dst_grpc.domain.explanations import ExplainPart, RunExplanation
from dst_grpc.domain.indices import ActivationIndex, NodeIndex
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.requests import Prompt
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.engine.decoder import Decoder
from tests import explaining, models

WORLD = models.world()
SIZE = models.CONFIG.vocab_size


def assert_probabilities(found: RunExplanation, logits: torch.Tensor) -> None:
    """Those of the listed tokens are of the softmax of all *logits* [V]."""
    table = found.top_logits
    assert table is not None
    expected = logits.double().softmax(dim=0)
    ids = [node.tensor_indices[1] or 0 for node in table.nodes]
    assert table.probabilities.tolist() == pytest.approx(expected[ids].tolist(), rel=1e-5)


@pytest.mark.parametrize("count", [1, 3, SIZE, 5 * SIZE])
def test_however_many_tokens_are_listed(count: int) -> None:
    asked = explaining.request(parts=(ExplainPart.TOP_LOGITS,), top_logit_count=count)
    (found,) = explaining.explain(WORLD, asked).runs
    assert_probabilities(found, WORLD.one(T.LOGITS)[None][-1])
    assert found.top_logits is not None
    assert len(found.top_logits.nodes) == min(2 * count, SIZE)


def test_one_likely_token_among_many_flat_ones() -> None:
    """20 % is no 82 %, though the rest of the vocabulary is not listed."""
    config = replace(models.CONFIG, vocab_size=5001)
    weights = models.weights(config=config)
    weights["unembedding"] *= 1e-3
    world = models.World(Decoder(config, weights))
    asked = explaining.request(parts=(ExplainPart.TOP_LOGITS,), top_logit_count=50)
    (found,) = explaining.explain(world, asked).runs
    assert found.top_logits is not None
    assert found.top_logits.probabilities.sum() < 0.03
    assert_probabilities(found, world.one(T.LOGITS)[None][-1])


def test_logits_that_are_changed() -> None:
    changed = AblationSpec(index=ActivationIndex(activation_location_type=L.LOGITS, tensor_indices=(5, 3)), value=9.0)
    runs = tuple(
        ExplainRun(prompt=Prompt(token_ids=models.TOKENS), loss_fn_config=models.LOSS, ablation_specs=specs)
        for specs in ((), (changed,))
    )
    asked = explaining.request(runs=runs, parts=(ExplainPart.TOP_LOGITS,), top_logit_count=2)
    before, after = explaining.explain(WORLD, asked).runs
    logits = WORLD.one(T.LOGITS)[None][-1]
    assert_probabilities(before, logits)
    assert_probabilities(after, logits.clone().index_fill(0, torch.tensor([3]), 9.0))


def test_what_comes_after_a_traced_node() -> None:
    node = NodeIndex(node_type=NodeType.MLP_NEURON, tensor_indices=(2, 3), layer_index=1)
    trace = TraceConfig(node_index=node, pre_or_post_act=PreOrPostAct.PRE, detach_layer_norm_scale=True)
    asked = explaining.request(
        loss_fn_config=None, trace_config=trace, parts=(ExplainPart.TOP_LOGITS,), top_logit_count=2
    )
    (found,) = explaining.explain(WORLD, asked).runs
    assert_probabilities(found, WORLD.one(T.LOGITS)[None][2])


@pytest.mark.parametrize(("token_index", "times"), [(None, 1), (1, 2)])
def test_the_logits_of_the_loss_are_not_computed_again(
    token_index: int | None, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless they are those of another token."""
    computed: list[torch.Tensor] = []
    unembed = Decoder.unembed

    def counted(decoder: Decoder, normed: torch.Tensor) -> torch.Tensor:
        computed.append(normed)
        return unembed(decoder, normed)

    monkeypatch.setattr(Decoder, "unembed", counted)
    loss = replace(models.LOSS, token_index=token_index)
    asked = explaining.request(loss_fn_config=loss, parts=(ExplainPart.TOP_LOGITS,), top_logit_count=3)
    (found,) = explaining.explain(WORLD, asked).runs
    assert len(computed) == times
    assert_probabilities(found, WORLD.one(T.LOGITS)[None][-1])

"""Path patching from heads through MLPs: golden data, and what must hold whatever the model."""

from __future__ import annotations

import pytest
import torch

from dst_grpc.causal.ioi_paths import HeadPath, IoiPaths
from dst_grpc.causal.writes import record
from dst_grpc.domain.graph_nodes import Reader, Source
from tests import models
from tests.causal_goldens import CASES, DIRECTIONS, assert_golden
from tests.unit.causal.cutting import GoldenPair, Pair

LOGITS = (Reader(),)


def paths(two: Pair, direction: str = "noise") -> IoiPaths:
    base, source = (two.base, two.other) if direction == "noise" else (two.other, two.base)
    return IoiPaths(two.decoder, base, source)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", CASES)
def test_every_path_is_patched_as_in_the_golden_data(name: str, direction: str) -> None:
    two = GoldenPair.of(name)
    golden = two.case.tensors[f"path.ioi.{direction}"]
    places = golden.isnan().logical_not().nonzero().tolist()
    heads = [source for source in two.graph.sources if source.head is not None]
    asked = [HeadPath(0, heads[head], (two.graph.readers[reader],)) for head, reader in places]
    assert_golden(two.metric(paths(two, direction).logits(asked)), golden[tuple(zip(*places, strict=True))])


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_receivers_are_patched_together_and_prompts_apart(name: str) -> None:
    decoder = models.decoder(config=models.ARCHITECTURES[name])
    prompts, others = [models.TOKENS, (4, 4, 7, 1)], [(3, 1, 8, 1, 2, 9), (4, 5, 7, 1)]
    graph = Pair(decoder, models.TOKENS, others[0]).graph
    sender, all_of_layer = Source(0, 2), tuple(reader for reader in graph.readers if reader.layer == 1)
    receivers = tuple(reader for reader in all_of_layer if reader.part is not None)

    together = IoiPaths(decoder, record(prompts, decoder), record(others, decoder))
    found = together.logits([HeadPath(prompt, sender, receivers) for prompt in (1, 0)])
    for place, prompt in enumerate((1, 0)):
        base, source = record([prompts[prompt]], decoder), record([others[prompt]], decoder)
        torch.testing.assert_close(found[place], _by_hand(Pair(decoder, prompts[prompt], others[prompt])))
        alone = IoiPaths(decoder, base, source).logits([HeadPath(0, sender, receivers)])
        torch.testing.assert_close(found[place], alone[0])


def _by_hand(two: Pair) -> torch.Tensor:
    """Logits where all heads of layer 1 read the residual that head 2 of layer 0 makes of the other run, and MLPs and
    residual of layer 1 do not."""
    decoder, (first, second) = two.decoder, two.decoder.layers[:2]
    heads = two.base.writes.heads[0].clone()
    heads[:, :, 2] = two.other.writes.heads[0][:, :, 2]
    x = two.base.residuals[0]
    middle = x + first.attn_write(heads)
    read = x if two.graph.is_parallel else middle
    sent = middle + first.mlp_write(first.mlp_acts(first.mlp_norm(read)))
    q, k, v = second.qkv(second.attn_norm(sent))
    write = second.attn_write(second.attn_mix(second.attn_probs(second.attn_scores(q, k)), v))
    x = two.base.residuals[1]
    read = x if two.graph.is_parallel else x + write
    after = x + write + second.mlp_write(second.mlp_acts(second.mlp_norm(read)))
    logits = decoder.forward(two.base.tokens, entering=(2, after))
    assert logits is not None
    return logits[0, -1]


@pytest.mark.parametrize(
    ("sender", "receivers", "problem"),
    [
        (Source(0), LOGITS, "m0 is not a head"),
        (Source(), LOGITS, "input is not a head"),
        (Source(0, 1), (), "no receiver"),
        (Source(0, 1), (Reader(1),), "m1 is not an input of a head after a0.h1, nor the logits alone"),
        (Source(0, 1), (*LOGITS, *LOGITS), "logits is not an input"),
        (Source(1, 1), (Reader.named("a1.h0<q>"),), "a1.h0<q> is not an input of a head after a1.h1"),
    ],
)
def test_what_is_no_path_is_refused(sender: Source, receivers: tuple[Reader, ...], problem: str) -> None:
    two = Pair(models.decoder(), models.TOKENS, (3, 1, 8, 1, 2, 9))
    with pytest.raises(ValueError, match=problem):
        paths(two).logits([HeadPath(0, sender, receivers)])

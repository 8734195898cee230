"""Attribution, beside the bare forward and backward pass of the same decoder to the embeddings."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from benchmarks import subjects
from benchmarks.measure import conditions, interleaved, peak_bytes
from dst_grpc.causal.attribution import Attribution, Pair, Question
from dst_grpc.domain.attribute import AttributedNode, AttributionMethod
from dst_grpc.domain.components import LossFnName
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.scalars.origins import LossOrigin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dst_grpc.engine.decoder import Decoder

ROUNDS = 15
N_TOKENS = 16
_MIB = 1 << 20
METRIC = LossOrigin(LossFnConfig(name=LossFnName.LOGIT_DIFF, target_token_ids=(5,), distractor_token_ids=(7,)))
QUESTIONS = {
    "AtP, all sources": (Question(nodes=(AttributedNode.INPUT, AttributedNode.HEAD, AttributedNode.MLP_OUT)), 1.3),
    "EAP, all edges": (Question(edges=True), 3),
    "EAP-IG, all edges, 5 steps": (Question(edges=True, method=AttributionMethod.INTEGRATED_INPUTS), 10),
}
"""Each question, and how many bare passes it may take."""


def bare(decoder: Decoder, pair: Pair) -> object:
    """The bare pass of the pair's base."""
    return subjects.bare_pass(decoder, [pair.base], lambda logits: METRIC(logits[0]))


def attribute(decoder: Decoder, pair: Pair, question: Question) -> object:
    """The scores of one pair."""
    found = Attribution(decoder, question)
    found.add([pair])
    return found.edges, found.nodes


def random_pair(vocab_size: int) -> Pair:
    """Two prompts that differ at every token."""
    generator = torch.Generator().manual_seed(0)
    base, source = torch.randint(0, vocab_size, (2, N_TOKENS), generator=generator).tolist()
    return Pair(tuple(base), tuple(source), METRIC)


def report() -> Iterator[str]:
    """Time and memory over the bare pass, in the shape of GPT-2 small."""
    decoder = subjects.gpt2_small()
    pair = random_pair(decoder.config.vocab_size)
    work: dict[str, Callable[[], object]] = {"bare": partial(bare, decoder, pair)}
    work |= {name: partial(attribute, decoder, pair, question) for name, (question, _) in QUESTIONS.items()}
    found = interleaved(work, ROUNDS)
    memory = {name: peak_bytes(one) for name, one in work.items()}
    yield (
        f"attribution, GPT-2-small shape, {N_TOKENS} tokens, over the bare forward + backward with the logits of the"
        f" last token, {conditions(ROUNDS)}"
    )
    for name, (_, limit) in QUESTIONS.items():
        yield (
            f"  {name:27}: time x {found.over(name, 'bare')}, at most {limit};"
            f" peak memory x {memory[name] / memory['bare']:.2f}"
            f" ({memory[name] / _MIB:.0f} MiB / {memory['bare'] / _MIB:.0f} MiB, at most 3)"
        )

"""The figures of the transcoders as a set: the model's loss with all MLPs replaced by them, and the scores of
attribution graphs of held-out prompts. The same of sets that explain little, or nothing, to hold them against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from dst_grpc.domain.autoencoders import AutoencoderActivation, ModelNorm
from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.engine.decoder import Decoder
from dst_grpc.engine.transcoders import Transcoders
from dst_grpc.graphs.building import build
from dst_grpc.graphs.influence import scores
from dst_grpc.graphs.nodes import AttributionGraph
from dst_grpc.graphs.question import GraphQuestion
from dst_grpc.graphs.sources import Sources
from scripts.embedded import evaluate
from scripts.embedded.packing import BLOCK_LENGTH, FULL_TEXT, Blocks, Lesson, led, lesson_blocks, separator_id
from scripts.embedded.train_transcoders import SEED, Transcoder, pairs, randomised, replaced, switched_off

ROWS: Final = 100
"""Rows of held-out text that the loss is measured on."""
PROMPTS: Final = 20
"""Held-out prompts of each behaviour that graphs are made of."""
RANDOM_TEXT: Final = Lesson(steps=1, rows=64, length=BLOCK_LENGTH, weights=FULL_TEXT)
"""What the random transcoders' writes are fitted on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFigures:
    """How a set of transcoders does; the scores are means over prompts."""

    loss: float
    """Nats per token with every MLP replaced."""
    replacement: float
    """Share of the influence on the logits that comes from tokens rather than errors."""
    completeness: float
    """Share of the inputs of nodes that is not errors, by the influence of the nodes."""
    features: float
    """Active features of a prompt."""


def random_set(model: GPT2LMHeadModel, tokenizer: Tokenizer, transcoders: Sequence[Transcoder]) -> list[Transcoder]:
    """For each of `transcoders` one that reads random directions, fitted on training text."""
    found = pairs(model, led(lesson_blocks(tokenizer, RANDOM_TEXT, "random transcoders"), tokenizer))
    return [randomised(one, *found[layer], SEED + 10 + layer) for layer, one in enumerate(transcoders)]


def empty_set(transcoders: Sequence[Transcoder]) -> list[Transcoder]:
    """`transcoders` with no feature ever active."""
    return [switched_off(one) for one in transcoders]


def prompts(tokenizer: Tokenizer, count: int = PROMPTS) -> list[list[int]]:
    """Held-out prompts of names and of agreement, `count` of each."""
    contrasts = [*evaluate.held_out_ioi(count, "drawn"), *evaluate.held_out_agreement(count, "drawn")]
    return [begun(tokenizer, one.prompt) for one in contrasts]


def begun(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a prompt after the one that graphs put before it."""
    return [separator_id(tokenizer), *tokenizer.encode(prompt).ids]


def in_engine(transcoders: Sequence[Transcoder]) -> Transcoders:
    """`transcoders` as the server holds them."""
    return Transcoders.per_layer(
        len(transcoders),
        {
            layer: Autoencoder(
                pre_bias=torch.zeros_like(one.decoder_bias),
                encoder=one.encoder,
                latent_bias=one.encoder_bias,
                decoder=one.decoder.T.contiguous(),
                decoder_bias=one.decoder_bias,
                threshold=one.threshold,
                activation=AutoencoderActivation.JUMP_RELU,
                postact=AutoencoderActivation.IDENTITY,
                input_norm=ModelNorm.MLP_NORM,
            )
            for layer, one in enumerate(transcoders)
        },
    )


def decoder_of(model_folder: Path) -> Decoder:
    """The model as the server runs it."""
    return open_checkpoint(model_folder).load("cpu", torch.float32)


def graph_of(prompt: Sequence[int], decoder: Decoder, transcoders: Transcoders) -> AttributionGraph:
    """The whole graph of the likeliest tokens after a prompt."""
    steps = build(GraphQuestion(token_ids=tuple(prompt)), decoder, Sources(transcoders))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            graph: AttributionGraph = end.value
            return graph


def measure_set(
    model: GPT2LMHeadModel,
    decoder: Decoder,
    transcoders: Sequence[Transcoder],
    blocks: Blocks,
    asked: Sequence[Sequence[int]],
) -> SetFigures:
    """The figures of `transcoders`: the loss on `blocks`, the scores of graphs of the prompts `asked`."""
    with replaced(model, transcoders):
        loss = evaluate.measure_loss(model, blocks)
    held = in_engine(transcoders)
    graphs = [graph_of(prompt, decoder, held) for prompt in asked]
    found = [scores(graph) for graph in graphs]
    return SetFigures(
        loss=loss,
        replacement=sum(one.replacement for one in found) / len(found),
        completeness=sum(one.completeness for one in found) / len(found),
        features=sum(graph.nodes.n_features for graph in graphs) / len(graphs),
    )

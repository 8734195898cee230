"""What is measured: a random model in the shape of GPT-2 small, or a real one, a registry of it, the requests, and the
bare pass beside which they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from dst_grpc.contexts.entries import ModelEntry
from dst_grpc.contexts.paths import AllowedRoots
from dst_grpc.contexts.registry import Registry
from dst_grpc.domain.architecture import ActivationFunction, NormKind
from dst_grpc.domain.components import LossFnName, TensorElementType
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest, Prompt
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.checkpoint import Checkpoint, open_checkpoint
from dst_grpc.engine.decoder import Decoder, DecoderConfig
from dst_grpc.engine.decoder_config import Rotary
from dst_grpc.engine.files import FileSet
from dst_grpc.engine.taps import Taps
from dst_grpc.errors import require
from dst_grpc.pipeline.plan import Plan
from dst_grpc.pipeline.planner import make_plan
from scripts.real_model.__main__ import ready_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dst_grpc.engine.tokenizer import Tokenizer

_T = DerivedScalarType

NEURONS_AND_HEADS = (
    _T.MLP_ACT_TIMES_GRAD,
    _T.MLP_WRITE_NORM,
    _T.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD,
    _T.UNFLATTENED_ATTN_ACT_TIMES_GRAD,
    _T.UNFLATTENED_ATTN_WRITE_NORM,
    _T.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD,
)
"""Act x grad, write norm and direct effect of every neuron and head."""

DEBUGGING_REQUEST = (
    *NEURONS_AND_HEADS,
    _T.RESID_POST_EMBEDDING_NORM,
    _T.TOKEN_ATTRIBUTION,
    _T.RESID_POST_EMBEDDING_PROJ_TO_FINAL_RESIDUAL_GRAD,
    _T.ALWAYS_ONE,
    _T.MLP_POST_ACT,
    _T.ATTN_QK_PROBS,
    _T.LOGITS,
)
"""Everything that the debugging request derives (four groups, and the logits)."""

GPT2_SMALL = DecoderConfig(
    n_layers=12,
    d_model=768,
    n_heads=12,
    n_key_value_heads=12,
    d_head=64,
    d_mlp=3072,
    vocab_size=50257,
    context_window=1024,
)

SMOLLM2 = DecoderConfig(
    n_layers=30,
    d_model=576,
    n_heads=9,
    n_key_value_heads=3,
    d_head=64,
    d_mlp=1536,
    vocab_size=49152,
    context_window=8192,
    norm=NormKind.RMS_NORM,
    rotary=(Rotary(frequencies=tuple(1e5 ** (-i / 32) for i in range(32))),) * 30,
    has_qkv_bias=False,
    has_attn_out_bias=False,
    has_mlp_bias=False,
    activation=ActivationFunction.SILU,
    gated=True,
)
"""SmolLM2-135M."""


@cache
def gpt2_small() -> Decoder:
    """A decoder in the shape of GPT-2 small with seeded random weights."""
    return _random(GPT2_SMALL)


@cache
def smollm2_shape() -> Decoder:
    """A decoder in the shape of SmolLM2-135M with seeded random weights."""
    return _random(SMOLLM2)


def _random(config: DecoderConfig) -> Decoder:
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}
    for name, shape in config.weight_shapes().items():
        if name == "unembedding":
            weights[name] = weights["embedding"].t()
        else:
            weights[name] = torch.randn(shape, generator=generator) * 0.02 + (1.0 if name.endswith("gain") else 0.0)
    return Decoder(config, weights)


@cache
def smollm2() -> Decoder:
    """SmolLM2-135M-Instruct, which `make real-model` unpacks."""
    return open_checkpoint(ready_folder()).load("cpu", torch.float32)


@dataclass(frozen=True)
class IdsOnly:
    """Stands where a tokenizer would: the benchmarks' prompts are ids."""

    vocab_size: int

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Ids as text."""
        return [str(token) for token in ids]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RandomModel(ModelEntry):
    """A model without files."""

    def tokenizer(self) -> Tokenizer:
        """Ids only."""
        return cast("Tokenizer", IdsOnly(self.dimensions.vocab_size))


@cache
def one_model(config: DecoderConfig) -> Registry:
    """A registry of one model without autoencoders; the same one for equal configs, whose runs are then equal."""
    files = FileSet({})
    checkpoint = Checkpoint(
        folder=Path(), family="gpt2", config=config, files=files, sources={}, tensors={}, redundant_unembedding=None
    )
    entry = RandomModel(
        name="random", element_type=TensorElementType.FLOAT32, device="cpu", files=files, checkpoint=checkpoint
    )
    return Registry([entry], [], roots=AllowedRoots([]), default_model="random")


def request(n_tokens: int, types: Sequence[DerivedScalarType], config: DecoderConfig = GPT2_SMALL) -> DeriveRequest:
    """Ask for *types* of a random prompt, with a logit difference as the origin."""
    generator = torch.Generator().manual_seed(n_tokens)
    ids = torch.randint(0, config.vocab_size, (n_tokens,), generator=generator).tolist()
    return DeriveRequest(
        prompt=Prompt(token_ids=tuple(ids)),
        loss_fn_config=LossFnConfig(name=LossFnName.LOGIT_DIFF, target_token_ids=(5,), distractor_token_ids=(7,)),
        derived_scalars=tuple(DerivedScalarSpec(dst=dst) for dst in types),
    )


def plan(n_tokens: int, types: Sequence[DerivedScalarType], config: DecoderConfig = GPT2_SMALL) -> Plan:
    """The plan of `request`."""
    return make_plan(request(n_tokens, types, config), one_model(config))


def bare_pass(
    decoder: Decoder, prompts: Sequence[Sequence[int]], loss: Callable[[torch.Tensor], torch.Tensor]
) -> object:
    """Forward, one batch of all *prompts*, to the logits [b, V] of each one's last token; and backward from the *loss*
    of these to the embeddings, with nothing recorded in between."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([(*prompt, *(0,) * (longest - len(prompt))) for prompt in prompts], device=decoder.device)
    taps = Taps(gradients=[(ActivationLocationType.RESID_POST_EMBEDDING, None)])
    last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=decoder.device)
    return taps.gradients(loss(require(decoder.forward(tokens, taps, logits_at=last))[:, 0]))

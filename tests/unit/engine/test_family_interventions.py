"""Every family: what follows an intervention is what follows the same change in the reference, made with hooks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dst_grpc.domain.interventions import CopyFromRun, Intervention, ScaleValue
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.selections import PositionList, TapSelection
from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.engine.interventions import Beside, RowIntervention
from dst_grpc.engine.taps import Taps
from dst_grpc.errors import require
from tests import families, models
from tests.closeness import assert_close
from tests.plain import Transcoder

BASE = families.PROMPT
SOURCE = tuple((token * 5 + 3) % 29 for token in BASE)
TOKENS = (8, 3)
"""Out of order."""
HEAD = 1
NAMES = ("gpt2", "gpt_neox", "gpt_neox sequential", "llama", "mistral", "smollm3", "qwen2", "qwen3", "gemma2", "gemma3")
TAPS = (L.ATTN_WEIGHTED_SUM_OF_VALUES, L.RESID_DELTA_ATTN, L.MLP_POST_ACT, L.RESID_DELTA_MLP, L.RESID_POST_MLP)


def first_of(owner: Any, *names: str) -> Any:
    return next(getattr(owner, name) for name in names if hasattr(owner, name))


def hooked(model: Any, location: L, layer: int) -> tuple[Any, bool]:
    """The reference's module that has the tap as its input or output, and whether it is the input."""
    body = getattr(model, model.base_model_prefix)
    block = first_of(body, "h", "layers")[layer]
    attention, mlp = first_of(block, "self_attn", "attention", "attn"), block.mlp
    has_post_norms = hasattr(block, "post_feedforward_layernorm")
    match location:
        case L.ATTN_WEIGHTED_SUM_OF_VALUES:
            return first_of(attention, "o_proj", "c_proj", "dense"), True
        case L.MLP_POST_ACT:
            return first_of(mlp, "down_proj", "c_proj", "dense_4h_to_h"), True
        case L.RESID_DELTA_ATTN:
            output = first_of(attention, "o_proj", "c_proj", "dense")
            return (block.post_attention_layernorm if has_post_norms else output), False
        case L.RESID_DELTA_MLP:
            return (block.post_feedforward_layernorm if has_post_norms else mlp), False
    return block, False


def logits_with(model: Any, location: L, layer: int, change: Callable[[torch.Tensor], None]) -> torch.Tensor:
    """The reference's logits of both prompts, with the tap [2, T, n] changed in place."""
    module, is_input = hooked(model, location, layer)

    def of_input(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        change(x := inputs[0].clone())
        return (x, *inputs[1:])

    def of_output(_module: Any, _inputs: Any, output: Any) -> Any:
        is_alone = isinstance(output, torch.Tensor)
        change(x := (output if is_alone else output[0]).clone())
        return x if is_alone else (x, *output[1:])

    handle = module.register_forward_pre_hook(of_input) if is_input else module.register_forward_hook(of_output)
    with handle, torch.no_grad():
        found: torch.Tensor = model(torch.tensor([BASE, SOURCE])).logits
    return found


def copied(x: torch.Tensor, entries: slice) -> None:
    for token in TOKENS:
        x[0, token, entries] = x[1, token, entries]


def scaled(x: torch.Tensor, entries: slice) -> None:
    x[0, list(TOKENS), entries] *= -0.5


@pytest.mark.parametrize("name", NAMES)
def test_patched_and_scaled_runs_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    """The other run goes beside the changed one, as a row of the same batch."""
    model = families.make(name)
    decoder = open_checkpoint(families.save(model, tmp_path)).load("cpu", torch.float32)
    width = decoder.config.d_head
    plain = require(decoder.forward(torch.tensor([BASE, SOURCE])))
    for location in TAPS:
        of_heads = location is L.ATTN_WEIGHTED_SUM_OF_VALUES
        axes = (PositionList(positions=TOKENS), HEAD if of_heads else None)
        entries = slice(HEAD * width, (HEAD + 1) * width) if of_heads else slice(None)
        for layer in range(decoder.config.n_layers):
            at = TapSelection(activation_location_type=location, layer_index=layer, axes=axes)
            for action, change in ((CopyFromRun(run="source"), copied), (ScaleValue(factor=-0.5), scaled)):
                ours = RowIntervention(
                    row=0,
                    intervention=Intervention(at=at, action=action),
                    runs={"source": Beside(1, len(SOURCE))},
                )
                found = require(decoder.forward(torch.tensor([BASE, SOURCE]), Taps(interventions=[ours])))
                expected = logits_with(model, location, layer, partial(change, entries=entries))
                assert_close(found, expected, rtol=0, atol=5e-5, msg=f"{location} of layer {layer}")
                assert (found[0] - plain[0]).abs().max() > 1e-3, (location, layer)


@pytest.mark.parametrize("kind", [Transcoder.NORMED, Transcoder.CROSS_LAYER])
@pytest.mark.parametrize("name", NAMES)
def test_transcoders_in_the_graph_change_neither_logits_nor_gradients(
    name: str, kind: Transcoder, tmp_path: Path
) -> None:
    decoder = open_checkpoint(families.save(families.make(name), tmp_path)).load("cpu", torch.float32)
    splices = models.splices(models.autoencoders(kind, 4, config=decoder.config, dtype=torch.float32))
    sites = [(L.ATTN_WEIGHTED_SUM_OF_VALUES, 1), (L.RESID_DELTA_MLP, 2), (L.RESID_POST_EMBEDDING, None)]
    found = []
    for spliced in ({}, splices):
        taps = Taps(gradients=sites, splices=spliced)
        logits = require(decoder.forward(torch.tensor([BASE, SOURCE]), taps))
        found.append((logits.detach(), taps.gradients(logits[:, -1, 3].sum())))
    (logits, gradients), (with_latents, through_latents) = found
    assert_close(with_latents, logits, rtol=0, atol=5e-5)
    for site in sites:
        assert_close(through_latents[site], gradients[site], rtol=1e-3, atol=5e-5)

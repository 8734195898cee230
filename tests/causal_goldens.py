"""The golden data of causal questions, as `golden_causal/README.md` describes it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dst_grpc.causal.attribution import Pair
from dst_grpc.domain.components import LossFnName
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.engine.decoder import Decoder
from dst_grpc.scalars.origins import LossOrigin

FOLDER = Path(__file__).parent / "golden_causal"
MODELS = ("gpt2", "llama", "gemma2", "neox")
CASES = tuple(f"{model}_{case}" for model in MODELS for case in ("single", "several"))
DIRECTIONS = ("noise", "denoise")


@dataclass(frozen=True, eq=False)
class GoldenCase:
    """A pair of prompts for one model, and what was computed of it."""

    name: str
    model: str
    facts: dict[str, Any]
    """`case.json`."""
    tensors: dict[str, torch.Tensor]
    """`causal.safetensors`."""

    @property
    def clean(self) -> tuple[int, ...]:
        """Tokens of the clean prompt."""
        return tuple(self.facts["clean_ids"])

    @property
    def corrupt(self) -> tuple[int, ...]:
        """Tokens of the corrupt prompt."""
        return tuple(self.facts["corrupt_ids"])

    @property
    def target(self) -> int:
        """The token whose logit counts."""
        return int(self.facts["metric"]["target"])

    @property
    def distractor(self) -> int:
        """The token whose logit is subtracted."""
        return int(self.facts["metric"]["distractor"])


def model_folder(model: str) -> Path:
    """The folder of a model."""
    return FOLDER / "models" / model


@cache
def golden_decoder(model: str, dtype: torch.dtype = torch.float32) -> Decoder:
    """A model, loaded."""
    return open_checkpoint(model_folder(model)).load("cpu", dtype)


@cache
def golden_case(name: str) -> GoldenCase:
    """A case, by its name."""
    folder = FOLDER / "cases" / name
    facts = json.loads((folder / "case.json").read_text())
    return GoldenCase(name, facts["model"], facts, load_file(folder / "causal.safetensors"))


def pairs_of(case: GoldenCase, direction: str = "noise", count: int = 1) -> list[Pair]:
    """The first pairs of a case."""
    found = []
    for pair in case.facts["pairs"][:count]:
        clean, corrupt = tuple(pair["clean_ids"]), tuple(pair["corrupt_ids"])
        base, source = (clean, corrupt) if direction == "noise" else (corrupt, clean)
        loss = LossFnConfig(
            name=LossFnName.LOGIT_DIFF,
            target_token_ids=(pair["target"],),
            distractor_token_ids=(pair["distractor"],),
        )
        found.append(Pair(base, source, LossOrigin(loss)))
    return found


def assert_golden(
    found: torch.Tensor, golden: torch.Tensor, *, relative: float = 2e-5, of_largest: float = 0.0
) -> None:
    """*found* equals *golden* within *relative* (1 + |golden|), or *of_largest* of the largest entry of *golden*."""
    assert found.shape == golden.shape
    bound = relative * (1 + golden.abs()) + of_largest * golden.abs().max()
    excess = (found - golden).abs() / bound
    assert excess.max() <= 1, f"{excess.max():.3g} times the bound, at {excess.argmax().item()}"

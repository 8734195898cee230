"""What the scorecard asks about: a model that people use and three tiny ones, each with three pairs of prompts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import torch

from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.engine.tokenizer import Tokenizer
from scripts.real_model.__main__ import ready_folder

TINY: Final = Path(__file__).parents[2] / "tests" / "golden_causal" / "models"
STRENGTHS: Final = (-8.0, -4.0, -2.0, -1.0, 1.0, 2.0, 4.0, 8.0)
N_DIRECTIONS: Final = 4
"""Directions of the subspace that is interchanged."""

_TEXTS = (
    ("The capital of France is", "The capital of Italy is", " Paris", " Rome"),
    ("The opposite of hot is", "The opposite of big is", " cold", " small"),
    ("The plural of mouse is", "The plural of child is", " mice", " children"),
)
_TINY_PAIRS = (
    ((0, 20, 22, 42, 10, 41, 45), (0, 20, 22, 59, 10, 41, 45), 7, 51),
    ((0, 23, 19, 36, 8, 47, 8), (0, 33, 19, 45, 8, 47, 8), 10, 13),
    ((0, 36, 10, 27, 40, 24, 54), (0, 36, 10, 29, 40, 24, 30), 39, 13),
)


@dataclass(frozen=True)
class Example:
    """Two prompts of the same length, and two tokens whose logits are compared."""

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    target: int
    distractor: int


@dataclass(frozen=True)
class Subject:
    """A model and its prompts."""

    name: str
    title: str
    folder: Path
    examples: tuple[Example, ...]
    """All of the same length, so that one position means the same in each."""

    @cached_property
    def n_layers(self) -> int:
        """Layers of the model."""
        return open_checkpoint(self.folder).config.n_layers

    @cached_property
    def d_model(self) -> int:
        """Channels of its residual stream."""
        return open_checkpoint(self.folder).config.d_model

    @property
    def middle(self) -> int:
        """The layer after which it is steered, and interchanged."""
        return self.n_layers // 2

    @cached_property
    def direction(self) -> torch.Tensor:
        """The direction [d] of steering, of length 1."""
        random = torch.randn(self.d_model, generator=torch.Generator().manual_seed(0))
        return torch.nn.functional.normalize(random, dim=0)

    @cached_property
    def subspace(self) -> torch.Tensor:
        """Orthonormal rows [k, d], as a rotation that was learnt would have them."""
        random = torch.randn(self.d_model, N_DIRECTIONS, generator=torch.Generator().manual_seed(1))
        rotation: torch.Tensor = torch.linalg.qr(random).Q
        return rotation.T.contiguous()


def tiny_subjects() -> tuple[Subject, ...]:
    """Random models of three families."""
    examples = tuple(Example(*pair) for pair in _TINY_PAIRS)
    titles = {"gpt2": "A tiny GPT-2", "llama": "A tiny Llama", "gemma2": "A tiny Gemma 2"}
    return tuple(Subject(f"tiny-{name}", title, TINY / name, examples) for name, title in titles.items())


def real_subject() -> Subject:
    """SmolLM2-135M-Instruct; its folder is made of the package that carries it, unless it was before."""
    folder = ready_folder()
    encode = Tokenizer.from_folder(folder).encode

    def token(text: str) -> int:
        (found,) = encode(text)
        return found

    examples = [
        Example(tuple(encode(clean)), tuple(encode(corrupt)), token(target), token(distractor))
        for clean, corrupt, target, distractor in _TEXTS
    ]
    return Subject("smollm2", "SmolLM2-135M-Instruct", folder, tuple(examples))

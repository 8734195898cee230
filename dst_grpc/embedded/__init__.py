"""Paths of the embedded default: the small model and its autoencoders that ship inside the package. `MODEL_CARD.md`
beside this file says how they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
"""The folder with the model, the autoencoders and the model card."""

MODEL_FOLDER: Final = FOLDER / "model"
"""`config.json`, `model.safetensors` and `tokenizer.json`, in the layout of a Hugging Face GPT-2 checkpoint."""

AUTOENCODERS_FOLDER: Final = FOLDER / "autoencoders"
"""One folder per kind (`mlp_post_act`, `resid_delta_mlp`, `resid_delta_attn`), one safetensors file per layer."""

TRANSCODERS_FOLDER: Final = FOLDER / "transcoders"
"""One folder per set of transcoders of the MLPs, in circuit-tracer's layout."""

__all__ = ["AUTOENCODERS_FOLDER", "FOLDER", "MODEL_FOLDER", "TRANSCODERS_FOLDER"]

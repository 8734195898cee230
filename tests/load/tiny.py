"""The models of the fuzz: so small that whatever is validly asked of them is answered at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from tests.checkpoints import LATENTS, LAYERS, WIDTH, write_autoencoders, write_model

if TYPE_CHECKING:
    from pathlib import Path

_TRANSCODERS = """\
model_kind: transcoder_set
feature_input_hook: ln2.hook_normalized
feature_output_hook: hook_mlp_out
"""


def arguments(folder: Path) -> tuple[str, ...]:
    """Arguments that serve two of them and nothing else: `tiny`, the default, with three sets of random autoencoders
    and one of transcoders, and `other`, with none."""
    lines = []
    for name in ("tiny", "other"):
        write_model(folder / name)
        lines += [f"[models.{name}]", f'source = {{ folder = "{name}" }}', f"default = {str(name == 'tiny').lower()}"]
    write_autoencoders(folder / "tiny" / "autoencoders")
    _write_transcoders(folder / "tiny" / "transcoders" / "mlp_transcoders")
    registry = folder / "registry.toml"
    registry.write_text("\n".join(lines))
    return ("--registry", str(registry), "--preload", "tiny", "--allow-failed-checks")  # as they are random


def _write_transcoders(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(_TRANSCODERS)
    generator = torch.Generator().manual_seed(0)
    for layer in range(LAYERS):
        shapes = {"W_enc": (LATENTS, WIDTH), "W_dec": (LATENTS, WIDTH), "b_enc": (LATENTS,), "b_dec": (WIDTH,)}
        tensors = {name: torch.randn(shape, generator=generator) / 2 for name, shape in shapes.items()}
        save_file(tensors, folder / f"layer_{layer}.safetensors")

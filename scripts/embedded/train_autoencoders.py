"""Training of the sparse autoencoders, three kinds at every layer, and their files and figures. Activations
are read with forward hooks from the model as its file holds it; how the files are laid out is in `write`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from scripts.embedded.packing import BLOCK_LENGTH, FULL_TEXT, Blocks, Lesson, held_out_blocks, lesson_blocks
from scripts.embedded.train_model import load

SEED: Final = 1
KINDS: Final = ("mlp_post_act", "resid_delta_mlp", "resid_delta_attn")
LATENTS: Final = {"mlp_post_act": 512, "resid_delta_mlp": 640, "resid_delta_attn": 640}
TRAINING_TEXT: Final = Lesson(steps=1, rows=3200, length=BLOCK_LENGTH, weights=FULL_TEXT)
HELD_OUT_ROWS: Final = 400
TEST_ROWS: Final = 24
"""Rows of held-out text without the Bible, few enough for a test to measure again."""
STEPS: Final = 3000
BATCH: Final = 1024
LEARNING_RATE: Final = 2e-3
TARGET_FVU: Final = {"mlp_post_act": 0.18, "resid_delta_mlp": 0.08, "resid_delta_attn": 0.14}
"""The sparsity penalty is steered so that this share of the variance stays unexplained on training batches."""
RESAMPLE_AT: Final = (0.15, 0.3, 0.45, 0.6)
"""Parts of the training at which latents that have not fired of late start anew."""


@dataclass(slots=True)
class Autoencoder:
    """`latents = relu((x - pre_bias) @ encoder.T + latent_bias)`; `x` again is `latents @ decoder.T + pre_bias`."""

    pre_bias: torch.Tensor
    encoder: torch.Tensor
    """[latents, inputs]."""
    latent_bias: torch.Tensor
    decoder: torch.Tensor
    """[inputs, latents]; columns of length one."""

    def latents(self, x: torch.Tensor) -> torch.Tensor:
        """What the latents are on the rows of `x`."""
        return torch.relu((x - self.pre_bias) @ self.encoder.T + self.latent_bias)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The inputs rebuilt from `latents`."""
        return latents @ self.decoder.T + self.pre_bias

    def parameters(self) -> list[torch.Tensor]:
        """What is trained."""
        return [self.pre_bias, self.encoder, self.latent_bias, self.decoder]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How an autoencoder does on some activations."""

    l0: float
    """Mean number of latents above zero per token."""
    fvu: float
    """Squared error over squared distance from the mean: the fraction of variance unexplained."""
    dead_latents: int
    """Latents that are zero on every token."""
    frequency: torch.Tensor
    """Per latent, the share of tokens on which it is above zero."""
    mean_square: torch.Tensor
    """Per latent, the mean of its square over the tokens."""


@contextmanager
def _recording(model: GPT2LMHeadModel, layer: int, found: dict[str, list[torch.Tensor]]) -> Iterator[None]:
    """Append to `found` what each kind of autoencoder reads at `layer`, for as long as the context lasts."""
    block: Any = model.transformer.h[layer]

    def keep(kind: str, tensor: torch.Tensor) -> None:
        found[kind].append(tensor.detach().flatten(0, 1).clone())

    def before_projection(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        keep("mlp_post_act", inputs[0])

    def after_mlp(_module: object, _inputs: object, output: torch.Tensor) -> None:
        keep("resid_delta_mlp", output)

    def after_attention(_module: object, _inputs: object, output: tuple[torch.Tensor, ...]) -> None:
        keep("resid_delta_attn", output[0])

    hooks = [
        block.mlp.c_proj.register_forward_pre_hook(before_projection),
        block.mlp.register_forward_hook(after_mlp),
        block.attn.register_forward_hook(after_attention),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def activations(model: GPT2LMHeadModel, blocks: Blocks, layer: int) -> dict[str, torch.Tensor]:
    """What the autoencoders of `layer` read on every token of `blocks`: kind -> [tokens, inputs]."""
    found: dict[str, list[torch.Tensor]] = {kind: [] for kind in KINDS}
    with torch.inference_mode(), _recording(model, layer, found):
        for start in range(0, len(blocks.ids), 32):
            model.transformer(torch.from_numpy(blocks.ids[start : start + 32]))
    return {kind: torch.cat(parts).clone() for kind, parts in found.items()}


def measure(autoencoder: Autoencoder, x: torch.Tensor) -> Figures:
    """The figures of `autoencoder` on the rows of `x`."""
    active = torch.zeros(len(autoencoder.latent_bias), dtype=torch.float64)
    squares = torch.zeros_like(active)
    error = 0.0
    with torch.inference_mode():
        for part in torch.split(x, 8192):
            latents = autoencoder.latents(part)
            error += (autoencoder.decode(latents) - part).double().square().sum().item()
            active += (latents > 0).sum(0)
            squares += latents.double().square().sum(0)
        variance = (x - x.mean(0)).double().square().sum().item()
    return Figures(
        l0=active.sum().item() / len(x),
        fvu=error / variance,
        dead_latents=int((active == 0).sum()),
        frequency=(active / len(x)).float(),
        mean_square=(squares / len(x)).float(),
    )


def _fresh(x: torch.Tensor, latents: int, generator: torch.Generator) -> Autoencoder:
    """An untrained autoencoder: random unit directions, read and written alike."""
    mean = x.mean(0)
    directions = torch.randn(latents, x.shape[1], generator=generator)
    directions = directions / directions.norm(dim=1, keepdim=True)
    tensors = (mean.clone(), directions.clone(), torch.zeros(latents), directions.T.clone())
    return Autoencoder(*(tensor.requires_grad_() for tensor in tensors))


def _resample(autoencoder: Autoencoder, optimizer: torch.optim.Adam, dead: torch.Tensor, x: torch.Tensor) -> None:
    """Point latents that never fire at inputs that are rebuilt badly, with small encoders and no momentum."""
    with torch.no_grad():
        error = x - autoencoder.decode(autoencoder.latents(x))
        worst = error.norm(dim=1).topk(min(len(dead), len(x))).indices
        chosen = dead[: len(worst)]
        directions = error[worst] / error[worst].norm(dim=1, keepdim=True)
        autoencoder.decoder[:, chosen] = directions.T
        autoencoder.encoder[chosen] = directions * autoencoder.encoder.norm(dim=1).mean() * 0.3
        autoencoder.latent_bias[chosen] = 0.0
        for parameter, where in (
            (autoencoder.encoder, (chosen,)),
            (autoencoder.latent_bias, (chosen,)),
            (autoencoder.decoder, (slice(None), chosen)),
        ):
            for name in ("exp_avg", "exp_avg_sq"):
                optimizer.state[parameter][name][where] = 0.0


def fit(raw: torch.Tensor, kind: str, seed: int, steps: int = STEPS) -> Autoencoder:
    """Train one autoencoder of a kind on the rows of `raw`."""
    latents, target = LATENTS[kind], TARGET_FVU[kind]
    generator = torch.Generator().manual_seed(seed)
    # Inputs of mean squared length n make one learning rate and one penalty fit every layer; undone at the end.
    scale = float((raw.shape[1] / (raw - raw.mean(0)).square().sum(1).mean()).sqrt())
    x = raw * scale
    autoencoder = _fresh(x[:100_000], latents, generator)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), fused=True)
    resample_steps = {int(share * steps) for share in RESAMPLE_AT}
    penalty, fired = 0.06, torch.zeros(latents)
    for step in range(steps):
        rate = LEARNING_RATE * min(1.0, (step + 1) / 100, (steps - step) / (0.25 * steps))
        optimizer.param_groups[0]["lr"] = rate
        batch = x[torch.randint(len(x), (BATCH,), generator=generator)]
        hidden = autoencoder.latents(batch)
        error = (autoencoder.decode(hidden) - batch).square().sum(1).mean()
        loss = (error + penalty * raw.shape[1] ** 0.5 * hidden.sum(1).mean()) / raw.shape[1]
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        with torch.no_grad():
            autoencoder.decoder /= autoencoder.decoder.norm(dim=0, keepdim=True)
            fired += (hidden > 0).sum(0)
            # Up when too much is explained, down when too little; slow enough not to chase single batches.
            penalty *= 1.004 if error.item() / raw.shape[1] < target else 1 / 1.004
        if step + 1 in resample_steps:
            dead = (fired == 0).nonzero()[:, 0]
            if len(dead):
                _resample(autoencoder, optimizer, dead, x[torch.randint(len(x), (8192,), generator=generator)])
        if step + 1 in resample_steps or step + 1 in {at - 150 for at in resample_steps}:
            fired.zero_()
    tensors = [tensor.detach() for tensor in autoencoder.parameters()]
    return Autoencoder(tensors[0] / scale, tensors[1], tensors[2] / scale, tensors[3])


def write(path: Path, autoencoder: Autoencoder, kind: str, layer: int, figures: Figures) -> None:
    """Write one autoencoder: weights as float16, biases and statistics as float32."""
    tensors = {
        "pre_bias": autoencoder.pre_bias,
        "encoder.weight": autoencoder.encoder.half(),
        "latent_bias": autoencoder.latent_bias,
        "decoder.weight": autoencoder.decoder.half(),
        "latents_activation_frequency": figures.frequency,
        "latents_mean_square": figures.mean_square,
    }
    metadata = {"activation": "ReLU", "activation_state_dict": "{}", "dst": kind, "layer_index": str(layer)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    path.chmod(0o644)


def read(path: Path) -> Autoencoder:
    """The autoencoder as its file holds it, to be run in float32."""
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    return Autoencoder(
        tensors["pre_bias"], tensors["encoder.weight"], tensors["latent_bias"], tensors["decoder.weight"]
    )


def rounded(autoencoder: Autoencoder) -> Autoencoder:
    """`autoencoder` with the weights that its file will hold."""
    return Autoencoder(
        autoencoder.pre_bias,
        autoencoder.encoder.half().float(),
        autoencoder.latent_bias,
        autoencoder.decoder.half().float(),
    )


def main(model_folder: Path, folder: Path) -> None:
    """Train, measure and write every autoencoder."""
    start = time.monotonic()
    model, tokenizer = load(model_folder)
    texts = {
        "training": lesson_blocks(tokenizer, TRAINING_TEXT, "autoencoders"),
        "held_out": held_out_blocks(tokenizer, HELD_OUT_ROWS, with_bible=True),
        "test": held_out_blocks(tokenizer, TEST_ROWS, with_bible=False),
    }
    layers: dict[str, dict[str, dict[str, float]]] = {kind: {} for kind in KINDS}
    for layer in range(model.config.n_layer):
        inputs = {name: activations(model, blocks, layer) for name, blocks in texts.items()}
        for number, kind in enumerate(KINDS):
            autoencoder = rounded(fit(inputs["training"][kind], kind, SEED + 10 * layer + number))
            held_out = measure(autoencoder, inputs["held_out"][kind])
            test = measure(autoencoder, inputs["test"][kind])
            write(folder / kind / f"{layer}.safetensors", autoencoder, kind, layer, held_out)
            layers[kind][str(layer)] = {
                "l0": round(held_out.l0, 2),
                "fvu": round(held_out.fvu, 4),
                "dead_latents": held_out.dead_latents,
                "fvu_made_text": round(test.fvu, 4),
            }
            print(f"{kind} {layer}: {layers[kind][str(layer)]}  {time.monotonic() - start:.0f} s", flush=True)
    for kind in KINDS:
        config = {
            "dst": kind,
            "activation": "ReLU",
            "n_latents": LATENTS[kind],
            "layers": layers[kind],
            "trained_on": f"{texts['training'].ids.size} tokens of text mixed as the model's training text",
        }
        (folder / kind / "config.json").write_text(json.dumps(config, indent=2) + "\n")

"""Training of the transcoders of the MLPs, one per layer, and their files and figures. A transcoder reads what its MLP
reads and predicts what it adds to the residual stream, from few features at a time. The files are in circuit-tracer's
layout.

Trained with batch top-k (Bussmann et al. 2024, "BatchTopK Sparse Autoencoders"): of all activations of a batch the
largest are kept, `L0` times as many as it has tokens. What is written keeps those above one threshold instead, which
leaves as many, so that a token's features do not depend on others'. Compared with penalties on the sum of activations
and on their number, steered to the same unexplained variance, it needed the fewest features for it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from scripts.embedded.packing import BLOCK_LENGTH, FULL_TEXT, Blocks, Lesson, held_out_blocks, led, lesson_blocks
from scripts.embedded.train_autoencoders import HELD_OUT_ROWS, TEST_ROWS
from scripts.embedded.train_model import load

NAME: Final = "mlp_transcoders"
SEED: Final = 101
FEATURES: Final = 1024
L0: Final = (20, 10, 10, 14)
"""Features that are active at a token, on average, by layer. With 5 the last MLP is explained as well as the others;
but what it writes goes straight to the logits, and half of a name's logit was missing."""
TRAINING_TEXT: Final = Lesson(steps=1, rows=1200, length=BLOCK_LENGTH, weights=FULL_TEXT)
STEPS: Final = 4000
BATCH: Final = 512
LEARNING_RATE: Final = 2e-3
DEAD_AFTER: Final = 200
"""Steps after which a feature that was never kept counts as dead, and learns from the error that the others leave."""
REVIVED_AT_ONCE: Final = 32
"""Dead features that a token uses for that, at most."""
CALIBRATION_TOKENS: Final = 16_384
READS: Final = "mlp.hook_in"
"""After the norm: from the residual before it, as many features leave an eighth more of the variance unexplained."""
WRITES: Final = "hook_mlp_out"
Pairs = tuple[torch.Tensor, torch.Tensor]
"""What an MLP reads, and what it writes: each [tokens, width]."""


@dataclass(frozen=True, slots=True)
class Transcoder:
    """`features = h where h > threshold, else 0`, of `h = x @ encoder.T + encoder_bias`; the MLP's write is about
    `features @ decoder + decoder_bias`."""

    encoder: torch.Tensor
    """[features, width]."""
    encoder_bias: torch.Tensor
    decoder: torch.Tensor
    """[features, width]; rows of length one, so that an activation is the length of what it writes."""
    decoder_bias: torch.Tensor
    threshold: torch.Tensor
    """[features], above 0."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The activations of the features on the rows of `x`."""
        h = x @ self.encoder.T + self.encoder_bias
        return h * (h > self.threshold)

    def write(self, features: torch.Tensor) -> torch.Tensor:
        """What `features` write to the residual stream."""
        return features @ self.decoder + self.decoder_bias

    def rounded(self) -> Transcoder:
        """The same with the weights that its file will hold."""
        return replace(self, encoder=self.encoder.half().float(), decoder=self.decoder.half().float())


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How a transcoder does on some tokens."""

    l0: float
    """Mean number of active features per token."""
    fvu: float
    """Squared error of the MLP's write over its squared distance from the mean: the variance's unexplained fraction."""
    dead_features: int
    """Features that are active at no token."""


def pairs(model: GPT2LMHeadModel, blocks: Blocks) -> list[Pairs]:
    """By layer, what its MLP reads and writes at every token of `blocks` but the first of a row, where graphs have no
    features."""
    layers: Any = model.transformer.h
    read: list[list[torch.Tensor]] = [[] for _ in layers]
    written: list[list[torch.Tensor]] = [[] for _ in layers]

    def keeper(layer: int) -> Any:
        def keep(_module: object, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            read[layer].append(inputs[0][:, 1:].flatten(0, 1).clone())
            written[layer].append(output[:, 1:].flatten(0, 1).clone())

        return keep

    hooks = [block.mlp.register_forward_hook(keeper(layer)) for layer, block in enumerate(layers)]
    try:
        with torch.inference_mode():
            for start in range(0, len(blocks.ids), 32):
                model.transformer(torch.from_numpy(blocks.ids[start : start + 32]))
    finally:
        for hook in hooks:
            hook.remove()
    return [(torch.cat(x).clone(), torch.cat(y).clone()) for x, y in zip(read, written, strict=True)]


def measure(transcoder: Transcoder, read: torch.Tensor, written: torch.Tensor) -> Figures:
    """The figures of `transcoder` where the MLP reads and writes these rows."""
    active = torch.zeros(len(transcoder.threshold), dtype=torch.float64)
    error = 0.0
    with torch.inference_mode():
        for x, y in zip(torch.split(read, 8192), torch.split(written, 8192), strict=True):
            features = transcoder.features(x)
            error += (transcoder.write(features) - y).double().square().sum().item()
            active += (features != 0).sum(0)
        variance = (written - written.mean(0)).double().square().sum().item()
    return Figures(l0=active.sum().item() / len(read), fvu=error / variance, dead_features=int((active == 0).sum()))


@contextmanager
def replaced(model: GPT2LMHeadModel, transcoders: Sequence[Transcoder]) -> Iterator[None]:
    """Let every MLP write what its transcoder predicts, but for the first token of a row, for as long as the context
    lasts."""

    def predict(transcoder: Transcoder) -> Any:
        def hook(_module: object, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            predicted = transcoder.write(transcoder.features(inputs[0][:, 1:]))
            return torch.cat([output[:, :1], predicted], dim=1)

        return hook

    blocks: Any = model.transformer.h
    hooks = [block.mlp.register_forward_hook(predict(one)) for block, one in zip(blocks, transcoders, strict=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def switched_off(transcoder: Transcoder) -> Transcoder:
    """The same with no feature ever active: its bias is all that it writes."""
    return replace(transcoder, threshold=torch.full_like(transcoder.threshold, math.inf))


def randomised(transcoder: Transcoder, read: torch.Tensor, written: torch.Tensor, seed: int) -> Transcoder:
    """One of as many features that read random directions and are active as often, on these rows; what they write is
    fitted to the MLP's write by least squares."""
    generator = torch.Generator().manual_seed(seed)
    l0 = round(measure(transcoder, read, written).l0)
    encoder = torch.randn(transcoder.encoder.shape, generator=generator) / transcoder.encoder.shape[1] ** 0.5
    centre = read.mean(0)
    bias = -encoder @ centre
    h = read @ encoder.T + bias
    threshold = _threshold(h, l0)
    features = h * (h > threshold)
    mean = written.mean(0)
    gram = features.T @ features + 1e-3 * len(read) * torch.eye(len(bias))
    decoder = torch.linalg.solve(gram, features.T @ (written - mean))
    return Transcoder(encoder, bias, decoder, mean, threshold.expand(len(bias)).clone())


def _threshold(h: torch.Tensor, l0: float) -> torch.Tensor:
    """The value that `l0` entries of a row of `h` exceed, on average."""
    count = round(l0 * len(h))
    largest: torch.Tensor = h.flatten().topk(count + 1, sorted=False).values
    return largest.min()


def _unit_rows(count: int, width: int, generator: torch.Generator) -> torch.Tensor:
    rows = torch.randn(count, width, generator=generator)
    unit: torch.Tensor = rows / rows.norm(dim=1, keepdim=True)
    return unit


def fit(
    read: torch.Tensor, written: torch.Tensor, l0: int, seed: int, *, steps: int = STEPS, features: int = FEATURES
) -> Transcoder:
    """Train the transcoder of an MLP that reads and writes these rows, with `l0` active features at a token."""
    width = read.shape[1]
    generator = torch.Generator().manual_seed(seed)
    # Deviations of mean squared length n make one learning rate fit every layer; undone at the end.
    x_mean, y_mean = read.mean(0), written.mean(0)
    x_scale = float((width / (read - x_mean).square().sum(1).mean()).sqrt())
    y_scale = float((width / (written - y_mean).square().sum(1).mean()).sqrt())
    x, y = (read - x_mean) * x_scale, (written - y_mean) * y_scale
    encoder, decoder = (_unit_rows(features, width, generator).requires_grad_() for _ in range(2))
    encoder_bias, decoder_bias = torch.zeros(features).requires_grad_(), torch.zeros(width).requires_grad_()
    parameters = [encoder, encoder_bias, decoder, decoder_bias]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, betas=(0.9, 0.99), fused=True)
    idle = torch.zeros(features)
    for step in range(steps):
        rate = LEARNING_RATE * min(1.0, (step + 1) / 100, (steps - step) / (0.25 * steps))
        optimizer.param_groups[0]["lr"] = rate
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        h = torch.relu(x[rows] @ encoder.T + encoder_bias)
        kept = h * (h > _threshold(h.detach(), l0))
        error = kept @ decoder + decoder_bias - y[rows]
        loss = error.square().mean()
        dead = (idle > DEAD_AFTER).nonzero()[:, 0]
        if len(dead):
            loss = loss + _error_left(h[:, dead], decoder[dead], error.detach()) / REVIVED_AT_ONCE
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True)
            idle = torch.where((kept > 0).any(0), 0.0, idle + 1)
    with torch.no_grad():
        sample = x[torch.randint(len(x), (CALIBRATION_TOKENS,), generator=generator)]
        threshold = _threshold(torch.relu(sample @ encoder.T + encoder_bias), l0)
        scale = x_scale / y_scale
        return Transcoder(
            encoder=encoder * scale,
            encoder_bias=encoder_bias / y_scale - (encoder @ x_mean) * scale,
            decoder=decoder.clone(),
            decoder_bias=decoder_bias / y_scale + y_mean,
            threshold=(threshold / y_scale).expand(features).clone(),
        )


def _error_left(h: torch.Tensor, decoder: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """The mean square of what dead features, the largest at each token, leave of `error` (Gao et al. 2024, "Scaling and
    evaluating sparse autoencoders", section 2.4)."""
    values, where = h.topk(min(REVIVED_AT_ONCE, h.shape[1]), dim=1)
    return (torch.zeros_like(h).scatter(1, where, values) @ decoder + error).square().mean()


def path_of(folder: Path, layer: int) -> Path:
    """Where the transcoder of `layer` is, in the folder of a set."""
    return folder / f"layer_{layer}.safetensors"


def write_file(path: Path, transcoder: Transcoder) -> None:
    """Write one transcoder: weights as float16, biases and thresholds as float32."""
    tensors = {
        "W_enc": transcoder.encoder.half(),
        "b_enc": transcoder.encoder_bias,
        "W_dec": transcoder.decoder.half(),
        "b_dec": transcoder.decoder_bias,
        "activation_function.threshold": transcoder.threshold,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    path.chmod(0o644)


def read_file(path: Path) -> Transcoder:
    """The transcoder as its file holds it, to be run in float32."""
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    return Transcoder(
        encoder=tensors["W_enc"],
        encoder_bias=tensors["b_enc"],
        decoder=tensors["W_dec"],
        decoder_bias=tensors["b_dec"],
        threshold=tensors["activation_function.threshold"],
    )


def read_set(folder: Path) -> list[Transcoder]:
    """The transcoders of a set, by layer."""
    return [read_file(path_of(folder, layer)) for layer in range(len(L0))]


def texts(tokenizer: Any) -> dict[str, Blocks]:
    """What to train and measure on. Rows start as prompts of graphs do, with the token between documents; those of the
    training text only every other time, as prompts of other questions do not."""
    return {
        "training": led(lesson_blocks(tokenizer, TRAINING_TEXT, "transcoders"), tokenizer, every=2),
        "held_out": led(held_out_blocks(tokenizer, HELD_OUT_ROWS, with_bible=True), tokenizer),
        "test": led(held_out_blocks(tokenizer, TEST_ROWS, with_bible=False), tokenizer),
    }


def main(model_folder: Path, folder: Path) -> None:
    """Train, measure and write every transcoder into `folder`."""
    start = time.monotonic()
    model, tokenizer = load(model_folder)
    blocks = texts(tokenizer)
    layers: dict[str, dict[str, float]] = {}
    found = {name: pairs(model, one) for name, one in blocks.items()}
    for layer, l0 in enumerate(L0):
        transcoder = fit(*found["training"][layer], l0, SEED + layer).rounded()
        held_out, test = (measure(transcoder, *found[name][layer]) for name in ("held_out", "test"))
        write_file(path_of(folder, layer), transcoder)
        layers[str(layer)] = {
            "l0": round(held_out.l0, 2),
            "fvu": round(held_out.fvu, 4),
            "dead_features": held_out.dead_features,
            "fvu_made_text": round(test.fvu, 4),
        }
        print(f"transcoder {layer}: {layers[str(layer)]}  {time.monotonic() - start:.0f} s", flush=True)
    describe(folder, layers)


def describe(folder: Path, layers: Mapping[str, Mapping[str, float]]) -> None:
    """Write the figures of `layers`, and where a graph finds the set's input and output, into `folder`."""
    config = {
        "dst": "resid_post_attn",
        "activation": "JumpReLU",
        "n_features": FEATURES,
        "layers": layers,
        "trained_on": f"{TRAINING_TEXT.rows * TRAINING_TEXT.length} tokens of text mixed as the model's training text",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    hooks = {"model_name": "embedded", "model_kind": "transcoder_set"}
    hooks |= {"feature_input_hook": READS, "feature_output_hook": WRITES, "scan": f"embedded/{folder.name}"}
    (folder / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in hooks.items()))

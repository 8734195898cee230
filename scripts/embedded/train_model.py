"""Training of the small GPT-2 on the packed blocks, and its two files (`config.json`, `model.safetensors`). The weights
are stored as float16; whoever measures the model must read them back from the file."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from scripts.embedded.packing import BLOCK_LENGTH, LESSONS, Lesson, lesson_blocks, separator_id

SEED: Final = 0
WIDTH: Final = 128
LAYERS: Final = 4
HEADS: Final = 4
PEAK_LEARNING_RATE: Final = 2.5e-3
INITIAL_SPREAD: Final = 0.06
"""Standard deviation of fresh weights. So narrow a model learns far slower from the usual 0.02."""
WARM_UP_STEPS: Final = 200
WEIGHT_DECAY: Final = 0.05


def configuration(tokenizer: Tokenizer) -> dict[str, object]:
    """What goes into `config.json`."""
    separator = separator_id(tokenizer)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": tokenizer.get_vocab_size(),
        "n_positions": BLOCK_LENGTH,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "initializer_range": INITIAL_SPREAD,
        "tie_word_embeddings": True,
        "bos_token_id": separator,
        "eos_token_id": separator,
        "dtype": "float32",
    }


def learning_rate(step: int, lesson: Lesson) -> float:
    """The rate at a step of a lesson: linear warm-up, then level; where the lesson cools, a cosine down to nothing."""
    rate = PEAK_LEARNING_RATE * min(1.0, (step + 1) / WARM_UP_STEPS)
    if lesson.cools:
        rate *= 0.5 * (1 + math.cos(math.pi * step / lesson.steps))
    return rate


def _set_positions(model: GPT2LMHeadModel) -> None:
    """Start the position embeddings as waves, from which "one token back" is quickly learned."""
    table = model.transformer.wpe.weight
    positions, width = table.shape
    rates = torch.exp(-math.log(1000.0) * torch.arange(width // 2) / (width // 2))
    angles = torch.arange(positions)[:, None] * rates
    with torch.no_grad():
        table.copy_(torch.cat([angles.sin(), angles.cos()], dim=1) * INITIAL_SPREAD * math.sqrt(2))


def save(model: GPT2LMHeadModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the two files of the model. The unembedding is the embedding and is not written twice."""
    tensors = {
        name: tensor.detach().half().contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(configuration(tokenizer), indent=2) + "\n")


def load(folder: Path) -> tuple[GPT2LMHeadModel, Tokenizer]:
    """The model as its file holds it, run in float32, and its tokenizer."""
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    model.train(False)
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def _loss(model: GPT2LMHeadModel, ids: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the scored next tokens. Only their logits are ever computed."""
    keep = scored[:, 1:]
    hidden = model.transformer(ids).last_hidden_state[:, :-1][keep]
    return torch.nn.functional.cross_entropy(model.lm_head(hidden).float(), ids[:, 1:][keep])


def train(model: GPT2LMHeadModel, tokenizer: Tokenizer, lesson: Lesson, seed: str) -> None:
    """Train `model` on one lesson, one pass over its rows in order."""
    blocks = lesson_blocks(tokenizer, lesson, seed)
    plain = [tensor for tensor in model.parameters() if tensor.dim() < 2]
    decayed = [tensor for tensor in model.parameters() if tensor.dim() >= 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        fused=True,
    )
    start, running = time.monotonic(), 0.0
    for step in range(lesson.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, lesson)
        rows = slice(step * lesson.rows, (step + 1) * lesson.rows)
        ids, scored = torch.from_numpy(blocks.ids[rows]), torch.from_numpy(blocks.scored[rows])
        with torch.autocast("cpu", torch.bfloat16):
            loss = _loss(model, ids, scored)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running += loss.item()
        if (step + 1) % 100 == 0:
            print(f"{seed}  step {step + 1}  loss {running / 100:.3f}  {time.monotonic() - start:.0f} s", flush=True)
            running = 0.0


def main(folder: Path, first_lesson: int = 0) -> None:
    """Go through the lessons and save the model. Each lesson starts from the file that the one before it left, with a
    fresh optimizer, so that an interrupted training goes on from the last whole lesson."""
    torch.manual_seed(SEED)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for number in range(first_lesson, len(LESSONS)):
        if number == 0:
            model = GPT2LMHeadModel(GPT2Config.from_dict(configuration(tokenizer)))
            _set_positions(model)
        else:
            model, _ = load(folder)
        train(model, tokenizer, LESSONS[number], f"lesson {number}")
        save(model, tokenizer, folder)

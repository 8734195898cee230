"""Programs: small transformers whose circuits are known, because they are written by hand as the weights of a GPT-2.

The residual stream is divided into registers of 8 channels: `token` and `position` hold which one it is, `out` is what
the logits read, and a program has further ones of its own. A head attends by scores between two registers, and moves
what one register holds into another; a neuron likewise. So an edge is one of the circuit if and only if its source
writes where its reader reads, and what it writes there differs between the two prompts.

Heads and neurons that a program does not need are there too, with random weights: they read all registers, and write to
`idle`, which only they read. Two things make the norms the identity: what is written sums to 0 over the channels, of
which the first is there for that; and the epsilon of the norms is so large that, in float32, nothing else is left of
their scale, which the gain undoes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.errors import require
from tests import models

WIDTH = 8
"""Channels of a register; tokens of the vocabulary; longest prompt."""
N_HEADS = 2
SHARPNESS = 6.0
"""By how much the score of what a head looks for exceeds others."""
_EPSILON = 1e8
_NEURONS = 6

Matrix = torch.Tensor
SAME = torch.eye(WIDTH)
PREVIOUS = SHARPNESS * torch.diag(torch.ones(WIDTH - 1), -1)
"""Scores by which a position attends to the one before it; the first one, having none, to itself."""


def at(*entries: tuple[int, int], value: float = 1.0) -> Matrix:
    """A matrix that is *value* at some entries (row, column), and 0 elsewhere."""
    found = torch.zeros(WIDTH, WIDTH)
    for row, column in entries:
        found[row, column] = value
    return found


@dataclass(frozen=True, eq=False)
class Head:
    """What a head does. It has room for three scores, and for three moves."""

    scores: tuple[tuple[str, str, Matrix], ...]
    """A register of the query, one of the key, and the score [8, 8] of each pair of their channels: added up."""
    moves: tuple[tuple[str, str, Matrix], ...]
    """A register of the tokens attended to, one that is written, and what [8, 8] a channel writes to each channel."""


@dataclass(frozen=True, eq=False)
class Neurons:
    """What an MLP does: relu(reads + bias), times writes."""

    reads: Mapping[str, Matrix]
    """By register, the weights [8, n] of neurons."""
    bias: Matrix
    """Of each neuron [n]."""
    writes: Mapping[str, Matrix]
    """By register, what a neuron writes [n, 8]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A layer; whatever is not given is idle."""

    heads: Mapping[int, Head] = field(default_factory=dict)
    neurons: Neurons | None = None


@dataclass(frozen=True)
class Example:
    """Two prompts, and the tokens whose logits are compared: what the clean one is answered with, and another."""

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    target: int
    distractor: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """A transformer of known circuit."""

    name: str
    does: str
    """What its answer is."""
    layers: tuple[Layer, ...]
    examples: tuple[Example, ...]
    """The base run is that of the clean prompt."""
    edges: str
    """The names of exactly the edges that carry its behaviour, the primary head being on."""
    primary: tuple[int, int] | None = None
    """Layer and number of a head that another one stands in for if it is switched off: if its output is 0."""
    edges_without_primary: str = ""
    """The same with the primary head off."""

    @property
    def primary_off(self) -> AblationSpec:
        """What switches the primary head off."""
        layer, head = require(self.primary)
        heads = L.ATTN_WEIGHTED_SUM_OF_VALUES
        index = ActivationIndex(activation_location_type=heads, tensor_indices=(None, head, None), layer_index=layer)
        return AblationSpec(index=index, value=0.0)

    @property
    def cases(self) -> tuple[tuple[tuple[AblationSpec, ...], list[str]], ...]:
        """What is switched off in the base run, and the names of the edges of the circuit then."""
        without = () if self.primary is None else (((self.primary_off,), self.edges_without_primary.split()),)
        return ((), self.edges.split()), *without

    @property
    def registers(self) -> dict[str, slice]:
        """Where registers are in the residual stream."""
        named = ["token", "position", "out", "idle"]
        for layer in self.layers:
            for head in layer.heads.values():
                named += [name for *names, _ in (*head.scores, *head.moves) for name in names]
            if layer.neurons is not None:
                named += [*layer.neurons.reads, *layer.neurons.writes]
        order = dict.fromkeys(named)
        return {name: slice(1 + WIDTH * i, 1 + WIDTH * (i + 1)) for i, name in enumerate(order)}

    @property
    def d_model(self) -> int:
        """Channels of the residual stream: enough for three scores or moves of a head."""
        return max(N_HEADS * math.ceil((1 + WIDTH * len(self.registers)) / N_HEADS), N_HEADS * 3 * WIDTH)

    def config(self) -> dict[str, Any]:
        """The `config.json`."""
        return {
            "model_type": "gpt2",
            "activation_function": "relu",
            "n_layer": len(self.layers),
            "n_head": N_HEADS,
            "n_embd": self.d_model,
            "n_inner": _NEURONS,
            "n_positions": WIDTH,
            "vocab_size": WIDTH,
            "layer_norm_epsilon": _EPSILON,
            "tie_word_embeddings": False,
        }

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights, by the names of GPT-2."""
        d, registers = self.d_model, self.registers
        generator = torch.Generator().manual_seed(0)
        found = {"transformer.wte.weight": torch.zeros(WIDTH, d), "transformer.wpe.weight": torch.zeros(WIDTH, d)}
        found["transformer.wte.weight"][:, registers["token"]] = SAME
        found["transformer.wpe.weight"][:, registers["position"]] = SAME
        found["lm_head.weight"] = torch.zeros(WIDTH, d)
        found["lm_head.weight"][:, registers["out"]] = 4 * SAME
        for i, layer in enumerate(self.layers):
            heads = [layer.heads.get(h) or _idle_head(registers, generator) for h in range(N_HEADS)]
            parts = _attention(heads, registers, d) | _mlp(
                layer.neurons or _idle_neurons(registers, generator), registers, d
            )
            found |= {f"transformer.h.{i}.{name}": weight for name, weight in parts.items()}
        norms = ["ln_f", *(f"h.{i}.ln_{n}" for i in range(len(self.layers)) for n in (1, 2))]
        for name in norms:
            found[f"transformer.{name}.weight"] = torch.full((d,), math.sqrt(_EPSILON))
            found[f"transformer.{name}.bias"] = torch.zeros(d)
        for name, weight in found.items():
            if name.endswith(("wte.weight", "wpe.weight", "c_proj.weight")):
                weight[:, 0] = -weight[:, 1:].sum(dim=1)
        return found

    def save(self, folder: Path) -> Path:
        """Write it as a checkpoint, and return *folder*."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config()))
        (folder / "tokenizer.json").write_text(models.library_tokenizer(WIDTH).to_str())
        save_file(self.weights(), folder / "model.safetensors")
        return folder


def _attention(heads: Iterable[Head], registers: Mapping[str, slice], d: int) -> dict[str, torch.Tensor]:
    c = d // N_HEADS
    qkv, out = torch.zeros(d, 3, N_HEADS, c), torch.zeros(N_HEADS, c, d)
    for h, head in enumerate(heads):
        for i, (query, key, scores) in enumerate(head.scores):
            block = slice(WIDTH * i, WIDTH * (i + 1))
            qkv[registers[query], 0, h, block] += scores * math.sqrt(c)  # scores are divided by it
            qkv[registers[key], 1, h, block] += SAME
        for i, (source, target, moved) in enumerate(head.moves):
            block = slice(WIDTH * i, WIDTH * (i + 1))
            qkv[registers[source], 2, h, block] += SAME
            out[h, block, registers[target]] += moved
    return {
        "attn.c_attn.weight": qkv.reshape(d, 3 * d),
        "attn.c_attn.bias": torch.zeros(3 * d),
        "attn.c_proj.weight": out.reshape(d, d),
        "attn.c_proj.bias": torch.zeros(d),
    }


def _mlp(neurons: Neurons, registers: Mapping[str, slice], d: int) -> dict[str, torch.Tensor]:
    n = len(neurons.bias)
    into, bias, out = torch.zeros(d, _NEURONS), torch.zeros(_NEURONS), torch.zeros(_NEURONS, d)
    bias[:n] = neurons.bias
    for name, weights in neurons.reads.items():
        into[registers[name], :n] = weights
    for name, weights in neurons.writes.items():
        out[:n, registers[name]] = weights
    return {"mlp.c_fc.weight": into, "mlp.c_fc.bias": bias, "mlp.c_proj.weight": out, "mlp.c_proj.bias": torch.zeros(d)}


def _idle_head(registers: Mapping[str, slice], generator: torch.Generator) -> Head:
    def random() -> Matrix:
        return torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH

    scores = (("token", "token", random()), ("out", "position", random()), ("idle", "token", random()))
    return Head(scores, tuple((name, "idle", random()) for name in ("token", "out", "idle")))


def _idle_neurons(registers: Mapping[str, slice], generator: torch.Generator) -> Neurons:
    reads = {name: torch.randn(WIDTH, _NEURONS, generator=generator) / 2 for name in registers}
    bias = torch.randn(_NEURONS, generator=generator)
    return Neurons(reads, bias, {"idle": torch.randn(_NEURONS, WIDTH, generator=generator) / 2})


# The programs. Token 0 begins prompts whose first token would else look like the one before itself.

_PREVIOUS_TOKEN_TO_OUT = Head((("position", "position", PREVIOUS),), (("token", "out", SAME),))
_PREVIOUS_TOKEN = Head((("position", "position", PREVIOUS),), (("token", "previous", SAME),))


def _rows(*rows: tuple[float, ...]) -> Matrix:
    """A matrix by its rows."""
    return torch.tensor(rows)


def _each_token(*columns: Mapping[int, float]) -> Matrix:
    """The weights [8, n] of neurons that each add up numbers for some tokens."""
    found = torch.zeros(WIDTH, len(columns))
    for n, numbers in enumerate(columns):
        for token, number in numbers.items():
            found[token, n] = number
    return found


def _answers(*rows: Mapping[int, float]) -> Matrix:
    """What neurons [n] each write for some tokens of the answer, [n, 8]."""
    return _each_token(*rows).T


_NUMBERS = torch.arange(WIDTH, dtype=torch.float32)[:, None]
_SWITCH = at(*((token, 0) for token in range(WIDTH)))
"""Writes 1 to a register's first channel, whatever the token."""

PROGRAMS = (
    Program(
        name="copy",
        does="the token before the last",
        layers=(Layer(heads={0: _PREVIOUS_TOKEN_TO_OUT}),),
        examples=(Example((1, 2, 3), (1, 4, 3), 2, 4),),
        edges="input->a0.h0<v> a0.h0->logits",
    ),
    Program(
        name="distractor",
        does="the token before the last, which another head writes ten times as strongly, where nobody reads",
        layers=(
            Layer(
                heads={
                    0: Head((("position", "position", PREVIOUS),), (("token", "unread", 10 * SAME),)),
                    1: _PREVIOUS_TOKEN_TO_OUT,
                }
            ),
            Layer(),
        ),
        examples=(Example((1, 2, 3), (1, 4, 3), 2, 4),),
        edges="input->a0.h1<v> a0.h1->logits",
    ),
    Program(
        name="backup",
        does="the token before the last; a second head says so if the first does not",
        layers=(
            Layer(
                heads={
                    0: Head((("position", "position", PREVIOUS),), (("token", "out", SAME), ("token", "done", _SWITCH)))
                }
            ),
            Layer(
                heads={
                    # Once it is done, it attends to the first token, of which it moves nothing.
                    1: Head(
                        (("position", "position", PREVIOUS), ("done", "position", at((0, 0), value=40.0))),
                        (("token", "out", SAME - at((0, 0))),),
                    )
                }
            ),
        ),
        examples=(Example((0, 1, 2, 3), (0, 1, 4, 3), 2, 4),),
        edges="input->a0.h0<v> a0.h0->logits",
        primary=(0, 0),
        edges_without_primary="input->a1.h1<v> a1.h1->logits",
    ),
    Program(
        name="skip_trigram",
        does="3 if the last token is 2 and there is a 1 before; 5 if there is a 4",
        layers=(
            Layer(
                heads={
                    0: Head(
                        (("token", "token", at((2, 1), (2, 4), value=SHARPNESS)),),
                        (("token", "out", at((1, 3), (4, 5))),),
                    )
                }
            ),
        ),
        examples=(Example((1, 6, 7, 2), (4, 1, 7, 0), 3, 5),),
        edges="input->a0.h0<q> input->a0.h0<k> input->a0.h0<v> a0.h0->logits",
    ),
    Program(
        name="lookup",
        does="the token at the position that the last token numbers",
        layers=(Layer(heads={1: Head((("token", "position", SHARPNESS * SAME),), (("token", "out", SAME),))}),),
        examples=(Example((7, 5, 6, 4, 1), (7, 2, 6, 3, 3), 5, 3),),
        edges="input->a0.h1<q> input->a0.h1<v> a0.h1->logits",
    ),
    Program(
        name="majority",
        does="whether there are more 1 or more 2",
        layers=(
            Layer(
                heads={0: Head((), (("token", "tally", at((1, 0)) - at((2, 0))),))},
                neurons=Neurons(
                    {"tally": _rows((4, -4), *((0, 0),) * 7)}, torch.zeros(2), {"out": _answers({1: 1}, {2: 1})}
                ),
            ),
        ),
        examples=(Example((1, 1, 2, 1, 2), (2, 2, 1, 2, 1), 1, 2),),
        edges="input->a0.h0<v> a0.h0->m0 m0->logits",
    ),
    Program(
        name="comparison",
        does="7 if the last token is a larger number than the one before, 0 if it is a smaller one",
        layers=(
            Layer(
                heads={0: _PREVIOUS_TOKEN},
                neurons=Neurons(
                    {"previous": _NUMBERS * _rows((-1, 1)), "token": _NUMBERS * _rows((1, -1))},
                    torch.zeros(2),
                    {"out": _answers({7: 1}, {0: 1})},
                ),
            ),
        ),
        examples=(Example((3, 2, 6), (3, 5, 1), 7, 0),),
        edges="input->a0.h0<v> a0.h0->m0 input->m0 m0->logits",
    ),
    Program(
        name="negation",
        does="whether the token before the last is 1 (true) rather than 2 (false), or not so if the last is 4 (not)",
        layers=(
            Layer(
                heads={1: _PREVIOUS_TOKEN},
                # Exactly one of two: (x + y) - 2 (x + y - 1). The third neuron is always 1.
                neurons=Neurons(
                    {"previous": _each_token({1: 1}, {1: 1}, {}), "token": _each_token({4: 1}, {4: 1}, {})},
                    torch.tensor([0.0, -1.0, 1.0]),
                    {"out": _answers({1: 1, 2: -1}, {1: -2, 2: 2}, {2: 1})},
                ),
            ),
        ),
        examples=(Example((5, 1, 4), (5, 2, 4), 2, 1), Example((5, 1, 4), (5, 1, 3), 2, 1)),
        edges="input->a0.h1<v> a0.h1->m0 input->m0 m0->logits",
    ),
    Program(
        name="induction",
        does="the token after the one before that is the same as the last",
        layers=(
            Layer(heads={0: _PREVIOUS_TOKEN}),
            Layer(heads={1: Head((("token", "previous", SHARPNESS * SAME),), (("token", "out", SAME),))}),
        ),
        examples=(Example((0, 1, 2, 3, 4, 1), (0, 3, 5, 1, 4, 3), 2, 5),),
        edges="input->a0.h0<v> a0.h0->a1.h1<k> input->a1.h1<q> input->a1.h1<v> a1.h1->logits",
    ),
    Program(
        name="two_hops",
        does="the token after the token after the one before that is the same as the last",
        layers=(
            Layer(heads={0: _PREVIOUS_TOKEN}),
            Layer(heads={0: Head((("token", "previous", SHARPNESS * SAME),), (("token", "next", SAME),))}),
            Layer(heads={0: Head((("next", "previous", SHARPNESS * SAME),), (("token", "out", SAME),))}),
        ),
        examples=(Example((0, 1, 2, 3, 4, 5, 1), (0, 2, 5, 1, 4, 3, 4), 3, 4),),
        edges=(
            "input->a0.h0<v> a0.h0->a1.h0<k> input->a1.h0<q> input->a1.h0<v> "
            "a1.h0->a2.h0<q> a0.h0->a2.h0<k> input->a2.h0<v> a2.h0->logits"
        ),
    ),
)
"""By growing circuit."""

"""The random model and transcoders of `graphs`: GPT-2 small's shape, with ReLU features that are rarely active.

Needs numpy alone, so that another library in an environment of its own makes the same ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    Array = np.ndarray[Any, np.dtype[np.float32]]

LAYERS, WIDTH, HEADS, CHANNELS, NEURONS, VOCABULARY = 12, 768, 12, 64, 3072, 50257
FEATURES = 4096
"""Of a layer."""
BATCH_SIZE = 64
CASES = ((16, 500), (64, 1000))
"""Tokens of the prompt, and most features of the graph."""
_SCALE = 0.8 / WIDTH**0.5


def arrays(context_window: int = 1024) -> Iterator[tuple[str, int | None, Array]]:
    """Name, layer and values of each weight, one after the other; all biases that are not here are 0, all gains 1."""
    generator = np.random.default_rng(0)

    def normal(*shape: int, scale: float = _SCALE) -> Array:
        found = generator.standard_normal(shape, dtype=np.float32)
        found *= np.float32(scale)
        return found

    yield "embedding", None, normal(VOCABULARY, WIDTH)
    yield "positions", None, normal(context_window, WIDTH)
    for layer in range(LAYERS):
        for name in ("query", "key", "value"):
            yield name, layer, normal(WIDTH, HEADS * CHANNELS)
        yield "attention_out", layer, normal(HEADS * CHANNELS, WIDTH)
        yield "mlp_in", layer, normal(WIDTH, NEURONS)
        yield "mlp_out", layer, normal(NEURONS, WIDTH)
        yield "encoder", layer, normal(FEATURES, WIDTH, scale=WIDTH**-0.5)
        yield "encoder_bias", layer, np.full(FEATURES, -2.2, dtype=np.float32)
        yield "decoder", layer, normal(FEATURES, WIDTH, scale=0.02)
    yield "unembedding", None, normal(WIDTH, VOCABULARY)


def prompt(n_tokens: int) -> list[int]:
    """Random tokens, the first of which is the special one, 1."""
    return [1, *np.random.default_rng(n_tokens).integers(2, VOCABULARY, n_tokens - 1).tolist()]

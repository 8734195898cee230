"""Blocks of token ids to train and measure on: documents cut into rows of one length, each starting where a document
starts, and random sequences that repeat themselves. It knows of text and tokens, not of models."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from scripts.embedded.behaviours import agreement, ioi
from scripts.embedded.lexicon import NAMES
from scripts.embedded.stories import plain_text
from scripts.embedded.text import END_OF_TEXT, bible_documents, made_document

BLOCK_LENGTH: Final = 256
Weights = tuple[float, float, float, float, float]
KINDS: Final = ("made", "repeats", "bible", "plain", "noisy")
FULL_TEXT: Final[Weights] = (0.842, 0.115, 0.043, 0.0, 0.0)
"""Chance of each kind of document; about 70, 15 and 15 per cent of the tokens, as passages of the Bible are long."""
WIDE_TEXT: Final[Weights] = (0.56, 0.11, 0.04, 0.11, 0.18)
"""Later: also plain sentences with rarer words, and prompts of the behaviours with words exchanged."""
NOISY_TEXT: Final[Weights] = (0.20, 0.06, 0.02, 0.06, 0.66)
"""At the end: mostly such prompts. Each has a single token to learn from, against some forty of other documents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One stage of training: what its rows look like."""

    steps: int
    rows: int
    """Rows per step."""
    length: int
    """Tokens per row."""
    weights: Weights
    """Chance of each of `KINDS`."""
    words: int | None = None
    """How many different words random sequences are made of, beside the names; None for all."""
    noise: float = 0.35
    """Most that is changed of a noisy prompt, as a share of its words."""
    rewrites: bool = False
    """Whether noisy prompts also lose words, gain words and stand after other words."""
    cools: bool = False
    """Whether the learning rate falls to nothing in this lesson."""
    longest_unit: int = 60
    """Most tokens that a random sequence has before it repeats itself."""


LESSONS: Final = (
    # Attention learns to look back from short repeats of few words many times sooner than from the full text.
    Lesson(steps=1000, rows=32, length=64, weights=(0.6, 0.4, 0.0, 0.0, 0.0), words=360, longest_unit=15),
    Lesson(steps=1200, rows=32, length=64, weights=(0.75, 0.25, 0.0, 0.0, 0.0), longest_unit=30),
    Lesson(steps=2300, rows=16, length=128, weights=FULL_TEXT),
    Lesson(steps=2600, rows=8, length=BLOCK_LENGTH, weights=WIDE_TEXT, cools=True),
    Lesson(steps=2000, rows=8, length=BLOCK_LENGTH, weights=NOISY_TEXT, noise=0.5, rewrites=True, cools=True),
)


@dataclass(frozen=True, slots=True)
class Document:
    """Token ids, and which of them can be predicted from those before (random tokens cannot)."""

    ids: list[int]
    scored: list[bool]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Rows of equal length; `scored[i, j]` says whether predicting `ids[i, j]` counts."""

    ids: npt.NDArray[np.int64]
    scored: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """A prompt of random tokens whose last token came once before, and the token that followed it there."""

    prompt: list[int]
    answer: int


def separator_id(tokenizer: Tokenizer) -> int:
    """The id of the token between two documents."""
    return tokenizer.get_vocab()[END_OF_TEXT]


class Randomness:
    """Random tokens: mostly whole words with their leading space, sometimes any token but the separator."""

    def __init__(self, tokenizer: Tokenizer, words: int | None = None, longest_unit: int = 60) -> None:
        self._longest_unit = longest_unit
        separator = separator_id(tokenizer)
        vocabulary = tokenizer.get_vocab()
        self._any = sorted(index for index in vocabulary.values() if index != separator)
        self._words = sorted(
            index
            for token, index in vocabulary.items()
            if token.startswith("Ġ") and len(token) > 2 and token[1:].isalpha()
        )
        if words is not None:
            names = [vocabulary["Ġ" + name] for name in NAMES]
            self._any = self._words = list(dict.fromkeys(names + random.Random("few words").sample(self._words, words)))

    def tokens(self, rng: random.Random, count: int) -> list[int]:
        """`count` different token ids."""
        return rng.sample(self._words if rng.random() < 0.8 else self._any, count)

    def document(self, rng: random.Random) -> Document:
        """A random sequence with repeats in it; only what the repeats make predictable is scored."""
        if rng.random() < 0.6:
            unit = self.tokens(rng, rng.randint(4, self._longest_unit))
            ids = (unit * 3)[: rng.randint(2 * len(unit), 3 * len(unit))][:140]
            return Document(ids, [position > len(unit) for position in range(len(ids))])
        ids = self.tokens(rng, rng.randint(8, 20 + self._longest_unit))
        scored = [False] * len(ids)
        first_length = len(ids)
        for _ in range(rng.randint(1, 6)):
            start = rng.randrange(first_length - 1)
            copied = ids[start : start + 2]
            fillers = self.tokens(rng, rng.randint(0, 3))
            ids = ids + fillers + copied
            scored += [False] * len(fillers) + [False, True]
        return Document(ids, scored)

    def repeat(self, rng: random.Random) -> Repeat:
        """A prompt "... A B ... A" of different tokens otherwise, 6 to 60 long."""
        tokens = self.tokens(rng, rng.randint(6, 60))
        start = rng.randrange(len(tokens) - 2)
        return Repeat(prompt=[*tokens, tokens[start]], answer=tokens[start + 1])


def noisy_document(
    rng: random.Random, tokenizer: Tokenizer, randomness: Randomness, noise: float, *, rewrites: bool
) -> Document:
    """A prompt of a behaviour in which some words that do not matter are exchanged for random ones, and its answer.
    Only the answer is scored: it has to be found whatever the wording."""
    contrast = ioi(rng, "train") if rng.random() < 0.6 else agreement(rng, "train")
    essential = {tokenizer.token_to_id(mark + word) for word in contrast.essential for mark in ("", "Ġ")}
    ids = tokenizer.encode(contrast.prompt).ids
    share = rng.random() * noise
    others = iter(randomness.tokens(rng, 2 * len(ids) + 8))
    changed = [next(others) for _ in range(rng.randint(1, 8))] if rewrites and rng.random() < 0.2 else []
    for place, token in enumerate(ids):
        # The last word says what follows: a name or a verb.
        if token in essential or place == len(ids) - 1 or rng.random() >= share:
            changed.append(token)
            continue
        kind = rng.random() if rewrites else 0.0
        if kind < 0.5:
            changed.append(next(others))
        elif kind < 0.75:
            changed += [token, next(others)]
    answer = tokenizer.encode(contrast.answer).ids
    return Document([*changed, *answer], [False] * len(changed) + [True] * len(answer))


def _documents(
    tokenizer: Tokenizer,
    seed: str,
    passages: list[str],
    lesson: Lesson,
) -> Iterator[Document]:
    """Documents of all kinds without end; the Bible's passages come in a new order each time round."""
    rng = random.Random(seed)
    randomness = Randomness(tokenizer, lesson.words, lesson.longest_unit)
    waiting: list[str] = []
    while True:
        kind = rng.choices(KINDS, lesson.weights)[0]
        if kind == "repeats":
            yield randomness.document(rng)
            continue
        if kind == "noisy":
            yield noisy_document(rng, tokenizer, randomness, lesson.noise, rewrites=lesson.rewrites)
            continue
        if kind == "bible":
            if not waiting:
                waiting = rng.sample(passages, len(passages))
            text = waiting.pop()
        else:
            text = made_document(rng) if kind == "made" else plain_text(rng)
        ids = tokenizer.encode(text).ids
        yield Document(ids, [True] * len(ids))


def pack(documents: Iterator[Document], count: int, separator: int, length: int = BLOCK_LENGTH) -> Blocks:
    """`count` rows filled with documents and separators; the document that does not fit whole is cut.

    The end of a document counts only where all of it does: a prompt with its answer is no document that ends there.
    """
    all_ids = np.full((count, length), separator, dtype=np.int64)
    all_scored = np.zeros((count, length), dtype=np.bool_)
    for row in range(count):
        filled = 0
        while filled < length:
            document = next(documents)
            ids = [*document.ids, separator][: length - filled]
            scored = [*document.scored, all(document.scored)][: length - filled]
            all_ids[row, filled : filled + len(ids)] = ids
            all_scored[row, filled : filled + len(ids)] = scored
            filled += len(ids)
    return Blocks(all_ids, all_scored)


def lesson_blocks(tokenizer: Tokenizer, lesson: Lesson, seed: str) -> Blocks:
    """The rows of one lesson."""
    documents = _documents(tokenizer, seed, bible_documents("train"), lesson)
    return pack(documents, lesson.steps * lesson.rows, separator_id(tokenizer), lesson.length)


def held_out_blocks(tokenizer: Tokenizer, count: int, *, with_bible: bool) -> Blocks:
    """Rows never trained on. Without the Bible they need no Debian package, so that tests can measure on them."""
    passages = bible_documents("held_out") if with_bible else []
    weights = FULL_TEXT if with_bible else (*FULL_TEXT[:2], 0.0, 0.0, 0.0)
    lesson = Lesson(steps=1, rows=count, length=BLOCK_LENGTH, weights=weights)
    documents = _documents(tokenizer, "held out", passages, lesson)
    return pack(documents, count, separator_id(tokenizer))


def led(blocks: Blocks, tokenizer: Tokenizer, *, every: int = 1) -> Blocks:
    """`blocks` with the separator before every row, or before each `every`-th from the first on, and their last token
    dropped for it."""
    ids, scored = blocks.ids.copy(), blocks.scored.copy()
    ids[::every, 1:], scored[::every, 1:] = blocks.ids[::every, :-1], blocks.scored[::every, :-1]
    ids[::every, 0], scored[::every, 0] = separator_id(tokenizer), False
    return Blocks(ids, scored)

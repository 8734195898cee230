"""The tokenizer: byte-level BPE in which every frequent word, with its leading space, is one token, and any other text
still encodes through small merges and bytes. It decides the vocabulary; it trains no model."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from scripts.embedded import grammar, lexicon, wordings
from scripts.embedded.text import END_OF_TEXT, bible_documents, made_documents

VOCABULARY_SIZE: Final = 6000
SMALL_PIECES: Final = 900
"""Tokens that are single bytes or small merges: what rare words are spelled with."""
MADE_SAMPLE: Final = 60_000


def required_words() -> list[str]:
    """Every word that the made-up text is built from, in all its forms; each becomes one token."""
    words: dict[str, None] = {}
    for name, base in grammar.CLASSES.items():
        words.update(dict.fromkeys(base))
        if name in {"place", "animal", "food", "object", "person", "body"}:
            words.update(dict.fromkeys(map(grammar.plural, base)))
        if name in {"move", "do", "handle", "dine", "mind", "treat", "roam", "look"}:
            for inflect in (grammar.third_person, grammar.past, grammar.participle, grammar.gerund):
                words.update(dict.fromkeys(map(inflect, base)))
    for table in (lexicon.CAPITALS, lexicon.LANGUAGES, lexicon.YOUNG):
        words.update(dict.fromkeys((*table, *table.values())))
    words.update(dict.fromkeys(word for pair in lexicon.OPPOSITES for word in pair))
    for verb in (*lexicon.VERBS, *wordings.VERBS):
        words.update(dict.fromkeys((verb, grammar.past(verb), grammar.gerund(verb))))
    return list(words)


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _small_merges(texts: Iterable[str]) -> tuple[dict[str, int], list[list[str]]]:
    """Vocabulary and merges of a small BPE trained on `texts`."""
    small = Tokenizer(models.BPE())
    small.pre_tokenizer = _byte_level()
    trainer = trainers.BpeTrainer(
        vocab_size=SMALL_PIECES, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    small.train_from_iterator(texts, trainer)
    model = json.loads(small.to_str())["model"]
    return model["vocab"], [list(merge) for merge in model["merges"]]


def _word_counts(texts: Iterable[str]) -> Counter[str]:
    """How often each piece between the pre-tokenizer's cuts occurs, spelled in byte-level characters."""
    cutter = _byte_level()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(piece for piece, _ in cutter.pre_tokenize_str(text))
    return counts


def build() -> Tokenizer:
    """The tokenizer, made anew from the text; the same each time."""

    def texts() -> Iterator[str]:
        yield from islice(made_documents("tokenizer"), MADE_SAMPLE)
        passages = bible_documents("train")
        random.Random("tokenizer").shuffle(passages)
        yield from passages

    vocabulary, merges = _small_merges(texts())
    required = ["Ġ" + word for word in required_words()] + list(lexicon.NAMES)
    frequent = [piece for piece, _ in _word_counts(texts()).most_common()]
    for piece in [*required, *frequent]:
        if len(vocabulary) >= VOCABULARY_SIZE - 1:
            break
        vocabulary.setdefault(piece, len(vocabulary))
    # With ignore_merges a piece that is in the vocabulary is taken whole; merges serve the others.
    tokenizer = Tokenizer(models.BPE(vocabulary, [(a, b) for a, b in merges], ignore_merges=True))
    tokenizer.pre_tokenizer = _byte_level()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def main(folder: Path) -> None:
    """Write `tokenizer.json` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build()
    tokenizer.save(str(folder / "tokenizer.json"))
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens")

"""Which tokenizers are known to take time and memory in proportion to the text, by what their `tokenizer.json` says.

Every kind of step is known by name with the factor by which it may lengthen a text; regular expressions are known by
heart, as there is no telling what others do on which text. What is not known here is not refused: it runs in a process
of its own (`confined_tokenizer`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_MAX_GROWTH = 128
"""More than the steps of any tokenizer that people use lengthen a text by."""
_MAX_AFFIX = 16
"""Characters of what is put before or behind every piece."""
_MAX_PIECE = 1024
"""Characters of a vocabulary's longest piece; a search for pieces goes so far from every character."""
_MAX_WORD = 1000
"""Characters of a word that is searched in quadratic time."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORDS_BY_CASE = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_KNOWN_PATTERNS = frozenset(
    {
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        *(
            _CONTRACTIONS + rf"|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*" + _REST
            for digits in (r"\p{N}", r"\p{N}{1,3}")
        ),
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _REST,
        *(
            "|".join(word + suffix for word in _WORDS_BY_CASE) + rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*" + _REST
            for suffix in ("", _CONTRACTIONS + "?")
            for digits in (r"\p{N}", r"\p{N}{1,3}")
        ),
        r"\p{N}{1,3}",
        r" {2,}",
        r"\s+",
        r"\n",
    }
)
"""Those of GPT-2, Llama 3, Qwen, GPT-4o and their kin: no part of them is tried twice on the same characters."""

_Step = Mapping[str, Any]


def grows_in_proportion(content: Mapping[str, Any]) -> bool:
    """Whether time and memory are known to grow in proportion to the text, of what `tokenizer.json` holds."""
    try:
        steps = [step for part in ("normalizer", "pre_tokenizer", "decoder") for step in _steps(content.get(part))]
        return math.prod(map(_growth, steps)) <= _MAX_GROWTH and _searches_briefly(content["model"])
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError, RecursionError):
        return False  # it says something else than it should: the library will tell what


def patterns_of(content: object) -> Iterator[str]:
    """Every pattern that a part of `tokenizer.json` looks for in a text."""
    if isinstance(content, list):
        for one in content:
            yield from patterns_of(one)
    elif isinstance(content, dict):
        pattern = content.get("pattern")
        if isinstance(pattern, dict):
            yield from (text for text in pattern.values() if isinstance(text, str))
        for key in ("normalizers", "pretokenizers", "decoders"):
            yield from patterns_of(content.get(key))


def _steps(part: _Step | None) -> Iterator[_Step]:
    """The steps of a normalizer, pre-tokenizer or decoder, those of sequences one by one."""
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    (inner,) = (value for key, value in part.items() if key != "type")
    for one in inner:
        yield from _steps(one)


def _growth(step: _Step) -> float:
    """How much longer a text may become by *step*; infinitely, if it is not known."""
    growth = _GROWTH.get(step["type"], math.inf)
    return growth(step) if callable(growth) else growth


def _of_split(step: _Step) -> float:
    ((kind, text),) = step["pattern"].items()
    return 1 if (kind == "String" and text) or text in _KNOWN_PATTERNS else math.inf


def _of_replacement(step: _Step) -> float:
    ((kind, text),) = step["pattern"].items()
    shortest = len(text.encode()) if kind == "String" else 1
    return _of_split(step) * max(len(step["content"].encode()) / max(shortest, 1), 1)


def _of_prefix(step: _Step) -> float:
    return 1 + len(step["prepend"].encode())


_GROWTH: Mapping[str, float | Callable[[_Step], float]] = {
    # As Unicode's normal forms do at most, in bytes of UTF-8.
    "NFC": 3,
    "NFD": 4,
    "NFKC": 11,
    "NFKD": 11,
    "Lowercase": 3,
    "BertNormalizer": 12,
    # A byte becomes a character, a space a longer one.
    "ByteLevel": 2,
    "Metaspace": 3,
    "Replace": _of_replacement,
    "Split": _of_split,
    "Prepend": _of_prefix,
    "StripAccents": 1,
    "Strip": 1,
    "Nmt": 1,
    "Whitespace": 1,
    "WhitespaceSplit": 1,
    "BertPreTokenizer": 1,
    "Punctuation": 1,
    "Digits": 1,
    "CharDelimiterSplit": 1,
    "UnicodeScripts": 1,
    "ByteFallback": 1,
    "Fuse": 1,
    "WordPiece": 1,
    "BPEDecoder": 1,
}
"""By what factor each kind of step may lengthen a text."""


def _searches_briefly(model: _Step) -> bool:
    """Whether a model looks at each character only so often."""
    affixes = (model.get("continuing_subword_prefix"), model.get("end_of_word_suffix"))
    if any(affix is not None and len(affix) > _MAX_AFFIX for affix in affixes):
        return False
    match model.get("type", "BPE" if "merges" in model else ""):  # files of the library's first versions have no type
        case "BPE" | "WordLevel":
            return True
        case "WordPiece":
            return bool(model["max_input_chars_per_word"] <= _MAX_WORD)
        case "Unigram":
            return all(len(piece) <= _MAX_PIECE for piece, _ in model["vocab"])
        case _:
            return False

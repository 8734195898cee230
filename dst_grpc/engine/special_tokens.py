"""The special tokens of a model: those that its tokenizer marks as such, and those that may begin a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dst_grpc.engine.files import File, read_small
from dst_grpc.engine.model_folder import CONFIG, TOKENIZER
from dst_grpc.engine.tokenizer import MAX_FILE_BYTES
from dst_grpc.engine.tokenizer_library import content_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BEGIN_KEYS = ("bos_token_id", "pad_token_id", "eos_token_id")
"""In the order in which they are preferred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """Tokens that stand for no text."""

    special: frozenset[int]
    """All of them."""
    begin: tuple[int, ...]
    """Those that may be put before a prompt, the preferred ones first: the begin, pad and end tokens of the model's
    config, as far as it has them."""

    @classmethod
    def from_folder(cls, folder: Path, n_embedded: int) -> SpecialTokens:
        """Read the files of a model in *folder*, which embeds the tokens below *n_embedded*.

        Raises:
            DataLoss: if a file is missing or unreadable.
        """
        config, tokenizer = (_content(folder / name) for name in (CONFIG, TOKENIZER))
        begin = tuple(dict.fromkeys(token for token in _begin_tokens(config) if token < n_embedded))
        added = tokenizer.get("added_tokens")
        marked = [one for one in added or () if isinstance(one, dict) and one.get("special") is True]
        ids = [one.get("id") for one in marked if isinstance(added, list)]
        special = {token for token in ids if type(token) is int and 0 <= token < n_embedded}
        return cls(special=frozenset(special | {*begin}), begin=begin)


def _content(path: Path) -> dict[str, Any]:
    content = content_of(path, read_small(File.at(path), MAX_FILE_BYTES))
    return content if isinstance(content, dict) else {}


def _begin_tokens(config: dict[str, Any]) -> Iterator[int]:
    """The tokens that *config* names; of several end tokens, the first. Models of several modalities have a config of
    their text within."""
    text = config.get("text_config")
    for key in _BEGIN_KEYS:
        for each in (config, text if isinstance(text, dict) else {}):
            value = each.get(key)
            first = value[0] if isinstance(value, list) and value else value
            if type(first) is int and first >= 0:
                yield first
                break

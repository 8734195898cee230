"""The tokenizers library, asked so that whatever a `tokenizer.json` does to it is an error of ours.

A file may make the library panic, search for ever, or turn one character into a gigabyte; in this process nothing could
stop it. So only files that are known to take time and memory in proportion to the text are opened here; every other is
confined to a process of its own. The library is asked for batches of one: for a single text it holds the interpreter,
and with it every other thread, until it is done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from dst_grpc.engine.confined_tokenizer import ConfinedTokenizer
from dst_grpc.engine.files import corrupt
from dst_grpc.engine.tokenizer_growth import grows_in_proportion, patterns_of
from dst_grpc.errors import DataLoss, DstError, InvalidRequest
from dst_grpc.failures import failure_of, raise_if_out_of_memory

_REPEATS = 64
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # in a batch of one there is nothing to do in parallel


class Encoding(Protocol):
    """What a text was encoded to."""

    @property
    def ids(self) -> list[int]:
        """Tokens."""

    @property
    def special_tokens_mask(self) -> list[int]:
        """For each, 1 if the post-processor put it there, else 0."""


class Library(Protocol):
    """What is needed of the library's tokenizer, under the library's names."""

    def encode(self, sequence: str, *, add_special_tokens: bool) -> Encoding:
        """Tokens of a text."""

    def encode_batch_fast(self, input: list[str], *, add_special_tokens: bool) -> Sequence[Encoding]:  # noqa: A002
        """Tokens of some texts."""

    def decode_batch(self, sequences: list[list[int]], *, skip_special_tokens: bool) -> Sequence[str]:
        """Texts of some lists of tokens."""

    def get_vocab(self, *, with_added_tokens: bool) -> dict[str, int]:
        """Every piece with its token."""

    def no_truncation(self) -> None:
        """Encode texts whole."""

    def no_padding(self) -> None:
        """Encode nothing but the text."""

    def id_to_token(self, id: int) -> str | None:  # noqa: A002  the library's name
        """The piece of a token."""

    def token_to_id(self, token: str) -> int | None:
        """The token of a piece."""


def open_library(path: Path, raw: bytes) -> Library:
    """The tokenizer in *raw*, the content of the file at *path*.

    Raises:
        DataLoss: if it is none, or fails on one of the texts that it is tried on.
    """
    content = content_of(path, raw)
    if not isinstance(content, dict) or not grows_in_proportion(content):
        confined = ConfinedTokenizer(path, raw)
        for text in _trials(content):
            confined.try_out(text)
        return confined
    try:
        tokenizer: Library = Tokenizer.from_buffer(raw)
    except BaseException as error:
        raise_if_out_of_memory(error)
        raise corrupt(path, f"is no tokenizer: {failure_of(error)}") from error
    return tokenizer


def content_of(path: Path, raw: bytes) -> Any:
    """The values in *raw*, the content of the file at *path*; raises DataLoss unless it is sound JSON."""
    try:
        return json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise corrupt(path, f"is no sound JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _trials(content: Mapping[str, Any]) -> Iterator[str]:
    """Texts that harm whoever searches badly: what patterns look for, again and again, and then something else."""
    yield from ("a", "Hello, world! 123\n\n  \N{SNOWMAN}", "")
    patterns = {*patterns_of(content.get("normalizer")), *patterns_of(content.get("pre_tokenizer"))}
    letters = sorted({letter for pattern in patterns for letter in pattern if letter.isalnum()})
    for text in (*sorted(patterns), "a", " ", "0", "\n", *letters):
        yield text * _REPEATS + "\N{NULL}"


@contextmanager
def told() -> Iterator[None]:
    """Tell what the library raises within the block as an error of ours.

    Raises:
        InvalidRequest: (at "text") if it refuses a text.
        DataLoss: if it panics.
    """
    try:
        yield
    except DstError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise_if_out_of_memory(error)
        raise InvalidRequest.of("text", f"cannot be encoded by this model's tokenizer: {error}") from error
    except BaseException as error:
        message = f"tokenizer.json: fails on a text: {failure_of(error)}"
        raise DataLoss(message, metadata={"file": "tokenizer.json"}) from error

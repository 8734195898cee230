"""Tokenizer: text to token ids and back, from a `tokenizer.json`.

Text is encoded as it is: no begin token, no truncation, no padding, whatever the file's post-processor says. Not here:
what a prompt may be, or how long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer as _Tokenizer

from dst_grpc.engine.files import corrupt, read_small
from dst_grpc.errors import InvalidRequest, Reason, Violations

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FILE_NAME = "tokenizer.json"
_MAX_FILE_BYTES = 1 << 28
_SHOWN_TOKENS = 8


class Tokenizer:
    """A vocabulary and how text falls into it. Immutable; calls may run on any thread."""

    def __init__(self, tokenizer: _Tokenizer) -> None:
        """Wrap the library's *tokenizer*, which must not be changed afterwards."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        """Number of tokens, added ones included."""

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read `tokenizer.json` in *folder*; raises DataLoss if it is missing or unreadable."""
        path = folder / FILE_NAME
        raw = read_small(path, _MAX_FILE_BYTES)
        try:
            return cls(_Tokenizer.from_buffer(raw))
        except Exception as error:  # the library raises bare Exception
            raise corrupt(path, f"is no tokenizer: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of *text*; special tokens written out, such as `<|endoftext|>`, are recognised.

        Raises:
            InvalidRequest: if *text* holds half a surrogate pair, which no byte sequence stands for.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest.of("text", f"is not valid Unicode at character {error.start}") from None
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def begin_tokens(self) -> list[int]:
        """What the file's post-processor would put before a text: the begin token of models trained with one."""
        encoding = self._tokenizer.encode("a", add_special_tokens=True)
        mask: list[int] = encoding.special_tokens_mask
        ids: list[int] = encoding.ids
        return ids[: mask.index(0)] if 0 in mask else []

    def decode(self, ids: Sequence[int]) -> str:
        """Text of *ids*, special tokens written out; bytes that are no valid text become U+FFFD.

        Raises:
            InvalidRequest: naming every id that is not a token.
        """
        self._check(ids)
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Text of each of *ids*, decoded alone; raises InvalidRequest as `decode` does."""
        self._check(ids)
        return [self._texts[token] if token in self._texts else self._decoded(token) for token in ids]

    def _decoded(self, token: int) -> str:
        text: str = self._tokenizer.decode([token], skip_special_tokens=False)
        self._texts[token] = text
        return text

    def single_token(self, text: str, field: str) -> int:
        """The id of the one token that *text* is.

        Raises:
            InvalidRequest: (NOT_ONE_TOKEN, at *field*) saying how *text* splits and, if a space decides, what would do.
        """
        ids = self.encode(text)
        if len(ids) == 1:
            return ids[0]
        raise InvalidRequest.of(field, self._why_not_one(text, ids), reason=Reason.NOT_ONE_TOKEN)

    def _why_not_one(self, text: str, ids: list[int]) -> str:
        if not ids:
            return f"{text!r} is no token at all"
        shown = ", ".join(repr(part) for part in self.token_strings(ids[:_SHOWN_TOKENS]))
        rest = ", ..." if len(ids) > _SHOWN_TOKENS else ""
        other = text[1:] if text.startswith(" ") else f" {text}"
        hint = ""
        if other and len(self.encode(other)) == 1:
            space = "without" if text.startswith(" ") else "with"
            hint = f"; {other!r}, {space} the leading space, is one token"
        return f"{text!r} must be one token, but splits into {len(ids)}: {shown}{rest}{hint}"

    def _check(self, ids: Sequence[int]) -> None:
        problems = Violations()
        for i, token in enumerate(ids):
            problems.check(
                0 <= token < self.vocab_size,
                f"token_ids[{i}]",
                f"must be a token of this model, between 0 and {self.vocab_size - 1}, not {token}",
            )
        problems.raise_if_any()

    def __repr__(self) -> str:
        """Size only."""
        return f"Tokenizer({self.vocab_size} tokens)"

"""Tokenizer: text to token ids and back, from a `tokenizer.json`.

Text is encoded as it is: no begin token, no truncation, no padding, whatever the file's post-processor says. A token's
text is what it adds to the text before it, so it keeps the space that some decoders strip from the front of a text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.engine.confined_tokenizer import ConfinedTokenizer
from dst_grpc.engine.files import File, corrupt, read_small
from dst_grpc.engine.model_folder import TOKENIZER
from dst_grpc.engine.tokenizer_library import Library, open_library, told
from dst_grpc.errors import InvalidRequest, Reason, Violations

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_MAX_FILE_BYTES = 1 << 28
_SHOWN_TOKENS = 8
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""The character for a space in SentencePiece vocabularies; byte-level ones never contain it."""


class Tokenizer:
    """A vocabulary, and how text is split into its tokens. Immutable; calls may run on any thread."""

    def __init__(self, tokenizer: Library, n_embedded: int | None = None) -> None:
        """Wrap the library's *tokenizer*, which must not be changed afterwards.

        Of its tokens only those below *n_embedded* count, if that is given: vocabularies are shared between models,
        some of which have no embedding for tokens that were added for others, such as that of an image.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}
        n_ids = _n_ids(tokenizer, with_added_tokens=True)
        self.vocab_size: int = n_ids if n_embedded is None else min(n_ids, n_embedded)
        """One more than the last token's id, added ones included."""

    @classmethod
    def from_folder(cls, folder: Path, n_embedded: int | None = None) -> Tokenizer:
        """Read `tokenizer.json` in *folder*.

        Raises:
            DataLoss: if it is missing or unreadable, fails on a text that it is tried on, or has tokens, other than
                added ones, from *n_embedded* on.
        """
        path = folder / TOKENIZER
        raw = read_small(File.at(path), _MAX_FILE_BYTES)
        tokenizer = open_library(path, raw)
        n_ids = _n_ids(tokenizer, with_added_tokens=False)
        if n_embedded is not None and n_ids > n_embedded:
            raise corrupt(path, f"has {n_ids} tokens, but the model embeds only {n_embedded}")
        return cls(tokenizer, n_embedded)

    @property
    def is_confined(self) -> bool:
        """Whether it runs in a process of its own, and may take a while."""
        return isinstance(self._tokenizer, ConfinedTokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of *text*; special tokens written out, such as `<|endoftext|>`, are recognised.

        Raises:
            InvalidRequest: if *text* holds a lone surrogate, which cannot be encoded, or something that the vocabulary
                has no token for, or a token that the model does not embed.
            DataLoss: if the tokenizer fails on it, or takes too much time or memory.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest.of("text", f"is not valid Unicode at character {error.start}") from None
        with told():
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        for token in ids:
            if token >= self.vocab_size:
                problem = f"holds {self._tokenizer.id_to_token(token)!r}, which this model has no embedding for"
                raise InvalidRequest.of("text", problem)
        return ids

    def begin_tokens(self) -> list[int]:
        """The tokens that the file's post-processor would put before a text: the begin token of models trained with
        one."""
        with told():
            encoding = self._tokenizer.encode("a", add_special_tokens=True)
        mask, ids = encoding.special_tokens_mask, encoding.ids
        return ids[: mask.index(0)] if 0 in mask else []

    def decode(self, ids: Sequence[int]) -> str:
        """Text of *ids*, special tokens written out; bytes that are not valid text become U+FFFD.

        Raises:
            InvalidRequest: naming every id that is not a token.
        """
        self._check(ids)
        with told():
            return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Text of each of *ids*, decoded alone; raises InvalidRequest as `decode` does."""
        if not self._texts.keys() >= {*ids}:
            self._check(ids)
        return [self._texts[token] if token in self._texts else self._decoded(token) for token in ids]

    def _decoded(self, token: int) -> str:
        with told():
            text = self._tokenizer.decode([token], skip_special_tokens=False)
        piece = self._tokenizer.id_to_token(token) or ""
        n_spaces = len(piece) - len(piece.lstrip(_SPACE))
        if n_spaces:
            text = " " * n_spaces + text.lstrip(" ")
        self._texts[token] = text
        return text

    def single_token(self, text: str, field: str) -> int:
        """The id of the one token whose text is *text*, or that *text* encodes to.

        Raises:
            InvalidRequest: (NOT_ONE_TOKEN, at *field*) saying how *text* splits and, if only a space is wrong, the fix.
        """
        token = self._one(text)
        if token is None:
            raise InvalidRequest.of(field, self._why_not_one(text, self.encode(text)), reason=Reason.NOT_ONE_TOKEN)
        return token

    def _one(self, text: str) -> int | None:
        ids = self.encode(text)
        if len(ids) == 1 and self.token_strings(ids) == [text]:
            return ids[0]
        # Some tokenizers put a space before every text, so that encoding never yields a token without one.
        token = self._tokenizer.token_to_id(text.replace(" ", _SPACE))
        if token is not None and token < self.vocab_size and self.token_strings([token]) == [text]:
            return token
        return ids[0] if len(ids) == 1 else None

    def _why_not_one(self, text: str, ids: list[int]) -> str:
        if not ids:
            return f"{text!r} is no token at all"
        shown = ", ".join(repr(part) for part in self.token_strings(ids[:_SHOWN_TOKENS]))
        rest = ", ..." if len(ids) > _SHOWN_TOKENS else ""
        other = text[1:] if text.startswith(" ") else f" {text}"
        hint = ""
        if other and self._one(other) is not None:
            space = "without" if text.startswith(" ") else "with"
            hint = f"; {other!r}, {space} the leading space, is one token"
        return f"{text!r} must be one token, but splits into {len(ids)}: {shown}{rest}{hint}"

    def _check(self, ids: Sequence[int]) -> None:
        problems = Violations()
        for i, token in enumerate(ids):
            problems.check(
                0 <= token < self.vocab_size and self._tokenizer.id_to_token(token) is not None,
                f"token_ids[{i}]",
                f"must be a token of this model, between 0 and {self.vocab_size - 1}, not {token}",
            )
        problems.raise_if_any()

    def __repr__(self) -> str:
        """Size only."""
        return f"Tokenizer({self.vocab_size} tokens)"


def _n_ids(tokenizer: Library, *, with_added_tokens: bool) -> int:
    """One more than the last id; ids may have gaps."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=with_added_tokens).values(), default=-1)

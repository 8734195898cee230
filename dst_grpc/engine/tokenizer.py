"""Tokenizer: text to token ids and back, from a `tokenizer.json`.

Text is encoded as it is: no begin token, no truncation, no padding, whatever the file's post-processor says. A token's
text is what it adds to the text before it, so it keeps the space that some decoders strip from the front of a text.
Every id that the model embeds is a token: one that has no text is shown, and named, by its id. Not here: what a prompt
may be, or how long.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING

from dst_grpc.engine.confined_tokenizer import ConfinedTokenizer
from dst_grpc.engine.files import File, corrupt, read_small
from dst_grpc.engine.model_folder import TOKENIZER
from dst_grpc.engine.tokenizer_library import Library, content_of, open_library, told
from dst_grpc.errors import InvalidRequest, Reason, Violations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

MAX_FILE_BYTES = 1 << 28
_SHOWN_TOKENS = 8
_CHARACTERS_PER_TOKEN = 16
"""More than most texts have."""
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How the pieces of SentencePiece vocabularies write a space; byte-level ones never hold it."""
_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")
"""How they write a byte that is no character of theirs."""
_ID = re.compile(r"<(\d{1,9})>")
_NO_TEXT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """A vocabulary, and how text is split into its tokens. Immutable; calls may run on any thread."""

    def __init__(self, tokenizer: Library, n_embedded: int | None = None) -> None:
        """Wrap the library's *tokenizer*, which must not be changed afterwards.

        The tokens are the ids below *n_embedded*, if that is given: embeddings are padded with rows that no text leads
        to, and vocabularies are shared between models, some of which have no embedding for tokens that were added for
        others, such as that of an image.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}
        pieces = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size: int = _n_ids(pieces) if n_embedded is None else n_embedded
        """One more than the last token's id, added ones included."""
        self._without_piece = frozenset(range(self.vocab_size)).difference(pieces.values())
        self._longest = max(map(len, pieces), default=0)
        # Of a confined one it is not known.
        self._unknown = pieces.get(getattr(getattr(tokenizer, "model", None), "unk_token", None) or "")

    @classmethod
    def from_folder(cls, folder: Path, n_embedded: int | None = None) -> Tokenizer:
        """Read `tokenizer.json` in *folder*.

        Raises:
            DataLoss: if it is missing or unreadable, fails on a text that it is tried on, or has tokens, other than
                added ones, from *n_embedded* on.
        """
        path = folder / TOKENIZER
        raw = read_small(File.at(path), MAX_FILE_BYTES)
        tokenizer = open_library(path, raw)
        if n_embedded is not None:
            _check_fits(path, _n_ids(tokenizer.get_vocab(with_added_tokens=False)), n_embedded)
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
            (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        ids = encoding.ids
        if ids and max(ids) >= self.vocab_size:
            piece = self._tokenizer.id_to_token(next(token for token in ids if token >= self.vocab_size))
            raise InvalidRequest.of("text", f"holds {piece!r}, which this model has no embedding for")
        return ids

    def encode_at_most(self, text: str, n_tokens: int) -> list[int] | None:
        """As `encode`; None for a text of more than *n_tokens*, told by as little of it as takes many more than those.

        A text that is short enough to be worth counting is encoded whole, and may have more.
        """
        size = _CHARACTERS_PER_TOKEN * n_tokens + self._longest
        while size < len(text):
            # Where the text is cut, it may fall into more tokens than it would: as many as a token has characters.
            if len(self.encode(text[:size])) > n_tokens + self._longest:
                return None
            size *= 4
        return self.encode(text)

    def begin_tokens(self) -> list[int]:
        """What the file's post-processor would put before a text: the begin token of models trained with one."""
        with told():
            encoding = self._tokenizer.encode("a", add_special_tokens=True)
        mask, ids = encoding.special_tokens_mask, encoding.ids
        return ids[: mask.index(0)] if 0 in mask else []

    def decode(self, ids: Sequence[int]) -> str:
        """Text of *ids*, special tokens written out; bytes that are no valid text become U+FFFD.

        Raises:
            InvalidRequest: naming every id that is not a token.
        """
        self._check(ids)
        return "".join(self._decoded(ids))

    def _decoded(self, ids: Sequence[int]) -> Iterator[str]:
        """The texts of the runs of *ids* that have pieces, and of each id between them."""
        is_first = True
        for has_none, run in groupby(ids, key=self._without_piece.__contains__):
            if has_none:
                yield from map(_shown_id, run)
            else:
                listed = list(run)
                with told():
                    (text,) = self._tokenizer.decode_batch([listed], skip_special_tokens=False)
                yield text if is_first else self._with_spaces(text, listed[0])
            is_first = False

    def _with_spaces(self, text: str, first: int) -> str:
        """*text*, with the spaces of its first token, which some decoders take from the front of a text."""
        piece = self._tokenizer.id_to_token(first) or ""
        n_spaces = len(piece) - len(piece.lstrip(_SPACE))
        return " " * n_spaces + text.lstrip(" ") if n_spaces else text

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Text of each of *ids*, decoded alone; raises InvalidRequest as `decode` does."""
        if not self._texts.keys() >= {*ids}:
            self._check(ids)
        return [self._texts[token] if token in self._texts else self._text_of(token) for token in ids]

    def _text_of(self, token: int) -> str:
        with told():
            (text,) = self._tokenizer.decode_batch([[token]], skip_special_tokens=False)
        text = self._with_spaces(text, token) or _shown_id(token)
        self._texts[token] = text
        return text

    def single_token(self, text: str, field: str, *, says_why: bool = True) -> int:
        """The id of the one token whose text is *text*, or that *text* encodes to.

        A byte that is no character of the vocabulary goes by the character that it is, or as `<0x0A>`; any token by
        its id, as `<50260>`.

        Raises:
            InvalidRequest: (NOT_ONE_TOKEN, at *field*) saying how *text* splits and, if a space decides, what would do,
                unless nobody reads that (*says_why*); or, at *field* too, why it cannot be encoded.
        """
        try:
            token = self._one(text)
        except InvalidRequest as error:
            raise InvalidRequest.of(field, error.violations[0].description) from None
        if token is None:
            why = self._why_not_one(text) if says_why else "must be one token"
            raise InvalidRequest.of(field, why, reason=Reason.NOT_ONE_TOKEN)
        return token

    def _one(self, text: str) -> int | None:
        ids = self.encode_at_most(text, 1) or []
        if len(ids) == 1 and self.token_strings(ids) == [text]:
            return ids[0]
        # Some tokenizers put a space before every text, so that encoding never yields a token without one.
        for piece in (text.replace(" ", _SPACE), _byte_piece(text)):
            token = self._embedded(piece)
            if token is not None and self.token_strings([token]) == [text]:
                return token
        by_id = _ID.fullmatch(text)
        if by_id is not None and int(by_id[1]) < self.vocab_size:
            return int(by_id[1])
        if _BYTE_PIECE.fullmatch(text):
            return self._embedded(text)
        return ids[0] if len(ids) == 1 and ids[0] != self._unknown else None

    def _embedded(self, piece: str) -> int | None:
        """The token that the vocabulary writes as *piece*, if there is one."""
        token = self._tokenizer.token_to_id(piece)
        return token if token is not None and token < self.vocab_size else None

    def _why_not_one(self, text: str) -> str:
        ids = self.encode_at_most(text, _SHOWN_TOKENS)
        if ids is None:
            return f"must be one token, but has {len(text)} characters, which are many"
        hint = self._hint_about_space(text)
        if not ids:
            return f"{text!r} is no token at all{hint}"
        if ids == [self._unknown]:
            return f"{text!r} is no token of this model, which reads it as {self._name_of(ids[0])!r}{hint}"
        shown = ", ".join(repr(self._name_of(token)) for token in ids[:_SHOWN_TOKENS])
        rest = ", ..." if len(ids) > _SHOWN_TOKENS else ""
        return f"{text!r} must be one token, but splits into {len(ids)}: {shown}{rest}{hint}"

    def _hint_about_space(self, text: str) -> str:
        """That *text* is one token with, or without, a leading space; empty if it is not."""
        other, space = (text[1:], "without") if text.startswith(" ") else (f" {text}", "with")
        try:
            is_one = bool(other.strip()) and self._one(other) is not None
        except InvalidRequest:
            is_one = False
        return f"; {other!r}, {space} the leading space, is one token" if is_one else ""

    def _name_of(self, token: int) -> str:
        """What `single_token` finds a token by: its text or, if it is only part of a character, its byte or its id."""
        (text,) = self.token_strings([token])
        if _NO_TEXT not in text:
            return text
        piece: str = self._tokenizer.id_to_token(token) or ""
        return piece if _BYTE_PIECE.fullmatch(piece) else _shown_id(token)

    def _check(self, ids: Sequence[int]) -> None:
        if not ids or (min(ids) >= 0 and max(ids) < self.vocab_size):
            return
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


def check_tokenizer(path: Path, n_embedded: int) -> None:
    """Check what is quickly known of the `tokenizer.json` at *path*, without opening it.

    Raises:
        DataLoss: if it is unreadable, no tokenizer, or has tokens, other than added ones, from *n_embedded* on.
    """
    content = content_of(path, read_small(File.at(path), MAX_FILE_BYTES))
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise corrupt(path, "is no tokenizer: it has no model")
    match model.get("vocab"):
        case dict() as pieces if all(type(token) is int for token in pieces.values()):
            _check_fits(path, _n_ids(pieces), n_embedded)
        case list() as pieces:
            _check_fits(path, len(pieces), n_embedded)


def _check_fits(path: Path, n_ids: int, n_embedded: int) -> None:
    if n_ids > n_embedded:
        raise corrupt(path, f"has {n_ids} tokens, but the model embeds only {n_embedded}: is it another model's?")


def _shown_id(token: int) -> str:
    """How a token is shown that has no text."""
    return f"<{token}>"


def _byte_piece(text: str) -> str:
    """How a vocabulary writes *text* if that is a byte of its own; nothing if it is none."""
    encoded = text.encode()
    return f"<0x{encoded[0]:02X}>" if len(encoded) == 1 else ""


def _n_ids(pieces: Mapping[str, int]) -> int:
    """One more than the last id; ids may have gaps."""
    return 1 + max(pieces.values(), default=-1)

"""A tokenizer that is not trusted to return, in a process of its own, which has limits on its memory and time.

The process is a script that imports nothing of ours (`tokenizer_process`). What takes too much ends it, and only it;
the next who asks starts another.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dst_grpc.engine import tokenizer_process
from dst_grpc.engine.files import corrupt
from dst_grpc.errors import InvalidRequest, require

_SCRIPT = Path(tokenizer_process.__file__)
_SECONDS = 2.0
"""Processor time that every question may take, besides what its length may."""
_WAIT_SECONDS = 120.0
"""How long an answer is waited for. The process's own limit is one of processor time, which may take longer to pass."""
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ConfinedEncoding:
    """What a text was encoded to."""

    ids: list[int]
    """Tokens."""
    special_tokens_mask: list[int]
    """For each, 1 if the post-processor put it there, else 0."""


class ConfinedTokenizer:
    """Answers as the library's tokenizer does, one question at a time. Calls may come from any thread."""

    def __init__(self, path: Path, raw: bytes) -> None:
        """Open *raw*, the content of the file at *path*.

        Raises:
            DataLoss: if it is no tokenizer, or takes too much time or memory to be opened.
        """
        self._path, self._raw = path, raw
        self._lock = threading.Lock()
        opened = self._start()
        self._vocabularies: list[dict[str, int]] = opened["vocabularies"]
        self._pieces = {token: piece for piece, token in self._vocabularies[True].items()}

    def try_out(self, text: str) -> None:
        """Encode *text*, and decode that; raises DataLoss unless both come to an end."""
        try:
            ids = self.encode(text, add_special_tokens=True).ids
            self.decode_batch([ids], skip_special_tokens=False)
        except InvalidRequest:
            return  # a vocabulary need not have everything

    def encode(self, sequence: str, *, add_special_tokens: bool) -> ConfinedEncoding:
        """Tokens of a text.

        Raises:
            InvalidRequest: (at "text") if the library refuses it.
            DataLoss: if the library fails, or takes too much time or memory.
        """
        found = self._ask({"text": sequence, "with_special": add_special_tokens})
        return ConfinedEncoding(found["ids"], found["special"])

    def encode_batch_fast(self, input: list[str], *, add_special_tokens: bool) -> list[ConfinedEncoding]:  # noqa: A002
        """Tokens of some texts; raises as `encode` does."""
        return [self.encode(text, add_special_tokens=add_special_tokens) for text in input]

    def decode_batch(self, sequences: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        """Texts of some lists of tokens; raises as `encode` does."""
        return [self._ask({"ids": ids, "without_special": skip_special_tokens})["text"] for ids in sequences]

    def get_vocab(self, *, with_added_tokens: bool) -> dict[str, int]:
        """Every piece with its token."""
        return self._vocabularies[with_added_tokens]

    def no_truncation(self) -> None:
        """Encode texts whole, as the process does anyway."""

    def no_padding(self) -> None:
        """Encode nothing but the text, likewise."""

    def id_to_token(self, id: int) -> str | None:  # noqa: A002  the library's name
        """The piece of a token."""
        return self._pieces.get(id)

    def token_to_id(self, token: str) -> int | None:
        """The token of a piece."""
        return self._vocabularies[True].get(token)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if not self._end.alive:
                self._start()
            return self._answer(json.dumps(question).encode() + b"\n")

    def _start(self) -> dict[str, Any]:
        """Start the process, with the file as the first that it is sent."""
        self._process = subprocess.Popen(  # noqa: S603  our own script, and no shell
            [sys.executable, "-I", str(_SCRIPT), str(len(self._raw)), str(_SECONDS)],
            env={"TOKENIZERS_PARALLELISM": "false"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._end = weakref.finalize(self, _end, self._process)
        return self._answer(self._raw)

    def _answer(self, sent: bytes) -> dict[str, Any]:
        """What the process says to what is *sent*; ends it, and raises, if that is nothing, or a failure."""
        line = _answered(self._process, sent)
        answer: dict[str, Any] = json.loads(line) if line else {"broken": self._why_no_answer()}
        if "refused" in answer:
            raise InvalidRequest.of("text", f"cannot be encoded by this model's tokenizer: {answer['refused']}")
        if "broken" in answer:
            self._end()
            raise corrupt(self._path, answer["broken"])
        return answer

    def _why_no_answer(self) -> str:
        self._end()
        match -self._process.returncode:
            case signal.SIGXCPU:
                return "takes more time than the text, or the file, is worth"
            case signal.SIGKILL:
                return "was given up: it took too long, or the system had no memory left for it"
            case number:
                return f"needs more memory than is allowed, or broke the library (signal {number})"


def _answered(process: subprocess.Popen[bytes], sent: bytes) -> bytes:
    """The line that *process* answers to what is *sent*; nothing if there is none in time, or it ended."""
    to, back = require(process.stdin), require(process.stdout)
    with suppress(BrokenPipeError):
        to.write(sent)
        to.flush()
    line, until = bytearray(), time.monotonic() + _WAIT_SECONDS
    readable = select.poll()
    readable.register(back, select.POLLIN)
    while not line.endswith(b"\n"):
        if not readable.poll(max(until - time.monotonic(), 0) * 1000):
            return b""
        block = os.read(back.fileno(), _BLOCK_BYTES)
        if not block:
            process.wait()
            return b""
        line += block
    return bytes(line)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with suppress(BrokenPipeError):
        process.communicate()

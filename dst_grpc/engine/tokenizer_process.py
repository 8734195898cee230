"""The process in which a tokenizer runs that is not trusted to return: a script, which imports nothing of ours.

It reads a `tokenizer.json`, then a request a line, and answers each with a line; there is a limit on the time and the
memory of each, beyond which the system ends the process. `confined_tokenizer` starts it and says what is asked.

    python -I tokenizer_process.py SIZE SECONDS     with the SIZE bytes of the file before the first request
"""

from __future__ import annotations

import json
import math
import pathlib
import resource
import sys
from typing import Any

from tokenizers import Tokenizer

_MAPPED = pathlib.Path("/proc/self/statm")
_MAX_IDS = 1 << 22
_SPARE_BYTES = 256 << 20
_BYTES_PER_FILE_BYTE = 64
_BYTES_PER_TEXT_BYTE = 1000
_TEXT_BYTES_PER_SECOND = 100_000


def _limit(n_bytes: int, seconds: float) -> None:
    """From now on, so much more memory and processor time, and then the end."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + seconds))
    if _MAPPED.exists():
        mapped = int(_MAPPED.read_text("ascii").split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, mapped + n_bytes)


def _lower(kind: int, limit: int) -> None:
    """Set the limit that holds, and leave the one up to which it may be set again."""
    _, most = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


def _answer(tokenizer: Tokenizer, request: dict[str, Any]) -> dict[str, Any]:
    if "ids" in request:
        return {"text": tokenizer.decode(request["ids"], skip_special_tokens=request["without_special"])}
    encoding = tokenizer.encode(request["text"], add_special_tokens=request["with_special"])
    if len(encoding.ids) > _MAX_IDS:
        return {"broken": f"makes {len(encoding.ids)} tokens of a text of {len(request['text'])} characters"}
    return {"ids": encoding.ids, "special": encoding.special_tokens_mask}


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _main(size: int, seconds: float) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit(_SPARE_BYTES + _BYTES_PER_FILE_BYTE * size, seconds + size / _TEXT_BYTES_PER_SECOND)
    try:
        tokenizer = Tokenizer.from_buffer(sys.stdin.buffer.read(size))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        vocabularies = [tokenizer.get_vocab(with_added_tokens=added) for added in (False, True)]
        _say({"vocabularies": vocabularies})
    except BaseException as error:  # noqa: BLE001  a panic of the library is no Exception
        _say({"broken": f"is no tokenizer: {error}"})
        return
    for line in sys.stdin.buffer:
        _limit(_SPARE_BYTES + _BYTES_PER_TEXT_BYTE * len(line), seconds + len(line) / _TEXT_BYTES_PER_SECOND)
        try:
            _say(_answer(tokenizer, json.loads(line)))
        except MemoryError:
            _say({"broken": "needs more memory than is allowed"})
        except Exception as error:  # noqa: BLE001  how the library says that it cannot
            _say({"refused": str(error)})
        except BaseException as error:  # noqa: BLE001  likewise
            _say({"broken": f"fails: {error}"})


if __name__ == "__main__":
    _main(int(sys.argv[1]), float(sys.argv[2]))

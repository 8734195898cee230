"""The training and held-out text: made-up documents in fixed shares, and the King James Bible as the Debian package
`bible-kjv` prints it. `python -m scripts.embedded.text` shows a sample and the split. Tokens are not made here."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Final

from scripts.embedded import stories
from scripts.embedded.behaviours import agreement_document, ioi_document
from scripts.embedded.wordings import Part

END_OF_TEXT: Final = "<|endoftext|>"
"""What stands between two documents; a text itself never starts with it."""

MADE_SHARES: Final[tuple[tuple[float, Callable[[random.Random], str]], ...]] = (
    (0.30, ioi_document),
    (0.16, agreement_document),
    (0.14, stories.solo_story),
    (0.13, lambda rng: stories.pair_story(rng, "train")),
    (0.07, stories.animal_story),
    (0.08, stories.world_text),
    (0.04, stories.workplace_story),
    (0.05, stories.fact_text),
    (0.03, lambda rng: stories.introduction(rng, "train")),
)
"""Chance of each kind among made-up documents, and its maker."""

BIBLE_HELD_OUT_SHARE: Final = 0.03
_VERSE: Final = re.compile(r"^\S+\d+:\d+ (.*)$")


def made_document(rng: random.Random) -> str:
    """One made-up document. Held-out text of this kind is simply another seed."""
    makers = [maker for _, maker in MADE_SHARES]
    return rng.choices(makers, [share for share, _ in MADE_SHARES])[0](rng)


def made_documents(seed: int | str) -> Iterator[str]:
    """Made-up documents without end."""
    rng = random.Random(seed)
    while True:
        yield made_document(rng)


def bible_documents(part: Part) -> list[str]:
    """Passages of three to nine verses of the King James Bible, in order, on one side of the split.

    Raises:
        RuntimeError: the Debian package `bible-kjv` is not installed, or printed something else than verses.
    """
    program = shutil.which("bible")
    if program is None:
        message = "the training text needs the King James Bible: apt-get install bible-kjv"
        raise RuntimeError(message)
    printed = subprocess.run([program, "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=True).stdout
    verses = [match[1].strip() for match in map(_VERSE.match, printed.splitlines()) if match]
    if len(verses) != 31102:
        message = f"expected the 31102 verses of the King James Bible, found {len(verses)}"
        raise RuntimeError(message)
    rng = random.Random("bible passages")
    passages: dict[Part, list[str]] = {"train": [], "held_out": []}
    start = 0
    while start < len(verses):
        end = start + rng.randint(3, 9)
        side: Part = "held_out" if rng.random() < BIBLE_HELD_OUT_SHARE else "train"
        passages[side].append(" ".join(verses[start:end]))
        start = end
    return passages[part]


def main() -> None:
    """Print a few documents, to see what the model is trained on."""
    documents = made_documents("sample")
    for _ in range(25):
        print(next(documents), end="\n\n")
    print(bible_documents("held_out")[0])


if __name__ == "__main__":
    main()

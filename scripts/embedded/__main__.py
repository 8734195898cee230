"""Makes the embedded default from nothing: `python -m scripts.embedded` trains the tokenizer, the model, the
autoencoders and the transcoders, in this order, and writes the model card. `--only` does some of these steps with the
files at hand."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Final

import torch

from scripts.embedded import model_card, tokenizer, train_autoencoders, train_model, train_transcoders

FOLDER: Final = Path(__file__).parents[2] / "dst_grpc" / "embedded"
STEPS: Final = ("tokenizer", "model", "autoencoders", "transcoders", "card")
THREADS: Final = {"tokenizer": 2, "model": 2, "autoencoders": 2, "transcoders": 1, "card": 2}
"""By step. Sums are split by thread, so the same number gives the same weights again."""


def main() -> None:
    """Read the arguments and do the steps."""
    parser = argparse.ArgumentParser(prog="python -m scripts.embedded", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, help="do these steps alone")
    parser.add_argument("--first-lesson", type=int, default=0, help="go on with the model from this lesson")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the artefacts go (default: %(default)s)")
    parser.add_argument("--model-minutes", type=float, default=20, help="for the card, if the model is not trained now")
    parser.add_argument("--autoencoder-minutes", type=float, default=15, help="likewise for the autoencoders")
    parser.add_argument("--transcoder-minutes", type=float, default=8, help="likewise for the transcoders")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    minutes = {
        "model": arguments.model_minutes,
        "autoencoders": arguments.autoencoder_minutes,
        "transcoders": arguments.transcoder_minutes,
    }
    for step in STEPS:
        if step not in arguments.only:
            continue
        torch.set_num_threads(THREADS[step])
        # A step on one thread may have little of a core; others are told as they took.
        clock = time.process_time if THREADS[step] == 1 else time.monotonic
        start = clock()
        if step == "tokenizer":
            tokenizer.main(folder / "model")
        elif step == "model":
            train_model.main(folder / "model", arguments.first_lesson)
        elif step == "autoencoders":
            train_autoencoders.main(folder / "model", folder / "autoencoders")
        elif step == "transcoders":
            train_transcoders.main(folder / "model", folder / "transcoders" / train_transcoders.NAME)
        else:
            model_card.main(folder, minutes)
        minutes[step] = (clock() - start) / 60
        print(f"{step}: {minutes[step]:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()

"""`make demo`: start a server, ask it why the model says what it says, and stop it.

Every number printed comes from a call to that server, made with the Python client. What is asked is in `explain`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dst_grpc.client import (
    AblationSpec,
    ActivationIndex,
    ActivationLocationType,
    Answer,
    Client,
    Entry,
    PassType,
    TopBy,
)
from dst_grpc.errors import DstError

PROMPT = "When Mary and John went to the store, John gave a drink to"
TARGET, DISTRACTOR = " Mary", " John"

HEADS = "unflattened_attn_write_to_final_residual_grad"
NEURONS = "mlp_write_to_final_residual_grad"
TOKENS = "token_attribution"
FROZEN_NORM = AblationSpec(
    index=ActivationIndex(
        activation_location_type=ActivationLocationType.RESID_FINAL_LAYER_NORM_SCALE,
        tensor_indices=(None, None),
        pass_type=PassType.BACKWARD,
    ),
    value=0.0,
)
"""Takes the final norm's scale for a constant: the logits are then a sum, and direct effects are its terms."""
READY = "is ready at "
STOP_SECONDS = 30.0
SMALLEST_SHARE = 0.005
"""Probability below which a guess would be shown as 0%."""
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


@contextmanager
def server(*arguments: str) -> Iterator[str]:
    """Run `dst-grpc serve` with *arguments* on a free port; yields HOST:PORT once ready, and stops it afterwards."""
    command = [sys.executable, "-m", "dst_grpc.cli", "serve", "--port", "0", "--log-level", "WARNING", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if READY not in line:
                sys.exit("the server did not start; what it said stands above")
            yield line.partition(READY)[2].strip()
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


def explain(client: Client, out: Console) -> None:
    """Ask and print: the guess, who made it, and what becomes of it without the foremost head."""
    types = ["logits", HEADS, NEURONS, TOKENS]
    answer = client.derive(PROMPT, types, target=TARGET, distractor=DISTRACTOR, ablations=[FROZEN_NORM])
    last = len(answer.tokens) - 1
    out.print(Text.assemble("\nThe prompt:  ", (f"{PROMPT} ...", "bold")))
    show_guess(client, answer, out, "The model goes on with:")
    out.print(f"\nIts score (logit) of {TARGET!r} is {loss_of(answer):+.2f} above that of {DISTRACTOR!r}. Where from?")

    out.print("\nHeads with the largest direct effect (a head copies from one word to a later):")
    show_effects(out, [(entry.value, name_of_head(entry, answer)) for entry in answer[HEADS].top(5, at=last)])
    out.print("\nNeurons with the largest direct effect:")
    neurons = answer[NEURONS].top(5, at=last)
    show_effects(out, [(e.value, f"layer {e.layer_index}, neuron {e.node}, at {answer.tokens[-1]!r}") for e in neurons])
    out.print("\nWords of the prompt with the largest effect, by whatever way:")
    show_effects(out, [(entry.value, word(entry.token, answer)) for entry in answer[TOKENS].top(5)])

    (foremost,) = answer[HEADS].top(1, by=TopBy.VALUE, at=last)
    show_ablation(client, out, answer, foremost)


def show_guess(client: Client, answer: Answer, out: Console, title: str) -> None:
    """Print the most probable next tokens."""
    logits = np.asarray(answer["logits"][None])[-1].astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    best = [i for i in np.argsort(-logits)[:3] if probabilities[i] >= SMALLEST_SHARE] or [int(logits.argmax())]
    words = [(client.detokenize([token_id]), float(probabilities[token_id])) for token_id in best]
    out.print(f"{title}  " + ", ".join(f"{text!r} {share:.0%}" for text, share in words), markup=False)


def show_effects(out: Console, rows: list[tuple[float, str]]) -> None:
    """Print what has an effect, with a bar as long as the effect is large."""
    largest = max(abs(value) for value, _ in rows) or 1.0
    table = Table.grid(padding=(0, 1))
    for value, name in rows:
        colour = "green" if value > 0 else "red"
        bar = Text("#" * max(1, round(12 * abs(value) / largest)), style=colour)
        table.add_row(Text(f"  {value:+.2f}", style=colour), bar, Text(name))
    out.print(table)


def show_ablation(client: Client, out: Console, answer: Answer, head: Entry) -> None:
    """Print what the model says when one head attends to nothing."""
    everywhere = ActivationIndex(
        activation_location_type=ActivationLocationType.ATTN_QK_PROBS,
        layer_index=head.layer_index,
        tensor_indices=(None, None, head.node),
    )
    without = client.derive(
        PROMPT,
        "logits",
        target=TARGET,
        distractor=DISTRACTOR,
        ablations=[AblationSpec(index=everywhere, value=0.0)],
    )
    before, after = loss_of(answer), loss_of(without)
    out.print(f"\nWithout layer {head.layer_index}, head {head.node}, the {before:+.2f} become {after:+.2f}.")
    show_guess(client, without, out, "Then the model goes on with:")


def name_of_head(entry: Entry, answer: Answer) -> str:
    """A head at a pair of tokens, the later of which is the last, in words."""
    read = word(entry.attended_token, answer)
    return f"layer {entry.layer_index}, head {entry.node}, reading {read} from {answer.tokens[-1]!r}"


def word(position: int | None, answer: Answer) -> str:
    """A token of the prompt, and which one where the same text stands several times."""
    if position is None:
        return "everything"
    text = answer.tokens[position]
    same = [i for i, other in enumerate(answer.tokens) if other == text]
    if len(same) == 1:
        return repr(text)
    return f"the {'last' if position == same[-1] else ORDINALS[same.index(position)]} {text!r}"


def loss_of(answer: Answer) -> float:
    """The difference of logits that was asked for."""
    if answer.loss is None:
        raise SystemExit("the server did not say how large the difference is")
    return answer.loss


def show_how_to_go_on(out: Console) -> None:
    """Print three commands."""
    program = Path(sys.executable).with_name("dst-grpc")
    name = str(program.relative_to(Path.cwd())) if program.is_relative_to(Path.cwd()) else "dst-grpc"
    out.print("\nGo on from here:", style="bold")
    out.print(f"  {name} serve", markup=False)
    out.print(
        f'  {name} derive "{PROMPT}" --target "{TARGET}" --distractor "{DISTRACTOR}"', markup=False, soft_wrap=True
    )
    out.print(f"  {name} types\n", markup=False)


def main() -> None:
    """Run the demo."""
    out = Console(highlight=False)
    try:
        with server() as target, Client(target) as client:
            out.print(f"A server is running at {target}, on the package's own model.", style="dim")
            explain(client, out)
            show_how_to_go_on(out)
    except DstError as error:
        sys.exit(f"error: {error.message}")


if __name__ == "__main__":
    main()

"""Tables and bars of an explanation for a terminal, from plain values, drawn with rich."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dst_grpc.cli._encoding import has_every_character
from dst_grpc.cli._facts import (
    EFFECTS,
    NodeRow,
    ablations_of,
    changes_of,
    completeness_of,
    decimals_for,
    foremost,
    group_title,
    groups_of,
    number_text,
    path_of,
    question_of,
    reads_are_summed,
    residuals_of,
    rows_of,
    says_again,
    target_of,
    token_sums,
)
from dst_grpc.cli._guesses import SMALLEST_SHARE, changed_guesses, guesses_of, guessing_at, hint_of, percent
from dst_grpc.client import ExplainRequest, ExplainRun, Explanation, ResidualShares, RunExplanation, TopKGroup

BAR = 12
"""Most columns of a bar."""
GUESSES = 5
MAX_HEAT = 40
"""Tokens that have a bar; in a longer prompt, those with the largest sums."""
LABEL = 16
"""Columns from which on a token is cut."""
SHADES = " .:+*#"
"""Shades of attention from 0 to 1, without Unicode."""
BLOCKS = " ░▒▓█"
READS = "heads count for the token that they read"
QUERIES = "heads count for the token that they are at, as the prompt is long"


@dataclass(frozen=True, slots=True)
class Paper:
    """The output that a picture is drawn for."""

    width: int
    """Columns."""
    is_plain: bool
    """Whether to draw with ASCII only: no terminal, or one without Unicode."""

    @classmethod
    def of(cls, out: Console) -> Paper:
        """The output of a console."""
        plain = not out.is_terminal or out.is_dumb_terminal or not has_every_character(out.encoding)
        return cls(out.width, plain)

    def bar(self, value: float, largest: float, columns: int) -> str:
        """A bar whose length is proportional to the value's size; negative ones have another character."""
        length = round(columns * abs(value) / largest) if largest else 0
        if not length and value and abs(value) >= largest / columns / 4:
            length = 1
        filled, hollow = ("+", "-") if self.is_plain else ("█", "▒")
        return (hollow if value < 0 else filled) * length

    def shade(self, share: float) -> str:
        """A cell whose darkness is proportional to the share, between 0 and 1."""
        shades = SHADES if self.is_plain else BLOCKS
        return shades[min(len(shades) - 1, int(np.ceil(share * (len(shades) - 1) - 0.25)))] if share > 0 else " "

    def token(self, text: str, columns: int | None = None) -> str:
        """A token in quotes, cut where it is longer than *columns*."""
        quoted = ascii(text) if self.is_plain and not text.isascii() else repr(text)
        dots = "..." if self.is_plain else "…"
        if columns is None or Text(quoted).cell_len <= columns:
            return quoted
        cut = Text(quoted)
        cut.truncate(max(1, columns - len(dots)))
        return f"{cut.plain}{dots}"


def pictures(
    request: ExplainRequest,
    explanation: Explanation,
    paper: Paper,
    *,
    top: int,
    attention: dict[tuple[int, int], np.ndarray] | None = None,
) -> Iterator[RenderableType]:
    """All pictures, top to bottom.

    Args:
        request: The request; of two runs, the second is the first with an ablation.
        explanation: The answer.
        paper: The output to draw for.
        top: Nodes to show of each group.
        attention: Attention [T, U] of the heads to show, by layer and head.
    """
    run, *others = explanation.runs
    yield headline(request, run, paper)
    for group in groups_of(request)[:1]:
        if not says_again(group):
            yield from heat(run, group, paper)
    for i, other in enumerate(others, start=1):
        yield from comparison(request, run, other, i, paper, top=min(top, 5))
    for group in groups_of(request):
        yield from node_table(request.runs[0], run, group.group_id, paper, top=top)
    for (layer, head), probabilities in (attention or {}).items():
        yield from attention_grid(run, layer, head, probabilities, paper)


def coloured(text: str, value: float) -> Text:
    """A text in the colour of the value's sign."""
    return Text(text, style="green" if value > 0 else "red" if value < 0 else "")


def title(text: str, explained: str = "") -> Text:
    """The first line of a picture."""
    return Text.assemble("\n", (text, "bold cyan"), f": {explained}" if explained else "")


def headline(request: ExplainRequest, run: RunExplanation, paper: Paper) -> Text:
    """The prompt, the next tokens, and the explained value."""
    asked = request.runs[0]
    text = Text.assemble((f"{''.join(run.header.token_strings)} ...", "bold"))
    guesses = [guess for guess in guesses_of(run)[:3] if guess.share >= SMALLEST_SHARE] or guesses_of(run)[:1]
    if guesses:
        said = ", ".join(f"{paper.token(guess.token)} {percent(guess.share)}" for guess in guesses)
        at, tokens = guessing_at(run), run.header.token_strings
        where = "The model goes on" if at == len(tokens) - 1 else f"After {paper.token(tokens[at])} ({at}) it goes on"
        text.append(f"\n{where} with {said}.")
    value, question = target_of(run), question_of(asked)
    if question and value is not None:
        text.append(f"\nTo explain: {question}, ")
        text.append_text(coloured(number_text(value, decimals_for([value])), value))
        text.append(".")
    if hint_of(request, run):
        text.append(f"\n{hint_of(request, run)}", style="yellow")
    if path_of(asked):
        arrow = " <- " if paper.is_plain else " ← "
        text.append(f"\nTraced: {arrow.join(('output', *path_of(asked)))}")
    return text


def heat(run: RunExplanation, group: TopKGroup, paper: Paper) -> Iterator[RenderableType]:
    """The tokens, each with a bar for the sum of the group's values there."""
    sums = token_sums(run, group)
    named, _ = group_title(run, group.group_id)
    yield title(f"{named} by token", READS if reads_are_summed(run, group) else QUERIES)
    yield from token_bars(sums, run.header.token_strings, paper, is_signed=group.group_id in EFFECTS)


def token_bars(
    sums: np.ndarray, tokens: Sequence[str], paper: Paper, *, is_signed: bool = True
) -> Iterator[RenderableType]:
    """A line for each token, with its number of *sums* [T] and a bar; of a long prompt, for those with the largest."""
    shown: Sequence[int] = range(len(sums))
    if len(sums) > MAX_HEAT:
        shown = sorted(np.argsort(-np.abs(sums), kind="stable")[:MAX_HEAT].tolist())
        yield Text(f"The {MAX_HEAT} tokens of {len(sums)} with the largest sums:")
    labels = {i: paper.token(tokens[i], LABEL) for i in shown}
    decimals = decimals_for(sums)
    numbers = [number_text(value, decimals, signed=is_signed) for value in sums]
    widest = max((Text(label).cell_len for label in labels.values()), default=0)
    columns = max(4, min(2 * BAR, paper.width - widest - max(map(len, numbers), default=0) - 9))
    largest = float(np.abs(sums).max(initial=0.0))
    grid = Table.grid(padding=(0, 1))
    for justify in ("right", "left", "right", "left"):
        grid.add_column(justify=justify, no_wrap=True, overflow="crop")
    for i in shown:
        value = float(sums[i])
        bar = coloured(paper.bar(value, largest, columns), value)
        grid.add_row(f"{i:4}", Text(labels[i]), coloured(numbers[i], value), bar)
    yield grid


def node_table(
    asked: ExplainRun, run: RunExplanation, group_id: str, paper: Paper, *, top: int
) -> Iterator[RenderableType]:
    """The most important nodes of a group, and how much of the whole the listed ones account for."""
    rows = rows_of(run, group_id)
    shown = foremost(rows, top, group_id)
    yield title(*group_title(run, group_id))
    if not shown:
        yield Text("  no nodes")
        return
    yield rows_picture(shown, run.header.token_strings, paper, is_effect=group_id in EFFECTS)
    for i, line in enumerate(completeness_of(asked, run, group_id)):
        yield Text(f"{len(shown)} shown. {line}" if i == 0 and len(shown) < len(rows) else line)
    if residuals_of(run, group_id):
        yield residuals_picture(residuals_of(run, group_id))


def residuals_picture(residuals: Sequence[ResidualShares]) -> RenderableType:
    """The residual at each layer, as the sum of its parts."""
    table = plain_table("layer", "residual", "= latents", "+ error", "+ decoder bias", "listed", right=6)
    decimals = decimals_for(value for one in residuals for value in (one.total, one.latents, one.error))
    for one in residuals:
        values = (one.total, one.latents, one.error, one.decoder_bias, one.listed)
        table.add_row(str(one.layer_index), *(coloured(number_text(value, decimals), value) for value in values))
    return table


def rows_picture(rows: Sequence[NodeRow], tokens: Sequence[str], paper: Paper, *, is_effect: bool) -> RenderableType:
    """Nodes as a table with as many tokens as fit; on a narrow terminal, each as a block of lines."""
    decimals = decimals_for(row.value for row in rows)
    numbers = [number_text(row.value, decimals, signed=is_effect) for row in rows]
    for count in (3, 2, 1):
        table = _wide(rows, numbers, tokens, paper, count)
        table.columns[0].header = "effect" if is_effect else "value"
        if columns_of(table) <= paper.width:
            return table
    return _narrow(rows, numbers, tokens, paper)


def _wide(rows: Sequence[NodeRow], numbers: Sequence[str], tokens: Sequence[str], paper: Paper, count: int) -> Table:
    largest = max(abs(row.value) for row in rows)
    columns = BAR if count > 1 else BAR // 2
    table = plain_table("", "", "node", "tokens", "promotes", "excited by", right=1)
    for row, number in zip(rows, numbers, strict=True):
        table.add_row(
            coloured(number, row.value),
            coloured(paper.bar(row.value, largest, columns), row.value),
            row.text,
            place(row, tokens, paper),
            " ".join(promoted(row, paper)[:count]),
            " ".join(exciting(row, tokens, paper)[:count]),
        )
    return table


def _narrow(rows: Sequence[NodeRow], numbers: Sequence[str], tokens: Sequence[str], paper: Paper) -> Table:
    largest = max(abs(row.value) for row in rows)
    indent = max(map(len, numbers)) + 1
    grid = Table.grid()
    grid.add_column(overflow="fold")
    for row, number in zip(rows, numbers, strict=True):
        grid.add_row(
            Text.assemble(
                coloured(f"{number:>{indent - 1}} ", row.value),
                (f"{row.text} ", "bold"),
                coloured(paper.bar(row.value, largest, BAR // 2), row.value),
            )
        )
        facts = [place(row, tokens, paper)]
        for said, found in (("promotes", promoted(row, paper)), ("excited by", exciting(row, tokens, paper))):
            listed = fitting(found, paper.width - indent - len(said) - 1)
            facts += [f"{said} {listed}"] if listed else []
        for fact in facts:
            grid.add_row(Padding(Text(fact, overflow="fold"), (0, 0, 0, indent)))
    return grid


def columns_of(picture: RenderableType) -> int:
    """Columns that a picture takes where nothing is cut."""
    # With the height too: without one, a console on a dumb terminal has 80 columns whatever it is told.
    return Console(width=10_000, height=1).measure(picture).maximum


def plain_table(*names: str, right: int = 0) -> Table:
    """A table without lines, with the first *right* columns aligned right."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if i < right else "left", no_wrap=True, overflow="crop")
    return table


def place(row: NodeRow, tokens: Sequence[str], paper: Paper) -> str:
    """The place of a node: "' to'", or, for a head, "' to' <- ' Mary'"."""
    arrow = " <- " if paper.is_plain else " ← "
    return arrow.join(paper.token(tokens[at], LABEL) for at in row.positions if at < len(tokens))


def promoted(row: NodeRow, paper: Paper) -> list[str]:
    """Output tokens that a node raises."""
    return [paper.token(score.token, LABEL) for score in row.promotes]


def exciting(row: NodeRow, tokens: Sequence[str], paper: Paper) -> list[str]:
    """Tokens that excite a node: of the vocabulary; for a latent of attention, those of the prompt that did."""
    if row.comes_from:
        return [paper.token(tokens[at], LABEL) for at, _ in row.comes_from if at < len(tokens)]
    return [paper.token(score.token, LABEL) for score in row.excited_by]


def fitting(words: Sequence[str], columns: int, count: int = 3) -> str:
    """As many of the first words as fit, and at least one if there are any."""
    chosen = list(words[:count])
    while len(chosen) > 1 and Text(" ".join(chosen)).cell_len > columns:
        chosen.pop()
    return " ".join(chosen)


def comparison(
    request: ExplainRequest, before: RunExplanation, after: RunExplanation, which: int, paper: Paper, *, top: int
) -> Iterator[RenderableType]:
    """The change of the explained value, of the guesses and of the nodes under an ablation."""
    arrow = "->" if paper.is_plain else "→"
    yield title(f"With {', '.join(ablations_of(request.runs[which]))}")
    was, now = target_of(before), target_of(after)
    if was is not None and now is not None:
        decimals = decimals_for((was, now))
        said = [number_text(value, decimals) for value in (was, now, now - was)]
        text = Text(f"{question_of(request.runs[which])}: {said[0]} {arrow} ")
        text.append_text(coloured(said[1], now)).append(" (").append_text(coloured(said[2], now - was)).append(")")
        yield text
    guesses = [guess for guess in changed_guesses(before, after, GUESSES) if max(guess[1:]) >= SMALLEST_SHARE]
    if guesses:
        table = plain_table("before", "after", "next token", right=2)
        for token, share, then in guesses:
            new = coloured(percent(then), round(then - share, 2))
            table.add_row(percent(share), new, paper.token(token, LABEL))
        yield table
    for group in groups_of(request):
        if group.group_id in EFFECTS:
            yield from _changes(before, after, group.group_id, paper, top)


def _changes(
    before: RunExplanation, after: RunExplanation, group_id: str, paper: Paper, top: int
) -> Iterator[RenderableType]:
    changes = changes_of(before, after, group_id, top)
    if not changes:
        return
    yield Text(f"\n{group_title(before, group_id)[0]} that change most:", style="bold")
    decimals = decimals_for(max(abs(change.row.value), abs(change.after)) for change in changes)
    is_wide = paper.width >= 72
    table = plain_table("before", "after", "change", "node", *(["tokens"] if is_wide else []), right=3)
    for change in changes:
        numbers = [number_text(value, decimals) for value in (change.row.value, change.after, change.difference)]
        where = [place(change.row, before.header.token_strings, paper)] if is_wide else []
        table.add_row(*numbers[:2], coloured(numbers[2], change.difference), change.row.text, *where)
    yield table


def attention_grid(
    run: RunExplanation, layer: int, head: int, probabilities: np.ndarray, paper: Paper
) -> Iterator[RenderableType]:
    """A head's attention: a line for each query, a cell for each key, and the key with the most attention."""
    tokens = run.header.token_strings
    yield title(f"Attention of {layer}.h{head}", "a row per token; a cell per token that it reads; what it reads most")
    labels = [paper.token(token, LABEL) for token in tokens]
    widest = max(Text(label).cell_len for label in labels)
    room = paper.width - widest - 6
    room_beside_words = room - widest - 11
    has_words = len(tokens) <= room_beside_words or len(tokens) > room
    cell = 2 if len(tokens) * 2 <= (room_beside_words if has_words else room) else int(len(tokens) <= room)
    grid = Table.grid(padding=(0, 1))
    for justify in ("right", "left", "left", "left", "right"):
        grid.add_column(justify=justify, no_wrap=True, overflow="crop")
    for query, label in enumerate(labels):
        row = probabilities[query, : query + 1]
        key = int(row.argmax())
        cells = "".join(paper.shade(float(share)) * cell for share in row)
        words = (f"{key:4} {labels[key]}", percent(float(row[key]))) if has_words else ()
        grid.add_row(f"{query:4}", Text(label), Text(cells, style="magenta"), *words)
    yield grid

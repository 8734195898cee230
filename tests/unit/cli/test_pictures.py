"""Pictures of an explanation on terminals of every kind, compared with what a person should see."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from dst_grpc.cli._explain import explain_request_of
from dst_grpc.cli._facts import completeness_of, decimals_for, number_text, question_of
from dst_grpc.cli._guesses import percent
from dst_grpc.cli._pictures import Paper, attention_grid, columns_of, pictures, plain_table
from dst_grpc.client import ExplainRequest
from tests.explanations import ATTENTION, TOKENS, explanation_of

ABLATED = explain_request_of("x", target=[" Mary"], distractor=[" John"], ablate=["0.h1@3,1"])

WIDE = """\
When Mary saw John ...
The model goes on with ' Mary' 70%, ' John' 10%.
To explain: ' Mary' over ' John', +5.00.

Direct effects (final norm frozen) by token: heads count for the token that they read
   0 'When'  -2.00 ------------
   1 ' Mary' +2.00 ++++++++++++
   2 ' saw'  -1.00 ------
   3 ' John' +4.00 ++++++++++++++++++++++++

With 0.h1@3=0
' Mary' over ' John': +5.00 -> +2.50 (-2.50)
before  after  next token
   70%    58%  ' Mary'
   10%    21%  ' John'

Direct effects (final norm frozen) that change most:
before  after  change  node      tokens
 +4.50  +2.25   -2.25  0.h1@3,1  ' John' <- ' Mary'
 -2.25  -1.12   +1.12  1.h0@3,2  ' John' <- ' saw'
 +1.00  +0.50   -0.50  1.n4@3    ' John'

Direct effects (final norm frozen): what each part itself writes towards the answer
effect                node      tokens              promotes             excited by
 +4.50  ++++++++++++  0.h1@3,1  ' John' <- ' Mary'  ' Mary' '</script>'
 -2.25  ------        1.h0@3,2  ' John' <- ' saw'   ' Mary' '</script>'
 +1.00  +++           1.n4@3    ' John'             ' Mary' '</script>'  ' Mary' '</script>'
3 shown. The 5 listed nodes account for +4.00 of +5.00, all nodes for +4.50; the rest, +0.50,
belongs to no node.

Attention of 0.h1: a row per token; a cell per token that it reads; what it reads most
   0 'When'  ##          0 'When'  100%
   1 ' Mary' **..        0 'When'   75%
   2 ' saw'  ++....      0 'When'   50%
   3 ' John'   ##        1 ' Mary'  97%
"""

NARROW = """\
When Mary saw John ...
The model goes on with ' Mary' 70%, '
John' 10%.
To explain: ' Mary' over ' John', +5.00.

Direct effects (final norm frozen) by
token: heads count for the token that
they read
   0 'When'  -2.00 ----------
   1 ' Mary' +2.00 ++++++++++
   2 ' saw'  -1.00 -----
   3 ' John' +4.00 +++++++++++++++++++

With 0.h1@3=0
' Mary' over ' John': +5.00 -> +2.50
(-2.50)
before  after  next token
   70%    58%  ' Mary'
   10%    21%  ' John'

Direct effects (final norm frozen) that
change most:
before  after  change  node
 +4.50  +2.25   -2.25  0.h1@3,1
 -2.25  -1.12   +1.12  1.h0@3,2
 +1.00  +0.50   -0.50  1.n4@3

Direct effects (final norm frozen): what
each part itself writes towards the
answer
+4.50 0.h1@3,1 ++++++
      ' John' <- ' Mary'
      promotes ' Mary' '</script>'
-2.25 1.h0@3,2 ---
      ' John' <- ' saw'
      promotes ' Mary' '</script>'
+1.00 1.n4@3 +
      ' John'
      promotes ' Mary' '</script>'
      excited by ' Mary' '</script>'
3 shown. The 5 listed nodes account for
+4.00 of +5.00, all nodes for +4.50; the
rest, +0.50, belongs to no node.

Attention of 0.h1: a row per token; a
cell per token that it reads; what it
reads most
   0 'When'  ##          0 'When'  100%
   1 ' Mary' **..        0 'When'   75%
   2 ' saw'  ++....      0 'When'   50%
   3 ' John'   ##        1 ' Mary'  97%
"""


def drawn(
    request: ExplainRequest,
    *,
    width: int = 95,
    plain: bool = True,
    tokens: tuple[str, ...] = TOKENS,
    colours: bool = False,
    scale: float = 1.0,
) -> str:
    """What stands on a console of so many columns, without the blanks at the ends of lines."""
    out = Console(
        width=width,
        file=io.StringIO(),
        highlight=False,
        force_terminal=colours,
        color_system="standard" if colours else None,
    )
    explanation = explanation_of(request, tokens=tokens, scale=scale)
    attention = {(0, 1): ATTENTION} if tokens is TOKENS else None
    for picture in pictures(request, explanation, Paper(width, plain), top=3, attention=attention):
        out.print(picture)
    assert isinstance(out.file, io.StringIO)
    return "".join(f"{line.rstrip()}\n" for line in out.file.getvalue().splitlines())


def test_on_a_wide_plain_terminal() -> None:
    assert drawn(ABLATED) == WIDE


def test_on_a_narrow_plain_terminal() -> None:
    assert drawn(ABLATED, width=40) == NARROW


def test_unicode_draws_the_same_with_other_strokes() -> None:
    """Bars of two stuffs, so that signs can be told apart without colour; arrows; shades."""
    seen = drawn(ABLATED, plain=False)
    assert "+4.00 ████████████████████████\n" in seen
    assert "-2.00 ▒▒▒▒▒▒▒▒▒▒▒▒\n" in seen
    assert "' John' ← ' Mary'" in seen
    assert "   1 ' Mary' ▓▓░░  " in seen
    strokes = str.maketrans("█▒", "+-")
    grid_at = seen.index("Attention")
    assert seen[:grid_at].translate(strokes).replace("→", "->").split() == [
        word.replace("<-", "←") for word in WIDE[: WIDE.index("Attention")].split()
    ]


def test_a_plain_terminal_gets_nothing_but_ascii() -> None:
    tokens = ("Où", " Mary", " saw", " 山田")
    for width in (20, 40, 95):
        assert drawn(ABLATED, width=width, tokens=tokens).replace("Où Mary saw 山田", "").isascii()
    assert "山田" in drawn(ABLATED, plain=False, tokens=tokens)


def test_colours_follow_the_sign() -> None:
    seen = drawn(ABLATED, colours=True)
    assert "\x1b[32m+5.00\x1b[0m" in seen
    assert "\x1b[31m-2.00\x1b[0m" in seen
    assert "\x1b[1;36mDirect effects (final norm frozen)\x1b[0m" in seen
    assert Text.from_ansi(seen).plain.split() == drawn(ABLATED).split()


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 120, 300])
@pytest.mark.parametrize("plain", [True, False])
def test_every_line_fits(width: int, plain: bool) -> None:
    for tokens in (TOKENS, ("When", " Mary", " a" * 40, " 山田" * 20)):
        lines = drawn(ABLATED, width=width, plain=plain, tokens=tokens).splitlines()
        assert max(Text(line).cell_len for line in lines) <= width


def test_a_terminal_without_control_changes_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a terminal has 80 columns to rich, whatever it is told: a table was then cut, as if it fitted."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("LINES", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    table = plain_table("node", "tokens")
    table.add_row("n" * 60, "t" * 60)
    assert columns_of(table) == 60 + 2 + 60


def test_a_trace_is_said_from_the_output_back() -> None:
    request = explain_request_of(
        "x", target=[" Mary"], trace=["1.h0@3,2:V", "0.h1@2,1:V"], groups=["act_times_grad", "activation"]
    )
    seen = drawn(request)
    assert "To explain: what 0.h1@2,1 carries to 1.h0@3,2:V, +3.00.\n" in seen
    assert "Traced: output <- 1.h0@3,2:V <- 0.h1@2,1:V\n" in seen
    assert "Total effects (final norm frozen) by token" in seen
    assert "The 5 listed nodes sum to +4.00, all nodes to +4.50.\n" in seen
    assert "\nvalue " in seen
    assert "The 5 listed nodes sum to 4.00, all nodes to 4.50.\n" in seen


@pytest.mark.parametrize(
    ("options", "question"),
    [
        ({}, ""),
        ({"loss": "zero"}, "nothing"),
        ({"target": [" a", " b"]}, "' a', ' b'"),
        ({"target": [" a"], "loss": "probs"}, "the probability of ' a'"),
        ({"target": [" a"], "loss": "logit_minus_mean"}, "' a' over the mean of all tokens"),
        ({"trace": ["1.n4@3"]}, "the pre-activation of 1.n4@3"),
        ({"trace": ["1.h0@3,2:QK"]}, "the score of 1.h0@3,2"),
        ({"target": [" a"], "trace": ["1.h0@3,2"]}, "what 1.h0@3,2 carries to ' a'"),
        ({"trace": ["1.n4@3", "1.h0@3,2"]}, "what 1.h0@3,2 carries to 1.n4@3"),
    ],
)
def test_the_question_in_words(options: dict[str, object], question: str) -> None:
    assert question_of(explain_request_of("x", **options).runs[0]) == question  # type: ignore[arg-type]  # by case


@pytest.mark.parametrize(
    ("options", "is_linear"),
    [
        ({"target": [" Mary"], "distractor": [" John"]}, True),
        ({"target": [" Mary"], "loss": "logit_minus_mean"}, True),
        ({"target": [" Mary"], "loss": "probs"}, False),
        ({"trace": ["1.n4@3"]}, True),
        ({"trace": ["1.h0@3,2:Q"]}, True),
        ({"trace": ["1.h0@3,2:QK"]}, False),
        ({"target": [" Mary"], "loss": "probs", "trace": ["1.h0@3,2:V"]}, True),
    ],
)
def test_direct_effects_are_shares_of_what_they_are_linear_in(options: dict[str, object], is_linear: bool) -> None:
    request = explain_request_of("x", groups=["direction_write"], **options)  # type: ignore[arg-type]  # by case
    explanation = explanation_of(request)
    (run,) = explanation.runs
    shares = "The 5 listed nodes account for +4.00 of +5.00, all nodes for +4.50; the rest, +0.50, belongs to no node."
    sums = (
        "The 5 listed nodes account for +4.00, all nodes for +4.50; to first order only: it need not add up to +5.00."
    )
    assert completeness_of(request.runs[0], run, "direction_write") == [shares if is_linear else sums]
    if "trace" not in options:  # that starts before the final norm
        moving = replace(run, header=replace(run.header, detach_final_layer_norm_scale=False))
        assert completeness_of(request.runs[0], moving, "direction_write") == [sums]


def test_without_an_origin_activations_are_shown() -> None:
    seen = drawn(explain_request_of("x"))
    assert "To explain" not in seen
    assert "Activations: " in seen


def test_small_effects_keep_their_digits() -> None:
    assert "+0.000450" in drawn(ABLATED, scale=1e-4)
    assert [decimals_for([value]) for value in (0.0, 12.0, 0.2, 0.02, 0.0002)] == [2, 2, 3, 4, 6]
    assert number_text(-0.001) == "+0.00"


def test_a_share_is_never_said_to_be_all_or_nothing() -> None:
    assert [percent(share) for share in (0.0, 0.001, 0.006, 0.5, 0.994, 0.997, 1.0)] == [
        *("0%", "<1%", "1%", "50%", "99%", ">99%", "100%"),
    ]


def test_of_a_long_prompt_the_foremost_tokens_have_bars() -> None:
    seen = drawn(ABLATED, tokens=tuple(f" t{i}" for i in range(200)))
    assert "The 40 tokens of 200 with the largest sums:\n   0 ' t0'" in seen
    assert "   3 ' t3'  +4.00 ++++" in seen
    assert "' t199'" not in seen


def test_attention_of_a_long_prompt_is_a_list() -> None:
    """Where no cell per token fits, what each token reads most remains."""
    tokens = tuple(f" t{i}" for i in range(200))
    run = explanation_of(ABLATED, tokens=tokens).runs[0]
    attention = np.tril(np.full((200, 200), 0.001))
    attention[np.arange(200), np.arange(200) // 2] = 0.5
    out = Console(width=80, file=io.StringIO())
    for picture in attention_grid(run, 0, 1, attention, Paper(80, is_plain=True)):
        out.print(picture)
    assert isinstance(out.file, io.StringIO)
    last = out.file.getvalue().splitlines()[-1]
    assert last.split() == ["199", "'", "t199'", "99", "'", "t99'", "50%"]


@pytest.mark.parametrize(
    ("encoding", "terminal", "term", "plain"),
    [
        ("utf-8", True, "xterm", False),
        ("utf-8", True, "dumb", True),
        ("ascii", True, "xterm", True),
        ("utf-8", False, "xterm", True),
    ],
)
def test_what_a_console_can_draw(encoding: str, terminal: bool, term: str, plain: bool) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    out = Console(file=stream, force_terminal=terminal, _environ={"TERM": term})
    assert Paper.of(out) == Paper(out.width, plain)

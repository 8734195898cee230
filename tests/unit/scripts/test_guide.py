"""How outputs in the documentation are found, made again and compared."""

from __future__ import annotations

import pytest

from scripts.guide.blocks import Program, commands_of, difference, programs_of, renewed, run

PAGE = """\
# Title

```console
$ make demo    # no output shown
$ make test
```

```python
print("hello   ")
```

```text
old
```

Words.

```text
no program's
```
"""


def test_commands_may_go_over_several_lines() -> None:
    block = '$ dst-grpc explain "x" \\\n    --top 3\n$ make demo    # a remark\noutput\n'
    assert commands_of(block) == ['dst-grpc explain "x"      --top 3', "make demo"]


def test_a_program_is_a_block_with_an_output_right_below_it() -> None:
    assert programs_of(PAGE) == [Program("python", 'print("hello   ")\n', "old\n")]


def test_outputs_are_made_again_and_nothing_else_changes() -> None:
    assert renewed(PAGE, "127.0.0.1:1") == PAGE.replace("\nold\n", "\nhello\n")


def test_an_output_needs_one_command_of_ours() -> None:
    for text in ("$ make demo\n", "$ dst-grpc types\n$ dst-grpc models\n"):
        with pytest.raises(ValueError, match="must hold one dst-grpc command"):
            run(Program("console", text, ""), "127.0.0.1:1")


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("effect +4.26  ++++++", "effect  +4.27  +++++"),
        ("loss=14.5,", "loss=14.6,"),
        ("' Mary' 88%", "' Mary' 87%"),
        ("+0.00", "-0.01"),
        ("a long\nline", "a\nlong line"),
    ],
)
def test_last_digits_and_bars_may_differ(was: str, now: str) -> None:
    assert difference(was, now) == ""


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("+4.26", "+4.28", "'+4.26' is now '+4.28'"),
        ("88%", "86%", "'88%' is now '86%'"),
        ("2.h1@13,1", "2.h2@13,1", "'2.h1@13,1' is now '2.h2@13,1'"),
        ("token 12", "token 13", "'12' is now '13'"),
        ("+4.2", "+4.20", "'+4.2' is now '+4.20'"),
        ("one", "one two", "'' is now 'two'"),
        (
            "embedded@b9cd4377e5f2:",
            "embedded@b9cd4377e5f3:",
            "'embedded@b9cd4377e5f2:' is now 'embedded@b9cd4377e5f3:'",
        ),
    ],
)
def test_nothing_else_may(was: str, now: str, said: str) -> None:
    assert difference(was, now) == said

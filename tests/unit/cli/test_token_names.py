"""Tokens are printed as the command takes them: part of a character, whose text is no character, by its id."""

from __future__ import annotations

import json
from dataclasses import replace

from tokenizers import Tokenizer as Library

from dst_grpc.cli._explain import explain_request_of
from dst_grpc.cli._guesses import guesses_of
from dst_grpc.cli._token_names import token_name, token_names, with_token_names
from dst_grpc.client import TokenScore
from dst_grpc.engine.tokenizer import Tokenizer
from tests import checkpoints
from tests.explanations import explanation_of
from tests.unit.cli.conftest import Run

PART = "\N{REPLACEMENT CHARACTER}"


def test_every_token_of_a_vocabulary_of_bytes_is_found_by_its_name() -> None:
    tokenizer = Tokenizer(Library.from_str(checkpoints.tokenizer_json()))
    ids = range(tokenizer.vocab_size)
    texts = tokenizer.token_strings(ids)
    names = token_names(texts, ids)
    assert sum(name != text for name, text in zip(names, texts, strict=True)) == 128
    assert [tokenizer.single_token(name, "token") for name in names] == list(ids)


def test_parts_of_a_character_have_names_of_their_own_wherever_a_token_is_printed(run: Run) -> None:
    assert token_name("Mary", 7) == "Mary"
    printed = run("tokenize", f"a {PART} {PART}").stdout
    assert "'a'" in printed
    assert "'<1>'" in printed
    assert "'<2>'" in printed
    derived = run("derive", f"When {PART} and John", "-t", "mlp_post_act", "--top", "4", "--layer", "1", "--at", "1")
    assert "'<1>' (1)" in derived.stdout
    assert PART not in derived.stdout
    # Programs are told the text, as they have the id.
    assert json.loads(run("tokenize", PART, "--json").stdout) == {"token_ids": [0], "tokens": [PART]}


def test_an_explanation_names_them() -> None:
    request = explain_request_of("x", target=[" Mary"], distractor=[" John"])
    explanation = explanation_of(request, tokens=("caf", PART, PART, " ..."))
    (run,) = explanation.runs
    assert run.top_logits is not None
    texts = (PART, *run.top_logits.vocab_tokens[1:])
    part, *others = run.scored_tokens
    (first, *rest) = part.nodes
    scored = replace(first, top=(TokenScore(9, PART, 3.0, 1.0),), bottom=(TokenScore(8, "x", -1.0, -0.3),))
    broken = replace(
        run,
        top_logits=replace(run.top_logits, vocab_tokens=texts),
        scored_tokens=(replace(part, nodes=(scored, *rest)), *others),
    )
    (named,) = with_token_names(replace(explanation, runs=(broken,))).runs
    assert named.header.token_strings == ("caf", "<1>", "<2>", " ...")
    assert {guess.token for guess in guesses_of(named)} == {"<0>", *texts[1:]}
    tokens = named.scored_tokens[0].nodes[0]
    assert [score.token for score in (*tokens.top, *tokens.bottom)] == ["<9>", "x"]

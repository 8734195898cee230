"""The split between training text and held-out prompts: what is held out never occurs in training text."""

from __future__ import annotations

import random
import re
from itertools import combinations, islice

import pytest

from scripts.embedded import behaviours, lexicon, stories, wordings
from scripts.embedded.grammar import plural
from scripts.embedded.text import made_documents
from scripts.embedded.wordings import AGREEMENT_LEADS, AGREEMENT_LINKS, Wording

_PLAIN = random.Random("split")
DOCUMENTS = [*islice(made_documents("split"), 8000), *(stories.plain_text(_PLAIN) for _ in range(2000))]
_NAME = re.compile(r"\b(" + "|".join(lexicon.NAMES) + r")\b")


@pytest.mark.parametrize("frames", [AGREEMENT_LEADS, AGREEMENT_LINKS])
def test_wordings_are_of_one_kind_only(frames: dict[Wording, tuple[str, ...]]) -> None:
    assert not set(frames["drawn"]) & {*frames["new"], *frames["foreign"]}
    assert not set(frames["new"]) & set(frames["foreign"])
    assert min(map(len, frames.values())) >= 3


def test_pairs_are_held_out_in_about_the_stated_share() -> None:
    pairs = list(combinations(lexicon.NAMES, 2))
    share = sum(behaviours.name_pair_part(*pair) == "held_out" for pair in pairs) / len(pairs)
    assert share == pytest.approx(behaviours.HELD_OUT_SHARE, abs=0.01)


def test_order_of_names_does_not_change_their_side() -> None:
    assert all(
        behaviours.name_pair_part(a, b) == behaviours.name_pair_part(b, a) for a, b in combinations(lexicon.NAMES, 2)
    )


def test_famous_pairs_are_held_out() -> None:
    assert behaviours.name_pair_part("John", "Mary") == "held_out"
    assert behaviours.noun_pair_part("key", "cabinet") == "held_out"


def test_no_training_document_about_two_people_has_a_held_out_pair() -> None:
    seen = 0
    for document in DOCUMENTS:
        names = set(_NAME.findall(document)) - {"Rose", "Mark", "Grace", "Frank", "Florence"}
        if len(names) == 2:
            seen += 1
            assert behaviours.name_pair_part(*names) == "train", document
    assert seen > 1000


def test_no_training_document_has_held_out_nouns_around_a_link() -> None:
    singular = {form: noun for noun in behaviours.ATTRACTORS for form in (noun, plural(noun))}
    links = [part for link in AGREEMENT_LINKS["drawn"] for part in link.split("|") if "{" not in part]
    verbs = [verb for pair in wordings.VERB_PAIRS for verb in pair]
    adjective = rf"(?:(?:{'|'.join(lexicon.ADJECTIVES + lexicon.COLORS)}) )?"
    across = re.compile(
        rf"\b[Tt]he {adjective}(\w+) (?:{'|'.join(links)}) the {adjective}(\w+) (?:{'|'.join(verbs)})\b"
    )
    met = [match for document in DOCUMENTS for match in across.findall(document)]
    # Other phrases ("the fog over the mountain was", "in the lake behind the cabinet is") have no subject for a head.
    found = [(singular[head], singular[between]) for head, between in met if singular.get(head) in behaviours.SUBJECTS]
    assert len(found) > 200
    assert all(behaviours.noun_pair_part(*pair) == "train" for pair in found)


@pytest.mark.parametrize("link", AGREEMENT_LINKS["foreign"])
def test_no_training_document_has_a_held_out_link(link: str) -> None:
    across = re.compile(rf"\b[Tt]he \w+ {link} the \w+ (?:is|are|was|were|has|have)\b")
    assert not any(across.search(document) for document in DOCUMENTS)


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{.+?\\\}", r"\\w+", re.escape(template.strip())).replace("a\\ ", "an?\\ "))


@pytest.mark.parametrize(
    "template",
    [*wordings.NEW_OPENINGS, *wordings.NEW_ACTIONS, *wordings.FOREIGN_OPENINGS, *wordings.FOREIGN_ACTIONS],
)
def test_no_training_document_has_a_held_out_wording(template: str) -> None:
    assert not any(_pattern(template).search(document) for document in DOCUMENTS)


def test_the_search_for_wordings_can_find_one() -> None:
    assert any(_pattern("{S} gave a {thing} to").search(document) for document in DOCUMENTS)


@pytest.mark.parametrize("wording", ["drawn", "new", "foreign"])
def test_held_out_prompts_use_held_out_pairs_in_both_orders(wording: Wording) -> None:
    rng = random.Random(0)
    prompts = [behaviours.ioi(rng, "held_out", wording) for _ in range(200)]
    assert {prompt.order for prompt in prompts} == {"ABBA", "BABA"}
    for prompt in prompts:
        right, wrong = prompt.answer[1:], prompt.wrong[1:]
        assert behaviours.name_pair_part(right, wrong) == "held_out"
        assert len(re.findall(rf"\b{right}\b", prompt.prompt)) == 1
        assert len(re.findall(rf"\b{wrong}\b", prompt.prompt)) == 2
        first = re.findall(rf"\b(?:{right}|{wrong})\b", prompt.prompt)[0]
        assert prompt.order == ("ABBA" if first == right else "BABA")

"""The three behaviours the embedded model is made for, as sentence frames, and the split that keeps some names, nouns
and wordings out of training. Training text and held-out prompts both come from here; neither is measured here."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Final

from scripts.embedded import lexicon, wordings
from scripts.embedded.grammar import Filler, gerund, past, plural, sentence_case, with_articles
from scripts.embedded.wordings import Part, Wording

HELD_OUT_SHARE: Final = 0.12
"""The share of name pairs and of noun pairs that training never sees."""

FAMOUS_NAMES: Final = frozenset({"Mary", "John"})
FAMOUS_NOUNS: Final = ("key", "cabinet")


def _hashed_share(text: str) -> float:
    """A number in [0, 1) that depends on `text` alone, so that the split needs no state and no seed."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def name_pair_part(first: str, second: str) -> Part:
    """The side of the split that two names, met together in either order, belong to."""
    pair = frozenset({first, second})
    is_held_out = pair == FAMOUS_NAMES or _hashed_share("names " + " ".join(sorted(pair))) < HELD_OUT_SHARE
    return "held_out" if is_held_out else "train"


def noun_pair_part(subject: str, attractor: str) -> Part:
    """The side of the split of a subject noun with another noun between it and its verb (singular forms)."""
    is_held_out = (subject, attractor) == FAMOUS_NOUNS or _hashed_share(f"nouns {subject} {attractor}") < HELD_OUT_SHARE
    return "held_out" if is_held_out else "train"


def pick_names(rng: random.Random, part: Part) -> tuple[str, str]:
    """Two different names whose pair is on the asked side of the split."""
    while True:
        first, second = rng.sample(lexicon.NAMES, 2)
        if name_pair_part(first, second) == part:
            return first, second


def _training_opening(rng: random.Random) -> str:
    """An opening put together from parts, never one of the fixed ones."""
    together = rng.choice(("{X} and {Y}", "{X} and {Y}", "{X} and {Y}", "both {X} and {Y}"))
    clause = f"{together} {rng.choice(wordings.TOGETHER)}" if rng.random() < 0.65 else rng.choice(wordings.APART)
    clause += rng.choice(wordings.TIMES)
    kind = rng.random()
    if kind < 0.45:
        return f"{rng.choice(wordings.CONJUNCTIONS)} {clause}, "
    lead = rng.choice(wordings.LEADS)
    if kind < 0.6:
        return f"{lead}{clause}, {rng.choice(('and', 'and then', 'but', 'so', 'and later', 'and so'))} "
    return f"{lead}{clause}. {rng.choice(wordings.BRIDGES)}"


def _training_action(rng: random.Random) -> str:
    """An action put together from parts, never one of the fixed ones."""
    kind = rng.random()
    if kind < 0.25:
        return "{S} " + rng.choice(wordings.PLAIN_ACTIONS)
    verbs, word = rng.choices(
        ((wordings.GIVING, "to"), (wordings.BUYING, "for"), (wordings.TAKING, "from"), (wordings.JOINING, "with")),
        (6, 2, 2, 1),
    )[0]
    verb, things = rng.choice(verbs), rng.choice(wordings.THINGS)
    if kind < 0.6:
        return f"{{S}} {past(verb)} {things} {word}"
    if kind < 0.8:
        return f"{{S}} {rng.choice(wordings.TRYING)} {verb} {things} {word}"
    if kind < 0.9:
        return f"{{S}} was {gerund(verb)} {things} {word}"
    # "... and gave it to" is held out.
    verb = "show" if verb == "give" else verb
    first = rng.choice(("{handle.past} the {thing}", "{do.past}", "{do.past} {adverb}", "{treat.past} the {person}"))
    return (
        f"{{S}} {first} and {rng.choice(('', 'then '))}{past(verb)} {rng.choice(('it', 'the {thing}', things))} {word}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """A prompt with the token that should come next and the one it is held against."""

    prompt: str
    answer: str
    """The right next token, with its leading space."""
    wrong: str
    """The tempting wrong one: the subject's name, or the verb agreeing with the nearer noun."""
    essential: frozenset[str]
    """The words of the prompt that decide the answer; any other might as well be another word."""
    order: str = ""
    """For names: ABBA or BABA, by whether the subject was named last or first."""


def ioi_template(rng: random.Random, wording: Wording) -> str:
    """An opening and an action, with their slots."""
    if wording == "new":
        return rng.choice(wordings.NEW_OPENINGS) + rng.choice(wordings.NEW_ACTIONS)
    if wording == "foreign":
        return rng.choice(wordings.FOREIGN_OPENINGS) + rng.choice(wordings.FOREIGN_ACTIONS)
    return _training_opening(rng) + _training_action(rng)


def ioi(rng: random.Random, part: Part, wording: Wording = "drawn") -> Contrast:
    """One prompt whose next word is the name that the last clause leaves out, of names on one side of the split."""
    first, second = pick_names(rng, part)
    order = rng.choice(("ABBA", "BABA"))
    subject, other = (second, first) if order == "ABBA" else (first, second)
    filler = Filler(rng)
    template = ioi_template(rng, wording)
    thing = rng.choice(rng.choice((lexicon.OBJECTS, lexicon.OBJECTS, lexicon.FOODS, (*lexicon.DRINKS, "drink"))))
    for slot, word in (("{X}", first), ("{Y}", second), ("{S}", subject), ("{thing}", thing)):
        template = template.replace(slot, word)
    return Contrast(
        prompt=sentence_case(filler.fill(template)),
        answer=" " + other,
        wrong=" " + subject,
        essential=frozenset({first, second}),
        order=order,
    )


def ioi_document(rng: random.Random) -> str:
    """A training document around one such prompt."""
    contrast = ioi(rng, "train")
    ending = rng.choice(wordings.IOI_ENDINGS).replace("{IO}", contrast.answer[1:]).replace("{S}", contrast.wrong[1:])
    filler = Filler(rng)
    text = contrast.prompt + contrast.answer + filler.fill(ending)
    if rng.random() < 0.25:
        text = filler.fill(rng.choice(wordings.PREAMBLES)) + " " + text
    return text


SUBJECTS: Final = tuple(
    noun
    for noun in dict.fromkeys(lexicon.OBJECTS + lexicon.ANIMALS + lexicon.PROFESSIONS + lexicon.FOODS)
    if plural(noun) != noun
)
ATTRACTORS: Final = tuple(noun for noun in dict.fromkeys(SUBJECTS + lexicon.PLACES) if plural(noun) != noun)


def agreement(
    rng: random.Random,
    part: Part,
    verbs: tuple[tuple[str, str], ...] = wordings.VERB_PAIRS,
    *,
    wording: Wording = "drawn",
    clash: bool | None = None,
    filler: Filler | None = None,
) -> Contrast:
    """One prompt that ends just before a verb, of nouns on one side of the split. With `clash` the noun in between has
    the other number than the subject (None: by chance). A `filler` shared by several prompts gives them all the same
    name, so that no two names meet."""
    while True:
        subject, attractor = rng.choice(SUBJECTS), rng.choice(ATTRACTORS)
        if subject != attractor and noun_pair_part(subject, attractor) == part:
            break
    is_plural = rng.random() < 0.5
    differs = rng.random() < 0.6 if clash is None else clash
    link = rng.choice(wordings.AGREEMENT_LINKS[wording]).split("|")[-1 if is_plural else 0]
    head = plural(subject) if is_plural else subject
    between = plural(attractor) if is_plural != differs else attractor
    before_head, before_between = rng.choice(wordings.HEAD_ADJECTIVES), rng.choice(wordings.HEAD_ADJECTIVES)
    template = (
        f"{rng.choice(wordings.AGREEMENT_LEADS[wording])}the {before_head}{head} {link} the {before_between}{between}"
    )
    prompt = sentence_case((filler or Filler(rng)).fill(template))
    singular, many = rng.choice(verbs)
    right, wrong = (many, singular) if is_plural else (singular, many)
    return Contrast(prompt=prompt, answer=" " + right, wrong=" " + wrong, essential=frozenset({head, "the", "The"}))


def agreement_document(rng: random.Random) -> str:
    """A few training sentences with agreement, some with no noun in between."""
    filler = Filler(rng)
    sentences = []
    for _ in range(rng.randint(1, 4)):
        contrast = agreement(rng, "train", filler=filler)
        singular = next(one for one, many in wordings.VERB_PAIRS if contrast.answer[1:] in (one, many))
        subject = contrast.prompt
        if rng.random() < 0.2:
            noun = rng.choice(SUBJECTS)
            subject = "The " + (plural(noun) if contrast.answer[1:] != singular else noun)
        predicate = rng.choice(wordings.PREDICATES[singular])
        if contrast.answer[1:] != singular:
            predicate = predicate.replace("a {color} {object}", "{color} {object.pl}")
        sentences.append(with_articles(subject + contrast.answer + " " + filler.fill(predicate)))
    return " ".join(sentences)

"""Forms of words and the filling of sentence templates. A template is plain English with slots such as `{animal.pl}`
or `{object#1.a}`; this module turns it into a sentence, given a random generator. It holds no sentence of its own."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from scripts.embedded import lexicon

CLASSES: Final[Mapping[str, Sequence[str]]] = {
    "place": lexicon.PLACES,
    "city": lexicon.CITIES,
    "country": tuple(lexicon.CAPITALS),
    "animal": lexicon.ANIMALS,
    "food": lexicon.FOODS,
    "dish": lexicon.DISHES,
    "drink": lexicon.DRINKS,
    "object": lexicon.OBJECTS,
    "person": lexicon.PROFESSIONS,
    "body": lexicon.BODY,
    "nature": lexicon.NATURE,
    "idea": lexicon.ABSTRACT,
    "virtue": lexicon.MASS_ABSTRACT,
    "material": lexicon.MATERIALS,
    "color": lexicon.COLORS,
    "adj": lexicon.ADJECTIVES,
    "feeling": lexicon.FEELINGS,
    "trait": lexicon.TRAITS,
    "adverb": lexicon.ADVERBS,
    "weather": lexicon.WEATHER,
    "day": lexicon.DAYS,
    "month": lexicon.MONTHS,
    "season": lexicon.SEASONS,
    "number": lexicon.NUMBERS[1:],
    "move": lexicon.MOTION_VERBS,
    "do": lexicon.INTRANSITIVE_VERBS,
    "handle": lexicon.HANDLING_VERBS,
    "dine": lexicon.EATING_VERBS,
    "mind": lexicon.MENTAL_VERBS,
    "treat": lexicon.PERSON_VERBS,
    "roam": lexicon.ANIMAL_VERBS,
    "look": lexicon.LOOK_VERBS,
    "name": lexicon.NAMES,
}
"""What each class of slot may be filled with."""

_SLOT: Final = re.compile(r"\{(?P<name>[A-Za-z]+\d?)(?:#(?P<key>\d))?(?:\.(?P<form>[a-z]+))?\}")
_ARTICLE: Final = re.compile(r"\b([Aa]) (?=[aeiou])(?!uni|use|one|eu)")
_MALE_FORMS: Final = {"he": "he", "him": "him", "his": "his", "himself": "himself"}
_FEMALE_FORMS: Final = {"he": "she", "him": "her", "his": "her", "himself": "herself"}


def plural(noun: str) -> str:
    """The plural of a countable noun."""
    if noun in lexicon.IRREGULAR_PLURALS:
        return lexicon.IRREGULAR_PLURALS[noun]
    if noun.endswith("man"):
        return noun[:-3] + "men"
    if noun.endswith(("s", "x", "ch", "sh", "potato", "tomato", "hero", "mosquito", "volcano")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def third_person(verb: str) -> str:
    """The form of `verb` after "she" in the present tense."""
    if verb.endswith(("s", "x", "ch", "sh", "o", "z")):
        return verb + "es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + "s"


def past(verb: str) -> str:
    """The past tense of `verb`."""
    if verb in lexicon.IRREGULAR:
        return lexicon.IRREGULAR[verb][0]
    if verb in lexicon.DOUBLING:
        return verb + verb[-1] + "ed"
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    return verb + "ed"


def participle(verb: str) -> str:
    """The past participle of `verb`."""
    return lexicon.IRREGULAR[verb][1] if verb in lexicon.IRREGULAR else past(verb)


def gerund(verb: str) -> str:
    """The -ing form of `verb`."""
    if verb == "lie":
        return "lying"
    if verb in lexicon.DOUBLING:
        return verb + verb[-1] + "ing"
    if verb.endswith("e") and not verb.endswith(("ee", "ye")):
        return verb[:-1] + "ing"
    return verb + "ing"


_FORMS: Final = {"pl": plural, "s": third_person, "past": past, "done": participle, "ing": gerund}


def with_articles(text: str) -> str:
    """`text` with "a" made "an" before a vowel."""
    return _ARTICLE.sub(r"\1n ", text)


def sentence_case(text: str) -> str:
    """`text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


@dataclass(slots=True)
class Filler:
    """Fills the slots of templates and remembers the numbered ones, so that a story keeps to its things and people."""

    rng: random.Random
    people: tuple[str, ...] = ()
    """The names that `{A}`, `{B}` and their pronouns (`{he}`, `{he2}`) stand for."""
    memory: dict[tuple[str, str], str] = field(default_factory=dict)
    """The words chosen for numbered slots."""

    def word(self, name: str, key: str | None) -> str:
        """The base form of a word of class `name`; the same one each time for the same `key`."""
        if key is None:
            return self.rng.choice(CLASSES[name])
        if (name, key) not in self.memory:
            taken = {word for (other, _), word in self.memory.items() if other == name}
            self.memory[name, key] = self.rng.choice([word for word in CLASSES[name] if word not in taken])
        return self.memory[name, key]

    def fill(self, template: str) -> str:
        """`template` with every slot filled and articles agreeing."""
        return with_articles(_SLOT.sub(self._slot, template))

    def _slot(self, match: re.Match[str]) -> str:
        name, key, form = match["name"], match["key"], match["form"]
        if name in {"A", "B"}:
            return self.people["AB".index(name)]
        person = int(name[-1]) - 1 if name[-1].isdigit() else 0
        pronoun = name.rstrip("12")
        if pronoun.lower() in _MALE_FORMS:
            forms = _FEMALE_FORMS if self.people[person] in lexicon.FEMALE_NAMES else _MALE_FORMS
            chosen = forms[pronoun.lower()]
            return sentence_case(chosen) if pronoun[0].isupper() else chosen
        word = self.word(name, key)
        return _FORMS[form](word) if form else word

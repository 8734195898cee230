"""Short stories, descriptions and facts in plain English, made from templates: the breadth of the training text. The
sentences that the model is measured on are not here but in `behaviours`."""

from __future__ import annotations

import random
from typing import Final

from scripts.embedded import lexicon
from scripts.embedded.behaviours import name_pair_part, pick_names
from scripts.embedded.grammar import Filler, plural, sentence_case, with_articles
from scripts.embedded.wordings import Part

# One person (A) and a thing (object#1) somewhere (place#1).
SOLO_OPENINGS: Final = (
    "One day {A} found a {adj} {object#1} in the {place#1}.",
    "{A} lived near the {place#1} and had a {color} {object#1}.",
    "{A} was a {trait} {person} who owned a {object#1}.",
    "On {day} {A} {move.past} to the {place#1} to buy a {object#1}.",
    "In {month} {A} lost the {adj} {object#1} somewhere in the {place#1}.",
    "When {A} was young, {he} wanted a {object#1} more than anything else.",
    "{A} woke up early and {move.past} to the {place#1}. There was a {object#1} on the ground.",
    "It was a {weather} morning, and {A} was looking for {his} {object#1}.",
    "Every {season}, {A} took a {object#1} to the {place#1}.",
    "{A} got a {object#1} from {his} {person} as a gift.",
    "Once there was a {person} called {A} who made a {object#1} out of {material}.",
)
SOLO_MIDDLES: Final = (
    "{He} {handle.past} the {object#1} and {handle.past} it again.",
    "{He} put the {object#1} under the {object}.",
    "The {object#1} was {adj} and {adj}.",
    "The {object#1} was made of {material}, and it was very {adj}.",
    "{He} was {feeling} because the {object#1} was {adj}.",
    "{A} {mind.past} that the {object#1} belonged to the {person}.",
    "{He} did not know what to do with it.",
    "Then {he} {move.past} from the {place#1} to the {place}.",
    "A {trait} {person} came by and asked about the {object#1}.",
    '"What a {adj} {object#1}!" said the {person}.',
    '"Where did you find it?" asked the {person}.',
    '"I will never sell this {object#1}," said {A}.',
    "{He} looked at {himself} in the mirror and {do.past}.",
    "{His} {body.pl} were cold, so {he} went inside.",
    "{He} could not {handle} it, because it was too {adj}.",
    "{A} thought about {virtue} and {virtue}.",
    "After that, {he} {do.past} for a long time.",
    "{He} ate {dish} with {dish} and drank some {drink}.",
    "There were {number} {object.pl} and {number} {animal.pl} in the {place#1}.",
    "The {nature} was {adj}, and the {animal.pl} were {feeling}.",
    "{He} {handle.past} the {object} {adverb}.",
    "{A} had never been so {feeling}.",
    "{He} has {handle.done} the {object#1} many times.",
    "{He} was {handle.ing} the {object} while the {person} was {do.ing}.",
)
SOLO_ENDINGS: Final = (
    "In the end, {A} gave the {object#1} to a {person}.",
    "At night {he} went home and slept well.",
    "Since that day, {A} has always kept the {object#1}.",
    "That is how {A} learned about {virtue}.",
    "And so {he} was never {feeling} again.",
    "{He} sold it for {number} coins.",
    "The {person} was {feeling}, and {A} was {feeling} too.",
)

# Two people; the second clause of a pair never leaves the reader in doubt who is meant.
PAIR_OPENINGS: Final = (
    "{A} and {B} were {trait} friends who lived in {city}.",
    "{A} met {B} at the {place#1} on {day}.",
    "{A} is a {person}, and {B} is a {person}.",
    "{A} wanted to {move} to the {place#1}, but {B} wanted to stay at home.",
    "One {season} {A} and {B} {move.past} to the {place#1} together.",
    "{A} was {feeling}, but {B} was not.",
)
PAIR_MIDDLES: Final = (
    '"Do you like the {object#1}?" asked {A}. "Yes, it is very {adj}," said {B}.',
    '"I am {feeling}," said {A}. "Why are you {feeling}?" asked {B}.',
    '"Let us go to the {place}," said {B}. {A} agreed and {handle.past} the {object#1}.',
    "{A} helped {B}, and {B} helped {A}.",
    "{A} {treat.past} {B}, and then they {move.past} to the {place#1}.",
    "{A} gave {B} a {adj} {object#1}.",
    "{B} showed {A} the {object#1}, and {A} was {feeling}.",
    "{B} told {A} that the {person} had {handle.done} the {object#1}.",
    "{A} did not {mind} what {B} said about {virtue}.",
    "{A} {handle.past} a {object}, but {B} {handle.past} a {object}.",
    "They {dine.past} {dish} and {food.pl} in the {place#1}.",
    "They {do.past} and {do.past} until it was dark.",
    "They saw {number} {animal.pl} near the {nature}.",
    "{B} was more {trait} than {A}.",
    "Both of them were {feeling}, so they {do.past} {adverb}.",
    "{A} {mind.past} the {idea}, and {B} {mind.past} it too.",
)
PAIR_ENDINGS: Final = (
    "Then they went home.",
    "In the end {A} forgave {B}.",
    "{A} and {B} have been friends since that {season}.",
    "At last {B} said goodbye, and {A} was alone in the {place#1}.",
    "They promised to meet again in {month}.",
    "{A} will always remember {B}.",
)

ANIMAL_SENTENCES: Final = (
    "The {adj} {animal#1} {roam.past} in the {place}.",
    "A {animal#1} and a {animal#2} lived in the {place#1}.",
    "The {animal#1} was {feeling}, because it was {adj} and {adj}.",
    "The {animal#1} can {roam}, but it cannot {mind}.",
    "The {animal#2} was {roam.ing} near the {nature} when the {animal#1} saw it.",
    '"Who are you?" asked the {animal#1}. "I am the {animal#2}," said the {animal#2}.',
    '"Please do not eat me," said the {animal#2}. "I am too small."',
    "The {animal#1} {handle.past} a {food} and ate it {adverb}.",
    "Its {body.pl} were {color}, and its {body} was {adj}.",
    "Then the {animal#1} and the {animal#2} became friends.",
    "The {person} {treat.past} the {animal#1} and gave it some {drink}.",
    "The {animal#2} was {trait}, but the {animal#1} was {trait}.",
    "So the {animal#1} learned that {virtue} is better than {virtue}.",
)

WORLD_SENTENCES: Final = (
    "It was a {weather} {day} in {month}.",
    "The {nature} over the {place} was {color} and {adj}.",
    "In {season}, the {animal.pl} {roam} in the {place}.",
    "{city} is a {adj} city with {number} {place.pl} and a {adj} {place}.",
    "People in {country} eat {dish} and {food.pl}, and they drink {drink}.",
    "The {person} of {city} {handle.past} {number} {object.pl} made of {material}.",
    "There is a {adj} {object} in the {place}, and there are {number} {object.pl} on the {object}.",
    "We {move} to the {place} every {day}.",
    "You should {handle} the {object} before you {handle} the {object}.",
    "They {mind} that {virtue} is more important than {virtue}.",
    "This {object} is {adj}, but those {object.pl} are {adj}.",
    "A {adj} {object} costs more than a {adj} {object}.",
    "If the {nature} is {adj}, the {person.pl} {do}.",
    "The {person.pl} were {do.ing} while the {animal.pl} were {roam.ing}.",
    "Some {person.pl} are {trait}, and some {person.pl} are {trait}.",
    "Nobody knows the {idea} about the {adj} {place}.",
    "He has {handle.done} the {object}, and she has {handle.done} the {food}.",
    "The {idea} of the {person} was {adj}.",
    "To make a {food} you need {dish}, {dish} and {drink}.",
    "The {dish} {look.s} {adj}, but the {drink} {look.s} {adj}.",
    "My {person} always {handle.s} the {object} {adverb}.",
    "Their {person.pl} never {handle} the {object.pl}.",
    "Our {person} was born in {month} in {city}.",
    "Where is the {object}? It is under the {object} in the {place}.",
    "How many {animal.pl} are there? There are {number}.",
)


# Words that the held-out wordings are made of, in other company: what is held out is the wording, not the words.
PLAIN_SENTENCES: Final = (
    "The {person} decided to {handle} the {object}.",
    "{A} decided to stay in the {place}.",
    "The {person} explained the {idea} very {adverb}.",
    "{A} explained why the {object} was {adj}.",
    "During the {idea}, it was {weather} and {weather}.",
    "During the {season} the {animal.pl} {roam} in the {place}.",
    "Since {month} the {person} has been {feeling}.",
    "Since it was {weather}, {A} {do.past} in the {place}.",
    "Long ago there was a {adj} {place} near {city}.",
    "Long ago the {person.pl} {handle.past} the {object.pl}.",
    "Finally the {person} {do.past}.",
    "Finally {A} {move.past} to the {place}.",
    "Some hours later the {nature} was {adj}.",
    "Then, the {animal} {roam.past} for some hours.",
    "At the {place} there was a {adj} {object}.",
    "At the {place} {A} {handle.past} a {object}.",
    "{A} traveled to {country} and stood beside the {nature}.",
    "The {person} sailed to the {place} and saw the {nature}.",
    "{A} threw the {object} into the {nature}.",
    "{A} hid behind the {object} and made some {drink}.",
    "The {object} is below the {object}, opposite the {place}.",
    "There is a {place} across from the {place}.",
    "You will find the {object} below the {object}.",
    "{A} sat opposite the {person}.",
    "{A} lives across from the {place} in {city}.",
    "I found a {object} behind the {object}.",
    "A {object} came with the {object}.",
    "We were told to {handle} the {object}.",
    "{A} was told that it was {weather}.",
    "In the morning {A} {handle.past} the {object}.",
    "In the morning it was {weather}.",
    "Perhaps it is {weather} in {city}.",
    "Perhaps {A} will {handle} the {object}.",
    "{A} bought some {dish} and gave it away.",
)


def _sentences(filler: Filler, templates: tuple[str, ...], count: int) -> list[str]:
    return [sentence_case(filler.fill(one)) for one in filler.rng.sample(templates, count)]


def solo_story(rng: random.Random) -> str:
    """A story about one person and a thing."""
    filler = Filler(rng, people=(rng.choice(lexicon.NAMES),))
    parts = _sentences(filler, SOLO_OPENINGS, 1) + _sentences(filler, SOLO_MIDDLES, rng.randint(2, 6))
    return " ".join(parts + _sentences(filler, SOLO_ENDINGS, rng.randint(0, 1)))


def pair_story(rng: random.Random, part: Part) -> str:
    """A story about two people whose names are on the asked side of the split."""
    filler = Filler(rng, people=pick_names(rng, part))
    parts = _sentences(filler, PAIR_OPENINGS, 1) + _sentences(filler, PAIR_MIDDLES, rng.randint(2, 5))
    return " ".join(parts + _sentences(filler, PAIR_ENDINGS, rng.randint(0, 1)))


def animal_story(rng: random.Random) -> str:
    """A fable about two animals."""
    return " ".join(_sentences(Filler(rng), ANIMAL_SENTENCES, rng.randint(3, 7)))


def world_text(rng: random.Random) -> str:
    """Unconnected plain sentences."""
    return " ".join(_sentences(Filler(rng), WORLD_SENTENCES, rng.randint(2, 6)))


def plain_text(rng: random.Random) -> str:
    """Unconnected sentences about one person and many things."""
    filler = Filler(rng, people=(rng.choice(lexicon.NAMES),))
    return " ".join(_sentences(filler, PLAIN_SENTENCES, rng.randint(2, 5)))


def workplace_story(rng: random.Random) -> str:
    """A person at the place of their work; profession and place always fit."""
    person, place = rng.choice(tuple(lexicon.WORKPLACES.items()))
    filler = Filler(rng, people=(rng.choice(lexicon.NAMES),))
    templates = (
        f"{{A}} is a {person} and works at the {place}.",
        f"The {person} went to the {place} early in the morning.",
        f"A good {person} is {{trait}} and {{trait}}.",
        f"There were {{number}} {plural(person)} at the {place} on {{day}}.",
        f"The {person} {{handle.past}} the {{object}} at the {place}.",
    )
    chosen = rng.sample(templates[1:], rng.randint(1, 4))
    return " ".join(sentence_case(filler.fill(one)) for one in (templates[0], *chosen))


def _kinds() -> tuple[tuple[str, str], ...]:
    groups = (
        (lexicon.ANIMALS, "animal"),
        (lexicon.COLORS, "color"),
        (lexicon.DRINKS, "drink"),
        (lexicon.MATERIALS, "material"),
        (lexicon.MONTHS, "month"),
        (lexicon.DAYS, "day"),
        (lexicon.CITIES, "city"),
        (tuple(lexicon.CAPITALS), "country"),
        (lexicon.NUMBERS, "number"),
        (lexicon.SEASONS, "season"),
    )
    return tuple((word, group) for words, group in groups for word in words)


KINDS: Final = _kinds()


def _fact(rng: random.Random) -> str:
    """One true sentence."""
    kind = rng.randrange(7)
    if kind == 0:
        country, capital = rng.choice(tuple(lexicon.CAPITALS.items()))
        return rng.choice(
            (f"The capital of {country} is {capital}.", f"{capital} is the capital of {country}.",
             f"{capital} is a city in {country}."),
        )  # fmt: skip
    if kind == 1:
        country, language = rng.choice(tuple(lexicon.LANGUAGES.items()))
        return rng.choice((f"The people in {country} speak {language}.", f"{language} is spoken in {country}."))
    if kind == 2:
        pair = rng.sample(rng.choice(lexicon.OPPOSITES), 2)
        return f"The opposite of {pair[0]} is {pair[1]}."
    if kind == 3:
        word, group = rng.choice(KINDS)
        return f"{sentence_case(word)} is a {group}." if group != "animal" else f"A {word} is an animal."
    if kind == 4:
        animal, young = rng.choice(tuple(lexicon.YOUNG.items()))
        return f"A young {animal} is called a {young}."
    cycle = rng.choice((lexicon.DAYS, lexicon.MONTHS, lexicon.NUMBERS))
    start = rng.randrange(len(cycle) - 3)
    run = cycle[start : start + rng.randint(3, 8)]
    if kind == 5:
        return sentence_case(", ".join(run)) + "."
    return f"{sentence_case(run[1])} comes after {run[0]}, and {run[2]} comes after {run[1]}."


def fact_text(rng: random.Random) -> str:
    """A few true sentences."""
    return with_articles(" ".join(_fact(rng) for _ in range(rng.randint(2, 6))))


def introduction(rng: random.Random, part: Part) -> str:
    """Full names met several times, so that a name calls up the word that followed it before."""
    while True:
        first, last, other, other_last = rng.sample(lexicon.NAMES, 4)
        if name_pair_part(first, last) == part == name_pair_part(other, other_last):
            break
    one, two = f"{first} {last}", f"{other} {other_last}"
    templates = (
        f"My name is {one}, and this is my {{person}}, {two}.",
        f"{one} wrote a {{object}} about {two}.",
        f"{two} and {one} were both born in {{city}}.",
        f"Nobody was as {{trait}} as {one}.",
        f"The {{person}} invited {two} to the {{place}}, but {one} came too.",
        f'"Is {one} at home?" asked {two}.',
    )
    return " ".join(_sentences(Filler(rng), templates, rng.randint(2, 5)))

"""The wordings of the behaviours that the embedded model is made for: the parts that training sentences are made
of, and the fixed wordings that training never sees. How they are joined is in `behaviours`."""

from __future__ import annotations

from typing import Final, Literal

Part = Literal["train", "held_out"]
"""Which side of the split a thing belongs to."""

Wording = Literal["drawn", "new", "foreign"]
"""Where a prompt's wording comes from. Drawn: put together at random from the parts that training uses, so many that a
combination hardly ever recurs. New: a fixed wording that training never sees, of words known from such sentences.
Foreign: another such wording, of words that training knows from other sentences only."""

# Indirect object identification. An opening names two people, X and Y; an action makes one of them (S) do something
# to or for the other, whose name comes next. Training wordings are put together from parts, for what is learned from a
# few fixed ones does not carry over to others.
NEW_OPENINGS: Final = (
    "{X} and {Y} were alone in the {place} when it was {weather}, and ",
    "The {place} was {adj} when {X} and {Y} went there. ",
    "After the {idea} at the {place}, {X} met {Y} again. Later ",
    "It was {weather} and {X} was with {Y} in {city}. ",
    "With {number} {object.pl} and a {animal}, {X} and {Y} left {city}. ",
    "{X} thought that {Y} was {trait}, so ",
    "A {trait} {person} took {X} and {Y} to the {place}. There ",
)
NEW_ACTIONS: Final = (
    "{S} {adverb} gave the {adj} {thing} of the {person} to",
    "{S} then handed {number} {adj} {object.pl} to",
    "{S} had bought a {color} {thing} for",
    "{S} has always wanted to sell the {thing} to",
    "{S} walked to the {place} and showed a {thing} to",
    "{S} was {feeling} and sent a {thing} with a letter to",
    "{S} stole the {food} and the {drink} from",
)
FOREIGN_OPENINGS: Final = (
    "Since {X} and {Y} wanted to see the {place}, ",
    "Then, {X} and {Y} were {feeling} at the {place}, and ",
    "During the {idea}, {X} stood beside {Y}. ",
    "At the {place} there was a {idea} for {X} and {Y}. ",
    "{X} traveled to {city} with {Y}. Some hours later ",
    "Long ago {X} and {Y} sailed to the {place}. Finally ",
)
FOREIGN_ACTIONS: Final = (
    "{S} decided to give the {adj} {thing} to",
    "{S} threw a {color} {thing} to",
    "{S} made a {thing} for",
    "{S} explained the {idea} to",
    "{S} bought {dish} and gave it to",
    "{S} hid the {thing} from",
)
CONJUNCTIONS: Final = (
    *("When", "When", "When", "While", "After", "Before", "As", "Once", "Because", "As soon as", "Although", "If"),
    *("Whenever", "The day that", "Not long after", "Just as", "One day when", "Soon after", "Every time"),
)
LEADS: Final = (
    *("", "", "", "One day ", "Yesterday ", "Once ", "On {day} ", "In {month} ", "Last {season} ", "One morning "),
    *("That night ", "Today ", "In {city} ", "The {person} says that ", "I heard that ", "We know that ", "So "),
    *("Last week ", "As always, ", "Many years ago ", "It was {weather} when ", "In the {place}, "),
)
BRIDGES: Final = (
    *(
        "",
        "",
        "",
        "Then ",
        "Later ",
        "Later, ",
        "Afterwards ",
        "So ",
        "But ",
        "In the end ",
        "At last ",
        "Soon ",
        "Now ",
    ),
    *("That day ", "After that, ", "A little later ", "The next day ", "Suddenly ", "After a while ", "At night "),
    *("On {day} ", "Because of this, ", "Before long ", "Once more ", "For that reason ", "In {month} ", "Next, "),
    *("In the meantime ", "When it was {weather}, ", "To be {trait}, ", "As the {person} was {feeling}, ", "There "),
)
TOGETHER: Final = (
    *("{move.past} to the {place}", "went to the {place}", "were at the {place}", "{do.past} in the {place}"),
    *("were {do.ing} near the {place}", "were {feeling}", "were {feeling} and {feeling}", "had a {object}"),
    *("{handle.past} the {object}", "{handle.past} a {adj} {object}", "were {handle.ing} {number} {object.pl}"),
    *("had {handle.done} the {food}", "{mind.past} the {idea}", "lived in {city}", "{dine.past} {dish} and {food.pl}"),
    *("got a {object} from the {person}", "were good friends", "{treat.past} the {person}", "saw a {animal}"),
    *("had a long {idea} about {virtue}", "{move.past} from {city} to {city}", "played with the {animal}"),
    *(
        "were talking about the {idea}",
        "came back from the {place}",
        "tried to {handle} the {object}",
        "had no {drink}",
    ),
    *("worked as {person.pl} in {city}", "wanted to {handle} the {color} {object}", "were looking for the {animal}"),
    *("had to {move} to the {place}", "{do.past} {adverb}", "met", "met at the {place}", "waited for the {person}"),
    *("{look.past} {trait}", "heard the {nature}", "left the {place}", "could not {handle} the {adj} {object}"),
)
APART: Final = (
    *("{X} {treat.past} {Y}", "{X} met {Y}", "{X} was {do.ing} with {Y}", "{X} was sitting next to {Y}", "{X} saw {Y}"),
    *("{X} {do.past} near {Y}", "{X} was more {trait} than {Y}", "{X} was as {feeling} as {Y}", "{X} lived with {Y}"),
    *("the {person} {treat.past} {X} and {Y}", "the {object} belonged to {X} and {Y}", "{X} {move.past} behind {Y}"),
    *("there was a {object} between {X} and {Y}", "nobody {treat.past} {X} or {Y}", "{X} wanted to {treat} {Y}"),
    *("{X} was the {person} and {Y} was the {person}", "{X} had a {object} and {Y} had a {object}"),
    *("{X} was {feeling} but {Y} was {feeling}", "{X} came with {Y}", "the {person} knew both {X} and {Y}"),
    *("{X} heard that {Y} was {feeling}", "{X} {handle.past} the {object} of {Y}", "{X} found {Y} in the {place}"),
)
TIMES: Final = (
    *("", "", "", " together", " in the {place}", " at the {place}", " on {day}", " in {month}", " near the {place}"),
    *(" {adverb}", " at night", " with the {person}", " after the {idea}", " for a long time", " in {city}", " again"),
    *(" before the {idea}", " every {day}", " without the {object}", " because of the {nature}", " by the {nature}"),
)
THINGS: Final = (
    *("a {thing}", "a {thing}", "a {thing}", "the {thing}", "the {thing}", "a {adj} {thing}", "the {adj} {thing}"),
    *("the {color} {thing}", "a {color} {thing}", "some {dish}", "some {drink}", "{number} {object.pl}", "it", "them"),
    *("this {thing}", "that {thing}", "a {thing} and a {object}", "the {thing} from the {place}", "all the {food.pl}"),
    *("the last {thing}", "a very {adj} {thing}", "a {thing} made of {material}", "the {person}'s {thing}", "a letter"),
)
GIVING: Final = ("give", "hand", "offer", "pass", "show", "sell", "send", "lend", "bring", "read", "return", "carry")
BUYING: Final = ("buy", "cook", "find", "repair", "clean", "pick", "build", "write", "paint", "keep", "choose", "get")
TAKING: Final = ("borrow", "get", "take", "steal", "buy", "receive", "collect", "want")
JOINING: Final = ("share", "use", "find", "see", "leave", "fix", "eat")
VERBS: Final = (*GIVING, *BUYING, *TAKING, *JOINING)
"""The verbs of the actions that move a thing from one person to another."""
PLAIN_ACTIONS: Final = (
    *("said {adverb} to", "told the {idea} to", "talked about the {idea} to", "spoke to", "listened to", "waved to"),
    *("smiled at", "looked at", "laughed at", "shouted at", "waited for", "opened the door for", "looked for"),
    *(
        "ran away from",
        "heard the {idea} from",
        "played with",
        "talked with",
        "worked with",
        "danced with",
        "left with",
    ),
    *("sat down beside", "stood next to", "walked behind", "lived near", "thought about", "sang a song to"),
    *("{treat.past}", "{treat.past}", "wanted to {treat}", "began to {treat}", "always {treat.past}", "whispered to"),
)
TRYING: Final = (
    *("wanted to", "had to", "tried to", "began to", "promised to", "forgot to", "agreed to", "was going to"),
    *("did not want to", "was happy to", "was asked to", "hoped to", "could", "could not", "would", "used to"),
)
IOI_ENDINGS: Final = (
    ".",
    ".",
    ". {IO} {treat.past} {S}.",
    ". {IO} smiled and thanked {S}.",
    " in the {place}.",
    " on {day}.",
    ", and {IO} was {feeling}.",
    " because {IO} was {feeling}.",
    " before the {idea}.",
    " and walked home.",
    " {adverb}.",
)
PREAMBLES: Final = (
    "It was a {weather} day.",
    "It was {weather} in {city}.",
    "The {place} was {adj}.",
    "This happened in {month}.",
    "Here is a {adj} story.",
    "The {person} told us this.",
    "Nobody was {feeling} that {season}.",
)

# Subject-verb agreement across another noun: LEAD + "the SUBJECT" + LINK + "the ATTRACTOR" + VERB.
AGREEMENT_LEADS: Final[dict[Wording, tuple[str, ...]]] = {
    "drawn": (
        *("", "", "", "", "today ", "I think that ", "everybody knows that ", "it is true that ", "now ", "look, "),
        *("{name#1} said that ", "they {mind.past} that ", "in {month} ", "on {day} ", "at night ", "we saw that "),
        *(
            "you can see that ",
            "of course ",
            "once ",
            "this year ",
            "as you know, ",
            "in {city}, ",
            "{name#1} knew that ",
        ),
        *("when it is {weather}, ", "the {person} says that ", "here ", "again ", "because ", "and ", "but "),
    ),
    "new": ("yesterday we heard that ", "it seems that ", "in {season} ", "this {season}, "),
    "foreign": ("we were told that ", "in the morning ", "perhaps "),
}
AGREEMENT_LINKS: Final[dict[Wording, tuple[str, ...]]] = {
    "drawn": (
        *(
            "near",
            "behind",
            "beside",
            "with",
            "of",
            "under",
            "by",
            "above",
            "next to",
            "in front of",
            "to",
            "from",
            "for",
        ),
        *(
            "on",
            "against",
            "along",
            "over",
            "close to",
            "far from",
            "on top of",
            "inside",
            "outside",
            "without",
            "about",
        ),
        *("around", "before", "after", "through", "on the side of", "in the middle of", "like", "beyond", "among"),
        *("that belongs to|that belong to", "that stands near|that stand near", "that is under|that are under"),
        *("that we {handle.past} for", "that {name#1} {handle.past} with", "that they {handle.past} near"),
        *("that {handle.past}", "that {treat.past}", "{handle.done} by", "{treat.done} by", "{handle.done} with"),
        *(
            "that the {person} {handle.past} near",
            "that you {handle.past} under",
            "that he took from",
            "that looked like",
        ),
        *("that she {handle.past} before", "{handle.done} near", "of {material} near", "in the {place} behind"),
    ),
    "new": (
        *(
            "that was near|that were near",
            "near the {object} of",
            "that the {person} and the {person} {handle.past} with",
        ),
        *("on the floor behind", "that wanted to {handle}", "for the {person} with"),
    ),
    "foreign": ("below", "opposite", "across from", "that came with", "that I found behind"),
}
HEAD_ADJECTIVES: Final = ("", "", "", "", "{adj} ", "{color} ")
VERB_PAIRS: Final = (
    ("is", "are"),
    ("was", "were"),
    ("has", "have"),
    ("looks", "look"),
    ("seems", "seem"),
    ("does", "do"),
    ("remains", "remain"),
    ("belongs", "belong"),
    ("costs", "cost"),
)
PREDICATES: Final = {
    "is": (
        "{adj}.",
        "very {adj}.",
        "not {adj}.",
        "in the {place}.",
        "made of {material}.",
        "{color}.",
        "here.",
    ),
    "was": (
        "{adj}.",
        "very {adj}.",
        "not {adj}.",
        "in the {place}.",
        "made of {material}.",
        "{color}.",
        "there.",
    ),
    "has": ("been {adj}.", "been in the {place}.", "become {adj}.", "a {color} {object}.", "no {object}."),
    "looks": ("{adj}.", "very {adj}.", "{color}."),
    "seems": ("{adj}.", "very {adj}.", "to be {adj}."),
    "does": ("not look {adj}.", "not belong to the {person}.", "not cost much."),
    "remains": ("{adj}.", "in the {place}."),
    "belongs": ("to the {person}.", "in the {place}.", "to {name#1}."),
    "costs": ("{number} coins.", "a lot of money.", "more than the {object}."),
}

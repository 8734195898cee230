"""`docs/finding-a-graph.md`: the circuit of `docs/finding-a-circuit.md` once more, as an attribution graph.

As there, names are found by asking, sentences are checked, and outputs are made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dst_grpc.client import BeginToken, Client, GraphAnswer, GraphEdgeSelection, make_graph_intervention
from dst_grpc.domain.graph_probe_answers import GraphChange, GraphHeadLoading
from scripts.guide.circuit import FIRST, LAST, PROMPT, REPEATED, SECOND, SWAPPED
from scripts.guide.claims import Claim

TEMPLATE = Path(__file__).with_name("graph.md")
PAGE = "docs/finding-a-graph.md"
TARGETS = (" Mary", " John")
LEAST_EFFECT = 0.5
"""Of the features that are switched off, on the preference."""
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


def names_and_claims(client: Client) -> tuple[dict[str, str], list[Claim]]:
    """The names that the page leaves open, and what it claims."""
    graph, swapped = (_graph(client, prompt) for prompt in (PROMPT, SWAPPED))
    effects, other = _by_name(graph), _by_name(swapped)
    john = graph.names[-1]
    automatic = client.graph(PROMPT, edges=GraphEdgeSelection.NONE).header.targets[0]
    group = sorted(
        (name for name in effects if _repeats(effects, name) and effects[name] > LEAST_EFFECT),
        key=lambda name: -effects[name],
    )
    best = group[0]
    at_first = best.replace(f"@{REPEATED}", f"@{SECOND}")
    of_mary = max((name for name in other if name.startswith("f0.")), key=lambda name: other[name]).partition("@")[0]
    late, copying = (client.edge_heads(graph, name, john).heads for name in (best, at_first))
    free = make_graph_intervention(off=group, first_free_layer=0)
    held, measured = client.intervene_on_graph(graph, [make_graph_intervention(off=group), free])
    names = {
        "PROMPT": PROMPT,
        "SECOND": str(SECOND),
        "REPEATED": str(REPEATED),
        "FEATURE": best,
        "AT_FIRST": at_first,
        "BARE": best.partition("@")[0],
        "OF_MARY": of_mary,
        "GROUP": json.dumps(group),
        "N_GROUP": NUMBERS[len(group)],
        "COPYING": f"`{_most(copying)}`",
        "LATE": f"`{_most(late, layer=3)}`",
    }
    whole = sum(effects.values())
    foreseen, done = (_preference(measured.changes, which) for which in ("predicted", "measured"))
    return names, [
        Claim("the edges into the logits nearly make up the preference", 13.7 < whole < 15.7),
        Claim("behind a begin token the model is less sure", automatic.name == " Mary" and automatic.weight < 0.97),
        Claim("without one it is sure", graph.header.targets[0].weight > 0.99),
        Claim(
            "what matters most is at names and at the last token",
            {row.token for row in graph.top(6)} <= {FIRST, SECOND, REPEATED, LAST},
        ),
        Claim("the first name speaks for itself", _at(effects, FIRST) > 4),
        Claim("the second speaks for itself", _at(effects, SECOND) < -4),
        Claim("the repeated name speaks for Mary, more than any other", _at(effects, REPEATED) > _at(effects, FIRST)),
        Claim("at the words behind it is little", max(abs(_at(effects, token)) for token in range(10, LAST)) < 1),
        Claim("most of the last token's part is error", effects[f"e3@{LAST}"] > max(2, _at(effects, LAST))),
        Claim("the page's list holds the group", {*group} <= {*sorted(effects, key=lambda n: -abs(effects[n]))[:14]}),
        Claim("the feature is active at both Johns and nowhere else", _places(graph, best) == {SECOND, REPEATED}),
        Claim("it speaks against Mary first, and then for her", effects[at_first] < -1 < 1 < effects[best]),
        Claim("another does the same for the other name", other[f"{of_mary}@{REPEATED}"] < -1),
        Claim("from the first place one head of layer 2 carries most", _most(copying).startswith("2.h3")),
        Claim("from the second heads of layer 2 and late ones", {one.layer for one in late[:5]} == {2, 3}),
        Claim("the late heads are those of the other page", _most(late, layer=3) in {"3.h1", "3.h3"}),
        Claim("held, the run does what the edges say", all(abs(c.predicted - c.measured) < 1e-3 for c in held.changes)),
        Claim("free, the preference is almost gone", 0 < whole + done < 2),
        Claim("and the graph foresees somewhat more than half of it", 0.5 < foreseen / done < 0.7),
    ]


def _graph(client: Client, prompt: str) -> GraphAnswer:
    return client.graph(prompt, targets=TARGETS, begin_token=BeginToken.AS_GIVEN, edges=GraphEdgeSelection.WHOLE)


def _by_name(graph: GraphAnswer) -> dict[str, float]:
    """The effect of every node on the logit of Mary, less that on John's."""
    mary, john = graph.adjacency[-2:]
    return dict(zip(graph.names, (mary - john).tolist(), strict=True))


def _at(effects: Mapping[str, float], token: int) -> float:
    """The effect of all features at a token."""
    return sum(effect for name, effect in effects.items() if name.startswith("f") and name.endswith(f"@{token}"))


def _repeats(effects: Mapping[str, float], name: str) -> bool:
    """Whether a node is a feature of layer 0 at the repeated name that is active where the name first stands, too."""
    bare, _, token = name.partition("@")
    return bare.startswith("f0.") and token == str(REPEATED) and f"{bare}@{SECOND}" in effects


def _places(graph: GraphAnswer, feature: str) -> set[int]:
    bare = feature.partition("@")[0]
    return {row.token for row in graph.nodes if row.name.partition("@")[0] == bare}


def _most(heads: Sequence[GraphHeadLoading], layer: int | None = None) -> str:
    """The head, of a layer if that is given, that the largest part passes through."""
    allowed = (one for one in heads if layer in {None, one.layer})
    found = max(allowed, key=lambda one: abs(one.through))
    return f"{found.layer}.h{found.head}"


def _preference(changes: Sequence[GraphChange], which: str) -> float:
    """By how much Mary's logit changes, less that of John's."""
    mary, john = (float(getattr(one, which)) for one in changes)
    return mary - john

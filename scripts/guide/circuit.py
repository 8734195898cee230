"""`docs/finding-a-circuit.md`: its names are found by asking, its sentences are checked, its outputs are made again.

The page's prose stands in `circuit.md`, with the names of nodes left open. Whatever the prose claims about the model
is a `Claim` here: a model for which one does not hold needs another page, and the script says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dst_grpc.cli._explain import explain_request_of
from dst_grpc.cli._facts import NodeRow, groups_of, rows_of, target_of, token_sums
from dst_grpc.client import Client, RunExplanation, TopKGroup
from scripts.guide.claims import Claim

TEMPLATE = Path(__file__).with_name("circuit.md")
PAGE = "docs/finding-a-circuit.md"
PROMPT = "When Mary and John went to the store, John gave a drink to"
SWAPPED = "When Mary and John went to the store, Mary gave a drink to"
FIRST, SECOND, REPEATED, LAST = 1, 3, 9, 13
"""Positions of the two names, of the one that stands there again, and of the last token."""
SHARE_OF_LATE = 0.5
"""A late head is one with at least this share of the largest effect among them."""


def names_and_claims(client: Client) -> tuple[dict[str, str], list[Claim]]:
    """The names that the page leaves open, and what it claims."""
    base, rows = _explained(client, PROMPT, " Mary", " John")
    copier = _foremost(rows, reads=FIRST, sign=1)
    rival = _foremost(rows, reads=SECOND, sign=-1)
    later = [row for row in rows if row.is_head and row.positions[-1] in range(REPEATED, LAST) and row.value > 0]
    late = [row for row in later if row.value >= SHARE_OF_LATE * later[0].value]
    late_heads = sorted({_head(row) for row in late})
    carrier = next(row for row in late if row.positions[-1] != REPEATED)
    traced, sources = _explained(client, PROMPT, " Mary", " John", trace=[carrier.text])
    source = next(row for row in sources if row.is_head and row.positions[-1] == REPEATED)
    names = {
        "PROMPT": PROMPT,
        "SWAPPED": SWAPPED,
        "COPIER": _head(copier),
        "RIVAL": _head(rival),
        "LATE": " ".join(f"--ablate {head}" for head in late_heads),
        "LATE_HEADS": " and ".join(f"`{head}`" for head in late_heads),
        "REPEATED": str(REPEATED),
        "CARRIER": carrier.text,
        "SOURCE": source.text,
        "SOURCE_HEAD": _head(source),
        "SOURCE_LAYER": str(source.index.layer_index),
        "LAST_LAYER": str(max(row.index.layer_index or 0 for row in rows)),
        "BEHIND": str(carrier.positions[-1]),
        "LAST": str(LAST),
    }

    _, swapped = _explained(client, SWAPPED, " John", " Mary")
    by_node = {row.text: row.value for row in swapped}
    whole = target_of(base) or 0.0
    without_name = _ablated(client, [f"emb@{REPEATED}"])
    without_late = _ablated(client, late_heads)
    last_layer = max(row.index.layer_index or 0 for row in rows)
    origin, _ = _explained(client, PROMPT, " Mary", " John", trace=[carrier.text, source.text])
    claims = [
        Claim("the model prefers the name that stands once, by far", whole > 5),
        Claim(
            "two heads read one name each and write it",
            copier.positions == (LAST, FIRST) and _head(rival) != _head(copier),
        ),
        Claim("the head that reads the first name promotes it", copier.promotes[0].token.strip() == "Mary"),
        Claim("the head that reads the second name promotes it", rival.promotes[0].token.strip() == "John"),
        Claim(
            "they read the same positions when the subject is the other one", {copier.text, rival.text} <= set(by_node)
        ),
        Claim("the first then works against the answer", by_node.get(copier.text, 0.0) < -abs(copier.value) / 2),
        Claim("the second then works for the answer", by_node.get(rival.text, 0.0) > abs(rival.value) / 2),
        Claim("without the repeated name the preference turns over", without_name < 0),
        Claim(
            "the late heads are of the last layer", {head.partition(".")[0] for head in late_heads} == {str(last_layer)}
        ),
        Claim("what a late head demotes first is the wrong name", carrier.demotes[0].token.strip() == "John"),
        Claim("without the late heads at least half of the preference is gone", without_late < whole / 2),
        Claim("what the late head fetches came from the repeated name", _foremost_token(traced) == REPEATED),
        Claim("it was brought there by a head of an earlier layer", (source.index.layer_index or 0) < last_layer),
        Claim(
            "the heads that bring it are of the copying heads' layer",
            source.index.layer_index == copier.index.layer_index,
        ),
        Claim("a part of the answer lies at the last token", token_sums(base, _group())[LAST] > whole / 10),
        Claim("and that head took it from the repeated name itself", _foremost_token(origin) == REPEATED),
    ]
    behind = carrier.positions[-1]
    return names, [*claims, *_claims_of_patching(client, _place(source), _place(copier), _place(rival), behind)]


def _claims_of_patching(
    client: Client, source: tuple[int, int], copier: tuple[int, int], rival: tuple[int, int], behind: int
) -> list[Claim]:
    """What the page claims about patched runs, given the layer and head of three heads."""
    metric: dict[str, Any] = {"target": " Mary", "distractor": " John"}
    at_once = client.patch(PROMPT, SWAPPED, nodes=["head", "mlp_out"], all_positions=True, **metric)
    apart = client.patch(PROMPT, SWAPPED, nodes=["head", "resid_pre"], **metric)
    estimated = client.attribute(PROMPT, SWAPPED, nodes=["head", "mlp_out"], **metric)
    heads, resid = apart["head"].recovery, apart["resid_pre"].recovery
    exact, estimate = at_once["head"].metric - at_once.base, np.asarray(estimated["head"])
    mlp, mlp_estimate = at_once["mlp_out"], np.asarray(estimated["mlp_out"])
    foremost = [set(np.argsort(np.abs(each), axis=None)[-4:].tolist()) for each in (exact, estimate)]
    layer = source[0]
    return [
        Claim(
            "up to the layer of those heads all lies at the repeated name", resid[: layer + 1, REPEATED].min() > 0.98
        ),
        Claim("a part of it then lies behind", resid[layer + 1, behind] > 0.3),
        Claim("the heads bring it to the word behind", heads[(*source, behind)] > 0.1),
        Claim(
            "at the last token the copying heads make no difference",
            max(abs(heads[(*one, LAST)]) for one in (source, copier, rival)) < 0.02,
        ),
        Claim("the last layer's heads matter at the last token alone", np.abs(heads[-1, :, :LAST]).max() < 0.02),
        Claim("attribution names the same four heads", foremost[0] == foremost[1]),
        Claim("but makes them smaller, the source by a third", 0.6 < estimate[source] / exact[source] < 0.73),
        Claim("the MLP of layer 0 turns the answer over", mlp.metric[0] < 0),
        Claim("and attribution sees half of it", 0.45 < mlp_estimate[0] / (mlp.metric[0] - at_once.base) < 0.65),
    ]


def _place(row: NodeRow) -> tuple[int, int]:
    """Layer and head."""
    layer, head = _head(row).split(".h")
    return int(layer), int(head)


def _explained(
    client: Client, prompt: str, target: str, distractor: str, trace: list[str] | None = None
) -> tuple[RunExplanation, list[NodeRow]]:
    request = explain_request_of(prompt, target=[target], distractor=[distractor], trace=trace)
    run = client.explain_request(request).runs[0]
    return run, rows_of(run, "direction_write")


def _ablated(client: Client, nodes: list[str]) -> float:
    request = explain_request_of(PROMPT, target=[" Mary"], distractor=[" John"], ablate=nodes)
    return target_of(client.explain_request(request).runs[1]) or 0.0


def _foremost(rows: list[NodeRow], *, reads: int, sign: int) -> NodeRow:
    return max(
        (row for row in rows if row.is_head and row.positions == (LAST, reads)), key=lambda row: sign * row.value
    )


def _foremost_token(run: RunExplanation) -> int:
    return int(np.abs(token_sums(run, _group())).argmax())


def _group() -> TopKGroup:
    (group,) = groups_of(explain_request_of(PROMPT, target=[" Mary"]))
    return group


def _head(row: NodeRow) -> str:
    return row.text.partition("@")[0]

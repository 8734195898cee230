"""Self-contained HTML report of an explanation; makes no network requests.

Skeleton, style and script are in the folder `page`; here they are combined with the data. The page's content security
policy permits only this style and this script, by their digests.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

import numpy as np

from dst_grpc.cli._facts import (
    EFFECTS,
    NodeRow,
    ablations_of,
    changes_of,
    completeness_of,
    decimals_for,
    group_title,
    groups_of,
    path_of,
    question_of,
    residuals_of,
    rows_of,
    says_again,
    target_of,
    token_sums,
)
from dst_grpc.cli._guesses import SMALLEST_SHARE, changed_guesses, guesses_of, guessing_at, hint_of
from dst_grpc.client import ExplainRequest, Explanation, LossFnName, RunExplanation, TokenScore

SMALLEST_ATTENTION = 0.005
"""Attention below which a cell would be blank."""
GUESSES = 10
CHANGES = 8
TOKENS = 4
"""Scored tokens to show of each node."""


def page(request: ExplainRequest, explanation: Explanation, attention: Mapping[tuple[int, int], np.ndarray]) -> str:
    """The page, as HTML.

    Args:
        request: The request; of two runs, the second is the first with an ablation.
        explanation: The answer.
        attention: Attention [T, U] of the heads to show, by layer and head.
    """
    return self_contained("page", page_facts(request, explanation, attention))


def self_contained(script_name: str, facts: Mapping[str, Any]) -> str:
    """A page of the common skeleton and style, with a script of the folder, upon `dom.js`, and the data that it draws.

    *facts* are JSON values, among them "title".
    """
    folder = files("dst_grpc.cli") / "page"
    names = ("page.html", "page.css", "dom.js", f"{script_name}.js")
    skeleton, style, *scripts = ((folder / name).read_text(encoding="utf-8") for name in names)
    script = "".join(scripts)
    parts = {
        "title": html.escape(facts["title"]),
        "style": style,
        "script": script,
        "style_digest": _digest(style),
        "script_digest": _digest(script),
        "data": script_safe(facts),
    }
    # All at once, so that no content is mistaken for a placeholder.
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], skeleton)


def script_safe(value: Any) -> str:
    """JSON that is safe in a script element: no text in it can end the element or open a comment."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def page_facts(
    request: ExplainRequest, explanation: Explanation, attention: Mapping[tuple[int, int], np.ndarray]
) -> dict[str, Any]:
    """The data of the page's script."""
    run, *others = explanation.runs
    return {
        "title": title_of(request, run),
        "model": run.header.model,
        "question": question_of(request.runs[0]),
        "target": short(target_of(run)),
        "decimals": decimals_for([target_of(run) or 0.0]),
        "hint": hint_of(request, run),
        "path": path_of(request.runs[0]),
        "tokens": run.header.token_strings,
        "guesses": [
            (guess.token, short(guess.share)) for guess in guesses_of(run)[:GUESSES] if guess.share >= SMALLEST_SHARE
        ],
        "after": guessing_at(run),
        "comparisons": [_comparison(request, run, other, i) for i, other in enumerate(others, start=1)],
        "groups": [_group(request, run, place) for place in range(len(groups_of(request)))],
        "attention": {
            f"{layer}.h{head}": [
                (int(t), int(u), round(float(probabilities[t, u]), 3))
                for t, u in np.argwhere(probabilities >= SMALLEST_ATTENTION)
            ]
            for (layer, head), probabilities in attention.items()
        },
        "footer": f"Made by dst-grpc with {explanation.trailer.provenance.model}.",
    }


def title_of(request: ExplainRequest, run: RunExplanation) -> str:
    """The page's title: its question."""
    asked = request.runs[0]
    prompt = "".join(run.header.token_strings)
    loss = asked.loss_fn_config
    if asked.trace_config is not None:
        return f"What makes {path_of(asked)[-1]}?"
    if loss is None or loss.name is LossFnName.ZERO:
        return f"{prompt} ..."
    target, distractor = ("".join(tokens[:1]).strip() for tokens in (loss.target_tokens, loss.distractor_tokens))
    return f"{prompt} ... why {target}{f' and not {distractor}' if distractor else ''}?"


def _group(request: ExplainRequest, run: RunExplanation, place: int) -> dict[str, Any]:
    group = groups_of(request)[place]
    rows = rows_of(run, group.group_id)
    title, about = group_title(run, group.group_id)
    return {
        "id": group.group_id,
        "title": title,
        "about": about,
        "signed": group.group_id in EFFECTS,
        "decimals": decimals_for(row.value for row in rows),
        "sums": [] if says_again(group) else [short(value) for value in token_sums(run, group).tolist()],
        "completeness": completeness_of(request.runs[0], run, group.group_id),
        "residuals": [
            (one.layer_index, *map(short, (one.total, one.latents, one.error, one.decoder_bias, one.listed)))
            for one in residuals_of(run, group.group_id)
        ],
        "rows": [_row(row) for row in rows],
    }


def _row(row: NodeRow) -> dict[str, Any]:
    layer, number = row.index.layer_index, row.index.tensor_indices[-1]
    kinds = (
        "layer",
        "attention_head",
        "attention_autoencoder_latent",
        "mlp_neuron",
        "mlp_autoencoder_latent",
        "autoencoder_latent",
        "autoencoder_error",
    )
    kind = kinds.index(row.index.node_type) if row.index.node_type in kinds else len(kinds)
    facts: dict[str, Any] = {
        "node": row.text,
        "order": (-1 if layer is None else layer, kind, -1 if number is None else number),
        "at": row.positions,
        "value": short(row.value),
        "promotes": _texts(row.promotes),
        "demotes": _texts(row.demotes),
        "excited": _texts(row.excited_by),
    }
    if row.comes_from:
        facts["from"] = row.comes_from
    return facts | {"head": f"{layer}.h{number}"} if row.is_head else facts


def _comparison(request: ExplainRequest, before: RunExplanation, after: RunExplanation, which: int) -> dict[str, Any]:
    was, now = target_of(before), target_of(after)
    return {
        "ablations": ablations_of(request.runs[which]),
        "question": question_of(request.runs[which]),
        "before": short(was),
        "after": short(now),
        "decimals": decimals_for((was or 0.0, now or 0.0)),
        "guesses": [
            (token, short(first), short(second))
            for token, first, second in changed_guesses(before, after, CHANGES)
            if max(first, second) >= SMALLEST_SHARE
        ],
        "groups": [_changes(before, after, g.group_id) for g in groups_of(request) if g.group_id in EFFECTS],
    }


def _changes(before: RunExplanation, after: RunExplanation, group_id: str) -> dict[str, Any]:
    changes = changes_of(before, after, group_id, CHANGES)
    return {
        "title": group_title(before, group_id)[0],
        "decimals": decimals_for(max(abs(change.row.value), abs(change.after)) for change in changes),
        "rows": [
            {
                "node": change.row.text,
                "at": change.row.positions,
                "before": short(change.row.value),
                "after": short(change.after),
            }
            for change in changes
        ],
    }


def _texts(scores: Iterable[TokenScore]) -> list[str]:
    return [score.token for score in scores][:TOKENS]


def short(value: float | None) -> float | None:
    """A number with as many digits as a picture can show; None if it is not finite, which JSON lacks."""
    return None if value is None or not np.isfinite(value) else float(f"{value:.5g}")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

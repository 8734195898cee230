"""`dst-grpc attribute`: how much a metric depends on each node, edge or token, to first order, as maps and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from dst_grpc.cli import _arguments as arguments
from dst_grpc.cli._console import ModelOption, ServerOption, TimeoutOption, console, print_json_line
from dst_grpc.cli._facts import decimals_for, number_text
from dst_grpc.cli._heat_maps import SITES, Heat, heat_tables, sites_of
from dst_grpc.cli._pairs import CleanArgument, CorruptArgument, NoisingOption, PairsOption, check_asked, read_pairs
from dst_grpc.cli._pictures import BAR, LABEL, Paper, coloured, columns_of, plain_table, title, token_bars
from dst_grpc.cli._progress import Work, asking
from dst_grpc.cli._tables import human_count
from dst_grpc.cli._token_names import token_names
from dst_grpc.client import (
    DEFAULT_TARGET,
    AttributeRequest,
    AttributionAnswer,
    AttributionMethod,
    Baseline,
    Dimension,
    Orientation,
    PathRule,
    PropagationRule,
    ScoredKind,
    Scores,
    make_attribute_request,
)
from dst_grpc.client._requests import member
from dst_grpc.domain.attribute_requests import DEFAULT_NODES
from dst_grpc.domain.nodes import NODES
from dst_grpc.domain.patch import LISTED_ENTRIES
from dst_grpc.errors import InvalidRequest

ScoredSitesOption = Annotated[
    str | None,
    typer.Option(
        "--sites",
        metavar="NAME,...",
        help=f"Nodes to score: {', '.join(SITES)}, or nodes by name, such as input, resid_post, query, key, value, "
        "pattern, neuron or, with --autoencoder, latent. Default: input, heads and mlp, with all edges.",
    ),
]
MethodOption = Annotated[
    str, typer.Option("--method", metavar="NAME", help=f"Where gradients are taken: {', '.join(AttributionMethod)}.")
]
RuleOption = Annotated[
    str, typer.Option("--rule", metavar="NAME", help=f"How gradients pass: {', '.join(PropagationRule)}.")
]
PathRuleOption = Annotated[
    str | None,
    typer.Option("--path-rule", metavar="NAME", help=f"Points of a path: {', '.join(PathRule)}."),
]
BaselineOption = Annotated[
    str | None,
    typer.Option(
        "--baseline",
        metavar="NAME",
        help=f"Where the path of integrated_gradients begins: {', '.join(Baseline)}. Default: {Baseline.CORRUPT}; the "
        "others need no CORRUPT.",
    ),
]
VerifyOption = Annotated[
    int, typer.Option("--verify", metavar="N", min=0, help="Patch so many of the best edges exactly, to compare.")
]


def attribute(
    clean: CleanArgument = None,
    corrupt: CorruptArgument = None,
    *,
    target: arguments.TargetOption = None,
    distractor: arguments.DistractorOption = None,
    loss: arguments.LossOption = None,
    pairs: PairsOption = None,
    noising: NoisingOption = True,
    sites: ScoredSitesOption = None,
    edges: Annotated[bool, typer.Option("--edges", help="Score all edges; alone, or beside --sites.")] = False,
    by_position: Annotated[
        bool,
        typer.Option("--by-position", help="A score for each position, not one for all; of edges only with --edges."),
    ] = False,
    method: MethodOption = AttributionMethod.ATTRIBUTION_PATCHING,
    rule: RuleOption = PropagationRule.PLAIN,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", min=1, help="Steps of a path. Default: the method's.")
    ] = None,
    path_rule: PathRuleOption = None,
    baseline: BaselineOption = None,
    qk_fix: Annotated[bool, typer.Option("--qk-fix", help="AtP*'s QK fix, of query and key.")] = False,
    grad_drop: Annotated[bool, typer.Option("--grad-drop", help="AtP*'s GradDrop, of nodes: magnitudes.")] = False,
    verify: VerifyOption = 0,
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Edges, neurons or latents to print.")] = 20,
    autoencoder: arguments.AutoencoderOption = None,
    model: ModelOption = None,
    server: ServerOption = DEFAULT_TARGET,
    timeout: TimeoutOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Estimate by gradients how much a metric depends on every node, edge or token: attribution patching.

    A score is about how much the metric changes if that one place is as in the other prompt: what `dst-grpc patch`
    measures, a run for each. Here a few passes score everything. Noising, the default, runs the clean prompt: what
    carries the behaviour has negative scores. Trust the order more than the numbers, and --verify more than both.

    With --method integrated_gradients the tokens of the prompt are scored: what share each has in the metric.

    Example: dst-grpc attribute "Mary and John; John gave a drink to" "Mary and John; Mary gave a drink to" --target "
    Mary" --distractor " John"
    """
    check_asked(clean, target=target, loss=loss, pairs=pairs)
    of_tokens = member(AttributionMethod, method, "--method") is AttributionMethod.INTEGRATED_GRADIENTS
    of_all = sites is None and not (edges or verify or by_position or grad_drop or of_tokens)
    if verify and by_position:
        raise InvalidRequest.of("--verify", "must be absent with --by-position: edges are patched at all positions")
    request = make_attribute_request(
        clean,
        corrupt,
        target=target,
        distractor=distractor,
        loss=loss,
        pairs=() if pairs is None else read_pairs(pairs),
        orientation=Orientation.NOISING if noising else Orientation.DENOISING,
        method=method,
        nodes=DEFAULT_NODES if of_all else sites_of(sites or ""),
        edges=edges or of_all or verify > 0,
        by_position=by_position,
        rule=rule,
        path_rule=path_rule,
        steps=steps,
        baseline=baseline,
        qk_fix=qk_fix,
        grad_drop=grad_drop,
        verify=verify,
        autoencoders=autoencoder or (),
        model=model or None,
    )
    work = Work("scoring, then patching", "step") if verify else Work("scoring", "pair")
    with asking(server, lambda _: work) as (client, show):
        answer = client.attribute_request(request, on_progress=show, timeout=timeout)
    if as_json:
        print_json_line(_document(answer))
    else:
        out = console()
        for picture in score_pictures(request, answer, Paper.of(out), top=top):
            out.print(picture)


def _document(answer: AttributionAnswer) -> dict[str, Any]:
    """The answer for programs."""
    header, verified = answer.header, answer.verified
    return {
        "model": header.model,
        "orientation": header.orientation.value,
        "method": header.method.value,
        "rule": header.rule.value,
        "meaning": header.meaning,
        "tokens": list(header.token_strings),
        "pairs": [{"base": one.base, "source": one.source, "residual": one.residual} for one in answer.pairs],
        "scores": [
            {
                "kind": scores.info.kind.value,
                "node": scores.info.node and scores.info.node.value,
                "autoencoder": scores.info.autoencoder or None,
                "axes": [axis.value for axis in scores.axes],
                "labels": [list(labels) for labels in scores.labels],
                "values": scores.values.tolist(),
            }
            for scores in answer
        ],
        "verified": verified
        and {
            "edges": [f"{header.sources[s]}->{header.readers[r]}" for s, r in _effects(answer)],
            "scores": list(verified.scores),
            "effects": list(verified.effects),
            "correlation": verified.correlation,
        },
    }


# Pictures


def score_pictures(
    request: AttributeRequest, answer: AttributionAnswer, paper: Paper, *, top: int
) -> Iterator[RenderableType]:
    """What was asked; then, of each kind, a heat map, bars, or the *top* scores where there are too many."""
    yield _headline(request, answer)
    tokens = token_names(answer.header.token_strings, answer.header.token_ids)
    for scores in answer:
        if scores.info.kind is ScoredKind.TOKENS:
            yield title("tokens", "share in the metric")
            yield from token_bars(scores.values, tokens, paper)
        elif scores.info.kind is ScoredKind.EDGES or scores.info.node in LISTED_ENTRIES:
            yield from _largest(answer, scores, tokens, paper, top)
        else:
            heat = _heat(scores, tokens)
            yield _title(scores, ", ".join(filter(None, ("score", " by ".join(reversed(heat.axes))))))
            yield from heat_tables(heat, paper)


def _headline(request: AttributeRequest, answer: AttributionAnswer) -> Text:
    """Which runs there are, their metrics, and what scores say of them."""
    base, source, residual = (_mean(answer, name) for name in ("base", "source", "residual"))
    run, other = ("clean", "corrupt") if request.orientation is Orientation.NOISING else ("corrupt", "clean")
    rule = "" if request.rule is PropagationRule.PLAIN else f" with {request.rule}"
    if request.of_tokens:
        begin = {Baseline.CORRUPT: f"the {other} one's", Baseline.ZERO: "0", Baseline.MEAN: "the mean of all tokens'"}
        text = f"The {run} prompt is run ({base:+z.4g}), and from it back to where its embeddings are "
        text += f"{begin[request.effective_baseline]} ({source:+z.4g}){rule}. The tokens' shares add up to "
        text += f"{base - source - residual:+z.4g} of the difference, {base - source:+z.4g}."
    else:
        what = "how far, up or down, the metric moves" if request.grad_drop else "how much the metric changes"
        text = f"The {run} prompt is run ({base:+z.4g}). A score estimates {what} if one place is as in the "
        text += f"{other} one ({source:+z.4g}), by {request.method}{rule}."
    if len(answer.pairs) > 1:
        text += f" Means over {len(answer.pairs)} pairs."
    if base == source:
        text += " Both metrics are the same: do the prompts differ in the answer?"
    return Text(text, style="bold")


def _mean(answer: AttributionAnswer, name: str) -> float:
    """The mean over the pairs of one of their metrics; NaN if some have none."""
    found = [getattr(pair, name) for pair in answer.pairs]
    return float(np.mean([np.nan if one is None else one for one in found]))


def _title(scores: Scores, about: str) -> Text:
    """The title of the scores of one kind of nodes, or of edges."""
    what = str(scores.info.node or scores.info.kind).replace("_", " ")
    of = f" of {scores.info.autoencoder.partition('@')[0]}" if scores.info.autoencoder else ""
    where = "" if Dimension.SEQUENCE_TOKENS in scores.axes else ", all positions at once"
    return title(f"{what}{of}{where}", about)


def _word(axis: Dimension) -> str:
    """What an axis of nodes runs over: "layer", "position", "head", "neuron", ..."""
    if axis.node_type is not None:
        return NODES[axis.node_type].word
    return "position" if axis.is_sequence_token_dimension else axis.value.removesuffix("s")


def _heat(scores: Scores, tokens: Sequence[str]) -> Heat:
    axes = tuple(map(_word, scores.axes))
    labels = [tokens if axis == "position" else labels for axis, labels in zip(axes, scores.labels, strict=True)]
    return Heat(values=scores.values, axes=axes, labels=labels, numbers=range(len(tokens)))


def _largest(
    answer: AttributionAnswer, scores: Scores, tokens: Sequence[str], paper: Paper, top: int
) -> Iterator[RenderableType]:
    """The *top* scores of edges, neurons or latents, a line each; of edges beside what patching them has changed."""
    places = [place for place in scores.places(top) if scores.values[place]]
    if not places:
        yield _title(scores, "all scores are 0")
        return
    yield _title(scores, f"the {len(places)} largest scores")
    effects = _effects(answer) if scores.info.kind is ScoredKind.EDGES else {}
    values = [float(scores.values[place]) for place in places]
    decimals = decimals_for([*values, *effects.values()])
    names = [_names(scores, place, tokens, paper) for place in places]
    has_effects = ["patched"] if effects else []

    def drawn(columns: int) -> Padding:
        """The table with bars of at most so many columns."""
        table = plain_table("score", *has_effects, "", *names[0], right=1 + len(has_effects))
        for place, value, named in zip(places, values, names, strict=True):
            effect = [number_text(effects[place], decimals) if place in effects else ""] if effects else []
            number, bar = number_text(value, decimals), paper.bar(value, abs(values[0]), columns) if columns else ""
            table.add_row(coloured(number, value), *effect, coloured(bar, value), *map(Text, named.values()))
        return Padding(table, (0, 0, 0, 2), expand=False)

    yield drawn(max(0, min(BAR, paper.width - columns_of(drawn(0)))))
    if answer.verified is not None and effects:
        found = answer.verified.correlation
        said = "undefined" if found is None else f"{found:z.2f}"
        yield Text(f"Patched, each alone: {human_count(len(effects), 'edge')}; the correlation with scores is {said}.")


def _names(scores: Scores, place: Sequence[int], tokens: Sequence[str], paper: Paper) -> dict[str, str]:
    """What stands at a place, by what it is: {"layer": "2", "neuron": "172"} or {"edge": "a2.h1->logits"}, ..."""
    is_edge = scores.info.kind is ScoredKind.EDGES
    found = {}
    for axis, labels, i in list(zip(scores.axes, scores.labels, place, strict=True))[: -2 if is_edge else None]:
        is_token = axis is Dimension.SEQUENCE_TOKENS
        found[_word(axis)] = f"{i:3} {paper.token(tokens[i], LABEL)}" if is_token else labels[i]
    if is_edge:
        source, reader = scores.labels[-2:]
        found["edge"] = f"{source[place[-2]]}->{reader[place[-1]]}"
    return found


def _effects(answer: AttributionAnswer) -> dict[tuple[int, ...], float]:
    """What patching edges exactly has changed, by their source and reader."""
    found = answer.verified
    if found is None:
        return {}
    edges = zip(found.sources, found.readers, strict=True)
    return dict(zip(edges, found.effects, strict=True))

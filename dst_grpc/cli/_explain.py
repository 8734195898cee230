"""`dst-grpc explain`: why the model prefers one token over another, as tables and bars."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import typer
from google.protobuf.json_format import MessageToJson
from rich.text import Text

from dst_grpc._gen.dst.v1.explain_pb2 import ExplainFrame
from dst_grpc.cli import _arguments as arguments
from dst_grpc.cli._console import (
    ModelOption,
    ServerOption,
    TimeoutOption,
    connect,
    console,
    needs_ascii,
)
from dst_grpc.cli._facts import TITLES, groups_of, rows_of
from dst_grpc.cli._files import check_page, write_text
from dst_grpc.cli._nodes import read_head
from dst_grpc.cli._page import page
from dst_grpc.cli._parse import parse_path, parse_scale, parse_what_to_ablate
from dst_grpc.cli._pictures import Paper, pictures
from dst_grpc.cli._progress import progress_bar
from dst_grpc.cli._token_names import with_token_names
from dst_grpc.client import (
    DEFAULT_TARGET,
    AblationSpec,
    Client,
    ComponentTypeForAttention,
    ComponentTypeForMlp,
    ComponentTypeForResidual,
    DerivedScalarType,
    DstConfig,
    ExplainRequest,
    Explanation,
    Intervention,
    NodeAblation,
    TopKGroup,
    default_groups,
    make_explain_request,
)
from dst_grpc.errors import InvalidRequest, Violations
from dst_grpc.wire.frames import part_to_wire

T = TypeVar("T")

ALL_GROUPS = "all"
MAX_PAGE_HEADS = 32
MAX_PAGE_TOKENS = 256
"""Limits of a page's attention, which grows with the square of the prompt: number of heads, and tokens of the
prompt."""
MLP_TYPES = {"neurons": ComponentTypeForMlp.NEURON, "latents": ComponentTypeForMlp.AUTOENCODER_LATENT}
ATTENTION_TYPES = {
    "heads": ComponentTypeForAttention.ATTENTION_HEAD,
    "latents": ComponentTypeForAttention.AUTOENCODER_LATENT,
}
RESIDUAL_TYPES = {
    "none": ComponentTypeForResidual.NONE,
    "latents": ComponentTypeForResidual.AUTOENCODER_LATENT,
}

TraceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--trace",
        metavar="NODE",
        help="Explain this node instead: a step back from the output, e.g. 2.h3@13,1:V (or :Q, :K, :QK), 2.n353@13, "
        "2.z17@13, 2.r17@13. Repeat it to go on from there.",
    ),
]
AblateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ablate",
        metavar="NODE",
        help="Switch this node off, and compare: 2.h3@13, or 2.h3 at every token, 2.n353@13=0.5 to set it, emb@13, or "
        "entries such as attn.qk_probs@2[:,:,1]=0 or mlp.post_act@2[5:9,(1,4)]=0. May be repeated.",
    ),
]
ScaleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--scale", metavar="SPEC", help="Multiply entries, and compare: attn.qk_probs@2[:,:,1]*0.5. May be repeated."
    ),
]
HeadOption = Annotated[
    list[str] | None, typer.Option("--head", metavar="LAYER.HEAD", help="Show this head's attention; may be repeated.")
]
GroupsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--groups",
        metavar="NAME",
        help=f"What to choose nodes by: {', '.join(TITLES)} or {ALL_GROUPS}; may be repeated. Default: "
        "direct effects with a target or trace, else activations; with --html, all.",
    ),
]

_NO_LATENTS = (
    "--autoencoder: its latents are not shown; add --mlp latents, --attention latents or --residual latents, for a set "
    "of MLPs, of attention or of the residual"
)


def explain(
    prompt: arguments.PromptArgument,
    *,
    target: arguments.TargetOption = None,
    distractor: arguments.DistractorOption = None,
    loss: arguments.LossOption = None,
    trace: TraceOption = None,
    ablate: AblateOption = None,
    scale: ScaleOption = None,
    detach_final_layer_norm_scale: arguments.DetachOption = True,
    head: HeadOption = None,
    k: Annotated[int, typer.Option("--k", metavar="N", min=1, help="Nodes to choose of each kind, at each end.")] = 15,
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Nodes to show of each group.")] = 10,
    groups: GroupsOption = None,
    mlp: Annotated[str, typer.Option("--mlp", metavar="neurons|latents", help="What stands for MLPs.")] = "neurons",
    attention: Annotated[
        str, typer.Option("--attention", metavar="heads|latents", help="What stands for attention.")
    ] = "heads",
    residual: Annotated[
        str,
        typer.Option(
            "--residual", metavar="none|latents", help="What the residual stream is shown as, beside what writes to it."
        ),
    ] = "none",
    autoencoder: arguments.AutoencoderOption = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page of pictures instead of printing them.")
    ] = None,
    model: ModelOption = None,
    server: ServerOption = DEFAULT_TARGET,
    timeout: TimeoutOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the answer's frames (dst.v1.ExplainFrame), one a line.")
    ] = False,
) -> None:
    """Explain why the model prefers one token over another: which nodes cause it, and what they read.

    Nodes are printed as --trace and --ablate take them: LAYER.hHEAD@TOKEN,READ, LAYER.nNEURON@TOKEN, emb@TOKEN, and
    LAYER.zLATENT@TOKEN (of an MLP), LAYER.aLATENT@TOKEN (of attention) or LAYER.rLATENT@TOKEN (of the residual stream,
    whose error is LAYER.err@TOKEN). "promotes" are the output tokens that a node raises most; "excited by" the input
    tokens that would raise it most: of a head, as the token that it reads; of a latent of attention, the tokens of the
    prompt that did.

    Example: dst-grpc explain "John gave a drink to" --target " Mary" --distractor " John" --ablate 2.h3
    """
    check_page(html, as_json=as_json)
    heads = [read_head(text) for text in head or ()]
    request = explain_request_of(
        prompt,
        target=target,
        distractor=distractor,
        loss=loss,
        trace=trace,
        ablate=ablate,
        scale=scale,
        detach_final_layer_norm_scale=detach_final_layer_norm_scale,
        k=k,
        groups=groups or ([ALL_GROUPS] if html else None),
        mlp=mlp,
        attention=attention,
        residual=residual,
        autoencoder=autoencoder,
        model=model or None,
    )
    if autoencoder and not (trace or ablate or scale or "latents" in (mlp, attention, residual)):
        console(stderr=True).print(Text(_NO_LATENTS), soft_wrap=True)
    with connect(server) as client:
        if as_json:
            for part in client.explain_parts(request, timeout=timeout):
                frame = part_to_wire(ExplainFrame, part)
                typer.echo(MessageToJson(frame, indent=None, ensure_ascii=needs_ascii()))
            return
        with progress_bar() as bar:
            bar.add_task("explaining", total=None)  # an answer does not tell how much of it is done
            explanation = client.explain_request(request, timeout=timeout)
            if html is not None:
                heads = heads_of(request, explanation)[:MAX_PAGE_HEADS]
                heads *= len(explanation.runs[0].header.token_ids) <= MAX_PAGE_TOKENS
            seen = attention_of(client, request, explanation, heads, timeout=timeout)
    explanation = with_token_names(explanation)
    if html is not None:
        write_text(html, page(request, explanation, seen), "--html")
        typer.echo(f"{html} is written")
        return
    out = console()
    for picture in pictures(request, explanation, Paper.of(out), top=top, attention=seen):
        out.print(picture)


def explain_request_of(
    prompt: str,
    *,
    target: list[str] | None = None,
    distractor: list[str] | None = None,
    loss: str | None = None,
    trace: list[str] | None = None,
    ablate: list[str] | None = None,
    scale: list[str] | None = None,
    detach_final_layer_norm_scale: bool = True,
    k: int = 15,
    groups: list[str] | None = None,
    mlp: str = "neurons",
    attention: str = "heads",
    residual: str = "none",
    autoencoder: list[str] | None = None,
    model: str | None = None,
) -> ExplainRequest:
    """The request that the options describe: the prompt as it is, then, if there are interventions, with them.

    Raises:
        InvalidRequest: If an option cannot be valid, whatever the model.
    """
    request = make_explain_request(
        prompt,
        target=target,
        distractor=distractor,
        loss=loss,
        trace=parse_path(trace or []),
        detach_final_layer_norm_scale=detach_final_layer_norm_scale,
        autoencoders=autoencoder or (),
        mlp=_choice("--mlp", mlp, MLP_TYPES),
        attention=_choice("--attention", attention, ATTENTION_TYPES),
        residual=_choice("--residual", residual, RESIDUAL_TYPES),
        k=k,
        model=model or None,
    )
    changes = [*map(parse_what_to_ablate, ablate or ()), *map(parse_scale, scale or ())]
    (run,) = request.runs
    if changes:
        changed = replace(
            run,
            node_ablations=tuple(found for found in changes if isinstance(found, NodeAblation)),
            ablation_specs=tuple(found for found in changes if isinstance(found, AblationSpec)),
            interventions=tuple(found for found in changes if isinstance(found, Intervention)),
        )
        request = replace(request, runs=(run, changed))
    return replace(request, groups=_chosen_groups(request, groups))


def _choice(option: str, given: str, choices: dict[str, T]) -> T:
    if given not in choices:
        raise InvalidRequest.of(option, f"{given!r} is none of {', '.join(choices)}")
    return choices[given]


def _chosen_groups(request: ExplainRequest, names: list[str] | None) -> tuple[TopKGroup, ...]:
    of = request.component_type_for_mlp, request.component_type_for_attention, request.component_type_for_residual
    has_origin = request.runs[0].has_origin
    if names and ALL_GROUPS in names:
        return default_groups(*of, has_origin=has_origin)
    known = {group.group_id: group for group in default_groups(*of)}
    problems = Violations()
    for name in names or ():
        there = ", ".join(title for title in TITLES if title in known)
        problems.check(name in known, "--groups", f"there is no {name!r}; there are {there}, {ALL_GROUPS}")
    problems.raise_if_any()
    first = "direction_write" if has_origin else "activation"
    chosen = dict.fromkeys(names or [first, f"residual_{first}"])
    return tuple(known[name] for name in chosen if name in known)


def heads_of(request: ExplainRequest, explanation: Explanation) -> list[tuple[int, int]]:
    """The layers and numbers of the heads in the answer's tables, by group, the largest first."""
    rows = (
        row
        for group in groups_of(request)
        for row in sorted(rows_of(explanation.runs[0], group.group_id), key=lambda row: -abs(row.value))
    )
    heads = [(row.index.layer_index, row.index.tensor_indices[-1]) for row in rows if row.is_head]
    return [(layer, number) for layer, number in dict.fromkeys(heads) if layer is not None and number is not None]


def attention_of(
    client: Client,
    request: ExplainRequest,
    explanation: Explanation,
    heads: Iterable[tuple[int, int]],
    *,
    timeout: float | None = None,
) -> dict[tuple[int, int], np.ndarray]:
    """The attention [T, U] of each head, in the prompt as it is.

    Raises:
        InvalidRequest: If there is no such head.
    """
    wanted = list(dict.fromkeys(heads))
    if not wanted:
        return {}
    answer = client.derive(
        request.runs[0].prompt,
        DerivedScalarType.ATTN_QK_PROBS,
        config=DstConfig(layer_indices=tuple(sorted({layer for layer, _ in wanted}))),
        model=explanation.runs[0].header.model,
        timeout=timeout,
    )
    found = {layer: np.asarray(tensor) for layer, tensor in answer[DerivedScalarType.ATTN_QK_PROBS].items()}
    for layer, number in wanted:
        n_heads = found[layer].shape[-1]
        if number >= n_heads:
            raise InvalidRequest.of("--head", f"layer {layer} has heads 0 to {n_heads - 1}, and no {number}")
    return {(layer, number): found[layer][:, :, number] for layer, number in wanted}

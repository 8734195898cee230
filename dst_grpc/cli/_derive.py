"""`dst-grpc derive`: one prompt, the largest entries of each derived scalar."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from dst_grpc.cli._arguments import RequestOptions, takes_request
from dst_grpc.cli._console import (
    JsonOption,
    ServerOption,
    TimeoutOption,
    connect,
    console,
    print_json,
)
from dst_grpc.cli._progress import progress_bar, show_load, show_transfer
from dst_grpc.cli._render import entry_facts, node_name, place
from dst_grpc.cli._tables import human_count, human_ranges, human_value, print_rows
from dst_grpc.cli._token_names import token_name, token_names
from dst_grpc.client import (
    DEFAULT_TARGET,
    Answer,
    Client,
    DerivedScalar,
    DerivedScalarType,
    Entry,
    NodeType,
    PassType,
    ResolveRequest,
    TopBy,
)
from dst_grpc.domain.scalars import FACTS
from dst_grpc.errors import InvalidRequest


@takes_request
def derive(
    options: RequestOptions,
    *,
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Entries to show of each type.")] = 10,
    by: Annotated[TopBy, typer.Option("--by", help="What makes an entry large.")] = TopBy.MAGNITUDE,
    at: Annotated[
        int | None, typer.Option("--at", metavar="TOKEN", help="Only nodes at this token; -1 is the last.")
    ] = None,
    server: ServerOption = DEFAULT_TARGET,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Derive scalars of a prompt and show the largest.

    Without --type: the direct effects of neurons and heads if there is a target, else the logits.

    Example: dst-grpc derive "John gave a drink to" --target " Mary" --distractor " John" --top 5
    """
    request = options.request()
    with connect(server) as client:
        with progress_bar() as progress:
            if not progress.disable:
                # The first time, loading takes longest; `derive` itself would not report its progress.
                task = progress.add_task("loading", total=None)
                client.resolve_request(
                    ResolveRequest(request=request, load=True),
                    on_progress=lambda load: show_load(progress, task, load),
                    timeout=timeout,
                )
                progress.remove_task(task)
            task = progress.add_task("deriving", total=None)
            answer = client.derive_request(
                request, on_progress=lambda done: show_transfer(progress, task, done), timeout=timeout
            )
        chosen = [(s, _top(s, answer, top, by, at)) for scalar in answer for s in _passes(scalar)]
        names = _vocabulary(client, [entry for _, entries in chosen for entry in entries], answer.model)
    if as_json:
        print_json(_answer_facts(answer, chosen, names))
    else:
        _print_answer(console(), answer, chosen, names)


def _passes(scalar: DerivedScalar) -> list[DerivedScalar]:
    return [part for part in (scalar, scalar.backward) if part]


def _top(scalar: DerivedScalar, answer: Answer, count: int, by: TopBy, at: int | None) -> list[Entry]:
    if at is None and scalar.dst is DerivedScalarType.LOGITS and scalar.pass_type is PassType.FORWARD:
        # For logits, show the model's guesses: the largest of the last token.
        at, by = -1, TopBy.VALUE
    if at is not None and at < 0:
        at += len(answer.tokens)
    if at is not None and not 0 <= at < len(answer.tokens):
        count = len(answer.tokens)
        raise InvalidRequest.of(
            "--at", f"must be between {-count} and {count - 1} for the {count} tokens of the prompt"
        )
    # A 0 that nothing measured is not listed.
    measured = DerivedScalar(
        scalar.dst, [one for one in scalar.values() if not one.zero_by_definition], scalar.pass_type
    )
    return measured.top(count, by=by, at=at)


def _vocabulary(client: Client, entries: list[Entry], model: str) -> dict[int, str]:
    """The text of every vocabulary token among the entries."""
    ids = {entry.node for entry in entries if entry.node_type is NodeType.VOCAB_TOKEN and entry.node is not None}
    listed = sorted(ids)
    texts = client.token_strings(listed, model=model) if listed else ()
    return dict(zip(listed, texts, strict=True))


def _node(entry: Entry, names: dict[int, str]) -> str:
    if entry.node_type is NodeType.VOCAB_TOKEN and entry.node in names:
        return repr(token_name(names[entry.node], entry.node))
    return node_name(entry)


def _print_answer(
    out: Console, answer: Answer, chosen: list[tuple[DerivedScalar, list[Entry]]], names: dict[int, str]
) -> None:
    facts = [human_count(len(answer.tokens), "token"), answer.model]
    facts += [f"loss {human_value(answer.loss)}"] if answer.loss is not None else []
    if answer.activation_value is not None:
        facts.append(f"traced activation {human_value(answer.activation_value)}")
    out.print(", ".join(facts), markup=False)
    if answer.not_finite is not None:
        out.print(Text(f"Warning: {answer.not_finite.description}.", style="bold red"))
    tokens = token_names(answer.tokens, answer.token_ids)
    for scalar, entries in chosen:
        out.print()
        out.print(_title(scalar, answer), style="bold cyan", overflow="fold")
        for remark in _remarks(scalar):
            out.print(Text(remark))
        rows = [
            (
                "" if entry.layer_index is None else str(entry.layer_index),
                human_value(entry.value),
                _node(entry, names),
                place(entry, tokens),
            )
            for entry in entries
        ]
        print_rows(out, ("layer", "value", "node", "tokens"), rows, fold="tokens")


def _title(scalar: DerivedScalar, answer: Answer) -> str:
    """The type and the pass, and, of what depends on gradients of a loss, how it is to be read."""
    is_backward = scalar.pass_type is PassType.BACKWARD
    convention = answer.domain.header.convention
    reads_gradients = is_backward or FACTS[scalar.dst].requires_grad_for_forward_pass
    parts = [scalar.dst.value, *(["gradients"] if is_backward else [])]
    return ", ".join([*parts, convention] if convention and reads_gradients else parts)


def _remarks(scalar: DerivedScalar) -> Iterator[str]:
    """What the numbers of a scalar do not say by themselves."""
    broken = sum(tensor.not_finite_count for tensor in scalar.values())
    if broken:
        yield f"{broken} of {sum(tensor.values.size for tensor in scalar.values())} values are not finite."
    undefined = [layer for layer, tensor in scalar.items() if tensor.zero_by_definition and layer is not None]
    if undefined:
        where = "layer" if len(undefined) == 1 else "layers"
        yield f"Without {where} {human_ranges(undefined)}, 0 by definition. {FACTS[scalar.dst].note}"


def _answer_facts(
    answer: Answer, chosen: list[tuple[DerivedScalar, list[Entry]]], names: dict[int, str]
) -> dict[str, Any]:
    def facts(entry: Entry) -> dict[str, object]:
        found = entry_facts(entry, answer.tokens)
        return found | {"vocabulary_token": names[entry.node]} if entry.node in names else found

    return {
        "request_id": answer.request_id,
        "model": answer.model,
        "token_ids": list(answer.token_ids),
        "tokens": list(answer.tokens),
        "loss": answer.loss,
        "activation_value": answer.activation_value,
        "detach_final_layer_norm_scale": answer.detach_final_layer_norm_scale,
        "not_finite": None if answer.not_finite is None else dataclasses.asdict(answer.not_finite),
        "derived_scalars": [
            {
                "dst": scalar.dst.value,
                "pass_type": scalar.pass_type.value,
                "layers": list(scalar),
                "layers_zero_by_definition": [layer for layer, one in scalar.items() if one.zero_by_definition],
                "top": [facts(entry) for entry in entries],
            }
            for scalar, entries in chosen
        ],
        "statistics": dataclasses.asdict(answer.statistics),
    }

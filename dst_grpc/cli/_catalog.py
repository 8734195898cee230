"""`dst-grpc models`, `types`, `tokenize`, `server-info`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from dst_grpc.cli._console import (
    JsonOption,
    ModelOption,
    ServerOption,
    TimeoutOption,
    connect,
    console,
    error_facts,
    print_json,
)
from dst_grpc.cli._registry import HubCacheOption, show_registry
from dst_grpc.cli._tables import human_bytes, human_check, human_ranges, print_rows
from dst_grpc.cli._token_names import token_names
from dst_grpc.client import DEFAULT_TARGET, AutoencoderInfo, DerivedScalarTypeInfo, ModelInfo
from dst_grpc.domain.callers import Caller
from dst_grpc.domain.handles import DIGEST_CHARACTERS
from dst_grpc.domain.nodes import NODES

"""How much of a digest, or of a commit, is shown to people."""
_LEGEND = (
    "axes: T token, U attended-to token, P token pair, d residual channel, F neuron, H head, c channel of a head, "
    "Z latent, V vocabulary"
)
_CONVENTION = (
    "gradients and G, of a loss: the final norm's scale is frozen, so that direct effects are shares of a logit "
    "difference, but for --no-detach-final-layer-norm-scale (in requests: detach_final_layer_norm_scale)"
)


def models(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say how each model is built, and which types it rules out.")
    ] = False,
    registry: Annotated[
        Path | None,
        typer.Option("--registry", metavar="FILE", help="Show what this file names, and what was pulled; no server."),
    ] = None,
    hub_cache: HubCacheOption = None,
    server: ServerOption = DEFAULT_TARGET,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the models that the server can load, with their autoencoders; or those of a registry file."""
    if registry is not None:
        show_registry(registry, hub_cache, as_json=as_json)
        return
    with connect(server) as client:
        found = client.models(timeout=timeout)
        sets = client.autoencoders(timeout=timeout)
    if as_json:
        print_json(
            {
                "models": [_facts(info) for info in found],
                "autoencoders": [_facts(info) for info in sets],
            }
        )
        return
    out = console()
    sizes = ("layers", "width", "heads", "neurons", "vocabulary", "context", "weights")
    names = ("model", "state", "family", *sizes, "source", "digest")
    print_rows(out, names, map(_model_row, found))
    if verbose:
        out.print()
        known = [info for info in found if info.element_type is not None]
        print_rows(out, ("model", "architecture", "without"), map(_architecture_row, known), fold="architecture")
    if sets:
        rows = [
            (
                info.name,
                info.state.value,
                _reads(info),
                human_ranges(info.layer_indices),
                _number(info.n_latents),
                "/".join(info.activations),
                _format(info),
                human_check(info),
                _source(info),
                info.digest[:DIGEST_CHARACTERS],
            )
            for info in sets
        ]
        columns = ("autoencoder", "state", "reads", "layers", "latents", "activation", "format", "self-check")
        out.print()
        print_rows(out, (*columns, "source", "digest"), rows)
    listed: list[ModelInfo | AutoencoderInfo] = [*found, *sets]
    failed = [(info.name, info.error.message) for info in listed if info.error is not None]
    if failed:
        out.print()
        print_rows(out, ("failed", "why"), failed, fold="why")


def _facts(info: ModelInfo | AutoencoderInfo) -> dict[str, Any]:
    facts = dataclasses.asdict(dataclasses.replace(info, error=None))
    return facts | {"error": None if info.error is None else error_facts(info.error)}


def _number(size: int) -> str:
    """A size; of what cannot be loaded, nothing."""
    return str(size) if size else ""


def _reads(info: AutoencoderInfo) -> str:
    """The input of a set, with the norms applied to it, and for transcoders the output."""
    if info.dst is None:
        return ""
    words = ("/".join(info.input_norms), "/".join(info.normalizations))
    done = [word for word in words if word not in {"", "none"}]
    reads = f"{info.dst} ({', '.join(done)})" if done else info.dst.value
    if info.output is None:
        return reads
    return f"{reads} -> {info.output}{' of it and all later layers' if info.cross_layer else ''}"


def _format(info: AutoencoderInfo) -> str:
    """The formats of a set's files, and how much of them is not in memory once it is loaded."""
    names = "/".join(info.formats)
    return f"{names}, {human_bytes(info.file_bytes)} in files" if info.file_bytes else names


def _model_row(info: ModelInfo) -> tuple[str, ...]:
    sizes = info.dimensions
    numbers = (sizes.n_layers, sizes.d_model, sizes.n_heads, sizes.d_mlp, sizes.vocab_size, sizes.context_window)
    name = f"{info.name} (default)" if info.default_model else info.name
    weights = human_bytes(info.parameter_bytes) if info.parameter_bytes else ""
    sizes_shown = (*map(_number, numbers), weights)
    return (name, info.state.value, info.family, *sizes_shown, _source(info), info.digest[:DIGEST_CHARACTERS])


def _source(info: ModelInfo | AutoencoderInfo) -> str:
    return f"{info.source}@{info.revision[:DIGEST_CHARACTERS]}" if info.revision else info.source


def _architecture_row(info: ModelInfo) -> tuple[str, ...]:
    without = ", ".join(unsupported.dst.value for unsupported in info.unsupported)
    return info.name, ", ".join(_traits(info)), without


def _traits(info: ModelInfo) -> Iterator[str]:
    """The architecture of a model, in a few words each."""
    one, sizes = info.architecture, info.dimensions
    yield one.norm.value.replace("_", " ")
    yield f"{one.positions.value} positions"
    if one.layers_without_positions:
        yield f"none in layers {human_ranges(one.layers_without_positions)}"
    yield f"{'gated ' if one.gated else ''}{one.activation.value.replace('_', ' ')}"
    if sizes.n_key_value_heads != sizes.n_heads:
        yield f"{sizes.n_key_value_heads} key-value heads"
    if one.parallel:
        yield "MLP beside attention"
    if one.qk_norm:
        yield "normed queries and keys"
    if one.post_norms:
        yield "normed writes"
    if one.attn_softcap is not None:
        yield f"scores capped at {one.attn_softcap:g}"
    if one.final_softcap is not None:
        yield f"logits capped at {one.final_softcap:g}"
    windows = sorted({window for window in one.sliding_windows if window is not None})
    for window in windows:
        layers = human_ranges(layer for layer, own in enumerate(one.sliding_windows) if own == window)
        yield f"window of {window} tokens in layers {layers}"


def types(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[WORD]...", help="Only types whose names hold all the words.")
    ] = None,
    server: ServerOption = DEFAULT_TARGET,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the derived scalar types: their axes, what they need, what they are."""
    with connect(server) as client:
        found = client.derived_scalar_types(timeout=timeout)
    found = [info for info in found if all(word.lower() in info.dst for word in words or ())]
    if as_json:
        print_json([dataclasses.asdict(info) for info in found])
        return
    if not found:
        console(stderr=True).print(f"no name holds {' and '.join(words or ())}", markup=False)
        raise typer.Exit(1)
    out = console()
    rows = [(info.dst.value, _axes(info), ", ".join(_needs(info)), _formula(info)) for info in found]
    print_rows(out, ("type", "axes", "needs", "formula"), rows, fold="formula")
    out.print()
    out.print(_LEGEND)
    if any(info.requires_grad_for_forward_pass or info.yields_backward for info in found):
        out.print(_CONVENTION)


def _formula(info: DerivedScalarTypeInfo) -> str:
    """What the type is, with what is peculiar about it."""
    return f"{info.formula}. {info.note}" if info.note else info.formula


def _axes(info: DerivedScalarTypeInfo) -> str:
    letters = [dimension.letter or dimension.value for dimension in info.dimensions]
    if info.flattened:
        letters[0] = "P"
    return " ".join(letters)


def _needs(info: DerivedScalarTypeInfo) -> list[str]:
    needs = ["a loss or trace"] if info.requires_grad_for_forward_pass else []
    if info.needs_autoencoder is not None:
        needs.append(NODES[info.needs_autoencoder].autoencoder)
    return needs + list(info.needs_fields)


def tokenize(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text, taken as it is.")],
    model: ModelOption = None,
    server: ServerOption = DEFAULT_TARGET,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a text as the model's tokens."""
    with connect(server) as client:
        tokens = client.tokenize(text, model=model or "", timeout=timeout)
    if as_json:
        print_json({"token_ids": list(tokens.ids), "tokens": list(tokens.strings)})
        return
    numbered = enumerate(zip(tokens.ids, token_names(tokens.strings, tokens.ids), strict=True))
    rows = [(str(position), str(token_id), repr(name)) for position, (token_id, name) in numbered]
    print_rows(console(), ("position", "id", "token"), rows)


def _described_caller(caller: Caller | None) -> str:
    return "not told" if caller is None else f"{caller.name}, who may {' and '.join(caller.roles) or 'do nothing'}"


def server_info(
    server: ServerOption = DEFAULT_TARGET, timeout: TimeoutOption = None, as_json: JsonOption = False
) -> None:
    """Show the server's version and limits, what its operator has switched on, who you are to it, and its queues."""
    with connect(server) as client:
        info = client.server_info(timeout=timeout)
    if as_json:
        print_json(dataclasses.asdict(info))
        return
    limits = info.limits
    rows = [
        ("version", info.version),
        ("protocol", f"dst.v1, version {info.protocol_version}"),
        ("features", ", ".join(info.features) or "none"),
        ("you are", _described_caller(info.caller)),
        ("largest request", human_bytes(limits.max_request_bytes)),
        ("largest message", human_bytes(limits.max_response_bytes)),
        ("requests that wait", f"{limits.max_queued_requests}, {limits.max_queued_requests_per_caller} of a caller"),
        ("items in flight", f"{limits.max_items_in_flight_per_stream} of a stream"),
        ("items of a stream", str(limits.max_items_per_stream)),
        ("memory of all runs", human_bytes(limits.max_run_bytes)),
        ("tensors of a caller", human_bytes(limits.max_put_tensor_bytes)),
        ("life of a tensor", f"{limits.max_put_tensor_ttl:g} s"),
        *((f"wait for {load.device}", f"{load.expected_wait:.3g} s") for load in info.loads),
    ]
    print_rows(console(), ("what", "value"), rows)

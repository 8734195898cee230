"""What a person types for an ablation or a trace, and the values it stands for.

attn.qk_probs@2[:,:,1]=0     overwrite head 1 of layer 2, for every pair of tokens, with 0
mlp.post_act@2[13,5]         the activation of neuron 5 of layer 2 at token 13

A trace, and what `explain` ablates, may be a node as tables write it, too: see `_nodes`.
"""

from __future__ import annotations

import re
from dataclasses import replace

from dst_grpc.cli._nodes import ABLATION_FORMS, TRACE_FORMS, read_ablation, read_trace
from dst_grpc.client import (
    AblationSpec,
    ActivationIndex,
    ActivationLocationType,
    AttentionTraceType,
    NodeAblation,
    TraceConfig,
)
from dst_grpc.errors import InvalidRequest

_INDEX = r"(?P<location>[a-z_.]+)(@(?P<layer>\d+))?\[(?P<indices>[\d:,\s]*)\]"
_ABLATION = re.compile(rf"{_INDEX}=(?P<value>[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)")
_TRACE = re.compile(_INDEX)


def parse_ablation(text: str) -> AblationSpec:
    """Read `LOCATION@LAYER[i,:,j]=VALUE`; without `@LAYER` it means every layer.

    Raises:
        InvalidRequest: If the text has another form, or names no entries of a tap.
    """
    match = _ABLATION.fullmatch(text)
    if match is None:
        raise InvalidRequest.of(
            "--ablate", f"{text!r} is not of the form LOCATION@LAYER[i,:,j]=VALUE, e.g. attn.qk_probs@2[:,:,1]=0"
        )
    return AblationSpec(index=_activation_index(match, "--ablate"), value=float(match["value"]))


def parse_trace(text: str) -> TraceConfig:
    """Read a node, or `LOCATION@LAYER[i,j]`: the activation to start a backward pass from.

    Raises:
        InvalidRequest: If the text has another form, or names no single activation that can be traced.
    """
    node = read_trace(text)
    if node is not None:
        return node
    match = _TRACE.fullmatch(text)
    if match is None:
        raise InvalidRequest.of(
            "--trace",
            f"{text!r} is neither a node, e.g. {TRACE_FORMS}, nor LOCATION@LAYER[i,j], as mlp.post_act@2[13,5]",
        )
    return TraceConfig.from_activation_index(_activation_index(match, "--trace"))


def parse_path(texts: list[str]) -> TraceConfig | None:
    """The trace at the end of a path that starts at the output; None without steps.

    A step through V is read with the gradient of the step before it; any other step starts anew, from its own
    activation, whatever led to it.

    Raises:
        InvalidRequest: If a step has another form, or names no single activation that can be traced.
    """
    path: TraceConfig | None = None
    for text in texts:
        step = parse_trace(text)
        through_value = step.attention_trace_type is AttentionTraceType.V
        path = replace(step, downstream_trace_config=path) if through_value else step
    return path


def parse_what_to_ablate(text: str) -> NodeAblation | AblationSpec:
    """Read a node, with `=VALUE` if it is not to be 0, or what `parse_ablation` reads.

    Raises:
        InvalidRequest: If the text has another form, or names no entries of a tap.
    """
    node = read_ablation(text)
    if node is not None:
        return node
    if not _ABLATION.fullmatch(text):
        raise InvalidRequest.of(
            "--ablate",
            f"{text!r} is neither a node, e.g. {ABLATION_FORMS}, nor LOCATION@LAYER[i,:,j]=VALUE",
        )
    return parse_ablation(text)


def _activation_index(match: re.Match[str], option: str) -> ActivationIndex:
    try:
        location = ActivationLocationType(match["location"])
    except ValueError:
        known = ", ".join(known.value for known in ActivationLocationType)
        raise InvalidRequest.of(option, f"there is no tap {match['location']!r}; there are {known}") from None
    entries = [entry.strip() for entry in match["indices"].split(",")]
    if any(entry != ":" and not entry.isdigit() for entry in entries):
        raise InvalidRequest.of(option, f"[{match['indices']}] holds something else than numbers and colons")
    return ActivationIndex(
        activation_location_type=location,
        tensor_indices=tuple(None if entry == ":" else int(entry) for entry in entries),
        layer_index=None if match["layer"] is None else int(match["layer"]),
    )

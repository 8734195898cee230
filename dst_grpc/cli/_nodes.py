"""The text form of nodes, in tables and on the command line: printed nodes can be pasted after --trace and --ablate.

2.h3@13,1     head 3 of layer 2, at token 13, reading token 1
2.n353@13     neuron 353 of layer 2, at token 13
2.z17@13      latent 17 of the autoencoder of layer 2's MLP, at token 13
2.a17@13      latent 17 of the autoencoder of layer 2's attention, at token 13
2.r17@13      latent 17 of the autoencoder of the residual stream at layer 2, at token 13
2.err@13      what that autoencoder does not reconstruct at token 13
emb@13        the embedding of token 13
2.h3@13,1:K   the same head, traced through its key; :Q, :K, :QK or :V
2.h3@13=0     the head, at token 13, reading nothing; without @13, at every token
"""

from __future__ import annotations

import re
from dataclasses import replace

from dst_grpc.client import (
    AblationSpec,
    ActivationIndex,
    ActivationLocationType,
    AttentionTraceType,
    Intervention,
    NodeAblation,
    NodeIndex,
    NodeType,
    PreOrPostAct,
    TapSelection,
    TraceConfig,
)
from dst_grpc.domain.interventions import Action, CopyFromRun, ScaleValue, SetValue
from dst_grpc.domain.nodes import NODES
from dst_grpc.domain.selections import AxisSelection, PositionList, PositionRange
from dst_grpc.errors import InvalidRequest

_BY_LETTER = {facts.letter: facts for facts in NODES.values() if facts.letter}
_NODE = (
    rf"(?:(?P<layer>\d+)\.(?P<letter>[{''.join(_BY_LETTER)}])(?P<number>\d+)|(?P<embedding>emb)|(?P<error>\d+)\.err)"
    r"(?:@(?P<token>\d+)(?:,(?P<key>\d+))?)?"
)
_TRACED = re.compile(rf"{_NODE}(?::(?P<through>QK|Q|K|V))?")
_ABLATED = re.compile(rf"{_NODE}(?:=(?P<value>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?))?")
_HEAD = re.compile(r"(?P<layer>\d+)\.h?(?P<head>\d+)(?:@.*)?")

TRACE_FORMS = "2.n353@13, 2.z17@13 or 2.h3@13,1:V (or :Q, :K, :QK)"
ABLATION_FORMS = "2.h3@13, 2.n353@13=0.5, 2.z17@13, emb@13, 2.err@13 or, at every token, 2.h3"


def node_text(node: NodeIndex) -> str:
    """The text of a node; for a head at (t, all, h), without the token that it reads."""
    positions = node.tensor_indices
    if node.node_type is NodeType.LAYER and node.layer_index is None:
        return f"emb@{positions[0]}"
    if node.node_type is NodeType.AUTOENCODER_ERROR:
        return f"{node.layer_index}.err@{positions[0]}"
    letter = NODES[node.node_type].letter
    if not letter or not positions:
        where = ",".join(":" if at is None else str(at) for at in positions)
        return f"{'' if node.layer_index is None else f'{node.layer_index}.'}{node.node_type}[{where}]"
    tokens = ",".join(str(at) for at in positions[:-1] if at is not None)
    return f"{node.layer_index}.{letter}{positions[-1]}{f'@{tokens}' if tokens else ''}"


def trace_text(trace: TraceConfig) -> str:
    """The text of one step of a trace, without its downstream trace."""
    through = trace.attention_trace_type
    return f"{node_text(trace.node_index)}{'' if through is None else f':{through}'}"


def ablation_text(ablation: NodeAblation | AblationSpec | Intervention) -> str:
    """The text of an ablation."""
    if isinstance(ablation, Intervention):
        return f"{_entries_text(ablation.at)}{_action_text(ablation.action)}"
    if isinstance(ablation, NodeAblation):
        node = ablation.node_index
        if node.node_type is NodeType.ATTENTION_HEAD:
            # The head's whole row is overwritten, whichever key it was named with.
            node = replace(node, tensor_indices=(node.tensor_indices[0], None, node.tensor_indices[-1]))
        return f"{node_text(node)}={ablation.value:g}"
    index = ablation.index
    *tokens, last = index.tensor_indices
    tap = index.activation_location_type
    if tap is ActivationLocationType.RESID_POST_EMBEDDING and last is None and tokens[0] is not None:
        return f"emb@{tokens[0]}={ablation.value:g}"
    if (
        tap is ActivationLocationType.ONLINE_RESIDUAL_AUTOENCODER_ERROR
        and last is None
        and index.layer_index is not None
    ):
        return f"{index.layer_index}.err{'' if tokens[0] is None else f'@{tokens[0]}'}={ablation.value:g}"
    for letter, facts in _BY_LETTER.items():
        if facts.tap is tap and index.layer_index is not None and last is not None and all(at is None for at in tokens):
            return f"{index.layer_index}.{letter}{last}={ablation.value:g}"
    entries = TapSelection(activation_location_type=tap, axes=index.tensor_indices, layer_index=index.layer_index)
    return f"{_entries_text(entries)}={ablation.value:g}"


def _entries_text(at: TapSelection) -> str:
    """The text of entries of a tap."""
    layer = "" if at.layer_index is None else f"@{at.layer_index}"
    return f"{at.activation_location_type}{layer}[{','.join(map(_axis_text, at.all_axes))}]"


def _axis_text(axis: AxisSelection) -> str:
    match axis:
        case None:
            return ":"
        case PositionList():
            return f"({','.join(map(str, axis.positions))})"
        case PositionRange():
            return f"{axis.start}:{axis.stop}"
    return str(axis)


def _action_text(action: Action) -> str:
    match action:
        case SetValue(scalar=float(value)):
            return f"={value:g}"
        case ScaleValue():
            return f"*{action.factor:g}"
        case CopyFromRun():
            return f" from {action.run}"
    return f" {action.arm}"


def read_trace(text: str) -> TraceConfig | None:
    """The step of a trace in *text*; None if it does not have the form of a node.

    A head without `:Q`, `:K`, `:QK` or `:V` is traced through V.

    Raises:
        InvalidRequest: If it is a node that cannot be traced, or lacks a token.
    """
    match = _TRACED.fullmatch(text)
    if match is None:
        return None
    if match["embedding"]:
        raise InvalidRequest.of("--trace", f"{text!r}: an embedding is where traces end; nothing lies before it")
    if match["error"]:
        raise InvalidRequest.of("--trace", f"{text!r}: an error has no activation to trace; e.g. {TRACE_FORMS}")
    facts = _BY_LETTER[match["letter"]]
    is_head = facts.type is NodeType.ATTENTION_HEAD
    if match["token"] is None or is_head is (match["key"] is None):
        lacks = "needs the token it is at and the token it reads" if is_head else "needs one token"
        raise InvalidRequest.of("--trace", f"{text!r}: a {facts.word} {lacks}, as in {TRACE_FORMS}")
    if match["through"] and not is_head:
        raise InvalidRequest.of("--trace", f"{text!r}: only a head has a query, key and value to trace through")
    return TraceConfig(
        node_index=_node(match),
        pre_or_post_act=PreOrPostAct.PRE,
        detach_layer_norm_scale=True,
        attention_trace_type=AttentionTraceType(match["through"] or "V") if is_head else None,
    )


def read_ablation(text: str) -> NodeAblation | AblationSpec | None:
    """The ablation in *text*, to 0 unless it has `=VALUE`; None if it does not have the form of a node.

    Raises:
        InvalidRequest: If it is a node with the wrong number of tokens.
    """
    match = _ABLATED.fullmatch(text)
    if match is None:
        return None
    value = float(match["value"] or 0)
    token = None if match["token"] is None else int(match["token"])
    facts = None if match["letter"] is None else _BY_LETTER[match["letter"]]
    if match["key"] is not None and (facts is None or facts.type is not NodeType.ATTENTION_HEAD):
        raise InvalidRequest.of("--ablate", f"{text!r}: only a head reads another token; e.g. {ABLATION_FORMS}")
    if match["error"]:
        error = ActivationLocationType.ONLINE_RESIDUAL_AUTOENCODER_ERROR
        return _everywhere(error, int(match["error"]), (token, None), value)
    if facts is None or facts.tap is None:
        if token is None:
            raise InvalidRequest.of("--ablate", f"{text!r}: of which token? e.g. emb@13")
        return _everywhere(ActivationLocationType.RESID_POST_EMBEDDING, None, (token, None), value)
    if token is not None:
        return NodeAblation(node_index=_node(match), value=value)
    whole = (None,) * (len(facts.tap.dimensions) - 1)
    return _everywhere(facts.tap, int(match["layer"]), (*whole, int(match["number"])), value)


def read_head(text: str) -> tuple[int, int]:
    """The layer and number of the head that `2.h3`, `2.3` or a whole node of a head names.

    Raises:
        InvalidRequest: If the text has another form.
    """
    match = _HEAD.fullmatch(text)
    if match is None:
        raise InvalidRequest.of("--head", f"{text!r} is not of the form LAYER.HEAD, e.g. 2.3")
    return int(match["layer"]), int(match["head"])


def _node(match: re.Match[str]) -> NodeIndex:
    """The node at a token; of a head, at a pair of tokens or, if it names one only, the whole row."""
    node_type = _BY_LETTER[match["letter"]].type
    indices: tuple[int | None, ...] = (int(match["token"]), int(match["number"]))
    if node_type is NodeType.ATTENTION_HEAD:
        indices = (indices[0], None if match["key"] is None else int(match["key"]), indices[1])
    return NodeIndex(node_type=node_type, tensor_indices=indices, layer_index=int(match["layer"]))


def _everywhere(
    tap: ActivationLocationType, layer: int | None, indices: tuple[int | None, ...], value: float
) -> AblationSpec:
    index = ActivationIndex(activation_location_type=tap, tensor_indices=indices, layer_index=layer)
    return AblationSpec(index=index, value=value)

"""One row of facts per derived scalar type: the table that everything else reads.

The planner, the algebra in `dst_grpc.scalars`, the catalogue and the documentation all derive what they need from these
rows. The columns are defined in `scalar_facts`. A type as the input of an autoencoder has a row of its own, in
`autoencoder_inputs`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dst_grpc.domain import scalar_notes as notes
from dst_grpc.domain.components import Component, Dimension, NodeType
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.scalar_facts import Direction, Form, Quantity, ScalarFacts
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.tables import one_row_each

_T = DerivedScalarType
_G = NodeType.AUTOENCODER_LATENT
_M = NodeType.MLP_AUTOENCODER_LATENT
_A = NodeType.ATTENTION_AUTOENCODER_LATENT
_E = NodeType.AUTOENCODER_ERROR

# Of the two kinds of head channels, types that are not taps have only the value's as an axis.
_OF_LETTER = {axis.letter: axis for axis in Dimension if axis is not Dimension.QUERY_AND_KEY_CHANNELS}

_C = Component
_Q = Quantity
_L = ActivationLocationType
_LOSS_OR_TRACE = Direction.FINAL_RESIDUAL_GRAD
_LOCAL = Direction.FINAL_ACTIVATION_RESIDUAL_GRAD
_SUBNODE = Direction.SUBNODE_GRAD
_FINAL = "G the gradient at the residual before the origin"
_NEAR = "G the gradient at the residual before the trace, recomputed locally"
_SUB = "G the gradient of the downstream subnode's attribution"
_READ = "R[t] the gradient of the traced latent at its autoencoder's input"


def _row(
    type_: DerivedScalarType,
    axes: str | tuple[Dimension, ...],
    component: Component,
    quantity: Quantity,
    formula: str,
    *,
    on: Direction | None = None,
    form: Form = Form.FULL,
    tap: ActivationLocationType | None = None,
    autoencoder: NodeType | None = None,
    **others: Any,
) -> ScalarFacts:
    """A row; *others* are columns by name."""
    facts = ScalarFacts(
        type=type_,
        dimensions=tuple(_OF_LETTER[letter] for letter in axes.split()) if isinstance(axes, str) else axes,
        component=component,
        quantity=quantity,
        direction=on,
        form=form,
        tap=tap,
        autoencoder=autoencoder,
        formula=formula,
        once=component in {_C.ONE, _C.VOCABULARY} or (tap is not None and tap.has_no_layers),
        **others,
    )
    return replace(facts, note=notes.PAIRS) if facts.is_flattened else facts


def _raw(name: str) -> ScalarFacts:
    tap = ActivationLocationType[name]
    hidden = tap is _L.ATTN_QK_LOGITS
    formula = f"the tap {tap.value}"
    return _row(
        DerivedScalarType[name], tap.dimensions, _C.TAP, _Q.ACTIVATION, formula, tap=tap, has_hidden_entries=hidden
    )


# fmt: off
def _latents(kind: NodeType) -> tuple[ScalarFacts, ...]:
    """Rows #52-75 of one kind of autoencoder."""
    prefix = {_G: "", _M: "MLP_", _A: "ATTENTION_"}[kind]
    online = f"ONLINE_{prefix}AUTOENCODER"
    write_node = NodeType.RESIDUAL_STREAM_CHANNEL if kind is _G else kind
    # Only autoencoders of attention have no offline input that differs from the one in the run.
    offline = "" if kind is _A else notes.OFFLINE
    write_note = notes.CHANNEL_NODES if kind is _G else notes.LATENT_NODES

    def row(name: str, axes: str, component: Component, quantity: Quantity, formula: str, **others: Any) -> ScalarFacts:
        others = {"node": kind} | others
        return _row(DerivedScalarType[name], axes, component, quantity, formula, autoencoder=kind, **others)

    return (
        row(f"{prefix}AUTOENCODER_LATENT", "T Z", _C.OFFLINE_LATENT, _Q.ACTIVATION,
            "h[t,j] = phi((x - b_pre) Wenc^T + b_lat), x the recorded input", note=offline),
        row(f"{prefix}AUTOENCODER_WRITE_NORM", "T Z", _C.OFFLINE_LATENT, _Q.WRITE_NORM,
            "h[t,j] |D[j]|, h computed offline, D the write into the residual stream",
            note=f"{notes.SIGNED} {offline}".strip()),
        row(f"{online}_LATENT", "T Z", _C.LATENT, _Q.ACTIVATION, "h[t,j] of the spliced autoencoder"),
        row(f"{online}_WRITE", "T Z d", _C.LATENT, _Q.WRITE, "h[t,j] D[j]", node=write_node, note=write_note),
        row(f"{online}_WRITE_NORM", "T Z", _C.LATENT, _Q.WRITE_NORM, "h[t,j] |D[j]|", note=notes.SIGNED),
        row(f"{online}_ACT_TIMES_GRAD", "T Z", _C.LATENT, _Q.ACT_TIMES_GRAD, "h[t,j] times its gradient",
            is_value_only=True),
        row(f"{online}_WRITE_TO_FINAL_RESIDUAL_GRAD", "T Z", _C.LATENT, _Q.PROJECTION,
            f"h[t,j] D[j] . G[t], {_FINAL}", on=_LOSS_OR_TRACE),
        row(f"{online}_WRITE_TO_FINAL_ACTIVATION_RESIDUAL_GRAD", "T Z", _C.LATENT, _Q.PROJECTION,
            f"h[t,j] D[j] . G[t], {_NEAR}", on=_LOCAL),
    )


_ROWS: tuple[ScalarFacts, ...] = (
    *map(_raw, (
        "LOGITS", "RESID_POST_EMBEDDING", "MLP_PRE_ACT", "MLP_POST_ACT", "RESID_DELTA_MLP", "RESID_POST_MLP",
        "ATTN_QUERY", "ATTN_KEY", "ATTN_VALUE", "ATTN_QK_LOGITS", "ATTN_QK_PROBS", "ATTN_WEIGHTED_SUM_OF_VALUES",
        "RESID_DELTA_ATTN", "RESID_POST_ATTN", "RESID_FINAL_LAYER_NORM_SCALE", "ATTN_INPUT_LAYER_NORM_SCALE",
        "MLP_INPUT_LAYER_NORM_SCALE",
    )),
    # Re-indexed, constant, flattened
    _row(_T.PREVIOUS_LAYER_RESID_POST_MLP, "T d", _C.PREVIOUS_RESIDUAL, _Q.ACTIVATION,
         "the residual entering the layer: resid.post_mlp of the layer before, or the embedding"),
    _row(_T.FLATTENED_ATTN_POST_SOFTMAX, "T H", _C.TAP, _Q.ACTIVATION, "lower triangle of A[t,u,h]",
         form=Form.FLATTENED, tap=_L.ATTN_QK_PROBS),
    _row(_T.ALWAYS_ONE, "T 1", _C.ONE, _Q.ACTIVATION, "1", is_value_only=True),
    _row(_T.ATTN_WEIGHTED_VALUE, "T U H c", _C.HEAD_PAIR, _Q.ACTIVATION, "A[t,u,h] v[u,h,c]"),
    # Norms of residual vectors
    _row(_T.RESID_POST_EMBEDDING_NORM, "T 1", _C.RESIDUAL, _Q.WRITE_NORM, "|e[t]|", tap=_L.RESID_POST_EMBEDDING),
    _row(_T.RESID_POST_MLP_NORM, "T 1", _C.RESIDUAL, _Q.WRITE_NORM, "|r[t]|", tap=_L.RESID_POST_MLP),
    _row(_T.MLP_LAYER_WRITE_NORM, "T 1", _C.RESIDUAL, _Q.WRITE_NORM, "|dm[t]|", tap=_L.RESID_DELTA_MLP),
    _row(_T.RESID_POST_ATTN_NORM, "T 1", _C.RESIDUAL, _Q.WRITE_NORM, "|m[t]|", tap=_L.RESID_POST_ATTN),
    _row(_T.ATTN_LAYER_WRITE_NORM, "T 1", _C.RESIDUAL, _Q.WRITE_NORM, "|da[t]|", tap=_L.RESID_DELTA_ATTN),
    # Writes and write norms of neurons and heads
    _row(_T.MLP_WRITE, "T F d", _C.NEURON, _Q.WRITE, "a[t,n] Wout[n]"),
    _row(_T.MLP_WRITE_NORM, "T F", _C.NEURON, _Q.WRITE_NORM, "a[t,n] |Wout[n]|, with the activation's sign",
         note=notes.SIGNED),
    _row(_T.RESID_DELTA_MLP_FROM_MLP_POST_ACT, "T d", _C.NEURON, _Q.WRITE, "sum_n a[t,n] Wout[n], without the bias",
         is_summed=True),
    _row(_T.ATTN_WRITE, "T U H d", _C.HEAD_PAIR, _Q.WRITE, "A[t,u,h] v[u,h] WO[h]"),
    _row(_T.ATTN_WRITE_SUM_HEADS, "T U d", _C.HEAD_PAIR, _Q.WRITE, "sum_h A[t,u,h] v[u,h] WO[h]",
         is_summed=True),
    _row(_T.UNFLATTENED_ATTN_WRITE_NORM, "T U H", _C.HEAD_PAIR, _Q.WRITE_NORM, "A[t,u,h] |v[u,h] WO[h]|"),
    _row(_T.ATTN_WRITE_NORM, "T H", _C.HEAD_PAIR, _Q.WRITE_NORM, "lower triangle of A[t,u,h] |v[u,h] WO[h]|",
         form=Form.FLATTENED),
    _row(_T.ATTN_WRITE_NORM_PER_SEQUENCE_TOKEN, "T H", _C.HEAD_AT_TOKEN, _Q.WRITE_NORM, "|o[t,h] WO[h]|"),
    # Act x grad
    _row(_T.MLP_ACT_TIMES_GRAD, "T F", _C.NEURON, _Q.ACT_TIMES_GRAD, "a[t,n] times its gradient"),
    _row(_T.UNFLATTENED_ATTN_ACT_TIMES_GRAD, "T U H", _C.HEAD_PAIR, _Q.ACT_TIMES_GRAD,
         "A[t,u,h] times its gradient"),
    _row(_T.ATTN_ACT_TIMES_GRAD, "T H", _C.HEAD_PAIR, _Q.ACT_TIMES_GRAD,
         "lower triangle of A[t,u,h] times its gradient", form=Form.FLATTENED),
    _row(_T.ATTN_ACT_TIMES_GRAD_PER_SEQUENCE_TOKEN, "T H", _C.HEAD_PAIR, _Q.ACT_TIMES_GRAD,
         "sum_u A[t,u,h] times its gradient", form=Form.SUM_KEYS),
    _row(_T.TOKEN_ATTRIBUTION, "T 1", _C.RESIDUAL, _Q.ACT_TIMES_GRAD, "sum over channels of e[t] times its gradient",
         form=Form.SUM_CHANNELS, tap=_L.RESID_POST_EMBEDDING),
    # Projections on the final residual gradient
    _row(_T.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD, "T F", _C.NEURON, _Q.PROJECTION, f"a[t,n] Wout[n] . G[t], {_FINAL}",
         on=_LOSS_OR_TRACE),
    _row(_T.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD, "T U H", _C.HEAD_PAIR, _Q.PROJECTION,
         f"A[t,u,h] v[u,h] WO[h] . G[t], {_FINAL}", on=_LOSS_OR_TRACE),
    _row(_T.ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD_PER_SEQUENCE_TOKEN, "T H", _C.HEAD_AT_TOKEN, _Q.PROJECTION,
         f"o[t,h] WO[h] . G[t], {_FINAL}", on=_LOSS_OR_TRACE),
    _row(_T.ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD, "T H", _C.HEAD_PAIR, _Q.PROJECTION,
         f"lower triangle of A[t,u,h] v[u,h] WO[h] . G[t], {_FINAL}", on=_LOSS_OR_TRACE, form=Form.FLATTENED,
         is_value_only=True),
    _row(_T.RESID_POST_EMBEDDING_PROJ_TO_FINAL_RESIDUAL_GRAD, "T 1", _C.RESIDUAL, _Q.PROJECTION,
         f"e[t] . G[t], {_FINAL}", on=_LOSS_OR_TRACE, tap=_L.RESID_POST_EMBEDDING),
    _row(_T.RESID_POST_MLP_PROJ_TO_FINAL_RESIDUAL_GRAD, "T 1", _C.RESIDUAL, _Q.PROJECTION,
         f"r[t] . G[t], {_FINAL}", on=_LOSS_OR_TRACE, tap=_L.RESID_POST_MLP, note=notes.LAST_RESIDUAL),
    _row(_T.MLP_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD, "T 1", _C.RESIDUAL, _Q.PROJECTION,
         f"dm[t] . G[t], bias included, {_FINAL}", on=_LOSS_OR_TRACE, tap=_L.RESID_DELTA_MLP),
    _row(_T.RESID_POST_ATTN_PROJ_TO_FINAL_RESIDUAL_GRAD, "T 1", _C.RESIDUAL, _Q.PROJECTION,
         f"m[t] . G[t], {_FINAL}", on=_LOSS_OR_TRACE, tap=_L.RESID_POST_ATTN, note=notes.TRACED_RESIDUAL),
    _row(_T.ATTN_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD, "T 1", _C.RESIDUAL, _Q.PROJECTION,
         f"da[t] . G[t], bias included, {_FINAL}", on=_LOSS_OR_TRACE, tap=_L.RESID_DELTA_ATTN),
    # Projections on the final activation residual gradient
    _row(_T.MLP_WRITE_TO_FINAL_ACTIVATION_RESIDUAL_GRAD, "T F", _C.NEURON, _Q.PROJECTION,
         f"a[t,n] Wout[n] . G[t], {_NEAR}", on=_LOCAL),
    _row(_T.UNFLATTENED_ATTN_WRITE_TO_FINAL_ACTIVATION_RESIDUAL_GRAD, "T U H", _C.HEAD_PAIR, _Q.PROJECTION,
         f"A[t,u,h] v[u,h] WO[h] . G[t], {_NEAR}", on=_LOCAL),
    _row(_T.RESID_POST_EMBEDDING_PROJ_TO_FINAL_ACTIVATION_RESIDUAL_GRAD, "T 1", _C.RESIDUAL, _Q.PROJECTION,
         f"e[t] . G[t], {_NEAR}", on=_LOCAL, tap=_L.RESID_POST_EMBEDDING),
    # Latents
    *_latents(_G), *_latents(_M), *_latents(_A),
    # Reconstruction errors
    _row(_T.ONLINE_MLP_AUTOENCODER_ERROR, "T F", _C.NEURON_ERROR, _Q.ACTIVATION,
         "eps[t,n] = a[t,n] less its reconstruction", tap=_L.ONLINE_MLP_AUTOENCODER_ERROR, autoencoder=_M),
    _row(_T.ONLINE_MLP_AUTOENCODER_ERROR_ACT_TIMES_GRAD, "T F", _C.NEURON_ERROR, _Q.ACT_TIMES_GRAD,
         "eps[t,n] times its gradient", tap=_L.ONLINE_MLP_AUTOENCODER_ERROR, autoencoder=_M, is_value_only=True),
    _row(_T.ONLINE_MLP_AUTOENCODER_ERROR_WRITE_NORM, "T F", _C.NEURON_ERROR, _Q.WRITE_NORM,
         "eps[t,n] |Wout[n]|", tap=_L.ONLINE_MLP_AUTOENCODER_ERROR, autoencoder=_M, note=notes.SIGNED_ERROR),
    _row(_T.ONLINE_MLP_AUTOENCODER_ERROR_WRITE_TO_FINAL_RESIDUAL_GRAD, "T F", _C.NEURON_ERROR, _Q.PROJECTION,
         f"eps[t,n] Wout[n] . G[t], {_FINAL}", on=_LOSS_OR_TRACE, tap=_L.ONLINE_MLP_AUTOENCODER_ERROR,
         autoencoder=_M),
    _row(_T.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR, "T d", _C.RESIDUAL_ERROR, _Q.ACTIVATION,
         "the MLP's write less its reconstruction", tap=_L.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR, autoencoder=_M),
    _row(_T.ONLINE_RESIDUAL_ATTENTION_AUTOENCODER_ERROR, "T d", _C.RESIDUAL_ERROR, _Q.ACTIVATION,
         "attention's write less its reconstruction", tap=_L.ONLINE_RESIDUAL_ATTENTION_AUTOENCODER_ERROR,
         autoencoder=_A),
    # The read direction of one latent, and the projection of heads on it
    _row(_T.AUTOENCODER_LATENT_GRAD_WRT_RESIDUAL_INPUT, "T d", _C.RESIDUAL, _Q.DIRECTION, f"R[t], {_READ}",
         on=Direction.LATENT_READ, autoencoder=_G,
         inputs=(_T.RESID_DELTA_ATTN, _T.RESID_DELTA_MLP, _T.RESID_POST_ATTN, _T.RESID_POST_MLP)),
    _row(_T.AUTOENCODER_LATENT_GRAD_WRT_MLP_POST_ACT_INPUT, "T F", _C.NEURON, _Q.DIRECTION, f"R[t], {_READ}",
         on=Direction.LATENT_READ, autoencoder=_G, is_value_only=True, inputs=(_T.MLP_POST_ACT,)),
    _row(_T.ATTN_WRITE_TO_LATENT, "T U H", _C.HEAD_PAIR, _Q.PROJECTION, f"A[t,u,h] v[u,h] WO[h] . R[t], {_READ}",
         on=Direction.LATENT_READ, autoencoder=_A, single_layer=True, inputs=(_T.RESID_DELTA_ATTN,)),
    _row(_T.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS, "T U 1", _C.HEAD_PAIR, _Q.PROJECTION,
         f"sum_h A[t,u,h] v[u,h] WO[h] . R[t], {_READ}", on=Direction.LATENT_READ, is_summed=True,
         autoencoder=_A, single_layer=True, is_value_only=True, inputs=(_T.RESID_DELTA_ATTN,)),
    _row(_T.FLATTENED_ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS, "T 1", _C.HEAD_PAIR, _Q.PROJECTION,
         f"lower triangle of sum_h A[t,u,h] v[u,h] WO[h] . R[t], {_READ}", on=Direction.LATENT_READ,
         form=Form.FLATTENED, is_summed=True, autoencoder=_A, single_layer=True, is_value_only=True,
         inputs=(_T.RESID_DELTA_ATTN,)),
    _row(_T.FLATTENED_ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS_BATCHED, "T Z", _C.HEAD_PAIR, _Q.PROJECTION,
         "lower triangle of sum_h A[t,u,h] v[u,h] WO[h] . Wenc[j] where h[t,j] > 0", on=Direction.ALL_LATENT_READS,
         form=Form.FLATTENED, is_summed=True, autoencoder=_A, single_layer=True, inputs=(_T.RESID_DELTA_ATTN,)),
    _row(_T.ATTN_WRITE_TO_LATENT_PER_SEQUENCE_TOKEN, "T H", _C.HEAD_AT_TOKEN, _Q.PROJECTION,
         f"o[t,h] WO[h] . R[t], {_READ}", on=Direction.LATENT_READ, autoencoder=_G, single_layer=True,
         note=notes.ANY_AUTOENCODER,
         inputs=(_T.RESID_DELTA_ATTN, _T.RESID_DELTA_MLP, _T.RESID_POST_ATTN, _T.RESID_POST_MLP)),
    _row(_T.ATTN_WRITE_TO_LATENT_PER_SEQUENCE_TOKEN_BATCHED, "T H Z", _C.HEAD_AT_TOKEN, _Q.PROJECTION,
         "o[t,h] WO[h] . Wenc[j] where h[t,j] > 0", on=Direction.ALL_LATENT_READS, autoencoder=_A,
         single_layer=True, inputs=(_T.RESID_DELTA_ATTN,)),
    # One upstream node to many downstream subnodes
    _row(_T.SINGLE_NODE_WRITE, "T d", _C.SINGLE_NODE, _Q.WRITE, "w[t]: the node's write at its token, else 0"),
    _row(_T.SINGLE_NODE_WRITE_TO_FINAL_RESIDUAL_GRAD, "T 1", _C.SINGLE_NODE, _Q.PROJECTION,
         f"w[t] . G[t], {_FINAL}", on=_LOSS_OR_TRACE),
    _row(_T.ATTN_QUERY_IN_EDGE_ATTRIBUTION, "T U H", _C.QUERY, _Q.IN_EDGE_ATTRIBUTION,
         "derivative of A[t,u,h] along the node's write, through the query, times A's gradient"),
    _row(_T.ATTN_KEY_IN_EDGE_ATTRIBUTION, "T U H", _C.KEY, _Q.IN_EDGE_ATTRIBUTION,
         "derivative of A[t,u,h] along the node's write, through the key, times A's gradient"),
    _row(_T.ATTN_VALUE_IN_EDGE_ATTRIBUTION, "T U H", _C.VALUE, _Q.IN_EDGE_ATTRIBUTION,
         "derivative of A[t,u,h] v[u,h] along the node's write, through the value, on o's gradient"),
    _row(_T.MLP_IN_EDGE_ATTRIBUTION, "T F", _C.NEURON, _Q.IN_EDGE_ATTRIBUTION,
         "derivative of a[t,n] along the node's write, times a's gradient"),
    _row(_T.ONLINE_AUTOENCODER_IN_EDGE_ATTRIBUTION, "T Z", _C.LATENT, _Q.IN_EDGE_ATTRIBUTION,
         "derivative of h[t,j] along the node's write, times h's gradient", autoencoder=_G),
    _row(_T.ATTN_QUERY_IN_EDGE_ACTIVATION, "T U H", _C.QUERY, _Q.IN_EDGE_ACTIVATION,
         "derivative of A[t,u,h] along the node's write, through the query"),
    _row(_T.ATTN_KEY_IN_EDGE_ACTIVATION, "T U H", _C.KEY, _Q.IN_EDGE_ACTIVATION,
         "derivative of A[t,u,h] along the node's write, through the key"),
    _row(_T.MLP_IN_EDGE_ACTIVATION, "T F", _C.NEURON, _Q.IN_EDGE_ACTIVATION,
         "derivative of a[t,n] along the node's write"),
    _row(_T.ONLINE_AUTOENCODER_IN_EDGE_ACTIVATION, "T Z", _C.LATENT, _Q.IN_EDGE_ACTIVATION,
         "derivative of h[t,j] along the node's write", autoencoder=_G),
    # Many upstream nodes to one downstream subnode
    _row(_T.GRAD_OF_SINGLE_SUBNODE_ATTRIBUTION, "T d", _C.SINGLE_NODE, _Q.DIRECTION, f"G[t], {_SUB}", on=_SUBNODE),
    _row(_T.ATTN_OUT_EDGE_ATTRIBUTION, "T U H", _C.HEAD_PAIR, _Q.PROJECTION,
         f"A[t,u,h] v[u,h] WO[h] . G[t], {_SUB}", on=_SUBNODE),
    _row(_T.MLP_OUT_EDGE_ATTRIBUTION, "T F", _C.NEURON, _Q.PROJECTION, f"a[t,n] Wout[n] . G[t], {_SUB}",
         on=_SUBNODE),
    _row(_T.ONLINE_AUTOENCODER_OUT_EDGE_ATTRIBUTION, "T Z", _C.LATENT, _Q.PROJECTION,
         f"h[t,j] D[j] . G[t], {_SUB}", on=_SUBNODE, autoencoder=_G),
    _row(_T.TOKEN_OUT_EDGE_ATTRIBUTION, "T 1", _C.RESIDUAL, _Q.PROJECTION, f"e[t] . G[t], {_SUB}", on=_SUBNODE,
         tap=_L.RESID_POST_EMBEDDING),
    # The input direction of one node, projected on the vocabulary
    _row(_T.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION, "T V", _C.VOCABULARY, _Q.ACTIVATION,
         "pre-activation of the node with the embedding of token v as the residual before its MLP; equal rows",
         is_value_only=True),
    # Reconstruction errors of autoencoders of the residual stream: ours
    _row(_T.ONLINE_RESIDUAL_AUTOENCODER_ERROR, "T d", _C.RESIDUAL_ERROR, _Q.ACTIVATION,
         "eps[t] = the residual less its reconstruction", tap=_L.ONLINE_RESIDUAL_AUTOENCODER_ERROR, autoencoder=_G),
    _row(_T.ONLINE_RESIDUAL_AUTOENCODER_ERROR_ACT_TIMES_GRAD, "T 1", _C.RESIDUAL_ERROR, _Q.ACT_TIMES_GRAD,
         "sum over channels of eps[t] times its gradient", form=Form.SUM_CHANNELS,
         tap=_L.ONLINE_RESIDUAL_AUTOENCODER_ERROR, autoencoder=_G, node=_E, is_value_only=True),
    _row(_T.ONLINE_RESIDUAL_AUTOENCODER_ERROR_WRITE_NORM, "T 1", _C.RESIDUAL_ERROR, _Q.WRITE_NORM,
         "|eps[t]|", tap=_L.ONLINE_RESIDUAL_AUTOENCODER_ERROR, autoencoder=_G, node=_E),
    _row(_T.ONLINE_RESIDUAL_AUTOENCODER_ERROR_WRITE_TO_FINAL_RESIDUAL_GRAD, "T 1", _C.RESIDUAL_ERROR, _Q.PROJECTION,
         f"eps[t] . G[t], {_FINAL}", on=_LOSS_OR_TRACE, tap=_L.ONLINE_RESIDUAL_AUTOENCODER_ERROR, autoencoder=_G,
         node=_E),
)
# fmt: on

FACTS = one_row_each(DerivedScalarType, _ROWS)
"""The table, in the specification's order."""

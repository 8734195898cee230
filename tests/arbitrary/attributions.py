"""Requests and answers of Attribute."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from dst_grpc.domain.attribute import AttributedNode, AttributionMethod, PathGroups, PathRule, PropagationRule
from dst_grpc.domain.attribute_answers import ScoreValues
from dst_grpc.domain.attribute_requests import MAX_STEPS, MAX_VERIFIED, AttributeRequest
from dst_grpc.domain.pairs import Orientation, PromptPair
from tests.arbitrary.basic import floats32, names, optional, own, texts, tuples, uint32, uint64
from tests.arbitrary.requests import loss_fn_configs, prompts

pairs = st.builds(PromptPair, clean=prompts, corrupt=prompts, loss_fn_config=optional(loss_fn_configs()))
steps = optional(st.integers(1, MAX_STEPS))
common = {
    "pairs": tuples(pairs, min_size=1),
    "request_id": texts,
    "model": optional(names),
    "loss_fn_config": loss_fn_configs(),
    "autoencoders": tuples(names, unique=True),
    "orientation": st.sampled_from(Orientation),
    "rule": st.sampled_from(PropagationRule),
}
graph = common | {
    "method": st.sampled_from([AttributionMethod.INTEGRATED_INPUTS, AttributionMethod.INTEGRATED_ACTIVATIONS]),
    "edges": st.just(True),
    "by_position": st.booleans(),
    "path_rule": optional(st.sampled_from(PathRule)),
    "steps": steps,
    "verify": st.integers(0, MAX_VERIFIED),
}
of_edges = st.builds(AttributeRequest, **graph)
of_graph = st.builds(
    AttributeRequest,
    **graph,
    nodes=tuples(st.sampled_from([AttributedNode.HEAD, AttributedNode.INPUT]), min_size=1, unique=True),
    magnitudes=st.booleans(),
)
of_groups = st.builds(
    AttributeRequest,
    **common,
    method=st.just(AttributionMethod.INTEGRATED_ACTIVATIONS),
    path_groups=st.sampled_from(PathGroups),
)
of_tokens = st.builds(
    AttributeRequest,
    **common,
    method=st.just(AttributionMethod.INTEGRATED_GRADIENTS),
    steps=steps,
    by_channel=st.booleans(),
)

own(AttributeRequest, of_edges | of_graph | of_groups | of_tokens)
own(
    ScoreValues,
    st.builds(ScoreValues, uint32, st.lists(floats32, max_size=5).map(lambda x: np.array(x, np.float32)), uint64),
)

"""Arguments of wrong types are named, by every function that makes a request of them."""

from __future__ import annotations

# Wrong on purpose:
# mypy: disable-error-code="arg-type,list-item,dict-item"
from collections.abc import Callable

import numpy as np
import pytest

from dst_grpc.client import (
    GraphAttention,
    GraphFeatureTokens,
    GraphIntervention,
    encoder_row,
    make_attribute_request,
    make_circuit_request,
    make_explain_request,
    make_graph_intervention,
    make_graph_request,
    make_pair,
    make_patch_request,
    make_request,
    make_top_k_request,
    scale,
)
from dst_grpc.client._given import given, how_many
from dst_grpc.errors import InvalidRequest

TYPE = "attn_act_times_grad"


def test_numbers_may_be_those_of_numpy() -> None:
    found = given("", GraphAttention, layer=np.int64(1), top_k=np.uint8(7))
    assert (found, type(found.layer)) == (GraphAttention(layer=1, top_k=7), int)
    request = make_graph_request([np.int32(1)], node_threshold=np.float32(0.5), keep=np.True_)
    assert (request.node_threshold, request.keep) == (0.5, True)
    assert make_graph_request("a", max_n_logits=3, desired_logit_prob=1).desired_logit_prob == 1.0
    assert [one.token_id for one in make_graph_request("a", targets=np.array([7, 8])).targets] == [7, 8]


def test_what_is_wrong_with_a_value_is_told_by_its_path() -> None:
    with pytest.raises(InvalidRequest, match=r"^feature_tokens\.nodes\[1\]: must be of kind feature"):
        given("feature_tokens", GraphFeatureTokens, nodes=("f0.1@1", "t1"))
    with pytest.raises(TypeError, match=r"^feature_tokens\.nodes\[1\] must be a text, not 3$"):
        given("feature_tokens", GraphFeatureTokens, nodes=("f0.1@1", 3))
    with pytest.raises(TypeError, match=r"^a\.settings must be a tuple, each a GraphFeatureSetting, not 3$"):
        given("a", GraphIntervention, settings=3)


def test_a_count_is_not_negative() -> None:
    assert how_many("n", np.int64(0)) == 0
    with pytest.raises(InvalidRequest, match="n: must be 0 or more, not -1"):
        how_many("n", -1)


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: make_request(5, TYPE), "prompt must be a text, token ids or a Prompt, not 5"),
    (lambda: make_request([1, 1.5], TYPE), "prompt[1] must be an integer, not 1.5"),
    (lambda: make_request("a", 5), "types must be an iterable, not 5"),
    (lambda: make_request("a", [5]), "derived_scalars[0].dst must be a text or a member of DerivedScalarType"),
    (lambda: make_request("a", TYPE, target=1.5), "target[0] must be the text of a token or its id, not 1.5"),
    (lambda: make_request("a", TYPE, distractor=[2, 1.5]), "distractor[1] must be the text of a token"),
    (lambda: make_request("a", TYPE, max_chunk_bytes="3"), "max_chunk_bytes must be an integer, not '3'"),
    (lambda: make_request("a", TYPE, ablations=[3]), "ablation_specs[0] must be an AblationSpec, not 3"),
    (lambda: make_request("a", TYPE, interventions=3), "interventions must be an iterable, not 3"),
    (lambda: make_request("a", TYPE, source_runs=[3]), "source_runs[0] must be a SourceRun, not 3"),
    (lambda: make_request("a", TYPE, source_runs={"b": 3}), "source_runs[0].prompt must be a text"),
    (lambda: make_request("a", TYPE, autoencoders=3), "autoencoders must be an iterable, not 3"),
    (lambda: make_request("a", TYPE, model=3), "model must be a text or None, not 3"),
    (lambda: make_request("a", TYPE, element_type=3), "element_type must be a text or a member of"),
    (lambda: make_attribute_request("a", steps="3"), "steps must be an integer or None, not '3'"),
    (lambda: make_attribute_request(pairs=[3]), "pairs[0] must be a PromptPair or a mapping, not 3"),
    (lambda: make_circuit_request("a", fractions=["b"]), "curve.fractions[0] must be a number, not 'b'"),
    (lambda: make_circuit_request("a", circuits=[[3]]), "circuits[0].nodes[0] must be a text, not 3"),
    (lambda: make_circuit_request("a", acdc_threshold="b"), "acdc.threshold must be a number, not 'b'"),
    (lambda: make_explain_request("a", k="b"), "k must be an integer, not 'b'"),
    (lambda: make_explain_request("a", parts=3), "parts must be an iterable, not 3"),
    (lambda: make_top_k_request("a", TYPE, token_index="b"), "token_index must be an integer or None, not 'b'"),
    (lambda: make_top_k_request("a", {"b": 3}), "groups[0] must be an iterable, not 3"),
    (lambda: make_pair("a", 5), "corrupt must be a text, token ids or a Prompt, not 5"),
    (lambda: make_patch_request("a", layers=["b"]), "grids[0].layers[0] must be an integer, not 'b'"),
    (lambda: make_patch_request("a", cells=[3]), "cells[0] must be an iterable, not 3"),
    (lambda: make_patch_request("a", senders=[3]), "paths[0].senders[0] must be a text, not 3"),
    (lambda: make_graph_request("a", targets=[1.5]), "targets[0] must be the text of a token or its id"),
    (lambda: make_graph_request("a", directions=[3]), "directions must be a mapping"),
    (lambda: make_graph_request("a", directions={"b": "c"}), "directions['b'] must be a vector or a stored"),
    (lambda: make_graph_request("a", sources=3), "sources must be an iterable, not 3"),
    (lambda: make_graph_request("a", autoencoders=3), "autoencoders must be an iterable, not 3"),
    (lambda: make_graph_request("a", keep="no"), "keep must be True or False or None, not 'no'"),
    (lambda: make_graph_intervention(off=[3]), "off[0] must be a text, not 3"),
    (lambda: make_graph_intervention(["f0.1@1"]), "activations must be a mapping from names of features"),
    (lambda: make_graph_intervention({"f0.1@1": "b"}), "activations['f0.1@1'].activation must be a number"),
    (lambda: encoder_row("a", 1.5), "latent must be an integer, not 1.5"),
    (lambda: scale("resid.post_mlp", "b"), "factor must be a number, not 'b'"),
    (lambda: scale("resid.post_mlp", 1, at=[1.5]), "at.axes[0] must be an integer, not 1.5"),
]


@pytest.mark.parametrize(("call", "said"), WRONG, ids=[said for _, said in WRONG])
def test_an_argument_of_a_wrong_type_is_named(call: Callable[[], object], said: str) -> None:
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value).startswith(said)

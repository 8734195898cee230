"""Requests and answers of Patch."""

from __future__ import annotations

from hypothesis import strategies as st

from dst_grpc.domain.attribute import AttributedNode
from dst_grpc.domain.pairs import Alternative, Orientation
from dst_grpc.domain.patch import HEAD_INPUTS, OF_HEADS, EdgeList, PatchCell, PatchGrid, PatchRequest, PathGrid
from dst_grpc.domain.patch_answers import PatchedCells
from tests.arbitrary.attributions import pairs
from tests.arbitrary.basic import floats32, names, optional, own, texts, tuples, uint32
from tests.arbitrary.requests import loss_fn_configs, prompts

numbers = tuples(st.integers(0, 50), unique=True)
sources = st.sampled_from(["input", "a0.h1", "m2"])
readers = st.sampled_from(["a1.h0<q>", "a1.h0<k>", "m2", "logits"])
grids = (
    st.builds(
        PatchGrid,
        node=st.sampled_from(sorted(OF_HEADS)),
        all_positions=st.booleans(),
        layers=numbers,
        positions=numbers,
        entries=numbers,
    )
    | st.builds(PatchGrid, node=st.sampled_from(sorted(HEAD_INPUTS)), by_group=st.booleans())
    | st.builds(PatchGrid, node=st.just(AttributedNode.RESID_MID), layers=numbers)
)
paths = st.builds(
    PathGrid,
    senders=tuples(sources, unique=True),
    receivers=tuples(readers, unique=True),
    through_mlps=st.just(False),
    together=st.booleans(),
)
cells = st.builds(PatchCell, name=texts, interventions=st.just(()))
common = {
    "pairs": tuples(pairs, min_size=1),
    "request_id": texts,
    "model": optional(names),
    "loss_fn_config": loss_fn_configs(),
    "autoencoders": tuples(names, unique=True),
    "orientation": st.sampled_from(Orientation),
    "cells": tuples(cells, min_size=1),
    "grids": tuples(grids),
    "paths": tuples(paths),
    "edges": optional(st.builds(EdgeList, edges=tuples(st.sampled_from(["a0.h1->m2", "m0->logits"]), min_size=1))),
    "divergence": st.booleans(),
}
of_pairs = st.builds(
    PatchRequest,
    **common,
    alternative=st.just(Alternative.ZERO),
    reference=st.just(()),
    top_logits=st.integers(0, 1000),
)
of_means = st.builds(
    PatchRequest,
    **common,
    alternative=st.sampled_from([one for one in Alternative if one.is_mean]),
    reference=tuples(prompts, min_size=1),
    all_logits=st.booleans(),
)

own(PatchGrid, grids)
own(PathGrid, paths)
own(PatchCell, cells)
own(EdgeList, st.builds(EdgeList, edges=tuples(st.just("a0.h1->m2"), min_size=1)))
own(PatchRequest, of_pairs | of_means)
own(
    PatchedCells,
    st.builds(
        PatchedCells,
        grid=uint32,
        pair=uint32,
        cells=tuples(uint32),
        metrics=tuples(floats32),
        divergences=tuples(floats32),
        logit_ids=tuples(uint32),
        logits=tuples(floats32),
    ),
)

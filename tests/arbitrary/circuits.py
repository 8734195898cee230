"""Requests and answers of Circuit."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from dst_grpc.domain.circuit import AcdcSearch, CircuitCurve, CircuitEdges, CircuitNodes, CircuitRequest, KeptCircuit
from dst_grpc.domain.components import PassType
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.pairs import Alternative
from tests.arbitrary.attributions import pairs
from tests.arbitrary.basic import built, floats32, names, optional, own, texts, tuples, uint32, values_of
from tests.arbitrary.interventions import ablation_specs
from tests.arbitrary.requests import loss_fn_configs, prompts

finite = st.floats(allow_nan=False, allow_infinity=False)
edges = st.sampled_from(["input->m0", "a0.h1->a2.h0<q>", "a3.h11->logits", "m7->a9.h0<v>"])
nodes = st.sampled_from(["input", "a0.h1", "m7"])
within_sources = ablation_specs().filter(lambda spec: spec.index.activation_location_type.facts.is_within_source)


def forward(spec: AblationSpec) -> AblationSpec:
    """*spec*, of values."""
    return replace(spec, index=replace(spec.index, pass_type=PassType.FORWARD))


own(KeptCircuit, st.builds(KeptCircuit, edges=tuples(edges), nodes=tuples(nodes)))
own(
    CircuitCurve,
    built(
        CircuitCurve,
        fractions=tuples(st.floats(0, 1), unique=True).map(lambda values: tuple(sorted(values))),
        wanted_faithfulness=finite,
        steps=st.integers(1, 1000),
    ),
)
own(AcdcSearch, built(AcdcSearch, threshold=finite))
common = {
    "pairs": tuples(pairs, min_size=1),
    "request_id": texts,
    "model": optional(names),
    "loss_fn_config": loss_fn_configs(),
    "autoencoders": tuples(names, unique=True),
    "ablation_specs": tuples(within_sources.map(forward)),
}
of_edges = {"latents": st.just(False)}
latent_nodes = st.sampled_from(["input", "m7", "m0.l17", "a3.error", "r2", "r2.l0"])
of_nodes = {
    "latents": st.just(True),
    "prune": st.sampled_from([None, False]),
    "acdc": st.none(),
    "circuits": tuples(st.builds(KeptCircuit, nodes=tuples(latent_nodes)), min_size=1),
}
of_runs = {"alternative": st.sampled_from([Alternative.PATCHING, Alternative.ZERO]), "reference": st.just(())}
of_means = {
    "alternative": st.sampled_from([one for one in Alternative if one.is_mean]),
    "reference": tuples(prompts, min_size=1),
}
own(
    CircuitRequest,
    built(CircuitRequest, acdc=values_of(AcdcSearch), **common, **of_runs, **of_edges)
    | built(CircuitRequest, circuits=tuples(values_of(KeptCircuit), min_size=1), **common, **of_means, **of_edges)
    | built(CircuitRequest, **common, **of_runs, **of_nodes),
)
own(CircuitNodes, st.builds(CircuitNodes, nodes=tuples(uint32), scores=tuples(floats32)))
own(CircuitEdges, st.builds(CircuitEdges, sources=tuples(uint32), readers=tuples(uint32), scores=tuples(floats32)))

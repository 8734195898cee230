"""Sets of transcoders that requests name: which questions may be about them."""

from __future__ import annotations

import pytest

from dst_grpc.contexts import Registry
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.interventions import DecoderRow, Direction, Intervention, ProjectOut
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.selections import TapSelection
from dst_grpc.errors import InvalidRequest, Reason
from dst_grpc.pipeline.findings import Findings
from dst_grpc.pipeline.lookup import Lookup
from dst_grpc.pipeline.planner import make_plan
from tests import models
from tests.graph_goldens import model_folder

REGISTRY = Registry.build(models={"m": model_folder("gpt2")}, device="cpu")


@pytest.mark.parametrize("name", ["m/clt_relu", "m/plt_relu"])
def test_a_graph_may_be_of_transcoders_per_layer_and_across_layers(name: str) -> None:
    findings = Findings()
    found = Lookup(REGISTRY, REGISTRY.model_entry("m"), findings).transcoders(name, "transcoders")
    assert found is REGISTRY.autoencoder_entry(name, "m")
    assert not findings.count


def test_a_graph_may_be_of_nothing_else() -> None:
    findings = Findings()
    lookup = Lookup(REGISTRY, REGISTRY.model_entry("embedded"), findings)
    assert lookup.transcoders("embedded/resid_delta_mlp", "transcoders") is None
    assert lookup.transcoders("m/plt_relu", "transcoders") is None
    with pytest.raises(InvalidRequest) as caught:
        findings.violations.raise_if_any()
    assert [one.description for one in caught.value.violations] == [
        "embedded/resid_delta_mlp is no set of transcoders: its autoencoders do not predict what MLPs write",
        "'m/plt_relu' belongs to the model 'm', not to 'embedded'",
    ]
    assert caught.value.reason is Reason.IMPOSSIBLE_COMBINATION


@pytest.mark.parametrize("name", ["m/clt_relu", "m/plt_relu"])
def test_derived_scalars_may_be_about_their_latents(name: str) -> None:
    types = (T.AUTOENCODER_LATENT, T.MLP_AUTOENCODER_WRITE_NORM)
    plan = make_plan(models.request(*types, config=DstConfig(autoencoder_context=name), model="m"), REGISTRY)
    assert [entry.name for entry in plan.autoencoders] == [name]
    assert not plan.spliced
    online = models.request(T.ONLINE_MLP_AUTOENCODER_LATENT, autoencoders=(name,), model="m")
    assert [entry.name for entry in make_plan(online, REGISTRY).spliced] == [name]


def test_no_two_sets_stand_for_the_same_mlps() -> None:
    request = models.request(T.LOGITS, autoencoders=("m/plt_relu", "m/clt_relu"), model="m")
    with pytest.raises(InvalidRequest, match="m/clt_relu and m/plt_relu both have latents of mlp_autoencoder_latent"):
        make_plan(request, REGISTRY)


def test_a_direction_may_be_what_such_a_latent_reads_or_writes() -> None:
    at = TapSelection(activation_location_type=L.RESID_POST_MLP, layer_index=0)
    row = DecoderRow(autoencoder="m/clt_relu", layer_index=0, latent=1)
    one = Intervention(at=at, action=ProjectOut(direction=Direction(direction=row)))
    plan = make_plan(models.request(T.RESID_POST_MLP, interventions=(one,), model="m"), REGISTRY)
    assert [entry.name for entry in plan.autoencoders] == ["m/clt_relu"]

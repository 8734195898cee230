"""Every derived scalar type is what its formula says, on every architecture, origin and autoencoder."""

from __future__ import annotations

import pytest

from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization
from dst_grpc.domain.components import PassType
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from tests import models, traces
from tests.closeness import assert_close
from tests.explained import Explained
from tests.plain import Transcoder
from tests.unit.scalars.formulas import FORMULAS, Row, specs_for

KINDS = (T.MLP_POST_ACT, T.RESID_DELTA_MLP, T.RESID_DELTA_ATTN)
BOTH = (T.MLP_POST_ACT, T.RESID_DELTA_ATTN)
RESIDUALS = (T.RESID_POST_ATTN, T.RESID_POST_MLP)
NEURON = traces.trace(traces.NEURON, 1, 4, 7)
LATENT = traces.trace(traces.ATTENTION_LATENT, 2, 4, 3, post=False)
TRANSCODED = traces.trace(traces.MLP_LATENT, 2, 4, 3, detach=True)
HEAD = traces.trace(traces.HEAD, 1, 4, 3, 3, through=traces.QK)
STREAM_LATENT = traces.trace(traces.LATENT, 2, 4, 3, post=False)
LATER_HEAD = traces.trace(traces.HEAD, 2, 4, 3, 3, through=traces.QK)

EVERYWHERE = [
    case
    for architecture in models.ARCHITECTURES
    for case in (
        *(Explained(architecture, (kind,)) for kind in KINDS),
        Explained(architecture, (T.RESID_DELTA_MLP,), NEURON),
        Explained(architecture, (Transcoder.NORMED,), TRANSCODED),
        *(Explained(architecture, BOTH, origin) for origin in (HEAD, LATENT, traces.V_OF_LOSS)),
        Explained(architecture, (T.RESID_POST_MLP,)),
        Explained(architecture, (*BOTH, T.RESID_POST_MLP), STREAM_LATENT),
    )
]
AUTOENCODERS = [
    *(
        Explained(architecture, (kind,))
        for architecture in models.ARCHITECTURES
        for kind in (T.RESID_DELTA_MLP_FROM_MLP_POST_ACT, T.ATTN_WRITE, T.ATTN_WEIGHTED_SUM_OF_VALUES)
    ),
    *(
        Explained(architecture, (kind,), origin)
        for architecture in models.ARCHITECTURES
        for kind, origin in (
            (Transcoder.RAW, None),
            (Transcoder.CENTRED, TRANSCODED),
            (Transcoder.STORED, NEURON),
            (Transcoder.CROSS_LAYER, None),
            (Transcoder.CROSS_LAYER, TRANSCODED),
            (Transcoder.CROSS_LAYER, HEAD),
        )
    ),
    # A transcoder reads a residual as the autoencoder that is spliced in there leaves it.
    Explained("gemma", (Transcoder.CROSS_LAYER, T.RESID_POST_ATTN), TRANSCODED),
    *(Explained(kinds=(kind,), origin=NEURON) for kind in (*RESIDUALS, T.MLP_PRE_ACT, T.RESID_POST_EMBEDDING)),
    *(Explained(kinds=(kind,), origin=origin) for kind in RESIDUALS for origin in (None, STREAM_LATENT, LATER_HEAD)),
    Explained(kinds=(Transcoder.NORMED, T.RESID_POST_ATTN), origin=TRANSCODED),
    *(
        Explained(kinds=(kind,), activation=activation)
        for activation in (AutoencoderActivation.TOP_K, AutoencoderActivation.JUMP_RELU, AutoencoderActivation.IDENTITY)
        for kind in (*KINDS, T.RESID_POST_MLP)
    ),
    *(
        Explained(kinds=(T.RESID_POST_ATTN,), origin=origin, normalization=normalization)
        for normalization in InputNormalization
        for origin in traces.latent_traces(T.RESID_POST_ATTN)[1:4:2]
    ),
    *(
        Explained(architecture, (kind,), normalization=normalization)
        for normalization in (
            InputNormalization.CENTRED,
            InputNormalization.LAYER_NORM,
            InputNormalization.CONSTANT_NORM,
        )
        for architecture, kind in (
            *(("gpt2", kind) for kind in RESIDUALS),
            ("gemma", T.MLP_POST_ACT),
            ("layer norms", T.RESID_DELTA_MLP),
        )
    ),
]
"""What else autoencoders read, and what else they are."""


@pytest.mark.parametrize("x", EVERYWHERE, ids=str)
def test_every_type_is_what_its_formula_says(x: Explained) -> None:
    check(x, FORMULAS)


@pytest.mark.parametrize("x", AUTOENCODERS, ids=str)
def test_every_type_of_autoencoders_is_what_its_formula_says(x: Explained) -> None:
    check(x, {dst: row for dst, row in FORMULAS.items() if row.kinds is not None})


def check(x: Explained, rows: dict[T, Row]) -> None:
    """Derive, in one run, what of *rows* has a meaning there; compare numbers, and axes and bytes with the plan's."""
    specs = specs_for(x, rows)
    result = x.run(*specs)
    for spec, scalar in zip(specs, result.plan.scalars, strict=True):
        row, config, derivation, n_numbers = FORMULAS[spec.dst], spec.config, result.derivation(scalar), 0
        assert config is not None
        name = str(config)
        formulas = {PassType.FORWARD: row.forward} | ({PassType.BACKWARD: row.backward} if row.backward else {})
        for layer in scalar.layers:
            found = derivation.at(layer)
            assert found.keys() == formulas.keys()
            for pass_type, tensor in found.items():
                expected = formulas[pass_type](x, config, layer or 0)
                where = f"{pass_type} of {spec.dst} at layer {layer} with {name}"
                assert_close(tensor, expected, rtol=1e-8, atol=1e-10, msg=where)
                assert tensor.shape == tuple(axis.size for axis in scalar.axes)
                n_numbers += tensor.numel()
        assert scalar.output_bytes == 4 * n_numbers


def test_every_type_is_tried_on_every_architecture_that_has_it() -> None:
    for architecture in models.ARCHITECTURES:
        tried = {
            dst for x in EVERYWHERE if x.architecture == architecture for dst, row in FORMULAS.items() if row.applies(x)
        }
        assert tried == set(T) - models.world(config=models.ARCHITECTURES[architecture]).unsupported

"""The self-check: figures by the book, and what they decide."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dst_grpc.contexts import self_check
from dst_grpc.contexts.self_check import Sample
from dst_grpc.domain.autoencoders import AutoencoderActivation
from dst_grpc.domain.resolution import LayerCheck
from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.engine.formats.header import Interpretation
from dst_grpc.errors import DataLoss, Reason


def autoencoder(scale: float = 1.0) -> Autoencoder:
    """Reads three channels as they are and writes them times *scale*."""
    return Autoencoder(
        pre_bias=torch.zeros(3),
        encoder=torch.eye(3),
        latent_bias=torch.zeros(3),
        decoder=scale * torch.eye(3),
        activation=AutoencoderActivation.RELU,
    )


FIRST = torch.tensor([[1e4, 1e4, 1e4]])
"""What the first token of a prompt is like in many models."""
X = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 2.0], [3.0, 0.0, 0.0]])


def sample(x: torch.Tensor = X, target: torch.Tensor | None = None) -> Sample:
    return Sample(x, target)


def test_figures_are_taken_over_all_tokens() -> None:
    variance = ((X - X.mean(0)) ** 2).sum().item()
    for scale, unexplained in ((1.0, 0.0), (0.5, 0.25 * (X**2).sum().item() / variance)):
        found = self_check.measure(2, autoencoder(scale), sample(), reading="so")
        assert (found.layer_index, found.dead_latents, found.reading) == (2, None, "so")
        assert found.l0 == pytest.approx(4 / 3)
        assert found.fraction_of_variance_unexplained == pytest.approx(unexplained)
        assert found.orientation == pytest.approx(1.0)


def test_the_first_token_of_a_prompt_does_not_count_unless_it_is_the_only_one() -> None:
    prompts = [Sample(torch.cat([FIRST, X]), torch.cat([FIRST, 2 * X])), Sample(X[:1], 2 * X[:1])]
    collected = self_check.collect(prompts)
    torch.testing.assert_close(collected.x, torch.cat([X, X[:1]]))
    assert collected.target is not None
    torch.testing.assert_close(collected.target, 2 * torch.cat([X, X[:1]]))
    assert self_check.collect([sample()]).target is None


def test_a_transcoder_is_compared_with_what_it_predicts_and_has_no_orientation() -> None:
    found = self_check.measure(0, autoencoder(-2.0), sample(X, -2 * X))
    assert found.fraction_of_variance_unexplained == pytest.approx(0.0, abs=1e-12)
    assert found.orientation is None


def test_inputs_that_never_vary_are_unexplained_only_if_they_are_missed() -> None:
    perfect = self_check.measure(0, autoencoder(), sample(torch.ones(4, 3)))
    wrong = self_check.measure(0, autoencoder(2.0), sample(torch.ones(4, 3)))
    assert perfect.fraction_of_variance_unexplained == 0
    with pytest.raises(DataLoss, match="is inf"):
        self_check.compare("s", [wrong], [])


def test_orientation_is_the_mean_cosine_over_all_latents() -> None:
    generator = torch.Generator().manual_seed(0)
    encoder = torch.randn(9000, 3, generator=generator)
    decoder = torch.randn(3, 9000, generator=generator)
    one = replace(
        autoencoder(), encoder=encoder, decoder=decoder, latent_bias=torch.zeros(9000), pre_bias=torch.zeros(3)
    )
    rows, columns = encoder.numpy(), decoder.numpy().T
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(columns, axis=1)
    assert self_check.orientation(one) == pytest.approx(float(((rows * columns).sum(1) / norms).mean()), abs=1e-5)


def test_of_several_readings_the_one_that_fits_is_chosen() -> None:
    interpretations = {Interpretation(name=f"times {scale}"): autoencoder(scale) for scale in (3.0, 0.5, 1.0, 0.9)}
    chosen, found = self_check.choose(1, interpretations, lambda _: sample(), None)
    assert (found.reading, found.layer_index) == ("times 1.0", 1)
    assert chosen is interpretations[Interpretation(name="times 1.0")]
    # What is declared counts as well: here no reading has the right L0, so that the first stands.
    _, found = self_check.choose(1, interpretations, lambda _: sample(), check(90.0, 0.0))
    assert found.reading == "times 3.0"


def check(l0: float, fvu: float) -> LayerCheck:
    return LayerCheck(layer_index=3, l0=l0, fraction_of_variance_unexplained=fvu)


@pytest.mark.parametrize("measured", [check(20.0, 0.1), check(60.0, 0.55), check(5.0, 0.0)])
def test_figures_near_the_declared_ones_pass(measured: LayerCheck) -> None:
    self_check.compare("s", [measured], [check(20.0, 0.1)])


@pytest.mark.parametrize(
    ("measured", "problem"),
    [
        (check(20.0, 0.7), "leaves 0.700 of the variance unexplained, where 0.100 is declared"),
        (check(20.0, float("nan")), "is nan"),
        (check(400.0, 0.1), "400.0 latents are active at a token, where 20.0 are declared"),
        (check(0.0, 0.1), "0.0 latents are active"),
    ],
)
def test_figures_far_from_the_declared_ones_fail(measured: LayerCheck, problem: str) -> None:
    with pytest.raises(DataLoss, match=f"^s: the autoencoder of layer 3 fails.*{problem}") as caught:
        self_check.compare("s", [measured], [check(20.0, 0.1)])
    assert caught.value.reason is Reason.SELF_CHECK_FAILED


def test_without_declared_figures_the_mean_must_be_beaten() -> None:
    self_check.compare("s", [check(400.0, 0.9)], [])
    self_check.compare("s", [], [check(20.0, 0.1)])
    with pytest.raises(DataLoss, match=r"understood as: upside down.*leaves 5\.000 .* more than the mean alone would"):
        self_check.compare("s", [replace(check(400.0, 5.0), reading="upside down")], [])
    only_l0 = replace(check(20.0, 0.0), fraction_of_variance_unexplained=None)
    self_check.compare("s", [check(60.0, 0.9)], [only_l0])
    for measured, problem in ((check(60.0, 1.5), "the mean alone"), (check(400.0, 0.1), "400.0 latents")):
        with pytest.raises(DataLoss, match=problem):
            self_check.compare("s", [measured], [only_l0])


def test_an_autoencoder_that_faces_the_wrong_way_fails_whatever_its_other_figures() -> None:
    with pytest.raises(DataLoss, match=r"mean cosine of -0\.100: a weight may be transposed"):
        self_check.compare("s", [replace(check(20.0, 0.1), orientation=-0.1)], [check(20.0, 0.1)])

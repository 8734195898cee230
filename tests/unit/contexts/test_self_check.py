"""The self-check: figures by the book, on inputs from a function."""

from __future__ import annotations

import pytest
import torch

from dst_grpc.contexts import self_check
from dst_grpc.domain.resolution import LayerCheck
from dst_grpc.engine.autoencoder import Activation, Autoencoder
from dst_grpc.errors import DataLoss, Reason


def autoencoder(scale: float = 1.0) -> Autoencoder:
    """Reads three channels as they are and writes them times *scale*."""
    return Autoencoder(
        pre_bias=torch.zeros(3),
        encoder=torch.eye(3),
        latent_bias=torch.zeros(3),
        decoder=scale * torch.eye(3),
        activation=Activation.RELU,
    )


INPUTS = {
    1: torch.tensor([[1.0, 0.0, 0.0]]),
    2: torch.tensor([[0.0, 2.0, 2.0], [3.0, 0.0, 0.0]]),
}


def record(tokens: list[int]) -> dict[int, torch.Tensor]:
    return {layer: INPUTS[len(tokens)] * (layer + 1) for layer in (0, 1)}


def test_figures_are_taken_over_the_tokens_of_all_prompts() -> None:
    checks = self_check.measure(record, {1: autoencoder(0.5), 0: autoencoder()}, [[7], [7, 7]])
    assert [check.layer_index for check in checks] == [0, 1]
    assert [check.l0 for check in checks] == pytest.approx([4 / 3, 4 / 3])
    x = torch.cat([INPUTS[1], INPUTS[2]])
    variance = ((x - x.mean(0)) ** 2).sum().item()
    expected = [0.0, 0.25 * (x**2).sum().item() / variance]
    assert [check.fraction_of_variance_unexplained for check in checks] == pytest.approx(expected)
    assert {check.dead_latents for check in checks} == {None}


def test_inputs_that_never_vary_are_unexplained_only_if_they_are_missed() -> None:
    def constant(_tokens: list[int]) -> dict[int, torch.Tensor]:
        return {0: torch.ones(4, 3)}

    (perfect,) = self_check.measure(constant, {0: autoencoder()}, [[1]])
    (wrong,) = self_check.measure(constant, {0: autoencoder(2.0)}, [[1]])
    assert perfect.fraction_of_variance_unexplained == 0
    with pytest.raises(DataLoss, match="is inf"):
        self_check.compare("s", [wrong], [])


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


def test_nothing_declared_is_nothing_to_fail() -> None:
    self_check.compare("s", [check(400.0, 5.0)], [])
    self_check.compare("s", [], [check(20.0, 0.1)])

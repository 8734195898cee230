"""Vectors at some tokens of runs: together or alone, weights read the same of them; those of a batch in one product."""

from __future__ import annotations

import torch

from dst_grpc.scalars.token_vectors import TokenVectors, stacked
from dst_grpc.scalars.write_directions import LinearWrite

D, K = 5, 7


class Weights(LinearWrite):
    """Any write directions; counts its products."""

    def __init__(self, seed: int) -> None:
        self.matrix = torch.randn(K, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.n_products = 0

    def combined(self, coefficients: torch.Tensor) -> torch.Tensor:
        return coefficients @ self.matrix

    def project(self, direction: torch.Tensor) -> torch.Tensor:
        self.n_products += 1
        return direction @ self.matrix.t()


def vectors(n_tokens: int, *others_than_zero: int) -> TokenVectors:
    x = torch.zeros(n_tokens, D, dtype=torch.float64)
    for token in others_than_zero:
        x[token] = torch.randn(D, generator=torch.Generator().manual_seed(token), dtype=torch.float64)
    return TokenVectors.of(x)


RUNS = [vectors(9, 8), vectors(4, 1, 3), vectors(6), vectors(8, 2, 3, 4, 5), vectors(3, 2)]
"""Of a loss, of a score between two tokens, of an origin that nothing affects, of a long trace, of a loss."""


def test_only_tokens_whose_vectors_are_not_zero_are_read() -> None:
    assert [one.tokens.tolist() for one in RUNS] == [[8], [1, 3], [], [2, 3, 4, 5], [2]]
    assert [len(one.read_by(Weights(0))) for one in RUNS] == [1, 2, 0, 4, 1]
    assert len(RUNS[3].none.read_by(Weights(0))) == 0


def test_what_weights_read_of_a_batch_is_what_they_read_of_each() -> None:
    for seed in range(3):
        weights = Weights(seed)
        for one, together in zip(RUNS, stacked(RUNS), strict=True):
            assert torch.equal(together.tokens, one.tokens)
            torch.testing.assert_close(together.read_by(weights), one.read_by(weights))


def test_weights_are_fetched_once_for_all_runs_that_have_few_vectors() -> None:
    layers = Weights(0), Weights(1)
    for together in stacked(RUNS):
        for weights in layers:
            together.read_by(weights)
    assert [weights.n_products for weights in layers] == [2, 2], "of the long trace, and of all others"


def test_weights_are_fetched_once_for_all_answers_about_one_run() -> None:
    (one,), weights = stacked([RUNS[0]]), Weights(0)
    for _ in range(3):
        torch.testing.assert_close(one.read_by(weights), RUNS[0].read_by(Weights(0)))
    assert weights.n_products == 1


def test_there_may_be_nothing_to_read() -> None:
    assert stacked([RUNS[3]]) == [RUNS[3]]
    assert stacked([]) == []

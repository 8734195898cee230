"""Cancellation: a pass stops at the next tap on its way forward, and at the next layer on its way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from dst_grpc.domain.autoencoder_inputs import AUTOENCODER_INPUTS
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.engine import decoder as decoder_module
from dst_grpc.engine.cancellation import Cancellation
from dst_grpc.engine.decoder import Decoder
from dst_grpc.engine.pacing import Pacing
from dst_grpc.engine.splice import Splice
from dst_grpc.engine.taps import Site, Taps
from dst_grpc.errors import Cancelled
from tests import models

CONFIG = replace(models.CONFIG, n_layers=6)
TOKENS = torch.tensor([models.TOKENS, models.TOKENS[::-1]])
EVERYWHERE = [
    (L.RESID_POST_EMBEDDING, None),
    *((tap, i) for i in range(6) for tap in (L.MLP_POST_ACT, L.RESID_POST_MLP)),
]


@pytest.fixture
def decoder() -> Decoder:
    return models.decoder(config=CONFIG)


class CancellingTaps(Taps):
    """Cancels itself right after a site, and notes the sites that the decoder came to."""

    def __init__(self, cancellation: Cancellation, after: Site | None = None, **fields: object) -> None:
        super().__init__(check=cancellation.check, **fields)  # type: ignore[arg-type]  # those of Taps
        self.visited: list[Site] = []
        self._cancellation, self._after = cancellation, after

    def visit(self, location: L, layer: int | None, x: torch.Tensor) -> torch.Tensor:
        self.visited.append((location, layer))
        x = super().visit(location, layer, x)
        if self._after == (location, layer):
            self._cancellation.cancel()
        return x


def when_it_arrives(x: torch.Tensor, do: Callable[[], None]) -> None:
    """*do* something when the gradient of *x* is there."""
    x.register_hook(lambda _: do())  # type: ignore[no-untyped-call]  # torch's own


def all_sites(decoder: Decoder) -> list[Site]:
    """Those that the decoder visits in a pass without logits, in its order."""
    taps = CancellingTaps(Cancellation())
    decoder.forward(TOKENS, taps, stop_after_layer=5)
    return taps.visited


def test_a_forward_pass_stops_at_the_next_tap_wherever_it_is(decoder: Decoder) -> None:
    sites = all_sites(decoder)
    for i, site in enumerate(sites[:-1]):
        taps = CancellingTaps(Cancellation(), after=site)
        with pytest.raises(Cancelled):
            decoder.forward(TOKENS, taps, stop_after_layer=5)
        assert taps.visited == sites[: i + 2]


@pytest.mark.parametrize("layer", range(6))
def test_a_gradient_pass_stops_at_the_next_layer(decoder: Decoder, layer: int) -> None:
    """The layer above whose MLP it is cancelled still ends; of those below it none is begun."""
    cancellation = Cancellation()
    taps = Taps(gradients=EVERYWHERE, check=cancellation.check)
    logits = decoder.forward(TOKENS, taps)
    assert logits is not None
    arrived: list[int] = []
    for (location, at), x in taps.attached.items():
        if location is L.MLP_POST_ACT and at is not None:
            when_it_arrives(x, partial(arrived.append, at))
    when_it_arrives(taps.attached[L.MLP_POST_ACT, layer], cancellation.cancel)
    if layer == 0:  # nothing is left to be stopped
        taps.gradients(logits.sum())
    else:
        with pytest.raises(Cancelled):
            taps.gradients(logits.sum())
    assert arrived == list(range(5, layer - 1, -1))


def test_a_gradient_pass_stops_at_a_splice(decoder: Decoder) -> None:
    """An autoencoder may cost more than a layer, so that the layer that it is in is not ended."""
    cancellation = Cancellation()
    autoencoder = models.autoencoder(CONFIG.d_mlp, 15)
    splice: dict[Site, Splice] = {(L.MLP_POST_ACT, 3): Splice(AUTOENCODER_INPUTS[T.MLP_POST_ACT], 3, autoencoder)}
    taps = Taps(gradients=[(L.MLP_PRE_ACT, 3), (L.RESID_DELTA_MLP, 3)], splices=splice, check=cancellation.check)
    logits = decoder.forward(TOKENS, taps)
    assert logits is not None
    reached: list[str] = []
    when_it_arrives(taps.attached[L.MLP_PRE_ACT, 3], partial(reached.append, "encoder"))
    when_it_arrives(taps.attached[L.RESID_DELTA_MLP, 3], cancellation.cancel)
    with pytest.raises(Cancelled):
        taps.gradients(logits.sum())
    assert not reached


def test_what_was_cancelled_leaves_nothing_behind(decoder: Decoder) -> None:
    """No gradient anywhere, grad mode as before, and the same numbers from the next pass."""

    def gradients(cancellation: Cancellation) -> dict[Site, torch.Tensor]:
        taps = Taps(gradients=EVERYWHERE, check=cancellation.check)
        logits = decoder.forward(TOKENS, taps)
        assert logits is not None
        if cancellation is not kept:
            when_it_arrives(taps.attached[L.MLP_POST_ACT, 2], cancellation.cancel)
        return taps.gradients(logits[0, -1, 2])

    kept = Cancellation()
    before = gradients(kept)
    with pytest.raises(Cancelled):
        gradients(Cancellation())
    assert torch.is_grad_enabled()
    assert all(weight.grad is None for weight in (decoder.embedding, decoder.unembedding))
    after = gradients(kept)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[site], after[site]) for site in before)


class TestUnembedding:
    """With nothing too small to be cut, a block of this model's unembedding has so many rows."""

    @pytest.fixture(autouse=True)
    def _cut_everything(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(decoder_module, "_SMALL_PRODUCT", 0)

    @pytest.fixture
    def wide(self) -> Decoder:
        """A model whose unembedding costs some four layers."""
        return models.decoder(config=replace(CONFIG, vocab_size=400, n_layers=2))

    def test_blocks_change_no_number(self, wide: Decoder) -> None:
        found = []
        for small in (0, 1 << 26):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(decoder_module, "_SMALL_PRODUCT", small)
                taps = Taps(gradients=[(L.RESID_POST_EMBEDDING, None)])
                logits = wide.forward(TOKENS, taps)
            assert logits is not None
            (gradient,) = taps.gradients(logits.square().sum()).values()
            found.append((logits, gradient))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("location", [L.LOGITS, L.RESID_POST_EMBEDDING], ids=["tapped", "not tapped"])
    def test_a_check_stands_before_every_block_both_ways(self, wide: Decoder, location: L) -> None:
        checks: list[str] = []
        taps = Taps(values=[(location, None)], gradients=[(L.RESID_POST_MLP, 1)], check=lambda: checks.append("made"))
        wide.forward(TOKENS, taps, stop_after_layer=1)
        of_layers = len(checks)
        checks.clear()
        logits = wide.forward(TOKENS, taps)
        assert logits is not None
        n_rows = TOKENS.numel() * wide._layer_size // wide.unembedding.numel()
        n_blocks = -(-TOKENS.numel() // n_rows)
        assert n_blocks > 3
        assert len(checks) == of_layers + n_blocks + (location is L.LOGITS)
        checks.clear()
        taps.gradients(logits.sum())
        assert len(checks) == n_blocks + 1

    def test_a_few_rows_of_a_long_prompt_are_one_block(self, wide: Decoder) -> None:
        """Their product costs less than a layer of all its tokens, whatever its width."""
        checks: list[str] = []
        taps = Taps(check=lambda: checks.append("made"))
        wide.forward(TOKENS, taps, stop_after_layer=1)
        of_layers = len(checks)
        wide.forward(torch.cat((TOKENS, TOKENS), dim=1), taps, logits_at=torch.tensor([5, 5]))
        assert len(checks) == 2 * of_layers


def test_the_host_waits_for_the_layer_before_the_last_two() -> None:
    """So that what a check stops is all but two layers of the work that the device would have had."""
    events: list[str] = []

    class Mark:
        def __init__(self) -> None:
            self.number = sum(event.startswith("launched") for event in events)
            events.append(f"launched {self.number}")

        def synchronize(self) -> None:
            events.append(f"waited for {self.number}")

    pacing = Pacing(Mark)
    for _ in range(4):
        pacing.launched()
    assert events == ["launched 0", "launched 1", "launched 2", "waited for 0", "launched 3", "waited for 1"]

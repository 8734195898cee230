"""Passes that begin at a later token, with the keys and values of those before, are the end of the whole pass."""

from __future__ import annotations

import pytest
import torch

from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.past import Past, PastTaps
from dst_grpc.engine.taps import Taps
from dst_grpc.errors import require
from tests.causal_goldens import MODELS, golden_decoder

_L = ActivationLocationType


@pytest.mark.parametrize("first", [1, 4, 6])
@pytest.mark.parametrize("model", MODELS)
def test_later_tokens_are_computed_as_in_the_whole_pass(model: str, first: int) -> None:
    decoder = golden_decoder(model)
    tokens = torch.randint(64, (3, 7), generator=torch.Generator().manual_seed(0))
    sites = [(_L.RESID_POST_MLP, 2), (_L.ATTN_QK_PROBS, 1), (_L.ATTN_KEY, 0), (_L.ATTN_WEIGHTED_SUM_OF_VALUES, 2)]
    whole = PastTaps(values=sites)
    logits = require(decoder.forward(tokens, whole))
    prompts = torch.tensor([2, 0, 2])
    past = Past(first, whole.keys, whole.past_values, prompts)
    for wanted in (sites, sites[:1]):  # with patterns and copies of keys, and in one kernel
        taps = Taps(values=wanted)
        later = require(decoder.forward(tokens[prompts, first:], taps, past=past))
        torch.testing.assert_close(later, logits[prompts, first:], atol=2e-5, rtol=2e-5)
        for site in wanted:
            torch.testing.assert_close(taps.values[site], whole.values[site][prompts, first:], atol=2e-5, rtol=2e-5)

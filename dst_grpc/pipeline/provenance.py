"""Provenance: what the numbers of an answer depend on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dst_grpc import __version__
from dst_grpc.domain.results import AttentionImplementation, Provenance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.pipeline.plan import Plan


def provenance_of(
    plans: Sequence[Plan],
    model: ModelContext,
    sets: Mapping[str, AutoencoderContext],
    *,
    digest: str,
    batch_size: int,
) -> Provenance:
    """What the numbers of an answer depend on.

    Args:
        plans: the plans that ran for it.
        model: the model.
        sets: the autoencoders in use, by name.
        digest: of the canonical request.
        batch_size: prompts that ran together.
    """
    touched = {location for plan in plans for location, _ in plan.values}
    touched = touched.union(*(plan.run.locations for plan in plans))
    is_eager = any(
        plan.model.architecture.attn_softcap is not None or not plan.run.propagation.fuses_attention for plan in plans
    )
    return Provenance(
        model=model.handle,
        model_digest=model.digest,
        autoencoder_digests=tuple((s.handle, s.digest) for s in sets.values()),
        element_type=model.element_type,
        device=model.device,
        library_versions=(("dst-grpc", __version__), ("torch", torch.__version__)),
        config_digest=digest,
        attention=AttentionImplementation.EAGER
        if is_eager or any(tap.facts.is_attention_matrix for tap in touched)
        else AttentionImplementation.SDPA,
        batch_size=batch_size,
    )

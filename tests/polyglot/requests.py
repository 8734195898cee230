"""What the tour of `examples/clients/README.md` asks, as the Python client asks it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from dst_grpc._gen.dst.v1 import explain_pb2
from dst_grpc.client import (
    AttributedNode,
    DerivedScalarSpec,
    DerivedScalarType,
    DeriveRequest,
    DstConfig,
    GraphRequest,
    GraphTarget,
    LossFnConfig,
    LossFnName,
    Orientation,
    PatchGrid,
    PatchRequest,
    Prompt,
    PromptPair,
    TensorElementType,
    TensorEncoding,
)
from dst_grpc.errors import require
from dst_grpc.wire.codec import to_wire

Json: TypeAlias = Any
NO_TOKEN = "not one token"


class Requests:
    """What the tour asks, about the inputs that `tour.json` holds."""

    def __init__(self, inputs: Json) -> None:
        self._common = DeriveRequest(
            model=inputs["model"],
            prompt=Prompt(text=inputs["prompt"]),
            loss_fn_config=LossFnConfig(
                name=LossFnName.LOGIT_DIFF,
                target_tokens=tuple(inputs["target_tokens"]),
                distractor_tokens=tuple(inputs["distractor_tokens"]),
            ),
        )
        self._autoencoder: str = inputs["autoencoder"]

    def patch(self, token_ids: Sequence[int]) -> PatchRequest:
        """The residual before each layer, at each token, as it is where the tokens stand in reverse."""
        return PatchRequest(
            request_id="patch",
            model=self._common.model,
            pairs=(
                PromptPair(clean=require(self._common.prompt), corrupt=Prompt(token_ids=tuple(reversed(token_ids)))),
            ),
            loss_fn_config=self._common.loss_fn_config,
            orientation=Orientation.DENOISING,
            grids=(PatchGrid(node=AttributedNode.RESID_PRE),),
        )

    def graph(self) -> GraphRequest:
        """Few features, and the model's only transcoders."""
        loss = require(self._common.loss_fn_config)
        return GraphRequest(
            request_id="graph",
            model=self._common.model,
            prompt=require(self._common.prompt),
            targets=tuple(GraphTarget(token=token) for token in (*loss.target_tokens, *loss.distractor_tokens)),
            max_feature_nodes=10,
        )

    def dense(self) -> DeriveRequest:
        return replace(
            self._common,
            request_id="dense",
            derived_scalars=(
                DerivedScalarSpec(dst=DerivedScalarType.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD),
                DerivedScalarSpec(dst=DerivedScalarType.ATTN_QK_LOGITS),
                DerivedScalarSpec(dst=DerivedScalarType.MLP_WRITE, config=DstConfig(layer_indices=(0,))),
            ),
        )

    def sparse(self) -> DeriveRequest:
        return replace(
            self._common,
            request_id="sparse",
            derived_scalars=(
                DerivedScalarSpec(dst=DerivedScalarType.ONLINE_AUTOENCODER_LATENT),
                DerivedScalarSpec(dst=DerivedScalarType.ONLINE_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD),
            ),
            autoencoders=(self._autoencoder,),
            encoding=TensorEncoding.SPARSE_LATENTS,
        )

    def half(self, element_type: TensorElementType) -> DeriveRequest:
        return replace(
            self._common,
            request_id=element_type.value,
            derived_scalars=(DerivedScalarSpec(dst=DerivedScalarType.ATTN_QK_PROBS),),
            config=DstConfig(derive_gradients=True, layer_indices=(0,)),
            element_type=element_type,
        )

    def wrong(self) -> DeriveRequest:
        return replace(self.dense(), request_id="wrong", config=DstConfig(layer_indices=(0, 999)))

    def rejected(self) -> DeriveRequest:
        return replace(
            self._common,
            request_id="rejected",
            loss_fn_config=LossFnConfig(name=LossFnName.LOGIT_DIFF, target_tokens=(NO_TOKEN,)),
            config=DstConfig(layer_indices=(0, 999), device_for_raw_activations="cuda:3"),
            derived_scalars=(
                DerivedScalarSpec(dst=DerivedScalarType.MLP_POST_ACT),
                DerivedScalarSpec(dst=DerivedScalarType.ATTN_WRITE, config=DstConfig(layer_indices=(77,))),
            ),
        )

    def large(self) -> DeriveRequest:
        return replace(
            self._common,
            request_id="large",
            derived_scalars=(DerivedScalarSpec(dst=DerivedScalarType.MLP_WRITE),),
        )

    def prefix(self, index: int, token_ids: tuple[int, ...]) -> DeriveRequest:
        poison = LossFnConfig(name=LossFnName.LOGIT_DIFF, target_tokens=(NO_TOKEN,))
        return replace(
            self._common,
            request_id=f"prompt-{index}",
            prompt=Prompt(token_ids=token_ids[: max(1, len(token_ids) - index)]),
            loss_fn_config=poison if index == 3 else None,
            derived_scalars=(DerivedScalarSpec(dst=DerivedScalarType.LOGITS),),
        )

    def explain(self) -> explain_pb2.ExplainRequest:
        assert self._common.prompt is not None
        assert self._common.loss_fn_config is not None
        request = explain_pb2.ExplainRequest(
            request_id="explain",
            model=self._common.model,
            k=3,
            scored_token_count=3,
            top_logit_count=3,
            parts=[
                explain_pb2.EXPLAIN_PART_NODE_TABLE,
                explain_pb2.EXPLAIN_PART_UPVOTED_OUTPUT_TOKENS,
                explain_pb2.EXPLAIN_PART_TOP_LOGITS,
            ],
        )
        run = request.runs.add(loss_fn_config=to_wire(self._common.loss_fn_config))
        run.prompt.text = self._common.prompt.text or ""
        return request

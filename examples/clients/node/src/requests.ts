// The requests that this example sends.

import type { MessageInitShape } from "@bufbuild/protobuf";

import { LossFnName, NodeType } from "../gen/dst/v1/component_pb.js";
import { DerivedScalarType } from "../gen/dst/v1/derived_scalar_type_pb.js";
import type { DeriveRequestSchema } from "../gen/dst/v1/inference_pb.js";
import { TensorElementType, TensorEncoding } from "../gen/dst/v1/tensor_pb.js";

export type DeriveRequestInit = MessageInitShape<typeof DeriveRequestSchema>;

export const PROMPT = "When Mary and John went to the store, John gave a drink to";

/** The prompt, and how far the model prefers " Mary" to " John" after it. */
const question = {
  prompt: { prompt: { case: "text", value: PROMPT } },
  lossFnConfig: { name: LossFnName.LOGIT_DIFF, targetTokens: [" Mary"], distractorTokens: [" John"] },
} as const satisfies DeriveRequestInit;

/** What each attention head adds to the difference, its scores, and one tensor of several chunks. */
export const directEffects: DeriveRequestInit = {
  ...question,
  requestId: "direct-effects",
  derivedScalars: [
    { dst: DerivedScalarType.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD },
    { dst: DerivedScalarType.ATTN_QK_LOGITS },
    { dst: DerivedScalarType.MLP_WRITE, config: { layerIndices: { layerIndices: [0] } } },
  ],
};

/** Half the bytes. */
export function attentionPattern(elementType: TensorElementType): DeriveRequestInit {
  return {
    ...question,
    requestId: `attention-${TensorElementType[elementType]?.toLowerCase()}`,
    derivedScalars: [{ dst: DerivedScalarType.ATTN_QK_PROBS, config: { deriveGradients: true } }],
    elementType,
  };
}

/** Latents of an autoencoder spliced into the run; only the active ones travel. */
export function activeLatents(autoencoder: string): DeriveRequestInit {
  return {
    ...question,
    requestId: "latents",
    derivedScalars: [
      { dst: DerivedScalarType.ONLINE_AUTOENCODER_LATENT },
      { dst: DerivedScalarType.ONLINE_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD },
    ],
    autoencoders: [autoencoder],
    encoding: TensorEncoding.SPARSE_LATENTS,
  };
}

/** A layer that the model does not have. */
export const layerOutOfRange: DeriveRequestInit = {
  ...question,
  requestId: "layer-out-of-range",
  config: { layerIndices: { layerIndices: [0, 999] } },
  derivedScalars: [{ dst: DerivedScalarType.MLP_POST_ACT }],
};

/** A type left out, a type of no server, and a trace without node and place: four bad fields at once. */
export const badEnums: DeriveRequestInit = {
  ...question,
  requestId: "bad-enums",
  derivedScalars: [{ dst: DerivedScalarType.UNSPECIFIED }, { dst: 9999 as DerivedScalarType }],
  config: { traceConfig: { nodeIndex: { nodeType: NodeType.UNSPECIFIED, layerIndex: 0 } } },
};

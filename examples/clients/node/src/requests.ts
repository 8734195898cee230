// What the tour asks.

import type { MessageInitShape } from "@bufbuild/protobuf";

import { AttributedNode } from "../gen/dst/v1/attribute_pb.js";
import { LossFnName } from "../gen/dst/v1/component_pb.js";
import { DerivedScalarType } from "../gen/dst/v1/derived_scalar_type_pb.js";
import { ExplainPart, type ExplainRequestSchema } from "../gen/dst/v1/explain_pb.js";
import type { GraphRequestSchema } from "../gen/dst/v1/graph_pb.js";
import type { DeriveRequestSchema } from "../gen/dst/v1/inference_pb.js";
import { Orientation } from "../gen/dst/v1/pairs_pb.js";
import type { PatchRequestSchema } from "../gen/dst/v1/patch_pb.js";
import { TensorElementType, TensorEncoding } from "../gen/dst/v1/tensor_pb.js";

export type DeriveRequestInit = MessageInitShape<typeof DeriveRequestSchema> & { requestId: string };
export type PatchRequestInit = MessageInitShape<typeof PatchRequestSchema>;
export type GraphRequestInit = MessageInitShape<typeof GraphRequestSchema>;
export type ExplainRequestInit = MessageInitShape<typeof ExplainRequestSchema>;

/** What to ask about. */
export interface Inputs {
  model: string;
  prompt: string;
  target_tokens: string[];
  distractor_tokens: string[];
  autoencoder: string;
  unicode: string;
}

const NOT_ONE_TOKEN = "not one token";

function logitDiff(targetTokens: string[], distractorTokens: string[]) {
  return { name: LossFnName.LOGIT_DIFF, targetTokens, distractorTokens };
}

/** Restricts a config to some layers. A config without it means every layer; so does an empty list. */
function layers(...layerIndices: number[]) {
  return { layerIndices: { layerIndices } };
}

export class Requests {
  constructor(private readonly inputs: Inputs) {}

  /** A request about the prompt, and about how far the model prefers the targets to the distractors. */
  private question(requestId: string) {
    const { model, prompt, target_tokens, distractor_tokens } = this.inputs;
    return {
      requestId,
      model,
      prompt: { prompt: { case: "text" as const, value: prompt } },
      lossFnConfig: logitDiff(target_tokens, distractor_tokens),
    };
  }

  dense() {
    return {
      ...this.question("dense"),
      derivedScalars: [
        { dst: DerivedScalarType.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD },
        { dst: DerivedScalarType.ATTN_QK_LOGITS },
        { dst: DerivedScalarType.MLP_WRITE, config: layers(0) },
      ],
    } satisfies DeriveRequestInit;
  }

  /** Splices an autoencoder into the run; only its active latents travel. */
  sparse(): DeriveRequestInit {
    return {
      ...this.question("sparse"),
      derivedScalars: [
        { dst: DerivedScalarType.ONLINE_AUTOENCODER_LATENT },
        { dst: DerivedScalarType.ONLINE_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD },
      ],
      autoencoders: [this.inputs.autoencoder],
      encoding: TensorEncoding.SPARSE_LATENTS,
    };
  }

  /** Half the bytes, and gradients beside the values. */
  half(requestId: string, elementType: TensorElementType): DeriveRequestInit {
    return {
      ...this.question(requestId),
      derivedScalars: [{ dst: DerivedScalarType.ATTN_QK_PROBS }],
      config: { ...layers(0), deriveGradients: true },
      elementType,
    };
  }

  /** A layer that no model here has. */
  wrong(): DeriveRequestInit {
    return { ...this.dense(), requestId: "wrong", config: layers(0, 999) };
  }

  /** Four bad fields. */
  rejected(): DeriveRequestInit {
    return {
      ...this.question("rejected"),
      lossFnConfig: logitDiff([NOT_ONE_TOKEN], []),
      config: { ...layers(0, 999), deviceForRawActivations: "cuda:3" },
      derivedScalars: [
        { dst: DerivedScalarType.MLP_POST_ACT },
        { dst: DerivedScalarType.ATTN_WRITE, config: layers(77) },
      ],
    };
  }

  /** An answer of many megabytes. */
  large(): DeriveRequestInit {
    return { ...this.question("large"), derivedScalars: [{ dst: DerivedScalarType.MLP_WRITE }] };
  }

  /** Eight prompts of different lengths: the prompt's tokens less the last 0, 1, ... One is poisoned. */
  prefixes(tokenIds: number[]): DeriveRequestInit[] {
    return Array.from({ length: 8 }, (_, i) => ({
      requestId: `prompt-${i}`,
      model: this.inputs.model,
      prompt: {
        prompt: { case: "tokenIds", value: { tokenIds: tokenIds.slice(0, Math.max(1, tokenIds.length - i)) } },
      },
      ...(i === 3 ? { lossFnConfig: logitDiff([NOT_ONE_TOKEN], []) } : {}),
      derivedScalars: [{ dst: DerivedScalarType.LOGITS }],
    }));
  }

  /** The residual before each layer, at each token, as it is where the tokens stand in reverse. */
  patch(tokenIds: number[]): PatchRequestInit {
    const { requestId, model, prompt, lossFnConfig } = this.question("patch");
    const corrupt = { prompt: { case: "tokenIds" as const, value: { tokenIds: [...tokenIds].reverse() } } };
    return {
      requestId,
      model,
      pairs: [{ clean: prompt, corrupt }],
      lossFnConfig,
      orientation: Orientation.DENOISING,
      grids: [{ node: AttributedNode.RESID_PRE }],
    };
  }

  /** Few features, so that the graph is short enough to print. The model's only transcoders need no name. */
  graph(): GraphRequestInit {
    const { model, prompt, target_tokens, distractor_tokens } = this.inputs;
    return {
      requestId: "graph",
      model,
      prompt: { prompt: { case: "text", value: prompt } },
      targets: [...target_tokens, ...distractor_tokens].map((value) => ({ target: { case: "token" as const, value } })),
      maxFeatureNodes: 10,
    };
  }

  explain(): ExplainRequestInit {
    const { requestId, model, ...run } = this.question("explain");
    return {
      requestId,
      model,
      runs: [run],
      k: 3,
      scoredTokenCount: 3,
      topLogitCount: 3,
      parts: [ExplainPart.NODE_TABLE, ExplainPart.UPVOTED_OUTPUT_TOKENS, ExplainPart.TOP_LOGITS],
    };
  }
}

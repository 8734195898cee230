// Running requests, and reading their answers.

import { ConnectError } from "@connectrpc/connect";

import { Dimension, PassType } from "../gen/dst/v1/component_pb.js";
import { DerivedScalarType } from "../gen/dst/v1/derived_scalar_type_pb.js";
import type { Frame } from "../gen/dst/v1/inference_pb.js";
import { TensorElementType, TensorEncoding } from "../gen/dst/v1/tensor_pb.js";
import { type Answer, assemble } from "./assemble.js";
import { type ErrorReport, fromError } from "./errors.js";
import type { DeriveRequestInit } from "./requests.js";
import type { Server } from "./server.js";
import type { Tensor } from "./tensor.js";

/** Runs one request. */
export async function derive({ scalars }: Server, request: DeriveRequestInit): Promise<Answer> {
  const call = new AbortController();
  async function* frames(): AsyncIterable<Frame> {
    try {
      for await (const { frames } of scalars.derive(request, { signal: call.signal })) yield* frames;
    } finally {
      // Whoever stops reading early stops the server's work too.
      call.abort();
    }
  }
  return assemble(frames());
}

/** Runs a request that must fail. */
export async function deriveError(server: Server, request: DeriveRequestInit): Promise<ErrorReport> {
  try {
    await derive(server, request);
  } catch (thrown) {
    if (thrown instanceof ConnectError) return fromError(thrown);
    throw thrown;
  }
  throw new Error(`${request.requestId} did not fail`);
}

/** The attention head that raises the loss most by what it writes straight to the output. */
export function topHead({ header, tensors }: Answer) {
  let top = { layer: -1, head: -1, direct_effect: -Infinity, attends_to: "" };
  for (const tensor of tensors) {
    if (tensor.info.dst !== DerivedScalarType.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD) continue;
    for (const { head, byKey } of effects(tensor)) {
      const total = sum(byKey);
      if (total > top.direct_effect) {
        const key = byKey.indexOf(Math.max(...byKey));
        top = {
          layer: tensor.info.layerIndex ?? -1,
          head,
          direct_effect: total,
          attends_to: header.tokenStrings[key] ?? "",
        };
      }
    }
  }
  return top;
}

/** Effect of each head through each token attended to, summed over the tokens that attend. */
function* effects(tensor: Tensor): Generator<{ head: number; byKey: number[] }> {
  const queries = tensor.axis(Dimension.SEQUENCE_TOKENS);
  const keys = tensor.axis(Dimension.ATTENDED_TO_SEQUENCE_TOKENS);
  const heads = tensor.axis(Dimension.ATTN_HEADS);
  for (let head = 0; head < heads.size; head++) {
    const byKey = new Array<number>(keys.size).fill(0);
    for (let query = 0; query < queries.size; query++) {
      for (let key = 0; key < keys.size; key++) {
        byKey[key]! += tensor.values[query * queries.stride + key * keys.stride + head * heads.stride]!;
      }
    }
    yield { head, byKey };
  }
}

/** What an answer holds, short enough to print. */
export function summarize({ header, tensors, trailer }: Answer) {
  return {
    model: header.model,
    token_count: header.tokenIds.length,
    loss: header.loss,
    byte_count: Number(trailer.byteCount),
    tensors: tensors.map((tensor) => {
      const finite = tensor.values.filter(Number.isFinite);
      return {
        dst: DerivedScalarType[tensor.info.dst],
        pass_type: PassType[tensor.info.passType],
        layer_index: tensor.info.layerIndex ?? null,
        axes: tensor.info.axes.map(({ dimension, size }) => [Dimension[dimension], Number(size)]),
        element_type: TensorElementType[tensor.info.elementType],
        encoding: TensorEncoding[tensor.info.encoding],
        nonzero_count: tensor.coordinates ? tensor.values.length : null,
        minus_infinities: tensor.values.filter((value) => value === -Infinity).length,
        sum: sum(finite),
        checksum: tensor.checksum,
      };
    }),
  };
}

function sum(numbers: Iterable<number>): number {
  let total = 0;
  for (const number of numbers) total += number;
  return total;
}

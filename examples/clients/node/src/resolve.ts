// Asking what a request would cost before it is run.

import type { Axis } from "../gen/dst/v1/tensor_pb.js";
import { DimensionSchema } from "../gen/dst/v1/component_pb.js";
import { DerivedScalarTypeSchema } from "../gen/dst/v1/derived_scalar_type_pb.js";
import { type Resolved, ResolvedSchema } from "../gen/dst/v1/resolution_pb.js";
import { type ErrorReport, fromStatus } from "./errors.js";
import { joined, nameOf } from "./names.js";
import type { DeriveRequestInit } from "./requests.js";
import type { Server } from "./server.js";

/** Resolves one request and loads what it needs, reporting progress on the way. */
export async function resolve({ scalars }: Server, request: DeriveRequestInit, log: (line: string) => void) {
  const stages: string[] = [];
  const loaded: Record<string, number> = {};
  let resolved: Resolved | undefined;
  const enter = (stage: string) => {
    if (stages.at(-1) !== stage) stages.push(stage);
  };
  for await (const { frames } of scalars.resolve({ request, load: true })) {
    for (const { frame } of frames) {
      switch (frame.case) {
        case "validated":
          enter("VALIDATED");
          break;
        case "loading": {
          const { context, bytesDone, bytesTotal } = frame.value;
          log(`loading ${context}: ${bytesDone} of ${bytesTotal} bytes`);
          enter("LOADING");
          loaded[context] = Number(bytesDone);
          break;
        }
        case "resolved":
          enter("RESOLVED");
          resolved = merged(resolved, frame.value);
          break;
      }
    }
  }
  if (!resolved) throw new Error("Resolve ended without an answer");
  return { stages, loaded, resolved: summary(resolved) };
}

/** Resolves many requests on one stream. A bad one fails alone, and the answers may overtake one another. */
export async function resolveStream({ scalars }: Server, requests: DeriveRequestInit[]) {
  async function* messages() {
    for (const request of requests) {
      yield { message: { case: "request" as const, value: { request } } };
    }
  }
  const answers: Record<string, { resolved: ReturnType<typeof summary> } | { error: ErrorReport }> = {};
  const whole: Record<string, Resolved> = {};
  for await (const { requestId, frames } of scalars.resolveStream(messages())) {
    for (const { frame } of frames) {
      if (frame.case === "resolved") whole[requestId] = merged(whole[requestId], frame.value);
      if (frame.case === "error") answers[requestId] = { error: fromStatus(frame.value) };
    }
  }
  for (const [requestId, resolved] of Object.entries(whole)) answers[requestId] = { resolved: summary(resolved) };
  return answers;
}

/** What is said of many derived scalars comes in several frames. */
function merged(whole: Resolved | undefined, piece: Resolved): Resolved {
  return whole ? joined(ResolvedSchema, whole, piece) : piece;
}

function summary(resolved: Resolved) {
  return {
    device: resolved.device,
    model: resolved.model?.name,
    autoencoders: resolved.autoencoders.map((autoencoder) => autoencoder.name),
    forward_passes: resolved.cost?.forwardPasses,
    backward_passes: resolved.cost?.backwardPasses,
    output_bytes: Number(resolved.cost?.outputBytes),
    scalars: resolved.scalars.map((scalar) => ({
      dst: nameOf(DerivedScalarTypeSchema, scalar.dst),
      requires_grad: scalar.requiresGrad,
      layer_indices: scalar.layerIndices,
      axes: axisPairs(scalar.axes),
    })),
  };
}

/** Pairs of a dimension's name and a size. */
export function axisPairs(axes: Axis[]) {
  return axes.map(({ dimension, size }) => [nameOf(DimensionSchema, dimension), Number(size)]);
}

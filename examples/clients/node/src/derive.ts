// Running requests: one, many on a stream, one that is late, one that is cancelled.

import { setTimeout } from "node:timers/promises";

import { ConnectError } from "@connectrpc/connect";

import { Dimension } from "../gen/dst/v1/component_pb.js";
import type { Frame } from "../gen/dst/v1/inference_pb.js";
import { type Answer, assemble, Assembler, DamagedAnswer } from "./assemble.js";
import { type ErrorReport, fromError, fromStatus } from "./errors.js";
import type { DeriveRequestInit } from "./requests.js";
import type { Server } from "./server.js";

type Prediction = { token_count: number; next_token: number } | { error: ErrorReport };

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

/**
 * Runs many requests, which the server batches. Answers may overtake one another, and their messages interleave; all
 * frames of a message are of one request.
 */
export async function deriveStream({ scalars }: Server, requests: DeriveRequestInit[]) {
  const assemblers = new Map(requests.map((request) => [request.requestId, new Assembler()]));
  async function* messages() {
    for (const value of requests) yield { message: { case: "request" as const, value } };
  }
  const predictions: Record<string, Prediction> = {};
  for await (const { frames } of scalars.deriveStream(messages())) {
    for (const message of frames) {
      const { requestId, frame } = message;
      const assembler = assemblers.get(requestId);
      if (!assembler) throw new DamagedAnswer(`a frame for ${requestId}, which was not asked`);
      if (frame.case === "itemResult" && frame.value.result.case === "error") {
        // An item that failed ends so, in place of its trailer, and the others go on.
        predictions[requestId] = { error: fromStatus(frame.value.result.value) };
        assemblers.delete(requestId);
      } else {
        assembler.add(message);
      }
    }
  }
  for (const [requestId, assembler] of assemblers) predictions[requestId] = predict(assembler.finish());
  return predictions;
}

/** Finds the largest logit at the last token. */
function predict({ header, tensors }: Answer): Prediction {
  const logits = tensors[0];
  if (!logits) throw new DamagedAnswer("it holds no logits");
  const vocabulary = logits.axis(Dimension.VOCAB_SIZE).size;
  const last = logits.values.subarray(-vocabulary);
  const next = last.reduce((best, logit, token) => (logit > last[best]! ? token : best), 0);
  return { token_count: header.tokenIds.length, next_token: next };
}

/** What a call, which must fail, fails with. */
export async function failure(call: Promise<unknown>): Promise<ErrorReport> {
  try {
    await call;
  } catch (thrown) {
    if (thrown instanceof ConnectError) return fromError(thrown);
    throw thrown;
  }
  throw new Error("a call that must fail did not");
}

/** Watches the server's contexts, which never ends by itself. */
export async function missDeadline({ contexts }: Server): Promise<void> {
  for await (const _ of contexts.watchContexts({}, { timeoutMs: 250 }));
}

/** Stops an answer after its first message, and waits until the server has stopped working for it. */
export async function cancelDerive({ scalars, contexts }: Server, request: DeriveRequestInit): Promise<number> {
  const call = new AbortController();
  try {
    for await (const _ of scalars.derive(request, { signal: call.signal })) call.abort();
  } catch (thrown) {
    if (!call.signal.aborted) throw thrown;
  }
  const end = Date.now() + 10_000;
  for (;;) {
    const response = await contexts.listContexts({});
    const pins = response.contexts.reduce((sum, context) => sum + context.pins, 0);
    if (pins === 0) return pins;
    if (Date.now() > end) throw new Error("the server still works for a cancelled call");
    await setTimeout(50);
  }
}

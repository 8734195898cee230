// Running requests: one, many on a stream, one that is late, one that is cancelled.

import { setTimeout } from "node:timers/promises";

import { ConnectError } from "@connectrpc/connect";

import { Dimension } from "../gen/dst/v1/component_pb.js";
import type { DeriveFrame } from "../gen/dst/v1/inference_pb.js";
import { type Answer, assemble, Assembler, DamagedAnswer } from "./assemble.js";
import { type ErrorReport, fromError, fromStatus } from "./errors.js";
import type { DeriveRequestInit } from "./requests.js";
import type { Server } from "./server.js";

type Prediction = { token_count: number; next_token: number } | { error: ErrorReport };

/** Runs one request. */
export async function derive({ scalars }: Server, request: DeriveRequestInit): Promise<Answer> {
  const call = new AbortController();
  async function* frames(): AsyncIterable<DeriveFrame> {
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
 * frames of a message are of one item.
 */
export async function deriveStream({ scalars }: Server, requests: DeriveRequestInit[]) {
  // By item: the server numbers requests as they come.
  const assemblers = requests.map(() => new Assembler());
  async function* messages() {
    for (const value of requests) yield { message: { case: "request" as const, value } };
  }
  const predictions: Record<string, Prediction> = {};
  for await (const { requestId, itemIndex, frames } of scalars.deriveStream(messages())) {
    const assembler = assemblers[itemIndex];
    if (!assembler) throw new DamagedAnswer(`item ${itemIndex}, which was not asked`);
    for (const message of frames) {
      if (message.frame.case === "error") {
        // An item that failed ends so, in place of its trailer, and the others go on.
        predictions[requestId] = { error: fromStatus(message.frame.value) };
      } else {
        assembler.add(message);
      }
    }
  }
  requests.forEach(({ requestId = "" }, item) => (predictions[requestId] ??= predict(assemblers[item]!.finish())));
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

/** What a call answers, or why it failed. */
export async function result<T>(call: Promise<T>): Promise<T | { error: ErrorReport }> {
  try {
    return await call;
  } catch (thrown) {
    if (thrown instanceof ConnectError) return { error: fromError(thrown) };
    throw thrown;
  }
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

// Errors, with the machine-readable details that every one of them carries (google.rpc).

import { setTimeout } from "node:timers/promises";

import type { DescMessage, MessageShape } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { ConnectError } from "@connectrpc/connect";

import { CodeSchema } from "../gen/google/rpc/code_pb.js";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import type { Status } from "../gen/google/rpc/status_pb.js";
import { nameOf } from "./names.js";

const MOST_ATTEMPTS = 4;

/** What a program can act on. */
export interface ErrorReport {
  /** Name of the gRPC status code, e.g. "INVALID_ARGUMENT". */
  code: string;
  /** Name of a member of dst.v1.ErrorReason; none if gRPC itself made the error. */
  reason: string | undefined;
  /** The bad fields of the request, by their paths. */
  fields: string[];
}

/** Describes the error that a failed call throws. */
export function fromError(error: ConnectError): ErrorReport {
  return report(error.code, (schema) => error.findDetails(schema)[0]);
}

/** Describes the error of one item of a stream. */
export function fromStatus(status: Status): ErrorReport {
  return report(status.code, (schema) => {
    for (const detail of status.details) {
      const found = anyUnpack(detail, schema);
      if (found) return found;
    }
    return undefined;
  });
}

type FindDetail = <T extends DescMessage>(schema: T) => MessageShape<T> | undefined;

function report(code: number, find: FindDetail): ErrorReport {
  return {
    code: nameOf(CodeSchema, code),
    reason: find(ErrorInfoSchema)?.reason,
    fields: find(BadRequestSchema)?.fieldViolations.map((violation) => violation.field) ?? [],
  };
}

/**
 * Makes a call again as long as the server says, in RetryInfo, that waiting helps.
 *
 * RESOURCE_EXHAUSTED, for example, may mean a full queue, which drains, or too little memory for the request, which
 * stays: the code alone does not tell.
 */
export async function retrying<T>(call: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await call();
    } catch (thrown) {
      const delay = thrown instanceof ConnectError ? thrown.findDetails(RetryInfoSchema)[0]?.retryDelay : undefined;
      if (!delay || attempt === MOST_ATTEMPTS) throw thrown;
      await setTimeout(Number(delay.seconds) * 1000 + Math.ceil(delay.nanos / 1e6));
    }
  }
}

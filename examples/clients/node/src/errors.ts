// Errors, with the machine-readable details that every one of them carries (google.rpc).

import type { DescMessage, MessageShape } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import type { ConnectError } from "@connectrpc/connect";

import { Code } from "../gen/google/rpc/code_pb.js";
import { BadRequestSchema, ErrorInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import type { Status } from "../gen/google/rpc/status_pb.js";

export interface ErrorReport {
  /** Name of the gRPC status code, e.g. "INVALID_ARGUMENT". */
  code: string;
  message: string;
  /** Name of a member of dst.v1.ErrorReason. */
  reason: string | undefined;
  domain: string | undefined;
  /** Every bad field of the request by its path. */
  violations: { field: string; description: string }[];
}

/** Describes the error that a failed call throws. */
export function fromError(error: ConnectError): ErrorReport {
  return describe(error.code, error.rawMessage, (schema) => error.findDetails(schema)[0]);
}

/** Describes the error of one item of a stream. */
export function fromStatus(status: Status): ErrorReport {
  return describe(status.code, status.message, (schema) => {
    for (const detail of status.details) {
      const found = anyUnpack(detail, schema);
      if (found) return found;
    }
    return undefined;
  });
}

type FindDetail = <T extends DescMessage>(schema: T) => MessageShape<T> | undefined;

function describe(code: number, message: string, find: FindDetail): ErrorReport {
  const info = find(ErrorInfoSchema);
  const violations = find(BadRequestSchema)?.fieldViolations ?? [];
  return {
    code: Code[code] ?? String(code),
    message,
    reason: info?.reason,
    domain: info?.domain,
    violations: violations.map(({ field, description }) => ({ field, description })),
  };
}

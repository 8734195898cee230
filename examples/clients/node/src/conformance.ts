// What the assembler makes of the vectors of tests/conformance: answers as bytes, sound and damaged.

import { readFileSync } from "node:fs";

import { fromBinary } from "@bufbuild/protobuf";
import { base64Decode } from "@bufbuild/protobuf/wire";

import { DeriveResponseSchema } from "../gen/dst/v1/inference_pb.js";
import { assemble, DamagedAnswer, TruncatedAnswer } from "./assemble.js";
import type { Tensor } from "./tensor.js";

interface Vector {
  name: string;
  /** DeriveResponses, in base64. */
  messages: string[];
}

async function result({ messages }: Vector) {
  const frames = messages.flatMap((message) => fromBinary(DeriveResponseSchema, base64Decode(message)).frames);
  try {
    return { tensors: (await assemble(frames)).tensors.map(ofTensor) };
  } catch (thrown) {
    if (!(thrown instanceof DamagedAnswer)) throw thrown;
    return { error: thrown instanceof TruncatedAnswer ? "truncated" : "corrupt" };
  }
}

function ofTensor(tensor: Tensor) {
  // Bits are taken from memory: JavaScript may change those of a NaN that it reads as a number.
  const { buffer, byteOffset, length } = tensor.dense();
  const words = Array.from(new Uint32Array(buffer, byteOffset, length));
  return {
    shape: tensor.shape,
    layer_index: tensor.info.layerIndex ?? null,
    bits: words.map((word) => word.toString(16).padStart(8, "0")),
  };
}

const [file] = process.argv.slice(2);
if (file === undefined) {
  console.error("usage: conformance.js VECTORS_FILE");
  process.exit(2);
}
const vectors = JSON.parse(readFileSync(file, "utf8")) as Vector[];
const results = await Promise.all(vectors.map(async (vector) => [vector.name, await result(vector)] as const));
console.log(JSON.stringify(Object.fromEntries(results)));

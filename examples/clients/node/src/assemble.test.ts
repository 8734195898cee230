import assert from "node:assert/strict";
import { test } from "node:test";
import { crc32 } from "node:zlib";

import { create, type MessageInitShape } from "@bufbuild/protobuf";

import { Dimension } from "../gen/dst/v1/component_pb.js";
import { type DeriveFrame, DeriveFrameSchema, TensorInfoSchema } from "../gen/dst/v1/inference_pb.js";
import { TensorElementType, TensorEncoding } from "../gen/dst/v1/tensor_pb.js";
import { assemble, DamagedAnswer, TruncatedAnswer } from "./assemble.js";
import { floats } from "./elements.js";

type InfoInit = MessageInitShape<typeof TensorInfoSchema>;

const { SEQUENCE_TOKENS, ATTN_HEADS, AUTOENCODER_LATENTS } = Dimension;
const NUMBERS = Float32Array.of(1, -2.5, -Infinity, 0, 1e-30, 7);

/** The frames of an answer, cut as the server does. */
function cut(tensors: { info: InfoInit; data: Uint8Array }[], chunkBytes = 8): DeriveFrame[] {
  const infos = tensors.map(({ info, data }, tensorId) => ({
    tensorId,
    byteLength: BigInt(data.length),
    elementType: TensorElementType.FLOAT32,
    encoding: TensorEncoding.DENSE,
    ...info,
  }));
  const frames = [create(DeriveFrameSchema, { frame: { case: "header", value: { tensors: infos } } })];
  tensors.forEach(({ data }, tensorId) => {
    for (let offset = 0; offset < data.length; offset += chunkBytes) {
      const value = { tensorId, offset: BigInt(offset), data: data.slice(offset, offset + chunkBytes) };
      frames.push(create(DeriveFrameSchema, { frame: { case: "chunk", value } }));
    }
  });
  const trailer = {
    tensorCount: tensors.length,
    byteCount: BigInt(tensors.reduce((sum, { data }) => sum + data.length, 0)),
    checksums: tensors.map(({ data }) => crc32(data)),
  };
  return [...frames, create(DeriveFrameSchema, { frame: { case: "trailer", value: trailer } })];
}

function axes(...sizes: [Dimension, number][]) {
  return sizes.map(([dimension, size]) => ({ dimension, size: BigInt(size) }));
}

function bytes(array: Float32Array | Uint16Array | Uint32Array): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

function example(): DeriveFrame[] {
  const matrix = axes([SEQUENCE_TOKENS, 2], [ATTN_HEADS, 3]);
  return cut([
    { info: { axes: matrix }, data: bytes(NUMBERS) },
    { info: { axes: axes([SEQUENCE_TOKENS, 0]) }, data: new Uint8Array() },
    { info: { axes: [] }, data: bytes(Float32Array.of(42)) },
  ]);
}

async function refused(frames: DeriveFrame[], problem: RegExp): Promise<void> {
  await assert.rejects(assemble(frames), (error) => error instanceof DamagedAnswer && problem.test(error.message));
}

test("several chunks, an empty tensor and a scalar", async () => {
  const { tensors } = await assemble(example());
  assert.deepEqual(tensors.map((tensor) => tensor.values), [NUMBERS, Float32Array.of(), Float32Array.of(42)]);
  assert.deepEqual(tensors.map((tensor) => tensor.shape), [[2, 3], [0], []]);
  assert.deepEqual(tensors[0]?.axis(SEQUENCE_TOKENS), { size: 2, stride: 3 });
  assert.deepEqual(tensors[0]?.axis(ATTN_HEADS), { size: 3, stride: 1 });
  assert.throws(() => tensors[0]?.axis(AUTOENCODER_LATENTS), /no axis AUTOENCODER_LATENTS/);
});

test("frames of a kind that is not known are ignored", async () => {
  const frames = example();
  frames.splice(2, 0, create(DeriveFrameSchema));
  assert.equal((await assemble(frames)).tensors.length, 3);
});

test("truncation at every frame", async () => {
  const frames = example();
  for (let length = 0; length < frames.length; length++) {
    await assert.rejects(assemble(frames.slice(0, length)), TruncatedAnswer);
  }
});

test("a missing chunk", async () => {
  const frames = example();
  for (let i = 1; i < frames.length - 1; i++) {
    await refused(frames.toSpliced(i, 1), /expected offset|in place of|before the end of tensor/);
  }
});

test("chunks out of order", async () => {
  const [header, first, second, ...rest] = example() as [DeriveFrame, DeriveFrame, DeriveFrame, ...DeriveFrame[]];
  await refused([header, second, first, ...rest], /tensor 0 at 8: expected offset 0/);
});

test("a repeated chunk", async () => {
  const [header, first, ...rest] = example() as [DeriveFrame, DeriveFrame, ...DeriveFrame[]];
  await refused([header, first, first, ...rest], /tensor 0 at 0: expected offset 8/);
});

test("a flipped bit", async () => {
  const frames = example();
  const chunk = frames[2]!.frame;
  assert(chunk.case === "chunk");
  chunk.value.data[0]! ^= 1;
  await refused(frames, /tensor 0: the checksum differs/);
});

test("frames where none may be", async () => {
  const frames = example();
  const [header, chunk] = frames as [DeriveFrame, DeriveFrame];
  await refused([chunk, ...frames], /header must come first/);
  await refused([header, ...frames], /header must come first, and once/);
  await refused([...frames, chunk], /a chunk after the trailer/);
  await refused([header, create(DeriveFrameSchema, { frame: { case: "error", value: {} } })], /DeriveStream/);
});

test("more bytes than announced", async () => {
  const frames = example();
  const chunk = frames[3]!.frame;
  assert(chunk.case === "chunk");
  chunk.value.data = new Uint8Array(12);
  await refused(frames, /12 bytes exceed 24/);
});

test("a length that the axes do not come to", async () => {
  const info = { axes: axes([SEQUENCE_TOKENS, 7]) };
  await refused(cut([{ info, data: bytes(NUMBERS) }]), /24 bytes announced, its sizes make 28/);
});

for (const [elementType, values] of [
  [TensorElementType.FLOAT32, bytes(Float32Array.of(0.5, -2, 9))],
  [TensorElementType.FLOAT16, bytes(Uint16Array.of(0x3800, 0xc000, 0x4880))],
  [TensorElementType.BFLOAT16, bytes(Uint16Array.of(0x3f00, 0xc000, 0x4110))],
] as const) {
  test(`sparse latents with values of type ${TensorElementType[elementType]}`, async () => {
    const coordinates = bytes(Uint32Array.of(0, 1, 1, 0, 1, 3));
    const info = {
      axes: axes([SEQUENCE_TOKENS, 2], [AUTOENCODER_LATENTS, 4]),
      elementType,
      encoding: TensorEncoding.SPARSE_LATENTS,
      nonzeroCount: 3n,
    };
    const { tensors } = await assemble(cut([{ info, data: Buffer.concat([values, coordinates]) }]));
    assert.deepEqual(tensors[0]?.values, Float32Array.of(0.5, -2, 9));
    assert.deepEqual(tensors[0]?.coordinates, Uint32Array.of(0, 1, 1, 0, 1, 3));
    assert.deepEqual(tensors[0]?.dense(), Float32Array.of(0, 0.5, 0, 0, -2, 0, 0, 9));
  });
}

test("float16", () => {
  const bits = Uint16Array.of(0x0000, 0x8000, 0x3c00, 0xc000, 0x7bff, 0x0400, 0x0001, 0x7c00, 0xfc00, 0x7e00);
  const expected = [0, -0, 1, -2, 65504, 2 ** -14, 2 ** -24, Infinity, -Infinity, NaN];
  assert.deepEqual([...floats(bytes(bits), TensorElementType.FLOAT16)], expected);
});

test("bfloat16", () => {
  const bits = Uint16Array.of(0x0000, 0x8000, 0x3f80, 0xc000, 0x4049, 0x0001, 0x7f80, 0xff80, 0x7fc0);
  const expected = [0, -0, 1, -2, 3.140625, 2 ** -133, Infinity, -Infinity, NaN];
  assert.deepEqual([...floats(bytes(bits), TensorElementType.BFLOAT16)], expected);
});

test("bytes that are not aligned", () => {
  const shifted = new Uint8Array(1 + NUMBERS.byteLength);
  shifted.set(bytes(NUMBERS), 1);
  assert.deepEqual(floats(shifted.subarray(1), TensorElementType.FLOAT32), NUMBERS);
});

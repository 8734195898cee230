// Bytes of the wire -> numbers. Elements are little-endian and without padding.

import { endianness } from "node:os";

import { TensorElementType } from "../gen/dst/v1/tensor_pb.js";

/** Bytes of one element of the types that an answer may have. */
export function byteWidth(type: TensorElementType): 2 | 4 {
  switch (type) {
    case TensorElementType.FLOAT32:
    case TensorElementType.UINT32:
      return 4;
    case TensorElementType.FLOAT16:
    case TensorElementType.BFLOAT16:
      return 2;
    default:
      throw new TypeError(`no decoder for elements of type ${TensorElementType[type] ?? type}`);
  }
}

/** Whether `floats` reads elements of a type. */
export function isFloat(type: TensorElementType): boolean {
  const { FLOAT32, FLOAT16, BFLOAT16 } = TensorElementType;
  return [FLOAT32, FLOAT16, BFLOAT16].includes(type);
}

/** Reads floats of any width. A FLOAT32 view shares memory with `bytes`; the others are copies. */
export function floats(bytes: Uint8Array, type: TensorElementType): Float32Array {
  switch (type) {
    case TensorElementType.FLOAT32: {
      const words = uint32s(bytes);
      return new Float32Array(words.buffer, words.byteOffset, words.length);
    }
    case TensorElementType.FLOAT16:
      return Float32Array.from(uint16s(bytes), float16);
    case TensorElementType.BFLOAT16: {
      // The upper half of a float32.
      const words = Uint32Array.from(uint16s(bytes), (bits) => bits << 16);
      return new Float32Array(words.buffer);
    }
    default:
      throw new TypeError(`${TensorElementType[type] ?? type} is no floating-point type`);
  }
}

/** Reads unsigned 32-bit integers, without a copy where the machine's layout allows it. */
export function uint32s(bytes: Uint8Array): Uint32Array {
  const own = native(bytes, 4);
  return new Uint32Array(own.buffer, own.byteOffset, own.byteLength / 4);
}

/** Reads signed 32-bit integers, without a copy where the machine's layout allows it. */
export function int32s(bytes: Uint8Array): Int32Array {
  const words = uint32s(bytes);
  return new Int32Array(words.buffer, words.byteOffset, words.length);
}

function uint16s(bytes: Uint8Array): Uint16Array {
  const own = native(bytes, 2);
  return new Uint16Array(own.buffer, own.byteOffset, own.byteLength / 2);
}

/** The same bytes, aligned and in the machine's byte order, as typed arrays need them. */
function native(bytes: Uint8Array, width: 2 | 4): Uint8Array {
  if (endianness() === "BE") {
    const swapped = Buffer.from(Uint8Array.from(bytes).buffer);
    return width === 2 ? swapped.swap16() : swapped.swap32();
  }
  return bytes.byteOffset % width === 0 ? bytes : Uint8Array.from(bytes);
}

/** IEEE 754 binary16: 1 sign bit, 5 of exponent, 10 of fraction. */
function float16(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

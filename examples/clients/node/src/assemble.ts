// Frames -> tensors. Each tensor's memory is allocated once, from the header, and nothing is believed unchecked:
// order, offsets, lengths and checksums.

import { crc32 } from "node:zlib";

import type { DeriveFrame, Header, TensorChunk, TensorInfo, Trailer } from "../gen/dst/v1/inference_pb.js";
import { HeaderSchema } from "../gen/dst/v1/inference_pb.js";
import { TensorEncoding, TensorElementType } from "../gen/dst/v1/tensor_pb.js";
import { byteWidth, floats, isFloat, uint32s } from "./elements.js";
import { joined } from "./names.js";
import { Tensor } from "./tensor.js";

/** How much an answer may announce: memory is taken before anything else has come. */
const MAX_BYTES = 8 * 2 ** 30;

/** A whole answer. */
export interface Answer {
  header: Header;
  tensors: Tensor[];
  trailer: Trailer;
}

/** The frames are not those of one whole, undamaged answer. */
export class DamagedAnswer extends Error {
  override readonly name = "DamagedAnswer";
}

/** The frames end before the trailer. Any other damage is that they contradict themselves. */
export class TruncatedAnswer extends DamagedAnswer {
  constructor() {
    super("truncated: it ended without a trailer");
  }
}

/** Puts the answer of one request together. */
export async function assemble(frames: AsyncIterable<DeriveFrame> | Iterable<DeriveFrame>): Promise<Answer> {
  const assembler = new Assembler();
  for await (const frame of frames) assembler.add(frame);
  return assembler.finish();
}

/** The frames of one request go in, in order; its answer comes out. */
export class Assembler {
  /** All pieces of it: that of many tensors or tokens comes in several frames, all but the last of them partial. */
  #header: Header | undefined;
  #headerIsComplete = false;
  #trailer: Trailer | undefined;
  #announced = 0;
  #buffers: Uint8Array[] = [];
  #checksums: number[] = [];
  /** The tensor being filled, and how far it is. */
  #current = 0;
  #filled = 0;

  add(message: DeriveFrame): void {
    const { frame } = message;
    // Kinds of frames that this client does not know have no case, and are ignored.
    if (frame.case === undefined) return;
    check(!this.#trailer, `a ${frame.case} after the trailer`);
    check((frame.case === "header") !== this.#headerIsComplete, "the header must come first, and once");
    switch (frame.case) {
      case "header":
        this.#begin(frame.value);
        this.#headerIsComplete = !message.partial;
        break;
      case "chunk":
        this.#fill(frame.value);
        break;
      case "trailer":
        this.#end(frame.value);
        break;
      case "error":
        throw new DamagedAnswer("an error in place of the trailer; only DeriveStream sends those");
    }
  }

  finish(): Answer {
    const header = this.#header;
    const trailer = this.#trailer;
    if (!header || !trailer) throw new TruncatedAnswer();
    const tensors = header.tensors.map((info, id) => decode(info, this.#buffers[id]!, this.#checksums[id]!));
    tensors.forEach((tensor, id) => check(tensor.inBounds(), `tensor ${id}: coordinates outside of its axes`));
    return { header, tensors, trailer };
  }

  #begin(piece: Header): void {
    check(!this.#header || ["", this.#header.model].includes(piece.model), "pieces of different headers");
    const first = this.#buffers.length;
    piece.tensors.forEach((info, i) =>
      check(info.tensorId === first + i, `tensor ${first + i} is numbered ${info.tensorId}`),
    );
    this.#announced += piece.tensors.reduce((sum, info) => sum + byteLength(info), 0);
    check(this.#announced <= MAX_BYTES, `${this.#announced} bytes announced, more than ${MAX_BYTES}`);
    this.#header = this.#header ? joined(HeaderSchema, this.#header, piece) : piece;
    this.#buffers.push(...piece.tensors.map((info) => new Uint8Array(Number(info.byteLength))));
    this.#checksums.push(...piece.tensors.map(() => 0));
    this.#skipFull();
  }

  #fill({ tensorId, offset, data }: TensorChunk): void {
    const buffer = this.#buffers[tensorId];
    check(buffer && tensorId === this.#current, `a chunk of tensor ${tensorId} in place of ${this.#current}`);
    const at = `tensor ${tensorId} at ${offset}`;
    check(Number(offset) === this.#filled, `${at}: expected offset ${this.#filled}`);
    check(this.#filled + data.length <= buffer.length, `${at}: ${data.length} bytes exceed ${buffer.length}`);
    buffer.set(data, this.#filled);
    this.#filled += data.length;
    this.#checksums[tensorId] = crc32(data, this.#checksums[tensorId]);
    this.#skipFull();
  }

  /** Moves on to the next tensor that still lacks bytes; an empty tensor has no chunks. */
  #skipFull(): void {
    while (this.#filled === this.#buffers[this.#current]?.length) {
      this.#current += 1;
      this.#filled = 0;
    }
  }

  #end(trailer: Trailer): void {
    const count = this.#buffers.length;
    check(this.#current === count, `the trailer came before the end of tensor ${this.#current}`);
    check(trailer.tensorCount === count, `the trailer counts ${trailer.tensorCount} tensors, not ${count}`);
    check(trailer.checksums.length === count, `${trailer.checksums.length} checksums for ${count} tensors`);
    const bytes = this.#buffers.reduce((sum, buffer) => sum + buffer.length, 0);
    check(Number(trailer.byteCount) === bytes, `the trailer counts ${trailer.byteCount} bytes, not ${bytes}`);
    trailer.checksums.forEach((checksum, id) =>
      check(checksum === this.#checksums[id], `tensor ${id}: the checksum differs`),
    );
    this.#trailer = trailer;
  }
}

/** Bytes of a tensor, as announced; they must be what its sizes come to. */
function byteLength(info: TensorInfo): number {
  const { DENSE, SPARSE_LATENTS } = TensorEncoding;
  check([DENSE, SPARSE_LATENTS].includes(info.encoding), `no decoder for encoding ${info.encoding}`);
  check(isFloat(info.elementType), `no decoder for elements of type ${info.elementType}`);
  const width = byteWidth(info.elementType);
  const sizes = info.axes.map((axis) => Number(axis.size));
  const expected =
    info.encoding === SPARSE_LATENTS
      ? Number(info.nonzeroCount ?? NaN) * (width + sizes.length * byteWidth(TensorElementType.UINT32))
      : sizes.reduce((product, size) => product * size, width);
  const announced = Number(info.byteLength);
  check(announced === expected, `tensor ${info.tensorId}: ${announced} bytes announced, its sizes make ${expected}`);
  return announced;
}

function decode(info: TensorInfo, bytes: Uint8Array, checksum: number): Tensor {
  if (info.encoding !== TensorEncoding.SPARSE_LATENTS) {
    return new Tensor(info, floats(bytes, info.elementType), undefined, checksum);
  }
  const split = Number(info.nonzeroCount) * byteWidth(info.elementType);
  const values = floats(bytes.subarray(0, split), info.elementType);
  return new Tensor(info, values, uint32s(bytes.subarray(split)), checksum);
}

function check(holds: unknown, problem: string): asserts holds {
  if (!holds) throw new DamagedAnswer(problem);
}

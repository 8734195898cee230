// A tensor of an answer: what it is, and its numbers.

import { Dimension } from "../gen/dst/v1/component_pb.js";
import type { TensorInfo } from "../gen/dst/v1/inference_pb.js";

/** Where an axis lies in the row-major order of the elements. */
export interface AxisLayout {
  size: number;
  /** Elements from one position of the axis to the next. */
  stride: number;
}

export class Tensor {
  /**
   * @param info - What the header said about it.
   * @param values - Every element in row-major order or, of a sparse tensor, the nonzero ones.
   * @param coordinates - Of a sparse tensor the position of each value, one number per axis.
   */
  constructor(
    readonly info: TensorInfo,
    readonly values: Float32Array,
    readonly coordinates: Uint32Array | undefined,
    readonly checksum: number,
  ) {}

  get shape(): number[] {
    return this.info.axes.map((axis) => Number(axis.size));
  }

  /** Finds an axis by what it runs over: their order differs from type to type. */
  axis(dimension: Dimension): AxisLayout {
    const position = this.info.axes.findIndex((axis) => axis.dimension === dimension);
    if (position < 0) throw new RangeError(`the tensor has no axis ${Dimension[dimension] ?? dimension}`);
    const [size, ...inner] = this.shape.slice(position);
    return { size: size!, stride: inner.reduce((product, length) => product * length, 1) };
  }

  /** Row-major position, in the whole tensor, of one of the values. */
  at(value: number): number {
    const { coordinates, shape } = this;
    if (!coordinates) return value;
    const position = coordinates.subarray(value * shape.length, (value + 1) * shape.length);
    return position.reduce((offset, at, axis) => offset * shape[axis]! + at, 0);
  }

  /** Whether every coordinate lies on its axis. */
  inBounds(): boolean {
    const { coordinates, shape } = this;
    return coordinates?.every((at, i) => at < shape[i % shape.length]!) ?? true;
  }

  /** The tensor with its zeros. */
  dense(): Float32Array {
    if (!this.coordinates) return this.values;
    const all = new Float32Array(this.shape.reduce((product, length) => product * length, 1));
    this.values.forEach((value, entry) => (all[this.at(entry)] = value));
    return all;
  }
}

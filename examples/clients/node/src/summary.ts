// What an answer holds, short enough to print.

import { PassTypeSchema } from "../gen/dst/v1/component_pb.js";
import { DerivedScalarTypeSchema } from "../gen/dst/v1/derived_scalar_type_pb.js";
import { TensorElementTypeSchema, TensorEncodingSchema } from "../gen/dst/v1/tensor_pb.js";
import type { Answer } from "./assemble.js";
import { bits, nameOf } from "./names.js";
import { axisPairs } from "./resolve.js";
import type { Tensor } from "./tensor.js";

export function summarize({ header, tensors, trailer }: Answer) {
  return {
    model: header.model,
    token_count: header.tokenIds.length,
    loss: header.loss === undefined ? null : bits(header.loss, 64), // absent, not 0, if no loss was asked for
    byte_count: Number(trailer.byteCount),
    tensors: tensors.map(summarizeTensor),
  };
}

function summarizeTensor(tensor: Tensor) {
  const { info, values } = tensor;
  let minusInfinities = 0;
  let largest: number | undefined;
  let smallest: number | undefined;
  values.forEach((value, i) => {
    if (value === -Infinity) minusInfinities += 1;
    if (!Number.isFinite(value)) return;
    if (largest === undefined || value > values[largest]!) largest = i;
    if (smallest === undefined || value < values[smallest]!) smallest = i;
  });
  return {
    dst: nameOf(DerivedScalarTypeSchema, info.dst),
    pass_type: nameOf(PassTypeSchema, info.passType),
    layer_index: info.layerIndex ?? null,
    axes: axisPairs(info.axes),
    element_type: nameOf(TensorElementTypeSchema, info.elementType),
    encoding: nameOf(TensorEncodingSchema, info.encoding),
    nonzero_count: info.nonzeroCount === undefined ? null : Number(info.nonzeroCount),
    checksum: tensor.checksum,
    minus_infinities: minusInfinities,
    largest: entry(tensor, largest),
    smallest: entry(tensor, smallest),
  };
}

function entry(tensor: Tensor, i: number | undefined) {
  return i === undefined ? null : { at: tensor.at(i), bits: bits(tensor.values[i]!) };
}

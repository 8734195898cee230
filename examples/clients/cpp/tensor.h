// Tensors: from the bytes of the wire, which are little-endian, row-major and without padding, to numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "dst/v1/inference.pb.h"

struct Tensor {
  dst::v1::TensorInfo info;
  std::vector<float> values;          // every element in row-major order or, of a sparse tensor, the nonzero ones
  std::vector<uint32_t> coordinates;  // of a sparse tensor the position of each value, one number per axis
  uint32_t checksum;

  bool is_sparse() const;
  // Row-major position, in the whole tensor, of one of the values.
  uint64_t at(std::size_t value) const;
  // Whether every coordinate lies on its axis.
  bool in_bounds() const;
  // Every element in row-major order, zeros included.
  std::vector<float> dense() const;
};

// Bytes of an element of the types that an answer may have, 0 for any other.
std::size_t byte_width(dst::v1::TensorElementType type);

Tensor decode(const dst::v1::TensorInfo& info, const std::string& data, uint32_t checksum);

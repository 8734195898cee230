#include "tensor.h"

#include <cmath>
#include <cstring>

namespace {

// Byte by byte, which is right on machines of either byte order; compilers make one load of it.
uint16_t load16(const char* bytes) {
  const auto* b = reinterpret_cast<const unsigned char*>(bytes);
  return static_cast<uint16_t>(b[0] | b[1] << 8);
}

uint32_t load32(const char* bytes) { return load16(bytes) | static_cast<uint32_t>(load16(bytes + 2)) << 16; }

float float32(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// IEEE 754 binary16: 1 sign bit, 5 of exponent, 10 of fraction.
float float16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits >> 15) << 31;
  const uint32_t exponent = bits >> 10 & 0x1f;
  const uint32_t fraction = bits & 0x3ff;
  if (exponent == 0) return std::copysign(std::ldexp(static_cast<float>(fraction), -24), float32(sign));  // subnormal
  if (exponent == 0x1f) return float32(sign | 0xffu << 23 | fraction << 13);  // infinity, NaN
  return float32(sign | (exponent + 127 - 15) << 23 | fraction << 13);
}

float element(const char* bytes, dst::v1::TensorElementType type) {
  switch (type) {
    case dst::v1::TENSOR_ELEMENT_TYPE_FLOAT16:
      return float16(load16(bytes));
    case dst::v1::TENSOR_ELEMENT_TYPE_BFLOAT16:
      return float32(static_cast<uint32_t>(load16(bytes)) << 16);  // the upper half of a float32
    default:
      return float32(load32(bytes));
  }
}

}  // namespace

bool Tensor::is_sparse() const { return info.encoding() == dst::v1::TENSOR_ENCODING_SPARSE_LATENTS; }

uint64_t Tensor::at(std::size_t value) const {
  if (!is_sparse()) return value;
  uint64_t position = 0;
  for (int axis = 0; axis < info.axes_size(); axis++) {
    position = position * info.axes(axis).size() + coordinates[value * info.axes_size() + axis];
  }
  return position;
}

bool Tensor::in_bounds() const {
  for (std::size_t i = 0; i < coordinates.size(); i++) {
    if (coordinates[i] >= info.axes(i % info.axes_size()).size()) return false;
  }
  return true;
}

std::vector<float> Tensor::dense() const {
  if (!is_sparse()) return values;
  uint64_t size = 1;
  for (const auto& axis : info.axes()) size *= axis.size();
  std::vector<float> elements(size);
  for (std::size_t i = 0; i < values.size(); i++) elements.at(at(i)) = values[i];
  return elements;
}

std::size_t byte_width(dst::v1::TensorElementType type) {
  switch (type) {
    case dst::v1::TENSOR_ELEMENT_TYPE_FLOAT32:
      return 4;
    case dst::v1::TENSOR_ELEMENT_TYPE_FLOAT16:
    case dst::v1::TENSOR_ELEMENT_TYPE_BFLOAT16:
      return 2;
    default:
      return 0;
  }
}

Tensor decode(const dst::v1::TensorInfo& info, const std::string& data, uint32_t checksum) {
  Tensor tensor{info, {}, {}, checksum};
  const std::size_t width = byte_width(info.element_type());
  const std::size_t count = tensor.is_sparse() ? info.nonzero_count() : data.size() / width;
  tensor.values.reserve(count);
  for (std::size_t i = 0; i < count; i++) {
    tensor.values.push_back(element(data.data() + width * i, info.element_type()));
  }
  // Of a sparse tensor the values come first, then their coordinates.
  for (std::size_t offset = width * count; offset < data.size(); offset += sizeof(uint32_t)) {
    tensor.coordinates.push_back(load32(data.data() + offset));
  }
  return tensor;
}

// What an answer holds, short enough to print.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <optional>

#include "steps.h"

namespace {

std::string bits64(double value) {
  uint64_t word;
  std::memcpy(&word, &value, sizeof word);
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(word));
  return text;
}

Json entry(const Tensor& tensor, std::optional<std::size_t> value) {
  if (!value) return nullptr;
  return {{"at", tensor.at(*value)}, {"bits", bits(tensor.values[*value])}};
}

Json summarize(const Tensor& tensor) {
  const auto& info = tensor.info;
  int minus_infinities = 0;
  std::optional<std::size_t> largest, smallest;
  for (std::size_t i = 0; i < tensor.values.size(); i++) {
    const float value = tensor.values[i];
    if (std::isinf(value) && value < 0) minus_infinities++;
    if (!std::isfinite(value)) continue;
    if (!largest || value > tensor.values[*largest]) largest = i;
    if (!smallest || value < tensor.values[*smallest]) smallest = i;
  }
  return {
      {"dst", dst::v1::DerivedScalarType_Name(info.dst())},
      {"pass_type", dst::v1::PassType_Name(info.pass_type())},
      {"layer_index", info.has_layer_index() ? Json(info.layer_index()) : Json()},
      {"axes", axes(info.axes())},
      {"element_type", dst::v1::TensorElementType_Name(info.element_type())},
      {"encoding", dst::v1::TensorEncoding_Name(info.encoding())},
      {"nonzero_count", info.has_nonzero_count() ? Json(info.nonzero_count()) : Json()},
      {"checksum", tensor.checksum},
      {"minus_infinities", minus_infinities},
      {"largest", entry(tensor, largest)},
      {"smallest", entry(tensor, smallest)},
  };
}

}  // namespace

Json summarize(const Answer& answer) {
  Json tensors = Json::array();
  for (const auto& tensor : answer.tensors) tensors.push_back(summarize(tensor));
  const auto& header = answer.header;
  return {
      {"model", header.model()},
      {"token_count", header.token_ids_size()},
      {"loss", header.has_loss() ? Json(bits64(header.loss())) : Json()},  // absent, not 0, if no loss was asked for
      {"byte_count", answer.trailer.byte_count()},
      {"tensors", tensors},
  };
}

// Pairs of a dimension's name and a size.
Json axes(const google::protobuf::RepeatedPtrField<dst::v1::Axis>& axes) {
  Json pairs = Json::array();
  for (const auto& axis : axes) {
    pairs.push_back(Json::array({dst::v1::Dimension_Name(axis.dimension()), axis.size()}));
  }
  return pairs;
}

Json to_json(const ErrorReport& report) {
  return {{"code", report.code}, {"reason", report.reason}, {"fields", report.fields}};
}

std::string bits(float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  char text[9];
  std::snprintf(text, sizeof text, "%08x", word);
  return text;
}

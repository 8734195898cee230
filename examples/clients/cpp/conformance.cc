// What the assembler makes of the vectors of tests/conformance: answers as bytes, sound and damaged.
#include <fstream>
#include <iostream>

#include "steps.h"

namespace {

// Without checks: vectors are made by a program.
std::string decode_base64(const std::string& text) {
  static const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  uint32_t pending = 0;
  int count = 0;  // bits of `pending` that are not in `bytes` yet
  for (const char digit : text.substr(0, text.find('='))) {
    pending = pending << 6 | static_cast<uint32_t>(digits.find(digit));
    count += 6;
    if (count >= 8) bytes.push_back(static_cast<char>(pending >> (count -= 8)));
  }
  return bytes;
}

Answer assemble(const Json& messages) {
  Assembler assembler;
  for (const auto& message : messages) {
    dst::v1::DeriveResponse response;
    if (!response.ParseFromString(decode_base64(message))) throw std::runtime_error("a vector is not a message");
    for (const auto& frame : response.frames()) assembler.add(frame);
  }
  return assembler.finish();
}

Json to_json(const Tensor& tensor) {
  Json shape = Json::array(), elements = Json::array();
  for (const auto& axis : tensor.info.axes()) shape.push_back(axis.size());
  for (const float element : tensor.dense()) elements.push_back(bits(element));
  const Json layer_index = tensor.info.has_layer_index() ? Json(tensor.info.layer_index()) : Json();
  return {{"shape", shape}, {"layer_index", layer_index}, {"bits", elements}};
}

Json result(const Json& messages) {
  try {
    const Answer answer = assemble(messages);
    Json tensors = Json::array();
    for (const auto& tensor : answer.tensors) tensors.push_back(to_json(tensor));
    return {{"tensors", tensors}};
  } catch (const TruncatedAnswer&) {
    return {{"error", "truncated"}};
  } catch (const DamagedAnswer&) {
    return {{"error", "corrupt"}};
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: conformance VECTORS_FILE\n";
    return 2;
  }
  try {
    std::ifstream file(argv[1]);
    Json results;
    for (const auto& vector : Json::parse(file)) results[vector.at("name")] = result(vector.at("messages"));
    std::cout << results.dump() << '\n';
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}

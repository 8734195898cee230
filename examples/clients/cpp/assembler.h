// Frames -> tensors. Each tensor's memory is allocated once, from the header, and nothing is believed unchecked: order,
// offsets, lengths and checksums.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "dst/v1/inference.pb.h"
#include "tensor.h"

// The frames are not those of one whole, undamaged answer.
class DamagedAnswer : public std::runtime_error {
 public:
  explicit DamagedAnswer(const std::string& problem) : std::runtime_error("the answer is damaged: " + problem) {}
};

// The frames end before the trailer. Any other damage is that they contradict themselves.
class TruncatedAnswer : public DamagedAnswer {
 public:
  TruncatedAnswer() : DamagedAnswer("truncated: it ended without a trailer") {}
};

// A whole, undamaged answer.
struct Answer {
  dst::v1::Header header;
  std::vector<Tensor> tensors;
  dst::v1::Trailer trailer;
};

// The frames of one request go in, in order; its answer comes out. Throws DamagedAnswer.
class Assembler {
 public:
  // Takes the next frame. Kinds that this client does not know are ignored.
  void add(const dst::v1::DeriveFrame& frame);
  // Gives the answer. One without its trailer is truncated, even if the call's status is OK.
  Answer finish() const;

 private:
  void begin(const dst::v1::Header& piece, bool partial);
  void fill(const dst::v1::TensorChunk& chunk);
  void skip_full();
  void end(const dst::v1::Trailer& trailer);

  // Of all pieces: that of many tensors or tokens comes in several frames, all but the last of them partial.
  std::optional<dst::v1::Header> header_;
  bool complete_ = false;   // whether the last of them has come
  uint64_t announced_ = 0;  // bytes
  std::vector<std::string> data_;
  std::vector<uint32_t> checksums_;
  std::size_t current_ = 0;  // the tensor being filled,
  std::size_t filled_ = 0;   // and how far it is
  std::optional<dst::v1::Trailer> trailer_;
};

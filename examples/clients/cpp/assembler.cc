#include "assembler.h"

#include <zlib.h>

namespace {

// How much an answer may announce: memory is taken before anything else has come.
constexpr uint64_t kMaxBytes = uint64_t{8} << 30;

void check(bool holds, const std::string& problem) {
  if (!holds) throw DamagedAnswer(problem);
}

// The number of bytes announced must be what the sizes come to.
void check_length(const dst::v1::TensorInfo& info) {
  const std::size_t width = byte_width(info.element_type());
  check(width > 0, "no decoder for " + dst::v1::TensorElementType_Name(info.element_type()));
  const bool sparse = info.encoding() == dst::v1::TENSOR_ENCODING_SPARSE_LATENTS;
  check(sparse || info.encoding() == dst::v1::TENSOR_ENCODING_DENSE,
        "no decoder for " + dst::v1::TensorEncoding_Name(info.encoding()));
  // Whatever the sizes, a double does not wrap around; up to 2^53 it is exact.
  double expected = width;
  if (sparse) {
    expected = static_cast<double>(info.nonzero_count()) * (width + info.axes_size() * sizeof(uint32_t));
  } else {
    for (const auto& axis : info.axes()) expected *= axis.size();
  }
  check(info.byte_length() == expected, "tensor " + std::to_string(info.tensor_id()) + ": " +
                                            std::to_string(info.byte_length()) + " bytes announced, its sizes make " +
                                            std::to_string(expected));
}

}  // namespace

void Assembler::add(const dst::v1::DeriveFrame& frame) {
  switch (frame.frame_case()) {
    case dst::v1::DeriveFrame::kHeader:
      return begin(frame.header(), frame.partial());
    case dst::v1::DeriveFrame::kChunk:
      return fill(frame.chunk());
    case dst::v1::DeriveFrame::kTrailer:
      return end(frame.trailer());
    case dst::v1::DeriveFrame::kError:
      throw DamagedAnswer("an error in place of the trailer; only DeriveStream sends those");
    case dst::v1::DeriveFrame::FRAME_NOT_SET:
      return;
  }
}

Answer Assembler::finish() const {
  if (!trailer_) throw TruncatedAnswer();
  Answer answer{*header_, {}, *trailer_};
  for (std::size_t i = 0; i < data_.size(); i++) {
    answer.tensors.push_back(decode(header_->tensors(i), data_[i], checksums_[i]));
    check(answer.tensors.back().in_bounds(), "tensor " + std::to_string(i) + ": coordinates outside of its axes");
  }
  return answer;
}

void Assembler::begin(const dst::v1::Header& piece, bool partial) {
  check(!complete_, "a second header");
  if (!header_) header_.emplace();
  check(header_->model().empty() || piece.model().empty() || piece.model() == header_->model(),
        "pieces of different headers");
  complete_ = !partial;
  header_->MergeFrom(piece);
  for (const auto& info : piece.tensors()) {
    check(info.tensor_id() == data_.size(), "tensor " + std::to_string(data_.size()) + " has another number");
    check(info.byte_length() <= kMaxBytes - announced_, "more than " + std::to_string(kMaxBytes) + " bytes announced");
    check_length(info);
    announced_ += info.byte_length();
    data_.emplace_back(info.byte_length(), '\0');
    checksums_.push_back(0);
  }
  skip_full();
}

void Assembler::fill(const dst::v1::TensorChunk& chunk) {
  check(complete_ && !trailer_, "a chunk outside of header and trailer");
  check(current_ < data_.size() && chunk.tensor_id() == current_ && chunk.offset() == filled_,
        "a chunk of tensor " + std::to_string(chunk.tensor_id()) + " at " + std::to_string(chunk.offset()) +
            " in place of " + std::to_string(current_) + " at " + std::to_string(filled_));
  std::string& buffer = data_[current_];
  const std::string& piece = chunk.data();
  check(piece.size() <= buffer.size() - filled_, "too many bytes for tensor " + std::to_string(current_));
  piece.copy(&buffer[filled_], piece.size());
  uint32_t& checksum = checksums_[current_];
  checksum = crc32(checksum, reinterpret_cast<const Bytef*>(piece.data()), piece.size());
  filled_ += piece.size();
  skip_full();
}

// Moves on to the next tensor that lacks bytes; an empty tensor has no chunks.
void Assembler::skip_full() {
  while (current_ < data_.size() && filled_ == data_[current_].size()) {
    current_++;
    filled_ = 0;
  }
}

void Assembler::end(const dst::v1::Trailer& trailer) {
  check(complete_ && !trailer_, "a trailer without header, or a second one");
  check(current_ == data_.size(), "the trailer came before the end of tensor " + std::to_string(current_));
  uint64_t bytes = 0;
  for (const auto& tensor : data_) bytes += tensor.size();
  check(trailer.tensor_count() == data_.size() && trailer.byte_count() == bytes &&
            static_cast<std::size_t>(trailer.checksums_size()) == data_.size(),
        "the trailer does not count what came");
  for (std::size_t i = 0; i < data_.size(); i++) {
    check(trailer.checksums(i) == checksums_[i], "tensor " + std::to_string(i) + ": the checksum differs");
  }
  trailer_ = trailer;
}

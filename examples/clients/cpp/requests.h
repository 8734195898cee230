// What the tour asks.
#pragma once

#include <string>
#include <vector>

#include "dst/v1/explain.pb.h"
#include "dst/v1/inference.pb.h"

// What to ask about.
struct Inputs {
  std::string model;
  std::string prompt;
  std::vector<std::string> target_tokens;
  std::vector<std::string> distractor_tokens;
  std::string autoencoder;
  std::string unicode;
};

dst::v1::DeriveRequest dense(const Inputs& inputs);
// Splices an autoencoder into the run; only its active latents travel.
dst::v1::DeriveRequest sparse(const Inputs& inputs);
// Half the bytes, and gradients beside the values.
dst::v1::DeriveRequest half(const Inputs& inputs, const std::string& id, dst::v1::TensorElementType type);
// A layer that no model here has.
dst::v1::DeriveRequest wrong(const Inputs& inputs);
// Four bad fields.
dst::v1::DeriveRequest rejected(const Inputs& inputs);
// An answer of many megabytes.
dst::v1::DeriveRequest large(const Inputs& inputs);
// Eight prompts of different lengths: the prompt's tokens less the last 0, 1, ... One is poisoned.
std::vector<dst::v1::DeriveRequest> prefixes(const Inputs& inputs, const std::vector<uint32_t>& token_ids);
dst::v1::ExplainRequest explain_request(const Inputs& inputs);

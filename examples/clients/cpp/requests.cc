#include "requests.h"

#include <algorithm>
#include <initializer_list>

namespace {

constexpr char kNotOneToken[] = "not one token";

void set_logit_diff(dst::v1::LossFnConfig* loss, const std::vector<std::string>& targets,
                    const std::vector<std::string>& distractors) {
  loss->Clear();
  loss->set_name(dst::v1::LOSS_FN_NAME_LOGIT_DIFF);
  loss->mutable_target_tokens()->Add(targets.begin(), targets.end());
  loss->mutable_distractor_tokens()->Add(distractors.begin(), distractors.end());
}

// Restricts a config to some layers. A config without it means every layer; so does an empty list.
void set_layers(dst::v1::DstConfig* config, std::initializer_list<uint32_t> layers) {
  config->mutable_layer_indices()->mutable_layer_indices()->Add(layers.begin(), layers.end());
}

// About the prompt, and about how far the model prefers the targets to the distractors.
dst::v1::DeriveRequest question(const Inputs& inputs, const std::string& id,
                                std::initializer_list<dst::v1::DerivedScalarType> types) {
  dst::v1::DeriveRequest request;
  request.set_request_id(id);
  request.set_model(inputs.model);
  request.mutable_prompt()->set_text(inputs.prompt);
  set_logit_diff(request.mutable_loss_fn_config(), inputs.target_tokens, inputs.distractor_tokens);
  for (const auto type : types) request.add_derived_scalars()->set_dst(type);
  return request;
}

}  // namespace

dst::v1::DeriveRequest dense(const Inputs& inputs) {
  auto request = question(inputs, "dense",
                          {dst::v1::DERIVED_SCALAR_TYPE_UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD,
                           dst::v1::DERIVED_SCALAR_TYPE_ATTN_QK_LOGITS, dst::v1::DERIVED_SCALAR_TYPE_MLP_WRITE});
  set_layers(request.mutable_derived_scalars(2)->mutable_config(), {0});
  return request;
}

dst::v1::DeriveRequest sparse(const Inputs& inputs) {
  auto request = question(inputs, "sparse",
                          {dst::v1::DERIVED_SCALAR_TYPE_ONLINE_AUTOENCODER_LATENT,
                           dst::v1::DERIVED_SCALAR_TYPE_ONLINE_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD});
  request.add_autoencoders(inputs.autoencoder);
  request.set_encoding(dst::v1::TENSOR_ENCODING_SPARSE_LATENTS);
  return request;
}

dst::v1::DeriveRequest half(const Inputs& inputs, const std::string& id, dst::v1::TensorElementType type) {
  auto request = question(inputs, id, {dst::v1::DERIVED_SCALAR_TYPE_ATTN_QK_PROBS});
  set_layers(request.mutable_config(), {0});
  request.mutable_config()->set_derive_gradients(true);
  request.set_element_type(type);
  return request;
}

dst::v1::DeriveRequest wrong(const Inputs& inputs) {
  auto request = dense(inputs);
  request.set_request_id("wrong");
  set_layers(request.mutable_config(), {0, 999});
  return request;
}

dst::v1::DeriveRequest rejected(const Inputs& inputs) {
  auto request = question(inputs, "rejected",
                          {dst::v1::DERIVED_SCALAR_TYPE_MLP_POST_ACT, dst::v1::DERIVED_SCALAR_TYPE_ATTN_WRITE});
  set_layers(request.mutable_derived_scalars(1)->mutable_config(), {77});
  set_logit_diff(request.mutable_loss_fn_config(), {kNotOneToken}, {});
  set_layers(request.mutable_config(), {0, 999});
  request.mutable_config()->set_device_for_raw_activations("cuda:3");
  return request;
}

dst::v1::DeriveRequest large(const Inputs& inputs) {
  return question(inputs, "large", {dst::v1::DERIVED_SCALAR_TYPE_MLP_WRITE});
}

std::vector<dst::v1::DeriveRequest> prefixes(const Inputs& inputs, const std::vector<uint32_t>& token_ids) {
  std::vector<dst::v1::DeriveRequest> requests;
  for (int i = 0; i < 8; i++) {
    auto request = question(inputs, "prompt-" + std::to_string(i), {dst::v1::DERIVED_SCALAR_TYPE_LOGITS});
    const auto length = std::max<std::ptrdiff_t>(1, static_cast<std::ptrdiff_t>(token_ids.size()) - i);
    request.mutable_prompt()->mutable_token_ids()->mutable_token_ids()->Add(token_ids.begin(),
                                                                            token_ids.begin() + length);
    request.clear_loss_fn_config();
    if (i == 3) set_logit_diff(request.mutable_loss_fn_config(), {kNotOneToken}, {});
    requests.push_back(request);
  }
  return requests;
}

dst::v1::ExplainRequest explain_request(const Inputs& inputs) {
  const auto about = question(inputs, "explain", {});
  dst::v1::ExplainRequest request;
  request.set_request_id(about.request_id());
  request.set_model(about.model());
  auto* run = request.add_runs();
  *run->mutable_prompt() = about.prompt();
  *run->mutable_loss_fn_config() = about.loss_fn_config();
  request.set_k(3);
  request.set_scored_token_count(3);
  request.set_top_logit_count(3);
  request.add_parts(dst::v1::EXPLAIN_PART_NODE_TABLE);
  request.add_parts(dst::v1::EXPLAIN_PART_UPVOTED_OUTPUT_TOKENS);
  request.add_parts(dst::v1::EXPLAIN_PART_TOP_LOGITS);
  return request;
}

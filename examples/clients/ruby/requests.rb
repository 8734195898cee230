# frozen_string_literal: true

require "dst/v1/explain_pb"
require "dst/v1/inference_pb"
require "dst/v1/patch_pb"

# What the tour asks.
class Requests
  include Dst::V1

  NOT_ONE_TOKEN = "not one token"

  def initialize(inputs)
    @inputs = inputs
  end

  def dense
    question(
      "dense",
      scalar(:UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD),
      scalar(:ATTN_QK_LOGITS),
      scalar(:MLP_WRITE, layers(0))
    )
  end

  # Splices an autoencoder into the run; only its active latents travel.
  def sparse
    request = question(
      "sparse",
      scalar(:ONLINE_AUTOENCODER_LATENT),
      scalar(:ONLINE_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD)
    )
    request.autoencoders << @inputs["autoencoder"]
    request.encoding = :TENSOR_ENCODING_SPARSE_LATENTS
    request
  end

  # Half the bytes, and gradients beside the values.
  def half(id, element_type)
    request = question(id, scalar(:ATTN_QK_PROBS))
    request.config = layers(0, derive_gradients: true)
    request.element_type = element_type
    request
  end

  # A layer that no model here has.
  def wrong
    request = dense
    request.request_id = "wrong"
    request.config = layers(0, 999)
    request
  end

  # Four bad fields.
  def rejected
    request = question("rejected", scalar(:MLP_POST_ACT), scalar(:ATTN_WRITE, layers(77)))
    request.loss_fn_config = logit_diff([NOT_ONE_TOKEN], [])
    request.config = layers(0, 999, device_for_raw_activations: "cuda:3")
    request
  end

  # An answer of many megabytes.
  def large
    question("large", scalar(:MLP_WRITE))
  end

  # Eight prompts of different lengths: the prompt's tokens less the last 0, 1, ... One is poisoned.
  def prefixes(token_ids)
    (0...8).map do |i|
      request = question("prompt-#{i}", scalar(:LOGITS))
      prefix = token_ids.first([1, token_ids.size - i].max)
      request.prompt = Prompt.new(token_ids: TokenIds.new(token_ids: prefix))
      request.loss_fn_config = i == 3 ? logit_diff([NOT_ONE_TOKEN], []) : nil
      request
    end
  end

  def explain
    question = question("explain")
    ExplainRequest.new(
      request_id: question.request_id,
      model: question.model,
      runs: [ExplainRun.new(prompt: question.prompt, loss_fn_config: question.loss_fn_config)],
      k: 3,
      scored_token_count: 3,
      top_logit_count: 3,
      parts: %i[EXPLAIN_PART_NODE_TABLE EXPLAIN_PART_UPVOTED_OUTPUT_TOKENS EXPLAIN_PART_TOP_LOGITS]
    )
  end

  # A grid of one pair: the prompt, and its token ids in reverse.
  def patch(token_ids)
    corrupt = Prompt.new(token_ids: TokenIds.new(token_ids: token_ids.reverse))
    PatchRequest.new(
      request_id: "patch",
      model: @inputs["model"],
      pairs: [PromptPair.new(clean: Prompt.new(text: @inputs["prompt"]), corrupt: corrupt)],
      loss_fn_config: logit_diff(@inputs["target_tokens"], @inputs["distractor_tokens"]),
      orientation: :ORIENTATION_DENOISING,
      grids: [PatchGrid.new(node: :ATTRIBUTED_NODE_RESID_PRE)]
    )
  end

  private

  # About the prompt, and about how far the model prefers the targets to the distractors.
  def question(id, *scalars)
    DeriveRequest.new(
      request_id: id,
      model: @inputs["model"],
      prompt: Prompt.new(text: @inputs["prompt"]),
      loss_fn_config: logit_diff(@inputs["target_tokens"], @inputs["distractor_tokens"]),
      derived_scalars: scalars
    )
  end

  def logit_diff(targets, distractors)
    LossFnConfig.new(name: :LOSS_FN_NAME_LOGIT_DIFF, target_tokens: targets, distractor_tokens: distractors)
  end

  def scalar(name, config = nil)
    DerivedScalarSpec.new(dst: :"DERIVED_SCALAR_TYPE_#{name}", config: config)
  end

  # Restricts a config to some layers. A config without it means every layer; so does an empty list.
  def layers(*indices, **others)
    DstConfig.new(layer_indices: LayerIndices.new(layer_indices: indices), **others)
  end
end

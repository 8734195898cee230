package tour;

import io.dstgrpc.v1.DeriveRequest;
import io.dstgrpc.v1.DerivedScalarSpec;
import io.dstgrpc.v1.DerivedScalarType;
import io.dstgrpc.v1.DstConfig;
import io.dstgrpc.v1.ExplainPart;
import io.dstgrpc.v1.ExplainRequest;
import io.dstgrpc.v1.ExplainRun;
import io.dstgrpc.v1.LayerIndices;
import io.dstgrpc.v1.LossFnConfig;
import io.dstgrpc.v1.LossFnName;
import io.dstgrpc.v1.Prompt;
import io.dstgrpc.v1.TensorElementType;
import io.dstgrpc.v1.TensorEncoding;
import io.dstgrpc.v1.TokenIds;
import java.util.ArrayList;
import java.util.List;

/** What the tour asks. */
record Requests(Inputs inputs) {
  private static final String NOT_ONE_TOKEN = "not one token";

  /** A question about the prompt, and about how far the model prefers the targets to the distractors. */
  private DeriveRequest.Builder question(String id, DerivedScalarSpec... scalars) {
    return DeriveRequest.newBuilder()
        .setRequestId(id)
        .setModel(inputs.model())
        .setPrompt(Prompt.newBuilder().setText(inputs.prompt()))
        .setLossFnConfig(logitDiff(inputs.target_tokens(), inputs.distractor_tokens()))
        .addAllDerivedScalars(List.of(scalars));
  }

  private static LossFnConfig logitDiff(List<String> targets, List<String> distractors) {
    return LossFnConfig.newBuilder()
        .setName(LossFnName.LOSS_FN_NAME_LOGIT_DIFF)
        .addAllTargetTokens(targets)
        .addAllDistractorTokens(distractors)
        .build();
  }

  private static DerivedScalarSpec scalar(DerivedScalarType type) {
    return DerivedScalarSpec.newBuilder().setDst(type).build();
  }

  /** Restricts a config to some layers. A config without it means every layer; so does an empty list. */
  private static DstConfig.Builder layers(Integer... indices) {
    return DstConfig.newBuilder().setLayerIndices(LayerIndices.newBuilder().addAllLayerIndices(List.of(indices)));
  }

  DeriveRequest dense() {
    return question(
            "dense",
            scalar(DerivedScalarType.DERIVED_SCALAR_TYPE_UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD),
            scalar(DerivedScalarType.DERIVED_SCALAR_TYPE_ATTN_QK_LOGITS),
            DerivedScalarSpec.newBuilder()
                .setDst(DerivedScalarType.DERIVED_SCALAR_TYPE_MLP_WRITE)
                .setConfig(layers(0))
                .build())
        .build();
  }

  /** Splices an autoencoder into the run; only its active latents travel. */
  DeriveRequest sparse() {
    return question(
            "sparse",
            scalar(DerivedScalarType.DERIVED_SCALAR_TYPE_ONLINE_AUTOENCODER_LATENT),
            scalar(DerivedScalarType.DERIVED_SCALAR_TYPE_ONLINE_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD))
        .addAutoencoders(inputs.autoencoder())
        .setEncoding(TensorEncoding.TENSOR_ENCODING_SPARSE_LATENTS)
        .build();
  }

  /** Half the bytes, and gradients beside the values. */
  DeriveRequest half(String id, TensorElementType elementType) {
    return question(id, scalar(DerivedScalarType.DERIVED_SCALAR_TYPE_ATTN_QK_PROBS))
        .setConfig(layers(0).setDeriveGradients(true))
        .setElementType(elementType)
        .build();
  }

  /** A layer that no model here has. */
  DeriveRequest wrong() {
    return dense().toBuilder().setRequestId("wrong").setConfig(layers(0, 999)).build();
  }

  /** Four bad fields. */
  DeriveRequest rejected() {
    return question(
            "rejected",
            scalar(DerivedScalarType.DERIVED_SCALAR_TYPE_MLP_POST_ACT),
            DerivedScalarSpec.newBuilder()
                .setDst(DerivedScalarType.DERIVED_SCALAR_TYPE_ATTN_WRITE)
                .setConfig(layers(77))
                .build())
        .setLossFnConfig(logitDiff(List.of(NOT_ONE_TOKEN), List.of()))
        .setConfig(layers(0, 999).setDeviceForRawActivations("cuda:3"))
        .build();
  }

  /** An answer of many megabytes. */
  DeriveRequest large() {
    return question("large", scalar(DerivedScalarType.DERIVED_SCALAR_TYPE_MLP_WRITE)).build();
  }

  /** Eight prompts of different lengths: the prompt's tokens less the last 0, 1, ... One is poisoned. */
  List<DeriveRequest> prefixes(List<Integer> tokenIds) {
    List<DeriveRequest> requests = new ArrayList<>();
    for (int i = 0; i < 8; i++) {
      int length = Math.max(1, tokenIds.size() - i);
      TokenIds prefix = TokenIds.newBuilder().addAllTokenIds(tokenIds.subList(0, length)).build();
      DeriveRequest.Builder request =
          question("prompt-" + i, scalar(DerivedScalarType.DERIVED_SCALAR_TYPE_LOGITS))
              .setPrompt(Prompt.newBuilder().setTokenIds(prefix))
              .clearLossFnConfig();
      if (i == 3) {
        request.setLossFnConfig(logitDiff(List.of(NOT_ONE_TOKEN), List.of()));
      }
      requests.add(request.build());
    }
    return requests;
  }

  ExplainRequest explain() {
    DeriveRequest question = question("explain").build();
    return ExplainRequest.newBuilder()
        .setRequestId(question.getRequestId())
        .setModel(question.getModel())
        .addRuns(
            ExplainRun.newBuilder().setPrompt(question.getPrompt()).setLossFnConfig(question.getLossFnConfig()))
        .setK(3)
        .setScoredTokenCount(3)
        .setTopLogitCount(3)
        .addParts(ExplainPart.EXPLAIN_PART_NODE_TABLE)
        .addParts(ExplainPart.EXPLAIN_PART_UPVOTED_OUTPUT_TOKENS)
        .addParts(ExplainPart.EXPLAIN_PART_TOP_LOGITS)
        .build();
  }
}

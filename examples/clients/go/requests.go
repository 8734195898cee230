// What the tour asks.
package main

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	dst "github.com/dst-grpc/dst-grpc/gen/go/dst/v1"
)

// Inputs are what to ask about.
type Inputs struct {
	Model            string   `json:"model"`
	Prompt           string   `json:"prompt"`
	TargetTokens     []string `json:"target_tokens"`
	DistractorTokens []string `json:"distractor_tokens"`
	Autoencoder      string   `json:"autoencoder"`
	Unicode          string   `json:"unicode"`
}

const notOneToken = "not one token"

// question is a request about the prompt, and about how far the model prefers the targets to the distractors.
func (in Inputs) question(id string, scalars ...*dst.DerivedScalarSpec) *dst.DeriveRequest {
	return &dst.DeriveRequest{
		RequestId:      id,
		Model:          in.Model,
		Prompt:         &dst.Prompt{Prompt: &dst.Prompt_Text{Text: in.Prompt}},
		LossFnConfig:   logitDiff(in.TargetTokens, in.DistractorTokens),
		DerivedScalars: scalars,
	}
}

func logitDiff(targets, distractors []string) *dst.LossFnConfig {
	return &dst.LossFnConfig{
		Name:             dst.LossFnName_LOSS_FN_NAME_LOGIT_DIFF,
		TargetTokens:     targets,
		DistractorTokens: distractors,
	}
}

func scalar(dstType dst.DerivedScalarType) *dst.DerivedScalarSpec {
	return &dst.DerivedScalarSpec{Dst: dstType}
}

// layers restricts a config to some layers. A config without it means every layer; so does an empty list.
func layers(indices ...uint32) *dst.DstConfig {
	return &dst.DstConfig{LayerIndices: &dst.LayerIndices{LayerIndices: indices}}
}

func (in Inputs) dense() *dst.DeriveRequest {
	return in.question("dense",
		scalar(dst.DerivedScalarType_DERIVED_SCALAR_TYPE_UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD),
		scalar(dst.DerivedScalarType_DERIVED_SCALAR_TYPE_ATTN_QK_LOGITS),
		&dst.DerivedScalarSpec{
			Dst:    dst.DerivedScalarType_DERIVED_SCALAR_TYPE_MLP_WRITE,
			Config: layers(0),
		},
	)
}

// sparse splices an autoencoder into the run; only its active latents travel.
func (in Inputs) sparse() *dst.DeriveRequest {
	request := in.question("sparse",
		scalar(dst.DerivedScalarType_DERIVED_SCALAR_TYPE_ONLINE_AUTOENCODER_LATENT),
		scalar(dst.DerivedScalarType_DERIVED_SCALAR_TYPE_ONLINE_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD),
	)
	request.Autoencoders = []string{in.Autoencoder}
	request.Encoding = dst.TensorEncoding_TENSOR_ENCODING_SPARSE_LATENTS
	return request
}

// half takes half the bytes, and asks for gradients beside the values.
func (in Inputs) half(id string, elementType dst.TensorElementType) *dst.DeriveRequest {
	request := in.question(id, scalar(dst.DerivedScalarType_DERIVED_SCALAR_TYPE_ATTN_QK_PROBS))
	request.Config = layers(0)
	request.Config.DeriveGradients = true
	request.ElementType = elementType
	return request
}

// wrong names a layer that no model here has.
func (in Inputs) wrong() *dst.DeriveRequest {
	request := in.dense()
	request.RequestId = "wrong"
	request.Config = layers(0, 999)
	return request
}

// rejected has four bad fields.
func (in Inputs) rejected() *dst.DeriveRequest {
	request := in.question("rejected",
		scalar(dst.DerivedScalarType_DERIVED_SCALAR_TYPE_MLP_POST_ACT),
		&dst.DerivedScalarSpec{
			Dst:    dst.DerivedScalarType_DERIVED_SCALAR_TYPE_ATTN_WRITE,
			Config: layers(77),
		},
	)
	request.LossFnConfig = logitDiff([]string{notOneToken}, nil)
	request.Config = layers(0, 999)
	request.Config.DeviceForRawActivations = proto.String("cuda:3")
	return request
}

// large has an answer of many megabytes.
func (in Inputs) large() *dst.DeriveRequest {
	return in.question("large", scalar(dst.DerivedScalarType_DERIVED_SCALAR_TYPE_MLP_WRITE))
}

// prefixes are eight prompts of different lengths: the prompt's tokens less the last 0, 1, ... One is poisoned.
func (in Inputs) prefixes(tokenIDs []uint32) []*dst.DeriveRequest {
	var requests []*dst.DeriveRequest
	for i := 0; i < 8; i++ {
		length := len(tokenIDs) - i
		if length < 1 {
			length = 1
		}
		request := in.question(fmt.Sprintf("prompt-%d", i), scalar(dst.DerivedScalarType_DERIVED_SCALAR_TYPE_LOGITS))
		request.Prompt.Prompt = &dst.Prompt_TokenIds{TokenIds: &dst.TokenIds{TokenIds: tokenIDs[:length]}}
		request.LossFnConfig = nil
		if i == 3 {
			request.LossFnConfig = logitDiff([]string{notOneToken}, nil)
		}
		requests = append(requests, request)
	}
	return requests
}

func (in Inputs) explain() *dst.ExplainRequest {
	question := in.question("explain")
	return &dst.ExplainRequest{
		RequestId:        question.RequestId,
		Model:            question.Model,
		Runs:             []*dst.ExplainRun{{Prompt: question.Prompt, LossFnConfig: question.LossFnConfig}},
		K:                proto.Uint32(3),
		ScoredTokenCount: proto.Uint32(3),
		TopLogitCount:    proto.Uint32(3),
		Parts: []dst.ExplainPart{
			dst.ExplainPart_EXPLAIN_PART_NODE_TABLE,
			dst.ExplainPart_EXPLAIN_PART_UPVOTED_OUTPUT_TOKENS,
			dst.ExplainPart_EXPLAIN_PART_TOP_LOGITS,
		},
	}
}

// patch asks for the residual before each layer, at each token, as it is where the tokens stand in reverse.
func (in Inputs) patch(tokenIDs []uint32) *dst.PatchRequest {
	reversed := []uint32{}
	for i := range tokenIDs {
		reversed = append(reversed, tokenIDs[len(tokenIDs)-1-i])
	}
	return &dst.PatchRequest{
		RequestId: "patch",
		Model:     in.Model,
		Pairs: []*dst.PromptPair{{
			Clean:   &dst.Prompt{Prompt: &dst.Prompt_Text{Text: in.Prompt}},
			Corrupt: &dst.Prompt{Prompt: &dst.Prompt_TokenIds{TokenIds: &dst.TokenIds{TokenIds: reversed}}},
		}},
		LossFnConfig: logitDiff(in.TargetTokens, in.DistractorTokens),
		Orientation:  dst.Orientation_ORIENTATION_DENOISING,
		Grids:        []*dst.PatchGrid{{Node: dst.AttributedNode_ATTRIBUTED_NODE_RESID_PRE}},
	}
}

// graph asks for few features, so that the graph is short enough to print. The model's only transcoders need no name.
func (in Inputs) graph() *dst.GraphRequest {
	request := &dst.GraphRequest{
		RequestId:       "graph",
		Model:           in.Model,
		Prompt:          &dst.Prompt{Prompt: &dst.Prompt_Text{Text: in.Prompt}},
		MaxFeatureNodes: proto.Uint32(10),
	}
	for _, token := range append(append([]string{}, in.TargetTokens...), in.DistractorTokens...) {
		request.Targets = append(request.Targets, &dst.GraphTarget{Target: &dst.GraphTarget_Token{Token: token}})
	}
	return request
}

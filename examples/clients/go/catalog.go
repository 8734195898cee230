// What can be asked: health, models, derived scalar types, tokens.
package main

import (
	"context"
	"io"
	"strings"
	"time"

	health "google.golang.org/grpc/health/grpc_health_v1"

	dst "github.com/dst-grpc/dst-grpc/gen/go/dst/v1"
)

// callTime is what a call may take. Without a deadline, a call to a server that hangs would hang too.
const callTime = time.Minute

type Model struct {
	Name           string   `json:"name"`
	Family         string   `json:"family"`
	NLayers        uint32   `json:"n_layers"`
	DModel         uint32   `json:"d_model"`
	NHeads         uint32   `json:"n_heads"`
	DMlp           uint32   `json:"d_mlp"`
	VocabSize      uint32   `json:"vocab_size"`
	ContextWindow  uint32   `json:"context_window"`
	ParameterBytes uint64   `json:"parameter_bytes"`
	DefaultModel   bool     `json:"default_model"`
	Autoencoders   []string `json:"autoencoders"`
}

type Types struct {
	Pages int      `json:"pages"`
	Names []string `json:"names"`
	Last  Type     `json:"last"`
}

type Type struct {
	Name       string   `json:"name"`
	Dimensions []string `json:"dimensions"`
	Formula    string   `json:"formula"`
}

type Tokens struct {
	TokenIDs     []uint32 `json:"token_ids"`
	TokenStrings []string `json:"token_strings"`
}

func checkHealth(ctx context.Context, server Server) string {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	response, err := server.health.Check(ctx, &health.HealthCheckRequest{Service: "dst.v1.DerivedScalarService"})
	check(err)
	return response.Status.String()
}

func listModels(ctx context.Context, server Server) []Model {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	models := []Model{}
	for request := (&dst.ListModelsRequest{}); ; {
		page, err := server.catalog.ListModels(ctx, request)
		check(err)
		for _, model := range page.Models {
			sizes := model.Dimensions
			models = append(models, Model{
				Name:           model.Name,
				Family:         model.Family,
				NLayers:        sizes.NLayers,
				DModel:         sizes.DModel,
				NHeads:         sizes.NHeads,
				DMlp:           sizes.DMlp,
				VocabSize:      sizes.VocabSize,
				ContextWindow:  sizes.ContextWindow,
				ParameterBytes: model.ParameterBytes,
				DefaultModel:   model.DefaultModel,
				Autoencoders:   append([]string{}, model.Autoencoders...), // [] rather than null, if there are none
			})
		}
		if page.NextPageToken == "" {
			return models
		}
		request.PageToken = page.NextPageToken
	}
}

func listTypes(ctx context.Context, server Server) Types {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var types Types
	for request := (&dst.ListDerivedScalarTypesRequest{PageSize: 40}); ; {
		page, err := server.catalog.ListDerivedScalarTypes(ctx, request)
		check(err)
		types.Pages++
		for _, info := range page.Types {
			types.Names = append(types.Names, info.Name)
			types.Last = Type{Name: info.Name, Dimensions: []string{}, Formula: info.Formula}
			for _, dimension := range info.Dimensions {
				types.Last.Dimensions = append(types.Last.Dimensions, dimension.String())
			}
		}
		if page.NextPageToken == "" {
			return types
		}
		request.PageToken = page.NextPageToken
	}
}

func tokenize(ctx context.Context, server Server, model, text string) Tokens {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	stream, err := server.catalog.Tokenize(ctx, &dst.TokenizeRequest{Model: model, Text: text})
	check(err)
	var tokens Tokens
	for {
		response, err := stream.Recv() // the tokens of a long text come in several messages
		if err == io.EOF {
			return tokens
		}
		check(err)
		tokens.TokenIDs = append(tokens.TokenIDs, response.TokenIds...)
		tokens.TokenStrings = append(tokens.TokenStrings, response.TokenStrings...)
	}
}

func detokenize(ctx context.Context, server Server, model string, tokenIDs []uint32) string {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var text strings.Builder
	check(retrying(ctx, func() error {
		text.Reset()
		stream, err := server.catalog.Detokenize(ctx, &dst.DetokenizeRequest{Model: model, TokenIds: tokenIDs})
		if err != nil {
			return err
		}
		for {
			response, err := stream.Recv()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			text.WriteString(response.Text)
		}
	}))
	return text.String()
}

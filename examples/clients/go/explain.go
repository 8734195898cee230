// Asking why the model said one thing and not another.
package main

import (
	"context"
	"fmt"
	"io"

	dst "github.com/dst-grpc/dst-grpc/gen/go/dst/v1"
)

type Explanation struct {
	Parts        map[string]int `json:"parts"`
	Groups       []Group        `json:"groups"`
	ScoredTokens []ScoredTokens `json:"scored_tokens"`
	TopLogits    []TokenScore   `json:"top_logits"`
}

type Group struct {
	GroupID string `json:"group_id"`
	Top     []Node `json:"top"`
	Bottom  []Node `json:"bottom"`
}

type Node struct {
	NodeType      string    `json:"node_type"`
	LayerIndex    *uint32   `json:"layer_index"`
	TensorIndices []*uint32 `json:"tensor_indices"` // nil for a whole axis
	Bits          string    `json:"bits"`
}

type ScoredTokens struct {
	Part  string       `json:"part"`
	Nodes []NodeTokens `json:"nodes"`
}

type NodeTokens struct {
	Node   uint32       `json:"node"`
	Top    []TokenScore `json:"top"`
	Bottom []TokenScore `json:"bottom"`
}

// TokenScore is a pair of a token's text and the bits of its score.
type TokenScore [2]string

// explain reads the parts of an explanation, each of which comes as soon as it is ready.
func explain(ctx context.Context, server Server, request *dst.ExplainRequest) Explanation {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	stream, err := server.scalars.Explain(ctx, request)
	check(err)
	result := Explanation{Parts: map[string]int{}}
	messages := uint32(0)
	var trailer *dst.RunsTrailer
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			break
		}
		check(err)
		messages++
		switch part := response.Part.(type) {
		case *dst.ExplainResponse_Header:
			result.Parts["header"]++
		case *dst.ExplainResponse_NodeTable:
			result.Parts["node_table"]++
			result.Groups = groups(part.NodeTable)
		case *dst.ExplainResponse_ScoredTokens:
			result.Parts["scored_tokens"]++
			result.ScoredTokens = append(result.ScoredTokens, scoredTokens(part.ScoredTokens))
		case *dst.ExplainResponse_TopLogits:
			result.Parts["top_logits"]++
			table := part.TopLogits
			for _, i := range table.Groups[0].Top {
				score := TokenScore{table.VocabTokens[i], bits32(table.Groups[0].Values[i])}
				result.TopLogits = append(result.TopLogits, score)
			}
		case *dst.ExplainResponse_Trailer:
			result.Parts["trailer"]++
			trailer = part.Trailer
		}
	}
	if trailer.GetMessageCount() != messages {
		check(fmt.Errorf("truncated: %d messages came, the trailer counts %d", messages, trailer.GetMessageCount()))
	}
	return result
}

func groups(table *dst.NodeTable) []Group {
	result := []Group{}
	for _, values := range table.Groups {
		result = append(result, Group{
			GroupID: values.GroupId,
			Top:     nodes(table, values, values.Top),
			Bottom:  nodes(table, values, values.Bottom),
		})
	}
	return result
}

// nodes are the nodes at some positions of a table, with their values in a group.
func nodes(table *dst.NodeTable, values *dst.GroupValues, positions []uint32) []Node {
	result := []Node{}
	for _, i := range positions {
		index := table.Nodes[i]
		node := Node{
			NodeType:      index.NodeType.String(),
			LayerIndex:    index.LayerIndex,
			TensorIndices: []*uint32{},
			Bits:          bits32(values.Values[i]),
		}
		for _, position := range index.TensorIndices {
			var at *uint32
			if one, ok := position.Index.(*dst.TensorIndex_At); ok {
				at = &one.At
			}
			node.TensorIndices = append(node.TensorIndices, at)
		}
		result = append(result, node)
	}
	return result
}

func scoredTokens(message *dst.ScoredTokens) ScoredTokens {
	result := ScoredTokens{Part: message.Part.String(), Nodes: []NodeTokens{}}
	for _, node := range message.Nodes {
		result.Nodes = append(result.Nodes, NodeTokens{
			Node:   node.Node,
			Top:    scores(node.Top),
			Bottom: scores(node.Bottom),
		})
	}
	return result
}

func scores(messages []*dst.TokenScore) []TokenScore {
	result := []TokenScore{}
	for _, message := range messages {
		result = append(result, TokenScore{message.Token, bits32(message.Score)})
	}
	return result
}

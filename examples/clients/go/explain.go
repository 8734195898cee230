// Asking why the model said one thing and not another.
package main

import (
	"context"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

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

// explain reads an explanation, each frame of which comes as soon as it is ready.
func explain(ctx context.Context, server Server, request *dst.ExplainRequest) Explanation {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	stream, err := server.scalars.Explain(ctx, request)
	check(err)
	result := Explanation{Parts: map[string]int{}}
	frames := uint32(0)
	table, logits := &dst.NodeTable{}, &dst.NodeTable{} // tables of many nodes come in several frames
	var trailer *dst.RunsTrailer
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			break
		}
		check(err)
		for _, frame := range response.Frames {
			frames++
			switch frame := frame.Frame.(type) {
			case *dst.ExplainFrame_Header:
				result.Parts["header"]++
			case *dst.ExplainFrame_NodeTable:
				result.Parts["node_table"]++
				proto.Merge(table, frame.NodeTable)
			case *dst.ExplainFrame_ScoredTokens:
				result.Parts["scored_tokens"]++
				result.ScoredTokens = append(result.ScoredTokens, scoredTokens(frame.ScoredTokens))
			case *dst.ExplainFrame_TopLogits:
				result.Parts["top_logits"]++
				proto.Merge(logits, frame.TopLogits)
			case *dst.ExplainFrame_Trailer:
				result.Parts["trailer"]++
				trailer = frame.Trailer
			}
		}
	}
	if trailer.GetFrameCount() != frames {
		check(fmt.Errorf("truncated: %d frames came, the trailer counts %d", frames, trailer.GetFrameCount()))
	}
	result.Groups = groups(table)
	for _, i := range logits.Groups[0].Top {
		score := TokenScore{logits.Nodes[i].VocabToken, bits32(logits.Nodes[i].Values[0])}
		result.TopLogits = append(result.TopLogits, score)
	}
	return result
}

func groups(table *dst.NodeTable) []Group {
	result := []Group{}
	for i, group := range table.Groups {
		result = append(result, Group{
			GroupID: group.GroupId,
			Top:     nodes(table, i, group.Top),
			Bottom:  nodes(table, i, group.Bottom),
		})
	}
	return result
}

// nodes are the nodes at some positions of a table, with their values in a group.
func nodes(table *dst.NodeTable, group int, positions []uint32) []Node {
	result := []Node{}
	for _, i := range positions {
		index := table.Nodes[i].Node
		node := Node{
			NodeType:      index.NodeType.String(),
			LayerIndex:    index.LayerIndex,
			TensorIndices: []*uint32{},
			Bits:          bits32(table.Nodes[i].Values[group]),
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

// Asking which features of transcoders, tokens and errors act on which, and on the logits.
package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"google.golang.org/protobuf/proto"

	dst "github.com/dst-grpc/dst-grpc/gen/go/dst/v1"
)

// Graph is what pruning leaves of an attribution graph, and what a question about the kept graph finds; or why there is
// none.
type Graph struct {
	Nodes            []string     `json:"nodes,omitempty"` // those that pruning keeps
	Edges            []Edge       `json:"edges,omitempty"`
	ReplacementScore string       `json:"replacement_score,omitempty"`
	Inputs           []Edge       `json:"inputs,omitempty"` // the strongest edges into the first target
	Error            *ErrorReport `json:"error,omitempty"`
}

// Edge is the names of its two ends, and the bits of its weight.
type Edge [3]string

// graph computes the graph of a prompt, asks a question about it, and drops it.
func graph(ctx context.Context, server Server, request *dst.GraphRequest) Graph {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	stream, err := server.graphs.Graph(ctx, request)
	check(err)
	parts, err := readGraph(func() ([]*dst.GraphFrame, error) {
		response, err := stream.Recv()
		return response.GetFrames(), err
	})
	if err != nil {
		refusal := report(err)
		return Graph{Error: &refusal}
	}
	result := Graph{Edges: parts.edges, ReplacementScore: bits64(parts.summary.ReplacementScore)}
	for i, number := range parts.order {
		if parts.kept[i] {
			result.Nodes = append(result.Nodes, parts.names[number])
		}
	}
	// Nodes go by numbers too, and the targets are the last of them.
	first := int32(parts.header.NodeCount) - int32(len(parts.header.Targets))
	inputs, err := server.graphs.QueryGraph(ctx, &dst.QueryGraphRequest{
		Graph: parts.handle,
		Query: &dst.QueryGraphRequest_Neighbours{Neighbours: &dst.GraphNeighbours{
			Node:      parts.names[first],
			Direction: dst.GraphEdgeDirection_GRAPH_EDGE_DIRECTION_INPUTS,
			TopK:      proto.Uint32(3),
		}},
	})
	check(err)
	found, err := readGraph(func() ([]*dst.GraphFrame, error) {
		response, err := inputs.Recv()
		return response.GetFrames(), err
	})
	check(err)
	result.Inputs = found.edges
	_, err = server.graphs.DropGraph(ctx, &dst.DropGraphRequest{Graph: parts.handle})
	check(err)
	return result
}

// graphParts are the frames of an answer of Graph or QueryGraph, put together.
type graphParts struct {
	header  *dst.GraphHeader // that of many tokens comes in several frames
	order   []int32          // numbers of the nodes
	names   map[int32]string // by their numbers
	kept    []bool           // in that order
	edges   []Edge
	summary *dst.GraphSummary
	handle  string
}

func readGraph(receive func() ([]*dst.GraphFrame, error)) (graphParts, error) {
	parts := graphParts{header: &dst.GraphHeader{}, names: map[int32]string{}}
	count := uint32(0)
	var trailer *dst.RunsTrailer
	for {
		frames, err := receive()
		if err == io.EOF {
			break
		}
		if err != nil {
			return parts, err
		}
		for _, frame := range frames {
			count++
			switch frame := frame.Frame.(type) {
			case *dst.GraphFrame_Header:
				proto.Merge(parts.header, frame.Header)
			case *dst.GraphFrame_Nodes: // a long table comes in several frames, each with all columns
				for i, number := range int32s(frame.Nodes.Nodes) {
					parts.order = append(parts.order, number)
					parts.names[number] = frame.Nodes.Names[i]
				}
			case *dst.GraphFrame_Scores:
				for _, kept := range frame.Scores.Kept.GetData() {
					parts.kept = append(parts.kept, kept != 0)
				}
			case *dst.GraphFrame_Edges:
				parts.edges = append(parts.edges, parts.named(frame.Edges)...)
			case *dst.GraphFrame_Summary:
				parts.summary = frame.Summary
			case *dst.GraphFrame_Kept:
				parts.handle = frame.Kept.Handle
			case *dst.GraphFrame_Trailer:
				trailer = frame.Trailer
			}
		}
	}
	if trailer.GetFrameCount() != count {
		return parts, fmt.Errorf("truncated: %d frames came, the trailer counts %d", count, trailer.GetFrameCount())
	}
	return parts, nil
}

// named are edges by the names of their ends: those into the first of Targets are the first Counts[0] of them, and so on.
func (parts graphParts) named(edges *dst.GraphEdges) []Edge {
	result := []Edge{}
	counts, sources, weights := int32s(edges.Counts), int32s(edges.Sources), int32s(edges.Weights)
	for i, target := range int32s(edges.Targets) {
		for ; counts[i] > 0; counts[i]-- {
			place := len(result)
			weight := math.Float32frombits(uint32(weights[place]))
			result = append(result, Edge{parts.names[sources[place]], parts.names[target], bits32(weight)})
		}
	}
	return result
}

// int32s are the elements of a tensor of 32 bits each.
func int32s(tensor *dst.Tensor) []int32 {
	elements := make([]int32, len(tensor.GetData())/4)
	for i := range elements {
		elements[i] = int32(binary.LittleEndian.Uint32(tensor.Data[4*i:]))
	}
	return elements
}

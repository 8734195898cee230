// Asking what a request would cost before it is run.
package main

import (
	"context"
	"errors"
	"io"
	"log"

	"google.golang.org/protobuf/proto"

	dst "github.com/dst-grpc/dst-grpc/gen/go/dst/v1"
)

// Loading is how a request was resolved, and what was loaded for it.
type Loading struct {
	Stages   []string          `json:"stages"`
	Loaded   map[string]uint64 `json:"loaded"`
	Resolved *Resolved         `json:"resolved"`
}

// Resolution is one of its two.
type Resolution struct {
	Resolved *Resolved    `json:"resolved,omitempty"`
	Error    *ErrorReport `json:"error,omitempty"`
}

type Resolved struct {
	Device         string   `json:"device"`
	Model          string   `json:"model"`
	Autoencoders   []string `json:"autoencoders"`
	ForwardPasses  uint32   `json:"forward_passes"`
	BackwardPasses uint32   `json:"backward_passes"`
	OutputBytes    uint64   `json:"output_bytes"`
	Scalars        []Scalar `json:"scalars"`
}

type Scalar struct {
	Dst          string   `json:"dst"`
	RequiresGrad bool     `json:"requires_grad"`
	LayerIndices []uint32 `json:"layer_indices"`
	Axes         []Axis   `json:"axes"`
}

// Axis is a pair of a dimension's name and a size.
type Axis [2]interface{}

// resolve also loads what the request needs, and says on the way how far that is.
func resolve(ctx context.Context, server Server, request *dst.DeriveRequest) Loading {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	stream, err := server.scalars.Resolve(ctx, &dst.ResolveRequest{Request: request, Load: true})
	check(err)
	answer := Loading{Loaded: map[string]uint64{}}
	enter := func(stage string) {
		if n := len(answer.Stages); n == 0 || answer.Stages[n-1] != stage {
			answer.Stages = append(answer.Stages, stage)
		}
	}
	var all *dst.Resolved
	for {
		response, err := stream.Recv()
		if err == io.EOF { // the status is OK; any other end is another error
			break
		}
		check(err)
		for _, frame := range response.Frames {
			switch frame := frame.Frame.(type) {
			case *dst.ResolveFrame_Validated:
				enter("VALIDATED")
			case *dst.ResolveFrame_Loading:
				enter("LOADING")
				progress := frame.Loading
				log.Printf("loading %s: %d of %d bytes", progress.Context, progress.BytesDone, progress.BytesTotal)
				answer.Loaded[progress.Context] = progress.BytesDone
			case *dst.ResolveFrame_Resolved:
				enter("RESOLVED")
				all = merged(all, frame.Resolved)
			}
		}
	}
	if all == nil {
		check(errors.New("Resolve ended without an answer"))
	}
	answer.Resolved = resolved(all)
	return answer
}

// resolveStream asks about many requests at once. A bad one fails alone, and the answers may overtake one another.
func resolveStream(ctx context.Context, server Server, requests ...*dst.DeriveRequest) map[string]Resolution {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	stream, err := server.scalars.ResolveStream(ctx)
	check(err)
	for _, request := range requests {
		check(stream.Send(&dst.ResolveStreamRequest{
			Message: &dst.ResolveStreamRequest_Request{Request: &dst.ResolveRequest{Request: request}},
		}))
	}
	check(stream.CloseSend()) // the server ends the stream once all are answered
	answers := map[string]Resolution{}
	all := map[string]*dst.Resolved{}
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			break
		}
		check(err)
		for _, frame := range response.Frames {
			switch frame := frame.Frame.(type) {
			case *dst.ResolveFrame_Resolved:
				all[response.RequestId] = merged(all[response.RequestId], frame.Resolved)
			case *dst.ResolveFrame_Error:
				failure := reportStatus(frame.Error)
				answers[response.RequestId] = Resolution{Error: &failure}
			}
		}
	}
	for id, message := range all {
		answers[id] = Resolution{Resolved: resolved(message)}
	}
	return answers
}

// merged adds a piece: what is said of many derived scalars comes in several frames.
func merged(all, piece *dst.Resolved) *dst.Resolved {
	if all == nil {
		return piece
	}
	proto.Merge(all, piece)
	return all
}

func resolved(message *dst.Resolved) *Resolved {
	result := &Resolved{
		Device:         message.Device,
		Model:          message.Model.GetName(),
		Autoencoders:   []string{},
		ForwardPasses:  message.Cost.GetForwardPasses(),
		BackwardPasses: message.Cost.GetBackwardPasses(),
		OutputBytes:    message.Cost.GetOutputBytes(),
		Scalars:        []Scalar{},
	}
	for _, autoencoder := range message.Autoencoders {
		result.Autoencoders = append(result.Autoencoders, autoencoder.Name)
	}
	for _, scalar := range message.Scalars {
		result.Scalars = append(result.Scalars, Scalar{
			Dst:          scalar.Dst.String(),
			RequiresGrad: scalar.RequiresGrad,
			LayerIndices: append([]uint32{}, scalar.LayerIndices...),
			Axes:         axes(scalar.Axes),
		})
	}
	return result
}

func axes(messages []*dst.Axis) []Axis {
	pairs := []Axis{}
	for _, axis := range messages {
		pairs = append(pairs, Axis{axis.Dimension.String(), axis.Size})
	}
	return pairs
}

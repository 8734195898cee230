// Asking what the metric would be if one place in a run were as in another run.
package main

import (
	"context"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	dst "github.com/dst-grpc/dst-grpc/gen/go/dst/v1"
)

// Patched is a grid of changed runs.
type Patched struct {
	Axes    []string `json:"axes"`
	Shape   []int    `json:"shape"`
	Base    string   `json:"base"`
	Source  string   `json:"source"`
	Metrics []string `json:"metrics"` // row-major
}

// patch reads a grid; the cells of each pass come as soon as they are done, and their means over pairs last.
func patch(ctx context.Context, server Server, request *dst.PatchRequest) Patched {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	stream, err := server.causal.Patch(ctx, request)
	check(err)
	result := Patched{Axes: []string{}, Shape: []int{}, Metrics: []string{}}
	frames, done := uint32(0), 0
	means := &dst.PatchMeans{} // those of many cells come in several frames
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
			case *dst.PatchFrame_Header:
				for _, axis := range frame.Header.Grids[0].Axes {
					result.Axes = append(result.Axes, axis.Name)
					result.Shape = append(result.Shape, len(axis.Labels))
				}
			case *dst.PatchFrame_Pair:
				result.Base = bits32(float32(frame.Pair.Metric))
				result.Source = bits32(float32(frame.Pair.GetSourceMetric()))
			case *dst.PatchFrame_Cells:
				done += len(frame.Cells.Cells)
			case *dst.PatchFrame_Means:
				proto.Merge(means, frame.Means)
			case *dst.PatchFrame_Trailer:
				trailer = frame.Trailer
			}
		}
	}
	if trailer.GetFrameCount() != frames || done != len(means.Cells) {
		check(fmt.Errorf("truncated: %d frames and %d cells came", frames, done))
	}
	for _, metric := range means.Metrics { // in the order of the cells
		result.Metrics = append(result.Metrics, bits32(float32(metric)))
	}
	return result
}

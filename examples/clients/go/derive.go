// Running requests: one, many on a stream, one that is late, one that is cancelled.
package main

import (
	"context"
	"errors"
	"io"
	"time"

	dst "github.com/dst-grpc/dst-grpc/gen/go/dst/v1"
)

// Prediction is what the model says after a prompt, or why it could not be asked.
type Prediction struct {
	TokenCount int          `json:"token_count,omitempty"`
	NextToken  *int         `json:"next_token,omitempty"`
	Error      *ErrorReport `json:"error,omitempty"`
}

// derive runs one request.
func derive(ctx context.Context, server Server, request *dst.DeriveRequest) (Answer, error) {
	// Whoever stops reading early stops the server's work too: cancel ends the call.
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	stream, err := server.scalars.Derive(ctx, request)
	if err != nil {
		return Answer{}, err
	}
	var assembler Assembler
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			return assembler.Finish()
		}
		if err != nil {
			return Answer{}, err
		}
		for _, frame := range response.Frames {
			if err := assembler.Add(frame); err != nil {
				return Answer{}, err
			}
		}
	}
}

// deriveStream runs many requests, which the server batches. Answers may overtake one another, and their messages
// interleave; all frames of a message are of one item. It sends everything before it reads, which does for a few requests;
// with more than fit into a window, send from another goroutine.
func deriveStream(ctx context.Context, server Server, requests []*dst.DeriveRequest) map[string]Prediction {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	stream, err := server.scalars.DeriveStream(ctx)
	check(err)
	assemblers := make([]Assembler, len(requests)) // by item: the server numbers requests as they come
	for _, request := range requests {
		check(stream.Send(&dst.DeriveStreamRequest{Message: &dst.DeriveStreamRequest_Request{Request: request}}))
	}
	check(stream.CloseSend())
	predictions := map[string]Prediction{}
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			break
		}
		check(err)
		if response.ItemIndex >= uint32(len(requests)) {
			check(damaged("item %d, which was not asked", response.ItemIndex))
		}
		for _, frame := range response.Frames {
			// An item that failed ends so, in place of its trailer, and the others go on.
			if failure := frame.GetError(); failure != nil {
				failed := reportStatus(failure)
				predictions[response.RequestId] = Prediction{Error: &failed}
				continue
			}
			check(assemblers[response.ItemIndex].Add(frame))
		}
	}
	for i, request := range requests {
		if _, failed := predictions[request.RequestId]; failed {
			continue
		}
		answer, err := assemblers[i].Finish()
		check(err)
		predictions[request.RequestId] = predict(answer)
	}
	return predictions
}

// predict finds the largest logit at the last token.
func predict(answer Answer) Prediction {
	logits := answer.Tensors[0]
	vocabulary := int(logits.Info.Axes[1].Size)
	last := logits.Values[len(logits.Values)-vocabulary:]
	next := 0
	for token, logit := range last {
		if logit > last[next] {
			next = token
		}
	}
	return Prediction{TokenCount: len(answer.Header.TokenIds), NextToken: &next}
}

// missDeadline watches the server's contexts, which never ends by itself.
func missDeadline(ctx context.Context, server Server) ErrorReport {
	ctx, cancel := context.WithTimeout(ctx, 250*time.Millisecond)
	defer cancel()
	stream, err := server.contexts.WatchContexts(ctx, &dst.WatchContextsRequest{})
	for err == nil {
		_, err = stream.Recv()
	}
	return report(err)
}

// cancelDerive stops an answer after its first message, and waits until the server has stopped working for it.
func cancelDerive(ctx context.Context, server Server, request *dst.DeriveRequest) uint32 {
	call, cancel := context.WithTimeout(ctx, callTime)
	stream, err := server.scalars.Derive(call, request)
	check(err)
	_, err = stream.Recv()
	check(err)
	cancel()

	ctx, cancel = context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		pins := uint32(0)
		response, err := server.contexts.ListContexts(ctx, &dst.ListContextsRequest{})
		check(err)
		for _, context := range response.Contexts {
			pins += context.Pins
		}
		if pins == 0 {
			return pins
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			check(errors.New("the server still works for a cancelled call"))
		}
	}
}

// Errors, with the machine-readable details that every one of them carries (google.rpc).
package main

import (
	"context"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
)

// ErrorReport is what a program can act on.
type ErrorReport struct {
	Code   string   `json:"code"`
	Reason string   `json:"reason,omitempty"` // a member of dst.v1.ErrorReason; none if gRPC itself made the error
	Fields []string `json:"fields,omitempty"` // the bad fields of the request, by their paths
}

// report describes the error of a call.
func report(err error) ErrorReport {
	return reportStatus(status.Convert(err).Proto())
}

// reportStatus describes the error of one item of a stream.
func reportStatus(message *rpcstatus.Status) ErrorReport {
	result := ErrorReport{Code: code.Code(message.GetCode()).String()}
	for _, detail := range status.FromProto(message).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			result.Reason = detail.Reason
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				result.Fields = append(result.Fields, violation.Field)
			}
		}
	}
	return result
}

// retrying makes a call again as long as the server says that waiting helps, at most four times in all.
//
// gRPC itself does so for the codes of the service config, UNAVAILABLE alone. RESOURCE_EXHAUSTED may mean a full queue,
// which drains, or too little memory for the request, which stays: RetryInfo tells which.
func retrying(ctx context.Context, call func() error) error {
	for attempt := 1; ; attempt++ {
		err := call()
		delay, helps := retryDelay(err)
		if err == nil || !helps || attempt == 4 {
			return err
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return err
		}
	}
}

func retryDelay(err error) (time.Duration, bool) {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.RetryDelay.AsDuration(), true
		}
	}
	return 0, false
}

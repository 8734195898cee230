// What an answer holds, short enough to print.
package main

import (
	"fmt"
	"math"
)

type Summary struct {
	Model      string          `json:"model"`
	TokenCount int             `json:"token_count"`
	Loss       *string         `json:"loss"`
	ByteCount  uint64          `json:"byte_count"`
	Tensors    []TensorSummary `json:"tensors"`
}

type TensorSummary struct {
	Dst             string  `json:"dst"`
	PassType        string  `json:"pass_type"`
	LayerIndex      *uint32 `json:"layer_index"`
	Axes            []Axis  `json:"axes"`
	ElementType     string  `json:"element_type"`
	Encoding        string  `json:"encoding"`
	NonzeroCount    *uint64 `json:"nonzero_count"`
	Checksum        uint32  `json:"checksum"`
	MinusInfinities int     `json:"minus_infinities"`
	Largest         *Entry  `json:"largest"`
	Smallest        *Entry  `json:"smallest"`
}

type Entry struct {
	At   uint64 `json:"at"`
	Bits string `json:"bits"`
}

func summarize(answer Answer) Summary {
	summary := Summary{
		Model:      answer.Header.Model,
		TokenCount: len(answer.Header.TokenIds),
		ByteCount:  answer.Trailer.ByteCount,
	}
	if loss := answer.Header.Loss; loss != nil { // absent, not 0, if no loss was asked for
		bits := bits64(*loss)
		summary.Loss = &bits
	}
	for _, tensor := range answer.Tensors {
		summary.Tensors = append(summary.Tensors, summarizeTensor(tensor))
	}
	return summary
}

func summarizeTensor(tensor Tensor) TensorSummary {
	info := tensor.Info
	summary := TensorSummary{
		Dst:          info.Dst.String(),
		PassType:     info.PassType.String(),
		LayerIndex:   info.LayerIndex,
		Axes:         axes(info.Axes),
		ElementType:  info.ElementType.String(),
		Encoding:     info.Encoding.String(),
		NonzeroCount: info.NonzeroCount,
		Checksum:     tensor.Checksum,
	}
	largest, smallest := -1, -1
	for i, value := range tensor.Values {
		if math.IsInf(float64(value), -1) {
			summary.MinusInfinities++
		}
		if math.IsInf(float64(value), 0) || value != value {
			continue
		}
		if largest < 0 || value > tensor.Values[largest] {
			largest = i
		}
		if smallest < 0 || value < tensor.Values[smallest] {
			smallest = i
		}
	}
	if largest >= 0 {
		summary.Largest = entry(tensor, largest)
		summary.Smallest = entry(tensor, smallest)
	}
	return summary
}

func entry(tensor Tensor, value int) *Entry {
	return &Entry{At: tensor.At(value), Bits: bits32(tensor.Values[value])}
}

func bits32(value float32) string {
	return fmt.Sprintf("%08x", math.Float32bits(value))
}

func bits64(value float64) string {
	return fmt.Sprintf("%016x", math.Float64bits(value))
}

// What the assembler makes of the vectors of tests/conformance: answers as bytes, sound and damaged.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"google.golang.org/protobuf/proto"

	dst "github.com/dst-grpc/dst-grpc/gen/go/dst/v1"
)

type Vector struct {
	Name     string   `json:"name"`
	Messages [][]byte `json:"messages"` // DeriveResponses; encoding/json reads base64 by itself
}

type Judged struct {
	Shape      []uint64 `json:"shape"`
	LayerIndex *uint32  `json:"layer_index"`
	Bits       []string `json:"bits"`
}

// judgeAll prints the result of each vector by its name.
func judgeAll(file string) {
	text, err := os.ReadFile(file)
	check(err)
	var vectors []Vector
	check(json.Unmarshal(text, &vectors))
	results := map[string]interface{}{}
	for _, vector := range vectors {
		answer, err := assemble(vector.Messages)
		switch {
		case errors.Is(err, ErrTruncated):
			results[vector.Name] = map[string]string{"error": "truncated"}
		case err != nil:
			results[vector.Name] = map[string]string{"error": "corrupt"}
		default:
			results[vector.Name] = map[string][]Judged{"tensors": judge(answer.Tensors)}
		}
	}
	document, err := json.Marshal(results)
	check(err)
	fmt.Println(string(document))
}

func assemble(messages [][]byte) (Answer, error) {
	var assembler Assembler
	for _, message := range messages {
		var response dst.DeriveResponse
		check(proto.Unmarshal(message, &response)) // a vector that is no message is no damaged answer
		for _, frame := range response.Frames {
			if err := assembler.Add(frame); err != nil {
				return Answer{}, err
			}
		}
	}
	return assembler.Finish()
}

func judge(tensors []Tensor) []Judged {
	judged := []Judged{} // [] rather than null, if there are none
	for _, tensor := range tensors {
		one := Judged{Shape: []uint64{}, LayerIndex: tensor.Info.LayerIndex, Bits: []string{}}
		for _, axis := range tensor.Info.Axes {
			one.Shape = append(one.Shape, axis.Size)
		}
		for _, element := range tensor.Dense() {
			one.Bits = append(one.Bits, bits32(element))
		}
		judged = append(judged, one)
	}
	return judged
}

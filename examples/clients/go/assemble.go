// Frames -> tensors. Each tensor's memory is allocated once, from the header, and nothing is believed unchecked: order,
// offsets, lengths and checksums.
package main

import (
	"fmt"
	"hash/crc32"

	"google.golang.org/protobuf/proto"

	dst "github.com/dst-grpc/dst-grpc/gen/go/dst/v1"
)

// maxBytes is how much an answer may announce: memory is taken before anything else has come.
const maxBytes = 8 << 30

// ErrTruncated is why there is no answer when frames end before the trailer. Any other error of an Assembler says that
// the frames contradict themselves.
var ErrTruncated = damaged("truncated: it ended without a trailer")

// Answer is a whole, undamaged answer.
type Answer struct {
	Header  *dst.Header
	Tensors []Tensor
	Trailer *dst.Trailer
}

// Assembler puts the answer of one request together. The zero value is ready for the first frame.
type Assembler struct {
	header    *dst.Header // of all pieces
	complete  bool        // whether the last of them has come
	announced uint64      // bytes
	data      [][]byte
	checksums []uint32
	current   int // the tensor being filled,
	filled    int // and how far it is
	trailer   *dst.Trailer
}

// Add takes the next frame. Kinds that this client does not know are ignored.
func (a *Assembler) Add(message *dst.DeriveFrame) error {
	switch frame := message.Frame.(type) {
	case *dst.DeriveFrame_Header:
		return a.begin(frame.Header, message.Partial)
	case *dst.DeriveFrame_Chunk:
		return a.fill(frame.Chunk)
	case *dst.DeriveFrame_Trailer:
		return a.end(frame.Trailer)
	case *dst.DeriveFrame_Error:
		return damaged("an error in place of the trailer; only DeriveStream sends those")
	}
	return nil
}

// Finish gives the answer. An answer without its trailer is truncated, even if the call's status is OK.
func (a *Assembler) Finish() (Answer, error) {
	if a.trailer == nil {
		return Answer{}, ErrTruncated
	}
	answer := Answer{Header: a.header, Trailer: a.trailer}
	for i, info := range a.header.Tensors {
		tensor := decode(info, a.data[i], a.checksums[i])
		if !tensor.inBounds() {
			return Answer{}, damaged("tensor %d: coordinates outside of its axes", i)
		}
		answer.Tensors = append(answer.Tensors, tensor)
	}
	return answer, nil
}

// begin takes the header, or a piece of it: that of many tensors or tokens comes in several frames, all but the last of
// them partial.
func (a *Assembler) begin(piece *dst.Header, partial bool) error {
	if a.complete || (a.header != nil && piece.Model != "" && piece.Model != a.header.Model) {
		return damaged("a second header")
	}
	a.complete = !partial
	if a.header == nil {
		a.header = &dst.Header{}
	}
	proto.Merge(a.header, piece)
	for _, info := range piece.Tensors {
		if info.TensorId != uint32(len(a.data)) {
			return damaged("tensor %d is numbered %d", len(a.data), info.TensorId)
		}
		if info.ByteLength > maxBytes-a.announced {
			return damaged("more than %d bytes announced", uint64(maxBytes))
		}
		if err := checkLength(info); err != nil {
			return err
		}
		a.announced += info.ByteLength
		a.data = append(a.data, make([]byte, info.ByteLength))
		a.checksums = append(a.checksums, 0)
	}
	a.skipFull()
	return nil
}

func (a *Assembler) fill(chunk *dst.TensorChunk) error {
	if !a.complete || a.trailer != nil {
		return damaged("a chunk outside of header and trailer")
	}
	if a.current == len(a.data) || chunk.TensorId != uint32(a.current) || chunk.Offset != uint64(a.filled) {
		return damaged("a chunk of tensor %d at %d in place of %d at %d",
			chunk.TensorId, chunk.Offset, a.current, a.filled)
	}
	room := a.data[a.current][a.filled:]
	if len(chunk.Data) > len(room) {
		return damaged("tensor %d: %d bytes too many", a.current, len(chunk.Data)-len(room))
	}
	copy(room, chunk.Data)
	a.filled += len(chunk.Data)
	a.checksums[a.current] = crc32.Update(a.checksums[a.current], crc32.IEEETable, chunk.Data)
	a.skipFull()
	return nil
}

// skipFull moves on to the next tensor that lacks bytes; an empty tensor has no chunks.
func (a *Assembler) skipFull() {
	for a.current < len(a.data) && a.filled == len(a.data[a.current]) {
		a.current++
		a.filled = 0
	}
}

func (a *Assembler) end(trailer *dst.Trailer) error {
	if !a.complete || a.trailer != nil {
		return damaged("a trailer without header, or a second one")
	}
	if a.current < len(a.data) {
		return damaged("the trailer came before the end of tensor %d", a.current)
	}
	total := 0
	for _, data := range a.data {
		total += len(data)
	}
	if int(trailer.TensorCount) != len(a.data) || trailer.ByteCount != uint64(total) ||
		len(trailer.Checksums) != len(a.data) {
		return damaged("the trailer counts %d tensors, %d bytes and %d checksums; %d tensors and %d bytes came",
			trailer.TensorCount, trailer.ByteCount, len(trailer.Checksums), len(a.data), total)
	}
	for i, checksum := range trailer.Checksums {
		if checksum != a.checksums[i] {
			return damaged("tensor %d: the checksum differs", i)
		}
	}
	a.trailer = trailer
	return nil
}

// checkLength insists that the number of bytes announced is what the sizes come to.
func checkLength(info *dst.TensorInfo) error {
	width := byteWidth(info.ElementType)
	if width == 0 {
		return damaged("tensor %d: no decoder for %s", info.TensorId, info.ElementType)
	}
	// Whatever the sizes, a float64 does not wrap around; up to 2^53 it is exact.
	expected := float64(width)
	switch info.Encoding {
	case dst.TensorEncoding_TENSOR_ENCODING_DENSE:
		for _, axis := range info.Axes {
			expected *= float64(axis.Size)
		}
	case dst.TensorEncoding_TENSOR_ENCODING_SPARSE_LATENTS:
		const coordinate = 4
		expected = float64(info.GetNonzeroCount()) * float64(width+len(info.Axes)*coordinate)
	default:
		return damaged("tensor %d: no decoder for %s", info.TensorId, info.Encoding)
	}
	if float64(info.ByteLength) != expected {
		return damaged("tensor %d: %d bytes announced, its sizes make %.0f", info.TensorId, info.ByteLength, expected)
	}
	return nil
}

func damaged(format string, arguments ...interface{}) error {
	return fmt.Errorf("the answer is damaged: "+format, arguments...)
}

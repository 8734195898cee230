// Tensors: from the bytes of the wire, which are little-endian, row-major and without padding, to numbers.
package main

import (
	"encoding/binary"
	"math"

	dst "github.com/dst-grpc/dst-grpc/gen/go/dst/v1"
)

// Tensor is a tensor of an answer.
type Tensor struct {
	Info        *dst.TensorInfo
	Values      []float32 // every element in row-major order or, of a sparse tensor, the nonzero ones
	Coordinates []uint32  // of a sparse tensor the position of each value, one number per axis; else nil
	Checksum    uint32
}

// At is the row-major position, in the whole tensor, of one of Values.
func (t Tensor) At(value int) uint64 {
	if t.Coordinates == nil {
		return uint64(value)
	}
	rank := len(t.Info.Axes)
	position := uint64(0)
	for i, at := range t.Coordinates[value*rank : (value+1)*rank] {
		position = position*t.Info.Axes[i].Size + uint64(at)
	}
	return position
}

// inBounds tells whether every coordinate lies on its axis.
func (t Tensor) inBounds() bool {
	for i, at := range t.Coordinates {
		if uint64(at) >= t.Info.Axes[i%len(t.Info.Axes)].Size {
			return false
		}
	}
	return true
}

// Dense is every element in row-major order, zeros included.
func (t Tensor) Dense() []float32 {
	if t.Coordinates == nil {
		return t.Values
	}
	size := uint64(1)
	for _, axis := range t.Info.Axes {
		size *= axis.Size
	}
	elements := make([]float32, size)
	for i, value := range t.Values {
		elements[t.At(i)] = value
	}
	return elements
}

// byteWidth is the size of an element of the types that an answer may have, 0 for any other.
func byteWidth(elementType dst.TensorElementType) int {
	switch elementType {
	case dst.TensorElementType_TENSOR_ELEMENT_TYPE_FLOAT32:
		return 4
	case dst.TensorElementType_TENSOR_ELEMENT_TYPE_FLOAT16, dst.TensorElementType_TENSOR_ELEMENT_TYPE_BFLOAT16:
		return 2
	}
	return 0
}

func decode(info *dst.TensorInfo, data []byte, checksum uint32) Tensor {
	tensor := Tensor{Info: info, Checksum: checksum}
	width := byteWidth(info.ElementType)
	values := data
	if info.Encoding == dst.TensorEncoding_TENSOR_ENCODING_SPARSE_LATENTS {
		// The values come first, then their coordinates.
		end := int(info.GetNonzeroCount()) * width
		values = data[:end]
		tensor.Coordinates = make([]uint32, len(data[end:])/4)
		for i := range tensor.Coordinates {
			tensor.Coordinates[i] = binary.LittleEndian.Uint32(data[end+4*i:])
		}
	}
	tensor.Values = make([]float32, len(values)/width)
	for i := range tensor.Values {
		element := values[width*i:]
		switch info.ElementType {
		case dst.TensorElementType_TENSOR_ELEMENT_TYPE_FLOAT16:
			tensor.Values[i] = float16(binary.LittleEndian.Uint16(element))
		case dst.TensorElementType_TENSOR_ELEMENT_TYPE_BFLOAT16:
			// The upper half of a float32.
			tensor.Values[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(element)) << 16)
		default:
			tensor.Values[i] = math.Float32frombits(binary.LittleEndian.Uint32(element))
		}
	}
	return tensor
}

// float16 reads IEEE 754 binary16: 1 sign bit, 5 of exponent, 10 of fraction.
func float16(bits uint16) float32 {
	sign, exponent, fraction := uint32(bits>>15)<<31, bits>>10&0x1f, uint32(bits&0x3ff)
	switch exponent {
	case 0: // subnormal
		value := math.Float32bits(float32(fraction) * 0x1p-24)
		return math.Float32frombits(sign | value)
	case 0x1f: // infinity, NaN
		return math.Float32frombits(sign | 0xff<<23 | fraction<<13)
	}
	return math.Float32frombits(sign | (uint32(exponent)+127-15)<<23 | fraction<<13)
}

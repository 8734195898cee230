# frozen_string_literal: true

# A tensor of an answer.
#
# `values` are every element in row-major order or, of a sparse tensor, the nonzero ones; `coordinates` are, of a sparse
# tensor, the position of each value, one number per axis, and nil otherwise.
Tensor = Struct.new(:info, :values, :coordinates, :checksum) do
  # Elements are little-endian and without padding. "e" is a little-endian float32.
  def self.decode(info, data, checksum)
    sparse = info.encoding == :TENSOR_ENCODING_SPARSE_LATENTS
    width = self::BYTE_WIDTHS.fetch(info.element_type)
    # Of a sparse tensor the values come first, then their coordinates.
    split = sparse ? info.nonzero_count * width : data.bytesize
    coordinates = data.byteslice(split..).unpack("L<*") if sparse
    new(info, decode_values(data.byteslice(0, split), info.element_type), coordinates, checksum)
  end

  def self.decode_values(bytes, element_type)
    case element_type
    when :TENSOR_ELEMENT_TYPE_FLOAT32 then bytes.unpack("e*")
    when :TENSOR_ELEMENT_TYPE_FLOAT16 then bytes.unpack("S<*").map { |bits| float16(bits) }
    # The upper half of a float32.
    when :TENSOR_ELEMENT_TYPE_BFLOAT16 then bytes.unpack("S<*").map { |bits| bits << 16 }.pack("L<*").unpack("e*")
    end
  end

  # IEEE 754 binary16: 1 sign bit, 5 of exponent, 10 of fraction.
  def self.float16(bits)
    exponent = (bits >> 10) & 0x1f
    fraction = bits & 0x3ff
    magnitude =
      case exponent
      when 0 then Math.ldexp(fraction, -24)
      when 0x1f then fraction.zero? ? Float::INFINITY : Float::NAN
      else Math.ldexp(fraction + 1024, exponent - 25)
      end
    bits[15].zero? ? magnitude : -magnitude
  end

  # Row-major position, in the whole tensor, of one of the values.
  def at(value)
    return value unless coordinates

    rank = info.axes.size
    coordinates[value * rank, rank].zip(info.axes.to_a).reduce(0) { |offset, (at, axis)| (offset * axis.size) + at }
  end

  # Whether every coordinate lies on its axis.
  def in_bounds?
    (coordinates || []).zip(info.axes.map(&:size).cycle).all? { |at, size| at < size }
  end

  # Every element in row-major order, zeros included.
  def dense
    return values unless coordinates

    elements = Array.new(info.axes.map(&:size).reduce(1, :*), 0.0)
    values.each_with_index { |value, i| elements[at(i)] = value }
    elements
  end
end

# Bytes of an element of the types that an answer may have.
Tensor::BYTE_WIDTHS = {
  TENSOR_ELEMENT_TYPE_FLOAT32: 4,
  TENSOR_ELEMENT_TYPE_FLOAT16: 2,
  TENSOR_ELEMENT_TYPE_BFLOAT16: 2
}.freeze

# frozen_string_literal: true

require_relative "resolve"

# What an answer holds, short enough to print.
module Summary
  module_function

  def of(answer)
    header = answer.header
    {
      model: header.model,
      token_count: header.token_ids.size,
      # Absent, not 0, if no loss was asked for.
      loss: header.has_loss? ? [header.loss].pack("G").unpack1("H*") : nil,
      byte_count: answer.trailer.byte_count,
      tensors: answer.tensors.map { |tensor| of_tensor(tensor) }
    }
  end

  def of_tensor(tensor)
    info = tensor.info
    finite = tensor.values.each_with_index.select { |value, _| value.finite? }
    {
      dst: info.dst,
      pass_type: info.pass_type,
      layer_index: info.has_layer_index? ? info.layer_index : nil,
      axes: Resolve.axes(info.axes),
      element_type: info.element_type,
      encoding: info.encoding,
      nonzero_count: info.has_nonzero_count? ? info.nonzero_count : nil,
      checksum: tensor.checksum,
      minus_infinities: tensor.values.count(-Float::INFINITY),
      # The first of equals.
      largest: entry(tensor, finite.max_by { |value, i| [value, -i] }),
      smallest: entry(tensor, finite.min_by { |value, i| [value, i] })
    }
  end

  def entry(tensor, found)
    return nil unless found

    value, i = found
    { at: tensor.at(i), bits: bits(value) }
  end

  # As a float32, which is what travelled; Ruby's floats are doubles.
  def bits(value)
    [value].pack("g").unpack1("H*")
  end
end

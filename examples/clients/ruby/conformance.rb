# frozen_string_literal: true

# What the assembler makes of the vectors of tests/conformance: answers as bytes, sound and damaged.

require "json"

require_relative "assembler"
require_relative "server"
require_relative "summary"

def assemble(messages)
  assembler = Assembler.new
  messages.each do |message|
    Dst::V1::DeriveResponse.decode(message.unpack1("m0")).frames.each { |frame| assembler.add(frame) }
  end
  assembler.answer
end

def of_tensor(tensor)
  info = tensor.info
  {
    shape: info.axes.map(&:size),
    layer_index: info.has_layer_index? ? info.layer_index : nil,
    bits: tensor.dense.map { |element| Summary.bits(element) }
  }
end

def result(vector)
  { tensors: assemble(vector["messages"]).tensors.map { |tensor| of_tensor(tensor) } }
rescue TruncatedAnswer
  { error: "truncated" }
rescue DamagedAnswer
  { error: "corrupt" }
end

abort "usage: conformance.rb VECTORS_FILE" unless ARGV.size == 1
vectors = JSON.parse(File.read(ARGV.first, encoding: "UTF-8"))
puts JSON.generate(vectors.to_h { |vector| [vector["name"], result(vector)] })

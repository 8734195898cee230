# frozen_string_literal: true

require_relative "assembler"
require_relative "errors"
require_relative "server"

# Asking what a request would cost before it is run.
module Resolve
  STAGES = %w[VALIDATED LOADING RESOLVED].freeze

  module_function

  # Also loads what the request needs, and says on the way how far that is.
  def resolve(server, request)
    stages = []
    loaded = {}
    whole = nil
    server.scalars.resolve(Dst::V1::ResolveRequest.new(request: request, load: true)).each do |response|
      response.frames.each do |frame|
        stage = frame.frame.to_s.upcase
        stages << stage if STAGES.include?(stage) && stages.last != stage
        case frame.frame
        when :loading
          progress = frame.loading
          warn "loading #{progress.context}: #{progress.bytes_done} of #{progress.bytes_total} bytes"
          loaded[progress.context] = progress.bytes_done
        when :resolved then whole = merged(whole, frame.resolved)
        end
      end
    end
    raise "Resolve ended without an answer" unless whole

    { stages: stages, loaded: loaded, resolved: resolved(whole) }
  end

  # Asks about many requests at once. A bad one fails alone, and the answers may overtake one another.
  def resolve_stream(server, requests)
    # gRPC takes the messages on a thread of its own, while this one reads.
    messages = requests.lazy.map do |request|
      Dst::V1::ResolveStreamRequest.new(request: Dst::V1::ResolveRequest.new(request: request))
    end
    answers = {}
    whole = {}
    server.scalars.resolve_stream(messages).each do |response|
      id = response.request_id
      response.frames.each do |frame|
        case frame.frame
        when :resolved then whole[id] = merged(whole[id], frame.resolved)
        when :error then answers[id] = { error: Errors.report(frame.error) }
        end
      end
    end
    answers.merge(whole.transform_values { |message| { resolved: resolved(message) } })
  end

  # What is said of many derived scalars comes in several frames.
  def merged(whole, piece)
    whole ? joined(whole, piece) : piece
  end

  def resolved(message)
    {
      device: message.device,
      model: message.model.name,
      autoencoders: message.autoencoders.map(&:name),
      forward_passes: message.cost.forward_passes,
      backward_passes: message.cost.backward_passes,
      output_bytes: message.cost.output_bytes,
      scalars: message.scalars.map do |scalar|
        {
          dst: scalar.dst,
          requires_grad: scalar.requires_grad,
          layer_indices: scalar.layer_indices.to_a,
          axes: axes(scalar.axes)
        }
      end
    }
  end

  # Pairs of a dimension's name and a size.
  def axes(messages)
    messages.map { |axis| [axis.dimension, axis.size] }
  end
end

# frozen_string_literal: true

require_relative "errors"
require_relative "server"

# Asking what a request would cost before it is run.
module Resolve
  module_function

  # Also loads what the request needs, and says on the way how far that is.
  def resolve(server, request)
    stages = []
    loaded = {}
    answer = nil
    server.scalars.resolve(Dst::V1::ResolveRequest.new(request: request, load: true)).each do |response|
      case response.stage
      when :validated then stages << "VALIDATED"
      when :loading
        progress = response.loading
        warn "loading #{progress.context}: #{progress.bytes_done} of #{progress.bytes_total} bytes"
        stages << "LOADING" if loaded.empty?
        loaded[progress.context] = progress.bytes_done
      when :resolved
        stages << "RESOLVED"
        answer = resolved(response.resolved)
      end
    end
    raise "Resolve ended without an answer" unless answer

    { stages: stages, loaded: loaded, resolved: answer }
  end

  # Asks about many requests at once. A bad one fails alone, and the answers may overtake one another.
  def resolve_stream(server, requests)
    # gRPC takes the messages on a thread of its own, while this one reads.
    messages = requests.lazy.map do |request|
      Dst::V1::ResolveStreamRequest.new(request: Dst::V1::ResolveRequest.new(request: request))
    end
    answers = {}
    server.scalars.resolve_stream(messages).each do |response|
      case response.stage
      when :resolved then answers[response.request_id] = { resolved: resolved(response.resolved) }
      when :error then answers[response.request_id] = { error: Errors.report(response.error) }
      end
    end
    answers
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

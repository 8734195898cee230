# frozen_string_literal: true

require_relative "assembler"
require_relative "errors"
require_relative "server"

# Running requests: one, many on a stream, one that is late, one that is cancelled.
module Derive
  module_function

  # Runs one request.
  def derive(server, request)
    assembler = Assembler.new
    # Whoever stops reading early stops the server's work too: an operation can be cancelled, an enumerator cannot.
    call = server.scalars.derive(request, return_op: true, metadata: server.metadata)
    begin
      call.execute.each { |response| response.frames.each { |frame| assembler.add(frame) } }
    ensure
      call.cancel
    end
    assembler.answer
  end

  # Runs many requests, which the server batches. Answers may overtake one another, and their messages interleave; all
  # frames of a message are of one item.
  def derive_stream(server, requests)
    assemblers = requests.map { Assembler.new } # by item: the server numbers requests as they come
    messages = requests.lazy.map { |request| Dst::V1::DeriveStreamRequest.new(request: request) }
    predictions = {}
    server.scalars.derive_stream(messages).each do |response|
      item = response.item_index
      assembler = assemblers.fetch(item) { raise DamagedAnswer, "item #{item}, which was not asked" }
      response.frames.each do |frame|
        if frame.frame == :error
          # An item that failed ends so, in place of its trailer, and the others go on.
          predictions[response.request_id] = { error: Errors.report(frame.error) }
        else
          assembler.add(frame)
        end
      end
    end
    requests.zip(assemblers) do |request, assembler|
      predictions[request.request_id] ||= predict(assembler.answer)
    end
    predictions
  end

  # Finds the largest logit at the last token.
  def predict(answer)
    logits = answer.tensors.first
    last = logits.values.last(logits.info.axes.to_a.last.size)
    { token_count: answer.header.token_ids.size, next_token: last.index(last.max) }
  end

  # Watches the server's contexts, which never ends by itself.
  def miss_deadline(server)
    server.contexts.watch_contexts(Dst::V1::WatchContextsRequest.new, deadline: Time.now + 0.25).each { |_| }
  end

  # Stops an answer after its first message, and waits until the server has stopped working for it.
  def cancel(server, request)
    call = server.scalars.derive(request, return_op: true, metadata: server.metadata)
    call.execute.first
    call.cancel

    deadline = Time.now + 10
    loop do
      pins = server.contexts.list_contexts(Dst::V1::ListContextsRequest.new).contexts.sum(&:pins)
      return pins if pins.zero?
      raise "the server still works for a cancelled call" if Time.now > deadline

      sleep(0.05)
    end
  end
end

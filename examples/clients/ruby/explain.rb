# frozen_string_literal: true

require_relative "assembler"
require_relative "server"
require_relative "summary"

# Asking why the model said one thing and not another.
module Explain
  PARTS = %i[header node_table scored_tokens top_logits trailer].freeze

  module_function

  # Reads an explanation, each frame of which comes as soon as it is ready.
  def explain(server, request)
    parts = Hash.new(0)
    scored = []
    table = logits = nil
    count = counted = 0
    server.scalars.explain(request).each do |response|
      response.frames.each do |frame|
        count += 1
        next unless PARTS.include?(frame.frame) # not wanted here, or not known

        parts[frame.frame] += 1
        case frame.frame
        when :node_table then table = merged(table, frame.node_table)
        when :scored_tokens then scored << scored_tokens(frame.scored_tokens)
        when :top_logits then logits = merged(logits, frame.top_logits)
        when :trailer then counted = frame.trailer.frame_count
        end
      end
    end
    raise "truncated: #{count} frames came, the trailer counts #{counted}" unless count == counted

    { parts: parts, groups: groups(table), scored_tokens: scored, top_logits: top_tokens(logits) }
  end

  # A table of many nodes comes in several frames.
  def merged(whole, piece)
    whole ? joined(whole, piece) : piece
  end

  def groups(table)
    table.groups.each_with_index.map do |group, i|
      {
        group_id: group.group_id,
        top: group.top.map { |position| node(table.nodes[position], i) },
        bottom: group.bottom.map { |position| node(table.nodes[position], i) }
      }
    end
  end

  # A node of a table, with its value in a group.
  def node(row, group)
    index = row.node
    {
      node_type: index.node_type,
      layer_index: index.has_layer_index? ? index.layer_index : nil,
      tensor_indices: index.tensor_indices.map { |entry| entry.index == :at ? entry.at : nil }, # nil for a whole axis
      bits: Summary.bits(row.values[group])
    }
  end

  def scored_tokens(message)
    nodes = message.nodes.map { |node| { node: node.node, top: scores(node.top), bottom: scores(node.bottom) } }
    { part: message.part, nodes: nodes }
  end

  def scores(messages)
    messages.map { |score| [score.token, Summary.bits(score.score)] }
  end

  def top_tokens(logits)
    logits.groups.first.top.map { |i| [logits.nodes[i].vocab_token, Summary.bits(logits.nodes[i].values[0])] }
  end
end

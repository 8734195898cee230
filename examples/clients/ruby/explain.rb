# frozen_string_literal: true

require_relative "server"
require_relative "summary"

# Asking why the model said one thing and not another.
module Explain
  PARTS = %i[header node_table scored_tokens top_logits trailer].freeze

  module_function

  # Reads the parts of an explanation, each of which comes as soon as it is ready.
  def explain(server, request)
    document = { parts: Hash.new(0), groups: [], scored_tokens: [], top_logits: [] }
    messages = counted = 0
    server.scalars.explain(request).each do |response|
      messages += 1
      next unless PARTS.include?(response.part) # not wanted here, or not known

      document[:parts][response.part] += 1
      case response.part
      when :node_table then document[:groups] = groups(response.node_table)
      when :scored_tokens then document[:scored_tokens] << scored_tokens(response.scored_tokens)
      when :top_logits then document[:top_logits] = top_logits(response.top_logits)
      when :trailer then counted = response.trailer.message_count
      end
    end
    raise "truncated: #{messages} messages came, the trailer counts #{counted}" unless messages == counted

    document
  end

  def groups(table)
    table.groups.map do |group|
      {
        group_id: group.group_id,
        top: group.top.map { |i| node(table, group, i) },
        bottom: group.bottom.map { |i| node(table, group, i) }
      }
    end
  end

  # The node at a position of a table, with its value in a group.
  def node(table, group, position)
    index = table.nodes[position]
    {
      node_type: index.node_type,
      layer_index: index.has_layer_index? ? index.layer_index : nil,
      tensor_indices: index.tensor_indices.map { |entry| entry.index == :at ? entry.at : nil }, # nil for a whole axis
      bits: Summary.bits(group.values[position])
    }
  end

  def scored_tokens(message)
    nodes = message.nodes.map { |node| { node: node.node, top: scores(node.top), bottom: scores(node.bottom) } }
    { part: message.part, nodes: nodes }
  end

  def scores(messages)
    messages.map { |score| [score.token, Summary.bits(score.score)] }
  end

  def top_logits(table)
    group = table.groups.first
    group.top.map { |i| [table.vocab_tokens[i], Summary.bits(group.values[i])] }
  end
end

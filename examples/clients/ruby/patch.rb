# frozen_string_literal: true

require_relative "assembler"
require_relative "server"
require_relative "summary"

# Asking what the metric would be if one place in a run were as in another run.
module Patch
  module_function

  # Reads a grid; the cells of each pass come as soon as they are done, and their means over pairs last.
  def patch(server, request)
    header = pair = means = nil
    count = counted = done = 0
    server.causal.patch(request).each do |response|
      response.frames.each do |frame|
        count += 1
        case frame.frame
        when :header then header = frame.header
        when :pair then pair = frame.pair
        when :cells then done += frame.cells.cells.size
        when :means then means = means ? joined(means, frame.means) : frame.means # many cells come in several frames
        when :trailer then counted = frame.trailer.frame_count
        end
      end
    end
    raise "truncated: #{count} frames and #{done} cells came" unless count == counted && done == means.cells.size

    grid(header.grids.first, pair, means)
  end

  def grid(info, pair, means)
    {
      axes: info.axes.map(&:name),
      shape: info.axes.map { |axis| axis.labels.size },
      base: Summary.bits(pair.metric),
      source: Summary.bits(pair.source_metric),
      metrics: means.metrics.map { |metric| Summary.bits(metric) } # in the order of the cells
    }
  end
end

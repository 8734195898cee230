# frozen_string_literal: true

require "zlib"

require_relative "tensor"

# The frames are not those of one whole, undamaged answer.
class DamagedAnswer < StandardError
  def initialize(problem)
    super("the answer is damaged: #{problem}")
  end
end

# The frames end before the trailer. Any other damage is that they contradict themselves.
class TruncatedAnswer < DamagedAnswer
  def initialize
    super("truncated: it ended without a trailer")
  end
end

# Two pieces of a message as one: lists are joined. Messages in a row are one message, by the rules of protobuf.
def joined(first, second)
  first.class.decode(first.class.encode(first) + second.class.encode(second))
end

# A whole, undamaged answer.
Answer = Struct.new(:header, :tensors, :trailer)

# The frames of one request go in, in order; its answer comes out. Each tensor's memory is allocated once, from the
# header, and nothing is believed unchecked: order, offsets, lengths and checksums.
class Assembler
  # How much an answer may announce: memory is taken before anything else has come.
  MAX_BYTES = 8 << 30

  def initialize
    # Of all pieces: the header of many tensors or tokens comes in several frames, all but the last of them partial.
    @header = nil
    @complete = false # whether the last of them has come
    @trailer = nil
    @lengths = []
    @data = []
    @checksums = []
    @current = 0 # the tensor being filled
  end

  # Takes the next frame. Kinds that this client does not know are ignored.
  def add(frame)
    case frame.frame
    when :header then start(frame.header, frame.partial)
    when :chunk then fill(frame.chunk)
    when :trailer then finish_with(frame.trailer)
    when :error then damaged("an error in place of the trailer; only DeriveStream sends those")
    end
  end

  # Gives the answer. One without its trailer is truncated, even if the call's status is OK.
  def answer
    raise TruncatedAnswer unless @trailer
    tensors = @header.tensors.each_with_index.map { |info, i| Tensor.decode(info, @data[i], @checksums[i]) }
    damaged("coordinates outside of their axes") unless tensors.all?(&:in_bounds?)
    Answer.new(@header, tensors, @trailer)
  end

  private

  def start(piece, partial)
    damaged("a second header") if @complete
    damaged("pieces of different headers") unless @header.nil? || ["", @header.model].include?(piece.model)
    @complete = !partial
    @header = @header ? joined(@header, piece) : piece
    piece.tensors.each do |info|
      damaged("tensor #{@data.size} is numbered #{info.tensor_id}") unless info.tensor_id == @data.size
      length = byte_length(info)
      @lengths << length
      damaged("more than #{MAX_BYTES} bytes announced") if @lengths.sum > MAX_BYTES
      @data << String.new(capacity: length, encoding: Encoding::BINARY)
      @checksums << 0
    end
    skip_full
  end

  def fill(chunk)
    damaged("a chunk outside of header and trailer") if !@complete || @trailer
    buffer = @data[@current]
    unless chunk.tensor_id == @current && chunk.offset == buffer&.bytesize
      damaged("a chunk of tensor #{chunk.tensor_id} at #{chunk.offset} in place of #{@current} at #{buffer&.bytesize}")
    end
    piece = chunk.data # each call makes a new string
    damaged("too many bytes for tensor #{@current}") if buffer.bytesize + piece.bytesize > @lengths[@current]
    buffer << piece
    @checksums[@current] = Zlib.crc32(piece, @checksums[@current])
    skip_full
  end

  # Moves on to the next tensor that lacks bytes; an empty tensor has no chunks.
  def skip_full
    @current += 1 while @current < @data.size && @data[@current].bytesize == @lengths[@current]
  end

  def finish_with(trailer)
    damaged("a trailer without header, or a second one") if !@complete || @trailer
    damaged("the trailer came before the end of tensor #{@current}") if @current < @data.size
    unless [trailer.tensor_count, trailer.byte_count] == [@data.size, @lengths.sum]
      damaged("the trailer does not count what came")
    end
    damaged("the checksums differ") unless trailer.checksums.to_a == @checksums
    @trailer = trailer
  end

  # Bytes of a tensor, as announced; they must be what its sizes come to.
  def byte_length(info)
    width = Tensor::BYTE_WIDTHS[info.element_type] || damaged("no decoder for #{info.element_type}")
    expected =
      case info.encoding
      when :TENSOR_ENCODING_DENSE then info.axes.reduce(width) { |product, axis| product * axis.size }
      when :TENSOR_ENCODING_SPARSE_LATENTS then info.nonzero_count * (width + (4 * info.axes.size))
      else damaged("no decoder for #{info.encoding}")
      end
    return expected if info.byte_length == expected

    damaged("tensor #{info.tensor_id}: #{info.byte_length} bytes announced, its sizes make #{expected}")
  end

  def damaged(problem)
    raise DamagedAnswer, problem
  end
end

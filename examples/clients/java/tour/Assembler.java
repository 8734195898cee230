package tour;

import com.google.protobuf.ByteString;
import io.dstgrpc.v1.Axis;
import io.dstgrpc.v1.Frame;
import io.dstgrpc.v1.Header;
import io.dstgrpc.v1.TensorChunk;
import io.dstgrpc.v1.TensorEncoding;
import io.dstgrpc.v1.TensorInfo;
import io.dstgrpc.v1.Trailer;
import java.util.ArrayList;
import java.util.List;
import java.util.zip.CRC32;

/**
 * The frames of one request go in, in order; its answer comes out. Each tensor's memory is allocated once, from the
 * header, and nothing is believed unchecked: order, offsets, lengths and checksums.
 */
final class Assembler {
  /** How much an answer may announce: memory is taken before anything else has come. */
  private static final long MAX_BYTES = 8L << 30;

  private Header header;
  private byte[][] data = {};
  private CRC32[] checksums = {};

  /** The tensor being filled, and how far it is. */
  private int current;

  private int filled;
  private Trailer trailer;

  /** A whole, undamaged answer. */
  record Answer(Header header, List<Tensor> tensors, Trailer trailer) {}

  /** Takes the next frame. Kinds that this client does not know are ignored. */
  void add(Frame frame) throws DamagedAnswer {
    switch (frame.getFrameCase()) {
      case HEADER -> begin(frame.getHeader());
      case CHUNK -> fill(frame.getChunk());
      case TRAILER -> end(frame.getTrailer());
      case ITEM_RESULT -> throw new DamagedAnswer("an error in place of the trailer; only DeriveStream sends those");
      case FRAME_NOT_SET -> {}
    }
  }

  /** Gives the answer. One without its trailer is truncated, even if the call's status is OK. */
  Answer finish() throws DamagedAnswer {
    if (trailer == null) {
      throw new DamagedAnswer.Truncated();
    }
    List<Tensor> tensors = new ArrayList<>();
    for (int i = 0; i < data.length; i++) {
      Tensor tensor = Tensor.decode(header.getTensors(i), data[i], checksums[i].getValue());
      check(tensor.inBounds(), "tensor " + i + ": coordinates outside of its axes");
      tensors.add(tensor);
    }
    return new Answer(header, tensors, trailer);
  }

  private void begin(Header first) throws DamagedAnswer {
    check(header == null, "a second header");
    header = first;
    data = new byte[header.getTensorsCount()][];
    checksums = new CRC32[data.length];
    long room = MAX_BYTES;
    for (int i = 0; i < data.length; i++) {
      TensorInfo info = header.getTensors(i);
      check(info.getTensorId() == i, "tensor " + i + " is numbered " + info.getTensorId());
      data[i] = new byte[byteLength(info)];
      room -= data[i].length;
      check(room >= 0, "more than " + MAX_BYTES + " bytes announced");
      checksums[i] = new CRC32();
    }
    skipFull();
  }

  private void fill(TensorChunk chunk) throws DamagedAnswer {
    check(header != null && trailer == null, "a chunk outside of header and trailer");
    check(
        current < data.length && chunk.getTensorId() == current && chunk.getOffset() == filled,
        "a chunk of tensor %d at %d in place of %d at %d"
            .formatted(chunk.getTensorId(), chunk.getOffset(), current, filled));
    ByteString piece = chunk.getData();
    check(piece.size() <= data[current].length - filled, "too many bytes for tensor " + current);
    piece.copyTo(data[current], filled);
    checksums[current].update(data[current], filled, piece.size());
    filled += piece.size();
    skipFull();
  }

  /** Moves on to the next tensor that lacks bytes; an empty tensor has no chunks. */
  private void skipFull() {
    while (current < data.length && filled == data[current].length) {
      current++;
      filled = 0;
    }
  }

  private void end(Trailer last) throws DamagedAnswer {
    check(header != null && trailer == null, "a trailer without header, or a second one");
    check(current == data.length, "the trailer came before the end of tensor " + current);
    long bytes = 0;
    for (byte[] tensor : data) {
      bytes += tensor.length;
    }
    check(
        last.getTensorCount() == data.length
            && last.getByteCount() == bytes
            && last.getChecksumsCount() == data.length,
        "the trailer does not count what came");
    for (int i = 0; i < data.length; i++) {
      // Java has no unsigned numbers: a fixed32 is an int of the same bits, CRC32 gives a long.
      check(last.getChecksums(i) == (int) checksums[i].getValue(), "tensor " + i + ": the checksum differs");
    }
    trailer = last;
  }

  /** Bytes of a tensor, as announced; they must be what its sizes come to. */
  private static int byteLength(TensorInfo info) throws DamagedAnswer {
    int width = Tensor.byteWidth(info.getElementType());
    check(width > 0, "no decoder for " + info.getElementType());
    boolean sparse = info.getEncoding() == TensorEncoding.TENSOR_ENCODING_SPARSE_LATENTS;
    check(
        sparse || info.getEncoding() == TensorEncoding.TENSOR_ENCODING_DENSE, "no decoder for " + info.getEncoding());
    // Whatever the sizes, a double does not wrap around; up to 2^53 it is exact.
    double expected = width;
    if (sparse) {
      expected = (double) info.getNonzeroCount() * (width + info.getAxesCount() * Integer.BYTES);
    } else {
      for (Axis axis : info.getAxesList()) {
        expected *= axis.getSize();
      }
    }
    check(
        info.getByteLength() == expected && expected <= Integer.MAX_VALUE,
        "tensor %d: %d bytes announced, its sizes make %.0f"
            .formatted(info.getTensorId(), info.getByteLength(), expected));
    return (int) info.getByteLength();
  }

  private static void check(boolean holds, String problem) throws DamagedAnswer {
    if (!holds) {
      throw new DamagedAnswer(problem);
    }
  }
}

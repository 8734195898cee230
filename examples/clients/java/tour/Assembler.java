package tour;

import com.google.protobuf.ByteString;
import io.dstgrpc.v1.Axis;
import io.dstgrpc.v1.DeriveFrame;
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

  /**
   * All pieces of it: that of many tensors or tokens comes in several frames, all but the last of them partial. Null
   * before the first.
   */
  private Header.Builder header;

  /** Whether the last of them has come. */
  private boolean complete;

  private long announced;
  private final List<byte[]> data = new ArrayList<>();
  private final List<CRC32> checksums = new ArrayList<>();

  /** The tensor being filled, and how far it is. */
  private int current;

  private int filled;
  private Trailer trailer;

  /** A whole, undamaged answer. */
  record Answer(Header header, List<Tensor> tensors, Trailer trailer) {}

  /** Takes the next frame. Kinds that this client does not know are ignored. */
  void add(DeriveFrame frame) throws DamagedAnswer {
    switch (frame.getFrameCase()) {
      case HEADER -> begin(frame.getHeader(), frame.getPartial());
      case CHUNK -> fill(frame.getChunk());
      case TRAILER -> end(frame.getTrailer());
      case ERROR -> throw new DamagedAnswer("an error in place of the trailer; only DeriveStream sends those");
      case FRAME_NOT_SET -> {}
    }
  }

  /** Gives the answer. One without its trailer is truncated, even if the call's status is OK. */
  Answer finish() throws DamagedAnswer {
    if (trailer == null) {
      throw new DamagedAnswer.Truncated();
    }
    List<Tensor> tensors = new ArrayList<>();
    for (int i = 0; i < data.size(); i++) {
      Tensor tensor = Tensor.decode(header.getTensors(i), data.get(i), checksums.get(i).getValue());
      check(tensor.inBounds(), "tensor " + i + ": coordinates outside of its axes");
      tensors.add(tensor);
    }
    return new Answer(header.build(), tensors, trailer);
  }

  private void begin(Header piece, boolean partial) throws DamagedAnswer {
    check(!complete, "a second header");
    if (header == null) {
      header = Header.newBuilder();
    } else {
      String model = piece.getModel();
      check(model.isEmpty() || model.equals(header.getModel()), "pieces of different headers");
    }
    header.mergeFrom(piece);
    complete = !partial;
    for (TensorInfo info : piece.getTensorsList()) {
      check(info.getTensorId() == data.size(), "tensor " + data.size() + " is numbered " + info.getTensorId());
      int length = byteLength(info);
      announced += length;
      check(announced <= MAX_BYTES, "more than " + MAX_BYTES + " bytes announced");
      data.add(new byte[length]);
      checksums.add(new CRC32());
    }
    skipFull();
  }

  private void fill(TensorChunk chunk) throws DamagedAnswer {
    check(complete && trailer == null, "a chunk outside of header and trailer");
    check(
        current < data.size() && chunk.getTensorId() == current && chunk.getOffset() == filled,
        "a chunk of tensor %d at %d in place of %d at %d"
            .formatted(chunk.getTensorId(), chunk.getOffset(), current, filled));
    ByteString piece = chunk.getData();
    byte[] buffer = data.get(current);
    check(piece.size() <= buffer.length - filled, "too many bytes for tensor " + current);
    piece.copyTo(buffer, filled);
    checksums.get(current).update(buffer, filled, piece.size());
    filled += piece.size();
    skipFull();
  }

  /** Moves on to the next tensor that lacks bytes; an empty tensor has no chunks. */
  private void skipFull() {
    while (current < data.size() && filled == data.get(current).length) {
      current++;
      filled = 0;
    }
  }

  private void end(Trailer last) throws DamagedAnswer {
    check(complete && trailer == null, "a trailer without header, or a second one");
    check(current == data.size(), "the trailer came before the end of tensor " + current);
    long bytes = 0;
    for (byte[] tensor : data) {
      bytes += tensor.length;
    }
    check(
        last.getTensorCount() == data.size()
            && last.getByteCount() == bytes
            && last.getChecksumsCount() == data.size(),
        "the trailer does not count what came");
    for (int i = 0; i < data.size(); i++) {
      // Java has no unsigned numbers: a fixed32 is an int of the same bits, CRC32 gives a long.
      check(last.getChecksums(i) == (int) checksums.get(i).getValue(), "tensor " + i + ": the checksum differs");
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

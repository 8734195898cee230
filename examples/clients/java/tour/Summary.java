package tour;

import io.dstgrpc.v1.Header;
import io.dstgrpc.v1.TensorInfo;
import java.util.List;

/** What an answer holds, short enough to print. */
record Summary(String model, int token_count, String loss, long byte_count, List<OfTensor> tensors) {
  record OfTensor(
      String dst,
      String pass_type,
      Integer layer_index,
      List<List<Object>> axes,
      String element_type,
      String encoding,
      Long nonzero_count,
      long checksum,
      int minus_infinities,
      Entry largest,
      Entry smallest) {}

  record Entry(long at, String bits) {}

  static Summary of(Assembler.Answer answer) {
    Header header = answer.header();
    return new Summary(
        header.getModel(),
        header.getTokenIdsCount(),
        // Absent, not 0, if no loss was asked for.
        header.hasLoss() ? "%016x".formatted(Double.doubleToRawLongBits(header.getLoss())) : null,
        answer.trailer().getByteCount(),
        answer.tensors().stream().map(Summary::of).toList());
  }

  private static OfTensor of(Tensor tensor) {
    TensorInfo info = tensor.info();
    float[] values = tensor.values();
    int minusInfinities = 0;
    int largest = -1;
    int smallest = -1;
    for (int i = 0; i < values.length; i++) {
      if (values[i] == Float.NEGATIVE_INFINITY) {
        minusInfinities++;
      }
      if (!Float.isFinite(values[i])) {
        continue;
      }
      if (largest < 0 || values[i] > values[largest]) {
        largest = i;
      }
      if (smallest < 0 || values[i] < values[smallest]) {
        smallest = i;
      }
    }
    return new OfTensor(
        info.getDst().name(),
        info.getPassType().name(),
        info.hasLayerIndex() ? info.getLayerIndex() : null,
        Resolve.axes(info.getAxesList()),
        info.getElementType().name(),
        info.getEncoding().name(),
        info.hasNonzeroCount() ? info.getNonzeroCount() : null,
        tensor.checksum(),
        minusInfinities,
        largest < 0 ? null : new Entry(tensor.at(largest), bits(values[largest])),
        smallest < 0 ? null : new Entry(tensor.at(smallest), bits(values[smallest])));
  }

  static String bits(float value) {
    return "%08x".formatted(Float.floatToRawIntBits(value));
  }
}

package tour;

import io.dstgrpc.v1.Axis;
import io.dstgrpc.v1.TensorElementType;
import io.dstgrpc.v1.TensorEncoding;
import io.dstgrpc.v1.TensorInfo;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/**
 * A tensor of an answer.
 *
 * @param values every element in row-major order or, of a sparse tensor, the nonzero ones
 * @param coordinates of a sparse tensor the position of each value, one number per axis; else null
 */
record Tensor(TensorInfo info, float[] values, int[] coordinates, long checksum) {
  /** Row-major position, in the whole tensor, of one of the values. */
  long at(int value) {
    if (coordinates == null) {
      return value;
    }
    int rank = info.getAxesCount();
    long position = 0;
    for (int axis = 0; axis < rank; axis++) {
      position = position * info.getAxes(axis).getSize() + coordinates[value * rank + axis];
    }
    return position;
  }

  /** Whether every coordinate lies on its axis. */
  boolean inBounds() {
    for (int i = 0; coordinates != null && i < coordinates.length; i++) {
      if (Integer.toUnsignedLong(coordinates[i]) >= info.getAxes(i % info.getAxesCount()).getSize()) {
        return false;
      }
    }
    return true;
  }

  /** Every element in row-major order, zeros included. */
  float[] dense() {
    if (coordinates == null) {
      return values;
    }
    long size = 1;
    for (Axis axis : info.getAxesList()) {
      size *= axis.getSize();
    }
    float[] elements = new float[Math.toIntExact(size)];
    for (int i = 0; i < values.length; i++) {
      elements[Math.toIntExact(at(i))] = values[i];
    }
    return elements;
  }

  /** Bytes of an element of the types that an answer may have, 0 for any other. */
  static int byteWidth(TensorElementType type) {
    return switch (type) {
      case TENSOR_ELEMENT_TYPE_FLOAT32 -> 4;
      case TENSOR_ELEMENT_TYPE_FLOAT16, TENSOR_ELEMENT_TYPE_BFLOAT16 -> 2;
      default -> 0;
    };
  }

  static Tensor decode(TensorInfo info, byte[] data, long checksum) {
    boolean sparse = info.getEncoding() == TensorEncoding.TENSOR_ENCODING_SPARSE_LATENTS;
    int width = byteWidth(info.getElementType());
    int count = sparse ? (int) info.getNonzeroCount() : data.length / width;
    // Java's buffers are big-endian unless told otherwise; the wire is little-endian.
    ByteBuffer buffer = ByteBuffer.wrap(data).order(ByteOrder.LITTLE_ENDIAN);
    float[] values = new float[count];
    for (int i = 0; i < count; i++) {
      values[i] =
          switch (info.getElementType()) {
            case TENSOR_ELEMENT_TYPE_FLOAT16 -> float16(buffer.getShort());
            // The upper half of a float32.
            case TENSOR_ELEMENT_TYPE_BFLOAT16 -> Float.intBitsToFloat(buffer.getShort() << 16);
            default -> buffer.getFloat();
          };
    }
    if (!sparse) {
      return new Tensor(info, values, null, checksum);
    }
    int[] coordinates = new int[count * info.getAxesCount()];
    buffer.asIntBuffer().get(coordinates);
    return new Tensor(info, values, coordinates, checksum);
  }

  /** Reads IEEE 754 binary16: 1 sign bit, 5 of exponent, 10 of fraction. */
  private static float float16(short bits) {
    int sign = (bits & 0x8000) << 16;
    int exponent = bits >> 10 & 0x1f;
    int fraction = bits & 0x3ff;
    int magnitude =
        switch (exponent) {
          case 0 -> Float.floatToRawIntBits(fraction * 0x1p-24f); // subnormal
          case 0x1f -> 0xff << 23 | fraction << 13; // infinity, NaN
          default -> exponent + 127 - 15 << 23 | fraction << 13;
        };
    return Float.intBitsToFloat(sign | magnitude);
  }
}

package tour;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.protobuf.InvalidProtocolBufferException;
import io.dstgrpc.v1.Axis;
import io.dstgrpc.v1.DeriveFrame;
import io.dstgrpc.v1.DeriveResponse;
import io.dstgrpc.v1.TensorInfo;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** What the assembler makes of the vectors of tests/conformance: answers as bytes, sound and damaged. */
public final class Conformance {
  private Conformance() {}

  /** An answer; the names are those of the JSON file. */
  private record Vector(String name, List<String> messages) {}

  private record OfTensor(List<Long> shape, Integer layer_index, List<String> bits) {}

  public static void main(String[] arguments) throws Exception {
    if (arguments.length != 1) {
      System.err.println("usage: tour.Conformance VECTORS_FILE");
      System.exit(2);
    }
    Gson gson = new GsonBuilder().serializeNulls().create();
    Map<String, Object> results = new LinkedHashMap<>();
    for (Vector vector : gson.fromJson(Files.readString(Path.of(arguments[0])), Vector[].class)) {
      results.put(vector.name(), result(vector));
    }
    System.out.println(gson.toJson(results));
  }

  private static Map<String, Object> result(Vector vector) throws InvalidProtocolBufferException {
    try {
      return Map.of("tensors", assemble(vector).tensors().stream().map(Conformance::of).toList());
    } catch (DamagedAnswer.Truncated ended) {
      return Map.of("error", "truncated");
    } catch (DamagedAnswer damaged) {
      return Map.of("error", "corrupt");
    }
  }

  private static Assembler.Answer assemble(Vector vector) throws DamagedAnswer, InvalidProtocolBufferException {
    Assembler assembler = new Assembler();
    for (String message : vector.messages()) {
      for (DeriveFrame frame : DeriveResponse.parseFrom(Base64.getDecoder().decode(message)).getFramesList()) {
        assembler.add(frame);
      }
    }
    return assembler.finish();
  }

  private static OfTensor of(Tensor tensor) {
    TensorInfo info = tensor.info();
    List<String> bits = new ArrayList<>();
    for (float element : tensor.dense()) {
      bits.add(Summary.bits(element));
    }
    return new OfTensor(
        info.getAxesList().stream().map(Axis::getSize).toList(),
        info.hasLayerIndex() ? info.getLayerIndex() : null,
        bits);
  }
}

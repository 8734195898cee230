package tour;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import io.dstgrpc.v1.DeriveRequest;
import io.dstgrpc.v1.TensorElementType;
import io.grpc.StatusRuntimeException;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** A tour of dst-grpc: asks a server about a prompt and prints one JSON document. See ../README.md. */
public final class Tour {
  private Tour() {}

  public static void main(String[] arguments) throws Exception {
    if (arguments.length != 3) {
      System.err.println("usage: tour.Tour ADDRESS TOUR_FILE RETRY_ADDRESS");
      System.exit(2);
    }
    Inputs inputs = read(Path.of(arguments[1]), Inputs.class);
    Map<?, ?> serviceConfig = read(Path.of("../service_config.json"), Map.class);
    Gson gson = new GsonBuilder().serializeNulls().disableHtmlEscaping().setPrettyPrinting().create();
    try (Server server = new Server(arguments[0], serviceConfig, inputs.model());
        Server refusing = new Server(arguments[2], serviceConfig, inputs.model())) {
      System.out.println(gson.toJson(tour(server, refusing, new Requests(inputs))));
    } catch (StatusRuntimeException error) {
      System.err.println(error.getStatus() + " " + Errors.report(error));
      System.exit(1);
    }
  }

  private static <T> T read(Path path, Class<T> type) throws IOException {
    return new Gson().fromJson(Files.readString(path), type);
  }

  private static Map<String, Object> tour(Server server, Server refusing, Requests requests) throws Exception {
    Inputs inputs = requests.inputs();
    Map<String, Object> document = new LinkedHashMap<>();
    document.put("health", Catalog.health(server));
    document.put("models", Catalog.models(server));
    document.put("types", Catalog.types(server));
    Catalog.Tokens tokens = Catalog.tokenize(server, inputs.model(), inputs.prompt());
    document.put("tokens", tokens);
    document.put("unicode", Catalog.tokenize(server, inputs.model(), inputs.unicode()));
    document.put("resolve", Resolve.resolve(server, requests.sparse()));
    document.put(
        "resolve_stream",
        Resolve.resolveStream(server, List.of(requests.dense(), requests.sparse(), requests.wrong())));

    Map<String, Object> derived = new LinkedHashMap<>();
    for (DeriveRequest request :
        List.of(
            requests.dense(),
            requests.sparse(),
            requests.half("float16", TensorElementType.TENSOR_ELEMENT_TYPE_FLOAT16),
            requests.half("bfloat16", TensorElementType.TENSOR_ELEMENT_TYPE_BFLOAT16))) {
      derived.put(request.getRequestId(), Summary.of(Derive.derive(server, request)));
    }
    document.put("derive", derived);
    document.put("derive_stream", Derive.deriveStream(server, requests.prefixes(tokens.token_ids())));
    document.put("explain", Explain.explain(server, requests.explain()));
    document.put("deadline", Map.of("code", Derive.missDeadline(server).code()));
    document.put("cancel", Map.of("pins", Derive.cancel(server, requests.large())));
    document.put("rejected", rejected(server, requests.rejected()));
    document.put("retry", Map.of("text", Catalog.detokenize(refusing, inputs.model(), tokens.token_ids())));
    return document;
  }

  private static Errors.Report rejected(Server server, DeriveRequest request) throws DamagedAnswer {
    try {
      Derive.derive(server, request);
    } catch (StatusRuntimeException error) {
      return Errors.report(error);
    }
    throw new IllegalStateException("a request with four bad fields was accepted");
  }
}

package tour;

import io.dstgrpc.v1.DerivedScalarTypeInfo;
import io.dstgrpc.v1.DetokenizeRequest;
import io.dstgrpc.v1.ListDerivedScalarTypesRequest;
import io.dstgrpc.v1.ListDerivedScalarTypesResponse;
import io.dstgrpc.v1.ListModelsRequest;
import io.dstgrpc.v1.ListModelsResponse;
import io.dstgrpc.v1.ModelDimensions;
import io.dstgrpc.v1.ModelInfo;
import io.dstgrpc.v1.TokenizeRequest;
import io.dstgrpc.v1.TokenizeResponse;
import io.grpc.health.v1.HealthCheckRequest;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;

/** What can be asked: health, models, derived scalar types, tokens. */
final class Catalog {
  private Catalog() {}

  record Model(
      String name,
      String family,
      int n_layers,
      int d_model,
      int n_heads,
      int d_mlp,
      int vocab_size,
      int context_window,
      long parameter_bytes,
      boolean default_model,
      List<String> autoencoders) {}

  record Types(int pages, List<String> names, Type last) {}

  record Type(String name, List<String> dimensions, String formula) {}

  record Tokens(List<Integer> token_ids, List<String> token_strings) {}

  static String health(Server server) {
    HealthCheckRequest request =
        HealthCheckRequest.newBuilder().setService("dst.v1.DerivedScalarService").build();
    return server.health().check(request).getStatus().name();
  }

  static List<Model> models(Server server) {
    List<Model> models = new ArrayList<>();
    String token = "";
    do {
      ListModelsResponse page =
          server.catalog().listModels(ListModelsRequest.newBuilder().setPageToken(token).build());
      page.getModelsList().forEach(model -> models.add(model(model)));
      token = page.getNextPageToken();
    } while (!token.isEmpty());
    return models;
  }

  private static Model model(ModelInfo model) {
    ModelDimensions sizes = model.getDimensions();
    return new Model(
        model.getName(),
        model.getFamily(),
        sizes.getNLayers(),
        sizes.getDModel(),
        sizes.getNHeads(),
        sizes.getDMlp(),
        sizes.getVocabSize(),
        sizes.getContextWindow(),
        model.getParameterBytes(),
        model.getDefaultModel(),
        model.getAutoencodersList());
  }

  static Types types(Server server) {
    List<DerivedScalarTypeInfo> types = new ArrayList<>();
    int pages = 0;
    String token = "";
    do {
      ListDerivedScalarTypesRequest request =
          ListDerivedScalarTypesRequest.newBuilder().setPageSize(40).setPageToken(token).build();
      ListDerivedScalarTypesResponse page = server.catalog().listDerivedScalarTypes(request);
      pages++;
      types.addAll(page.getTypesList());
      token = page.getNextPageToken();
    } while (!token.isEmpty());
    DerivedScalarTypeInfo last = types.get(types.size() - 1);
    return new Types(
        pages,
        types.stream().map(DerivedScalarTypeInfo::getName).toList(),
        new Type(last.getName(), last.getDimensionsList().stream().map(Enum::name).toList(), last.getFormula()));
  }

  static Tokens tokenize(Server server, String model, String text) {
    TokenizeRequest request = TokenizeRequest.newBuilder().setModel(model).setText(text).build();
    Tokens tokens = new Tokens(new ArrayList<>(), new ArrayList<>());
    Iterator<TokenizeResponse> responses = server.catalog().tokenize(request);
    while (responses.hasNext()) { // the tokens of a long text come in several messages
      TokenizeResponse response = responses.next();
      tokens.token_ids().addAll(response.getTokenIdsList());
      tokens.token_strings().addAll(response.getTokenStringsList());
    }
    return tokens;
  }

  static String detokenize(Server server, String model, List<Integer> tokenIds) throws InterruptedException {
    DetokenizeRequest request = DetokenizeRequest.newBuilder().setModel(model).addAllTokenIds(tokenIds).build();
    return Errors.retrying(
        () -> {
          StringBuilder text = new StringBuilder();
          server.catalog().detokenize(request).forEachRemaining(response -> text.append(response.getText()));
          return text.toString();
        });
  }
}

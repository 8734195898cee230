#include "steps.h"

std::string check_health(Server& server) {
  Call call(server);
  grpc::health::v1::HealthCheckRequest request;
  request.set_service("dst.v1.DerivedScalarService");
  grpc::health::v1::HealthCheckResponse response;
  check(server.health->Check(&call, request, &response));
  return grpc::health::v1::HealthCheckResponse::ServingStatus_Name(response.status());
}

Json list_models(Server& server) {
  Json models = Json::array();
  dst::v1::ListModelsRequest request;
  do {
    Call call(server);
    dst::v1::ListModelsResponse page;
    check(server.catalog->ListModels(&call, request, &page));
    for (const auto& model : page.models()) {
      const auto& sizes = model.dimensions();
      models.push_back({
          {"name", model.name()},
          {"family", model.family()},
          {"n_layers", sizes.n_layers()},
          {"d_model", sizes.d_model()},
          {"n_heads", sizes.n_heads()},
          {"d_mlp", sizes.d_mlp()},
          {"vocab_size", sizes.vocab_size()},
          {"context_window", sizes.context_window()},
          {"parameter_bytes", model.parameter_bytes()},
          {"default_model", model.default_model()},
          {"autoencoders", model.autoencoders()},
      });
    }
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  return models;
}

Json list_types(Server& server) {
  int pages = 0;
  Json names = Json::array();
  dst::v1::DerivedScalarTypeInfo last;
  dst::v1::ListDerivedScalarTypesRequest request;
  request.set_page_size(40);
  do {
    Call call(server);
    dst::v1::ListDerivedScalarTypesResponse page;
    check(server.catalog->ListDerivedScalarTypes(&call, request, &page));
    pages++;
    for (const auto& type : page.types()) {
      names.push_back(type.name());
      last = type;
    }
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  Json dimensions = Json::array();
  for (const auto dimension : last.dimensions()) {
    dimensions.push_back(dst::v1::Dimension_Name(static_cast<dst::v1::Dimension>(dimension)));
  }
  return {
      {"pages", pages},
      {"names", names},
      {"last", {{"name", last.name()}, {"dimensions", dimensions}, {"formula", last.formula()}}},
  };
}

dst::v1::TokenizeResponse tokenize(Server& server, const std::string& model, const std::string& text) {
  Call call(server);
  dst::v1::TokenizeRequest request;
  request.set_model(model);
  request.set_text(text);
  const auto reader = server.catalog->Tokenize(&call, request);
  dst::v1::TokenizeResponse tokens, response;
  while (reader->Read(&response)) tokens.MergeFrom(response);  // those of a long text come in several messages
  check(reader->Finish());
  return tokens;
}

std::string detokenize(Server& server, const std::string& model, const std::vector<uint32_t>& token_ids) {
  dst::v1::DetokenizeRequest request;
  request.set_model(model);
  request.mutable_token_ids()->Add(token_ids.begin(), token_ids.end());
  std::string text;
  check(retrying([&] {
    Call call(server);  // a context serves one attempt
    const auto reader = server.catalog->Detokenize(&call, request);
    dst::v1::DetokenizeResponse response;
    text.clear();
    while (reader->Read(&response)) text += response.text();
    return reader->Finish();
  }));
  return text;
}

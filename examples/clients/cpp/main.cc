// A tour of dst-grpc: asks a server about a prompt and prints one JSON document. See ../README.md.
#include <fstream>
#include <iostream>
#include <sstream>

#include "steps.h"

namespace {

std::string read(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

Inputs parse_inputs(const std::string& text) {
  const Json json = Json::parse(text);
  return {
      json.at("model"),         json.at("prompt"),      json.at("target_tokens"), json.at("distractor_tokens"),
      json.at("autoencoder"), json.at("unicode"),
  };
}

Json tour(Server& server, Server& refusing, const Inputs& inputs) {
  const auto to_json_tokens = [](const dst::v1::TokenizeResponse& tokens) -> Json {
    return {{"token_ids", tokens.token_ids()}, {"token_strings", tokens.token_strings()}};
  };
  Json document;
  document["health"] = check_health(server);
  document["models"] = list_models(server);
  document["types"] = list_types(server);
  const auto tokens = tokenize(server, inputs.model, inputs.prompt);
  const std::vector<uint32_t> token_ids(tokens.token_ids().begin(), tokens.token_ids().end());
  document["tokens"] = to_json_tokens(tokens);
  document["unicode"] = to_json_tokens(tokenize(server, inputs.model, inputs.unicode));
  document["resolve"] = resolve(server, sparse(inputs));
  document["resolve_stream"] = resolve_stream(server, {dense(inputs), sparse(inputs), wrong(inputs)});
  for (const auto& request : {dense(inputs), sparse(inputs),
                              half(inputs, "float16", dst::v1::TENSOR_ELEMENT_TYPE_FLOAT16),
                              half(inputs, "bfloat16", dst::v1::TENSOR_ELEMENT_TYPE_BFLOAT16)}) {
    document["derive"][request.request_id()] = summarize(derive(server, request));
  }
  document["derive_stream"] = derive_stream(server, prefixes(inputs, token_ids));
  document["explain"] = explain(server, explain_request(inputs));
  document["deadline"]["code"] = miss_deadline(server).code;
  document["cancel"]["pins"] = cancel_derive(server, large(inputs));
  try {
    derive(server, rejected(inputs));
  } catch (const CallFailed& failed) {
    document["rejected"] = to_json(report(failed.status()));
  }
  document["retry"]["text"] = detokenize(refusing, inputs.model, token_ids);
  return document;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: tour ADDRESS TOUR_FILE RETRY_ADDRESS\n";
    return 2;
  }
  try {
    const std::string service_config = read("../service_config.json");
    const Inputs inputs = parse_inputs(read(argv[2]));
    Server server(argv[1], service_config, inputs.model);
    Server refusing(argv[3], service_config, inputs.model);
    std::cout << tour(server, refusing, inputs).dump(2) << '\n';
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}

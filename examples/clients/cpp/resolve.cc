#include <iostream>

#include "steps.h"

namespace {

Json resolved(const dst::v1::Resolved& message) {
  Json autoencoders = Json::array();
  for (const auto& autoencoder : message.autoencoders()) autoencoders.push_back(autoencoder.name());
  Json scalars = Json::array();
  for (const auto& scalar : message.scalars()) {
    scalars.push_back({
        {"dst", dst::v1::DerivedScalarType_Name(scalar.dst())},
        {"requires_grad", scalar.requires_grad()},
        {"layer_indices", scalar.layer_indices()},
        {"axes", axes(scalar.axes())},
    });
  }
  return {
      {"device", message.device()},
      {"model", message.model().name()},
      {"autoencoders", autoencoders},
      {"forward_passes", message.cost().forward_passes()},
      {"backward_passes", message.cost().backward_passes()},
      {"output_bytes", message.cost().output_bytes()},
      {"scalars", scalars},
  };
}

}  // namespace

// Also loads what the request needs, and says on the way how far that is.
Json resolve(Server& server, const dst::v1::DeriveRequest& request) {
  Call call;
  dst::v1::ResolveRequest message;
  *message.mutable_request() = request;
  message.set_load(true);
  const auto reader = server.scalars->Resolve(&call, message);
  Json answer = {{"stages", Json::array()}, {"loaded", Json::object()}, {"resolved", nullptr}};
  dst::v1::ResolveResponse response;
  while (reader->Read(&response)) {
    switch (response.stage_case()) {
      case dst::v1::ResolveResponse::kValidated:
        answer["stages"].push_back("VALIDATED");
        break;
      case dst::v1::ResolveResponse::kLoading: {
        const auto& progress = response.loading();
        std::cerr << "loading " << progress.context() << ": " << progress.bytes_done() << " of "
                  << progress.bytes_total() << " bytes\n";
        if (answer["loaded"].empty()) answer["stages"].push_back("LOADING");
        answer["loaded"][progress.context()] = progress.bytes_done();
        break;
      }
      case dst::v1::ResolveResponse::kResolved:
        answer["stages"].push_back("RESOLVED");
        answer["resolved"] = resolved(response.resolved());
        break;
      case dst::v1::ResolveResponse::STAGE_NOT_SET:
        break;  // a stage that this client does not know
    }
  }
  check(reader->Finish());  // only the status tells an end from a failure
  if (answer["resolved"].is_null()) throw std::runtime_error("Resolve ended without an answer");
  return answer;
}

// Asks about many requests at once. A bad one fails alone, and the answers may overtake one another.
Json resolve_stream(Server& server, const std::vector<dst::v1::DeriveRequest>& requests) {
  Call call;
  const auto stream = server.scalars->ResolveStream(&call);
  for (const auto& request : requests) {
    dst::v1::ResolveStreamRequest message;
    *message.mutable_request()->mutable_request() = request;
    stream->Write(message);
  }
  stream->WritesDone();  // the server ends the stream once all are answered
  Json answers = Json::object();
  dst::v1::ResolveStreamResponse response;
  while (stream->Read(&response)) {
    if (response.has_resolved()) answers[response.request_id()] = {{"resolved", resolved(response.resolved())}};
    if (response.has_error()) answers[response.request_id()] = {{"error", to_json(report(response.error()))}};
  }
  check(stream->Finish());
  return answers;
}

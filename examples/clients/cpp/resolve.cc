#include <iostream>
#include <map>

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
  Call call(server);
  dst::v1::ResolveRequest message;
  *message.mutable_request() = request;
  message.set_load(true);
  const auto reader = server.scalars->Resolve(&call, message);
  Json stages = Json::array(), loaded = Json::object();
  const auto enter = [&stages](const char* stage) {
    if (stages.empty() || stages.back() != stage) stages.push_back(stage);
  };
  dst::v1::Resolved whole;  // that of many derived scalars comes in several frames
  dst::v1::ResolveResponse response;
  while (reader->Read(&response)) {
    for (const auto& frame : response.frames()) {
      if (frame.has_validated()) enter("VALIDATED");
      if (frame.has_loading()) {
        enter("LOADING");
        const auto& progress = frame.loading();
        std::cerr << "loading " << progress.context() << ": " << progress.bytes_done() << " of "
                  << progress.bytes_total() << " bytes\n";
        loaded[progress.context()] = progress.bytes_done();
      }
      if (frame.has_resolved()) {
        enter("RESOLVED");
        whole.MergeFrom(frame.resolved());
      }
    }
  }
  check(reader->Finish());  // only the status tells an end from a failure
  if (stages.empty() || stages.back() != "RESOLVED") throw std::runtime_error("Resolve ended without an answer");
  return {{"stages", stages}, {"loaded", loaded}, {"resolved", resolved(whole)}};
}

// Asks about many requests at once. A bad one fails alone, and the answers may overtake one another.
Json resolve_stream(Server& server, const std::vector<dst::v1::DeriveRequest>& requests) {
  Call call(server);
  const auto stream = server.scalars->ResolveStream(&call);
  for (const auto& request : requests) {
    dst::v1::ResolveStreamRequest message;
    *message.mutable_request()->mutable_request() = request;
    stream->Write(message);
  }
  stream->WritesDone();  // the server ends the stream once all are answered
  Json answers = Json::object();
  std::map<std::string, dst::v1::Resolved> whole;
  dst::v1::ResolveStreamResponse response;
  while (stream->Read(&response)) {
    for (const auto& frame : response.frames()) {
      if (frame.has_resolved()) whole[response.request_id()].MergeFrom(frame.resolved());
      if (frame.has_error()) answers[response.request_id()] = {{"error", to_json(report(frame.error()))}};
    }
  }
  check(stream->Finish());
  for (const auto& [id, message] : whole) answers[id] = {{"resolved", resolved(message)}};
  return answers;
}

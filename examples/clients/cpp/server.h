// The services of one server; one connection, made by the first call, carries them all.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>

#include "dst/v1/catalog_service.grpc.pb.h"
#include "dst/v1/context_service.grpc.pb.h"
#include "dst/v1/derived_scalar_service.grpc.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"

struct Server {
  // All calls are about one model.
  Server(const std::string& address, const std::string& service_config, std::string model);

  std::string model;
  std::unique_ptr<grpc::health::v1::Health::Stub> health;
  std::unique_ptr<dst::v1::CatalogService::Stub> catalog;
  std::unique_ptr<dst::v1::ContextService::Stub> contexts;
  std::unique_ptr<dst::v1::DerivedScalarService::Stub> scalars;
};

// The context of one call, with its deadline: without one, a call to a server that hangs would hang too. A proxy in
// front of several servers chooses by the model.
//
// Whoever stops reading early stops the server's work too: a call that is still running when its context goes is
// cancelled here.
class Call : public grpc::ClientContext {
 public:
  explicit Call(const Server& server, std::chrono::milliseconds time = std::chrono::minutes(1)) {
    AddMetadata("dst-model", server.model);
    const char* token = std::getenv("DST_CLIENT_TOKEN");
    if (token != nullptr && *token != '\0') AddMetadata("authorization", std::string("Bearer ") + token);
    set_deadline(std::chrono::system_clock::now() + time);
  }
  ~Call() { TryCancel(); }
};

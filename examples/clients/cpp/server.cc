#include "server.h"

#include <utility>

namespace {

std::shared_ptr<grpc::Channel> connect(const std::string& address, const std::string& service_config) {
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(service_config);
  // Plain text; grpc::SslCredentials for TLS.
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace

Server::Server(const std::string& address, const std::string& service_config, std::string model)
    : model(std::move(model)) {
  const auto channel = connect(address, service_config);
  health = grpc::health::v1::Health::NewStub(channel);
  catalog = dst::v1::CatalogService::NewStub(channel);
  contexts = dst::v1::ContextService::NewStub(channel);
  scalars = dst::v1::DerivedScalarService::NewStub(channel);
}

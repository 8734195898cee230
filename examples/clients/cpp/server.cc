#include "server.h"

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <utility>

namespace {

// Plain text, or TLS if there are authorities to trust.
std::shared_ptr<grpc::ChannelCredentials> credentials() {
  const char* authorities = std::getenv("DST_CLIENT_CA");
  if (authorities == nullptr || *authorities == '\0') return grpc::InsecureChannelCredentials();
  std::ifstream file(authorities);
  if (!file) throw std::runtime_error(std::string("cannot read ") + authorities);
  grpc::SslCredentialsOptions options;
  options.pem_root_certs.assign(std::istreambuf_iterator<char>(file), {});
  return grpc::SslCredentials(options);
}

std::shared_ptr<grpc::Channel> connect(const std::string& address, const std::string& service_config) {
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(service_config);
  return grpc::CreateCustomChannel(address, credentials(), arguments);
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

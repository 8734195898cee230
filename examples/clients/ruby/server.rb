# frozen_string_literal: true

require "grpc"
require "grpc/health/v1/health_services_pb"

require "dst/v1/catalog_service_services_pb"
require "dst/v1/causal_service_services_pb"
require "dst/v1/context_service_services_pb"
require "dst/v1/derived_scalar_service_services_pb"

# Sends the same metadata with every call, but for operations (`return_op`), which must be given it.
class Sending < GRPC::ClientInterceptor
  def call(metadata:, **)
    metadata.update(@options[:metadata])
    yield
  end

  alias request_response call
  alias client_streamer call
  alias server_streamer call
  alias bidi_streamer call
end

# The services of one server; one connection, made by the first call, carries them all.
class Server
  attr_reader :health, :catalog, :causal, :contexts, :scalars, :metadata

  def initialize(address, service_config, model)
    arguments = { "grpc.service_config" => service_config }
    # Plain text, or TLS if there are authorities to trust.
    authorities = ENV.fetch("DST_CLIENT_CA", "")
    tls = GRPC::Core::ChannelCredentials.new(File.read(authorities)) unless authorities.empty?
    channel = GRPC::Core::Channel.new(address, arguments, tls || :this_channel_is_insecure)
    # A proxy in front of several servers chooses by the model.
    @metadata = { "dst-model" => model }
    token = ENV.fetch("DST_CLIENT_TOKEN", "")
    @metadata["authorization"] = "Bearer #{token}" unless token.empty?
    # The timeout, in seconds, holds for each call. Without one, a call to a server that hangs would hang too.
    options = { channel_override: channel, timeout: 60, interceptors: [Sending.new(metadata: @metadata)] }
    @health = Grpc::Health::V1::Health::Stub.new(address, nil, **options)
    @catalog = Dst::V1::CatalogService::Stub.new(address, nil, **options)
    @causal = Dst::V1::CausalService::Stub.new(address, nil, **options)
    @contexts = Dst::V1::ContextService::Stub.new(address, nil, **options)
    @scalars = Dst::V1::DerivedScalarService::Stub.new(address, nil, **options)
  end
end

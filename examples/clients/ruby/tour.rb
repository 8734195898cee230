# frozen_string_literal: true

# A tour of dst-grpc: asks a server about a prompt and prints one JSON document. See ../README.md.

require "json"

require_relative "catalog"
require_relative "derive"
require_relative "errors"
require_relative "explain"
require_relative "patch"
require_relative "requests"
require_relative "resolve"
require_relative "server"
require_relative "summary"

def tour(server, refusing, inputs)
  requests = Requests.new(inputs)
  model = inputs["model"]
  document = {
    health: Catalog.health(server),
    models: Catalog.models(server),
    types: Catalog.types(server),
    tokens: Catalog.tokenize(server, model, inputs["prompt"]),
    unicode: Catalog.tokenize(server, model, inputs["unicode"]),
    resolve: Resolve.resolve(server, requests.sparse),
    resolve_stream: Resolve.resolve_stream(server, [requests.dense, requests.sparse, requests.wrong])
  }
  halves = { "float16" => :TENSOR_ELEMENT_TYPE_FLOAT16, "bfloat16" => :TENSOR_ELEMENT_TYPE_BFLOAT16 }
  derived = [requests.dense, requests.sparse, *halves.map { |id, type| requests.half(id, type) }]
  document[:derive] = derived.to_h { |request| [request.request_id, Summary.of(Derive.derive(server, request))] }
  token_ids = document[:tokens][:token_ids]
  document[:derive_stream] = Derive.derive_stream(server, requests.prefixes(token_ids))
  document[:explain] = Explain.explain(server, requests.explain)
  document[:patch] = Patch.patch(server, requests.patch(token_ids))
  document[:deadline] = { code: failure { Derive.miss_deadline(server) }[:code] }
  document[:cancel] = { pins: Derive.cancel(server, requests.large) }
  document[:rejected] = failure { Derive.derive(server, requests.rejected) }
  document[:retry] = { text: Catalog.detokenize(refusing, model, token_ids) }
  document
end

# What a call, which must fail, fails with.
def failure
  yield
rescue GRPC::BadStatus => e
  Errors.report(e)
else
  raise "a call that must fail did not"
end

abort "usage: tour.rb ADDRESS TOUR_FILE RETRY_ADDRESS" unless ARGV.size == 3
address, file, retry_address = ARGV
service_config = File.read("../service_config.json")
begin
  inputs = JSON.parse(File.read(file, encoding: "UTF-8"))
  servers = [address, retry_address].map { |each| Server.new(each, service_config, inputs["model"]) }
  document = tour(*servers, inputs)
  puts JSON.pretty_generate(document)
rescue GRPC::BadStatus => e
  abort "#{e.message}: #{Errors.report(e)}"
end

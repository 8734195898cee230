# frozen_string_literal: true

require_relative "errors"
require_relative "server"

# What can be asked: health, models, derived scalar types, tokens.
module Catalog
  module_function

  def health(server)
    request = Grpc::Health::V1::HealthCheckRequest.new(service: "dst.v1.DerivedScalarService")
    server.health.check(request).status
  end

  def models(server)
    pages { |token| server.catalog.list_models(Dst::V1::ListModelsRequest.new(page_token: token)) }
      .flat_map { |page| page.models.to_a }
      .map { |model| model_report(model) }
  end

  def model_report(model)
    sizes = model.dimensions
    {
      name: model.name,
      family: model.family,
      n_layers: sizes.n_layers,
      d_model: sizes.d_model,
      n_heads: sizes.n_heads,
      d_mlp: sizes.d_mlp,
      vocab_size: sizes.vocab_size,
      context_window: sizes.context_window,
      parameter_bytes: model.parameter_bytes,
      default_model: model.default_model,
      autoencoders: model.autoencoders.to_a
    }
  end

  def types(server)
    pages = pages do |token|
      request = Dst::V1::ListDerivedScalarTypesRequest.new(page_size: 40, page_token: token)
      server.catalog.list_derived_scalar_types(request)
    end
    types = pages.flat_map { |page| page.types.to_a }
    last = types.last
    {
      pages: pages.size,
      names: types.map(&:name),
      last: { name: last.name, dimensions: last.dimensions.to_a, formula: last.formula }
    }
  end

  def tokenize(server, model, text)
    # The tokens of a long text come in several messages.
    responses = server.catalog.tokenize(Dst::V1::TokenizeRequest.new(model: model, text: text)).to_a
    {
      token_ids: responses.flat_map { |response| response.token_ids.to_a },
      token_strings: responses.flat_map { |response| response.token_strings.to_a }
    }
  end

  def detokenize(server, model, token_ids)
    request = Dst::V1::DetokenizeRequest.new(model: model, token_ids: token_ids)
    Errors.retrying { server.catalog.detokenize(request).map(&:text).join }
  end

  # Every page of a list; the block fetches the one that a token stands for.
  def pages
    all = []
    token = ""
    loop do
      all << yield(token)
      token = all.last.next_page_token
      return all if token.empty?
    end
  end
end

// What can be asked: health, models, derived scalar types, tokens.

import { DimensionSchema } from "../gen/dst/v1/component_pb.js";
import type { ModelInfo, DerivedScalarTypeInfo } from "../gen/dst/v1/catalog_pb.js";
import { HealthCheckResponse_ServingStatusSchema } from "../gen/grpc/health/v1/health_pb.js";
import { nameOf } from "./names.js";
import type { Server } from "./server.js";

export async function checkHealth({ health }: Server) {
  const { status } = await health.check({ service: "dst.v1.DerivedScalarService" });
  return nameOf(HealthCheckResponse_ServingStatusSchema, status);
}

export async function listModels({ catalog }: Server) {
  const models: ModelInfo[] = [];
  let pageToken = "";
  do {
    const page = await catalog.listModels({ pageToken });
    models.push(...page.models);
    pageToken = page.nextPageToken;
  } while (pageToken);
  return models.map((model) => ({
    name: model.name,
    family: model.family,
    n_layers: model.dimensions?.nLayers,
    d_model: model.dimensions?.dModel,
    n_heads: model.dimensions?.nHeads,
    d_mlp: model.dimensions?.dMlp,
    vocab_size: model.dimensions?.vocabSize,
    context_window: model.dimensions?.contextWindow,
    parameter_bytes: Number(model.parameterBytes), // a uint64 is a bigint
    default_model: model.defaultModel,
    autoencoders: model.autoencoders,
  }));
}

export async function listTypes({ catalog }: Server) {
  const types: DerivedScalarTypeInfo[] = [];
  let pages = 0;
  let pageToken = "";
  do {
    const page = await catalog.listDerivedScalarTypes({ pageToken, pageSize: 40 });
    pages += 1;
    types.push(...page.types);
    pageToken = page.nextPageToken;
  } while (pageToken);
  const last = types.at(-1);
  return {
    pages,
    names: types.map((type) => type.name),
    last: {
      name: last?.name,
      dimensions: last?.dimensions.map((dimension) => nameOf(DimensionSchema, dimension)),
      formula: last?.formula,
    },
  };
}

export async function tokenize({ catalog }: Server, model: string, text: string) {
  const tokens: { token_ids: number[]; token_strings: string[] } = { token_ids: [], token_strings: [] };
  // The tokens of a long text come in several messages.
  for await (const { tokenIds, tokenStrings } of catalog.tokenize({ model, text })) {
    tokens.token_ids.push(...tokenIds);
    tokens.token_strings.push(...tokenStrings);
  }
  return tokens;
}

export async function detokenize({ catalog }: Server, model: string, tokenIds: number[]) {
  let whole = "";
  for await (const { text } of catalog.detokenize({ model, tokenIds })) whole += text;
  return whole;
}

// What can be asked: models, autoencoders, derived scalar types, tokens.

import { Dimension, NodeType } from "../gen/dst/v1/component_pb.js";
import { DerivedScalarType } from "../gen/dst/v1/derived_scalar_type_pb.js";
import type { Server } from "./server.js";

export async function listModels({ catalog }: Server) {
  const models = await allPages(async (pageToken) => {
    const { models, nextPageToken } = await catalog.listModels({ pageToken });
    return { items: models, nextPageToken };
  });
  return models.map((model) => ({
    name: model.name,
    family: model.family,
    is_default: model.isDefault,
    n_layers: model.dimensions?.nLayers,
    n_heads: model.dimensions?.nHeads,
    d_model: model.dimensions?.dModel,
    vocab_size: model.dimensions?.vocabSize,
    parameter_bytes: Number(model.parameterBytes),
    autoencoders: model.autoencoders,
  }));
}

export async function listAutoencoders({ catalog }: Server) {
  const autoencoders = await allPages(async (pageToken) => {
    const { autoencoders, nextPageToken } = await catalog.listAutoencoders({ pageToken });
    return { items: autoencoders, nextPageToken };
  });
  return autoencoders.map((autoencoder) => ({
    name: autoencoder.name,
    model: autoencoder.model,
    dst: DerivedScalarType[autoencoder.dst],
    node_type: NodeType[autoencoder.nodeType],
    layer_indices: autoencoder.layerIndices,
    n_latents: autoencoder.nLatents,
    can_be_spliced: autoencoder.canBeSpliced,
  }));
}

export async function listDerivedScalarTypes({ catalog }: Server) {
  const types = await allPages(async (pageToken) => {
    const { types, nextPageToken } = await catalog.listDerivedScalarTypes({ pageToken, pageSize: 40 });
    return { items: types, nextPageToken };
  });
  return types.map((type) => ({
    name: type.name,
    dimensions: type.dimensions.map((dimension) => Dimension[dimension]),
    formula: type.formula,
  }));
}

export async function tokenize({ catalog }: Server, text: string) {
  const { tokenIds, tokenStrings } = await catalog.tokenize({ text });
  return { token_ids: tokenIds, token_strings: tokenStrings };
}

interface Page<Item> {
  items: Item[];
  nextPageToken: string;
}

async function allPages<Item>(ask: (pageToken: string) => Promise<Page<Item>>): Promise<Item[]> {
  const all: Item[] = [];
  let pageToken = "";
  do {
    const page = await ask(pageToken);
    all.push(...page.items);
    pageToken = page.nextPageToken;
  } while (pageToken);
  return all;
}

// A tour of dst-grpc: asks a server about a prompt and prints one JSON document.

import { ConnectError } from "@connectrpc/connect";

import { DerivedScalarService } from "../gen/dst/v1/derived_scalar_service_pb.js";
import { TensorElementType } from "../gen/dst/v1/tensor_pb.js";
import { HealthCheckResponse_ServingStatus } from "../gen/grpc/health/v1/health_pb.js";
import { listAutoencoders, listDerivedScalarTypes, listModels, tokenize } from "./catalog.js";
import { derive, deriveError, summarize, topHead } from "./derive.js";
import { fromError } from "./errors.js";
import * as requests from "./requests.js";
import { resolve, resolveMany } from "./resolve.js";
import { connect } from "./server.js";

async function tour(address: string) {
  const server = connect(address);
  const { status } = await server.health.check({ service: DerivedScalarService.typeName });

  const autoencoders = await listAutoencoders(server);
  const spliceable = autoencoders.find((autoencoder) => autoencoder.can_be_spliced);
  if (!spliceable) throw new Error("the server has no autoencoder that can be spliced into a run");
  const latents = requests.activeLatents(spliceable.name);
  const types = await listDerivedScalarTypes(server);

  const resolved = await resolve(server, latents, console.error);
  const effects = await derive(server, requests.directEffects);
  const { FLOAT16, BFLOAT16 } = TensorElementType;
  return {
    health: HealthCheckResponse_ServingStatus[status],
    models: await listModels(server),
    autoencoders,
    derived_scalar_types: { count: types.length, first: types.slice(0, 5) },
    prompt: { text: requests.PROMPT, ...(await tokenize(server, requests.PROMPT)) },
    resolve: resolved,
    resolve_stream: await resolveMany(server, [requests.directEffects, requests.layerOutOfRange, latents]),
    top_head: topHead(effects),
    derive: {
      direct_effects: summarize(effects),
      float16: summarize(await derive(server, requests.attentionPattern(FLOAT16))),
      bfloat16: summarize(await derive(server, requests.attentionPattern(BFLOAT16))),
      latents: summarize(await derive(server, latents)),
    },
    errors: {
      layer_out_of_range: await deriveError(server, requests.layerOutOfRange),
      bad_enums: await deriveError(server, requests.badEnums),
    },
  };
}

const [address] = process.argv.slice(2);
if (address === undefined) {
  console.error("usage: npm start -- HOST:PORT");
  process.exit(2);
}
try {
  console.log(JSON.stringify(await tour(address), null, 2));
} catch (thrown) {
  if (!(thrown instanceof ConnectError)) throw thrown;
  console.error(fromError(thrown));
  process.exitCode = 1;
}

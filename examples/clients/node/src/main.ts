// A tour of dst-grpc: asks a server about a prompt and prints one JSON document. See ../README.md.

import { readFileSync } from "node:fs";

import { ConnectError } from "@connectrpc/connect";

import { TensorElementType } from "../gen/dst/v1/tensor_pb.js";
import { checkHealth, detokenize, listModels, listTypes, tokenize } from "./catalog.js";
import { cancelDerive, derive, deriveStream, failure, missDeadline, result } from "./derive.js";
import { fromError, retrying } from "./errors.js";
import { explain } from "./explain.js";
import { graph } from "./graph.js";
import { patch } from "./patch.js";
import { type Inputs, Requests } from "./requests.js";
import { resolve, resolveStream } from "./resolve.js";
import { connect, type Server } from "./server.js";
import { summarize } from "./summary.js";

async function tour(server: Server, refusing: Server, inputs: Inputs) {
  const requests = new Requests(inputs);
  const { FLOAT16, BFLOAT16 } = TensorElementType;
  const tokens = await tokenize(server, inputs.model, inputs.prompt);
  // The members are made one after the other, in this order.
  return {
    health: await checkHealth(server),
    models: await listModels(server),
    types: await listTypes(server),
    tokens,
    unicode: await tokenize(server, inputs.model, inputs.unicode),
    resolve: await resolve(server, requests.sparse(), console.error),
    resolve_stream: await resolveStream(server, [requests.dense(), requests.sparse(), requests.wrong()]),
    derive: {
      dense: summarize(await derive(server, requests.dense())),
      sparse: summarize(await derive(server, requests.sparse())),
      float16: summarize(await derive(server, requests.half("float16", FLOAT16))),
      bfloat16: summarize(await derive(server, requests.half("bfloat16", BFLOAT16))),
    },
    derive_stream: await deriveStream(server, requests.prefixes(tokens.token_ids)),
    explain: await explain(server, requests.explain()),
    patch: await patch(server, requests.patch(tokens.token_ids)),
    graph: await result(graph(server, requests.graph())),
    deadline: { code: (await failure(missDeadline(server))).code },
    cancel: { pins: await cancelDerive(server, requests.large()) },
    rejected: await failure(derive(server, requests.rejected())),
    retry: { text: await retrying(() => detokenize(refusing, inputs.model, tokens.token_ids)) },
  };
}

const [address, file, retryAddress] = process.argv.slice(2);
if (address === undefined || file === undefined || retryAddress === undefined) {
  console.error("usage: main.js ADDRESS TOUR_FILE RETRY_ADDRESS");
  process.exit(2);
}
try {
  const inputs = JSON.parse(readFileSync(file, "utf8")) as Inputs;
  const server = connect(address, inputs.model);
  const refusing = connect(retryAddress, inputs.model);
  console.log(JSON.stringify(await tour(server, refusing, inputs), null, 2));
} catch (thrown) {
  if (!(thrown instanceof ConnectError)) throw thrown;
  console.error(thrown.message, fromError(thrown));
  process.exitCode = 1;
}

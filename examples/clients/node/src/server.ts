// The services of one server, over gRPC.

import { readFileSync } from "node:fs";

import { createClient, type Client } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

import { CatalogService } from "../gen/dst/v1/catalog_service_pb.js";
import { CausalService } from "../gen/dst/v1/causal_service_pb.js";
import { ContextService } from "../gen/dst/v1/context_service_pb.js";
import { DerivedScalarService } from "../gen/dst/v1/derived_scalar_service_pb.js";
import { GraphService } from "../gen/dst/v1/graph_service_pb.js";
import { Health } from "../gen/grpc/health/v1/health_pb.js";

export interface Server {
  health: Client<typeof Health>;
  catalog: Client<typeof CatalogService>;
  contexts: Client<typeof ContextService>;
  scalars: Client<typeof DerivedScalarService>;
  causal: Client<typeof CausalService>;
  graphs: Client<typeof GraphService>;
}

/**
 * Connects lazily, with the first call; one connection carries all services.
 *
 * Connect knows no service config: what `../service_config.json` says of deadlines and sizes is given here, and of
 * retries in `retrying`.
 *
 * @param address - "HOST:PORT", in plain text unless DST_CLIENT_CA names authorities to trust.
 * @param model - What all calls are about.
 */
export function connect(address: string, model: string): Server {
  const { DST_CLIENT_CA: authorities, DST_CLIENT_TOKEN: token } = process.env;
  const transport = createGrpcTransport({
    baseUrl: `${authorities ? "https" : "http"}://${address}`,
    nodeOptions: authorities ? { ca: readFileSync(authorities) } : {},
    // Without a deadline, a call to a server that hangs would hang too.
    defaultTimeoutMs: 60_000,
    readMaxBytes: 4 << 20,
    // A proxy in front of several servers chooses by it.
    interceptors: [
      (next) => (request) => {
        request.header.set("dst-model", model);
        if (token) request.header.set("authorization", `Bearer ${token}`);
        return next(request);
      },
    ],
  });
  return {
    health: createClient(Health, transport),
    catalog: createClient(CatalogService, transport),
    contexts: createClient(ContextService, transport),
    scalars: createClient(DerivedScalarService, transport),
    causal: createClient(CausalService, transport),
    graphs: createClient(GraphService, transport),
  };
}

// The services of one server, over gRPC.

import { createClient, type Client } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

import { CatalogService } from "../gen/dst/v1/catalog_service_pb.js";
import { DerivedScalarService } from "../gen/dst/v1/derived_scalar_service_pb.js";
import { Health } from "../gen/grpc/health/v1/health_pb.js";

export interface Server {
  health: Client<typeof Health>;
  catalog: Client<typeof CatalogService>;
  scalars: Client<typeof DerivedScalarService>;
}

/**
 * Connects lazily, with the first call; one connection carries all three services.
 *
 * @param address - "HOST:PORT" in plain text, or "https://HOST:PORT".
 */
export function connect(address: string): Server {
  const transport = createGrpcTransport({
    baseUrl: address.includes("://") ? address : `http://${address}`,
    defaultTimeoutMs: 60_000,
  });
  return {
    health: createClient(Health, transport),
    catalog: createClient(CatalogService, transport),
    scalars: createClient(DerivedScalarService, transport),
  };
}

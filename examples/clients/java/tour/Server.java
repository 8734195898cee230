package tour;

import io.dstgrpc.v1.CatalogServiceGrpc;
import io.dstgrpc.v1.ContextServiceGrpc;
import io.dstgrpc.v1.DerivedScalarServiceGrpc;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.health.v1.HealthGrpc;
import io.grpc.stub.MetadataUtils;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/** The services of one server; one connection, made by the first call, carries them all. */
final class Server implements AutoCloseable {
  /** Seconds that a call may take. Without a deadline, a call to a server that hangs would hang too. */
  private static final long CALL_SECONDS = 60;

  private final ManagedChannel channel;

  @SuppressWarnings("unchecked")
  Server(String address, Map<?, ?> serviceConfig, String model) {
    // Of every call: a proxy in front of several servers chooses by it.
    Metadata headers = new Metadata();
    headers.put(Metadata.Key.of("dst-model", Metadata.ASCII_STRING_MARSHALLER), model);
    channel =
        ManagedChannelBuilder.forTarget(address)
            .usePlaintext()
            .defaultServiceConfig((Map<String, ?>) serviceConfig)
            .enableRetry() // not the default before grpc-java 1.45
            .intercept(MetadataUtils.newAttachHeadersInterceptor(headers))
            .build();
  }

  // A deadline is a point in time, so a stub that has one is made for each call.

  HealthGrpc.HealthBlockingStub health() {
    return HealthGrpc.newBlockingStub(channel).withDeadlineAfter(CALL_SECONDS, TimeUnit.SECONDS);
  }

  CatalogServiceGrpc.CatalogServiceBlockingStub catalog() {
    return CatalogServiceGrpc.newBlockingStub(channel).withDeadlineAfter(CALL_SECONDS, TimeUnit.SECONDS);
  }

  ContextServiceGrpc.ContextServiceBlockingStub contexts() {
    return ContextServiceGrpc.newBlockingStub(channel).withDeadlineAfter(CALL_SECONDS, TimeUnit.SECONDS);
  }

  DerivedScalarServiceGrpc.DerivedScalarServiceBlockingStub scalars() {
    return DerivedScalarServiceGrpc.newBlockingStub(channel).withDeadlineAfter(CALL_SECONDS, TimeUnit.SECONDS);
  }

  /** For streams in both directions, which a blocking stub does not have. */
  DerivedScalarServiceGrpc.DerivedScalarServiceStub scalarStreams() {
    return DerivedScalarServiceGrpc.newStub(channel).withDeadlineAfter(CALL_SECONDS, TimeUnit.SECONDS);
  }

  @Override
  public void close() {
    channel.shutdownNow();
  }
}

package tour;

import io.dstgrpc.v1.AutoencoderInfo;
import io.dstgrpc.v1.Axis;
import io.dstgrpc.v1.DeriveRequest;
import io.dstgrpc.v1.LoadProgress;
import io.dstgrpc.v1.ResolveRequest;
import io.dstgrpc.v1.ResolveResponse;
import io.dstgrpc.v1.ResolveStreamRequest;
import io.dstgrpc.v1.ResolveStreamResponse;
import io.grpc.stub.StreamObserver;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Asking what a request would cost before it is run. */
final class Resolve {
  private Resolve() {}

  record Loading(List<String> stages, Map<String, Long> loaded, Resolved resolved) {}

  record Resolved(
      String device,
      String model,
      List<String> autoencoders,
      int forward_passes,
      int backward_passes,
      long output_bytes,
      List<Scalar> scalars) {}

  record Scalar(String dst, boolean requires_grad, List<Integer> layer_indices, List<List<Object>> axes) {}

  /** Also loads what the request needs, and says on the way how far that is. */
  static Loading resolve(Server server, DeriveRequest request) {
    List<String> stages = new ArrayList<>();
    Map<String, Long> loaded = new LinkedHashMap<>();
    Resolved resolved = null;
    Iterator<ResolveResponse> responses =
        server.scalars().resolve(ResolveRequest.newBuilder().setRequest(request).setLoad(true).build());
    while (responses.hasNext()) { // it throws if the status is not OK
      ResolveResponse response = responses.next();
      switch (response.getStageCase()) {
        case VALIDATED -> stages.add("VALIDATED");
        case LOADING -> {
          LoadProgress progress = response.getLoading();
          System.err.printf(
              "loading %s: %d of %d bytes%n",
              progress.getContext(), progress.getBytesDone(), progress.getBytesTotal());
          if (loaded.isEmpty()) {
            stages.add("LOADING");
          }
          loaded.put(progress.getContext(), progress.getBytesDone());
        }
        case RESOLVED -> {
          stages.add("RESOLVED");
          resolved = resolved(response.getResolved());
        }
        case STAGE_NOT_SET -> {} // a stage that this client does not know
      }
    }
    if (resolved == null) {
      throw new IllegalStateException("Resolve ended without an answer");
    }
    return new Loading(stages, loaded, resolved);
  }

  /** Asks about many requests at once. A bad one fails alone, and the answers may overtake one another. */
  static Map<String, Object> resolveStream(Server server, List<DeriveRequest> requests) throws Exception {
    Map<String, Object> answers = new LinkedHashMap<>();
    Streamed<ResolveStreamResponse> responses =
        new Streamed<>(
            response -> {
              switch (response.getStageCase()) {
                case RESOLVED ->
                    answers.put(response.getRequestId(), Map.of("resolved", resolved(response.getResolved())));
                case ERROR ->
                    answers.put(response.getRequestId(), Map.of("error", Errors.report(response.getError())));
                default -> {} // on the way
              }
            });
    StreamObserver<ResolveStreamRequest> call = server.scalarStreams().resolveStream(responses);
    for (DeriveRequest request : requests) {
      ResolveRequest resolve = ResolveRequest.newBuilder().setRequest(request).build();
      call.onNext(ResolveStreamRequest.newBuilder().setRequest(resolve).build());
    }
    call.onCompleted(); // the server ends the stream once all are answered
    responses.await();
    return answers;
  }

  private static Resolved resolved(io.dstgrpc.v1.Resolved message) {
    return new Resolved(
        message.getDevice(),
        message.getModel().getName(),
        message.getAutoencodersList().stream().map(AutoencoderInfo::getName).toList(),
        message.getCost().getForwardPasses(),
        message.getCost().getBackwardPasses(),
        message.getCost().getOutputBytes(),
        message.getScalarsList().stream()
            .map(
                scalar ->
                    new Scalar(
                        scalar.getDst().name(),
                        scalar.getRequiresGrad(),
                        scalar.getLayerIndicesList(),
                        axes(scalar.getAxesList())))
            .toList());
  }

  /** Pairs of a dimension's name and a size. */
  static List<List<Object>> axes(List<Axis> axes) {
    return axes.stream().map(axis -> List.<Object>of(axis.getDimension().name(), axis.getSize())).toList();
  }
}

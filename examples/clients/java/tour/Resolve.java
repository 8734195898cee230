package tour;

import io.dstgrpc.v1.AutoencoderInfo;
import io.dstgrpc.v1.Axis;
import io.dstgrpc.v1.DeriveRequest;
import io.dstgrpc.v1.LoadProgress;
import io.dstgrpc.v1.ResolveFrame;
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
    io.dstgrpc.v1.Resolved.Builder whole = io.dstgrpc.v1.Resolved.newBuilder();
    Iterator<ResolveResponse> responses =
        server.scalars().resolve(ResolveRequest.newBuilder().setRequest(request).setLoad(true).build());
    while (responses.hasNext()) { // it throws if the status is not OK
      for (ResolveFrame frame : responses.next().getFramesList()) {
        switch (frame.getFrameCase()) {
          case VALIDATED -> enter(stages, "VALIDATED");
          case LOADING -> {
            enter(stages, "LOADING");
            LoadProgress progress = frame.getLoading();
            System.err.printf(
                "loading %s: %d of %d bytes%n",
                progress.getContext(), progress.getBytesDone(), progress.getBytesTotal());
            loaded.put(progress.getContext(), progress.getBytesDone());
          }
          case RESOLVED -> {
            enter(stages, "RESOLVED");
            whole.mergeFrom(frame.getResolved()); // that of many derived scalars comes in several frames
          }
          default -> {} // a kind that this client does not know
        }
      }
    }
    if (!stages.contains("RESOLVED")) {
      throw new IllegalStateException("Resolve ended without an answer");
    }
    return new Loading(stages, loaded, resolved(whole.build()));
  }

  private static void enter(List<String> stages, String stage) {
    if (stages.isEmpty() || !stages.get(stages.size() - 1).equals(stage)) {
      stages.add(stage);
    }
  }

  /** Asks about many requests at once. A bad one fails alone, and the answers may overtake one another. */
  static Map<String, Object> resolveStream(Server server, List<DeriveRequest> requests) throws Exception {
    Map<String, Object> answers = new LinkedHashMap<>();
    Map<String, io.dstgrpc.v1.Resolved.Builder> whole = new LinkedHashMap<>();
    Streamed<ResolveStreamResponse> responses =
        new Streamed<>(
            response -> {
              String id = response.getRequestId();
              for (ResolveFrame frame : response.getFramesList()) {
                switch (frame.getFrameCase()) {
                  case RESOLVED ->
                      whole
                          .computeIfAbsent(id, key -> io.dstgrpc.v1.Resolved.newBuilder())
                          .mergeFrom(frame.getResolved());
                  case ERROR -> answers.put(id, Map.of("error", Errors.report(frame.getError())));
                  default -> {} // on the way
                }
              }
            });
    StreamObserver<ResolveStreamRequest> call = server.scalarStreams().resolveStream(responses);
    for (DeriveRequest request : requests) {
      ResolveRequest resolve = ResolveRequest.newBuilder().setRequest(request).build();
      call.onNext(ResolveStreamRequest.newBuilder().setRequest(resolve).build());
    }
    call.onCompleted(); // the server ends the stream once all are answered
    responses.await();
    whole.forEach((id, message) -> answers.put(id, Map.of("resolved", resolved(message.build()))));
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

package tour;

import io.dstgrpc.v1.ContextStatus;
import io.dstgrpc.v1.DeriveRequest;
import io.dstgrpc.v1.DeriveResponse;
import io.dstgrpc.v1.DeriveStreamRequest;
import io.dstgrpc.v1.DeriveStreamResponse;
import io.dstgrpc.v1.Frame;
import io.dstgrpc.v1.ListContextsRequest;
import io.dstgrpc.v1.WatchContextsRequest;
import io.grpc.Context;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.StreamObserver;
import java.util.HashMap;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/** Running requests: one, many on a stream, one that is late, one that is cancelled. */
final class Derive {
  private Derive() {}

  /** What the model says after a prompt. */
  record Prediction(int token_count, int next_token) {}

  /** Runs one request. */
  static Assembler.Answer derive(Server server, DeriveRequest request) throws DamagedAnswer {
    Assembler assembler = new Assembler();
    // Whoever stops reading early stops the server's work too: closing the context cancels the call.
    try (Context.CancellableContext context = Context.current().withCancellation()) {
      Context previous = context.attach();
      try {
        Iterator<DeriveResponse> responses = server.scalars().derive(request);
        while (responses.hasNext()) {
          for (Frame frame : responses.next().getFramesList()) {
            assembler.add(frame);
          }
        }
      } finally {
        context.detach(previous);
      }
    }
    return assembler.finish();
  }

  /**
   * Runs many requests, which the server batches. Answers may overtake one another, and their messages interleave; all
   * frames of a message are of one request.
   */
  static Map<String, Object> deriveStream(Server server, List<DeriveRequest> requests) throws Exception {
    Map<String, Assembler> assemblers = new HashMap<>();
    requests.forEach(request -> assemblers.put(request.getRequestId(), new Assembler()));
    Map<String, Object> predictions = new LinkedHashMap<>();
    Streamed<DeriveStreamResponse> responses =
        new Streamed<>(
            response -> {
              for (Frame frame : response.getFramesList()) {
                if (frame.hasItemResult()) {
                  // An item that failed ends so, in place of its trailer, and the others go on.
                  Errors.Report error = Errors.report(frame.getItemResult().getError());
                  predictions.put(frame.getRequestId(), Map.of("error", error));
                  assemblers.remove(frame.getRequestId());
                } else if (assemblers.containsKey(frame.getRequestId())) {
                  assemblers.get(frame.getRequestId()).add(frame);
                } else {
                  throw new DamagedAnswer("a frame for " + frame.getRequestId() + ", which was not asked");
                }
              }
            });
    StreamObserver<DeriveStreamRequest> call = server.scalarStreams().deriveStream(responses);
    for (DeriveRequest request : requests) {
      call.onNext(DeriveStreamRequest.newBuilder().setRequest(request).build());
    }
    call.onCompleted();
    responses.await();
    for (Map.Entry<String, Assembler> entry : assemblers.entrySet()) {
      predictions.put(entry.getKey(), predict(entry.getValue().finish()));
    }
    return predictions;
  }

  /** Finds the largest logit at the last token. */
  private static Prediction predict(Assembler.Answer answer) {
    Tensor logits = answer.tensors().get(0);
    int vocabulary = (int) logits.info().getAxes(1).getSize();
    int start = logits.values().length - vocabulary;
    int next = 0;
    for (int token = 1; token < vocabulary; token++) {
      if (logits.values()[start + token] > logits.values()[start + next]) {
        next = token;
      }
    }
    return new Prediction(answer.header().getTokenIdsCount(), next);
  }

  /** Watches the server's contexts, which never ends by itself. */
  static Errors.Report missDeadline(Server server) {
    try {
      server
          .contexts()
          .withDeadlineAfter(250, TimeUnit.MILLISECONDS)
          .watchContexts(WatchContextsRequest.getDefaultInstance())
          .forEachRemaining(response -> {});
    } catch (StatusRuntimeException error) {
      return Errors.report(error);
    }
    throw new IllegalStateException("the watch ended by itself");
  }

  /** Stops an answer after its first message, and waits until the server has stopped working for it. */
  static int cancel(Server server, DeriveRequest request) throws Exception {
    try (Context.CancellableContext context = Context.current().withCancellation()) {
      context.call(() -> server.scalars().derive(request).next());
    }
    long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(10);
    while (true) {
      int pins =
          server.contexts().listContexts(ListContextsRequest.getDefaultInstance()).getContextsList().stream()
              .mapToInt(ContextStatus::getPins)
              .sum();
      if (pins == 0) {
        return pins;
      }
      if (System.nanoTime() > end) {
        throw new IllegalStateException("the server still works for a cancelled call");
      }
      Thread.sleep(50);
    }
  }
}

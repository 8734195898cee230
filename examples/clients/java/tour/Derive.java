package tour;

// Both whole packages: no name of dst.v1 is one of gRPC's or Java's own.
import io.dstgrpc.v1.*;
import io.grpc.*;
import io.grpc.stub.StreamObserver;
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
          for (DeriveFrame frame : responses.next().getFramesList()) {
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
   * frames of a message are of one item.
   */
  static Map<String, Object> deriveStream(Server server, List<DeriveRequest> requests) throws Exception {
    // By item: the server numbers requests as they come.
    List<Assembler> assemblers = requests.stream().map(request -> new Assembler()).toList();
    Map<String, Object> predictions = new LinkedHashMap<>();
    Streamed<DeriveStreamResponse> responses =
        new Streamed<>(
            response -> {
              int item = response.getItemIndex();
              if (item < 0 || item >= assemblers.size()) {
                throw new DamagedAnswer("item " + Integer.toUnsignedString(item) + ", which was not asked");
              }
              for (DeriveFrame frame : response.getFramesList()) {
                if (frame.hasError()) {
                  // An item that failed ends so, in place of its trailer, and the others go on.
                  predictions.put(response.getRequestId(), Map.of("error", Errors.report(frame.getError())));
                } else {
                  assemblers.get(item).add(frame);
                }
              }
            });
    StreamObserver<DeriveStreamRequest> call = server.scalarStreams().deriveStream(responses);
    for (DeriveRequest request : requests) {
      call.onNext(DeriveStreamRequest.newBuilder().setRequest(request).build());
    }
    call.onCompleted();
    responses.await();
    for (int item = 0; item < requests.size(); item++) {
      String id = requests.get(item).getRequestId();
      if (!predictions.containsKey(id)) {
        predictions.put(id, predict(assemblers.get(item).finish()));
      }
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

package tour;

import io.grpc.stub.StreamObserver;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;

/**
 * The responses of a stream in both directions: hands each to a reader, one at a time, and waits for the end.
 *
 * <p>gRPC asks for the next response once the reader returns, so a slow reader slows the server.
 */
final class Streamed<T> implements StreamObserver<T> {
  /** What is done with a response. */
  interface Reader<T> {
    void read(T response) throws DamagedAnswer;
  }

  private final Reader<T> reader;
  private final CompletableFuture<Void> end = new CompletableFuture<>();

  Streamed(Reader<T> reader) {
    this.reader = reader;
  }

  /** Waits until the server has answered everything; throws what the stream, or the reader, failed with. */
  void await() throws Exception {
    try {
      end.get();
    } catch (ExecutionException failed) {
      throw failed.getCause() instanceof Exception cause ? cause : failed;
    }
  }

  @Override
  public void onNext(T response) {
    try {
      reader.read(response);
    } catch (DamagedAnswer damaged) {
      end.completeExceptionally(damaged);
      throw new IllegalStateException(damaged); // ends the call
    }
  }

  @Override
  public void onError(Throwable error) {
    end.completeExceptionally(error);
  }

  @Override
  public void onCompleted() {
    end.complete(null);
  }
}

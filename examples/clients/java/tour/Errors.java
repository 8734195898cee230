package tour;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.BadRequest.FieldViolation;
import com.google.rpc.Code;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import com.google.rpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.List;
import java.util.Optional;
import java.util.function.Supplier;

/** Errors, with the machine-readable details that every one of them carries (google.rpc). */
final class Errors {
  private static final int MOST_ATTEMPTS = 4;

  private Errors() {}

  /**
   * What a program can act on.
   *
   * @param code name of a google.rpc.Code
   * @param reason a member of dst.v1.ErrorReason; empty if gRPC itself made the error
   * @param fields the bad fields of the request, by their paths
   */
  record Report(String code, String reason, List<String> fields) {}

  /** Describes the error of a call. */
  static Report report(StatusRuntimeException error) {
    return report(StatusProto.fromThrowable(error));
  }

  /** Describes the error of one item of a stream. */
  static Report report(Status status) {
    return new Report(
        Code.forNumber(status.getCode()).name(),
        detail(status, ErrorInfo.class).map(ErrorInfo::getReason).orElse(""),
        detail(status, BadRequest.class).stream()
            .flatMap(bad -> bad.getFieldViolationsList().stream())
            .map(FieldViolation::getField)
            .toList());
  }

  private static <T extends Message> Optional<T> detail(Status status, Class<T> type) {
    for (Any detail : status.getDetailsList()) {
      if (detail.is(type)) {
        try {
          return Optional.of(detail.unpack(type));
        } catch (InvalidProtocolBufferException damaged) {
          return Optional.empty();
        }
      }
    }
    return Optional.empty();
  }

  /**
   * Makes a call again as long as the server says that waiting helps.
   *
   * <p>gRPC itself does so for the codes of the service config, UNAVAILABLE alone. RESOURCE_EXHAUSTED may mean a full
   * queue, which drains, or too little memory for the request, which stays: RetryInfo tells which.
   */
  static <T> T retrying(Supplier<T> call) throws InterruptedException {
    for (int attempt = 1; ; attempt++) {
      try {
        return call.get();
      } catch (StatusRuntimeException error) {
        Optional<RetryInfo> info = detail(StatusProto.fromThrowable(error), RetryInfo.class);
        if (info.isEmpty() || attempt == MOST_ATTEMPTS) {
          throw error;
        }
        com.google.protobuf.Duration delay = info.get().getRetryDelay();
        Thread.sleep(Duration.ofSeconds(delay.getSeconds(), delay.getNanos()).toMillis() + 1);
      }
    }
  }
}

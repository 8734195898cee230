#include "errors.h"

#include <chrono>
#include <optional>
#include <thread>

#include "google/rpc/code.pb.h"
#include "google/rpc/error_details.pb.h"

namespace {

constexpr int kMostAttempts = 4;

template <typename Detail>
std::optional<Detail> find(const google::rpc::Status& status) {
  for (const auto& packed : status.details()) {
    Detail detail;
    if (packed.UnpackTo(&detail)) return detail;
  }
  return std::nullopt;
}

// The rich status travels beside the bare one, as binary metadata.
google::rpc::Status rich(const grpc::Status& status) {
  google::rpc::Status result;
  if (status.error_details().empty() || !result.ParseFromString(status.error_details())) {
    result.set_code(status.error_code());
    result.set_message(status.error_message());
  }
  return result;
}

}  // namespace

ErrorReport report(const grpc::Status& status) { return report(rich(status)); }

ErrorReport report(const google::rpc::Status& status) {
  ErrorReport result;
  result.code = google::rpc::Code_Name(status.code());
  if (const auto info = find<google::rpc::ErrorInfo>(status)) result.reason = info->reason();
  if (const auto bad = find<google::rpc::BadRequest>(status)) {
    for (const auto& violation : bad->field_violations()) result.fields.push_back(violation.field());
  }
  return result;
}

CallFailed::CallFailed(grpc::Status status)
    : std::runtime_error(report(status).code + ": " + status.error_message()), status_(std::move(status)) {}

void check(const grpc::Status& status) {
  if (!status.ok()) throw CallFailed(status);
}

grpc::Status retrying(const std::function<grpc::Status()>& call) {
  for (int attempt = 1;; attempt++) {
    const grpc::Status status = call();
    const auto info = find<google::rpc::RetryInfo>(rich(status));
    if (status.ok() || !info || attempt == kMostAttempts) return status;
    const auto& delay = info->retry_delay();
    std::this_thread::sleep_for(std::chrono::seconds(delay.seconds()) + std::chrono::nanoseconds(delay.nanos()));
  }
}

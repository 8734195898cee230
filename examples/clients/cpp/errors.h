// Errors, with the machine-readable details that every one of them carries (google.rpc).
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "google/rpc/status.pb.h"

// What a program can act on.
struct ErrorReport {
  std::string code;                 // name of a google.rpc.Code
  std::string reason;               // a member of dst.v1.ErrorReason; empty if gRPC itself made the error
  std::vector<std::string> fields;  // the bad fields of the request, by their paths
};

// Describes the error of a call, or of one item of a stream.
ErrorReport report(const grpc::Status& status);
ErrorReport report(const google::rpc::Status& status);

// A call that failed.
class CallFailed : public std::runtime_error {
 public:
  explicit CallFailed(grpc::Status status);
  const grpc::Status& status() const { return status_; }

 private:
  grpc::Status status_;
};

// Throws CallFailed unless the status is OK.
void check(const grpc::Status& status);

// Makes a call again as long as the server says that waiting helps.
//
// gRPC itself does so for the codes of the service config, UNAVAILABLE alone. RESOURCE_EXHAUSTED may mean a full queue,
// which drains, or too little memory for the request, which stays: RetryInfo tells which.
grpc::Status retrying(const std::function<grpc::Status()>& call);

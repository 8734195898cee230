# frozen_string_literal: true

require "google/protobuf/well_known_types" # unpacks Any
require "google/rpc/code_pb"
require "google/rpc/error_details_pb"
require "grpc"

# Errors, with the machine-readable details that every one of them carries (google.rpc).
module Errors
  MOST_ATTEMPTS = 4

  module_function

  # What a program can act on, of the error of a call or of one item of a stream: the code's name, a member of
  # dst.v1.ErrorReason (none if gRPC itself made the error), and the bad fields of the request by their paths.
  def report(error)
    status = rich(error)
    {
      code: Google::Rpc::Code.lookup(status.code),
      reason: find(status, Google::Rpc::ErrorInfo)&.reason,
      fields: find(status, Google::Rpc::BadRequest).to_h.fetch(:field_violations, []).map { |bad| bad[:field] }
    }
  end

  # Makes a call again as long as the server says that waiting helps.
  #
  # gRPC itself does so for the codes of the service config, UNAVAILABLE alone. RESOURCE_EXHAUSTED may mean a full
  # queue, which drains, or too little memory for the request, which stays: RetryInfo tells which.
  def retrying
    attempt = 1
    begin
      yield
    rescue GRPC::BadStatus => e
      delay = find(rich(e), Google::Rpc::RetryInfo)&.retry_delay
      raise if delay.nil? || attempt == MOST_ATTEMPTS

      attempt += 1
      sleep(delay.seconds + (delay.nanos / 1e9))
      retry
    end
  end

  # The rich status travels beside the bare one, as binary metadata. An error made by gRPC itself has none.
  def rich(error)
    return error if error.is_a?(Google::Rpc::Status)

    error.to_rpc_status || Google::Rpc::Status.new(code: error.code, message: error.details.to_s)
  end

  def find(status, type)
    packed = status.details.find { |detail| detail.is(type) }
    packed&.unpack(type)
  end
end

#include <algorithm>
#include <thread>

#include "steps.h"

using std::chrono::milliseconds;

namespace {

// The largest logit at the last token.
Json predict(const Answer& answer) {
  const Tensor& logits = answer.tensors.at(0);
  const auto last = logits.values.end() - static_cast<std::ptrdiff_t>(logits.info.axes(1).size());
  const auto largest = std::max_element(last, logits.values.end());
  return {{"token_count", answer.header.token_ids_size()}, {"next_token", largest - last}};
}

uint32_t pins(Server& server) {
  Call call(server);
  dst::v1::ListContextsResponse response;
  check(server.contexts->ListContexts(&call, dst::v1::ListContextsRequest(), &response));
  uint32_t sum = 0;
  for (const auto& context : response.contexts()) sum += context.pins();
  return sum;
}

}  // namespace

Answer derive(Server& server, const dst::v1::DeriveRequest& request) {
  Call call(server);
  const auto reader = server.scalars->Derive(&call, request);
  Assembler assembler;
  dst::v1::DeriveResponse response;  // reused: its memory stays for the next message
  while (reader->Read(&response)) {
    for (const auto& frame : response.frames()) assembler.add(frame);
  }
  check(reader->Finish());
  return assembler.finish();
}

// The server batches the requests. Answers may overtake one another, and their messages interleave; all frames of a
// message are of one item. It sends everything before it reads, which does for a few requests; with more than fit into a
// window, write from another thread.
Json derive_stream(Server& server, const std::vector<dst::v1::DeriveRequest>& requests) {
  Call call(server);
  const auto stream = server.scalars->DeriveStream(&call);
  std::vector<Assembler> assemblers(requests.size());  // by item: the server numbers requests as they come
  for (const auto& request : requests) {
    dst::v1::DeriveStreamRequest message;
    *message.mutable_request() = request;
    stream->Write(message);
  }
  stream->WritesDone();
  Json predictions = Json::object();
  dst::v1::DeriveStreamResponse response;
  while (stream->Read(&response)) {
    if (response.item_index() >= assemblers.size()) throw DamagedAnswer("an item that was not asked for");
    for (const auto& frame : response.frames()) {
      if (frame.has_error()) {
        // An item that failed ends so, in place of its trailer, and the others go on.
        predictions[response.request_id()] = {{"error", to_json(report(frame.error()))}};
      } else {
        assemblers[response.item_index()].add(frame);
      }
    }
  }
  check(stream->Finish());
  for (std::size_t item = 0; item < requests.size(); item++) {
    const auto& id = requests[item].request_id();
    if (!predictions.contains(id)) predictions[id] = predict(assemblers[item].finish());
  }
  return predictions;
}

// Watches the server's contexts, which never ends by itself.
ErrorReport miss_deadline(Server& server) {
  Call call(server, milliseconds(250));
  const auto reader = server.contexts->WatchContexts(&call, dst::v1::WatchContextsRequest());
  dst::v1::WatchContextsResponse response;
  while (reader->Read(&response)) {
  }
  return report(reader->Finish());
}

// Stops an answer after its first message, and waits until the server has stopped working for it.
uint32_t cancel_derive(Server& server, const dst::v1::DeriveRequest& request) {
  Call call(server);
  const auto reader = server.scalars->Derive(&call, request);
  dst::v1::DeriveResponse response;
  if (!reader->Read(&response)) throw CallFailed(reader->Finish());
  call.TryCancel();
  while (reader->Read(&response)) {
  }
  reader->Finish();

  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (const auto in_use = pins(server)) {
    if (std::chrono::steady_clock::now() > end) {
      throw std::runtime_error("the server still works for a cancelled call: " + std::to_string(in_use) + " pins");
    }
    std::this_thread::sleep_for(milliseconds(50));
  }
  return 0;
}

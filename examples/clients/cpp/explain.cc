#include "steps.h"

namespace {

// The nodes at some positions of a table, with their values in a group.
Json nodes(const dst::v1::NodeTable& table, int group, const google::protobuf::RepeatedField<uint32_t>& positions) {
  Json result = Json::array();
  for (const auto i : positions) {
    const auto& index = table.nodes(i).node();
    Json indices = Json::array();
    for (const auto& position : index.tensor_indices()) {
      indices.push_back(position.has_at() ? Json(position.at()) : Json());  // null for a whole axis
    }
    result.push_back({
        {"node_type", dst::v1::NodeType_Name(index.node_type())},
        {"layer_index", index.has_layer_index() ? Json(index.layer_index()) : Json()},
        {"tensor_indices", indices},
        {"bits", bits(table.nodes(i).values(group))},
    });
  }
  return result;
}

Json groups(const dst::v1::NodeTable& table) {
  Json result = Json::array();
  for (int i = 0; i < table.groups_size(); i++) {
    const auto& group = table.groups(i);
    result.push_back({
        {"group_id", group.group_id()},
        {"top", nodes(table, i, group.top())},
        {"bottom", nodes(table, i, group.bottom())},
    });
  }
  return result;
}

Json pair(const std::string& token, float score) { return Json::array({token, bits(score)}); }

Json scores(const google::protobuf::RepeatedPtrField<dst::v1::TokenScore>& messages) {
  Json result = Json::array();
  for (const auto& message : messages) result.push_back(pair(message.token(), message.score()));
  return result;
}

Json scored_tokens(const dst::v1::ScoredTokens& message) {
  Json nodes = Json::array();
  for (const auto& node : message.nodes()) {
    nodes.push_back({{"node", node.node()}, {"top", scores(node.top())}, {"bottom", scores(node.bottom())}});
  }
  return {{"part", dst::v1::ExplainPart_Name(message.part())}, {"nodes", nodes}};
}

}  // namespace

// Reads an explanation, each frame of which comes as soon as it is ready.
Json explain(Server& server, const dst::v1::ExplainRequest& request) {
  Call call(server);
  const auto reader = server.scalars->Explain(&call, request);
  std::map<std::string, int> parts;
  dst::v1::NodeTable table, logits;  // those of many nodes come in several frames
  Json scored = Json::array(), top_logits = Json::array();
  uint32_t frames = 0, counted = 0;
  dst::v1::ExplainResponse response;
  while (reader->Read(&response)) {
    for (const auto& frame : response.frames()) {
      frames++;
      switch (frame.frame_case()) {
        case dst::v1::ExplainFrame::kHeader:
          parts["header"]++;
          break;
        case dst::v1::ExplainFrame::kNodeTable:
          parts["node_table"]++;
          table.MergeFrom(frame.node_table());
          break;
        case dst::v1::ExplainFrame::kScoredTokens:
          parts["scored_tokens"]++;
          scored.push_back(scored_tokens(frame.scored_tokens()));
          break;
        case dst::v1::ExplainFrame::kTopLogits:
          parts["top_logits"]++;
          logits.MergeFrom(frame.top_logits());
          break;
        case dst::v1::ExplainFrame::kTrailer:
          parts["trailer"]++;
          counted = frame.trailer().frame_count();
          break;
        default:
          break;  // not asked for here, or not known
      }
    }
  }
  check(reader->Finish());
  if (counted != frames) {
    throw std::runtime_error("truncated: " + std::to_string(frames) + " frames came, the trailer counts " +
                             std::to_string(counted));
  }
  for (const auto i : logits.groups(0).top()) {
    top_logits.push_back(pair(logits.nodes(i).vocab_token(), logits.nodes(i).values(0)));
  }
  return {{"parts", parts}, {"groups", groups(table)}, {"scored_tokens", scored}, {"top_logits", top_logits}};
}

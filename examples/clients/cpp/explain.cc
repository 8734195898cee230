#include "steps.h"

namespace {

// The nodes at some positions of a table, with their values in a group.
Json nodes(const dst::v1::NodeTable& table, const dst::v1::GroupValues& group,
           const google::protobuf::RepeatedField<uint32_t>& positions) {
  Json result = Json::array();
  for (const auto i : positions) {
    const auto& index = table.nodes(i);
    Json indices = Json::array();
    for (const auto& position : index.tensor_indices()) {
      indices.push_back(position.has_at() ? Json(position.at()) : Json());  // null for a whole axis
    }
    result.push_back({
        {"node_type", dst::v1::NodeType_Name(index.node_type())},
        {"layer_index", index.has_layer_index() ? Json(index.layer_index()) : Json()},
        {"tensor_indices", indices},
        {"bits", bits(group.values(i))},
    });
  }
  return result;
}

Json groups(const dst::v1::NodeTable& table) {
  Json result = Json::array();
  for (const auto& group : table.groups()) {
    result.push_back({
        {"group_id", group.group_id()},
        {"top", nodes(table, group, group.top())},
        {"bottom", nodes(table, group, group.bottom())},
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

// Reads the parts of an explanation, each of which comes as soon as it is ready.
Json explain(Server& server, const dst::v1::ExplainRequest& request) {
  Call call;
  const auto reader = server.scalars->Explain(&call, request);
  std::map<std::string, int> parts;
  Json group_list = Json::array(), scored = Json::array(), top_logits = Json::array();
  uint32_t messages = 0, counted = 0;
  dst::v1::ExplainResponse response;
  while (reader->Read(&response)) {
    messages++;
    switch (response.part_case()) {
      case dst::v1::ExplainResponse::kHeader:
        parts["header"]++;
        break;
      case dst::v1::ExplainResponse::kNodeTable:
        parts["node_table"]++;
        group_list = groups(response.node_table());
        break;
      case dst::v1::ExplainResponse::kScoredTokens:
        parts["scored_tokens"]++;
        scored.push_back(scored_tokens(response.scored_tokens()));
        break;
      case dst::v1::ExplainResponse::kTopLogits: {
        parts["top_logits"]++;
        const auto& table = response.top_logits();
        const auto& logits = table.groups(0);
        for (const auto i : logits.top()) top_logits.push_back(pair(table.vocab_tokens(i), logits.values(i)));
        break;
      }
      case dst::v1::ExplainResponse::kTrailer:
        parts["trailer"]++;
        counted = response.trailer().message_count();
        break;
      default:
        break;  // not asked for here, or not known
    }
  }
  check(reader->Finish());
  if (counted != messages) {
    throw std::runtime_error("truncated: " + std::to_string(messages) + " messages came, the trailer counts " +
                             std::to_string(counted));
  }
  return {{"parts", parts}, {"groups", group_list}, {"scored_tokens", scored}, {"top_logits", top_logits}};
}

package tour;

import io.dstgrpc.v1.ExplainRequest;
import io.dstgrpc.v1.ExplainResponse;
import io.dstgrpc.v1.GroupValues;
import io.dstgrpc.v1.NodeIndex;
import io.dstgrpc.v1.NodeTable;
import io.dstgrpc.v1.TensorIndex;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeMap;

/** Asking why the model said one thing and not another. */
final class Explain {
  private Explain() {}

  record Explanation(
      Map<String, Integer> parts,
      List<Group> groups,
      List<ScoredTokens> scored_tokens,
      List<List<String>> top_logits) {}

  record Group(String group_id, List<Node> top, List<Node> bottom) {}

  record Node(String node_type, Integer layer_index, List<Integer> tensor_indices, String bits) {}

  record ScoredTokens(String part, List<NodeTokens> nodes) {}

  record NodeTokens(int node, List<List<String>> top, List<List<String>> bottom) {}

  /** Reads the parts of an explanation, each of which comes as soon as it is ready. */
  static Explanation explain(Server server, ExplainRequest request) {
    Map<String, Integer> parts = new TreeMap<>();
    List<Group> groups = new ArrayList<>();
    List<ScoredTokens> scoredTokens = new ArrayList<>();
    List<List<String>> topLogits = new ArrayList<>();
    int messages = 0;
    int counted = 0;
    Iterator<ExplainResponse> responses = server.scalars().explain(request);
    while (responses.hasNext()) {
      ExplainResponse response = responses.next();
      messages++;
      switch (response.getPartCase()) {
        case NODE_TABLE -> {
          NodeTable table = response.getNodeTable();
          table.getGroupsList().forEach(values -> groups.add(group(table, values)));
        }
        case SCORED_TOKENS -> scoredTokens.add(scoredTokens(response.getScoredTokens()));
        case TOP_LOGITS -> {
          NodeTable table = response.getTopLogits();
          GroupValues logits = table.getGroups(0);
          for (int i : logits.getTopList()) {
            topLogits.add(List.of(table.getVocabTokens(i), Summary.bits(logits.getValues(i))));
          }
        }
        case TRAILER -> counted = response.getTrailer().getMessageCount();
        case HEADER -> {}
        default -> {
          continue; // not wanted here, or not known
        }
      }
      parts.merge(response.getPartCase().name().toLowerCase(Locale.ROOT), 1, Integer::sum);
    }
    if (counted != messages) {
      throw new IllegalStateException(
          "truncated: %d messages came, the trailer counts %d".formatted(messages, counted));
    }
    return new Explanation(parts, groups, scoredTokens, topLogits);
  }

  private static Group group(NodeTable table, GroupValues values) {
    return new Group(
        values.getGroupId(), nodes(table, values, values.getTopList()), nodes(table, values, values.getBottomList()));
  }

  /** The nodes at some positions of a table, with their values in a group. */
  private static List<Node> nodes(NodeTable table, GroupValues values, List<Integer> positions) {
    List<Node> nodes = new ArrayList<>();
    for (int i : positions) {
      NodeIndex index = table.getNodes(i);
      nodes.add(
          new Node(
              index.getNodeType().name(),
              index.hasLayerIndex() ? index.getLayerIndex() : null,
              index.getTensorIndicesList().stream().map(Explain::position).toList(),
              Summary.bits(values.getValues(i))));
    }
    return nodes;
  }

  /** Null for a whole axis. */
  private static Integer position(TensorIndex index) {
    return index.hasAt() ? index.getAt() : null;
  }

  private static ScoredTokens scoredTokens(io.dstgrpc.v1.ScoredTokens message) {
    return new ScoredTokens(
        message.getPart().name(),
        message.getNodesList().stream()
            .map(node -> new NodeTokens(node.getNode(), scores(node.getTopList()), scores(node.getBottomList())))
            .toList());
  }

  private static List<List<String>> scores(List<io.dstgrpc.v1.TokenScore> messages) {
    return messages.stream().map(score -> List.of(score.getToken(), Summary.bits(score.getScore()))).toList();
  }
}

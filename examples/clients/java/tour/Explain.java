package tour;

import io.dstgrpc.v1.ExplainFrame;
import io.dstgrpc.v1.ExplainRequest;
import io.dstgrpc.v1.ExplainResponse;
import io.dstgrpc.v1.NodeIndex;
import io.dstgrpc.v1.NodeTable;
import io.dstgrpc.v1.TableGroup;
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

  /** Reads an explanation, each frame of which comes as soon as it is ready. */
  static Explanation explain(Server server, ExplainRequest request) {
    Map<String, Integer> parts = new TreeMap<>();
    List<ScoredTokens> scoredTokens = new ArrayList<>();
    // Tables of many nodes come in several frames.
    NodeTable.Builder table = NodeTable.newBuilder();
    NodeTable.Builder logits = NodeTable.newBuilder();
    int frames = 0;
    int counted = 0;
    Iterator<ExplainResponse> responses = server.scalars().explain(request);
    while (responses.hasNext()) {
      for (ExplainFrame frame : responses.next().getFramesList()) {
        frames++;
        switch (frame.getFrameCase()) {
          case NODE_TABLE -> table.mergeFrom(frame.getNodeTable());
          case SCORED_TOKENS -> scoredTokens.add(scoredTokens(frame.getScoredTokens()));
          case TOP_LOGITS -> logits.mergeFrom(frame.getTopLogits());
          case TRAILER -> counted = frame.getTrailer().getFrameCount();
          case HEADER -> {}
          default -> {
            continue; // not wanted here, or not known
          }
        }
        parts.merge(frame.getFrameCase().name().toLowerCase(Locale.ROOT), 1, Integer::sum);
      }
    }
    if (counted != frames) {
      throw new IllegalStateException("truncated: %d frames came, the trailer counts %d".formatted(frames, counted));
    }
    return new Explanation(parts, groups(table.build()), scoredTokens, topTokens(logits.build()));
  }

  private static List<Group> groups(NodeTable table) {
    List<Group> groups = new ArrayList<>();
    for (int i = 0; i < table.getGroupsCount(); i++) {
      TableGroup group = table.getGroups(i);
      groups.add(
          new Group(group.getGroupId(), nodes(table, i, group.getTopList()), nodes(table, i, group.getBottomList())));
    }
    return groups;
  }

  /** The nodes at some positions of a table, with their values in a group. */
  private static List<Node> nodes(NodeTable table, int group, List<Integer> positions) {
    List<Node> nodes = new ArrayList<>();
    for (int i : positions) {
      NodeIndex index = table.getNodes(i).getNode();
      nodes.add(
          new Node(
              index.getNodeType().name(),
              index.hasLayerIndex() ? index.getLayerIndex() : null,
              index.getTensorIndicesList().stream().map(Explain::position).toList(),
              Summary.bits(table.getNodes(i).getValues(group))));
    }
    return nodes;
  }

  /** Pairs of a token and the bits of its logit. */
  private static List<List<String>> topTokens(NodeTable logits) {
    return logits.getGroups(0).getTopList().stream()
        .map(logits::getNodes)
        .map(node -> List.of(node.getVocabToken(), Summary.bits(node.getValues(0))))
        .toList();
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

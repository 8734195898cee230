// Asking why the model said one thing and not another.

import { NodeTypeSchema } from "../gen/dst/v1/component_pb.js";
import {
  ExplainPartSchema,
  type NodeTable,
  NodeTableSchema,
  type ScoredTokens,
  type TokenScore,
} from "../gen/dst/v1/explain_pb.js";
import { bits, joined, nameOf } from "./names.js";
import type { ExplainRequestInit } from "./requests.js";
import type { Server } from "./server.js";

/** The frames that are wanted here, as the document calls them. */
const PARTS: Record<string, string> = {
  header: "header",
  nodeTable: "node_table",
  scoredTokens: "scored_tokens",
  topLogits: "top_logits",
  trailer: "trailer",
};

/** Reads an explanation, each frame of which comes as soon as it is ready. */
export async function explain({ scalars }: Server, request: ExplainRequestInit) {
  const parts: Record<string, number> = {};
  const scoredTokens: ReturnType<typeof scored>[] = [];
  let table: NodeTable | undefined;
  let logits: NodeTable | undefined;
  let count = 0;
  let counted = 0;
  for await (const { frames } of scalars.explain(request)) {
    for (const { frame } of frames) {
      count += 1;
      const name = PARTS[frame.case ?? ""];
      if (name === undefined) continue; // not wanted here, or not known
      parts[name] = (parts[name] ?? 0) + 1;
      switch (frame.case) {
        case "nodeTable":
          table = merged(table, frame.value);
          break;
        case "scoredTokens":
          scoredTokens.push(scored(frame.value));
          break;
        case "topLogits":
          logits = merged(logits, frame.value);
          break;
        case "trailer":
          counted = frame.value.frameCount;
          break;
      }
    }
  }
  if (counted !== count) throw new Error(`truncated: ${count} frames came, the trailer counts ${counted}`);
  if (!table || !logits) throw new Error("an explanation without its tables");
  return { parts, groups: groups(table), scored_tokens: scoredTokens, top_logits: topTokens(logits) };
}

/** A table of many nodes comes in several frames. */
function merged(whole: NodeTable | undefined, piece: NodeTable): NodeTable {
  return whole ? joined(NodeTableSchema, whole, piece) : piece;
}

function groups(table: NodeTable) {
  return table.groups.map(({ groupId, top, bottom }, group) => ({
    group_id: groupId,
    top: top.map((i) => node(table, i, group)),
    bottom: bottom.map((i) => node(table, i, group)),
  }));
}

/** The node at a position of a table, with its value in a group. */
function node(table: NodeTable, i: number, group: number) {
  const { node: index, values } = table.nodes[i]!;
  return {
    node_type: nameOf(NodeTypeSchema, index!.nodeType),
    layer_index: index!.layerIndex ?? null,
    tensor_indices: index!.tensorIndices.map(({ index }) => (index.case === "at" ? index.value : null)),
    bits: bits(values[group]!),
  };
}

/** Pairs of a token and the bits of its logit. */
function topTokens({ nodes, groups: [group] }: NodeTable) {
  return group!.top.map((i) => [nodes[i]!.vocabToken, bits(nodes[i]!.values[0]!)]);
}

function scored(message: ScoredTokens) {
  const pairs = (scores: TokenScore[]) => scores.map(({ token, score }) => [token, bits(score)]);
  return {
    part: nameOf(ExplainPartSchema, message.part),
    nodes: message.nodes.map(({ node, top, bottom }) => ({ node, top: pairs(top), bottom: pairs(bottom) })),
  };
}

// Asking why the model said one thing and not another.

import { NodeTypeSchema } from "../gen/dst/v1/component_pb.js";
import {
  ExplainPartSchema,
  type GroupValues,
  type NodeTable,
  type ScoredTokens,
  type TokenScore,
} from "../gen/dst/v1/explain_pb.js";
import { bits, nameOf } from "./names.js";
import type { ExplainRequestInit } from "./requests.js";
import type { Server } from "./server.js";

/** The parts that are wanted here, as the document calls them. */
const PARTS: Record<string, string> = {
  header: "header",
  nodeTable: "node_table",
  scoredTokens: "scored_tokens",
  topLogits: "top_logits",
  trailer: "trailer",
};

/** Reads the parts of an explanation, each of which comes as soon as it is ready. */
export async function explain({ scalars }: Server, request: ExplainRequestInit) {
  const parts: Record<string, number> = {};
  const groups: ReturnType<typeof group>[] = [];
  const scoredTokens: ReturnType<typeof scored>[] = [];
  const topLogits: [string, string][] = [];
  let messages = 0;
  let counted = 0;
  for await (const { part } of scalars.explain(request)) {
    messages += 1;
    const name = PARTS[part.case ?? ""];
    if (name === undefined) continue; // not wanted here, or not known
    parts[name] = (parts[name] ?? 0) + 1;
    switch (part.case) {
      case "nodeTable":
        groups.push(...part.value.groups.map((values) => group(part.value, values)));
        break;
      case "scoredTokens":
        scoredTokens.push(scored(part.value));
        break;
      case "topLogits": {
        const [logits] = part.value.groups;
        for (const i of logits?.top ?? []) topLogits.push([part.value.vocabTokens[i]!, bits(logits!.values[i]!)]);
        break;
      }
      case "trailer":
        counted = part.value.messageCount;
        break;
    }
  }
  if (counted !== messages) throw new Error(`truncated: ${messages} messages came, the trailer counts ${counted}`);
  return { parts, groups, scored_tokens: scoredTokens, top_logits: topLogits };
}

function group(table: NodeTable, values: GroupValues) {
  return {
    group_id: values.groupId,
    top: values.top.map((i) => node(table, values, i)),
    bottom: values.bottom.map((i) => node(table, values, i)),
  };
}

/** The node at a position of a table, with its value in a group. */
function node(table: NodeTable, values: GroupValues, i: number) {
  const index = table.nodes[i]!;
  return {
    node_type: nameOf(NodeTypeSchema, index.nodeType),
    layer_index: index.layerIndex ?? null,
    tensor_indices: index.tensorIndices.map(({ index }) => (index.case === "at" ? index.value : null)),
    bits: bits(values.values[i]!),
  };
}

function scored(message: ScoredTokens) {
  const pairs = (scores: TokenScore[]) => scores.map(({ token, score }) => [token, bits(score)]);
  return {
    part: nameOf(ExplainPartSchema, message.part),
    nodes: message.nodes.map(({ node, top, bottom }) => ({ node, top: pairs(top), bottom: pairs(bottom) })),
  };
}

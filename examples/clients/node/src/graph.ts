// Asking which features of transcoders, tokens and errors act on which, and on the logits.

import {
  GraphEdgeDirection,
  type GraphEdges,
  type GraphFrame,
  type GraphHeader,
  GraphHeaderSchema,
  type GraphSummary,
} from "../gen/dst/v1/graph_pb.js";
import type { Tensor } from "../gen/dst/v1/tensor_pb.js";
import { floats, int32s } from "./elements.js";
import { bits, joined } from "./names.js";
import type { GraphRequestInit } from "./requests.js";
import type { Server } from "./server.js";

/** The names of its two ends, and the bits of its weight. */
type Edge = [source: string, target: string, bits: string];

/** Computes the graph of a prompt, asks a question about it, and drops it. */
export async function graph({ graphs }: Server, request: GraphRequestInit) {
  const { header, order, names, kept, edges, summary, handle } = await collect(graphs.graph(request));
  if (!header || !summary) throw new Error("a graph without its header or summary");
  // Nodes go by numbers too, and the targets are the last of them.
  const node = names.get(header.nodeCount - header.targets.length) ?? "";
  const question = { node, direction: GraphEdgeDirection.INPUTS, topK: 3 };
  const found = await collect(graphs.queryGraph({ graph: handle, query: { case: "neighbours", value: question } }));
  await graphs.dropGraph({ graph: handle });
  return {
    nodes: order.filter((_, i) => kept[i]).map((number) => names.get(number)),
    edges,
    replacement_score: bits(summary.replacementScore, 64),
    inputs: found.edges,
  };
}

/** Puts the frames of an answer of Graph or QueryGraph together. */
async function collect(messages: AsyncIterable<{ frames: GraphFrame[] }>) {
  let header: GraphHeader | undefined;
  let summary: GraphSummary | undefined;
  let handle = "";
  const order: number[] = [];
  const names = new Map<number, string>();
  const kept: boolean[] = [];
  const edges: Edge[] = [];
  let [count, counted] = [0, 0];
  for await (const { frames } of messages) {
    for (const { frame } of frames) {
      count += 1;
      switch (frame.case) {
        case "header": // that of many tokens comes in several frames
          header = header ? joined(GraphHeaderSchema, header, frame.value) : frame.value;
          break;
        case "nodes": // a long table comes in several frames, each with all columns
          column(frame.value.nodes).forEach((number, i) => {
            order.push(number);
            names.set(number, frame.value.names[i]!);
          });
          break;
        case "scores":
          kept.push(...Array.from(frame.value.kept!.data, Boolean));
          break;
        case "edges":
          edges.push(...named(frame.value, names));
          break;
        case "summary":
          summary = frame.value;
          break;
        case "kept":
          handle = frame.value.handle;
          break;
        case "trailer":
          counted = frame.value.frameCount;
          break;
      }
    }
  }
  if (counted !== count) throw new Error(`truncated: ${count} frames came, the trailer counts ${counted}`);
  return { header, order, names, kept, edges, summary, handle };
}

/** Edges by the names of their ends: those into the first of `targets` are the first `counts[0]` of them, and so on. */
function named(edges: GraphEdges, names: Map<number, string>): Edge[] {
  const [targets, counts, sources] = [column(edges.targets), column(edges.counts), column(edges.sources)];
  const weights = floats(edges.weights!.data, edges.weights!.elementType);
  const ends = targets.flatMap((target, i) => Array<number>(counts[i]!).fill(target));
  return ends.map((end, i) => [names.get(sources[i]!)!, names.get(end)!, bits(weights[i]!)]);
}

function column(tensor: Tensor | undefined): number[] {
  return tensor ? Array.from(int32s(tensor.data)) : [];
}

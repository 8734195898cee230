// Asking what the metric would be if one place in a run were as in another run.

import { type PatchMeans, PatchMeansSchema } from "../gen/dst/v1/patch_pb.js";
import { bits, joined } from "./names.js";
import type { PatchRequestInit } from "./requests.js";
import type { Server } from "./server.js";

/** Reads a grid; the cells of each pass come as soon as they are done, and their means over pairs last. */
export async function patch({ causal }: Server, request: PatchRequestInit) {
  let axes: string[] = [];
  let shape: number[] = [];
  let base = "";
  let source = "";
  let means: PatchMeans | undefined;
  let [count, counted, done] = [0, 0, 0];
  for await (const { frames } of causal.patch(request)) {
    for (const { frame } of frames) {
      count += 1;
      switch (frame.case) {
        case "header":
          axes = (frame.value.grids[0]?.axes ?? []).map(({ name }) => name);
          shape = (frame.value.grids[0]?.axes ?? []).map(({ labels }) => labels.length);
          break;
        case "pair":
          base = bits(frame.value.metric);
          source = bits(frame.value.sourceMetric ?? NaN);
          break;
        case "cells":
          done += frame.value.cells.length;
          break;
        case "means": // those of many cells come in several frames
          means = means ? joined(PatchMeansSchema, means, frame.value) : frame.value;
          break;
        case "trailer":
          counted = frame.value.frameCount;
          break;
      }
    }
  }
  if (!means || counted !== count || done !== means.cells.length) {
    throw new Error(`truncated: ${count} frames and ${done} cells came`);
  }
  // In the order of the cells: row-major.
  return { axes, shape, base, source, metrics: means.metrics.map((metric) => bits(metric)) };
}

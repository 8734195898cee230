"""Attribution graphs of a random model in the shape of GPT-2 small: what one costs, and what it costs circuit-tracer.

    python -m benchmarks.graphs PYTHON
    python -m benchmarks.graphs long

PYTHON is the interpreter of an environment that has `circuit-tracer==0.5.0`: it builds the same graphs, one at a time,
in the same run; without, ours alone are measured. Time is the processor's, as machines are shared. `long` builds the
graph of a long prompt instead, and says how much memory the process has at most: that takes some ten minutes.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks import graph_weights as w
from benchmarks.measure import forget_peak, resident_bytes
from benchmarks.subjects import GPT2_SMALL
from dst_grpc.domain.autoencoders import ModelNorm
from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.engine.decoder import Decoder
from dst_grpc.engine.transcoders import Transcoders
from dst_grpc.graphs.building import build
from dst_grpc.graphs.question import GraphQuestion
from dst_grpc.graphs.sources import Sources

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from dst_grpc.graphs.nodes import AttributionGraph

_MIB = 1 << 20
_PRODUCT_ROWS = 2048
"""Rows of the product of matrices whose rate the floor is computed at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """What a graph took."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of the processor."""
    peak: int
    """Bytes of resident memory at most, beyond those before."""
    first: float = 0.0
    """Seconds of the processor until the first rows."""
    floor: float = 0.0
    """Seconds that the products alone take which carry gradients back, at the rate of a large product."""
    bare: float = 0.0
    """Seconds of the processor of a bare forward pass."""


def subject(context_window: int = GPT2_SMALL.context_window) -> tuple[Decoder, Transcoders]:
    """The model and its transcoders."""
    config = replace(GPT2_SMALL, context_window=context_window)
    found: dict[tuple[str, int | None], torch.Tensor] = {
        (name, layer): torch.from_numpy(array) for name, layer, array in w.arrays(context_window)
    }
    own = {"attn.out": "attention_out", "mlp.in": "mlp_in", "mlp.out": "mlp_out"}
    weights: dict[str, torch.Tensor] = {
        name: torch.full(shape, float(name.endswith("gain"))) for name, shape in config.weight_shapes().items()
    }
    weights["embedding"], weights["unembedding"] = found["embedding", None], found["unembedding", None]
    weights["position_embedding"] = found["positions", None]
    by_layer = {}
    for layer in range(w.LAYERS):
        heads = [found[name, layer] for name in ("query", "key", "value")]
        weights[f"layers.{layer}.attn.qkv.weight"] = torch.cat(heads, dim=1)
        weights |= {f"layers.{layer}.{name}.weight": found[theirs, layer] for name, theirs in own.items()}
        by_layer[layer] = Autoencoder(
            pre_bias=torch.zeros(w.WIDTH),
            encoder=found["encoder", layer],
            latent_bias=found["encoder_bias", layer],
            decoder=found["decoder", layer].t(),
            input_norm=ModelNorm.MLP_NORM_WITHOUT_GAIN,
        )
    return Decoder(config, weights), Transcoders.per_layer(w.LAYERS, by_layer)


def built(question: GraphQuestion, decoder: Decoder, transcoders: Transcoders) -> tuple[AttributionGraph, float]:
    """The graph, and the seconds of the processor until the first rows."""
    started, first = time.process_time(), 0.0
    building = build(question, decoder, Sources(transcoders))
    while True:
        try:
            step = next(building)
        except StopIteration as end:
            graph: AttributionGraph = end.value
            return graph, first
        if len(step.rows) and not first:
            first = time.process_time() - started


def _ours(n_tokens: int, most: int, threads: int, path: str, answer: Connection) -> None:
    """Build a graph in a process of its own."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    decoder, transcoders = subject()
    question = GraphQuestion(token_ids=tuple(w.prompt(n_tokens)), max_feature_nodes=most, batch_size=w.BATCH_SIZE)
    tokens, last = torch.tensor([question.token_ids]), torch.tensor([n_tokens - 1])
    decoder.forward(tokens, logits_at=last)
    bare = _cpu(lambda: decoder.forward(tokens, logits_at=last))
    before = resident_bytes()
    forget_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    graph, first = built(question, decoder, transcoders)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resident_bytes("VmHWM") - before
    np.savez(path, active=graph.nodes.active, selected=graph.nodes.selected, adjacency=graph.adjacency)
    floor = _floor(graph)
    answer.send(Took(wall=wall, cpu=cpu, peak=peak, first=first, floor=floor, bare=bare))


def _cpu(work: Any) -> float:
    """Seconds of the processor of *work*, the least of three times."""
    seconds = []
    for _ in range(3):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


def _floor(graph: AttributionGraph) -> float:
    """Seconds of the products with values' and outputs' weights, for each row at every token that reaches its target,
    in every layer between them and the target; in the target's own layer its gradient is at one token."""
    layers, tokens = graph.nodes.layers[graph.nodes.readers], graph.nodes.tokens[graph.nodes.readers]
    places = float((np.minimum(layers, w.LAYERS - 1) * (tokens + 1)).sum())
    rows, matrix = torch.randn(_PRODUCT_ROWS, w.WIDTH), torch.randn(w.WIDTH, w.HEADS * w.CHANNELS)
    return 2 * places / _PRODUCT_ROWS * _cpu(lambda: rows @ matrix)


def _theirs(python: str, n_tokens: int, most: int, threads: int, path: str) -> Took:
    """Have circuit-tracer build a graph."""
    command = [python, "-m", "benchmarks.graphs_of_circuit_tracer", *map(str, (n_tokens, most, threads)), path]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    return Took(**json.loads(done.stdout.splitlines()[-1]))


def _difference(ours: str, theirs: str) -> str:
    """How far two graphs are from one another, for a line."""
    with np.load(ours) as own, np.load(theirs) as other:
        assert (own["active"] == other["active"]).all()
        (mine, nodes), (yours, others) = _named(own), _named(other)
        both = sorted(nodes.keys() & others.keys())
        a = mine[np.ix_([nodes[one] for one in both], [nodes[one] for one in both])]
        b = yours[np.ix_([others[one] for one in both], [others[one] for one in both])]
    share, difference = len(both) / len(nodes), np.abs(a - b).max() / np.abs(b).max()
    return f"{share:.1%} of the nodes are the same, edges to {difference:.1e} of the largest"


def _named(graph: Any) -> tuple[Any, dict[int, int]]:
    """The adjacency, and the place of each node: a feature by its number among all active ones, others after these."""
    selected, adjacency = graph["selected"].tolist(), graph["adjacency"]
    others = range(len(graph["active"]), len(graph["active"]) + len(adjacency) - len(selected))
    return adjacency, {node: place for place, node in enumerate([*selected, *others])}


def report(python: str | None = None) -> Iterator[str]:
    """All of it, beside circuit-tracer if *python* is the interpreter that has it."""
    threads = torch.get_num_threads()
    yield (
        f"attribution graphs, GPT-2-small shape, {w.FEATURES} ReLU features a layer, batches of {w.BATCH_SIZE},"
        f" {threads} threads; seconds of the processor"
    )
    context = multiprocessing.get_context("spawn")
    for n_tokens, most in w.CASES:
        with tempfile.TemporaryDirectory() as folder:
            paths = [str(Path(folder) / f"{name}.npz") for name in ("ours", "theirs")]
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_ours, args=(n_tokens, most, threads, paths[0], sender))
            process.start()
            sender.close()
            ours: Took = receiver.recv()
            process.join()
            with np.load(paths[0]) as graph:
                sizes = f"{len(graph['active'])} active features, {len(graph['adjacency'])} nodes"
            yield (
                f"  {n_tokens} tokens, {sizes}: {ours.cpu:.2f} s, x {ours.cpu / ours.bare:.0f} of a bare forward pass,"
                f" x {ours.cpu / ours.floor:.1f} of the products that carry gradients back ({ours.floor:.2f} s);"
                f" first rows after {ours.first:.2f} s; {ours.peak / _MIB:.0f} MiB"
            )
            if python is not None:
                theirs = _theirs(python, n_tokens, most, threads, paths[1])
                yield (
                    f"    circuit-tracer: {theirs.cpu:.1f} s, {theirs.peak / _MIB:.0f} MiB; ours take"
                    f" x {ours.cpu / theirs.cpu:.3f} of its time (x {ours.wall / theirs.wall:.3f} by the clock) and"
                    f" x {ours.peak / theirs.peak:.2f} of its memory; {_difference(*paths)}"
                )


def long_prompt(n_tokens: int = 2048, most: int = 500) -> Iterator[str]:
    """The graph of a prompt that is twice as long as GPT-2's longest, in this process."""
    torch.set_grad_enabled(False)
    yield (
        f"attribution graph of {n_tokens} tokens, GPT-2-small shape, {w.FEATURES} ReLU features a layer, at most {most}"
        f" of them, {torch.get_num_threads()} threads"
    )
    decoder, transcoders = subject(n_tokens)
    yield f"  {resident_bytes() / _MIB:.0f} MiB with the weights"
    forget_peak()
    question = GraphQuestion(token_ids=tuple(w.prompt(n_tokens)), max_feature_nodes=most)
    wall, cpu = time.perf_counter(), time.process_time()
    graph, first = built(question, decoder, transcoders)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    yield (
        f"  {len(graph.nodes.active)} active features, {len(graph.adjacency)} nodes: {cpu:.0f} s of the processor,"
        f" {wall:.0f} by the clock; first rows after {first:.1f} s; at most"
        f" {resident_bytes('VmHWM') / _MIB:.0f} MiB resident"
    )


if __name__ == "__main__":
    for line in long_prompt() if sys.argv[1:] == ["long"] else report(*sys.argv[1:2]):
        print(line, flush=True)

"""A cross-layer transcoder of 8 GiB: the memory that loading and reading it takes, and how fast its rows are read.

Its files are sparse: they take no room on the disk, and are read as zeros like any others. The model is a random one in
the shape of GPT-2 small. Memory is measured in a process of its own.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import tempfile
import time
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from benchmarks.contexts import write_gpt2_small
from benchmarks.measure import conditions, forget_peak, interleaved, resident_bytes
from benchmarks.subjects import GPT2_SMALL
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.contexts.registry import Registry
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.files import File
from dst_grpc.engine.safetensors_file import SafetensorsFile
from dst_grpc.engine.splice import splices_of_set
from dst_grpc.engine.stored_matrix import StoredMatrix
from dst_grpc.engine.taps import Site, Taps
from dst_grpc.errors import require
from dst_grpc.graphs.building import build
from dst_grpc.graphs.question import GraphQuestion
from dst_grpc.graphs.sources import Sources

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from multiprocessing.connection import Connection

    from dst_grpc.contexts import AutoencoderContext
    from dst_grpc.engine.decoder import Decoder

_GIB = 1 << 30
_BYTES = 8 * _GIB
_TOKENS = 64
_ACTIVE = 100
"""Features of a layer that are active at every token: their biases are positive."""
_NODES = 200
_ROWS = 2000
_ROUNDS = 7
LATENTS: tuple[Site, ...] = tuple(
    (ActivationLocationType.ONLINE_MLP_AUTOENCODER_LATENT, layer) for layer in range(GPT2_SMALL.n_layers)
)
"""The taps of its latents."""


def write_sparse(path: Path, shapes: Mapping[str, tuple[int, ...]], filled: Mapping[str, torch.Tensor]) -> None:
    """A safetensors file of float32 tensors, 0 but for those that are *filled*, of which no zero is written."""
    offsets = dict(
        zip(shapes, accumulate((4 * math.prod(shape) for shape in shapes.values()), initial=0), strict=False)
    )
    ends = {name: offset + 4 * math.prod(shapes[name]) for name, offset in offsets.items()}
    header = {
        name: {"dtype": "F32", "shape": list(shape), "data_offsets": [offsets[name], ends[name]]}
        for name, shape in shapes.items()
    }
    encoded = json.dumps(header).encode()
    begin = 8 + len(encoded)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(begin + max(ends.values()))
        for name, tensor in filled.items():
            file.seek(begin + offsets[name])
            file.write(tensor.float().numpy().tobytes())


def write_cross_layer(folder: Path, n_bytes: int) -> int:
    """A cross-layer transcoder of about *n_bytes* for GPT-2 small's shape; returns its features of a layer."""
    n_layers, d = GPT2_SMALL.n_layers, GPT2_SMALL.d_model
    n_rows = n_layers + n_layers * (n_layers + 1) // 2
    n_features = n_bytes // (4 * d * n_rows)
    bias = torch.zeros(n_features)
    bias[:: n_features // _ACTIVE] = 1.0
    folder.mkdir(parents=True)
    hooks = {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
    (folder / "config.yaml").write_text(json.dumps({"model_kind": "cross_layer_transcoder"} | hooks))
    for layer in range(n_layers):
        vectors = {f"b_enc_{layer}": (n_features,), f"b_dec_{layer}": (d,)}
        reads: dict[str, tuple[int, ...]] = vectors | {f"W_enc_{layer}": (n_features, d)}
        write_sparse(folder / f"W_enc_{layer}.safetensors", reads, {f"b_enc_{layer}": bias})
        writes = {f"W_dec_{layer}": (n_features, n_layers - layer, d)}
        write_sparse(folder / f"W_dec_{layer}.safetensors", writes, {})
    return n_features


def _used(folder: str, answer: Connection) -> None:
    """Load it, build a graph with it, and splice it into runs: sends peaks of resident memory, what is resident after
    the graph, and seconds."""
    registry = Registry.build(models={"m": Path(folder)}, device="cpu", include_embedded=False)
    loader = FileLoader(allow_failed_checks=True)
    model = loader.load_model(registry.model_entry("m"), lambda _: None)
    before = resident_bytes()
    forget_peak()
    entry = registry.autoencoder_entry("m/clt", "m")
    started = time.process_time()
    context = loader.load_autoencoders(entry, model, lambda _: None)
    transcoders = require(context.transcoders)
    loading, peak_of_loading = time.process_time() - started, resident_bytes("VmHWM")
    forget_peak()
    started = time.process_time()
    question = GraphQuestion(token_ids=tuple(range(100, 100 + _TOKENS)), max_feature_nodes=_NODES)
    steps = list(build(question, model.decoder, Sources(transcoders)))
    assert steps[-1].done == _NODES
    using, peak_of_using = time.process_time() - started, resident_bytes("VmHWM")
    parts = (resident_bytes("RssAnon"), resident_bytes("RssFile"))
    n_active = len(steps[-1].candidates.active)
    counted = (transcoders.file_bytes, transcoders.parameter_bytes)
    runs = [_run(model.decoder, context, gradients) for gradients in ((), LATENTS)]
    answer.send((before, peak_of_loading, peak_of_using, *parts, loading, using, n_active, *counted, runs))


def _run(decoder: Decoder, context: AutoencoderContext, gradients: Sequence[Site]) -> tuple[int, float]:
    """A run with it spliced in, with *gradients* of a logit: the peak of resident memory, and seconds."""
    forget_peak()
    started = time.process_time()
    splices = {splice.site: splice for splice in splices_of_set(context.input, context.coders)}
    taps = Taps(gradients=gradients, splices=splices)
    tokens = torch.arange(100, 100 + _TOKENS).unsqueeze(0)
    taps.gradients(require(decoder.forward(tokens, taps, logits_at=torch.tensor([_TOKENS - 1])))[0, 0, 5])
    return resident_bytes("VmHWM"), time.process_time() - started


def report() -> Iterator[str]:
    """All of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = write_gpt2_small(Path(name) / "m", torch.float32)
        place = folder / "transcoders" / "clt"
        n_features = write_cross_layer(place, _BYTES)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_used, args=(str(folder), theirs))
        process.start()
        theirs.close()
        before, loading, using, anonymous, mapped, load_s, use_s, n_active, in_files, in_memory, runs = ours.recv()
        process.join()
        yield (
            f"a cross-layer transcoder of {GPT2_SMALL.n_layers} layers and {n_features} features of a layer:"
            f" {in_files / _GIB:.2f} GiB in files, {in_memory / _GIB:.3f} GiB counted as memory"
        )
        yield f"  resident before, with the model: {before / _GIB:.2f} GiB"
        yield f"  at most while it was loaded, checked and digested: {loading / _GIB:.2f} GiB, {load_s:.1f} s of CPU"
        yield (
            f"  at most while a graph of {_TOKENS} tokens, {n_active} active features and {_NODES} feature nodes was"
            f" built: {using / _GIB:.2f} GiB, {use_s:.1f} s of CPU; then {anonymous / _GIB:.2f} GiB anonymous,"
            f" {mapped / _GIB:.2f} GiB of files"
        )
        for what, (peak, seconds) in zip(("", ", with gradients at all latents"), runs, strict=True):
            yield (
                f"  at most in a run of as many tokens with it spliced in{what}: {peak / _GIB:.2f} GiB,"
                f" {seconds:.1f} s of CPU"
            )
        yield from _reading(place / "W_dec_0.safetensors", place / "W_enc_0.safetensors", n_features)


def _reading(decoder: Path, encoder: Path, n_features: int) -> Iterator[str]:
    """Rows and blocks beside a mapping of the same file, both in the system's cache."""
    d, n_layers = GPT2_SMALL.d_model, GPT2_SMALL.n_layers
    features = torch.randperm(n_features, generator=torch.Generator().manual_seed(0))[:_ROWS].sort().values
    rows = StoredMatrix(file=SafetensorsFile.open(File.at(decoder)).held(), name="W_dec_0", n_columns=d)
    blocks = StoredMatrix(file=SafetensorsFile.open(File.at(encoder)).held(), name="W_enc_0", n_columns=d)
    x = torch.randn(_TOKENS, d)
    with safe_open(decoder, framework="pt") as mapped_decoder, safe_open(encoder, framework="pt") as mapped_encoder:
        work = {
            "rows": lambda: rows.rows(features * n_layers + 3),
            "mapped rows": lambda: mapped_decoder.get_slice("W_dec_0")[features.tolist(), 3:4, :],
            "blocks": lambda: [x @ block.t() for _, block in blocks.blocks()],
            "mapped whole": lambda: x @ mapped_encoder.get_tensor("W_enc_0").t(),
        }
        rounds = interleaved(work, _ROUNDS)
    yield f"reading, in the system's cache ({conditions(_ROUNDS)}, {os.cpu_count()} CPUs)"
    yield (
        f"  {_ROWS} rows of a decoder: {rounds.milliseconds('rows'):.1f} ms,"
        f" x {rounds.over('rows', 'mapped rows')} of what safetensors takes for the same rows of a mapping"
    )
    yield (
        f"  pre-activations of {_TOKENS} tokens, all features of a layer: {rounds.milliseconds('blocks'):.1f} ms,"
        f" x {rounds.over('blocks', 'mapped whole')} of a product with the mapped encoder"
    )


if __name__ == "__main__":
    for line in report():
        print(line, flush=True)

"""Grids of patched runs, beside full forward passes of equal batches, and through a server beside in process."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from benchmarks import subjects
from dst_grpc.causal.patching import BATCH_TOKENS, Cell, PatchedRuns, record_pairs
from dst_grpc.client import AsyncClient, make_patch_request
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.contexts.registry import Registry
from dst_grpc.pipeline.patch_answer import PatchAnswer
from dst_grpc.pipeline.patch_planner import plan_patch
from dst_grpc.pipeline.run import run
from dst_grpc.rpc.server import running_server
from dst_grpc.rpc.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.domain.patch import PatchRequest
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.pipeline.patch_planner import PatchPlan

N_TOKENS = 16
ROUNDS = 3
NODES = ("resid_pre", "attn_out", "mlp_out")
SERVED_LAYERS, SERVED_TOKENS = 6, 4096
MOST_PASSES, MOST_OVER = 0.45, 1.15


def prompts(vocab_size: int, *, differ_from: int) -> tuple[list[int], list[int]]:
    """Two prompts of random tokens that are the same before one."""
    generator = torch.Generator().manual_seed(0)
    base, source = torch.randint(0, vocab_size, (2, N_TOKENS), generator=generator).tolist()
    return base, [*base[:differ_from], *source[differ_from:]]


def plan_of(decoder: Decoder, *, differ_from: int) -> PatchPlan:
    """The grid layer x position x {resid, attn, mlp} of two prompts."""
    clean, corrupt = prompts(decoder.config.vocab_size, differ_from=differ_from)
    request = make_patch_request(clean, corrupt, target=[5], distractor=[7], nodes=NODES)
    return plan_patch(request, subjects.one_model(decoder.config))


def grid(decoder: Decoder, asked: PatchPlan) -> int:
    """Run the grid, its recorded runs included; returns how many cells it has."""
    (pair,) = asked.pairs
    runs = record_pairs([pair.base], [pair.source], decoder, asked.sites)
    # Every cell is run, also those that are equal to one of another grid.
    cells = [Cell(0, (change,)) for nodes in asked.nodes for change in nodes.changes]
    for _places, read in PatchedRuns(decoder, runs).batches(cells):
        assert torch.isfinite(read.flat).all()
    return len(cells)


def full_row(decoder: Decoder) -> float:
    """CPU seconds of a row of a batch of full forward passes, as many tokens as a pass of cells, last logits only."""
    rows = BATCH_TOKENS // N_TOKENS
    tokens = torch.randint(0, decoder.config.vocab_size, (rows, N_TOKENS), generator=torch.Generator().manual_seed(1))
    started = time.process_time()
    decoder.forward(tokens, logits_at=torch.full((rows,), N_TOKENS - 1))
    return (time.process_time() - started) / rows


def report() -> Iterator[str]:
    """Cost of a cell in full passes, in the shape of SmolLM2; and of the server over the same in process."""
    decoder = subjects.smollm2_shape()
    n_threads = torch.get_num_threads()
    yield (
        f"patching, SmolLM2-135M shape, grid layer x position x {{{', '.join(NODES)}}}, {N_TOKENS} tokens, CPU time,"
        f" {n_threads} threads, {ROUNDS} rounds"
    )
    for differ_from in (0, N_TOKENS // 2):
        asked = plan_of(decoder, differ_from=differ_from)
        n_cells = grid(decoder, asked)
        ratios = []
        for _ in range(ROUNDS):
            before = full_row(decoder)
            started = time.process_time()
            grid(decoder, asked)
            seconds = (time.process_time() - started) / n_cells
            ratios.append(seconds / statistics.mean([before, full_row(decoder)]))
        limit = f" (at most {MOST_PASSES})" if differ_from == 0 else ""
        spread = f"from {min(ratios):.3f} to {max(ratios):.3f}"
        yield (
            f"  prompts that differ from token {differ_from:2} on: {n_cells} cells, a cell is"
            f" x {statistics.median(ratios):.3f} of a full pass's row{limit}, {spread}"
        )
    yield asyncio.run(_served())


def write_model(folder: Path) -> None:
    """A model of SmolLM2's shape, with fewer layers and tokens, in Hugging Face's layout."""
    c = replace(subjects.SMOLLM2, n_layers=SERVED_LAYERS, vocab_size=SERVED_TOKENS)
    config = {
        "model_type": "llama",
        "hidden_size": c.d_model,
        "intermediate_size": c.d_mlp,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_key_value_heads,
        "vocab_size": c.vocab_size,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    d, q, kv = c.d_model, c.n_heads * c.d_head, c.n_key_value_heads * c.d_head
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c.vocab_size, d), "model.norm.weight": (d,)}
    own: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (q, d),
        "self_attn.k_proj": (kv, d),
        "self_attn.v_proj": (kv, d),
    }
    own |= {"self_attn.o_proj": (d, q), "mlp.gate_proj": (c.d_mlp, d), "mlp.up_proj": (c.d_mlp, d)}
    own |= {"mlp.down_proj": (d, c.d_mlp), "input_layernorm": (d,), "post_attention_layernorm": (d,)}
    for layer in range(c.n_layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    generator = torch.Generator().manual_seed(0)
    weights = {n: torch.randn(s, generator=generator) * 0.02 + (1.0 if len(s) == 1 else 0) for n, s in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    model = {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(c.vocab_size)}, "unk_token": "w0"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))


def in_process(request: PatchRequest, registry: Registry, model: ModelContext) -> None:
    """The whole answer without a server, its runs planned anew."""
    asked = plan_patch(request, registry)
    answer = PatchAnswer(asked, run([asked.plan], model.decoder, {}), model, {})
    for _step in answer.steps():
        pass
    answer.summary()


async def _served() -> str:
    """CPU time of a request through a server, the client's included, over that of the same answer in process."""
    clean, corrupt = prompts(SERVED_TOKENS, differ_from=0)
    request = make_patch_request(clean, corrupt, target=[5], distractor=[7], nodes=NODES)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        models = {"served": Path(folder)}
        registry = Registry.build(models=models, device="cpu", default_model="served")
        model = FileLoader().load_model(registry.model_entry("served"), lambda _: None)
        settings = Settings(port=0, models=models, default_model="served", log_level="WARNING")
        async with running_server(settings) as server, AsyncClient(server.address) as client:
            await client.patch_request(request)
            ratios = []
            for _ in range(2 * ROUNDS):
                started = time.process_time()
                await client.patch_request(request)
                served = time.process_time() - started
                started = time.process_time()
                await asyncio.to_thread(in_process, request, registry, model)
                ratios.append(served / (time.process_time() - started))
    return (
        f"  through the server over in process, CPU time with the client's, {SERVED_LAYERS} such layers:"
        f" x {statistics.median(ratios):.3f} (at most {MOST_OVER}), from {min(ratios):.3f} to {max(ratios):.3f}"
    )

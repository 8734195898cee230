"""One attribution graph of circuit-tracer (https://github.com/safety-research/circuit-tracer), measured.

    python -m benchmarks.graphs_of_circuit_tracer TOKENS MOST_FEATURES THREADS ARRAYS.npz

In an environment of its own with circuit-tracer 0.5.0, from the root of the repository. Writes the graph to ARRAYS.npz,
and prints what it took as JSON. `benchmarks.graphs` runs it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from types import SimpleNamespace

import numpy as np
import torch
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
from transformer_lens import HookedTransformerConfig

from benchmarks import graph_weights as w
from benchmarks.measure import forget_peak, resident_bytes


def model() -> TransformerLensReplacementModel:
    """The model with its transcoders."""
    config = HookedTransformerConfig(
        d_model=w.WIDTH,
        n_layers=w.LAYERS,
        n_heads=w.HEADS,
        d_head=w.CHANNELS,
        d_mlp=w.NEURONS,
        d_vocab=w.VOCABULARY,
        n_ctx=1024,
        act_fn="gelu_new",
        normalization_type="LN",
        device="cpu",
        dtype=torch.float32,
        model_name="gpt2",
    )
    transcoders = {
        layer: SingleLayerTranscoder(
            w.WIDTH, w.FEATURES, torch.nn.functional.relu, layer, device=torch.device("cpu"), dtype=torch.float32
        )
        for layer in range(w.LAYERS)
    }
    found = TransformerLensReplacementModel.from_config(
        config, TranscoderSet(transcoders, "ln2.hook_normalized", "hook_mlp_out", scan="random")
    )
    # Those of blocks that the replacement model wraps have longer names.
    parameters = {re.sub(r"old_\w+\.", "", key): one for key, one in found.named_parameters()}
    heads = {"query": "W_Q", "key": "W_K", "value": "W_V"}
    for name, layer, array in w.arrays():
        values, block = torch.from_numpy(array), f"blocks.{layer}."
        if name in heads:
            values = values.view(w.WIDTH, w.HEADS, w.CHANNELS).transpose(0, 1)
        elif name == "attention_out":
            values = values.view(w.HEADS, w.CHANNELS, w.WIDTH)
        own = {
            "embedding": "embed.W_E",
            "positions": "pos_embed.W_pos",
            "unembedding": "unembed.W_U",
            "attention_out": f"{block}attn.W_O",
            "mlp_in": f"{block}mlp.W_in",
            "mlp_out": f"{block}mlp.W_out",
        } | {key: f"{block}attn.{value}" for key, value in heads.items()}
        if name in own:
            parameters[own[name]].data.copy_(values)
        else:
            target = {"encoder": "W_enc", "encoder_bias": "b_enc", "decoder": "W_dec"}[name]
            getattr(transcoders[layer if layer is not None else 0], target).data.copy_(values)
    found.tokenizer = SimpleNamespace(
        vocab_size=w.VOCABULARY,
        padding_side="right",
        bos_token_id=1,
        pad_token_id=1,
        eos_token_id=1,
        all_special_ids=[1],
        decode=str,
    )
    return found


def main() -> None:
    """Build it, and tell what it took."""
    n_tokens, most, threads = map(int, sys.argv[1:4])
    torch.set_num_threads(threads)
    built = model()
    tokens = torch.tensor(w.prompt(n_tokens))
    with torch.no_grad():
        built(tokens[None])
    before = resident_bytes()
    forget_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    graph = attribute(tokens, built, max_feature_nodes=most, batch_size=w.BATCH_SIZE)
    took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    peak = resident_bytes("VmHWM") - before
    np.savez(
        sys.argv[4],
        active=graph.active_features.numpy(),
        selected=graph.selected_features.numpy(),
        adjacency=graph.adjacency_matrix.float().numpy(),
    )
    print(json.dumps(took | {"peak": peak}), flush=True)
    os._exit(0)  # its model fails as it is taken down with the interpreter


if __name__ == "__main__":
    main()

"""The embedded transcoders as circuit-tracer's own loader reads them: the same features, as active as here.

Of circuit-tracer only its code is installed, in .venv-circuit-tracer, and runs with the libraries of these tests.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.contexts.loading import FileLoader
from dst_grpc.contexts.registry import Registry
from dst_grpc.embedded import MODEL_FOLDER, TRANSCODERS_FOLDER
from scripts.embedded import evaluate, train_model, train_transcoders, transcoder_figures
from tests.e2e.conftest import environment_with

ENVIRONMENT = Path(__file__).parents[2] / ".venv-circuit-tracer"
PLACE = TRANSCODERS_FOLDER / train_transcoders.NAME
LOAD = """
import sys
import numpy as np
import torch
from circuit_tracer.transcoder import load_transcoder_set

arrays, found, *paths = sys.argv[1:]
hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
ours = load_transcoder_set(dict(enumerate(paths)), scan="", **hooks)
read = torch.from_numpy(np.load(arrays))
with torch.no_grad():
    parts = ours.compute_attribution_components(read)
np.savez(found, activations=parts["activation_matrix"].to_dense().numpy(), writes=parts["reconstruction"].numpy())
"""
"""Writes the activations and writes that circuit-tracer computes of what MLPs read."""


def test_circuit_tracer_reads_the_embedded_transcoders_as_we_do(tmp_path: Path) -> None:
    code = next(ENVIRONMENT.glob("lib/python*/site-packages"), None)
    if code is None:
        pytest.fail("circuit-tracer is not here: `make real` installs it")
    model, tokenizer = train_model.load(MODEL_FOLDER)
    tokens = transcoder_figures.begun(tokenizer, evaluate.FAMOUS_PROMPT.prompt)
    read: list[torch.Tensor] = []
    blocks: Any = model.transformer.h
    for block in blocks:
        block.mlp.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0][0]))
    with torch.inference_mode():
        model(torch.tensor([tokens]))

    arrays, found = tmp_path / "read.npy", tmp_path / "found.npz"
    np.save(arrays, torch.stack(read).numpy())
    paths = [str(train_transcoders.path_of(PLACE, layer)) for layer in range(len(read))]
    command = [sys.executable, "-c", LOAD, str(arrays), str(found), *paths]
    subprocess.run(command, check=True, env=environment_with(PYTHONPATH=str(code)))
    theirs = np.load(found)

    loader, entry = FileLoader(), Registry.build().autoencoder_entry("embedded/mlp_transcoders", "embedded")
    own_model = loader.load_model(entry.model, lambda _: None)
    loaded = loader.load_autoencoders(entry, own_model, lambda _: None).transcoders
    assert loaded is not None
    nodes = transcoder_figures.graph_of(tokens, own_model.decoder, loaded).nodes
    ours = np.zeros_like(theirs["activations"])
    ours[tuple(nodes.active.T)] = nodes.activations
    assert np.count_nonzero(ours) > 500
    # A feature may be just above its threshold here and just below it there: that of one set is the least that is.
    is_in_both = (ours != 0) == (theirs["activations"] != 0)
    least = np.min(np.where(ours, ours, np.inf), axis=(1, 2))[:, None, None]
    assert (is_in_both | (ours + theirs["activations"] < least * (1 + 1e-4))).all()
    np.testing.assert_allclose(ours[is_in_both], theirs["activations"][is_in_both], rtol=1e-4, atol=1e-4)
    x = torch.stack(read)[0, 1:]
    writes = loaded.reconstruction(0, {0: loaded.active(0, x)}, x)
    np.testing.assert_allclose(writes, theirs["writes"][0, 1:], rtol=1e-3, atol=1e-4)

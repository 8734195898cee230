"""The golden data of attribution graphs, as `golden_graphs/README.md` describes it."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load

from dst_grpc.contexts import ModelContext, Registry
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.domain.graph_node_table import GraphNodeKind
from dst_grpc.engine.transcoders import Transcoders
from dst_grpc.graphs.nodes import AttributionGraph, GraphNodes, GraphTargets

FOLDER = Path(__file__).parent / "golden_graphs"
THRESHOLDS = ((0.8, 0.98), (0.5, 0.9))
"""Node and edge thresholds that the cases are pruned at."""


@dataclass(frozen=True, eq=False)
class GoldenGraph:
    """A graph as circuit-tracer computed it."""

    name: str
    facts: dict[str, Any]
    """`case.json`."""
    tensors: dict[str, np.ndarray[Any, Any]]
    """`graph.safetensors`."""
    viewer: dict[str, Any]
    """`viewer.json`."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of circuit-tracer's `attribute`."""
        found: dict[str, Any] = self.facts["arguments"]
        return found

    @property
    def graph(self) -> AttributionGraph:
        """The graph; its targets have no vectors."""
        one, n_targets = self.tensors, len(self.tensors["logit_token_ids"])
        targets = GraphTargets(
            token_ids=one["logit_token_ids"],
            names=("",) * n_targets,
            weights=one["logit_probabilities"],
            vectors=np.zeros((n_targets, 0), dtype=np.float32),
        )
        nodes = GraphNodes(
            token_ids=one["tokens"],
            n_layers=3,
            active=one["active_features"],
            activations=one["activation_values"],
            kinds=np.full(len(one["active_features"]), GraphNodeKind.FEATURE.number),
            errors=tuple((GraphNodeKind.ERROR, layer) for layer in range(3)),
            selected=one["selected_features"],
            targets=targets,
        )
        return AttributionGraph.of_matrix(nodes, one["adjacency_matrix"])

    def pruned(self, what: str, thresholds: tuple[float, float]) -> np.ndarray[Any, Any]:
        """`node_mask`, `edge_mask` or `cumulative_scores`, at node and edge thresholds."""
        return self.tensors["{}_{}_{}".format(what, *thresholds)]


def model_folder(model: str) -> Path:
    """The folder of a model."""
    return FOLDER / "models" / model


@cache
def _cases() -> dict[str, GoldenGraph]:
    files: dict[str, dict[str, bytes]] = {}
    with tarfile.open(FOLDER / "cases.tar.xz") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                case, _, file = member.name.partition("/")
                files.setdefault(case, {})[file] = content.read()
    return {
        name: GoldenGraph(
            name, json.loads(one["case.json"]), load(one["graph.safetensors"]), json.loads(one["viewer.json"])
        )
        for name, one in files.items()
    }


def golden_graph(name: str) -> GoldenGraph:
    """A case, by its name."""
    return _cases()[name]


@cache
def _registry(model: str) -> Registry:
    return Registry.build(models={"m": model_folder(model)}, device="cpu", include_embedded=False)


@cache
def golden_model(model: str) -> ModelContext:
    """A model, loaded."""
    return FileLoader().load_model(_registry(model).model_entry("m"), lambda _: None)


@cache
def golden_transcoders(model: str, name: str) -> Transcoders:
    """A set of transcoders of a model, loaded. They are random, and explain nothing."""
    entry = _registry(model).autoencoder_entry(f"m/{name}", "m")
    context = FileLoader(allow_failed_checks=True).load_autoencoders(entry, golden_model(model), lambda _: None)
    assert context.transcoders is not None
    return context.transcoders


NAMES = tuple(sorted(_cases()))
"""The cases."""

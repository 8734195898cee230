"""Circuits: what one costs beside a bare forward pass, and which one SmolLM2 uses for indirect objects.

    python -m benchmarks.circuit ROWS.csv [PAIRS]

The second part asks a server about 100 rows, or so many, of a file with the columns `clean` and `corrupted`, prompts of
the kind "Then, Aaron and Amber were working at the house. Aaron decided to give a drink to", as the EAP-IG library has
them (https://github.com/hannamw/EAP-IG). Cut edges carry the mean, by position, over 100 other rows: those of equal
length, or all of them. The third patches every head and MLP, and says how well scores agree with that.
"""

from __future__ import annotations

import csv
import re
import sys
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks import subjects
from benchmarks.measure import conditions, interleaved
from dst_grpc.causal.circuit_runs import CutRuns
from dst_grpc.causal.circuits import pruned, top_edges
from dst_grpc.causal.cut_edges import CutRow
from dst_grpc.causal.graph import Graph
from dst_grpc.causal.verification import correlation
from dst_grpc.causal.writes import Alternative, record
from dst_grpc.client import Client, make_pair
from scripts.real_model.__main__ import NAME, ready_folder
from scripts.serving import server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dst_grpc.client import CircuitAnswer, Prompt, PromptPair
    from dst_grpc.engine.decoder import Decoder

N_TOKENS = 16
ROWS = 10
"""Rows of one pass."""
N_PAIRS = 100
FRACTIONS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
N_PATCHED = 10
"""Pairs whose heads and MLPs are patched."""
METHODS: dict[str, dict[str, object]] = {
    "AtP": {},
    "RelP": {"rule": "relp"},
    "RelP, patterns frozen": {"rule": "relp_frozen_patterns"},
    "GIM": {"rule": "gim"},
    "both runs": {"method": "clean_corrupt"},
    "EAP-IG, 5 steps": {"method": "integrated_inputs"},
}
_ROUNDS = 5
_SUBJECT = re.compile(r"[.,] ([A-Z][a-z]+) (?!and )")
_NAMES = re.compile(r"([A-Z][a-z]+) and ([A-Z][a-z]+) ")


def report() -> Iterator[str]:
    """Time of rows with cut edges, over that of rows of a bare forward pass, in the shape of GPT-2 small."""
    decoder = subjects.gpt2_small()
    config = decoder.config
    graph = Graph.of(config.dimensions, config.architecture)
    generator = torch.Generator().manual_seed(0)
    clean, corrupt = torch.randint(0, config.vocab_size, (2, N_TOKENS), generator=generator).tolist()
    base = record([clean], decoder)
    alternative = Alternative.of(record([corrupt], decoder).writes, decoder, N_TOKENS)
    runs = CutRuns(decoder, graph, base, alternative)
    scores = np.random.default_rng(0).standard_normal(graph.mask.shape) ** 2
    middle = graph.first_reader_of(config.n_layers // 2)
    rows = {
        f"circuit of {share:.1%} of the edges": [_circuit(graph, scores, share)] * ROWS
        for share in (0.01, 0.1, 0.5, 0.99)
    }
    rows["edge into the middle layer"] = [_edge(source, middle) for source in range(ROWS)]
    rows["edge into the logits"] = [_edge(source, len(graph.readers) - 1) for source in range(ROWS)]
    work: dict[str, Callable[[], object]] = {
        "bare": lambda: decoder.forward(base.tokens.expand(ROWS, -1), logits_at=base.last.expand(ROWS))
    }
    work |= {name: _running(runs, each) for name, each in rows.items()}
    found = interleaved(work, _ROUNDS)
    yield (
        f"circuits, GPT-2-small shape, {graph.n_edges} edges, {N_TOKENS} tokens: time of {ROWS} rows with cut edges"
        f" over that of as many bare forward passes with the logits of the last token, {conditions(_ROUNDS)}"
    )
    for name in rows:
        yield f"  {name:<31} x {found.over(name, 'bare')}"


def _running(runs: CutRuns, rows: Sequence[CutRow]) -> Callable[[], object]:
    return lambda: runs.logits(rows)


def _circuit(graph: Graph, scores: np.ndarray, share: float) -> CutRow:
    return CutRow.of_circuit(graph, pruned(graph, top_edges(graph, scores, int(share * graph.n_edges))), 0)


def _edge(source: int, reader: int) -> CutRow:
    return CutRow.of_edges((np.array([source]), np.array([reader])), 0)


def rows_of(path: Path, folder: Path) -> Iterator[PromptPair]:
    """The rows whose prompts are of equal lengths, and whose names are one token each, for the model in *folder*."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def n_tokens(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            clean, corrupted = row["clean"], row["corrupted"]
            names, subject = _NAMES.search(clean), _SUBJECT.findall(clean)
            if names is None or not subject:
                continue
            wrong = f" {subject[-1]}"
            right = next(f" {name}" for name in names.groups() if name != subject[-1])
            if n_tokens(clean) == n_tokens(corrupted) and n_tokens(right) == n_tokens(wrong) == 1:
                yield make_pair(clean, corrupted, target=right, distractor=wrong)


def report_of_rows(path: Path, n_pairs: int = N_PAIRS) -> Iterator[str]:
    """Curves of SmolLM2 on the rows of a file: by EAP-IG, by the size of changes, and at random."""
    folder = ready_folder()
    found = list(islice(rows_of(path, folder), 2 * N_PAIRS))
    pairs, others = found[:n_pairs], found[N_PAIRS:]
    reference = [pair.corrupt for pair in others if pair.corrupt is not None]
    with server("--model", f"{NAME}={folder}") as address, Client(address) as client:
        for alternative in ("mean_by_length", "mean_by_position"):
            yield f"SmolLM2, {len(pairs)} pairs, {alternative} over {len(reference)} other rows; pruned, ratio of means"
            yield from _curves(client, pairs, alternative, reference)
        yield from _nodes(client, pairs[:N_PATCHED])


def _curves(
    client: Client, pairs: Sequence[PromptPair], alternative: str, reference: Sequence[Prompt]
) -> Iterator[str]:
    def curve(**arguments: object) -> CircuitAnswer:
        return client.circuit(
            pairs=pairs,
            alternative=alternative,
            reference=reference,
            model=NAME,
            fractions=FRACTIONS,
            **arguments,  # type: ignore[arg-type]
        )

    answer = curve(with_scores=True, selection="signed")
    yield f"whole {answer.whole:.3f}, empty {answer.empty:.3f}, {answer.header.edge_count} edges"
    yield from _lines("EAP-IG, signed", answer)
    yield from _lines("EAP-IG, magnitude", curve(scores=answer.scores))
    yield from _lines("size of changes", curve(scores=_sizes(subjects.smollm2(), pairs, answer)))
    generator = np.random.default_rng(0)
    yield from _lines("random", curve(scores=generator.random((len(answer.sources), len(answer.readers)))))


def _nodes(client: Client, pairs: Sequence[PromptPair]) -> Iterator[str]:
    """The correlation of scores of heads and MLPs with what patching each of them changes, over all positions."""
    kinds = ("head", "mlp_out")
    patched = client.patch(pairs=pairs, nodes=kinds, all_positions=True, model=NAME)
    base = np.mean([pair.metric for pair in patched.pairs])
    exact = {kind: (patched[kind].metric - base).ravel() for kind in kinds}
    yield f"SmolLM2, {len(pairs)} pairs: Pearson's (Spearman's) correlation with patching each head, each MLP"
    for name, how in METHODS.items():
        scores = client.attribute(pairs=pairs, nodes=kinds, model=NAME, **how)  # type: ignore[arg-type]
        found = [f"{_correlations(scores[kind].values.ravel(), exact[kind])} of {kind}s" for kind in kinds]
        yield f"  {name:<24}{', '.join(found)}"


def _correlations(one: np.ndarray, other: np.ndarray) -> str:
    ranks = [np.argsort(np.argsort(x)).astype(np.float64) for x in (one, other)]
    return f"{correlation(one, other):.2f} ({correlation(*ranks):.2f})"


def _sizes(decoder: Decoder, pairs: Sequence[PromptPair], answer: CircuitAnswer) -> np.ndarray:
    """For each edge the size of the change of its source between both prompts, the mean over pairs."""
    folder = ready_folder()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    sizes = np.zeros(len(answer.sources))
    for pair in pairs:
        texts = [prompt.text for prompt in (pair.clean, pair.corrupt) if prompt is not None]
        writes = record([tokenizer.encode(text or "").ids for text in texts], decoder).writes
        changes = [writes.embedding]
        for layer, (heads, mlp) in enumerate(zip(writes.heads, writes.mlps, strict=True)):
            weights = decoder.layers[layer].attn_out
            changes += list(torch.einsum("pthc,hcd->hptd", heads, weights))
            changes.append(mlp)
        sizes += np.array([float((one[1] - one[0]).norm()) for one in changes])
    return np.repeat(sizes[:, None] / len(pairs), len(answer.readers), axis=1)


def _lines(name: str, answer: CircuitAnswer) -> Iterator[str]:
    curve = answer.curve
    areas = (
        "" if curve is None or curve.cpr is None or curve.cmd is None else f"CPR {curve.cpr:.3f}, CMD {curve.cmd:.3f}"
    )
    yield f"{name}: {areas}"
    for one in answer.evaluations[2:]:
        faithfulness = float("nan") if one.faithfulness is None else one.faithfulness
        yield f"  {one.fraction or 0:8.2%} {one.edge_count:7d} edges {one.node_count:4d} nodes {faithfulness:8.3f}"


if __name__ == "__main__":
    arguments = sys.argv[1:]
    of_rows = report_of_rows(Path(arguments[0]), *map(int, arguments[1:])) if arguments else ()
    for report_line in chain(report(), of_rows):
        print(report_line, flush=True)

"""Runs benchmarks and prints their ratios: `python -m benchmarks [deriving] [explain] ...`, all without a name."""

from __future__ import annotations

import argparse

from benchmarks import (
    attribution,
    cancelling,
    circuit,
    contexts,
    deriving,
    explain,
    fairness,
    gradient_batches,
    graph_answers,
    graphs,
    handover,
    loop_lag,
    memory_estimates,
    open_streams,
    patching,
    scaling,
    serving,
    slow_readers,
    tracing,
    transcoders,
)

REPORTS = {
    "deriving": deriving.report,
    "explain": explain.report,
    "attribution": attribution.report,
    "patching": patching.report,
    "serving": serving.report,
    "handover": handover.report,
    "gradient_batches": gradient_batches.report,
    "graphs": graphs.report,
    "contexts": contexts.report,
    "fairness": fairness.report,
    "cancelling": cancelling.report,
    "circuit": circuit.report,
    "graph_answers": graph_answers.report,
    "loop_lag": loop_lag.report,
    "memory_estimates": memory_estimates.report,
    "slow_readers": slow_readers.report,
    "tracing": tracing.report,
    "open_streams": open_streams.report,
    "scaling": scaling.report,
    "transcoders": transcoders.report,
    "smollm2": deriving.report_of_smollm2,
}


def main() -> None:
    """Print the reports of the benchmarks named on the command line, or of all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Prints ratios, each of one run.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of: {', '.join(REPORTS)}; all without one")
    names = parser.parse_args().names
    if unknown := set(names) - REPORTS.keys():
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; these are: {', '.join(REPORTS)}")
    for name in names or REPORTS:
        for line in REPORTS[name]():
            print(line, flush=True)


if __name__ == "__main__":
    main()

"""Runs the benchmarks and prints their ratios: `python -m benchmarks [deriving] [explain] [serving] ...`."""

from __future__ import annotations

import sys

from benchmarks import (
    attribution,
    cancelling,
    circuit,
    contexts,
    deriving,
    explain,
    fairness,
    gradient_batches,
    handover,
    loop_lag,
    memory_estimates,
    patching,
    serving,
    slow_readers,
)

REPORTS = {
    "deriving": deriving.report,
    "explain": explain.report,
    "attribution": attribution.report,
    "patching": patching.report,
    "serving": serving.report,
    "handover": handover.report,
    "gradient_batches": gradient_batches.report,
    "contexts": contexts.report,
    "fairness": fairness.report,
    "cancelling": cancelling.report,
    "circuit": circuit.report,
    "loop_lag": loop_lag.report,
    "memory_estimates": memory_estimates.report,
    "slow_readers": slow_readers.report,
    "smollm2": deriving.report_of_smollm2,
}


def main(names: list[str]) -> None:
    """Print the reports of *names*, or of all."""
    for name in names or REPORTS:
        for line in REPORTS[name]():
            print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

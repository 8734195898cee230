"""Rules about the runs that a request names for others to read: names, circles, depth."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from dst_grpc.domain.actions import UNCHANGED
from dst_grpc.domain.components import PassType
from dst_grpc.domain.enum_names import json_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dst_grpc.domain.interventions import Intervention
    from dst_grpc.domain.origins import LossFnConfig
    from dst_grpc.domain.requests import SourceRun
    from dst_grpc.errors import Violations

MAX_SOURCE_RUNS = 1000
MAX_READ_DEPTH = 8
"""How many runs may read one another in a row."""
MAX_RUNS_READ = 10_000
"""Most runs that a run may read, those that these read included, each as often as it is read."""


def check_runs_read(
    problems: Violations,
    source_runs: Sequence[SourceRun],
    interventions: Sequence[Intervention],
    loss: LossFnConfig | None = None,
) -> None:
    """Note names of runs that are unknown or taken, and runs that read one another in a circle or too deeply.

    Args:
        problems: collects what is wrong, by paths of the request.
        source_runs: the request's runs that others read.
        interventions: the request's own interventions.
        loss: the request's loss.
    """
    of_loss = {} if loss is None else {f"loss_fn_config.{field}": name for field, name in loss.runs.items()}
    if not source_runs and not of_loss and not any(one.action.readings for one in interventions):
        return
    count = len(source_runs)
    problems.check(count <= MAX_SOURCE_RUNS, "source_runs", f"must hold at most {MAX_SOURCE_RUNS} runs, not {count}")
    own = {**_names(interventions, "interventions"), **of_loss}
    reads: dict[str, Mapping[str, str]] = {UNCHANGED: {}}
    for i, source in enumerate(source_runs):
        if source.name in reads:
            problems.add(f"source_runs[{i}].name", f"{source.name!r} is taken already")
        reads.setdefault(source.name, _names(source.interventions, f"source_runs[{i}].interventions"))
        for j, one in enumerate(source.interventions):
            problems.check(
                one.at.pass_type is PassType.FORWARD,
                f"source_runs[{i}].interventions[{j}].at.pass_type",
                f"must be {json_name(PassType.FORWARD)}: no gradient flows into a run that is read",
            )
    is_known = True
    for paths in (own, *reads.values()):
        for path, name in paths.items():
            if name not in reads:
                is_known = False
                problems.add(path, f"no source run is called {name!r}; {_nearest(name, reads)}")
    if is_known:
        _check_depth(problems, own, reads)


def _check_depth(problems: Violations, own: Mapping[str, str], reads: Mapping[str, Mapping[str, str]]) -> None:
    """Note circles and depths beyond the bounds."""
    counts = {UNCHANGED: 0}
    for _ in range(MAX_READ_DEPTH):  # in each round, the runs of which all that they read was known before
        counts |= {
            name: sum(counts[read] + 1 for read in paths.values())
            for name, paths in reads.items()
            if name not in counts and counts.keys() >= set(paths.values())
        }
    for name in (one for one in reads if one not in counts):
        path = next((path for path, read in reads[name].items() if read not in counts), next(iter(reads[name])))
        description = f"{name!r} reads runs that read one another in a circle, or more than {MAX_READ_DEPTH} in a row"
        problems.add(path, description)
    if reads.keys() <= counts.keys():
        total = sum(counts[name] + 1 for name in own.values())
        description = f"reads {total} runs, those that these read included; at most {MAX_RUNS_READ} may be read"
        problems.check(total <= MAX_RUNS_READ, next(iter(own), ""), description)


def _names(interventions: Sequence[Intervention], path: str) -> dict[str, str]:
    """Names of the runs that *interventions* read, by the path of the field that names them."""
    return {
        f"{path}[{i}].{reading.path}".rstrip("."): reading.run
        for i, one in enumerate(interventions)
        for reading in one.action.readings
    }


def _nearest(name: str, known: Mapping[str, object]) -> str:
    found = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or list(known)[:3]
    return f"there are {', '.join(map(repr, found))}"

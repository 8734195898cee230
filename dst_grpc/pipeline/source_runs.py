"""Plans the source runs of a request: those that its interventions read, and those that these read in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.interventions import UNCHANGED
from dst_grpc.pipeline.interventions import given_by, planned_interventions
from dst_grpc.pipeline.runs import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dst_grpc.contexts.entries import AutoencoderEntry
    from dst_grpc.domain.interventions import Intervention
    from dst_grpc.domain.requests import Prompt, SourceRun
    from dst_grpc.pipeline.directions import Directions
    from dst_grpc.pipeline.findings import Findings
    from dst_grpc.pipeline.sizes import Sizes

Sources = tuple[tuple[str, Run], ...]
"""Runs by name."""


class SourceRuns:
    """The source runs of one request. All are checked; those that nothing reads become part of no run."""

    def __init__(
        self,
        given: Sequence[SourceRun],
        findings: Findings,
        spliced: Sequence[AutoencoderEntry],
        directions: Directions,
        *,
        own_tokens: tuple[int, ...],
        tokens_of: Callable[[Prompt, str], tuple[int, ...]],
        sizes_of: Callable[[int], Sizes],
    ) -> None:
        """Check *given*.

        Args:
            given: the runs; none is read by itself, directly or through others.
            findings: collects what is wrong.
            spliced: the autoencoders spliced into the runs.
            directions: finds what directions name.
            own_tokens: tokens of the request's prompt.
            tokens_of: the tokens of a prompt, given its path; none if they cannot be known.
            sizes_of: the model's sizes with a number of tokens.
        """
        self._tokens = {
            source.name: own_tokens if source.prompt is None else tokens_of(source.prompt, f"source_runs[{i}].prompt")
            for i, source in enumerate(given)
        }
        self.lengths = {name: len(tokens) for name, tokens in self._tokens.items() if tokens}
        """Tokens of each run whose prompt is known, by name."""
        self._interventions = {
            source.name: tuple(
                planned_interventions(
                    given_by(source.interventions, f"source_runs[{i}].interventions"),
                    findings,
                    sizes_of(self.lengths.get(source.name, 0)),
                    spliced,
                    directions,
                    self.lengths,
                    has_prompt=source.name in self.lengths,
                )
            )
            for i, source in enumerate(given)
        }
        self._runs: dict[str, Run] = {}

    def read_by(self, interventions: Iterable[Intervention], further: Iterable[str] = ()) -> Sources:
        """The runs that *interventions* read, and *further* ones, by name, but for the unchanged run."""
        names = dict.fromkeys((*(name for one in interventions for name in one.runs), *further))
        return tuple((name, self._run(name)) for name in names if name != UNCHANGED)

    def _run(self, name: str) -> Run:
        if name not in self._runs:
            own = self._interventions[name]
            self._runs[name] = Run(token_ids=self._tokens[name], interventions=own, sources=self.read_by(own))
        return self._runs[name]

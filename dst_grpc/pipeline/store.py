"""The store of recent recordings: another request about the same run needs no new pass. And of small answers that were
computed from them: the same request again needs nothing at all.

A recording is keyed by everything that determines it: model, prompt, interventions, origins, spliced autoencoders; and
by the caller unless recordings are shared, as the time that an answer takes would tell one caller what others ask. To
make later requests likely to find what they need, a run whose recording will be kept also records every cheap tap of
the layers it runs, which costs memory but almost no time; but not for Explain, which reads most of them anyway, nor for
prompts of a stream, whose recordings would soon evict one another. The least recently used are evicted when the budget
is spent. Used on its device's thread only, but for `holds` and `answer`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from dst_grpc.domain.callers import LOCAL
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.pipeline.arrangement import first_layer_of
from dst_grpc.pipeline.sizes import Sizes, most_latents

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from dst_grpc.contexts.entries import AutoencoderEntry
    from dst_grpc.domain.callers import Caller
    from dst_grpc.domain.results import MadeAnswer
    from dst_grpc.engine.taps import Site
    from dst_grpc.pipeline.plan import Plan
    from dst_grpc.pipeline.recording import Recording
    from dst_grpc.pipeline.runs import Run

_L = ActivationLocationType
_PER_LAYER = tuple(tap for tap in _L if tap.facts.is_free and not tap.has_no_layers)
_GRADIENTS_PER_LAYER = tuple(tap for tap in _L if tap.facts.keeps_gradient)

DEFAULT_STORE_BYTES = 512 << 20
_LARGEST_ANSWER = 256 << 10
_QUESTIONS = 128
"""Kinds of runs whose cheap taps are remembered."""
_LARGEST_SHARE = 4
"""A recording larger than this share of the budget would evict too much, so that only the taps asked for are
recorded."""


@dataclass(slots=True, eq=False)
class _Kept:
    """A recording that is kept."""

    recording: Recording
    size: int
    """Its bytes."""
    by_values: Hashable
    """By what its values are found."""
    answers: dict[Hashable, MadeAnswer] = field(default_factory=dict)
    """Answers computed from it, by what was asked; together no larger than it is."""
    answer_bytes: int = 0
    was_answered: bool = False
    """Whether one of them was given since it was last considered for eviction."""


class RecordingStore:
    """Recent recordings, the most recently used last."""

    def __init__(self, budget_bytes: int = DEFAULT_STORE_BYTES, *, shared: bool = False) -> None:
        """Start empty; a budget of 0 keeps nothing. A caller finds only its own recordings unless they are *shared*."""
        self.budget_bytes = budget_bytes
        """Bytes that may be kept."""
        self._shared = shared
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._by_values: dict[Hashable, Hashable] = {}
        """By what determines values alone, the latest kept recording of them."""
        self.byte_count = 0
        """Bytes kept now."""
        self.n_found = self.n_missed = 0
        """How often the recording of a run was found, and how often it was looked for in vain."""
        self.n_answered = 0
        """How often an answer was found."""

    def widened(self, plan: Plan) -> Plan:
        """*plan*, also recording what is kept besides."""
        return widened(plan, self.budget_bytes)

    def find(self, plan: Plan, caller: Caller = LOCAL) -> Recording | None:
        """The recording of the same run that *caller* may find, if it has all that *plan* needs."""
        key = self._key(plan, caller)
        kept = self._kept.get(key)
        if kept is None or not _covers(kept.recording, plan):
            self.n_missed += 1
            return None
        self.n_found += 1
        self._kept.move_to_end(key)
        return kept.recording

    def holds(self, plan: Plan, caller: Caller = LOCAL) -> bool:
        """Whether `find` would find one now. May be asked on any thread."""
        kept = self._kept.get(self._key(plan, caller)) if self.budget_bytes else None
        return kept is not None and _covers(kept.recording, plan)

    def answer(self, plan: Plan, caller: Caller = LOCAL) -> MadeAnswer | None:
        """The answer to *plan* that *caller* may find, if it is kept. May be asked on any thread."""
        kept = self._kept.get(self._key(plan, caller)) if self.budget_bytes else None
        answer = None if kept is None else kept.answers.get(_question(plan))
        if kept is not None and answer is not None:
            kept.was_answered = True
            self.n_answered += 1
        return answer

    def keep_answer(self, plan: Plan, answer: MadeAnswer, caller: Caller = LOCAL) -> None:
        """Keep *answer* to *plan* for *caller*, if it is small, as long as the recording that it was computed from;
        those that came before it go first."""
        kept, size = self._kept.get(self._key(plan, caller)), answer.byte_count
        if kept is None or size > min(_LARGEST_ANSWER, kept.size):
            return
        before = kept.answer_bytes
        kept.answer_bytes -= _size_of(kept.answers.pop(_question(plan), None))
        while kept.answer_bytes + size > kept.size:
            kept.answer_bytes -= _size_of(kept.answers.pop(next(iter(kept.answers))))
        kept.answers[_question(plan)] = answer
        kept.answer_bytes += size
        self.byte_count += kept.answer_bytes - before
        self._evict()

    def keep(self, plan: Plan, recording: Recording, caller: Caller = LOCAL, *, batch_size: int = 1) -> None:
        """Keep *recording* of *plan*'s run in a batch for *caller*; evict the least recently used beyond the budget."""
        if not self.budget_bytes:
            return
        if batch_size > 1:
            recording = recording.alone()
        key = self._key(plan, caller)
        by_values = self._key_of_values(plan, plan.run, caller)
        older = self._dropped(key)
        if older is not None:
            recording = recording.merged(older)
        size = recording.byte_count
        if size > self.budget_bytes:
            return
        self._kept[key] = _Kept(recording, size, by_values)
        self._by_values[by_values] = key
        self.byte_count += size
        self._evict()

    def values_of(self, plan: Plan, run: Run, caller: Caller = LOCAL) -> Mapping[Site, torch.Tensor]:
        """Values that are kept for *caller* of a *run* with the model and the spliced autoencoders of *plan*; none if
        none are."""
        key = self._by_values.get(self._key_of_values(plan, run, caller))
        if key is None:
            return {}
        self._kept.move_to_end(key)
        return self._kept[key].recording.taps.values

    def _evict(self) -> None:
        while self.byte_count > self.budget_bytes:
            key, oldest = next(iter(self._kept.items()))
            if oldest.was_answered:
                oldest.was_answered = False
                self._kept.move_to_end(key)
            else:
                self._dropped(key)

    def clear(self) -> None:
        """Keep nothing of what is kept."""
        self._kept.clear()
        self._by_values.clear()
        self.byte_count = 0

    def _dropped(self, key: Hashable) -> Recording | None:
        """The recording that was kept by *key*, which is no longer; None if there was none."""
        kept = self._kept.pop(key, None)
        if kept is None:
            return None
        self.byte_count -= kept.size + kept.answer_bytes
        if self._by_values.get(kept.by_values) == key:
            del self._by_values[kept.by_values]
        return kept.recording

    def _key(self, plan: Plan, caller: Caller) -> Hashable:
        return None if self._shared else caller.name, plan.run_key

    def _key_of_values(self, plan: Plan, run: Run, caller: Caller) -> Hashable:
        return None if self._shared else caller.name, plan.model, plan.spliced, plan.direction_sets, run.forward.key


def _question(plan: Plan) -> Hashable:
    """What determines the answer to *plan*, given the recording of its run: handles, because those of another revision
    are refused."""
    return plan.question_digest, plan.autoencoders, plan.handles


def _size_of(answer: MadeAnswer | None) -> int:
    return 0 if answer is None else answer.byte_count


def widened(plan: Plan, budget_bytes: int) -> Plan:
    """*plan*, also recording every cheap tap of the layers it runs, if that fits the largest share of a store's
    budget."""
    values, gradients = widened_sites(plan, budget_bytes)
    return plan if values is plan.values else replace(plan, values=values, gradients=gradients)


def widened_sites(plan: Plan, budget_bytes: int) -> tuple[frozenset[Site], frozenset[Site]]:
    """Where `widened` records values, and gradients."""
    if not (budget_bytes and plan.records_besides):
        return plan.values, plan.gradients
    n_layers = plan.model.dimensions.n_layers
    sizes = Sizes.of_prompt(plan.model, len(plan.token_ids))
    last = n_layers - 1 if plan.stop_after_layer is None else plan.stop_after_layer
    values, gradients, n_bytes = _with_cheap(
        sizes, plan.spliced, plan.values, plan.gradients, first_change=_first_change(plan), last=last
    )
    if n_bytes * _LARGEST_SHARE > budget_bytes:
        return plan.values, plan.gradients
    return values, gradients


@lru_cache(_QUESTIONS)
def _with_cheap(
    sizes: Sizes,
    spliced: tuple[AutoencoderEntry, ...],
    values: frozenset[Site],
    gradients: frozenset[Site],
    *,
    first_change: int,
    last: int,
) -> tuple[frozenset[Site], frozenset[Site], int]:
    """*values* and *gradients* with every cheap tap of the layers up to *last* that run, and the bytes of all.

    Remembered, because programs ask the same of many prompts, and every plan asks it twice.
    """
    cheap = partial(_sideways, sizes, spliced, last=last)
    values |= frozenset(cheap(_PER_LAYER, first=_first_layer(values, first_change)))
    if gradients:
        gradients |= frozenset(cheap(_GRADIENTS_PER_LAYER, first=_first_layer(gradients, 0)))
        values |= gradients
    return values, gradients, sizes.recorded_bytes((*values, *gradients), most_latents(spliced))


def _covers(recording: Recording, plan: Plan) -> bool:
    """Whether *plan* needs no new pass."""
    return plan.values <= recording.taps.values.keys() and plan.gradients <= recording.gradient_sites


def _first_layer(sites: frozenset[Site], default: int) -> int:
    """The shallowest layer among *sites*, -1 for the embedding; *default* if they are in no layer."""
    layers = [-1 if layer is None else layer for location, layer in sites if layer is not None or _is_first(location)]
    return min(layers, default=default)


def _first_change(plan: Plan) -> int:
    """The first layer that has anything of its own: before, the run is the unchanged one of its prompt."""
    if not plan.run.interventions:
        return 0
    changed = {one.at.site for one in plan.run.interventions}
    return first_layer_of(changed, plan.model.dimensions.n_layers)


def _is_first(location: ActivationLocationType) -> bool:
    return location is _L.RESID_POST_EMBEDDING


def _sideways(
    sizes: Sizes,
    spliced: tuple[AutoencoderEntry, ...],
    per_layer: tuple[ActivationLocationType, ...],
    *,
    first: int,
    last: int,
) -> Iterator[Site]:
    """Every cheap tap of the layers from *first* to *last*."""
    if first < 0:
        yield _L.RESID_POST_EMBEDDING, None
    locations = [location for location in per_layer if sizes.architecture.why_without(location) is None]
    for layer in range(max(first, 0), last + 1):
        for location in locations:
            yield location, layer
    for info in spliced:
        for layer in info.layer_indices:
            if max(first, 0) <= layer <= last:
                for tap in info.input.splice_taps:
                    yield tap, layer

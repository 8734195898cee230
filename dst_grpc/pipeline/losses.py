"""Plans losses: tokens by id, positions from 0, and taps, checked against the prompt and the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dst_grpc.domain.components import LossFnName
from dst_grpc.domain.interventions import UNCHANGED
from dst_grpc.errors import InvalidRequest, require
from dst_grpc.pipeline.interventions import checked_selection, width_of
from dst_grpc.scalars.origins import LossOrigin
from dst_grpc.scalars.topology import AutoencoderInputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dst_grpc.contexts.entries import AutoencoderEntry
    from dst_grpc.domain.origins import LossFnConfig
    from dst_grpc.engine.tokenizer import Tokenizer
    from dst_grpc.pipeline.directions import Directions
    from dst_grpc.pipeline.findings import Findings
    from dst_grpc.pipeline.sizes import Sizes

_PATH = "loss_fn_config"


def by_ids(given: LossFnConfig, findings: Findings, tokenizer: Tokenizer, vocab_size: int) -> LossFnConfig | None:
    """*given* with its tokens by id; None, and noted, if some are none of the model's."""
    before = findings.count

    def ids(side: str) -> tuple[int, ...]:
        found: list[int] = []
        for i, text in enumerate(getattr(given, f"{side}_tokens")):
            findings.check_wanted()
            try:
                path = f"{_PATH}.{side}_tokens[{i}]"
                found.append(tokenizer.single_token(text, path, says_why=not findings.are_full))
            except InvalidRequest as error:
                findings.extend(error)
        for i, token in enumerate(getattr(given, f"{side}_token_ids")):
            field = f"{_PATH}.{side}_token_ids[{i}]"
            findings.check(token < vocab_size, field, f"must be below the vocabulary size {vocab_size}")
            found.append(token)
        return tuple(found)

    targets, distractors = ids("target"), ids("distractor")
    if findings.count > before:
        return None
    return replace(
        given, target_tokens=(), distractor_tokens=(), target_token_ids=targets, distractor_token_ids=distractors
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Plans the loss of one request."""

    findings: Findings
    """Collects what is wrong."""
    tokenizer: Tokenizer
    """The model's."""
    sizes: Sizes
    """Of the model and the prompt."""
    tokens: tuple[int, ...]
    """The prompt; none if it is not known."""
    lengths: Mapping[str, int]
    """Tokens of the runs that can be read, by name, as far as they are known."""
    spliced: Sequence[AutoencoderEntry]
    """The autoencoders spliced into the run."""
    directions: Directions
    """Finds what directions name."""

    def planned(self, given: LossFnConfig) -> LossOrigin:
        """The origin that *given* means."""
        config = by_ids(given, self.findings, self.tokenizer, self.sizes.model.vocab_size)
        if config is None:
            return LossOrigin(given)  # never run
        if config.tap is not None:
            return LossOrigin(self._of_tap(config), inputs=AutoencoderInputs.of_sets(self.spliced))
        if not self.tokens:
            return LossOrigin(config)
        match config.name:
            case LossFnName.KL_DIVERGENCE:
                return self._divergence(config)
            case LossFnName.SEQUENCE_LOG_PROB:
                return self._sequence(config)
            case LossFnName.CROSS_ENTROPY:
                return self._span(config)
        return self._at_position(config)

    def _position(self, index: int, length: int, what: str = "the prompt") -> int:
        """A position from 0, of one from the end if negative; notes one that does not exist."""
        description = f"must be between {-length} and {length - 1} for the {length} tokens of {what}, not {index}"
        self.findings.check(-length <= index < length, f"{_PATH}.token_index", description)
        return index % length

    def _at_position(self, config: LossFnConfig) -> LossOrigin:
        if config.token_index is None:
            return LossOrigin(config)
        return LossOrigin(config, positions=(self._position(config.token_index, len(self.tokens)),))

    def _divergence(self, config: LossFnConfig) -> LossOrigin:
        name = config.reference_run or UNCHANGED
        length = len(self.tokens) if name == UNCHANGED else self.lengths.get(name, 0)
        if not length:
            return LossOrigin(config)
        at = self._position(-1 if config.token_index is None else config.token_index, length, f"the run {name!r}")
        return replace(self._at_position(config), reference=(name, at))

    def _sequence(self, config: LossFnConfig) -> LossOrigin:
        answers, length = config.target_token_ids, len(self.tokens)
        first = length - len(answers) if config.token_index is None else self._position(config.token_index, length)
        if not 0 <= first <= length - len(answers):
            description = f"needs {len(answers)} positions from {first} on, but the prompt has {length} tokens"
            self.findings.add("prompt" if config.token_index is None else f"{_PATH}.token_index", description)
            return LossOrigin(config)
        for i, (token, found) in enumerate(zip(answers[:-1], self.tokens[first + 1 :], strict=False)):
            own, other = self.tokenizer.token_strings([token, found])
            description = (
                f"the prompt must go on with the targets but the last: target {i} is {own!r}, "
                f"but its token {first + 1 + i} is {other!r}"
            )
            self.findings.check(token == found, f"{_PATH}.target_tokens", description)
        return LossOrigin(config, positions=tuple(range(first, first + len(answers))), answers=answers)

    def _span(self, config: LossFnConfig) -> LossOrigin:
        length = len(self.tokens)
        start, stop = (1, length) if config.span is None else (config.span.start, config.span.stop)
        if config.span is None:
            self.findings.check(length > 1, "prompt", "has one token, which nothing predicts")
        self.findings.check(stop <= length, f"{_PATH}.span.stop", f"must be at most {length}, the tokens, not {stop}")
        return LossOrigin(config, positions=tuple(range(start - 1, stop - 1)), answers=self.tokens[start:stop])

    def _of_tap(self, config: LossFnConfig) -> LossFnConfig:
        """*config* with the tap and the direction that are meant."""
        tap, path = require(config.tap), f"{_PATH}.tap"
        at = checked_selection(self.findings, tap.at, f"{path}.at", self.sizes, self.spliced)
        direction = tap.direction
        if direction is not None:
            width = width_of(at, self.sizes, self.spliced)
            direction = self.directions.found(direction, at, f"{path}.direction", width)
        return replace(config, tap=replace(tap, at=at, direction=direction))

"""Origins: the scalar of a run that a backward pass starts from. Traces, the other kind, are in `trace`."""

from __future__ import annotations

from dataclasses import dataclass

from dst_grpc.domain.actions import UNCHANGED, check_vectors
from dst_grpc.domain.components import LossFnName, PassType
from dst_grpc.domain.directions import DifferenceOfMeans, Direction, check_run_name
from dst_grpc.domain.enum_names import check_member, json_name
from dst_grpc.domain.indices import check_token_ids
from dst_grpc.domain.selections import PositionRange, TapSelection
from dst_grpc.domain.texts import check_texts
from dst_grpc.errors import Violations

_MAX_INT32 = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TapSum:
    """The sum of selected entries of a tap; with a direction, of their inner products with it."""

    at: TapSelection
    """The entries, of one layer if the tap has layers."""
    direction: Direction | None = None
    """The vector, given by its numbers or a row of weights; None = the entries themselves."""

    def __post_init__(self) -> None:
        """Check what needs no model; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        at = self.at
        forward = at.pass_type is PassType.FORWARD
        problems.check(forward, "at.pass_type", f"must be {json_name(PassType.FORWARD)}")
        has_layer = at.layer_index is not None or at.activation_location_type.has_no_layers
        problems.check(has_layer, "at.layer_index", "is required")
        if self.direction is not None:
            check_vectors(problems, at, "tap")
            if isinstance(self.direction.direction, DifferenceOfMeans):
                problems.add("direction.difference_of_means", "must be absent: a loss reads no vectors of other runs")
            elif self.direction.vector is not None and self.direction.vector.handle is not None:
                problems.add("direction.vector.handle", "must be absent: give the vector itself")
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class LossFnConfig:
    """A scalar of a run, mostly of the logits y at one position, the prompt's last token unless another is given.

    logit_diff: mean of y over the targets minus its mean over the distractors; logit_minus_mean: mean over the targets
    minus the mean over the vocabulary; probs: probability of the targets together minus that of the distractors;
    log_prob: the same of the logarithms of these probabilities; sequence_log_prob: sum of the log-probabilities of the
    targets, each at the position before its own, given the ones before; entropy: of softmax(y), in nats;
    kl_divergence: sum_v p_v (log p_v - log q_v), p of a reference run, q of this one; cross_entropy: mean over the
    tokens of a span of minus their log-probabilities; tap: entries of a tap; zero: 0.

    A token listed twice counts twice. Tokens are given as strings, each of which must be exactly one token, as ids, or
    as both together.
    """

    name: LossFnName
    """Which scalar."""
    target_tokens: tuple[str, ...] = ()
    """Target tokens, as strings."""
    distractor_tokens: tuple[str, ...] = ()
    """Distractor tokens, as strings; for logit_diff, probs and log_prob only."""
    target_token_ids: tuple[int, ...] = ()
    """Further target tokens, as ids."""
    distractor_token_ids: tuple[int, ...] = ()
    """Further distractor tokens, as ids; for logit_diff, probs and log_prob only."""
    token_index: int | None = None
    """The position whose logits are read, from the end if negative; None = the last. For sequence_log_prob the first
    of several; None = such that the prompt ends with all targets but the last."""
    reference_run: str | None = None
    """For kl_divergence: name of the run that the divergence is from; None = UNCHANGED, this run without any
    intervention. It is read at the same position, or at its own last. Of pairs of prompts: UNCHANGED, the run of the
    prompt that is changed; SOURCE, that of the other; None = of the clean one."""
    span: PositionRange | None = None
    """For cross_entropy: the tokens that are predicted, from 1; None = all but the first."""
    tap: TapSum | None = None
    """For tap: which entries."""

    def __post_init__(self) -> None:
        """Check rule 32 as far as no tokenizer is needed; raises InvalidRequest with all that is wrong, and TypeError
        for a name that is no member, and tokens that are not several texts."""
        problems = Violations()
        name = self.name
        check_member("name", name, LossFnName)
        if name.needs_targets:
            problems.check(
                bool(self.target_tokens or self.target_token_ids),
                "target_tokens",
                f"{name} needs at least one target token",
            )
        elif name is not LossFnName.ZERO:
            has_none = not (self.target_tokens or self.target_token_ids)
            problems.check(has_none, "target_tokens", f"must be absent for {name}")
        if not name.may_have_distractors:
            problems.check(
                not (self.distractor_tokens or self.distractor_token_ids),
                "distractor_tokens",
                f"must be absent for {name}",
            )
        for field in ("target_tokens", "distractor_tokens"):
            check_texts(problems, field, getattr(self, field))
        for field in ("target_token_ids", "distractor_token_ids"):
            check_token_ids(problems, field, getattr(self, field))
        self._check_places(problems)
        problems.raise_if_any()

    @property
    def n_tokens(self) -> int:
        """How many tokens it names."""
        texts, ids = (self.target_tokens, self.distractor_tokens), (self.target_token_ids, self.distractor_token_ids)
        return sum(map(len, (*texts, *ids)))

    def _check_places(self, problems: Violations) -> None:
        """Note what is given of where it is read, or missing."""
        name = self.name
        if name is LossFnName.ZERO:
            return  # it is read nowhere
        if self.token_index is not None:
            problems.check(name.has_position, "token_index", f"must be absent for {name}")
            within = -_MAX_INT32 <= self.token_index <= _MAX_INT32
            limits = f"must be between {-_MAX_INT32} and {_MAX_INT32}, not {self.token_index}"
            problems.check(within, "token_index", limits)
        if self.reference_run is not None:
            problems.check(name is LossFnName.KL_DIVERGENCE, "reference_run", f"must be absent for {name}")
            check_run_name(problems, "reference_run", self.reference_run)
        if self.span is not None:
            problems.check(name is LossFnName.CROSS_ENTROPY, "span", f"must be absent for {name}")
            problems.check(self.span.start > 0, "span.start", "must be above 0: nothing predicts the first token")
        if (self.tap is not None) is not (name is LossFnName.TAP):
            problems.add("tap", f"must be absent for {name}" if self.tap is not None else "is required")

    @property
    def runs(self) -> dict[str, str]:
        """Names of the runs that it reads, by the field that names them."""
        if self.name is not LossFnName.KL_DIVERGENCE:
            return {}
        return {"reference_run": self.reference_run or UNCHANGED}

"""From keyword arguments to the pairs of prompts of a request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, TypedDict

from dst_grpc.client._given import given, tuple_of
from dst_grpc.client._requests import PromptLike, TokensLike, loss_of, prompt_of
from dst_grpc.domain.components import LossFnName
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.pairs import Orientation, PromptPair
from dst_grpc.domain.requests import Prompt
from dst_grpc.errors import InvalidRequest, Violations

PairLike: TypeAlias = PromptPair | Mapping[str, Any]
"""A PromptPair, or the arguments of `make_pair` by name."""


class PairArguments(TypedDict, total=False):
    """The keyword arguments that `attribute`, `circuit` and `patch` share, besides their prompts."""

    target: TokensLike | None
    """Target tokens."""
    distractor: TokensLike | None
    """Distractor tokens."""
    loss: LossFnConfig | LossFnName | str | None
    """A whole loss; or its name, for the target and distractor given."""
    pairs: Iterable[PairLike]
    """Further pairs of prompts; the answer has means over all."""
    model: str | None
    """Name or handle of the model; None = the server's default."""
    autoencoders: str | Iterable[str]
    """Names or handles of autoencoders to splice into the runs."""
    orientation: Orientation | str
    """Which prompt of a pair is run: `noising` the clean one, `denoising` the corrupt one."""
    request_id: str
    """Your own id, carried by the answer."""


def make_pair(
    clean: PromptLike,
    corrupt: PromptLike | None = None,
    *,
    target: TokensLike | None = None,
    distractor: TokensLike | None = None,
    loss: LossFnConfig | LossFnName | str | None = None,
) -> PromptPair:
    """A pair of prompts with, perhaps, a metric of its own.

    Raises:
        InvalidRequest: If an argument cannot be valid, whatever the model.
    """
    return given(
        "",
        PromptPair,
        clean=prompt_of(clean, "clean"),
        corrupt=None if corrupt is None else prompt_of(corrupt, "corrupt"),
        loss_fn_config=loss_of(loss, target, distractor),
    )


def pairs_of(
    clean: PromptLike | None, corrupt: PromptLike | None, further: Iterable[PairLike]
) -> tuple[PromptPair, ...]:
    """The pair of *clean* and *corrupt*, if there is one, then the *further* ones; raises TypeError, InvalidRequest."""
    own = () if clean is None else ({"clean": clean, "corrupt": corrupt},)
    problems, found = Violations(), list[PromptPair]()
    for i, one in enumerate((*own, *tuple_of("pairs", further))):
        try:
            found.append(_pair(one, i))
        except InvalidRequest as error:
            problems.extend(error, f"pairs[{i}]")
    problems.raise_if_any()
    return tuple(found)


def references_of(prompts: Iterable[PromptLike]) -> tuple[Prompt, ...]:
    """The prompts of a mean, or one, as text; raises InvalidRequest."""
    if isinstance(prompts, str):  # its characters would be prompts, too
        prompts = (prompts,)
    return tuple(prompt_of(one, f"reference[{i}]") for i, one in enumerate(tuple_of("reference", prompts)))


def _pair(pair: PairLike, i: int) -> PromptPair:
    if isinstance(pair, PromptPair):
        return pair
    if not isinstance(pair, Mapping):
        raise TypeError(f"pairs[{i}] must be a PromptPair or a mapping, not {pair!r}")
    return make_pair(**pair)

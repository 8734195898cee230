"""The answer to Derive, indexed by name, layer and pass."""

from __future__ import annotations

from collections.abc import Iterator

from dst_grpc.client._tensors import DerivedScalar, DerivedScalarTensor
from dst_grpc.domain import results
from dst_grpc.domain.components import PassType
from dst_grpc.domain.results import NotFinite, Provenance, RunStatistics
from dst_grpc.domain.scalar_types import DerivedScalarType


class Answer:
    """One prompt's derived scalars.

    `answer["mlp_act_times_grad"][2]` is layer 2 of that derived scalar, `answer[0]` the first one asked for,
    `answer["mlp_post_act"].backward[2]` a gradient. Iterating yields the derived scalars in the order asked for.
    """

    def __init__(self, answer: results.AssembledAnswer) -> None:
        self.domain = answer
        """The whole answer as a domain value."""
        self.tensors = tuple(DerivedScalarTensor.from_domain(tensor) for tensor in answer.tensors)
        """Every tensor, in the order of arrival."""

    @property
    def request_id(self) -> str:
        """The request's own id."""
        return self.domain.request_id

    @property
    def model(self) -> str:
        """Handle of the model that ran."""
        return self.domain.header.model

    @property
    def tokens(self) -> tuple[str, ...]:
        """The prompt's tokens, each decoded alone."""
        return self.domain.header.token_strings

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The prompt's token ids."""
        return self.domain.header.token_ids

    @property
    def loss(self) -> float | None:
        """Value of the loss, which may be NaN; None if none was given."""
        return self.domain.header.loss

    @property
    def activation_value(self) -> float | None:
        """Value of the traced activation; None without a trace."""
        return self.domain.header.activation_value

    @property
    def detach_final_layer_norm_scale(self) -> bool:
        """Whether the final norm's scale was held constant in gradients."""
        return self.domain.header.detach_final_layer_norm_scale

    @property
    def not_finite(self) -> NotFinite | None:
        """Where the run first has values that are not finite; None if it is finite."""
        return self.domain.header.not_finite

    @property
    def statistics(self) -> RunStatistics:
        """The cost of the run."""
        return self.domain.trailer.statistics

    @property
    def provenance(self) -> Provenance:
        """What the numbers depend on."""
        return self.domain.trailer.provenance

    @property
    def types(self) -> tuple[DerivedScalarType, ...]:
        """The types of its derived scalars, each once, in the order asked for."""
        return tuple(dict.fromkeys(tensor.dst for tensor in self.tensors))

    def tensor(
        self,
        dst: DerivedScalarType | str | int,
        layer_index: int | None = None,
        pass_type: PassType = PassType.FORWARD,
    ) -> DerivedScalarTensor:
        """One tensor.

        Args:
            dst: Name of the derived scalar, or its position in the request.
            layer_index: Which layer; None for a type that exists once per model.
            pass_type: Value, or gradient.

        Raises:
            KeyError: If the answer has no such tensor; the message lists those it has.
        """
        scalar = self[dst]
        return (scalar if pass_type is PassType.FORWARD else scalar.backward)[layer_index]

    def __getitem__(self, dst: DerivedScalarType | str | int) -> DerivedScalar:
        if isinstance(dst, int):
            found = [tensor for tensor in self.tensors if tensor.spec_index == dst]
        else:
            found = [tensor for tensor in self.tensors if tensor.dst == dst]
        if not found:
            known = ", ".join(self.types) or "no derived scalar"
            raise KeyError(f"the answer has no {dst}; it has {known}")
        specs = sorted({tensor.spec_index for tensor in found})
        if len(specs) > 1:
            raise KeyError(f"{dst} was asked for more than once; give its position in the request, one of {specs}")
        return DerivedScalar(found[0].dst, found)

    def __contains__(self, dst: object) -> bool:
        return any(tensor.dst == dst for tensor in self.tensors)

    def __iter__(self) -> Iterator[DerivedScalar]:
        for spec_index in dict.fromkeys(tensor.spec_index for tensor in self.tensors):
            yield self[spec_index]

    def __len__(self) -> int:
        return len({tensor.spec_index for tensor in self.tensors})

    def __repr__(self) -> str:
        parts = [f"{self.request_id!r}"] if self.request_id else []
        parts += [self.model, f"{len(self.tokens)} tokens"]
        parts += [f"loss={self.loss:z.4g}", self.domain.header.convention] if self.loss is not None else []
        parts += [f"activation_value={self.activation_value:z.4g}"] if self.activation_value is not None else []
        parts += [f"{scalar.dst}[{len(scalar)}]" for scalar in self]
        parts += ["not finite"] if self.not_finite is not None else []
        return f"<Answer {', '.join(parts)}>"

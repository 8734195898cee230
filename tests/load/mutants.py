"""Messages that are nearly requests: of every method, mutated by their descriptors, truncated, of other types, noise.

The same seed makes the same messages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from benchmarks.worst_requests import methods

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from random import Random

    from google.protobuf.descriptor import MethodDescriptor
    from google.protobuf.message import Message

    Seeds = Mapping[str, Sequence[Message]]
    """Requests by the names of their types."""

_LARGE = (0, 1, 2, 5, 17, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
"""Of these 17 is more than a tiny model has of anything; as a number of steps it is little work."""
_TEXTS = (
    *("", "a", " Mary", "\0", "\u4e00" * 40, "x" * 300, "../..", "source"),
    *("tiny", "other", "embedded", "tiny@x", "tiny/mlp_post_act", "tiny/resid_delta_mlp", "tiny/mlp_transcoders"),
    *("m0->logits", "a0.h1->a1.h0<q>", "m1", "m0.l1", "f0.2@3", "h0.0@1", "n0.1@2", "t1", "logit:260"),
)
_MOST_FIELDS = 3
_MOST_MESSAGES = 4


class Mutant(NamedTuple):
    """A call."""

    method: str
    """Full name."""
    messages: tuple[bytes, ...]
    """What is sent."""


def whole(seeds: Seeds) -> Iterator[Mutant]:
    """The seeds as they are: a call of each; on a stream, one of all."""
    for method in methods():
        messages = [seed.SerializeToString() for seed in seeds.get(method.input_type.name, ())]
        calls = [tuple(messages)] if method.client_streaming else [(message,) for message in messages]
        yield from (Mutant(_name(method), call) for call in calls)


def mutants(random: Random, seeds: Seeds) -> Iterator[Mutant]:
    """Calls without end, made of *seeds*: of each method as often as it has some; on a stream, of several messages."""
    kinds = [(method, [*seeds.get(method.input_type.name, ()), _empty(method)]) for method in methods()]
    ways: list[tuple[int, Callable[[Random, list[Message], list[bytes]], bytes]]] = [
        (6, _mutated),
        (2, _made),
        (2, _flipped),
        (1, _truncated),
        (1, _of_another_type),
        (1, _noise),
    ]
    weights, makers = [weight for weight, _ in ways], [make for _, make in ways]
    shares = [len(own) for _, own in kinds]
    others = [seed.SerializeToString() for _, own in kinds for seed in own]
    while True:
        ((method, own),) = random.choices(kinds, shares)
        n_messages = random.randint(1, _MOST_MESSAGES) if method.client_streaming else 1
        made = tuple(random.choices(makers, weights)[0](random, own, others) for _ in range(n_messages))
        yield Mutant(_name(method), made)


def _name(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def _empty(method: MethodDescriptor) -> Message:
    return GetMessageClass(method.input_type)()


def _mutated(random: Random, seeds: list[Message], _others: list[bytes]) -> bytes:
    message = type(seeds[0])()
    message.CopyFrom(random.choice(seeds))
    for _ in range(random.randint(1, _MOST_FIELDS)):
        _mutate(random, message)
    return message.SerializeToString()


def _made(random: Random, seeds: list[Message], _others: list[bytes]) -> bytes:
    message = type(seeds[-1])()
    for _ in range(random.randint(1, 3 * _MOST_FIELDS)):
        _mutate(random, message)
    return message.SerializeToString()


def _flipped(random: Random, seeds: list[Message], _others: list[bytes]) -> bytes:
    data = bytearray(random.choice(seeds).SerializeToString())
    for _ in range(random.randint(1, 4)):
        if data:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


def _truncated(random: Random, seeds: list[Message], _others: list[bytes]) -> bytes:
    data = random.choice(seeds).SerializeToString()
    return data[: random.randint(0, len(data))] * random.randint(1, 2)


def _of_another_type(random: Random, _seeds: list[Message], others: list[bytes]) -> bytes:
    return random.choice(others)


def _noise(random: Random, _seeds: list[Message], _others: list[bytes]) -> bytes:
    return random.randbytes(random.choice((0, 1, 2, 10, 100, 3000)))


def _mutate(random: Random, message: Any) -> None:
    """Change one field of *message*, or of a message within it."""
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    present = [field for field, _ in message.ListFields()]
    field = random.choice(present if present and random.random() < 0.6 else fields)
    if field in present and random.random() < 0.15:
        message.ClearField(field.name)
    elif field.is_repeated:
        _mutate_list(random, getattr(message, field.name), field)
    elif field.message_type is not None:
        content = getattr(message, field.name)
        content.SetInParent()
        _mutate(random, content)
    else:
        setattr(message, field.name, _value(random, field))


def _mutate_list(random: Random, values: Any, field: FieldDescriptor) -> None:
    if values and random.random() < 0.3:
        del values[random.randrange(len(values))]
    elif field.message_type is None:
        values.extend(_value(random, field) for _ in range(random.choice((1, 1, 2, 50))))
    else:
        for _ in range(random.choice((1, 1, 2, 20))):
            _mutate(random, values.add())
        if random.random() < 0.5:
            _mutate(random, random.choice(values))


def _value(random: Random, field: FieldDescriptor) -> Any:
    """A value of a field: one that is known, one at the edge of what there is, or any."""
    if field.enum_type is not None:
        known = random.choice(field.enum_type.values).number
        return random.choice((known, known, known, 0, 77, 2**31 - 1))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return random.randbytes(random.choice((0, 4, 100)))
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return random.choice(_TEXTS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return random.random() < 0.5
    if kind in {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}:
        return random.choice((0.0, 1.0, -1.0, 1e-40, 3e38, float("inf"), float("nan")))
    bits = 31 if kind in {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32} else 63
    number = random.choice((random.randrange(6), random.choice(_LARGE), random.randrange(2**bits)))
    if kind in {FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64}:
        return number % 2 ** (bits + 1)
    return random.choice((1, -1)) * (number % 2**bits)

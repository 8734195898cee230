"""Exceptions that are none of ours."""

from __future__ import annotations

import errno
import traceback
import weakref

import pytest
from google.protobuf.message import DecodeError

from dst_grpc.errors import InvalidRequest
from dst_grpc.failures import is_out_of_memory, raise_if_out_of_memory, without_frames, without_locals


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("can't start new thread"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOENT, "No such file"), False),
        (RuntimeError("shapes differ"), False),
        (ValueError("DefaultCPUAllocator"), False),
        (InvalidRequest.of("text", "holds ALLOC_FAILED"), False),
    ],
)
def test_what_says_that_memory_ran_out_is_told_from_what_repeats_a_callers_words(error: Exception, is_so: bool) -> None:
    assert is_out_of_memory(error) == is_so
    if is_so:
        with pytest.raises(type(error)):
            raise_if_out_of_memory(error)
    else:
        raise_if_out_of_memory(error)


def test_protobuf_says_by_its_text_that_it_has_no_memory_to_parse() -> None:
    message = "Error parsing message with type 'dst.v1.DeriveRequest': Arena alloc failed"
    assert is_out_of_memory(DecodeError(message))
    assert not is_out_of_memory(DecodeError("Error parsing message"))


class Large:
    """Stands for a tensor."""


def failing(alive: list[weakref.ref[Large]]) -> Exception:
    """An error with a cause, which was raised while another was handled; each beside something large."""

    def fail() -> None:
        large = Large()
        alive.append(weakref.ref(large))
        raise ValueError("first")

    def fail_again() -> None:
        larger = Large()
        alive.append(weakref.ref(larger))
        try:
            fail()
        except ValueError:
            raise KeyError("second")  # noqa: B904  it has the first as its context

    def fail_for_good() -> None:
        try:
            fail_again()
        except KeyError as error:
            raise RuntimeError("third") from error

    with pytest.raises(RuntimeError) as caught:
        fail_for_good()
    return caught.value


def test_an_error_without_locals_keeps_nothing_alive_but_says_where_it_passed() -> None:
    alive: list[weakref.ref[Large]] = []
    error = failing(alive)
    assert [ref() is None for ref in alive] == [False, False]
    assert without_locals(error) is error
    assert [ref() for ref in alive] == [None, None]
    text = "".join(traceback.format_exception(error))
    assert all(word in text for word in ("first", "second", "third", "in fail_again"))


def test_an_error_without_frames_does_not_even_say_that() -> None:
    alive: list[weakref.ref[Large]] = []
    error = without_frames(failing(alive))
    assert [ref() for ref in alive] == [None, None]
    assert error.__traceback__ is None
    assert "in fail_again" not in "".join(traceback.format_exception(error))


def test_errors_that_cause_one_another_in_a_circle_are_no_endless_work() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__context__, second.__context__ = second, first
    assert without_frames(first) is first

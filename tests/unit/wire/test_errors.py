"""Errors become statuses that fit into the trailers of a call, and come back as themselves."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details_pb
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from dst_grpc import errors
from dst_grpc.errors import FieldViolation, InvalidRequest, NotFound, PreconditionFailed, Reason
from dst_grpc.wire.errors import (
    CODE_OF_ERROR,
    MAX_STATUS_BYTES,
    code_of,
    error_from_status,
    error_to_status,
)
from tests.arbitrary import messages
from tests.arbitrary.errors import CONCRETE_ERRORS, dst_errors


def details(status: Status, message_type: type[Message]) -> list[Message]:
    found = []
    for packed in status.details:
        message = message_type()
        if packed.Unpack(message):
            found.append(message)
    return found


def facts(error: errors.DstError) -> dict[str, object]:
    """Everything that an error says."""
    return {"class": type(error)} | {key: value for key, value in vars(error).items() if not key.startswith("__")}


def fits(text: str) -> bool:
    return text == text.encode("utf-8", "replace").decode()


def is_whole(error: errors.DstError) -> bool:
    """Whether every text of the error is one that UTF-8 can carry."""
    return fits(repr(facts(error)).encode("utf-8", "surrogatepass").decode("utf-8", "replace")) and "\\ud" not in repr(
        facts(error)
    )


@given(dst_errors())
def test_an_error_comes_back_as_itself(error: errors.DstError) -> None:
    rebuilt = error_from_status(error_to_status(error))
    if not is_whole(error):
        assert type(rebuilt) is type(error)
        return
    if isinstance(error, errors.Internal):
        assert (type(rebuilt), rebuilt.reason) == (errors.Internal, Reason.INTERNAL)
        assert vars(rebuilt)["error_id"] == error.error_id
        return
    assert facts(rebuilt) == facts(error)


@given(dst_errors(max_size=3000, max_violations=60), st.integers(1, 400))
def test_no_status_outgrows_its_limit(error: errors.DstError, times: int) -> None:
    if isinstance(error, (InvalidRequest, PreconditionFailed)):
        error = type(error)(error.violations * times, reason=error.reason, metadata=error.metadata)
    status = error_to_status(error)
    assert status.ByteSize() <= MAX_STATUS_BYTES <= 6 * 1024
    assert type(error_from_status(status)) is type(error)


@pytest.mark.parametrize("cls", [InvalidRequest, PreconditionFailed])
def test_violations_without_room_are_counted(cls: type[InvalidRequest | PreconditionFailed]) -> None:
    error = cls([FieldViolation(f"derived_scalars[{i}].dst", "is required: " + "x" * 100) for i in range(500)])
    rebuilt = error_from_status(error_to_status(error))
    assert isinstance(rebuilt, cls)
    shown = rebuilt.violations
    assert 10 < len(shown) < 100
    assert shown[:-1] == error.violations[: len(shown) - 1]
    assert shown[-1] == FieldViolation("", f"and {500 - len(shown) + 1} more")


def test_a_long_text_is_cut_at_a_character() -> None:
    status = error_to_status(errors.DataLoss("ä" * 2000))
    assert len(status.message.encode()) <= 512
    assert status.message.endswith("ä...")


def test_metadata_and_names_without_room_are_left_out() -> None:
    names = [f"model-{i}-{'x' * 100}" for i in range(20)]
    error = NotFound("x", nearest=names, metadata={f"key{i}": "v" * 200 for i in range(20)})
    rebuilt = error_from_status(error_to_status(error))
    assert isinstance(rebuilt, NotFound)
    assert list(rebuilt.nearest) == names[:4]
    assert set(rebuilt.metadata) == {f"key{i}" for i in range(4)}


def test_every_class_of_error_has_a_code_of_its_own() -> None:
    assert set(CODE_OF_ERROR) == set(CONCRETE_ERRORS)
    assert len(set(CODE_OF_ERROR.values())) == len(CODE_OF_ERROR)


def test_a_class_that_is_not_in_the_table_has_the_code_of_its_base() -> None:
    class Narrower(NotFound):
        pass

    assert code_of(Narrower("x")) == CODE_OF_ERROR[NotFound]
    assert code_of(errors.DstError("x")) == CODE_OF_ERROR[errors.Internal]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InvalidRequest.of("a", "b"), {details_pb.BadRequest}),
        (PreconditionFailed([FieldViolation("a", "b")]), {details_pb.PreconditionFailure}),
        (NotFound("x"), {details_pb.ResourceInfo}),
        (errors.Exhausted("x"), {details_pb.QuotaFailure}),
        (errors.Exhausted("x", retry_after_seconds=1), {details_pb.QuotaFailure, details_pb.RetryInfo}),
        (errors.Unavailable("x", retry_after_seconds=1), {details_pb.RetryInfo}),
        (errors.Unavailable("x"), set()),
        (errors.DataLoss("x"), set()),
    ],
)
def test_every_status_has_one_error_info_and_the_details_of_its_kind(
    error: errors.DstError, expected: set[type[Message]]
) -> None:
    status = error_to_status(error)
    (info,) = details(status, details_pb.ErrorInfo)
    assert isinstance(info, details_pb.ErrorInfo)
    assert (info.domain, info.reason) == ("dstgrpc.io", error.reason.value)
    names = {packed.TypeName() for packed in status.details} - {"google.rpc.ErrorInfo"}
    assert names == {cls.DESCRIPTOR.full_name for cls in expected}


def test_what_went_wrong_inside_never_leaves_the_server() -> None:
    error = errors.Internal("password=hunter2", error_id="e1", metadata={"path": "/secret"})
    data = error_to_status(error).SerializeToString()
    assert b"hunter2" not in data
    assert b"secret" not in data
    assert b"e1" in data


def test_the_nearest_names_are_readable_and_come_back() -> None:
    error = NotFound.unknown("model", "embeded", ["embedded", "gpt2"], reason=Reason.MODEL_NOT_FOUND)
    (resource,) = details(error_to_status(error), details_pb.ResourceInfo)
    assert isinstance(resource, details_pb.ResourceInfo)
    assert resource.description == 'nearest: "embedded"'
    rebuilt = error_from_status(error_to_status(error))
    assert isinstance(rebuilt, NotFound)
    assert rebuilt.nearest == ("embedded",)


@pytest.mark.parametrize("code", range(-1, 20))
def test_a_status_of_somebody_else_is_still_an_error_of_ours(code: int) -> None:
    error = error_from_status(Status(code=code, message="upstream says no"))
    expected = {number: cls for cls, number in CODE_OF_ERROR.items()}.get(code, errors.Internal)
    assert type(error) is expected
    assert "upstream says no" in error.message
    assert error.reason is expected.default_reason
    assert error_from_status(Status(code=code)).message


def test_a_code_that_no_class_has_is_named() -> None:
    assert error_from_status(Status(code=10, message="no")).message == "no (status ABORTED)"


def test_a_reason_of_a_newer_server_is_kept_in_the_metadata() -> None:
    status = Status(code=8, message="full")
    status.details.add().Pack(details_pb.ErrorInfo(domain="dstgrpc.io", reason="MOON_PHASE", metadata={"a": "b"}))
    error = error_from_status(status)
    assert error.reason is errors.Exhausted.default_reason
    assert error.metadata == {"a": "b", "reason": "MOON_PHASE"}


def test_an_error_info_of_another_domain_is_passed_over() -> None:
    status = Status(code=8, message="full")
    status.details.add().Pack(details_pb.ErrorInfo(domain="googleapis.com", reason="QUOTA_EXCEEDED"))
    assert error_from_status(status).reason is Reason.QUEUE_FULL


@pytest.mark.parametrize(
    "name", ["ErrorInfo", "BadRequest", "ResourceInfo", "PreconditionFailure", "RetryInfo", "QuotaFailure"]
)
@pytest.mark.parametrize("code", sorted(CODE_OF_ERROR.values()))
@pytest.mark.parametrize("value", [b"\xff\xff", b"\x0a\x7f", b"\x0a\x02\xff\xfe"])
def test_details_that_cannot_be_decoded_are_passed_over(name: str, code: int, value: bytes) -> None:
    broken = AnyMessage(type_url=f"type.googleapis.com/google.rpc.{name}", value=value)
    error = error_from_status(Status(code=code, message="no", details=[broken]))
    assert error.message == "no"


@given(messages.messages(Status))
def test_any_status_has_an_error(status: Status) -> None:
    assert error_from_status(status).message


@pytest.mark.parametrize("text", ["nearest: [", "nearest: 1, {}", "something else", "nearest: " + "[" * 100000])
def test_a_description_that_holds_no_names_gives_none(text: str) -> None:
    status = Status(code=5, message="no")
    status.details.add().Pack(details_pb.ResourceInfo(description=text))
    error = error_from_status(status)
    assert isinstance(error, NotFound)
    assert error.nearest == ()

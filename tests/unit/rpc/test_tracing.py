"""When traces are exported."""

from __future__ import annotations

import pytest

from dst_grpc.rpc.parts import StartupError
from dst_grpc.rpc.tracing import are_wanted, exporting

SOMEWHERE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        (SOMEWHERE, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4317"}, True),
        (SOMEWHERE | {"OTEL_SDK_DISABLED": "true"}, False),
        (SOMEWHERE | {"OTEL_TRACES_EXPORTER": "none"}, False),
        (SOMEWHERE | {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, True),
        (
            SOMEWHERE | {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            True,
        ),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, False),
    ],
)
def test_the_environment_says_whether(environment: dict[str, str], wanted: bool) -> None:
    assert are_wanted(environment) is wanted


@pytest.mark.parametrize(
    "more",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
        {"OTEL_TRACES_SAMPLER": "jaeger_remote"},
        {"OTEL_TRACES_SAMPLER_ARG": "2", "OTEL_TRACES_SAMPLER": "traceidratio"},
    ],
)
def test_what_cannot_be_done_is_said_at_the_start(more: dict[str, str]) -> None:
    (name, value), *_ = more.items()
    with pytest.raises(StartupError, match=f"{name}={value}"), exporting(SOMEWHERE | more):
        pytest.fail("it must not start")


def test_another_exporter_is_refused_without_an_endpoint_too() -> None:
    environment = {"OTEL_TRACES_EXPORTER": "jaeger"}
    with pytest.raises(StartupError, match="OTEL_TRACES_EXPORTER=jaeger"), exporting(environment):
        pytest.fail("it must not start")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[half"),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "10"),
    ],
)
def test_what_the_sdk_refuses_is_an_error_of_the_start(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)  # the SDK reads the environment of the process
    with pytest.raises(StartupError, match="variables OTEL_"), exporting(SOMEWHERE):
        pytest.fail("it must not start")


def test_nothing_is_set_up_if_no_traces_are_wanted() -> None:
    with exporting({}) as provider:
        assert provider is None

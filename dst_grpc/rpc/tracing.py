"""Where traces go: OpenTelemetry's SDK, set up by the environment variables of its specification."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Thread

from dst_grpc import __version__
from dst_grpc.observability.calls import CallObserver
from dst_grpc.observability.sampling import NAMES, Sampling
from dst_grpc.rpc.parts import StartupError

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SAMPLER, _SAMPLER_ARGUMENT = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
_CLOSE_SECONDS = 5.0

_log = logging.getLogger(__name__)


def are_wanted(environment: Mapping[str, str]) -> bool:
    """Whether *environment* says that traces are exported: to an endpoint, by OTLP over gRPC.

    Raises:
        StartupError: It asks for what this server cannot do.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if exporter not in {"otlp", "none"}:
        raise StartupError(f"OTEL_TRACES_EXPORTER={exporter}: traces are exported by otlp, or not (none)")
    if exporter == "none" or not any(environment.get(name) for name in _ENDPOINTS):
        return False
    for name in _PROTOCOLS:
        protocol = environment.get(name, "").strip()
        if protocol:
            if protocol != "grpc":
                raise StartupError(f"{name}={protocol}: traces are exported by grpc")
            break
    return True


def sampling_of(environment: Mapping[str, str]) -> Sampling:
    """The sampler that *environment* names, by default all calls but those that their callers do not record.

    Raises:
        StartupError: There is no such sampler.
    """
    name, argument = (environment.get(variable, "").strip() for variable in (_SAMPLER, _SAMPLER_ARGUMENT))
    try:
        return Sampling.named(name, argument) if name else Sampling()
    except ValueError as error:
        given = f"{_SAMPLER}={name}" if name not in NAMES else f"{_SAMPLER_ARGUMENT}={argument}"
        raise StartupError(f"{given}: {error}") from None


@contextmanager
def exporting(environment: Mapping[str, str] | None = None) -> Iterator[CallObserver | None]:
    """What traces calls, whose spans are exported within the block, if the environment says so; else None.

    The batches, the limits of spans, and headers, time-outs and certificates of the export are those of the environment
    too. At the end what is not exported yet has some seconds.

    Raises:
        StartupError: The environment asks for what is not installed, or what this server cannot do.
    """
    environment = os.environ if environment is None else environment
    if not are_wanted(environment):
        yield None
        return
    sampling = sampling_of(environment)
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        from dst_grpc.observability.tracing import TraceCalls

        given = OTELResourceDetector().detect().attributes
        ours = {"service.name": "dst-grpc", "service.version": __version__, "service.instance.id": str(uuid.uuid4())}
        resource = Resource.create({key: value for key, value in ours.items() if key not in given})
        exporter = OTLPSpanExporter()
        provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
    except ImportError as error:
        message = f"the environment asks for traces, but {error.name} is not installed: pip install 'dst-grpc[otel]'"
        raise StartupError(message) from None
    except Exception as error:  # noqa: BLE001  of many kinds, some of them as its modules are imported
        message = f"OpenTelemetry cannot export traces as the variables OTEL_... of the environment say: {error}"
        raise StartupError(message) from None
    _log.info("traces are exported", extra={"endpoint": next(filter(None, map(environment.get, _ENDPOINTS)), "")})
    try:
        yield TraceCalls(provider, sampling)
    finally:
        ending = Thread(target=provider.shutdown, name="dst-traces-end", daemon=True)
        ending.start()
        ending.join(_CLOSE_SECONDS)
        if ending.is_alive():  # it would go on trying for up to half a minute
            exporter.shutdown()

"""Checks everything that a server reads at its start, without loading a model and without taking its address."""

from __future__ import annotations

from collections.abc import Iterator

from dst_grpc.domain.handles import ContextRef
from dst_grpc.errors import DstError, InvalidRequest
from dst_grpc.rpc.access import files_of, identity_of
from dst_grpc.rpc.certificates import Certificates
from dst_grpc.rpc.listening import why_no_socket, why_not
from dst_grpc.rpc.metrics_access import MetricsAccess
from dst_grpc.rpc.settings import Settings


def problems_of(settings: Settings) -> list[str]:
    """Everything that would keep a server with *settings* from starting, and every model and autoencoder set that it
    could not serve; whether ports are free is not looked at, so that it may be asked beside a server that runs."""
    found = [problem for check in (_files, _addresses, _devices, _registry) for problem in check(settings)]
    return list(dict.fromkeys(found))


def _files(settings: Settings) -> Iterator[str]:
    """What is wrong with tokens, callers and certificates, and what a server would warn of."""
    files = files_of(settings, identity_of(settings), lambda _: None, Certificates())
    for read in (*files, *MetricsAccess(settings).files):
        try:
            warning = read().warning
        except InvalidRequest as error:
            yield from map(str, error.violations)
        else:
            yield from [warning] if warning else []


def _addresses(settings: Settings) -> Iterator[str]:
    """What is wrong with the addresses to listen on, apart from their ports."""
    yield from (f"host: {reason}" for path in settings.unix_sockets if (reason := why_no_socket(path)))
    hosts = {} if settings.unix_socket else {"host": settings.host}
    if settings.health_address is not None:
        hosts["health_host"] = settings.health_address[0]
    if settings.metrics_port is not None:
        hosts["metrics_host"] = settings.metrics_address[0]
    yield from (f"{name}: {reason}" for name, host in hosts.items() if (reason := why_not(host, 0)))


def _devices(settings: Settings) -> Iterator[str]:
    """Which devices are none of this machine's."""
    from dst_grpc.contexts.device import pick_device  # imports torch

    for device in settings.devices:
        try:
            pick_device(device)
        except InvalidRequest as error:
            yield from map(str, error.violations)


def _registry(settings: Settings) -> Iterator[str]:
    """What is wrong with models and autoencoder sets, and which of those to preload there are not."""
    from dst_grpc.rpc.registering import build_registry  # imports torch

    try:
        registry = build_registry(settings.model_copy(update={"strict": False}))
    except InvalidRequest as error:
        yield from map(str, error.violations)
        if any(violation.field == "default_model" for violation in error.violations):
            yield from _registry(settings.model_copy(update={"default_model": None}))  # which was looked at first
        return
    except DstError as error:
        yield error.message
        return
    yield from (f"cannot be served: {failed}" for failed in registry.failed)
    known = {failed.name for failed in registry.failed}
    for name in (*settings.preload, *settings.pin):
        try:
            registry.entry(name)
        except DstError as error:
            if ContextRef.parse(name).name not in known:
                yield f"preload: {error.message}"

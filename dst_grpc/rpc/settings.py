"""Settings of the server: one frozen value, from flags, the environment, a TOML file and defaults, in this precedence.

Every setting has one name: `grace_seconds` in the file, DST_GRACE_SECONDS in the environment, `--grace-seconds` as a
flag. All problems are reported together, before anything starts. Only the settings file is opened here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from dst_grpc.rpc.setting_types import (
    LAST_PORT,
    Bytes,
    ClientNameKind,
    ConnectionSeconds,
    Count,
    Device,
    ExistingFile,
    ExistingFolders,
    FileMode,
    ModelFolders,
    NamedDevices,
    Networks,
    PortNumber,
    PositiveBytes,
    PositiveSeconds,
    References,
    Seconds,
)

PREFIX = "DST_"
"""What the names of settings in the environment begin with."""
UNIX_PREFIX = "unix:"
"""What begins an address that is a unix socket."""
_MIB = 1 << 20
_LONGEST_SOCKET = 107 if sys.platform == "linux" else 103
"""Bytes that the path of a unix socket may have."""
_EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104  what they mean, not what we choose


class Settings(BaseSettings):
    """How the server runs. Make it with `load_settings`; every field has a default."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        enable_decoding=False,  # lists and tables in the environment are text that a person can type, not JSON
    )

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address to listen on; or unix:PATH, for a unix socket."""
    port: PortNumber = 50051
    """Port to listen on; 0 lets the system choose."""
    unix_socket_mode: FileMode | None = None
    """Permissions of the unix socket, in octal, as 660: who may write to it may call. None = those of the umask, which
    usually are the server's own user's."""

    registry: ExistingFile | None = None
    """TOML file that names models and autoencoder sets. The embedded model is then served only if it is named there."""
    hub_cache: Path | None = None
    """Folder of files that `dst-grpc pull` fetched; None = in the platform's folder for caches."""
    hub_endpoint: str | None = None
    """Server that `dst-grpc pull` fetches from; None = HF_ENDPOINT, else huggingface.co."""
    models: ModelFolders = {}
    """Folders of models, by the name that clients use."""
    default_model: str | None = None
    """Model of requests that name none; None = the registry's, else the embedded one, else the first by name."""
    autoencoder_roots: ExistingFolders = ()
    """Folders below which clients may name autoencoders by path."""
    preload: References = ()
    """Models and autoencoder sets to load before the server is ready."""
    pin: References = ()
    """Models and autoencoder sets to preload as well, and never to unload unless an operator unpins them."""
    device: Device = "auto"
    """Device of the models: auto, cpu, cuda:N or mps:N."""
    devices: NamedDevices = ()
    """Devices to run a process each for, as in cuda:0,cuda:1. The first listens on `port`, the next on the port after
    it, and so for metrics; a process that ends is started again."""
    budget_bytes: PositiveBytes | None = None
    """Bytes that loaded models and autoencoders may take together on a device; None = no bound."""
    context_ttl_seconds: PositiveSeconds | None = None
    """How long a model or an autoencoder set may be loaded without being used; None = for ever."""

    strict: bool = False
    """Whether to refuse to start if a model or an autoencoder set cannot be served; else it is listed as failed, with
    the reason, and all others are served."""
    omit_dead_latents: bool = False
    """Whether to load autoencoders without dead latents, those that their files say are active less than once in 10^8
    tokens: equally many at each layer of a set. The others move up, in order; handles of such sets say -live."""
    allow_failed_checks: bool = False
    """Whether to serve autoencoders that do not reconstruct their declared input; clients see their figures."""

    max_queued_requests: Count = 4096
    """Requests that may wait before more are refused."""
    max_queued_requests_per_caller: Count = 256
    """Requests of one caller that may wait before more of it are refused."""
    max_streams_per_caller: Count = 256
    """Streams of requests that one caller may have open before more of it are refused."""
    max_queued_bytes: PositiveBytes = 256 * _MIB
    """Bytes of the messages of waiting requests; one caller may have a quarter of them."""
    patience_seconds: PositiveSeconds = 30.0
    """How long a request without a deadline may be expected to take before it is refused."""
    max_run_bytes: PositiveBytes = 4096 * _MIB
    """Memory of each device, without weights, that running requests may take together."""
    store_bytes: Bytes = 512 * _MIB
    """Bytes of recordings to keep, so that another request about a run needs no pass; 0 = none."""
    share_recordings: bool = False
    """Whether callers use one another's recordings and graphs. Then the list of graphs tells what others have asked,
    and so does how long an answer takes."""
    kept_graph_bytes: Bytes = 512 * _MIB
    """Bytes of attribution graphs to keep for later questions; 0 = none."""
    kept_graph_seconds: PositiveSeconds = 3600.0
    """How long a graph is kept that nobody asks about."""
    max_items_in_flight_per_stream: Count = 16
    """Items of one stream that run at once; reading pauses beyond."""
    max_items_per_stream: Count = 1_000_000
    """Items of one stream in all; further ones fail."""
    return_freed_memory: bool = False
    """Whether the memory of runs on a CPU goes back to the system as soon as it is free (glibc), not only once nothing
    has run for ten seconds. The process then takes a fifth less at its peak; runs take up to half as long again."""
    max_unread_bytes: Bytes = 64 * _MIB
    """Bytes of answers that may be made ahead of a caller's reading, over all its calls; work pauses beyond."""
    max_unread_total_bytes: Bytes = 512 * _MIB
    """The same for all callers together."""
    slow_reader_seconds: PositiveSeconds = 30.0
    """How long a message may wait for a client to take it before its call is ended."""
    slow_sender_seconds: PositiveSeconds = 30.0
    """How long the message of a call may take to come in before the call is ended."""
    max_message_bytes: Annotated[PositiveBytes, Field(ge=1024, le=2**31 - 1)] = 4 * _MIB
    """Largest request message."""
    max_put_tensor_bytes: Bytes = 256 * _MIB
    """Bytes of tensors, 4 a number, that one caller may store for its requests; 0 = none."""
    max_put_tensor_total_bytes: Bytes = 1024 * _MIB
    """Bytes of tensors that all callers together may store."""
    put_tensor_ttl_seconds: PositiveSeconds = 3600.0
    """How long a caller's tensor is kept."""
    max_concurrent_calls: Count | None = None
    """Calls in progress before more are refused; None = no bound."""

    open_operate: bool = False
    """Whether callers from other hosts may load, pin, unload and reload, if they are not known by token or
    certificate."""
    trusted_proxies: Networks = ()
    """Networks of proxies, as in 10.0.0.0/8, that are believed where a call comes from (x-forwarded-for)."""
    reflection: bool = True
    """Whether tools can list the services and their messages (server reflection)."""
    tls_certificate: ExistingFile | None = None
    """Certificate chain in PEM; None = no TLS."""
    tls_key: ExistingFile | None = None
    """Private key in PEM."""
    tls_client_ca: ExistingFile | None = None
    """Certificates in PEM of the authorities of clients' certificates; None = clients need none."""
    tls_client_name: ClientNameKind | None = None
    """Kind of name in clients' certificates that callers are known by, as gRPC calls it; None = not by certificate."""
    auth_token_file: ExistingFile | None = None
    """Bearer tokens that callers are known by: a line each, as `dst-grpc tokens new` prints it; None = not by token."""
    callers_file: ExistingFile | None = None
    """TOML file of what callers are granted, by name: weight, quota, share of memory, priority; None = all alike."""

    watch_seconds: Seconds = 10.0
    """How often to look at the files that a reload reads: registry, tokens, callers, certificates. When one of them has
    changed, all are reloaded. 0 = only when told."""
    max_connection_age_seconds: ConnectionSeconds | None = None
    """How old a connection may become before its client is asked to open another, which may show another certificate
    and reach another server; give or take a tenth; at most 24 days. None = any age."""
    max_connection_age_grace_seconds: ConnectionSeconds | None = None
    """How long calls of such a connection may go on before they are cut off, longer than the longest call; None = to
    their end."""
    grace_seconds: Seconds = 30.0
    """How long calls in progress may go on once the server stops."""
    drain_notice_seconds: Seconds = 0.0
    """How long health checks report NOT_SERVING, while all calls are served, before new work is refused."""
    health_port: PortNumber | None = None
    """Port that answers health checks and nothing else, in plain text, for probes that know no TLS; 0 lets the system
    choose, None = only the server's own."""
    health_host: Annotated[str, Field(min_length=1)] | None = None
    """Address of that port; None = that of the server, or this machine's own beside a unix socket."""

    metrics_port: PortNumber | None = None
    """Port of Prometheus metrics over HTTP; 0 lets the system choose, None = no metrics."""
    metrics_host: Annotated[str, Field(min_length=1)] | None = None
    """Address of the metrics; None = that of the server, or this machine's own beside a unix socket."""
    metrics_tls_certificate: ExistingFile | None = None
    """Certificate chain in PEM, for metrics over HTTPS; None = HTTP."""
    metrics_tls_key: ExistingFile | None = None
    """Private key in PEM."""
    metrics_token_file: ExistingFile | None = None
    """Bearer tokens of those who may read the metrics, as in auth_token_file; None = everybody may."""
    log_format: Literal["text", "json"] = "text"
    """How log lines are written."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Lowest level to write."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """Rules about several fields."""
        problems = []
        if (self.tls_certificate is None) != (self.tls_key is None):
            problems.append("tls_certificate and tls_key must be given together")
        if (self.metrics_tls_certificate is None) != (self.metrics_tls_key is None):
            problems.append("metrics_tls_certificate and metrics_tls_key must be given together")
        if self.host == UNIX_PREFIX:
            problems.append("host must name a socket after unix:, as in unix:/run/dst.sock")
        if self.tls_client_name is not None and self.tls_client_ca is None:
            problems.append("tls_client_name needs tls_client_ca")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            problems.append("tls_client_ca needs tls_certificate and tls_key")
        if self.unix_socket_mode is not None and self.unix_socket is None:
            problems.append("unix_socket_mode needs a host that is a unix socket")
        if self.max_connection_age_grace_seconds is not None and self.max_connection_age_seconds is None:
            problems.append("max_connection_age_grace_seconds needs max_connection_age_seconds")
        if self.devices and self.device != "auto":
            problems.append("give either device or devices")
        problems += [*self._unlistened(), *self._missing_ports(), *self._collisions(), *self._long_sockets()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _unlistened(self) -> Iterator[str]:
        """Settings of a listener that there is not: who protects metrics wants metrics."""
        of_metrics = ("metrics_host", "metrics_tls_certificate", "metrics_tls_key", "metrics_token_file")
        for port, names in (("metrics_port", of_metrics), ("health_port", ("health_host",))):
            if getattr(self, port) is None:
                yield from (f"{name} needs {port}" for name in names if getattr(self, name) is not None)

    def _missing_ports(self) -> Iterator[str]:
        """Ports so high that not every device can have one."""
        for name in ("port", "metrics_port", "health_port"):
            first = getattr(self, name)
            if first and first + len(self.devices) - 1 > LAST_PORT:
                yield f"{name} = {first} leaves no ports for {len(self.devices)} devices"

    def _collisions(self) -> Iterator[str]:
        """Ports that two listeners of ours would both want, on the same address or on every one."""
        listeners = {"port": (self.host, self.port)} if self.unix_socket is None else {}
        listeners |= {"health_port": self.health_address} if self.health_address else {}
        listeners |= {"metrics_port": self.metrics_address} if self.metrics_port else {}
        more = max(0, len(self.devices) - 1)
        for (one, (host, first)), (other, (its_host, its_first)) in combinations(listeners.items(), 2):
            apart = host != its_host and not {host, its_host} & {*_EVERY_ADDRESS}
            if apart or 0 in (first, its_first) or abs(first - its_first) > more:
                continue
            if more:
                ports = f"{one} takes {first} to {first + more} and {other} {its_first} to {its_first + more}"
                yield f"{ports}, one for each device: give them ports further apart"
            else:
                yield f"{one} and {other} are both {first}: give each its own"

    def _long_sockets(self) -> Iterator[str]:
        """Paths that are too long for a socket."""
        longest = max((len(os.fsencode(path)) for path in self.unix_sockets), default=0)
        if longest > _LONGEST_SOCKET:
            yield f"the path of host has {longest} bytes, and that of a socket at most {_LONGEST_SOCKET}"

    @property
    def unix_socket(self) -> Path | None:
        """The socket to listen on; None = a port."""
        return Path(self.host.removeprefix(UNIX_PREFIX)) if self.host.startswith(UNIX_PREFIX) else None

    @property
    def unix_sockets(self) -> tuple[Path, ...]:
        """That socket, or one for each of the devices; none = ports."""
        path = self.unix_socket
        if path is None or not self.devices:
            return () if path is None else (path,)
        return tuple(path.with_name(f"{path.name}.{number}") for number in range(len(self.devices)))

    @property
    def metrics_address(self) -> tuple[str, int]:
        """Host and port of the metrics, if there are any."""
        beside = self.host if self.unix_socket is None else "127.0.0.1"
        return self.metrics_host or beside, self.metrics_port or 0

    @property
    def health_address(self) -> tuple[str, int] | None:
        """Host and port of health checks alone; None = there are none."""
        beside = self.host if self.unix_socket is None else "127.0.0.1"
        return None if self.health_port is None else (self.health_host or beside, self.health_port)

    @property
    def reloaded_files(self) -> tuple[Path, ...]:
        """The files that a reload reads."""
        files = (
            *(self.registry, self.auth_token_file, self.callers_file),
            *(self.tls_certificate, self.tls_key, self.tls_client_ca),
            *(self.metrics_tls_certificate, self.metrics_tls_key, self.metrics_token_file),
        )
        return tuple(file for file in files if file is not None)

    @property
    def has_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.tls_certificate is not None

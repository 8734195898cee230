"""Settings of the server: one frozen value, from flags, the environment, a TOML file and defaults, in this precedence.

Every setting has one name: `grace_seconds` in the file, DST_GRACE_SECONDS in the environment, `--grace-seconds` as a
flag. All problems are reported together, before anything starts. Only the settings file is opened here.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from dst_grpc.domain.handles import ContextRef, is_device
from dst_grpc.errors import InvalidRequest

FILE_VARIABLE = "DST_CONFIG"
_PREFIX = "DST_"
UNIX_PREFIX = "unix:"
"""What begins an address that is a unix socket."""
_MIB = 1 << 20
_LAST_PORT = 65535
_PATHS = frozenset(
    {
        "models",
        "registry",
        "hub_cache",
        "autoencoder_roots",
        "tls_certificate",
        "tls_key",
        "tls_client_ca",
        "auth_token_file",
        "callers_file",
    }
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the settings."""

    field: str
    """Name of the setting, with the key or position within it; empty for the settings as a whole."""
    value: str
    """The given value, as text."""
    description: str
    """What is wrong."""

    def __str__(self) -> str:
        """One line."""
        return f"{self.field} = {self.value}: {self.description}" if self.field else self.description


class SettingsError(Exception):
    """The settings are invalid. `problems` lists everything that is wrong."""

    def __init__(self, problems: list[Problem]) -> None:
        """Make the error; its text has a line for each problem."""
        self.problems = tuple(problems)
        count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{count} with the settings:", *(f"  {problem}" for problem in problems)]))


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError("there is no such file")
    return path


def _existing_folder(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError("there is no such folder")
    return path


def _device(text: str) -> str:
    if text != "auto" and not is_device(text):
        raise ValueError("is not a device: auto, cpu, cuda, cuda:N, mps or mps:N")
    return text


def _named_device(text: str) -> str:
    if not is_device(text):
        raise ValueError("is not a device: cpu, cuda, cuda:N, mps or mps:N")
    return text


def _name(text: str) -> str:
    try:
        reference = ContextRef.parse(text)
    except InvalidRequest as error:
        raise ValueError(error.violations[0].description) from None
    if reference.is_handle:
        raise ValueError("must be a name without @, not a handle")
    return text


def _split(value: Any) -> Any:
    """A list given as text, in the environment or a flag: `a,b`."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _split_each(value: Any) -> Any:
    """A list given as text, or as a list of such texts."""
    parts = _split(value)
    return [one for part in parts for one in _split(part)] if isinstance(parts, list | tuple) else parts


def _networks(value: Any) -> Any:
    """A list of networks given as text, or as a list of texts."""
    parts = _split(value)
    if not isinstance(parts, list | tuple):
        return parts
    return tuple(_network(part) for each in parts for part in _split(str(each)))


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError:
        raise ValueError(f"{text!r} is no network, as in 10.0.0.0/8, and no address") from None


def _split_pairs(value: Any) -> Any:
    """A table given as text, or as a list of texts: `name=folder,name=folder`."""
    parts = _split(value)
    if not isinstance(parts, list | tuple):
        return parts
    pairs = [str(part).partition("=") for part in parts]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError("must be written as name=folder, several with commas between them")
    return {name.strip(): folder.strip() for name, _, folder in pairs}


def _reference(text: str) -> str:
    try:
        ContextRef.parse(text)
    except InvalidRequest as error:
        raise ValueError(error.violations[0].description) from None
    return text


ExistingFile = Annotated[Path, AfterValidator(_existing_file)]
ExistingFolder = Annotated[Path, AfterValidator(_existing_folder)]
ModelName = Annotated[str, AfterValidator(_name)]
NamedDevice = Annotated[str, AfterValidator(_named_device)]
Reference = Annotated[str, AfterValidator(_reference)]
ClientNameKind = Literal["peer_dns", "peer_uri", "peer_email", "peer_ip", "x509_common_name", "x509_subject"]
PortNumber = Annotated[int, Field(ge=0, le=_LAST_PORT)]


class Settings(BaseSettings):
    """How the server runs. Make it with `load_settings`; every field has a default."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        enable_decoding=False,  # lists and tables in the environment are text that a person can type, not JSON
    )

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address to listen on; or unix:PATH, for a unix socket."""
    port: PortNumber = 50051
    """Port to listen on; 0 lets the system choose."""

    registry: ExistingFile | None = None
    """TOML file that names models and autoencoder sets. The embedded model is then served only if it is named there."""
    hub_cache: Path | None = None
    """Folder of files that `dst-grpc pull` fetched; None = in the platform's folder for caches."""
    hub_endpoint: str | None = None
    """Server that `dst-grpc pull` fetches from; None = HF_ENDPOINT, else huggingface.co."""
    models: Annotated[dict[ModelName, ExistingFolder], BeforeValidator(_split_pairs)] = {}
    """Folders of models, by the name that clients use."""
    default_model: str | None = None
    """Model of requests that name none; None = the registry's, else the embedded one, else the first by name."""
    autoencoder_roots: Annotated[tuple[ExistingFolder, ...], BeforeValidator(_split)] = ()
    """Folders below which clients may name autoencoders by path."""
    preload: Annotated[tuple[Reference, ...], BeforeValidator(_split)] = ()
    """Models and autoencoder sets to load before the server is ready."""
    pin: Annotated[tuple[Reference, ...], BeforeValidator(_split)] = ()
    """Models and autoencoder sets to preload as well, and never to unload unless an operator unpins them."""
    device: Annotated[str, AfterValidator(_device)] = "auto"
    """Device of the models: auto, cpu, cuda:N or mps:N."""
    devices: Annotated[tuple[NamedDevice, ...], BeforeValidator(_split_each)] = ()
    """Devices to run a process each for, as in cuda:0,cuda:1. The first listens on `port`, the next on the port after
    it, and so for metrics; a process that ends is started again."""
    budget_bytes: Annotated[int, Field(gt=0)] | None = None
    """Bytes that loaded models and autoencoders may take together on a device; None = no bound."""
    context_ttl_seconds: Annotated[float, Field(gt=0)] | None = None
    """How long a model or an autoencoder set may be loaded without being used; None = for ever."""

    strict: bool = False
    """Whether to refuse to start if a model or an autoencoder set cannot be served; else it is listed as failed, with
    the reason, and all others are served."""
    omit_dead_latents: bool = False
    """Whether to load autoencoders without dead latents, those that their files say are active less than once in 10^8
    tokens: equally many at each layer of a set. The others move up, in order; handles of such sets say -live."""
    allow_failed_checks: bool = False
    """Whether to serve autoencoders that do not reconstruct their declared input; clients see their figures."""

    max_queued_requests: Annotated[int, Field(ge=1)] = 4096
    """Requests that may wait before more are refused."""
    max_queued_requests_per_caller: Annotated[int, Field(ge=1)] = 256
    """Requests of one caller that may wait before more of it are refused."""
    max_queued_bytes: Annotated[int, Field(gt=0)] = 256 * _MIB
    """Bytes of the messages of waiting requests; one caller may have a quarter of them."""
    patience_seconds: Annotated[float, Field(gt=0)] = 30.0
    """How long a request without a deadline may be expected to take before it is refused."""
    max_run_bytes: Annotated[int, Field(gt=0)] = 4096 * _MIB
    """Memory of each device, without weights, that running requests may take together."""
    store_bytes: Annotated[int, Field(ge=0)] = 512 * _MIB
    """Bytes of recordings to keep, so that another request about a run needs no pass; 0 = none."""
    share_recordings: bool = False
    """Whether callers use one another's recordings and graphs; how long an answer takes then tells what others have
    asked."""
    kept_graph_bytes: Annotated[int, Field(ge=0)] = 512 * _MIB
    """Bytes of attribution graphs to keep for later questions; 0 = none."""
    kept_graph_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """How long a graph is kept that nobody asks about."""
    max_items_in_flight_per_stream: Annotated[int, Field(ge=1)] = 16
    """Items of one stream that run at once; reading pauses beyond."""
    max_items_per_stream: Annotated[int, Field(ge=1, le=2**31 - 1)] = 1_000_000
    """Items of one stream in all; further ones fail."""
    return_freed_memory: bool = True
    """Whether the memory of runs on a CPU goes back to the system as soon as it is free (glibc), so that the process
    takes what requests are estimated to take. It costs processor time: about 5 % at 64 tokens, 10 to 20 % in gradient
    passes of 256, 20 to 40 % with attention matrices of 512. Without it the process may take twice as much."""
    max_unread_bytes: Annotated[int, Field(ge=0)] = 64 * _MIB
    """Bytes of answers that may be made ahead of a caller's reading, over all its calls; work pauses beyond."""
    max_unread_total_bytes: Annotated[int, Field(ge=0)] = 512 * _MIB
    """The same for all callers together."""
    slow_reader_seconds: Annotated[float, Field(gt=0)] = 30.0
    """How long a message may wait for a client to take it before its call is ended."""
    max_message_bytes: Annotated[int, Field(ge=1024, le=2**31 - 1)] = 4 * _MIB
    """Largest request message."""
    max_put_tensor_bytes: Annotated[int, Field(ge=0)] = 256 * _MIB
    """Bytes of tensors, 4 a number, that one caller may store for its requests; 0 = none."""
    max_put_tensor_total_bytes: Annotated[int, Field(ge=0)] = 1024 * _MIB
    """Bytes of tensors that all callers together may store."""
    put_tensor_ttl_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """How long a caller's tensor is kept."""
    max_concurrent_calls: Annotated[int, Field(ge=1)] | None = None
    """Calls in progress before more are refused; None = no bound."""

    open_operate: bool = False
    """Whether callers from other hosts may load, pin, unload and reload, if they are not known by token or
    certificate."""
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_networks)] = ()
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

    grace_seconds: Annotated[float, Field(ge=0)] = 30.0
    """How long calls in progress may go on once the server stops."""
    drain_notice_seconds: Annotated[float, Field(ge=0)] = 0.0
    """How long health checks report NOT_SERVING, and new work is refused, before connections are closed."""

    metrics_port: PortNumber | None = None
    """Port of Prometheus metrics over HTTP, on the same host; 0 lets the system choose, None = no metrics."""
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
        if self.host == UNIX_PREFIX:
            problems.append("host must name a socket after unix:, as in unix:/run/dst.sock")
        if self.tls_client_name is not None and self.tls_client_ca is None:
            problems.append("tls_client_name needs tls_client_ca")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            problems.append("tls_client_ca needs tls_certificate and tls_key")
        if self.devices and self.device != "auto":
            problems.append("give either device or devices")
        last = len(self.devices) - 1
        problems += [
            f"{name} = {first} leaves no ports for {len(self.devices)} devices"
            for name, first in (("port", self.port), ("metrics_port", self.metrics_port))
            if first and first + last > _LAST_PORT
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def unix_socket(self) -> Path | None:
        """The socket to listen on; None = a port."""
        return Path(self.host.removeprefix(UNIX_PREFIX)) if self.host.startswith(UNIX_PREFIX) else None

    @property
    def metrics_host(self) -> str:
        """Address that metrics are served on: that of the server, or this machine's own beside a unix socket."""
        return self.host if self.unix_socket is None else "127.0.0.1"

    @property
    def has_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.tls_certificate is not None


def load_settings(flags: Mapping[str, Any] | None = None, *, file: Path | None = None) -> Settings:
    """Read the settings from *flags*, the environment, and a TOML *file* (None = the one DST_CONFIG names, if any).

    Flags that are None count as not given. Paths in the file are relative to the file's folder.

    Raises:
        SettingsError: Something is wrong with them; it lists everything.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    if file is None and FILE_VARIABLE in os.environ:
        file = Path(os.environ[FILE_VARIABLE])
    content = _read(file) if file is not None else {}

    class FromEverywhere(Settings):
        """The settings with the file as a source, which pydantic-settings takes from the class."""

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            """Flags, environment, file."""
            del dotenv_settings, file_secret_settings
            return init_settings, env_settings, InitSettingsSource(settings_cls, content)

    try:
        return FromEverywhere(**given)
    except ValidationError as error:
        raise SettingsError([_problem(dict(detail), given, file) for detail in error.errors()]) from None


def _read(file: Path) -> dict[str, Any]:
    """The content of the settings file, with relative paths resolved against its folder."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([Problem("config", str(file), f"cannot be read: {error}")]) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([Problem("config", str(file), f"is no TOML: {error}")]) from None
    for name in _PATHS & content.keys():
        content[name] = _below(file.parent, content[name])
    return content


def _below(folder: Path, value: Any) -> Any:
    """*value*, a path or a list or table of paths, with relative ones below *folder*; anything else as it is."""
    if isinstance(value, str):
        return str(folder / value)
    if isinstance(value, list):
        return [_below(folder, item) for item in value]
    if isinstance(value, dict):
        return {key: _below(folder, item) for key, item in value.items()}
    return value


def _problem(detail: dict[str, Any], flags: Mapping[str, Any], file: Path | None) -> Problem:
    """One of pydantic's errors, in words for an operator."""
    path = [str(part) for part in detail["loc"] if part != "[key]"]
    text = str(detail["msg"]).removeprefix("Value error, ")
    if not path:
        return Problem("", "", text)
    name = path[0]
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, Settings.model_fields, n=1)
        text = "there is no such setting" + (f"; did you mean {near[0]}?" if near else "")
    if name in flags:
        source = f"--{name.replace('_', '-')}"
    elif _PREFIX + name.upper() in os.environ:
        source = _PREFIX + name.upper()
    else:
        source = str(file)
    given = detail["input"]
    value = repr(str(given) if isinstance(given, Path) else given)
    return Problem(".".join(path), value, f"{text[:1].lower()}{text[1:]} (from {source})")

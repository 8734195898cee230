"""Types of the server's settings: how each is read from text, and what a value must be."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from dst_grpc.domain.handles import ContextRef, is_device
from dst_grpc.errors import InvalidRequest
from dst_grpc.rpc.quantities import bytes_of, seconds_of


def _existing_file(path: Path) -> Path:
    return _existing(path, stat.S_ISREG, "file")


def _existing_folder(path: Path) -> Path:
    return _existing(path, stat.S_ISDIR, "folder")


def _existing(path: Path, is_kind: Callable[[int], bool], kind: str) -> Path:
    try:
        if is_kind(path.stat().st_mode):
            return path
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for a NUL in it
        pass
    except OSError as error:  # such as a folder on the way that this user may not search
        raise ValueError(f"cannot be looked at: {error.strerror}") from None
    raise ValueError(f"there is no such {kind}")


def _device(text: str) -> str:
    if text != "auto" and not is_device(text):
        raise ValueError("is not a device: auto, cpu, cuda, cuda:N, mps or mps:N")
    return text


def _named_device(text: str) -> str:
    if not is_device(text):
        raise ValueError("is not a device: cpu, cuda, cuda:N, mps or mps:N")
    return text


def _name(text: str) -> str:
    if _parsed(text).is_handle:
        raise ValueError("must be a name without @, not a handle")
    return text


def _reference(text: str) -> str:
    _parsed(text)
    return text


def _parsed(text: str) -> ContextRef:
    try:
        return ContextRef.parse(text)
    except InvalidRequest as error:
        raise ValueError(error.violations[0].description) from None


def _number(value: Any) -> Any:
    """A number, or text of one; pydantic takes truth values for 0 and 1."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {str(value).lower()}")  # noqa: TRY004  pydantic reports these
    return value


def _size(value: Any) -> Any:
    """A size given as text, with a unit or without."""
    size = bytes_of(value) if isinstance(value, str) else _number(value)
    if isinstance(size, int | float) and size > _MOST_BYTES:
        raise ValueError("must be at most 2^60 bytes")
    return size


def _mode(value: Any) -> Any:
    """Permissions in octal."""
    if not isinstance(value, str) or re.fullmatch("[0-7]{3}", value) is None:
        raise ValueError('must be permissions in octal, as text: "660"')
    return value


def _duration(value: Any) -> Any:
    """A duration given as text, with a unit or without."""
    return seconds_of(value) if isinstance(value, str) else _number(value)


def _split(value: Any) -> Any:
    """A list given as text, in the environment or a flag: `a,b`."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _split_each(value: Any) -> Any:
    """A list given as text, or as a list of such texts."""
    parts = _split(value)
    if not isinstance(parts, list | tuple):
        return parts
    return [one for part in parts for one in (_split(part) if isinstance(part, str) else [part])]


def _networks(value: Any) -> Any:
    """A list of networks given as text, or as a list of texts."""
    parts = _split_each(value)
    return [_network(str(part)) for part in parts] if isinstance(parts, list) else parts


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


LAST_PORT = 65535
_MOST_BYTES = 2**60
_MOST = 2**31 - 1
"""The largest number that gRPC and the system take for a count, or for the milliseconds of a timer."""
_LONGEST_SECONDS = 100 * 365 * 86400
"""A century: timers of the system and durations in messages reach about so far."""

Device = Annotated[str, AfterValidator(_device)]
NamedDevices = Annotated[tuple[Annotated[str, AfterValidator(_named_device)], ...], BeforeValidator(_split_each)]
ExistingFile = Annotated[Path, AfterValidator(_existing_file)]
ExistingFolder = Annotated[Path, AfterValidator(_existing_folder)]
ExistingFolders = Annotated[tuple[ExistingFolder, ...], BeforeValidator(_split)]
FileMode = Annotated[str, BeforeValidator(_mode)]
ModelName = Annotated[str, AfterValidator(_name)]
ModelFolders = Annotated[dict[ModelName, ExistingFolder], BeforeValidator(_split_pairs)]
References = Annotated[tuple[Annotated[str, AfterValidator(_reference)], ...], BeforeValidator(_split_each)]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_networks)]
ClientNameKind = Literal["peer_dns", "peer_uri", "peer_email", "peer_ip", "x509_common_name", "x509_subject"]
PortNumber = Annotated[int, BeforeValidator(_number), Field(ge=0, le=LAST_PORT)]
Count = Annotated[int, BeforeValidator(_number), Field(ge=1, le=_MOST)]
Bytes = Annotated[int, BeforeValidator(_size), Field(ge=0)]
PositiveBytes = Annotated[int, BeforeValidator(_size), Field(gt=0)]
Seconds = Annotated[float, BeforeValidator(_duration), Field(ge=0, le=_LONGEST_SECONDS)]
PositiveSeconds = Annotated[float, BeforeValidator(_duration), Field(gt=0, le=_LONGEST_SECONDS)]
ConnectionSeconds = Annotated[float, BeforeValidator(_duration), Field(gt=0, le=_MOST // 1000)]

"""Types of the server's settings: how each is read from text, and what a value must be."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from dst_grpc.domain.handles import ContextRef, is_device
from dst_grpc.errors import InvalidRequest
from dst_grpc.rpc.quantities import bytes_of, seconds_of


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


def _size(value: Any) -> Any:
    """A size given as text, with a unit or without."""
    return bytes_of(value) if isinstance(value, str) else value


def _mode(value: Any) -> Any:
    """Permissions in octal."""
    if not isinstance(value, str) or re.fullmatch("[0-7]{3}", value) is None:
        raise ValueError('must be permissions in octal, as text: "660"')
    return value


def _duration(value: Any) -> Any:
    """A duration given as text, with a unit or without."""
    return seconds_of(value) if isinstance(value, str) else value


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


LAST_PORT = 65535

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
PortNumber = Annotated[int, Field(ge=0, le=LAST_PORT)]
Bytes = Annotated[int, BeforeValidator(_size), Field(ge=0)]
PositiveBytes = Annotated[int, BeforeValidator(_size), Field(gt=0)]
Seconds = Annotated[float, BeforeValidator(_duration), Field(ge=0)]
PositiveSeconds = Annotated[float, BeforeValidator(_duration), Field(gt=0)]

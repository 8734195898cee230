"""Where settings come from: flags, the environment, a TOML file; and what is wrong with what they say, all together."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource

from dst_grpc.errors import InvalidRequest
from dst_grpc.rpc.settings import PREFIX, UNIX_PREFIX, Settings
from dst_grpc.sources.specs import toml_key
from dst_grpc.sources.toml_file import near, read_toml

FILE_VARIABLE = "DST_CONFIG"
_OTHER_VARIABLES = re.compile(
    # The command's own, and the tests'.
    r"DST_(CONFIG|SERVER|CLIENT_\w*|TEST_\w*)=.*"
    # Kubernetes tells each container of the services in its namespace, whose names may begin with dst too.
    r"|DST_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)=.*"
    r"|DST_\w+_PORT=(tcp|udp|sctp)://.*"
)
"""Variables, with their values, that begin like settings and are none."""
_WORDS = {
    **dict.fromkeys(("int_parsing", "int_parsing_size", "int_type", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "must be true or false"),
    **dict.fromkeys(("string_type", "path_type"), "must be text"),
    "float_type": "must be a number",
    "tuple_type": "must be a list",
    "dict_type": "must be a table",
}
"""What values must be, by pydantic's names of what is wrong; else its own words will do."""
_USER_OF_URL = re.compile(r"(?<=://)[^/@]*@")


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


def load_settings(flags: Mapping[str, Any] | None = None, *, file: Path | None = None) -> Settings:
    """Read the settings from *flags*, the environment, and a TOML *file* (None = the one DST_CONFIG names, if any).

    Flags that are None count as not given. Paths in the file are relative to the file's folder.

    Raises:
        SettingsError: Something is wrong with them; it lists everything.
    """
    return Given.read(flags, file).settings()


def wanted_log_format(flags: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    """The format in which what is wrong with the settings is to be said: as they say, even if they are wrong."""
    name = "log_format"
    return str(flags.get(name) or _variables().get(PREFIX + name.upper()) or content.get(name) or "text")


@dataclass(frozen=True, slots=True)
class Given:
    """What the sources say."""

    flags: Mapping[str, Any]
    """Values of settings by name."""
    file: Path | None
    """The settings file."""
    content: Mapping[str, Any]
    """What is in it, with paths relative to its folder resolved."""

    @classmethod
    def read(cls, flags: Mapping[str, Any] | None, file: Path | None) -> Given:
        """As `load_settings`."""
        given = {name: value for name, value in (flags or {}).items() if value is not None}
        source = "--config"
        if file is None and (named := _variables().get(FILE_VARIABLE)) is not None:
            file, source = Path(named), FILE_VARIABLE
        return cls(given, file, {} if file is None else _content_of(file, source))

    def settings(self) -> Settings:
        """The settings.

        Raises:
            SettingsError: Something is wrong with them; it lists everything.
        """
        content = self.content

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
                return init_settings, env_settings, InitSettingsSource(settings_cls, dict(content))

        problems = _problems_of_variables()
        try:
            settings = FromEverywhere(**self.flags)
        except ValidationError as error:
            problems += [self._problem(dict(detail)) for detail in error.errors()]
        else:
            if not problems:
                return settings
        raise SettingsError(problems)

    def source_of(self, name: str) -> str:
        """What the setting *name* comes from: a flag, a variable or the file; empty if it is a default."""
        if name in self.flags:
            return f"--{name.replace('_', '-')}"
        if PREFIX + name.upper() in _variables():
            return PREFIX + name.upper()
        return str(self.file) if name in self.content else ""

    def as_toml(self) -> str:
        """All settings as a settings file, with a comment on each that says what it comes from; no password is in it.

        Raises:
            SettingsError: Something is wrong with them.
        """
        settings = self.settings()
        lines = []
        for name in Settings.model_fields:
            value, source = getattr(settings, name), self.source_of(name) or "default"
            text = f"# {name} =" if value is None else f"{name} = {_toml(value)}"
            lines.append(f"{text}  # {source}\n")
        return "".join(lines)

    def _problem(self, detail: dict[str, Any]) -> Problem:
        """One of pydantic's errors, in words for an operator."""
        path = [str(part) for part in detail["loc"] if part != "[key]"]
        text = str(detail["msg"]).removeprefix("Value error, ")
        if not path:
            return Problem("", "", text)
        name, given, text = path[0], detail["input"], _WORDS.get(detail["type"], text)
        if detail["type"] == "extra_forbidden":
            text = f"there is no such setting{near(name, Settings.model_fields)}"
        source = self.source_of(name)
        if source.startswith(PREFIX) and str(given).startswith("tcp://"):
            source += ", which Kubernetes sets for a service so named unless the pod has enableServiceLinks: false"
        value = repr(str(given) if isinstance(given, Path) else given)
        return Problem(".".join(path), value, f"{text[:1].lower()}{text[1:]} (from {source})")


def _variables() -> dict[str, str]:
    """The variables of the environment by their names in upper case: settings may be named in either case."""
    return {name.upper(): value for name, value in os.environ.items()}


def _problems_of_variables() -> list[Problem]:
    """Variables of the environment that begin like settings, and name none, or one that another names too. Their values
    may be secret."""
    known = [FILE_VARIABLE, *(PREFIX + name.upper() for name in Settings.model_fields)]
    given = sorted(name for name in os.environ if name.upper().startswith(PREFIX))
    unknown = [
        f"{name} in the environment names no setting{near(name.upper(), known)}"
        for name in given
        if name.upper() not in known and not _OTHER_VARIABLES.fullmatch(f"{name.upper()}={os.environ[name]}")
    ]
    twice = [
        f"{one} and {other} in the environment name the same setting: give one of them"
        for one, other in combinations(given, 2)
        if one.upper() == other.upper() and one.upper() in known
    ]
    return [Problem("", "", text) for text in (*unknown, *twice)]


def _content_of(file: Path, source: str) -> dict[str, Any]:
    """The content of the settings file that *source* names, with relative paths resolved against its folder."""
    try:
        content = read_toml(file)
    except InvalidRequest as error:
        text = error.violations[0].description.removeprefix(f"{file.name} ")
        raise SettingsError([Problem("config", str(file), f"{text} (from {source})")]) from None
    for name, field in Settings.model_fields.items():
        if name in content and _has_paths(field.annotation):
            content[name] = _below(file.parent, content[name])
    host = content.get("host")
    if isinstance(host, str) and host.startswith(UNIX_PREFIX) and host != UNIX_PREFIX:
        content["host"] = f"{UNIX_PREFIX}{file.parent / host.removeprefix(UNIX_PREFIX)}"
    return content


def _has_paths(annotation: Any) -> bool:
    """Whether values of that type are, or hold, paths."""
    return annotation is Path or any(map(_has_paths, get_args(annotation)))


def _below(folder: Path, value: Any) -> Any:
    """*value*, a path or a list or table of paths, with relative ones below *folder*; anything else as it is."""
    if isinstance(value, str):
        return str(folder / value)
    if isinstance(value, list):
        return [_below(folder, item) for item in value]
    if isinstance(value, dict):
        return {key: _below(folder, item) for key, item in value.items()}
    return value


def _toml(value: Any) -> str:
    """*value* in TOML, without the user and password of a URL."""
    if isinstance(value, bool | int | float):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{toml_key(key)} = {_toml(each)}' for key, each in value.items())} }}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(_USER_OF_URL.sub("***@", str(value)), ensure_ascii=False)

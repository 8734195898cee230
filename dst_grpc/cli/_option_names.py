"""Errors in the words of the command line: options, in the place of the fields of requests that they fill."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cache

from typer.models import ArgumentInfo, ParameterInfo

from dst_grpc import client
from dst_grpc.domain.enum_names import json_name
from dst_grpc.errors import DstError, FieldViolation, InvalidRequest, PreconditionFailed

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "autoencoders": ("--autoencoder",),
    "ablation_specs": ("--ablate",),
    "begin_token": ("--begin",),
    "circuits": ("--evaluate",),
    "component_type_for_attention": ("--attention",),
    "component_type_for_mlp": ("--mlp",),
    "component_type_for_residual": ("--residual",),
    "derive_gradients": ("--gradients",),
    "derived_scalars": ("--type",),
    "edges": ("--edge", "--edges"),
    "fractions": ("--fraction",),
    "grids": ("--sites",),
    "grids.entries": ("--head",),
    "grids.layers": ("--layer",),
    "grids.positions": ("--position",),
    "interventions": ("--ablate", "--scale", "--patch"),
    "interventions.copy": ("--patch",),
    "interventions.copy.run": ("--source",),
    "layer_indices": ("--layer", "--head"),
    "loss_fn_config": ("--target", "--loss"),
    "loss_fn_config.distractor_tokens": ("--distractor",),
    "loss_fn_config.name": ("--loss",),
    "loss_fn_config.target_tokens": ("--target",),
    "max_feature_nodes": ("--max-features",),
    "multi_autoencoder_context": ("--read",),
    "node_ablations": ("--ablate",),
    "nodes": ("--sites",),
    "selection": ("--select",),
    "source_runs": ("--source",),
    "sources": ("--nodes",),
    "targets": ("--target",),
    "trace_config": ("--trace",),
    "wanted_faithfulness": ("--faithfulness",),
}
"""Options by the field that they fill, where they are called otherwise; of several, those that a command has and that
were given are named, or else its first."""
HOLDERS = ("request", "runs", "config", "curve")
"""Fields of messages whose fields options fill."""

Options = Mapping[str, bool]
"""The options and arguments of a command, and whether each was given."""

_INDEX = re.compile(r"\[\d+\]")
_PAIR = re.compile(r"pairs\[(\d+)\]\.?(.*)")
_FIELD = re.compile(r"(?<![\w.])(?:[a-z]+(?:_[a-z]+)+|[a-z]+(?=\[)|(?<=\bin )[a-z]+)(?:\[\d+\])?(?![\w.])")
"""What may be a field: several words, one with an index, or one that something is "in"."""
_MEMBER = re.compile(r"\b[A-Z]+(?:_[A-Z0-9]+)+\b")


def options_of(command: Callable[..., None], values: Mapping[str, object]) -> dict[str, bool]:
    """The options and arguments of *command*, and whether each was given, if it is called with these *values*."""
    found = {}
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        (info,) = (one for one in parameter.annotation.__metadata__ if isinstance(one, ParameterInfo))
        found[_option(name, info)] = values[name] not in (parameter.default, [])
    return found


def _option(name: str, info: ParameterInfo) -> str:
    """How the parameter *name* is called on the command line."""
    if isinstance(info, ArgumentInfo):
        return info.metavar or name.upper()
    declared = (info.default, *(info.param_decls or ()))  # typer takes the first name for the default
    long = [one.partition("/")[0] for one in declared if isinstance(one, str) and one.startswith("--")]
    return next(iter(long), f"--{name.replace('_', '-')}")


def in_options(error: DstError, options: Options) -> DstError:
    """*error*, with options in the place of fields, and values of options in that of members of enums."""
    if not isinstance(error, InvalidRequest | PreconditionFailed):
        return error
    told = (
        FieldViolation(option_of(one.field, options), _in_words(one.description, options)) for one in error.violations
    )
    violations = list(dict.fromkeys(told))  # an option may fill several fields
    if isinstance(error, PreconditionFailed):
        return PreconditionFailed(violations, reason=error.reason, metadata=error.metadata)
    return InvalidRequest(violations, omitted=error.omitted, reason=error.reason, metadata=error.metadata)


def option_of(path: str, options: Options) -> str:
    """The option that fills the field at *path*, or the row of a file that does; the path if there is none."""
    pair = _PAIR.fullmatch(path)
    if pair is not None:
        row = int(pair[1]) + (not options.get("CLEAN"))
        own = _filling(pair[2], options)
        if row == 0:
            return own or path
        return ", ".join(filter(None, [f"--pairs row {row}", own.replace("--", "").lower()]))
    return _filling(path, options) or path


def _filling(path: str, options: Options) -> str:
    """The options that fill the field at *path*; empty if there is none."""
    names = _INDEX.sub("", path).split(".")
    while len(names) > 1 and names[0] in HOLDERS:
        del names[0]
    fields = (".".join(names[:count]) for count in range(len(names), 0, -1))
    return next(filter(None, (_called(field, options) for field in fields)), "")


def _called(field: str, options: Options) -> str:
    """What the field without its indices is called; empty if there is no option for just that."""
    known = [one for one in OPTIONS.get(field, (f"--{field.replace('_', '-')}", field.upper())) if one in options]
    return " or ".join([one for one in known if options[one]] or known[:1])


def _in_words(description: str, options: Options) -> str:
    found = _FIELD.sub(lambda match: _called(_INDEX.sub("", match[0]), options) or match[0], description)
    return _MEMBER.sub(lambda match: _members().get(match[0], match[0]), found)


@cache
def _members() -> Mapping[str, str]:
    """The values of members of enums by their names in JSON."""
    enums = [one for one in vars(client).values() if isinstance(one, type) and issubclass(one, StrEnum)]
    return {json_name(member): member.value for enum in enums for member in enum}

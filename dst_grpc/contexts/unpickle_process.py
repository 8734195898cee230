"""The process that opens a pickle, started by `conversion` as a script: it imports nothing of this package.

A pickle is a program: it names functions, which are called. Here it may name only those below, which rebuild tensors,
arrays and plain containers and do nothing else. Every other name becomes an inert object, so that nothing is called and
all such names can be listed; a file that has any is refused. A forged file can still use memory and time, and both are
limited. No function here can reach the network or another file.

    python -I unpickle_process.py SOURCE TARGET SIZE SECONDS
"""

from __future__ import annotations

import collections
import json
import pathlib
import pickle
import resource
import sys
import tarfile
import types
import zipfile
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

_MEMORY_PER_BYTE = 6
_SPARE_BYTES = 1 << 30
_MAX_DEPTH = 20
_MAX_LISTED = 50
_MAX_VALUES = 1_000_000
_MAPPED = pathlib.Path("/proc/self/statm")
_REFUSED = 3

_MODULES = {
    "__builtin__": "builtins",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
}
_STORAGES = (
    "DoubleStorage", "FloatStorage", "HalfStorage", "BFloat16Storage", "LongStorage", "IntStorage", "ShortStorage",
    "CharStorage", "ByteStorage", "BoolStorage",
)  # fmt: skip


class _Inert:
    """Replaces anything that a pickle must not name; accepts all that a pickle may do to an object, and does
    nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        pass

    def extend(self, _: Any) -> None:
        pass


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Bytes as protocol 2 writes them; only this codec is allowed."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {encoding}")
    return text.encode("latin1")


def _allowed() -> dict[str, Any]:
    from numpy.core import multiarray

    return {
        "collections.OrderedDict": collections.OrderedDict,
        "builtins.set": set,
        "builtins.frozenset": frozenset,
        "builtins.complex": complex,
        "builtins.slice": slice,
        "_codecs.encode": _latin1,
        "torch.Size": torch.Size,
        "torch._utils._rebuild_tensor": torch._utils._rebuild_tensor,  # noqa: SLF001
        "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,  # noqa: SLF001
        "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,  # noqa: SLF001
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": np.dtype,
        "numpy.core.multiarray._reconstruct": multiarray._reconstruct,  # noqa: SLF001
        "numpy.core.multiarray.scalar": multiarray.scalar,
        **{f"torch.{name}": getattr(torch, name) for name in _STORAGES},
    }


_ALLOWED: dict[str, Any] = {}
_NAMES_REFUSED: dict[str, None] = {}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        spelt = f"{_MODULES.get(module, module)}.{name}"
        if spelt in _ALLOWED:
            return _ALLOWED[spelt]
        _NAMES_REFUSED[f"{module}.{name}"] = None
        return _Inert


def _load(file: Any, **arguments: Any) -> Any:
    return _Unpickler(file, **arguments).load()


def _limit(size: int, seconds: float) -> None:
    """Limit memory to what the file can need beyond what is mapped now, time, size of files written, and child
    processes."""
    limits = {
        resource.RLIMIT_CPU: int(seconds) + 1,
        resource.RLIMIT_FSIZE: 2 * size + (1 << 20),
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    if _MAPPED.exists():
        mapped = int(_MAPPED.read_text("ascii").split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = mapped + _MEMORY_PER_BYTE * size + _SPARE_BYTES
    for kind, limit in limits.items():
        _, most = resource.getrlimit(kind)
        allowed = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(kind, (allowed, allowed))


def _check_container(source: str) -> None:
    """Raise for files that torch.load would not open with the unpickler: TorchScript, or the format before 0.2."""
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            if any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist()):
                raise ValueError("it is a TorchScript program")
    elif tarfile.is_tarfile(source):
        raise ValueError("it is a tar archive, as torch wrote before 0.2")


def _flattened(
    prefix: str, value: Any, tensors: dict[str, torch.Tensor], texts: dict[str, str], *, depth: int = 0
) -> None:
    """Sort the unpickled values into tensors and texts; a mapping that holds tensors becomes names with dots."""
    if depth > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject and value.dtype.kind in "fiub":
        value = torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value.item()
    if isinstance(value, torch.Tensor):
        tensors[prefix] = value.detach().clone(memory_format=torch.contiguous_format)
    elif isinstance(value, dict) and _holds_tensors(value, depth):
        for name, one in value.items():
            _flattened(f"{prefix}.{name}" if prefix else str(name), one, tensors, texts, depth=depth + 1)
    elif isinstance(value, str):
        texts[prefix] = value
    else:
        _check_count(value)
        texts[prefix] = json.dumps(value, default=_plain)


def _holds_tensors(value: Any, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    if isinstance(value, dict):
        return any(_holds_tensors(one, depth + 1) for one in value.values())
    return isinstance(value, torch.Tensor | np.ndarray)


def _check_count(value: Any) -> None:
    """Raise unless *value* has a reasonable number of elements; shared ones count as often as they would be written."""
    left, waiting = _MAX_VALUES, [value]
    while waiting:
        one = waiting.pop()
        left -= 1
        if left < 0:
            raise ValueError(f"it has more than {_MAX_VALUES} values")
        if isinstance(one, dict):
            waiting.extend(one.values())
        elif isinstance(one, list | tuple | set | frozenset):
            waiting.extend(one)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    raise ValueError(f"it holds a {type(value).__name__} among its values")


def _main(source: str, target: str, size: str, seconds: str) -> int:
    _ALLOWED.update(_allowed())
    torch.set_num_threads(1)
    _limit(int(size), float(seconds))
    module = types.SimpleNamespace(__name__="pickle", Unpickler=_Unpickler, load=_load)
    try:
        _check_container(source)
        value = torch.load(source, map_location="cpu", weights_only=False, pickle_module=module)
        if not _NAMES_REFUSED:
            tensors: dict[str, torch.Tensor] = {}
            texts: dict[str, str] = {}
            if not isinstance(value, dict):
                raise ValueError(f"it holds a {type(value).__name__} rather than a dictionary")  # noqa: TRY301
            _flattened("", value, tensors, texts)
            save_file(tensors, target, metadata=texts)
    except (MemoryError, RecursionError):
        print("needs more memory than a file of its size should")  # noqa: T201  what the parent reads
        return _REFUSED
    except Exception as error:  # noqa: BLE001  whatever a forged file leads to ends here
        if not _NAMES_REFUSED:
            print(f"cannot be converted: {type(error).__name__}: {error}")  # noqa: T201
            return _REFUSED
    if _NAMES_REFUSED:
        names = list(_NAMES_REFUSED)
        more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
        listed = ", ".join(names[:_MAX_LISTED])
        print(f"names what is neither a tensor nor a plain container, and was not run: {listed}{more}")  # noqa: T201
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))

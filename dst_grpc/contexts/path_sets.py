"""Autoencoder sets that clients name by path, if the operator allows their files.

Every file is opened once, by `AllowedRoots`, and held open, so that the file that is checked is the one that is loaded.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dst_grpc.contexts.discovery import declared_by
from dst_grpc.contexts.entries import AutoencoderEntry, Registered
from dst_grpc.contexts.fit import disagreement, layer_problem, misfit
from dst_grpc.domain.autoencoder_inputs import AUTOENCODER_INPUTS
from dst_grpc.domain.handles import DIGEST_CHARACTERS
from dst_grpc.engine.files import FileSet, label
from dst_grpc.engine.formats.detect import open_autoencoder
from dst_grpc.engine.formats.layouts import SUFFIXES, FileGroup, beside
from dst_grpc.errors import InvalidRequest, NotAllowed, NotFound, Reason, Violations

if TYPE_CHECKING:
    from dst_grpc.contexts.entries import ModelEntry
    from dst_grpc.contexts.paths import AllowedRoots
    from dst_grpc.domain.config import AutoencoderConfig
    from dst_grpc.engine.files import File
    from dst_grpc.engine.formats.stored_file import LayerFile

_FIELD = "autoencoder_path_by_layer_index"


def set_of_config(config: AutoencoderConfig, model: ModelEntry, roots: AllowedRoots) -> AutoencoderEntry:
    """The set that a client's *config* names by path, if its paths are allowed and its files fit *model*.

    Its name, "path/" and 12 hexadecimal digits, identifies these very files: if they are replaced, the name changes.

    Raises:
        NotAllowed, NotFound: for a path that is not allowed, or does not exist. InvalidRequest: for a layer that the
        model lacks, or a file that does not fit it; all of them at once. DataLoss: for a file that is corrupt.
    """
    if AUTOENCODER_INPUTS[config.dst].width(model.dimensions) is None:
        raise InvalidRequest.of("dst", f"{config.dst} cannot be read by an autoencoder")
    problems = Violations()
    by_layer: dict[int | None, LayerFile] = {}
    n_latents: set[int] = set()
    for i, (layer, text) in enumerate(config.autoencoder_path_by_layer_index):
        wrong_layer = layer_problem(layer, config.dst, model)
        problems.check(not wrong_layer, f"{_FIELD}[{i}].layer_index", wrong_layer)
        weights = roots.open(text)
        if weights.path.suffix not in SUFFIXES:
            problems.add(f"{_FIELD}[{i}].path", f"must end in {', '.join(SUFFIXES)}")
            continue
        file = open_autoencoder(FileGroup(weights=weights, beside=_opened_beside(weights.path, roots)))
        problem = disagreement(file.header, config.dst, layer) or misfit(file.header, config.dst, model)
        problems.check(not problem, f"{_FIELD}[{i}].path", problem)
        n_latents.add(file.header.n_latents)
        if not wrong_layer:  # otherwise a request could hold any number of files open
            by_layer[layer] = file
    problems.check(len(n_latents) <= 1, _FIELD, "the autoencoders must have equally many latents")
    problems.raise_if_any()
    files = FileSet({f"{layer}/{one.path.name}": one for layer, file in by_layer.items() for one in file.files.all})
    facts = f"{model.name}\0{config.dst}\0{files.identity()}"
    return AutoencoderEntry(
        name=f"path/{hashlib.sha256(facts.encode()).hexdigest()[:DIGEST_CHARACTERS]}",
        element_type=model.element_type,
        device=model.device,
        files=files,
        model=model,
        dst=config.dst,
        registered=Registered(source="path"),
        by_layer=by_layer,
        declared=declared_by(by_layer),
        is_named_by_path=True,
    )


def _opened_beside(path: Path, roots: AllowedRoots) -> dict[str, File]:
    """The other files of the weights at *path*; raises NotAllowed unless a client may name them."""
    found = {}
    for name in beside(path.name):
        place = Path(os.path.normpath(path.parent / name))
        if not place.exists():
            continue
        try:
            found[name] = roots.open(str(place))
        except (NotAllowed, NotFound):
            problem = f"{label(place)} belongs to a file that is named, and lies outside what the operator allows"
            raise NotAllowed(problem, reason=Reason.PATH_NOT_ALLOWED, metadata={"path": label(place)}) from None
    return found

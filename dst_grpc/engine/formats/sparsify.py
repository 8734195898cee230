"""EleutherAI sparsify: a folder, named after a module of the model, with `cfg.json` and `sae.safetensors`.

It reads what the module puts out, and keeps the k largest of relu((x - b_dec) W^T + b). A transcoder predicts what the
module puts out from what comes in, takes nothing off, and may add x W_skip^T.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.autoencoders import AutoencoderActivation
from dst_grpc.engine.families.config_values import ConfigValues
from dst_grpc.engine.files import corrupt
from dst_grpc.engine.formats.format import Format, describe
from dst_grpc.engine.formats.hooks import place_of
from dst_grpc.engine.formats.layouts import SPARSIFY
from dst_grpc.engine.formats.sources import open_tensors
from dst_grpc.engine.formats.weights import AutoencoderFile, Part, Role

if TYPE_CHECKING:
    from dst_grpc.engine.formats.layouts import FileGroup
    from dst_grpc.errors import DataLoss


def _open(files: FileGroup) -> AutoencoderFile:
    path = files.path
    config, source = ConfigValues.read(files.beside[SPARSIFY.config]), open_tensors(files.weights)
    config.require("activation", ("topk",))
    config.require("signed", (False,))
    is_transcoder = config.flag("transcode", default=False)
    parts = {
        Role.ENCODER: Part("encoder.weight"),
        Role.LATENT_BIAS: Part("encoder.bias"),
        Role.DECODER: Part("W_dec", is_swapped=True),
        (Role.DECODER_BIAS if is_transcoder else Role.PRE_BIAS): Part("b_dec"),
    }
    if config.flag("skip_connection", default=False):
        if not is_transcoder:
            raise config.refusal("skip_connection", "is true without transcode, which would copy the input")
        parts[Role.SKIP] = Part("W_skip")
    name = path.parent.name

    def refused(problem: str) -> DataLoss:
        return corrupt(path, f"lies in a folder that must be named after a module such as layers.7.mlp: {problem}")

    place = place_of(f"{name}.input", refused, output=name) if is_transcoder else place_of(name, refused)
    n_inputs = config.size("d_in")
    header = describe(
        source,
        parts,
        layout=SPARSIFY,
        activation=AutoencoderActivation.TOP_K,
        place=place,
        k=config.size("k"),
        says={
            "n": n_inputs,
            "Z": config.values.get("num_latents") or n_inputs * config.size("expansion_factor", default=32),
        },
    )
    return AutoencoderFile(files=files, header=header, source=source, parts=parts)


FORMAT = Format(layout=SPARSIFY, open=_open)

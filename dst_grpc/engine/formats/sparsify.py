"""EleutherAI sparsify: a folder, named after a module of the model, with `cfg.json` and `sae.safetensors`.

It reads the module's output, and keeps the k largest of relu((x - b_dec) W^T + b). A transcoder predicts the module's
output from its input, does not subtract b_dec (except old ones), and may add x W_skip^T.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.autoencoders import AutoencoderActivation
from dst_grpc.engine.families.config_values import ConfigValues
from dst_grpc.engine.files import corrupt
from dst_grpc.engine.formats.format import Format, describe
from dst_grpc.engine.formats.hooks import place_of
from dst_grpc.engine.formats.known_keys import KnownKeys
from dst_grpc.engine.formats.layouts import SPARSIFY
from dst_grpc.engine.formats.sources import open_tensors
from dst_grpc.engine.formats.weights import AutoencoderFile, Role, StoredTensor

if TYPE_CHECKING:
    from dst_grpc.engine.formats.layouts import FileGroup
    from dst_grpc.errors import DataLoss


_KEYS = KnownKeys(
    read=frozenset({"d_in", "num_latents", "expansion_factor", "k", "transcode", "skip_connection"}),
    only={"activation": ("topk",), "signed": (False,), "gram_lookup": (False,), "embed_skip": (False,)},
    harmless=frozenset({"normalize_decoder", "multi_topk", "lookup_max_order", "gram_table_hash"}),
)
_DEFAULTS = {"num_latents": 0, "expansion_factor": 32, "k": 32, "transcode": False, "skip_connection": False}
"""The library's values of absent keys."""


def _open(files: FileGroup) -> AutoencoderFile:
    path = files.path
    config, source = ConfigValues.read(files.beside[SPARSIFY.config]), open_tensors(files.weights)
    _KEYS.check(config)
    config = config.over(_DEFAULTS)
    skips, subtracts = config.flag("skip_connection"), not config.flag("transcode")
    # A skip connection would copy the input of an autoencoder: in configs without a key for transcoders it identifies
    # one, and there the bias is subtracted from the input.
    is_transcoder = skips or not subtracts
    parts = {
        Role.ENCODER: StoredTensor("encoder.weight"),
        Role.LATENT_BIAS: StoredTensor("encoder.bias"),
        Role.DECODER: StoredTensor("W_dec", is_swapped=True),
        (Role.PRE_BIAS if subtracts else Role.DECODER_BIAS): StoredTensor("b_dec"),
    }
    if skips:
        parts[Role.SKIP] = StoredTensor("W_skip")
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
            "Z": config.values["num_latents"] or n_inputs * config.size("expansion_factor"),
        },
    )
    return AutoencoderFile(files=files, header=header, source=source, parts=parts)


FORMAT = Format(layout=SPARSIFY, open=_open)

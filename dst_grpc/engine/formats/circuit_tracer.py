"""circuit-tracer: transcoders per layer (`layer_L.safetensors`) and across layers (`W_enc_L.safetensors`,
`W_dec_L.safetensors`), with `config.yaml` beside them.

    ReLU        max(h, 0)
    JumpReLU    h where h > theta, also where theta and h are negative; told by the tensor of thresholds
    TopK        the k largest of h, also negative ones; told by the config's `activation`, or a tensor `k`

with h = x W_enc^T + b_enc. Nothing is subtracted from the input. `W_skip` adds x W_skip^T.

A cross-layer transcoder's `W_dec_L` is [F, layers from L on, d]. Its encoders and decoders stay in their files.

Of transcoders that are published with only the config of their training, `wandb-config.yaml`, the input is that of the
MLP, as all of those are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dst_grpc.domain.autoencoders import AutoencoderActivation, ModelNorm
from dst_grpc.engine.families.config_values import ConfigValues
from dst_grpc.engine.files import corrupt
from dst_grpc.engine.formats.format import Format, describe
from dst_grpc.engine.formats.hooks import place_of
from dst_grpc.engine.formats.known_keys import KnownKeys
from dst_grpc.engine.formats.layouts import CIRCUIT_TRACER, CIRCUIT_TRACER_CROSS_LAYER, TRAINING_CONFIGS
from dst_grpc.engine.formats.sources import open_tensors
from dst_grpc.engine.formats.stored_file import StoredTranscoderFile
from dst_grpc.engine.formats.weights import AutoencoderFile, Role, StoredTensor
from dst_grpc.engine.safetensors_file import SafetensorsFile
from dst_grpc.engine.yaml_file import read_yaml
from dst_grpc.errors import require

if TYPE_CHECKING:
    from dst_grpc.engine.formats.header import Place
    from dst_grpc.engine.formats.layouts import FileGroup
    from dst_grpc.engine.formats.sources import TensorSource

CONFIG = "config.yaml"
_KINDS = {"transcoder_set": "per-layer transcoders", "cross_layer_transcoder": "a cross-layer transcoder"}
_ACTIVATIONS = (None, "relu", "topk", "jumprelu", "jump_relu")
_KEYS = KnownKeys(
    read=frozenset({"model_kind", "feature_input_hook", "feature_output_hook", "activation", "k"}),
    harmless=frozenset({"model_name", "scan", "scan_name", "transcoders", "repo_id", "revision", "subfolder"}),
)
_PARTS = {
    Role.ENCODER: StoredTensor("W_enc"),
    Role.LATENT_BIAS: StoredTensor("b_enc"),
    Role.DECODER: StoredTensor("W_dec", is_swapped=True),
    Role.DECODER_BIAS: StoredTensor("b_dec"),
}
_THRESHOLD, _SKIP, _K = "activation_function.threshold", "W_skip", "k"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetConfig:
    """What the config of a set says of all its layers."""

    values: ConfigValues
    """Its values."""
    input_hook: str
    """Where each layer reads, as a TransformerLens hook without its layer."""
    output_hook: str
    """Where it writes, likewise."""

    @classmethod
    def read(cls, files: FileGroup, kind: str) -> SetConfig:
        """Read the config beside transcoders of *kind*; raises DataLoss if it is invalid, or of another kind."""
        if CONFIG in files.beside:
            values = ConfigValues(files.beside[CONFIG].path, read_yaml(files.beside[CONFIG]))
            _KEYS.check(values)
            if values.text("model_kind") != kind:
                problem = f"is {values.values['model_kind']!r}, but {files.path.name} is of {_KINDS[kind]}"
                raise values.refusal("model_kind", problem)
            return cls(
                values=values,
                input_hook=values.text("feature_input_hook"),
                output_hook=values.text("feature_output_hook"),
            )
        training = next(files.beside[name] for name in TRAINING_CONFIGS if name in files.beside)
        read_yaml(training)
        return cls(values=ConfigValues(training.path, {}), input_hook="mlp.hook_in", output_hook="hook_mlp_out")

    def place(self, layer: int) -> Place:
        """Where *layer* reads and writes; raises DataLoss if it is no transcoder of an MLP."""
        values = self.values
        place = place_of(
            f"blocks.{layer}.{self.input_hook}",
            lambda problem: values.refusal("feature_input_hook", problem),
            output=f"blocks.{layer}.{self.output_hook}",
        )
        if self.input_hook == "ln2.hook_normalized":  # which here is before the gain, in every kind of norm
            place = replace(place, input_norms=(ModelNorm.MLP_NORM_WITHOUT_GAIN,))
        return place

    def activation(self, source: TensorSource, threshold: str) -> tuple[AutoencoderActivation, int | None]:
        """The nonlinearity of the tensors in *source*, whose thresholds would be called *threshold*; and k of TopK."""
        values, has_threshold = self.values, threshold in source.shapes
        values.require("activation", _ACTIVATIONS)
        said = values.values.get("activation")
        if said == "topk" or (said is None and _K in source.others):
            k = values.values.get("k")
            return AutoencoderActivation.TOP_K, source.facts.get(_K) if k is None else k
        if said in {"jumprelu", "jump_relu"} and not has_threshold:
            raise corrupt(source.path, f"lacks {threshold!r}, although its config says {said}")
        if said == "relu" and has_threshold:
            raise corrupt(source.path, f"has {threshold!r}, although its config says relu")
        return AutoencoderActivation.JUMP_RELU if has_threshold else AutoencoderActivation.RELU, None


def _open(files: FileGroup) -> AutoencoderFile:
    config, source = SetConfig.read(files, "transcoder_set"), open_tensors(files.weights)
    activation, k = config.activation(source, _THRESHOLD)
    parts: dict[Role, StoredTensor] = dict(_PARTS)
    if activation is AutoencoderActivation.JUMP_RELU:
        parts[Role.THRESHOLD] = StoredTensor(_THRESHOLD)
    if _SKIP in source.shapes:
        parts[Role.SKIP] = StoredTensor(_SKIP)
    header = describe(
        source,
        parts,
        layout=CIRCUIT_TRACER,
        activation=activation,
        place=config.place(require(CIRCUIT_TRACER.layer_of(files.path.name))),
        k=k,
        harmless=(_K,) if activation is AutoencoderActivation.TOP_K else (),
    )
    header = replace(header, postact=AutoencoderActivation.IDENTITY)
    return AutoencoderFile(files=files, header=header, source=source, parts=parts)


def _open_cross_layer(files: FileGroup) -> StoredTranscoderFile:
    layer = require(CIRCUIT_TRACER_CROSS_LAYER.layer_of(files.path.name))
    config, source = SetConfig.read(files, "cross_layer_transcoder"), open_tensors(files.weights)
    decoder = files.beside.get(f"W_dec_{layer}.safetensors")
    if decoder is None:
        raise corrupt(files.path, f"lacks W_dec_{layer}.safetensors beside it, which holds what its features write")
    threshold = f"threshold_{layer}"
    activation, k = config.activation(source, threshold)
    parts = {
        Role.ENCODER: StoredTensor(f"W_enc_{layer}"),
        Role.LATENT_BIAS: StoredTensor(f"b_enc_{layer}"),
        Role.DECODER_BIAS: StoredTensor(f"b_dec_{layer}"),
    }
    if activation is AutoencoderActivation.JUMP_RELU:
        parts[Role.THRESHOLD] = StoredTensor(threshold)
    header = describe(
        source,
        parts,
        layout=CIRCUIT_TRACER_CROSS_LAYER,
        activation=activation,
        place=config.place(layer),
        k=k,
        harmless=(_K,) if activation is AutoencoderActivation.TOP_K else (),
    )
    return StoredTranscoderFile.of(
        files=files,
        header=replace(header, postact=AutoencoderActivation.IDENTITY),
        source=source,
        parts=parts,
        decoder=(SafetensorsFile.open(decoder), f"W_dec_{layer}"),
        first_stored=layer,
    )


FORMAT = Format(layout=CIRCUIT_TRACER, open=_open)
CROSS_LAYER = Format(layout=CIRCUIT_TRACER_CROSS_LAYER, open=_open_cross_layer)

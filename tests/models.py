"""Tiny random models without files: decoders, autoencoder sets, a tokenizer, and a registry that knows them.

Every width differs from every other, so that axes mixed up anywhere show as shapes that do not fit. Models are float64
unless told otherwise: on those a wrong formula and a rounding error cannot be confused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import models as tokenizer_models
from tokenizers import pre_tokenizers

from dst_grpc.contexts import AutoencoderContext, ModelContext, Registry
from dst_grpc.contexts.entries import AutoencoderEntry, ModelEntry
from dst_grpc.contexts.paths import AllowedRoots
from dst_grpc.domain.architecture import ActivationFunction, NormKind, unsupported_types
from dst_grpc.domain.autoencoder_inputs import AUTOENCODER_INPUTS, MLP_TRANSCODER, AutoencoderInput
from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization, ModelNorm
from dst_grpc.domain.components import LossFnName, PassType, TensorElementType
from dst_grpc.domain.config import AutoencoderConfig, DstConfig
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest, Prompt
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.engine.checkpoint import Checkpoint
from dst_grpc.engine.decoder import Decoder, DecoderConfig
from dst_grpc.engine.decoder_config import Rotary
from dst_grpc.engine.files import File, FileSet, Identity
from dst_grpc.engine.formats.header import AutoencoderHeader, Interpretation
from dst_grpc.engine.formats.layouts import FileGroup
from dst_grpc.engine.formats.sources import TensorSource
from dst_grpc.engine.formats.weights import AutoencoderFile
from dst_grpc.engine.splice import Splice, splices_of_set
from dst_grpc.engine.taps import Site
from dst_grpc.engine.tokenizer import Tokenizer
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.run import RunResult, run
from tests.plain import Kind, Transcoder
from tests.transcoders import in_memory, stored

CONFIG = DecoderConfig(
    n_layers=3,
    d_model=8,
    n_heads=5,
    n_key_value_heads=5,
    d_head=2,
    d_mlp=13,
    vocab_size=19,
    context_window=12,
)

_SLOW = Rotary(frequencies=(0.9, 0.013))
_FAST = Rotary(frequencies=(1.7, 0.4, 0.09), scale=1.2)
ARCHITECTURES = {
    "gpt2": CONFIG,
    "llama": replace(
        CONFIG,
        norm=NormKind.RMS_NORM,
        n_heads=6,
        n_key_value_heads=3,
        d_head=4,
        rotary=(_SLOW,) * 3,
        has_qkv_bias=False,
        has_attn_out_bias=False,
        has_mlp_bias=False,
        activation=ActivationFunction.SILU,
        gated=True,
    ),
    "neox": replace(
        CONFIG,
        d_head=7,
        rotary=(_FAST, None, _FAST),
        query_scale=0.3,
        parallel=True,
        activation=ActivationFunction.GELU,
    ),
    "gemma": replace(
        CONFIG,
        norm=NormKind.RMS_NORM,
        norm_gain_offset=1.0,
        norm_epsilon=1e-3,
        n_heads=6,
        n_key_value_heads=2,
        d_head=4,
        rotary=(_SLOW, Rotary(frequencies=(0.8, 0.05)), _SLOW),
        query_scale=0.4,
        attn_softcap=1.5,
        final_softcap=3.0,
        sliding_windows=(3, None, 2),
        has_qkv_bias=False,
        has_attn_out_bias=False,
        has_mlp_bias=False,
        qk_norm=True,
        post_norms=True,
        gated=True,
        embedding_scale=8**0.5,
    ),
    "layer norms": replace(
        CONFIG, n_heads=6, n_key_value_heads=2, d_head=3, post_norms=True, qk_norm=True, gated=True,
        sliding_windows=(2, None, 4), activation=ActivationFunction.RELU,
    ),
}  # fmt: skip
"""Architectures that between them depart from GPT-2 in every way, "layer norms" in ways that families have not."""
TOKENS = (3, 1, 4, 1, 5, 9)
"""The usual prompt."""
LATENTS: Mapping[Kind, int] = {
    **dict.fromkeys(Transcoder, 10),
    DerivedScalarType.MLP_POST_ACT: 15,
    DerivedScalarType.RESID_DELTA_MLP: 11,
    DerivedScalarType.RESID_DELTA_ATTN: 9,
    DerivedScalarType.RESID_DELTA_MLP_FROM_MLP_POST_ACT: 17,
    DerivedScalarType.ATTN_WRITE: 14,
    DerivedScalarType.RESID_POST_ATTN: 16,
    DerivedScalarType.RESID_POST_MLP: 18,
    DerivedScalarType.ATTN_WEIGHTED_SUM_OF_VALUES: 12,
    DerivedScalarType.RESID_POST_EMBEDDING: 21,
    DerivedScalarType.MLP_PRE_ACT: 7,
}
"""Latents of an autoencoder, by what it reads."""
LOSS = LossFnConfig(name=LossFnName.LOGIT_DIFF, target_token_ids=(2, 7, 7), distractor_token_ids=(11,))

Key = tuple[DerivedScalarType, PassType, int | None]


def decoder(seed: int = 0, config: DecoderConfig = CONFIG, *, dtype: torch.dtype = torch.float64) -> Decoder:
    """A model whose weights are random, biases and gains too."""
    return Decoder(config, weights(seed, config, dtype=dtype))


def weights(
    seed: int = 0, config: DecoderConfig = CONFIG, *, dtype: torch.dtype = torch.float64
) -> dict[str, torch.Tensor]:
    """The weights of `decoder`."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in config.weight_shapes().items():
        centre = 1.0 - config.norm_gain_offset if name.endswith("gain") else 0.0
        found[name] = (centre + torch.randn(shape, generator=generator, dtype=torch.float64) * 0.6).to(dtype)
    return found


def sites(config: DecoderConfig = CONFIG) -> list[Site]:
    """Every tap of a model without autoencoders."""
    found: list[Site] = []
    for location in ActivationLocationType:
        is_online = "online" in location.value
        if not is_online and config.architecture.why_without(location) is None:
            found += [(location, i) for i in ([None] if location.has_no_layers else range(config.n_layers))]
    return found


def autoencoder(
    n_inputs: int,
    n_latents: int,
    seed: int = 0,
    *,
    activation: AutoencoderActivation = AutoencoderActivation.RELU,
    normalization: InputNormalization = InputNormalization.NONE,
    dtype: torch.dtype = torch.float64,
) -> Autoencoder:
    """Random weights; a TopK keeps 4 latents, a JumpReLU has thresholds of both signs."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.7).to(dtype)

    return Autoencoder(
        pre_bias=normal(n_inputs),
        encoder=normal(n_latents, n_inputs),
        latent_bias=normal(n_latents),
        decoder=normal(n_inputs, n_latents),
        activation=activation,
        k=4 if activation is AutoencoderActivation.TOP_K else None,
        threshold=normal(n_latents) if activation is AutoencoderActivation.JUMP_RELU else None,
        normalization=normalization,
    )


def transcoder(autoencoder: Autoencoder, kind: Transcoder, seed: int) -> Autoencoder:
    """*autoencoder* as a transcoder: with a bias of its own at the end, and through a norm with a skip connection."""
    generator = torch.Generator().manual_seed(seed)
    width = autoencoder.n_inputs

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.4).to(autoencoder.encoder.dtype)

    skip = normal(width, width) if kind.input_norm is ModelNorm.MLP_NORM else None
    return replace(autoencoder, decoder_bias=normal(width), skip=skip, input_norm=kind.input_norm)


def autoencoders(
    kind: Kind,
    seed: int = 0,
    *,
    config: DecoderConfig = CONFIG,
    layers: Sequence[int | None] = (0, 1, 2),
    activation: AutoencoderActivation = AutoencoderActivation.RELU,
    normalization: InputNormalization = InputNormalization.NONE,
    dtype: torch.dtype = torch.float64,
    name: str = "",
    n_latents: int | None = None,
) -> AutoencoderContext:
    """A loaded set of a *kind*, with weights of its own at every layer."""
    dst = DerivedScalarType.RESID_POST_ATTN if isinstance(kind, Transcoder) else kind
    transcoders = None
    n_inputs = {
        DerivedScalarType.MLP_POST_ACT: config.d_mlp,
        DerivedScalarType.MLP_PRE_ACT: config.d_mlp,
        DerivedScalarType.ATTN_WEIGHTED_SUM_OF_VALUES: config.n_heads * config.d_head,
    }.get(dst, config.d_model)
    how: dict[str, Any] = {"activation": activation, "normalization": normalization, "dtype": dtype}
    by_layer: dict[int | None, Autoencoder] = {
        layer: autoencoder(n_inputs, n_latents or LATENTS[kind], 100 * seed + (layer or 0), **how) for layer in layers
    }
    if isinstance(kind, Transcoder):
        by_layer = {layer: transcoder(one, kind, seed + (layer or 0)) for layer, one in by_layer.items()}
        if kind.is_stored:
            transcoders, by_layer = stored(by_layer, kind, config.n_layers), {}
    parameter_bytes = sum(one.parameter_bytes for one in by_layer.values())
    return AutoencoderContext(
        handle="",
        name=name or f"tiny/{kind.value}",
        model="tiny",
        dst=dst,
        output=DerivedScalarType.RESID_DELTA_MLP if isinstance(kind, Transcoder) else None,
        by_layer=by_layer,
        digest="0",
        device="cpu",
        parameter_bytes=parameter_bytes if transcoders is None else transcoders.parameter_bytes,
        measured=(),
        transcoders=transcoders,
    )


def input_of(kind: Kind) -> AutoencoderInput:
    """The row of what autoencoders of a *kind* read."""
    return MLP_TRANSCODER if isinstance(kind, Transcoder) else AUTOENCODER_INPUTS[kind]


def kind_of(context: AutoencoderContext) -> Kind:
    """The kind that *context* was made of; its name says which transcoder it is."""
    return context.dst if context.output is None else Transcoder(context.name.removeprefix("tiny/"))


def latents_at(location: ActivationLocationType, kinds: Iterable[Kind]) -> int:
    """Latents of the autoencoder of *kinds* whose latents are at a tap; 0 for any other tap."""
    return next((LATENTS[kind] for kind in kinds if input_of(kind).latent_tap is location), 0)


def splices(context: AutoencoderContext) -> dict[Site, Splice]:
    """The autoencoders of *context* in a graph."""
    return {splice.site: splice for splice in splices_of_set(context.input, context.coders)}


def library_tokenizer(vocab_size: int = CONFIG.vocab_size) -> LibraryTokenizer:
    """Words are the letters from "a"; the last token stands for every other word."""
    words = {chr(ord("a") + i): i for i in range(vocab_size - 1)} | {"?": vocab_size - 1}
    library = LibraryTokenizer(tokenizer_models.WordLevel(words, unk_token="?"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    return library


def tokenizer(vocab_size: int = CONFIG.vocab_size) -> Tokenizer:
    """As `library_tokenizer`."""
    return Tokenizer(library_tokenizer(vocab_size))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FakeModelEntry(ModelEntry):
    """A model without files."""

    own_tokenizer: Tokenizer
    has_quick_tokenizer = True

    def tokenizer(self) -> Tokenizer:
        """Its own."""
        return self.own_tokenizer


def model_entry(name: str, config: DecoderConfig, *, digested: bool = True) -> FakeModelEntry:
    """A model that nobody can load; *digested* says whether its handle is known."""
    files = FileSet({})
    if digested:
        files.digest()
    checkpoint = Checkpoint(
        folder=Path(), family="gpt2", config=config, files=files, sources={}, tensors={}, redundant_unembedding=None
    )
    return FakeModelEntry(
        name=name,
        element_type=TensorElementType.FLOAT32,
        device="cpu",
        files=files,
        checkpoint=checkpoint,
        own_tokenizer=tokenizer(config.vocab_size),
    )


def autoencoder_entry(context: AutoencoderContext, model: ModelEntry) -> AutoencoderEntry:
    """The set as what could be loaded; its handle is known."""
    files = FileSet({})
    files.digest()
    return AutoencoderEntry(
        name=context.name,
        element_type=TensorElementType.FLOAT32,
        device="cpu",
        files=files,
        model=model,
        dst=context.dst,
        by_layer={
            layer: _file(autoencoder, context, layer)
            for layer, autoencoder in (context.by_layer or in_memory(context)).items()
        },
    )


def _file(autoencoder: Autoencoder, context: AutoencoderContext, layer: int | None) -> AutoencoderFile:
    """What says of itself what *autoencoder* is, and holds no weights."""
    file = File(Path(), Identity(0, 0, 0, 0))
    tensors: dict[str, torch.Tensor] = {}
    return AutoencoderFile(
        files=FileGroup(weights=file, beside={}),
        header=_header(autoencoder, context, layer),
        source=TensorSource(file=file, shapes={}, opened=lambda: nullcontext(tensors.__getitem__), facts={}),
        parts={},
    )


def _header(autoencoder: Autoencoder, context: AutoencoderContext, layer: int | None) -> AutoencoderHeader:
    transcoders = context.transcoders
    written = None
    if transcoders is not None and transcoders.is_cross_layer:
        written = transcoders.written_layers(layer or 0)
    return AutoencoderHeader(
        format="none",
        n_inputs=autoencoder.n_inputs,
        n_latents=autoencoder.n_latents,
        n_outputs=autoencoder.n_inputs,
        activation=autoencoder.activation,
        output=context.output,
        interpretations=(Interpretation(normalization=autoencoder.normalization, input_norm=autoencoder.input_norm),),
        has_own_decoder_bias=autoencoder.decoder_bias is not None,
        has_skip=autoencoder.skip is not None,
        written=written,
        file_bytes=0 if transcoders is None else transcoders.file_bytes,
    )


class FakeRegistry(Registry):
    """Knows *models*, "tiny" first, and sets of them."""

    def __init__(self, models: Sequence[ModelEntry], sets: Iterable[AutoencoderContext] = ()) -> None:
        by_name = {model.name: model for model in models}
        autoencoders = [autoencoder_entry(one, by_name[one.model]) for one in sets]
        super().__init__(models, autoencoders, roots=AllowedRoots([]), default_model="tiny")

    def autoencoder_by_config(self, config: AutoencoderConfig, model: str) -> AutoencoderEntry:
        """As of any registry, but a path is the name of a set."""
        return self.autoencoder_entry(config.autoencoder_path_by_layer_index[0][1], model)


@dataclass(frozen=True)
class World:
    """A model with autoencoder sets by name, and the registry that knows them."""

    decoder: Decoder
    sets: Mapping[str, AutoencoderContext] = field(default_factory=dict)

    @property
    def by_kind(self) -> dict[Kind, Mapping[int | None, Autoencoder]]:
        """The sets as a plain model has them."""
        return {kind_of(one): one.by_layer or in_memory(one) for one in self.sets.values()}

    @property
    def unsupported(self) -> frozenset[DerivedScalarType]:
        """Types that have no meaning in the model."""
        return frozenset(one.dst for one in unsupported_types(self.decoder.config.architecture))

    @cached_property
    def registry(self) -> FakeRegistry:
        """What can be loaded: this model as "tiny", another of the same sizes, "other", and the sets."""
        models = [model_entry(name, self.decoder.config) for name in ("tiny", "other")]
        return FakeRegistry(models, self.sets.values())

    @property
    def context(self) -> ModelContext:
        """The model as a loaded context."""
        entry = self.registry.model_entry("tiny")
        return ModelContext(
            handle=entry.handle,
            name="tiny",
            decoder=self.decoder,
            tokenizer=entry.tokenizer(),
            digest=entry.digest(),
            device="cpu",
            element_type=TensorElementType.FLOAT32,
            parameter_bytes=self.decoder.parameter_bytes,
        )

    def results(self, *requests: DeriveRequest) -> list[RunResult]:
        """Plan *requests* and run them as one batch."""
        return run([make_plan(one, self.registry) for one in requests], self.decoder, self.sets)

    def derive(self, request: DeriveRequest) -> dict[Key, torch.Tensor]:
        """Every tensor of *request*, run alone."""
        (result,) = self.results(request)
        return tensors(result)

    def one(self, dst: DerivedScalarType, config: DstConfig | None = None, **fields: Any) -> dict[int | None, Any]:
        """The FORWARD tensors, by layer, of *dst* alone, with *config* as its own; *fields* of the request."""
        spec = DerivedScalarSpec(dst=dst, config=config)
        found = self.derive(request(derived_scalars=(spec,), **fields))
        return {layer: tensor for (_, pass_type, layer), tensor in found.items() if pass_type is PassType.FORWARD}


def world(*kinds: Kind, seed: int = 0, **fields: Any) -> World:
    """A random model, with an autoencoder set of each of *kinds*; *fields* of `autoencoders`."""
    dtype, config = fields.get("dtype", torch.float64), fields.get("config", CONFIG)
    sets = [autoencoders(kind, seed + 1, **fields) for kind in kinds]
    return World(decoder(seed, config, dtype=dtype), {one.name: one for one in sets})


def tensors(result: RunResult) -> dict[Key, torch.Tensor]:
    """Every tensor of *result*, by type, pass and layer."""
    return {
        (scalar.facts.type, pass_type, layer): tensor
        for scalar in result.plan.scalars
        for layer in scalar.layers
        for pass_type, tensor in result.derivation(scalar).at(layer).items()
    }


def request(*types: DerivedScalarType, tokens: Sequence[int] = TOKENS, **fields: Any) -> DeriveRequest:
    """A request for *types* with the shared config; *fields* as of `DeriveRequest`."""
    specs = tuple(DerivedScalarSpec(dst=dst) for dst in types)
    prompt = Prompt(token_ids=tuple(tokens))
    return DeriveRequest(**{"prompt": prompt, "model": "tiny", "derived_scalars": specs, **fields})

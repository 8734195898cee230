"""Sets as people publish them, beside a model: found, described, loaded, and checked to be what they claim.

The autoencoders here fit their model: latents come in pairs that read and write plus and minus one channel, so that
every input is reconstructed, and half the latents are active. What is claimed wrongly then shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dst_grpc.contexts import AutoencoderContext, Registry
from dst_grpc.contexts.discovery import open_set
from dst_grpc.contexts.loading import FileLoader, record
from dst_grpc.contexts.self_check import SENTENCES
from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization, ModelNorm
from dst_grpc.domain.config import AutoencoderConfig
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.resolution import LayerCheck
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.errors import DataLoss, InvalidRequest, NotAllowed, Reason
from dst_grpc.sources import AutoencoderSpec, FolderSource, ModelSpec
from tests import checkpoints, families
from tests.checkpoints import WIDTH

from .conftest import whole

LATENTS = 2 * WIDTH
PAIRS = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
"""[Z, n]: what the latents read, and what they write."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoints.write_model(tmp_path / "m")


def build(folder: Path, **settings: Any) -> Registry:
    return whole(Registry.build(models={"m": folder}, device="cpu", include_embedded=False, **settings))


def loaded(registry: Registry, name: str, *, allow_failed_checks: bool = False) -> AutoencoderContext:
    loader = FileLoader(allow_failed_checks=allow_failed_checks)
    model = loader.load_model(registry.model_entry("m"), lambda _: None)
    return loader.load_autoencoders(registry.autoencoder_entry(name, "m"), model, lambda _: None)


def weights(reads: torch.Tensor = PAIRS, writes: torch.Tensor = PAIRS) -> dict[str, torch.Tensor]:
    return {
        "W_enc": reads.T.contiguous(),
        "b_enc": torch.zeros(len(reads)),
        "W_dec": writes.contiguous(),
        "b_dec": torch.zeros(writes.shape[1]),
    }


def write_sae(folder: Path, hook: str, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"hook_name": hook, "sae_lens_version": "6.30.0"}
    save_file(weights() if tensors is None else tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"architecture": "standard", "metadata": metadata} | config))
    return folder / "sae_weights.safetensors"


def write_gemma(folder: Path, l0: int, layer: int) -> Path:
    place = folder / f"layer_{layer}" / "width_16k" / f"average_l0_{l0}"
    place.mkdir(parents=True)
    arrays = weights() | {"threshold": torch.zeros(LATENTS)}
    stored: dict[str, Any] = {name: tensor.numpy() for name, tensor in arrays.items()}
    np.savez(place / "params.npz", **stored)
    return place / "params.npz"


def test_a_folder_of_several_hooks_holds_a_set_for_each_tap(folder: Path) -> None:
    """The residual that enters layer 1 leaves layer 0; the one that enters layer 0 is the embedding."""
    beside = folder / "autoencoders" / "res-jb"
    for hook in ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"):
        write_sae(beside / hook, hook)
    registry = build(folder)
    infos = {info.name: info for info in registry.autoencoders("m")}
    assert sorted(infos) == ["m/res-jb-resid_post_embedding", "m/res-jb-resid_post_mlp"]
    residual, embedding = infos["m/res-jb-resid_post_mlp"], infos["m/res-jb-resid_post_embedding"]
    assert (residual.layer_indices, residual.spliceable, residual.formats) == ((0, 1), True, ("saelens",))
    assert (embedding.layer_indices, embedding.spliceable) == ((), False)
    for name, layers in (("m/res-jb-resid_post_mlp", [0, 1]), ("m/res-jb-resid_post_embedding", [0])):
        context = loaded(registry, name)
        assert [check.layer_index for check in context.measured] == layers
        for check in context.measured:
            assert check.l0 == WIDTH
            assert check.fraction_of_variance_unexplained == pytest.approx(0, abs=1e-9)
            assert check.orientation == pytest.approx(1)
    with pytest.raises(
        DataLoss, match=r"holds 2 sets that could be meant; .* read resid_post_embedding, resid_post_mlp"
    ):
        open_set(beside, registry.model_entry("m"))
    found = open_set(beside, registry.model_entry("m"), dst=T.RESID_POST_MLP)
    assert (found.info().formats, found.dst, list(found.by_layer)) == (("saelens",), T.RESID_POST_MLP, [0, 1])
    with pytest.raises(DataLoss, match="holds 0 sets that read mlp_post_act"):
        open_set(beside, registry.model_entry("m"), dst=T.MLP_POST_ACT)


def test_declared_l0_is_held_against_the_measured_one(folder: Path) -> None:
    beside = folder / "autoencoders" / "gemma-scope-2b-pt-res"
    write_gemma(beside, WIDTH + 2, 0)
    path = write_gemma(beside, WIDTH - 1, 1)
    registry = build(folder)
    info = registry.autoencoder_entry("m/gemma-scope-2b-pt-res", "m").info()
    assert info.declared == (
        LayerCheck(layer_index=0, l0=10.0, fraction_of_variance_unexplained=None),
        LayerCheck(layer_index=1, l0=7.0, fraction_of_variance_unexplained=None),
    )
    assert (info.dst, info.activations, info.formats) == (
        T.RESID_POST_MLP,
        (AutoencoderActivation.JUMP_RELU,),
        ("gemma_scope",),
    )
    assert [check.l0 for check in loaded(registry, info.name).measured] == [WIDTH, WIDTH]
    path.parent.rename(path.parent.parent / "average_l0_141")
    with pytest.raises(
        DataLoss, match=r"layer 1 fails its self-check: 8.0 latents are active at a token, where 141.0"
    ) as caught:
        loaded(build(folder), info.name)
    assert caught.value.reason is Reason.SELF_CHECK_FAILED
    assert loaded(build(folder), info.name, allow_failed_checks=True).measured[1].l0 == WIDTH


def test_a_transposed_square_weight_is_told_by_its_orientation(folder: Path) -> None:
    """Shapes are as they should be; only what is read and written no longer belong together."""
    rotation, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(2)))
    rotation[:, 0] *= -torch.sign(torch.trace(rotation @ rotation))
    right, wrong = weights(rotation, rotation), weights(rotation, -rotation.T)
    for tensors in (right, wrong):
        tensors["b_enc"] += 100.0
    right["b_dec"], wrong["b_dec"] = -100 * rotation.sum(0), 100 * rotation.T.sum(0)
    config = {"apply_b_dec_to_input": False}
    path = folder / "autoencoders" / "set" / "layer_0"
    write_sae(path, "blocks.0.hook_resid_post", right, **config)
    assert loaded(build(folder), "m/set").measured[0].orientation == pytest.approx(1)
    write_sae(path, "blocks.0.hook_resid_post", wrong, **config)
    with pytest.raises(DataLoss, match=r"have a mean cosine of -.*transposed"):
        loaded(build(folder), "m/set")


@pytest.mark.parametrize("scaled", [True, False])
def test_the_self_check_decides_how_a_threshold_is_meant(folder: Path, scaled: bool) -> None:
    """With the other reading, hardly a latent passes its threshold."""
    scale = 1e-3 if scaled else 1e3
    place = folder / "autoencoders" / "llama" / "Llama3_1-8B-Base-L1R-8x"
    (place / "checkpoints").mkdir(parents=True)
    config = {
        "d_model": WIDTH,
        "hook_point_in": "blocks.1.hook_resid_post",
        "jump_relu_threshold": 1e-1,
        "dataset_average_activation_norm": {"in": WIDTH**0.5 / scale},
    }
    (place / "hyperparams.json").write_text(json.dumps(config))
    tensors = {
        "encoder.weight": PAIRS,
        "encoder.bias": torch.zeros(LATENTS),
        "decoder.weight": PAIRS.T.contiguous(),
        "decoder.bias": torch.zeros(WIDTH),
    }
    save_file(tensors, place / "checkpoints" / "final.safetensors")
    context = loaded(build(folder), "m/llama")
    (check,) = context.measured
    assert check.reading == ("threshold times the scale" if scaled else "threshold as published")
    assert check.fraction_of_variance_unexplained == pytest.approx(0, abs=1e-2)
    threshold = context.by_layer[1].threshold
    assert threshold is not None
    assert threshold[0].item() == pytest.approx(1e-4 if scaled else 1e-1)


@pytest.mark.parametrize("is_centred", [True, False])
def test_the_self_check_decides_whether_an_old_autoencoder_reads_a_centred_residual(
    folder: Path, is_centred: bool
) -> None:
    projection = torch.eye(WIDTH) - 1 / WIDTH if is_centred else torch.eye(WIDTH)
    tensors = weights(PAIRS @ projection, PAIRS @ projection)
    path = folder / "autoencoders" / "old" / "blocks.1.hook_resid_pre"
    write_sae(path, "", tensors)
    (path / "cfg.json").write_text(json.dumps({"hook_point": "blocks.1.hook_resid_pre", "d_in": WIDTH}))
    assert build(folder).autoencoder_entry("m/old", "m").info().normalizations == (
        InputNormalization.CENTRED,
        InputNormalization.NONE,
    )
    context = loaded(build(folder), "m/old")
    expected = InputNormalization.CENTRED if is_centred else InputNormalization.NONE
    assert context.by_layer[0].normalization is expected
    assert context.measured[0].reading == f"normalization {expected}"
    assert context.measured[0].fraction_of_variance_unexplained == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("norm", [ModelNorm.MLP_NORM, ModelNorm.MLP_NORM_WITHOUT_GAIN])
def test_a_transcoder_is_compared_with_the_mlp_s_write(folder: Path, norm: ModelNorm) -> None:
    """Its skip connection is the best linear map, so that it explains something of what it does not read."""
    loader = FileLoader()
    model = loader.load_model(build(folder).model_entry("m"), lambda _: None)
    sites: list[Any] = [(L.RESID_POST_ATTN, 1), (L.RESID_DELTA_MLP, 1)]
    runs = [record(model.decoder, sites, model.tokenizer.encode(sentence)[:16]) for sentence in SENTENCES]
    residual, target = (torch.cat([run[site][1:] for run in runs]) for site in sites)
    layer_norm = model.decoder.layers[1].mlp_norm
    x = layer_norm(residual) if norm is ModelNorm.MLP_NORM else layer_norm.without_gain(residual)
    with_ones = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    solution = torch.linalg.lstsq(with_ones, target).solution
    tensors = weights(PAIRS, torch.zeros(LATENTS, WIDTH)) | {
        "W_skip": solution[:-1].T.contiguous(),
        "b_dec": solution[-1].contiguous(),
    }
    metadata = {"hook_name": "blocks.1.ln2.hook_normalized", "hook_name_out": "blocks.1.hook_mlp_out"}
    write_sae(
        folder / "autoencoders" / "transcoders" / "1", "", tensors, architecture="skip_transcoder", metadata=metadata
    )
    registry = build(folder)
    info = registry.autoencoder_entry("m/transcoders", "m").info()
    assert (info.dst, info.output, info.spliceable) == (T.RESID_POST_ATTN, T.RESID_DELTA_MLP, True)
    assert info.input_norms == (ModelNorm.MLP_NORM, ModelNorm.MLP_NORM_WITHOUT_GAIN)
    context = loaded(registry, info.name)
    (check,) = context.measured
    assert context.by_layer[1].input_norm is norm
    assert check.reading == f"input {norm}"
    left = (target - with_ones @ solution).square().sum() / (target - target.mean(0)).square().sum()
    assert check.fraction_of_variance_unexplained == pytest.approx(left.item(), rel=1e-3)
    assert check.orientation is None


def test_the_reference_implementation_s_own_layout_is_found(folder: Path) -> None:
    path = folder / "autoencoders" / "resid_post_mlp_v5_32k" / "autoencoders" / "1.pt"
    entries = {"activation": "TopK", "activation_state_dict": {"k": 4, "postact_fn": "ReLU"}}
    checkpoints.write_state_dict(path, entries)
    entry = build(folder).autoencoder_entry("m/resid_post_mlp_v5_32k", "m")
    info = entry.info()
    assert (info.dst, info.layer_indices, info.normalizations) == (
        T.RESID_POST_MLP,
        (1,),
        (InputNormalization.LAYER_NORM,),
    )
    assert entry.has_write_scale
    assert [check.l0 for check in info.declared] == [4.0]


def test_what_is_no_autoencoder_is_passed_over_and_what_comes_twice_is_not(folder: Path) -> None:
    beside = folder / "autoencoders" / "set"
    write_gemma(beside, 9, 0)
    for name in ("optimizer.pt", "sparsity.safetensors", ".hidden.safetensors"):
        (beside / "layer_0" / name).write_bytes(b"")
    (beside / ".cache").mkdir()
    (beside / "config.json").write_text('{"dst": "resid_post_mlp"}')
    assert build(folder).autoencoder_entry("m/set", "m").layer_indices == (0,)
    write_gemma(beside, 20, 0)
    with pytest.raises(
        DataLoss, match=r"average_l0_9/params.npz: is the second autoencoder of its layer, beside layer_0"
    ):
        build(folder)


def test_a_set_without_a_layer_or_a_place_is_named(folder: Path) -> None:
    beside = folder / "autoencoders" / "set"
    path = write_gemma(beside, 9, 0)
    with pytest.raises(DataLoss, match="'set' is no derived scalar type"):
        build(folder)
    (beside / "config.json").write_text('{"dst": "resid_post_mlp"}')
    path.rename(beside / "params.npz")
    with pytest.raises(DataLoss, match="resid_post_mlp exists at every layer, and nothing names one"):
        build(folder)


def test_a_wrong_width_of_what_a_transcoder_puts_out_is_named(folder: Path) -> None:
    tensors = weights(PAIRS, torch.zeros(LATENTS, WIDTH + 1))
    metadata = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"}
    write_sae(folder / "autoencoders" / "t" / "1", "", tensors, architecture="transcoder", metadata=metadata)
    with pytest.raises(DataLoss, match="puts out 9 channels, but resid_delta_mlp of 'm' has 8"):
        build(folder)


def test_dead_latents_are_told_by_the_sparsity_beside_the_weights(folder: Path) -> None:
    beside = folder / "autoencoders" / "set" / "layer_0"
    write_sae(beside, "blocks.0.hook_resid_post")
    frequencies = torch.full((LATENTS,), 0.5)
    frequencies[[3, 5]] = 0
    save_file({"sparsity": frequencies.log10()}, beside / "sparsity.safetensors")
    full, cut = build(folder), build(folder, omit_dead_latents=True)
    assert full.autoencoder_entry("m/set", "m").n_latents == LATENTS
    info = cut.autoencoder_entry("m/set", "m")
    assert info.n_latents == LATENTS - 2
    assert "-live:" in info.handle
    kept = [latent for latent in range(LATENTS) if latent not in {3, 5}]
    assert torch.equal(loaded(cut, "m/set", allow_failed_checks=True).by_layer[0].encoder, PAIRS[kept])


def test_what_loading_folds_is_told(folder: Path) -> None:
    tensors = weights() | {"b_mag": torch.zeros(LATENTS), "b_gate": torch.zeros(LATENTS), "r_mag": torch.zeros(LATENTS)}
    del tensors["b_enc"]
    path = folder / "autoencoders" / "set" / "layer_1"
    write_sae(path, "blocks.1.hook_resid_mid", tensors, architecture="gated")
    info = build(folder).autoencoder_entry("m/set", "m").info()
    assert (info.dst, info.folded) == (T.RESID_POST_ATTN, ("its gate is folded into a threshold",))
    assert (info.spliceable, info.activations) == (True, (AutoencoderActivation.JUMP_RELU,))


# Other families


def other_family(folder: Path, name: str) -> Path:
    families.save(families.make(name, vocab_size=300, hidden_size=WIDTH, num_attention_heads=2), folder)
    (folder / "tokenizer.json").write_text(checkpoints.tokenizer_json())
    return folder


def write_sparsify(folder: Path, module: str, tensors: dict[str, torch.Tensor], **config: Any) -> None:
    place = folder / "autoencoders" / "set" / module
    place.mkdir(parents=True)
    save_file(tensors | {"encoder.weight": PAIRS, "encoder.bias": torch.zeros(LATENTS)}, place / "sae.safetensors")
    sizes = {"d_in": WIDTH, "num_latents": LATENTS, "k": 4}
    (place / "cfg.json").write_text(json.dumps(sizes | config))


def test_a_transcoder_of_a_parallel_layer_reads_what_enters_the_layer(tmp_path: Path) -> None:
    folder = other_family(tmp_path / "m", "gpt_neox")
    loader = FileLoader()
    model = loader.load_model(build(folder).model_entry("m"), lambda _: None)
    sites: list[Any] = [(L.RESID_POST_MLP, 0), (L.RESID_DELTA_MLP, 1)]
    window = model.decoder.config.context_window
    prompts = [model.tokenizer.encode(sentence)[:window] for sentence in SENTENCES]
    runs = [record(model.decoder, sites, prompt) for prompt in prompts]
    residual, target = (torch.cat([run[site][1:] for run in runs]) for site in sites)
    with_ones = torch.cat([model.decoder.layers[1].mlp_norm(residual), torch.ones(len(residual), 1)], dim=1)
    solution = torch.linalg.lstsq(with_ones, target).solution
    tensors = {
        "W_dec": torch.zeros(LATENTS, WIDTH),
        "b_dec": solution[-1].contiguous(),
        "W_skip": solution[:-1].T.contiguous(),
    }
    write_sparsify(folder, "layers.1.mlp", tensors, transcode=True, skip_connection=True)
    registry = build(folder)
    info = registry.autoencoder_entry("m/set", "m").info()
    assert (info.dst, info.output, info.spliceable) == (T.RESID_POST_ATTN, T.RESID_DELTA_MLP, True)
    (check,) = loaded(registry, "m/set").measured
    left = (target - with_ones @ solution).square().sum() / (target - target.mean(0)).square().sum()
    assert check.fraction_of_variance_unexplained == pytest.approx(left.item(), rel=1e-3)


def test_a_residual_that_a_model_lacks_cannot_be_read(tmp_path: Path) -> None:
    folder = other_family(tmp_path / "m", "gpt_neox")
    problem = "reads resid_post_attn, which 'm' does not have: attention and MLP of its layers"
    checkpoints.write_state_dict(tmp_path / "files" / "1.pt")
    registry = build(folder, autoencoder_roots=[tmp_path / "files"])
    with pytest.raises(InvalidRequest, match=problem):
        by_path(registry, T.RESID_POST_ATTN, 1, tmp_path / "files" / "1.pt")
    write_sae(folder / "autoencoders" / "set" / "1", "blocks.1.hook_resid_mid")
    with pytest.raises(DataLoss, match=problem):
        build(folder)


@pytest.mark.parametrize(
    ("module", "part"), [("layers.1.mlp", "resid_delta_mlp"), ("layers.1.self_attn", "resid_delta_attn")]
)
def test_what_a_part_puts_out_before_the_norm_on_it_cannot_be_read(tmp_path: Path, module: str, part: str) -> None:
    """The same module's output is what is added to the residual in models without such a norm."""
    tensors = {"W_dec": PAIRS.clone(), "b_dec": torch.zeros(WIDTH)}
    plain, normed = (other_family(tmp_path / name, name) for name in ("llama", "gemma2"))
    for folder in (plain, normed):
        write_sparsify(folder, module, tensors)
    assert build(plain).autoencoder_entry("m/set", "m").info().dst == part
    with pytest.raises(DataLoss, match=f"is of {part} before 'm' norms it"):
        build(normed)


def test_hooks_of_writes_come_after_the_norm_on_them(tmp_path: Path) -> None:
    folder = other_family(tmp_path / "m", "gemma2")
    write_sae(folder / "autoencoders" / "set" / "1", "blocks.1.hook_mlp_out")
    context = loaded(build(folder), "m/set")
    assert context.dst is T.RESID_DELTA_MLP
    assert context.measured[0].fraction_of_variance_unexplained == pytest.approx(0, abs=1e-9)


# By path


def by_path(registry: Registry, dst: T, layer: int, path: Path) -> Any:
    config = AutoencoderConfig(dst=dst, autoencoder_path_by_layer_index=((layer, str(path)),))
    return registry.autoencoder_by_config(config, "m").info()


def test_a_path_to_weights_takes_their_config_along(folder: Path, tmp_path: Path) -> None:
    path = write_sae(tmp_path / "files" / "sae", "blocks.1.hook_resid_post")
    registry = build(folder, autoencoder_roots=[tmp_path / "files"])
    info = by_path(registry, T.RESID_POST_MLP, 1, path)
    assert (info.formats, info.layer_indices) == (("saelens",), (1,))
    assert loaded(registry, info.name).measured[0].l0 == WIDTH
    write_sae(tmp_path / "files" / "sae", "blocks.1.hook_resid_post", apply_b_dec_to_input=False)
    assert by_path(registry, T.RESID_POST_MLP, 1, path).name != info.name, "another config is another set"
    for dst, layer, problem in (
        (T.RESID_DELTA_MLP, 1, "says that it reads resid_post_mlp, not resid_delta_mlp"),
        (T.RESID_POST_MLP, 0, "says that it belongs to layer 1"),
    ):
        with pytest.raises(InvalidRequest, match=problem):
            by_path(registry, dst, layer, path)


def registered(folder: Path, source: Path, **facts: Any) -> Registry:
    one = AutoencoderSpec(name="s", source=FolderSource(folder=source), **facts)
    spec = ModelSpec(name="m", source=FolderSource(folder=folder), autoencoders=(one,))
    return whole(Registry.build(specs=[spec], device="cpu", include_embedded=False))


@pytest.mark.parametrize("dst", [None, T.RESID_POST_MLP])
def test_a_pattern_opens_what_is_published(folder: Path, tmp_path: Path, dst: T | None) -> None:
    """The repository's name is a folder above what was pulled; where it is not, the operator says what is read."""
    source = tmp_path / ("google--gemma-scope-2b-pt-res/0123abc" if dst is None else "downloads")
    write_gemma(source, WIDTH, 0)
    path = write_gemma(source, WIDTH, 1)
    write_gemma(source, 99, 1)
    registry = registered(folder, source, pattern="layer_{layer}/*/average_l0_8/params.npz", dst=dst)
    info = registry.autoencoder_entry("m/s", "m").info()
    assert (info.dst, info.layer_indices, info.formats) == (T.RESID_POST_MLP, (0, 1), ("gemma_scope",))
    assert [check.l0 for check in loaded(registry, "m/s").measured] == [WIDTH, WIDTH]
    path.rename(path.parent / "old.npz")
    np.savez(path, **{name: array + 0 for name, array in np.load(path.parent / "old.npz").items()})
    with pytest.raises(DataLoss, match="changed since") as caught:
        loaded(registry, "m/s")
    assert caught.value.reason is Reason.DIGEST_MISMATCH


def test_a_file_s_hook_says_more_of_its_layer_than_its_name(folder: Path, tmp_path: Path) -> None:
    for hook in ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"):
        write_sae(tmp_path / "jb" / hook, hook)
    pattern = "blocks.{layer}.hook_resid_pre/sae_weights.safetensors"
    with pytest.raises(DataLoss, match="holds 2 sets that could be meant"):
        registered(folder, tmp_path / "jb", pattern=pattern)
    registry = registered(folder, tmp_path / "jb", pattern=pattern, dst=T.RESID_POST_MLP)
    assert registry.autoencoder_entry("m/s", "m").layer_indices == (0,)
    with pytest.raises(DataLoss, match="holds 0 sets that read mlp_post_act; its read resid_post_embedding"):
        registered(folder, tmp_path / "jb", pattern=pattern, dst=T.MLP_POST_ACT)


def test_the_operator_may_let_one_set_fail_its_self_check(folder: Path, tmp_path: Path) -> None:
    write_gemma(tmp_path / "gemma-scope-2b-pt-res", 141, 1)
    for allowed in (False, True):
        registry = registered(folder, tmp_path / "gemma-scope-2b-pt-res", allow_failed_checks=allowed)
        if allowed:
            assert [check.l0 for check in loaded(registry, "m/s").measured] == [WIDTH]
            continue
        with pytest.raises(DataLoss, match="fails its self-check"):
            loaded(registry, "m/s")


def test_what_lies_beside_a_client_s_file_is_held_to_the_same_policy(folder: Path, tmp_path: Path) -> None:
    """A config that leads out of the allowed folders is not read, and one that is changed is another set."""
    root = tmp_path / "root"
    path = write_sae(root / "s", "blocks.0.hook_resid_post")
    registry = build(folder, autoencoder_roots=[root])
    name = by_path(registry, T.RESID_POST_MLP, 0, Path("s/sae_weights.safetensors")).name
    assert name == by_path(registry, T.RESID_POST_MLP, 0, path).name
    assert [check.l0 for check in loaded(registry, name).measured] == [WIDTH]
    config = path.with_name("cfg.json")
    config.write_text(config.read_text() + " ")
    with pytest.raises(DataLoss, match=r"cfg\.json: changed since") as changed:
        loaded(registry, name)
    assert changed.value.reason is Reason.DIGEST_MISMATCH
    assert by_path(registry, T.RESID_POST_MLP, 0, path).name != name
    config.rename(tmp_path / "secret.json")
    config.symlink_to(tmp_path / "secret.json")
    with pytest.raises(NotAllowed, match=r"s/cfg\.json belongs to a file that is named, and lies outside") as refused:
        by_path(registry, T.RESID_POST_MLP, 0, path)
    assert refused.value.reason is Reason.PATH_NOT_ALLOWED
    assert str(tmp_path) not in refused.value.message

"""Transcoders behind one interface: any autoencoder that predicts an MLP's write, and cross-layer ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.measure import peak_bytes
from benchmarks.transcoders import write_sparse
from dst_grpc.domain.autoencoders import AutoencoderActivation as A
from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.engine.files import File
from dst_grpc.engine.safetensors_file import SafetensorsFile
from dst_grpc.engine.stored_matrix import StoredMatrix
from dst_grpc.engine.stored_transcoder import StoredTranscoder
from dst_grpc.engine.transcoders import PerLayerTranscoder, Transcoders, active_in_parts

T, N, Z, LAYERS = 7, 6, 9, 4
RNG = torch.Generator().manual_seed(3)
X = torch.randn(T, N, generator=RNG)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=RNG)


def weights(**more: Any) -> Autoencoder:
    parts = {"pre_bias": normal(N), "encoder": normal(Z, N), "latent_bias": normal(Z), "decoder": normal(N, Z)}
    return Autoencoder(**(parts | more))


KINDS: dict[str, Autoencoder] = {
    "a bias that is taken off and added again": weights(),
    "a bias of its own": weights(decoder_bias=normal(N)),
    "JumpReLU": weights(activation=A.JUMP_RELU, threshold=normal(Z), postact=A.IDENTITY),
    "TopK": weights(activation=A.TOP_K, k=3, postact=A.IDENTITY),
    "a skip connection": weights(decoder_bias=normal(N), skip=normal(N, N)),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_autoencoder_is_what_its_rows_and_biases_add_up_to(name: str, dtype: torch.dtype) -> None:
    one = KINDS[name]
    names = ("pre_bias", "encoder", "latent_bias", "decoder", "decoder_bias", "threshold", "skip")
    tensors = {name: getattr(one, name) for name in names if getattr(one, name) is not None}
    own = Autoencoder(
        **{name: tensor.to(dtype) for name, tensor in tensors.items()},
        activation=one.activation,
        k=one.k,
        postact=one.postact,
    )
    found = Transcoders.per_layer(LAYERS, {2: own})
    x, wide = X.to(dtype), torch.promote_types(dtype, torch.float32)
    active = found.active(2, x)
    assert torch.equal(found.activations(2, x)[active.tokens, active.features], active.values)
    assert found.encoder_rows(2, active.features).dtype is active.values.dtype is wide
    everything = torch.arange(Z)
    pre = (x - own.pre_bias).to(wide) @ found.encoder_rows(2, everything).t() + own.latent_bias
    tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(own.pre_activation(x).to(wide), pre, rtol=tolerance, atol=10 * tolerance)
    expected = own.decode(own.encode(x), x).to(wide)
    torch.testing.assert_close(found.reconstruction(2, {2: active}, x), expected, rtol=tolerance, atol=10 * tolerance)
    assert (found.written_layers(2), found.is_cross_layer) == (range(2, 3), False)
    assert [found.has_layer(layer) for layer in range(LAYERS)] == [False, False, True, False]
    assert [found.n_features(layer) for layer in range(LAYERS)] == [0, 0, Z, 0]


@pytest.mark.parametrize("is_swapped", [False, True])
def test_rows_are_the_same_however_the_weights_lie_in_memory(is_swapped: bool) -> None:
    encoder, decoder, features = normal(Z, N), normal(N, Z), torch.tensor([8, 0, 0, 3])
    if is_swapped:
        stored = {"encoder": encoder.t().contiguous().t(), "decoder": decoder.t().contiguous().t()}
    else:
        stored = {"encoder": encoder, "decoder": decoder}
    found = Transcoders.per_layer(LAYERS, {0: weights(**stored)})
    assert torch.equal(found.encoder_rows(0, features), encoder[features])
    assert torch.equal(found.decoder_rows(0, features, 0), decoder[:, features].t())


def test_before_the_first_token_that_counts_nothing_is_active() -> None:
    found = Transcoders.per_layer(LAYERS, {0: KINDS["JumpReLU"]})
    whole, later = found.active(0, X), found.active(0, X, first=2)
    kept = whole.tokens >= 2
    assert (whole.tokens < 2).any()
    for name in ("tokens", "features", "values"):
        assert torch.equal(getattr(whole, name)[kept], getattr(later, name))
    assert len(found.active(0, X, first=T)) == 0


def test_active_features_of_many_tokens_are_found_some_tokens_at_a_time() -> None:
    one = PerLayerTranscoder(0, KINDS["TopK"])
    whole, parts = one.active(X), active_in_parts(one, X, at_once=2 * Z)
    for name in ("tokens", "features", "values"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


# Across layers


def cross_layer(folder: Path, layer: int, *, first_stored: int, **more: Any) -> tuple[StoredTranscoder, torch.Tensor]:
    """The features of *layer*, and what they write: [Z, layers from *first_stored* on, N]."""
    decoder = normal(Z, LAYERS - first_stored, N)
    path = folder / f"{layer}.safetensors"
    save_file({"encoder": normal(N, Z), "decoder": decoder}, path)
    file = SafetensorsFile.open(File.at(path)).held()
    parts: dict[str, Any] = {
        "written": range(layer, LAYERS),
        # Blocks of 4, 4 and 1 features.
        "encoder": StoredMatrix(file=file, name="encoder", n_columns=N, is_swapped=True, block_bytes=4 * 4 * N),
        "latent_bias": normal(Z),
        "decoder": StoredMatrix(file=file, name="decoder", n_columns=N),
        "first_stored": first_stored,
        "decoder_bias": normal(N),
    }
    return StoredTranscoder(**(parts | more)), decoder


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"activation": A.JUMP_RELU, "threshold": normal(Z), "postact": A.IDENTITY},
        {"activation": A.TOP_K, "k": 3, "postact": A.IDENTITY},
    ],
    ids=["ReLU", "JumpReLU", "TopK"],
)
@pytest.mark.parametrize("first_stored", [0, 1])
def test_blocks_of_features_are_activated_as_the_whole(tmp_path: Path, first_stored: int, more: dict[str, Any]) -> None:
    one, decoder = cross_layer(tmp_path, 1, first_stored=first_stored, **more)
    same = Autoencoder(
        pre_bias=torch.zeros(N),
        encoder=one.encoder.rows(torch.arange(Z)),
        latent_bias=one.latent_bias,
        decoder=decoder[:, 1 - first_stored].t(),
        decoder_bias=one.decoder_bias,
        **more,
    )
    found = Transcoders(LAYERS, {1: one})
    torch.testing.assert_close(found.activations(1, X), same.encode(X))
    active, expected = found.active(1, X), found.activations(1, X).nonzero()
    assert torch.stack([active.tokens, active.features], dim=1).tolist() == expected.tolist()
    for written in range(1, LAYERS):
        features = torch.tensor([8, 0, 0, 3])
        assert torch.equal(found.decoder_rows(1, features, written), decoder[features, written - first_stored])
    torch.testing.assert_close(found.reconstruction(1, {1: active}, X), same.decode(same.encode(X), X))
    assert found.is_cross_layer


def test_active_features_of_a_layer_take_the_memory_of_a_block(tmp_path: Path) -> None:
    """Their values are what is there, not a view that keeps all activations of their blocks alive."""
    one, _ = cross_layer(tmp_path, 0, first_stored=0)
    active = one.active(X)
    for tensor in (active.tokens, active.features, active.values):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_of_a_large_file_no_more_is_in_memory_than_blocks_and_what_is_asked_for(tmp_path: Path) -> None:
    n_features, block_bytes = 1 << 16, 1 << 18
    shapes = {"encoder": (n_features, N), "decoder": (n_features, LAYERS, N)}
    write_sparse(tmp_path / "w.safetensors", shapes, {})
    file = SafetensorsFile.open(File.at(tmp_path / "w.safetensors")).held()
    bias = torch.zeros(n_features)
    bias[::1000] = 1.0
    one = StoredTranscoder(
        written=range(LAYERS),
        encoder=StoredMatrix(file=file, name="encoder", n_columns=N, block_bytes=block_bytes),
        latent_bias=bias,
        decoder=StoredMatrix(file=file, name="decoder", n_columns=N, block_bytes=block_bytes),
        first_stored=0,
        decoder_bias=torch.zeros(N),
    )
    found = Transcoders(LAYERS, {0: one})
    active = found.active(0, X)
    assert len(active) == T * 66
    # A block, its pre-activations and activations, and masks of them; of all features it would be 36 times as much.
    n_at_once = block_bytes // (4 * N)
    assert peak_bytes(lambda: found.active(0, X)) < block_bytes + 4 * (4 * T * n_at_once) + 100 * len(active)
    rows = 4 * N * len(active)
    assert peak_bytes(lambda: found.reconstruction(0, {0: active}, X)) < 10 * rows
    assert found.file_bytes == 4 * n_features * N * (1 + LAYERS)

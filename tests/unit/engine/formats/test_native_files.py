"""The native autoencoder formats: the same autoencoder from either, and a message for each way to be corrupt."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dst_grpc.domain.autoencoders import AutoencoderActivation
from dst_grpc.errors import DataLoss, Reason
from tests import checkpoints
from tests.checkpoints import LATENTS, WIDTH, opened, read_header


def test_both_formats_give_the_same_autoencoder(tmp_path: Path) -> None:
    paths = (
        checkpoints.write_autoencoder(tmp_path / "0.safetensors"),
        checkpoints.write_state_dict(tmp_path / "0.pt", {"activation": "ReLU", "stats_last_nonzero": torch.zeros(3)}),
    )
    x = torch.randn(5, WIDTH)
    state = checkpoints.state_dict()
    expected = torch.relu((x - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"])
    for path in paths:
        autoencoder = checkpoints.load_autoencoder(path, "cpu", torch.float32)
        torch.testing.assert_close(autoencoder.encode(x), expected)
        decoded = expected @ state["decoder.weight"].T + state["pre_bias"]
        torch.testing.assert_close(autoencoder.decode(expected, x), decoded)
        assert not autoencoder.encoder.requires_grad


def test_the_header_tells_everything_but_the_weights(tmp_path: Path) -> None:
    metadata = {
        "activation": "TopK",
        "activation_state_dict": '{"k": 3, "postact_fn": "Identity"}',
        "dst": "resid_delta_mlp",
        "layer_index": "7",
    }
    header = read_header(checkpoints.write_autoencoder(tmp_path / "7.safetensors", metadata=metadata))
    assert (header.n_inputs, header.n_latents) == (WIDTH, LATENTS)
    assert (header.activation, header.k, header.postact) == (
        AutoencoderActivation.TOP_K,
        3,
        AutoencoderActivation.IDENTITY,
    )
    assert (header.dst, header.layer_index) == ("resid_delta_mlp", 7)
    assert header.bytes_as(torch.float16) == 2 * (WIDTH + LATENTS + 2 * WIDTH * LATENTS)


def test_a_state_dict_tells_its_activation(tmp_path: Path) -> None:
    entries = {"activation": "TopK", "activation_state_dict": OrderedDict(k=2, postact_fn="ReLU"), "activation.k": 2}
    path = checkpoints.write_state_dict(tmp_path / "0.pt", entries)
    autoencoder = checkpoints.load_autoencoder(path, "cpu", torch.float32)
    assert (autoencoder.activation, autoencoder.k) == (AutoencoderActivation.TOP_K, 2)
    assert (read_header(path).dst, read_header(path).layer_index) == (None, None)


def test_reading_a_header_touches_no_weights(tmp_path: Path) -> None:
    """NaN weights are found by loading, so a header that is read without complaint has not looked at them."""
    state = checkpoints.state_dict()
    state["decoder.weight"][0, 0] = float("nan")
    paths = [checkpoints.write_autoencoder(tmp_path / "0.safetensors", state)]
    paths.append(checkpoints.write_state_dict(tmp_path / "0.pt", dict(state)))
    for path in paths:
        read_header(path)
        with pytest.raises(DataLoss, match=r"'decoder.weight' has values that are NaN or infinite"):
            checkpoints.load_autoencoder(path, "cpu", torch.float32)


def test_progress_rises_to_all_bytes(tmp_path: Path) -> None:
    path = checkpoints.write_autoencoder(tmp_path / "0.safetensors")
    seen: list[int] = []
    autoencoder = checkpoints.load_autoencoder(path, "cpu", torch.bfloat16, seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == autoencoder.parameter_bytes == read_header(path).bytes_as(torch.bfloat16)


def changed(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    state: dict[str, Any] = {**checkpoints.state_dict(), **changes}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


BAD_TENSORS: list[tuple[dict[str, Any], str]] = [
    ({"decoder.weight": None}, "lacks the float tensor 'decoder.weight'"),
    ({"pre_bias": torch.zeros(WIDTH, dtype=torch.int64)}, "lacks the float tensor 'pre_bias'"),
    ({"encoder.weight": torch.zeros(5)}, "must have two axes"),
    ({"encoder.weight": torch.zeros(WIDTH, LATENTS)}, "is a weight transposed"),
    ({"latent_bias": torch.zeros(3)}, r"'latent_bias' has shape \[3\]"),
]


@pytest.mark.parametrize(("changes", "problem"), BAD_TENSORS, ids=lambda value: str(value)[:30])
def test_weights_that_do_not_fit_are_named(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    state = changed(**changes)
    checkpoints.write_autoencoder(tmp_path / "0.safetensors", state)
    torch.save(state, tmp_path / "0.pt")
    for name in ("0.safetensors", "0.pt"):
        with pytest.raises(DataLoss, match=f"{name}: .*{problem}"):
            read_header(tmp_path / name)


BAD_METADATA: list[tuple[dict[str, str], str]] = [
    ({"activation": "Swish"}, "unknown activation 'Swish'; these are known: ReLU, TopK, Identity"),
    ({"activation": "TopK"}, f"TopK needs k between 1 and {LATENTS}, not None"),
    ({"activation": "TopK", "activation_state_dict": '{"k": 11}'}, "not 11"),
    ({"activation": "TopK", "activation_state_dict": '{"k": true}'}, "not True"),
    ({"activation": "TopK", "activation_state_dict": "[]"}, "is no mapping"),
    ({"activation": "TopK", "activation_state_dict": "{"}, "no sound JSON"),
    ({"activation": "TopK", "activation_state_dict": '{"k": 1, "postact_fn": "TopK"}'}, "its own postact_fn"),
    ({"layer_index": "-1"}, "layer_index is '-1'"),
]


@pytest.mark.parametrize(("metadata", "problem"), BAD_METADATA, ids=lambda value: str(value)[:40])
def test_metadata_that_make_no_sense_are_named(tmp_path: Path, metadata: dict[str, str], problem: str) -> None:
    path = checkpoints.write_autoencoder(tmp_path / "0.safetensors", metadata=metadata)
    with pytest.raises(DataLoss, match=problem):
        read_header(path)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "0.npz").write_bytes(b"")
    with pytest.raises(DataLoss, match="is in none of the known formats: saelens, "):
        read_header(tmp_path / "0.npz")


class _Attack:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_would_run_code_does_not(tmp_path: Path) -> None:
    path = checkpoints.write_state_dict(tmp_path / "0.pt", {"activation": _Attack(tmp_path / "attacked")})
    with pytest.raises(DataLoss, match="only running its pickle could make: convert it to safetensors"):
        read_header(path)
    assert not (tmp_path / "attacked").exists()


def test_state_dicts_that_are_none_are_named(tmp_path: Path) -> None:
    path = tmp_path / "0.pt"
    sound = checkpoints.write_state_dict(path).read_bytes()
    for content in (b"", b"garbage" * 30, sound[: len(sound) // 2], pickle.dumps(checkpoints.state_dict()["pre_bias"])):
        path.write_bytes(content)
        with pytest.raises(DataLoss, match=r"is truncated, or was not made by torch\.save"):
            read_header(path)
    torch.save([1, 2], path)
    with pytest.raises(DataLoss, match="holds a list rather than a state dict"):
        read_header(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no tensors")
    with pytest.raises(DataLoss, match=r"no sound file of torch\.save"):
        read_header(path)


def test_a_compressed_state_dict_is_refused(tmp_path: Path) -> None:
    sound = checkpoints.write_state_dict(tmp_path / "sound.pt")
    with zipfile.ZipFile(sound) as source, zipfile.ZipFile(tmp_path / "0.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(DataLoss, match="is compressed"):
        read_header(tmp_path / "0.pt")


def test_a_tensor_that_repeats_a_few_bytes_for_ever_is_refused(tmp_path: Path) -> None:
    path = checkpoints.write_state_dict(tmp_path / "0.pt", {"encoder.weight": torch.zeros(1, 1).expand(10**6, WIDTH)})
    with pytest.raises(DataLoss, match="claims 32000000 bytes in a file of"):
        read_header(path)


def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    for name in ("0.pt", "0.safetensors"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataLoss, match="is not a regular file"):
            read_header(tmp_path / name)


def frequencies(*dead: int) -> torch.Tensor:
    """Of latents that live, but for those that are *dead*."""
    found = torch.linspace(0.9, 0.1, LATENTS)
    found[list(dead)] = 0
    return found


def without_latents(*dropped: int) -> tuple[dict[str, torch.Tensor], list[int]]:
    """The weights of the other latents, and which those are."""
    state = checkpoints.state_dict()
    kept = [latent for latent in range(LATENTS) if latent not in dropped]
    for name in ("encoder.weight", "latent_bias"):
        state[name] = state[name][kept]
    state["decoder.weight"] = state["decoder.weight"][:, kept]
    return state, kept


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_latents_of_lowest_frequency_are_left_out_and_the_others_kept_in_order(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"0.{suffix}"
    state = changed(latents_activation_frequency=frequencies(1, 4, 8))
    state["latents_activation_frequency"][4] = 1e-9
    checkpoints.write_autoencoder(path, state) if suffix == "safetensors" else checkpoints.write_state_dict(path, state)
    for n, dropped in ((1, {1}), (2, {1, 8}), (3, {1, 4, 8}), (4, {1, 4, 8, 9})):
        seen: list[int] = []
        cut = checkpoints.load_autoencoder(path, "cpu", torch.float32, seen.append, n_dropped=n)
        expected, _ = without_latents(*dropped)
        for found, name in (
            (cut.pre_bias, "pre_bias"),
            (cut.encoder, "encoder.weight"),
            (cut.latent_bias, "latent_bias"),
            (cut.decoder, "decoder.weight"),
        ):
            assert torch.equal(found, expected[name])
            assert found.is_contiguous()
        header = read_header(path).without(n)
        assert (header.n_latents, header.n_dropped) == (LATENTS - n, n)
        assert seen[-1] == cut.parameter_bytes == header.bytes_as(torch.float32)


@pytest.mark.parametrize(
    "metadata",
    [
        {"activation": "ReLU"},
        {"activation": "TopK", "activation_state_dict": '{"k": 3, "postact_fn": "ReLU"}'},
        {"activation": "TopK", "activation_state_dict": '{"k": 2, "postact_fn": "Identity"}'},
    ],
    ids=["ReLU", "TopK, ReLU", "TopK, Identity"],
)
def test_without_its_dead_latents_an_autoencoder_says_the_same(tmp_path: Path, metadata: dict[str, str]) -> None:
    dead = (0, 3, 4, 9)
    state = changed(latents_activation_frequency=frequencies(*dead))
    state["latent_bias"][list(dead)] = -1e3
    path = checkpoints.write_autoencoder(tmp_path / "0.safetensors", state, metadata)
    full = checkpoints.load_autoencoder(path, "cpu", torch.float32)
    cut = checkpoints.load_autoencoder(path, "cpu", torch.float32, n_dropped=len(dead))
    assert (cut.activation, cut.k, cut.postact) == (full.activation, full.k, full.postact)
    x = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(1))
    _, live = without_latents(*dead)
    assert not full.encode(x)[:, list(dead)].any()
    torch.testing.assert_close(cut.encode(x), full.encode(x)[:, live])
    torch.testing.assert_close(cut.decode(cut.encode(x), x), full.decode(full.encode(x), x))


def test_frequencies_are_read_if_there_are_any(tmp_path: Path) -> None:
    path = tmp_path / "0.safetensors"
    given = frequencies(2)
    checkpoints.write_autoencoder(path, changed(latents_activation_frequency=given.double()))
    read = opened(path).frequencies()
    assert read is not None
    torch.testing.assert_close(read, given)
    checkpoints.write_autoencoder(path, changed(latents_activation_frequency=None))
    assert opened(path).frequencies() is None
    with pytest.raises(DataLoss, match="has no frequencies of its latents"):
        checkpoints.load_autoencoder(path, "cpu", torch.float32, n_dropped=1)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (torch.ones(3), r"has shape \[3\], but there are 10 latents"),
        (torch.full((LATENTS,), torch.nan), "negative, NaN or infinite"),
        (torch.full((LATENTS,), -0.1), "negative, NaN or infinite"),
    ],
)
def test_frequencies_that_are_none_are_named(tmp_path: Path, given: torch.Tensor, problem: str) -> None:
    path = tmp_path / "0.safetensors"
    checkpoints.write_autoencoder(path, changed(latents_activation_frequency=given))
    read_header(path)  # nobody asks for them here
    with pytest.raises(DataLoss, match=problem):
        opened(path).frequencies()


def test_an_archive_with_a_long_list_of_members_is_not_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "0.pt", "w") as archive:
        for i in range(20_000):
            archive.writestr(f"archive/{i:010}", b"")
    with pytest.raises(DataLoss, match="was not made by"):
        read_header(tmp_path / "0.pt")


@pytest.mark.parametrize("write", [checkpoints.write_autoencoder, checkpoints.write_state_dict])
def test_no_other_file_is_loaded_than_the_one_whose_header_was_read(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    path = tmp_path / ("0.pt" if write is checkpoints.write_state_dict else "0.safetensors")
    file = opened(write(path))
    file.load("cpu", torch.float32)
    write(tmp_path / f"new{path.suffix}").replace(path)
    with pytest.raises(DataLoss, match="changed since") as caught:
        file.load("cpu", torch.float32)
    assert caught.value.reason is Reason.DIGEST_MISMATCH


@pytest.mark.parametrize("write", [checkpoints.write_autoencoder, checkpoints.write_state_dict])
def test_what_is_loaded_shares_nothing_with_the_file(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path / ("0.pt" if write is checkpoints.write_state_dict else "0.safetensors"))
    autoencoder = checkpoints.load_autoencoder(path, "cpu", torch.float32)
    with path.open("r+b") as file:  # in place: a mapping would show it
        file.write(b"\0" * path.stat().st_size)
    assert autoencoder.encoder.any()
    assert autoencoder.encoder.untyped_storage().nbytes() == autoencoder.encoder.nbytes

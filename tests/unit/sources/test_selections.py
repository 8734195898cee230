"""Which files a model or a set consists of, by their names."""

from __future__ import annotations

import json
import posixpath
from typing import TYPE_CHECKING

import pytest

from dst_grpc.engine.formats.layouts import LAYOUTS
from dst_grpc.errors import DataLoss, InvalidRequest
from dst_grpc.sources import AutoencoderSpec
from dst_grpc.sources.selections import layer_files, model_files, set_files, set_key

if TYPE_CHECKING:
    from dst_grpc.engine.formats.layouts import Layout

SINGLE = {"config.json", "tokenizer.json", "model.safetensors", "README.md", "model.onnx"}
SHARDED = (SINGLE - {"model.safetensors"}) | {"model.safetensors.index.json", "a.safetensors", "b.safetensors"}
INDEX = json.dumps({"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "a.safetensors"}}).encode()


def no_read(name: str) -> bytes:
    raise AssertionError(name)


def test_a_model_is_its_config_tokenizer_and_weights() -> None:
    assert set(model_files(SINGLE, no_read)) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert set(model_files(SHARDED, lambda _: INDEX)) == SHARDED - {"README.md", "model.onnx"}
    both = SINGLE | SHARDED
    assert set(model_files(both, no_read)) == {"config.json", "tokenizer.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("names", "index", "problem"),
    [
        (SINGLE - {"tokenizer.json", "config.json"}, b"", "lacks config.json, tokenizer.json$"),
        (SINGLE - {"model.safetensors", "model.onnx"}, b"", "it lacks model.safetensors$"),
        ((SINGLE - {"model.safetensors"}) | {"pytorch_model.bin"}, b"", "a pickle, which is never loaded"),
        (SHARDED - {"b.safetensors"}, INDEX, "lacks b.safetensors"),
        (SHARDED, b"{", "no sound index"),
        (SHARDED, b'{"weight_map": []}', "no sound index"),
        (SHARDED, b'{"weight_map": {"x": "../b.safetensors"}}', "no safetensors file beside it"),
        (SHARDED, b'{"weight_map": {"x": 1}}', "no safetensors file beside it"),
    ],
)
def test_what_is_missing_or_unsound_is_named(names: set[str], index: bytes, problem: str) -> None:
    with pytest.raises(DataLoss, match=problem):
        model_files(names, lambda _: index)


NAMES = (
    "layer_0/width_16k/l0_10/params.npz",
    "layer_0/width_16k/l0_10/config.json",
    "layer_0/width_65k/l0_20/params.npz",
    "layer_11/width_16k/l0_30/params.npz",
    "layer_011/width_16k/l0_30/params.npz",
    "README.md",
    "other/config.json",
)


def test_a_pattern_finds_the_file_of_each_layer() -> None:
    found = layer_files(NAMES, "layer_{layer}/width_16k/*/params.npz", None)
    assert found == {0: NAMES[0], 11: NAMES[3]}
    assert layer_files(NAMES, "layer_{layer}/width_16k/*/params.npz", (11,)) == {11: NAMES[3]}
    assert layer_files(["L1/1.npz", "L1/2.npz"], "L{layer}/{layer}.npz", None) == {1: "L1/1.npz"}


@pytest.mark.parametrize(
    ("pattern", "layers", "problem"),
    [
        ("layer_{layer}/*/*/params.npz", None, r"pattern: fits both .*16k.* and .*65k.*, for layer 0"),
        ("layer_{layer}/params.npz", None, "pattern: no file fits"),
        ("layer_{layer}/*/params.npz", None, "pattern: no file fits"),
        ("layer_{layer}/width_16k/*/params.npz", (0, 1, 2), "layers: no file fits the pattern for layer 1, 2"),
    ],
)
def test_a_pattern_that_fits_badly_is_named(pattern: str, layers: tuple[int, ...] | None, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        layer_files(NAMES, pattern, layers)


def test_a_set_is_its_weights_and_the_configs_beside_them() -> None:
    spec = AutoencoderSpec(name="s", pattern="layer_{layer}/width_16k/*/params.npz")
    assert set_files(NAMES, spec) == (NAMES[0], NAMES[3], NAMES[1])
    plain = AutoencoderSpec(name="s")
    assert set_files(["0.pt", "1.safetensors", "cfg.yaml", "notes.txt"], plain) == (
        "0.pt", "1.safetensors", "cfg.yaml",
    )  # fmt: skip
    with pytest.raises(DataLoss, match="no file that ends in"):
        set_files(["README.md"], plain)


@pytest.mark.parametrize("one", LAYOUTS, ids=lambda one: one.format)
def test_all_that_a_format_reads_is_fetched(one: Layout) -> None:
    """Files beside the weights, or above them."""
    weights = "L7/checkpoints/w.safetensors"
    beside = [posixpath.normpath(f"L7/checkpoints/{name}").replace("{layer}", "7") for name in one.beside]
    spec = AutoencoderSpec(name="s", pattern="L{layer}/checkpoints/w.safetensors")
    others = ["L7/README.md", "L7/other.json", "L7/checkpoints/other.safetensors"]
    assert set(set_files([weights, *beside, *others], spec)) == {weights, *beside}


def test_statistics_are_no_second_file_of_weights() -> None:
    names = ["sae_weights.safetensors", "sparsity.safetensors", "cfg.json"]
    assert sorted(set_files(names, AutoencoderSpec(name="s"))) == ["cfg.json", *names[:2]]


def test_what_is_asked_for_tells_selections_apart() -> None:
    specs = [
        AutoencoderSpec(name="s"),
        AutoencoderSpec(name="s", pattern="{layer}.npz"),
        AutoencoderSpec(name="s", pattern="{layer}.npz", layers=(1,)),
    ]
    assert len({set_key(path, spec) for path in ("", "a") for spec in specs}) == 6
    assert set_key("a", specs[0]) == set_key("a", AutoencoderSpec(name="other"))

"""Folders as people have them: what is not ours is ignored, and what fails is told by name and harms nothing else.

`tests/folders` holds some as they were found.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dst_grpc.contexts import AutoencoderContext, Registry
from dst_grpc.contexts.failed import Attempts, FailedEntry
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.domain.autoencoders import AutoencoderActivation
from dst_grpc.domain.resolution import ContextKind, ContextState
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.errors import DataLoss, Internal, InvalidRequest, NotFound, Reason
from tests import checkpoints

FOLDERS = Path(__file__).parents[2] / "folders"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that the autoencoders of `tests/folders` fit, with nothing beside it."""
    return shutil.copytree(FOLDERS / "tied_alias", tmp_path / "m")


def build(folder: Path, **more: Path) -> Registry:
    return Registry.build(models={"m": folder, **more}, device="cpu", include_embedded=False)


def put(model: Path, name: str) -> Path:
    """A folder of `tests/folders` as a set beside *model*."""
    return shutil.copytree(FOLDERS / name, model / "autoencoders" / name)


def problems(registry: Registry) -> dict[str, str]:
    return {failed.name: failed.error.message for failed in registry.failed}


def loaded(registry: Registry, name: str) -> AutoencoderContext:
    loader = FileLoader(allow_failed_checks=True)
    model = loader.load_model(registry.model_entry("m"), lambda _: None)
    return loader.load_autoencoders(registry.autoencoder_entry(name, "m"), model, lambda _: None)


def served(registry: Registry) -> dict[str, tuple[int, ...]]:
    return {info.name: info.layer_indices for info in registry.autoencoders() if info.error is None}


# What others leave beside autoencoders


def test_a_training_run_of_sparsify_is_the_set_of_its_autoencoders(model: Path) -> None:
    put(model, "sparsify_run")
    registry = build(model)
    assert problems(registry) == {}
    assert served(registry) == {"m/sparsify_run": (0, 1)}
    for check in loaded(registry, "m/sparsify_run").measured:
        assert (check.l0, round(check.fraction_of_variance_unexplained or 0, 6)) == (16.0, 0.0)


def test_a_training_run_of_dictionary_learning_is_the_set_of_its_autoencoders(model: Path) -> None:
    run = model / "autoencoders" / "run"
    for layer in (0, 1):
        folder = run / f"resid_post_layer_{layer}" / "trainer_0"
        (folder / "checkpoints").mkdir(parents=True)
        tensors = {
            "encoder.weight": torch.cat([torch.eye(16), -torch.eye(16)]), "encoder.bias": torch.zeros(32),
            "decoder.weight": torch.cat([torch.eye(16), -torch.eye(16)]).T.contiguous(), "bias": torch.zeros(16),
        }  # fmt: skip
        torch.save(tensors, folder / "ae.pt")
        trainer = {"trainer_class": "StandardTrainer", "dict_class": "AutoEncoder", "activation_dim": 16}
        config = {"trainer": trainer | {"dict_size": 32, "layer": layer, "submodule_name": f"resid_post_layer_{layer}"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "eval_results.json").write_text('{"frac_variance_explained": 0.9}')
        torch.save(tensors, folder / "checkpoints" / "ae_1000.pt")
        torch.save({"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}, folder / "checkpoints" / "1000.pt")
    (run / "config.json").write_text('{"save_dir": "run", "layers": [0, 1], "trainer_configs": [{}]}')
    registry = build(model)
    assert problems(registry) == {}
    assert served(registry) == {"m/run": (0, 1)}


def test_a_training_run_of_saelens_is_the_set_of_its_autoencoders(model: Path) -> None:
    folder = shutil.copytree(FOLDERS / "saelens_5_topk", model / "autoencoders" / "run")
    (place,) = folder.iterdir()
    (place / "runner_cfg.json").write_text('{"training_tokens": 100, "sae": {"d_in": 16}}')
    save_file({"mixing_buffer": torch.zeros(3, 16)}, place / "activations_store_state.safetensors")
    torch.save({"n_training_steps": 5, "optimizer": {"state": {}}}, place / "trainer_state.pt")
    torch.save({"weight": torch.zeros(3)}, folder / "7.pt")
    (folder / "8.pt").write_bytes(b"cut short")
    registry = build(model)
    assert problems(registry) == {}
    assert served(registry) == {"m/run": (1,)}
    autoencoder = loaded(registry, "m/run").by_layer[1]
    assert (autoencoder.activation, autoencoder.k) == (AutoencoderActivation.TOP_K, 16)


def test_among_files_that_are_named_after_layers_only_those_with_our_tensors_are_ours(model: Path) -> None:
    beside = model / "autoencoders" / "resid_post_mlp"
    checkpoints.write_autoencoder(beside / "0.safetensors", checkpoints.state_dict(16))
    torch.save({"state": {0: torch.zeros(2)}, "param_groups": [{"lr": 0.1}]}, beside / "5000.pt")
    save_file({"mu": torch.zeros(16)}, beside / "mean.safetensors")
    registry = build(model)
    assert (problems(registry), served(registry)) == ({}, {"m/resid_post_mlp": (0,)})
    checkpoints.write_autoencoder(beside / "layer_1.safetensors", checkpoints.state_dict(16))
    assert "layer_1.safetensors: is named after no layer: LAYER.safetensors or LAYER.pt" in str(
        problems(build(model))["m/resid_post_mlp"]
    )
    (beside / "layer_1.safetensors").unlink()
    (beside / "1.pt").write_bytes(b"cut short")
    assert problems(build(model))["m/resid_post_mlp"].startswith("1.pt: is truncated")


@pytest.mark.parametrize("content", ['{"layers": [0, 1]}', '{"layers": {"0": {"width": 3}}}', "[1, 2]", '{"lr": 1}'])
def test_a_config_that_says_nothing_of_a_set_is_a_stranger_s(model: Path, content: str) -> None:
    (put(model, "sparsify_run") / "config.json").write_text(content)
    registry = build(model)
    assert problems(registry) == {}
    assert "config.json" not in registry.autoencoder_entry("m/sparsify_run", "m").files.names


# What fails, and what it says


def test_an_autoencoder_that_reads_more_than_its_file_holds_is_refused_by_key(model: Path) -> None:
    put(model, "sparsify_gram_lookup")
    registry = build(model)
    assert served(registry) == {}
    message = problems(registry)["m/sparsify_gram_lookup"]
    assert message.startswith("h.1/cfg.json: gram_lookup is True, which is not supported: it must be false; embed_skip")


def test_one_bad_set_keeps_no_other_from_being_served_and_is_told_by_name(model: Path) -> None:
    put(model, "sparsify_run")
    bad = put(model, "saelens_5_topk")
    (bad / "blocks.1.hook_resid_post" / "cfg.json").write_text('{"hook_name": 3}')
    registry = build(model)
    assert served(registry) == {"m/sparsify_run": (0, 1)}
    (failed,) = registry.failed
    assert (failed.name, failed.model, failed.kind, failed.source) == (
        "m/saelens_5_topk",
        "m",
        ContextKind.AUTOENCODER,
        "folder",
    )
    assert failed.error.metadata["file"] == "blocks.1.hook_resid_post/cfg.json"
    told = r"'m/saelens_5_topk' cannot be served: blocks\.1.*/cfg\.json: hook_name is"
    with pytest.raises(DataLoss, match=told):
        registry.autoencoder_entry("m/saelens_5_topk", "m")
    with pytest.raises(DataLoss, match=told):
        registry.entry("m/saelens_5_topk")
    with pytest.raises(NotFound):
        registry.autoencoder_entry("m/none", "m")
    listed = {info.name: (info.state, info.model, info.dst) for info in registry.autoencoders("m")}
    assert listed == {
        "m/saelens_5_topk": (ContextState.FAILED, "m", None),
        "m/sparsify_run": (ContextState.NOT_LOADED, "m", DerivedScalarType.RESID_POST_MLP),
    }


def test_one_bad_model_keeps_no_other_from_being_served_and_is_told_by_name(model: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(model, tmp_path / "bad")
    put(bad, "sparsify_run")
    (bad / "model.safetensors").write_bytes(b"cut short")
    registry = build(model, a=bad)
    assert [(info.name, info.state, info.error is None) for info in registry.models()] == [
        ("a", ContextState.FAILED, False),
        ("m", ContextState.NOT_LOADED, True),
    ]
    assert str(registry.model("a").error).startswith("'a' cannot be served: model.safetensors: ")
    assert registry.autoencoders("a") == []
    ((name, message),) = problems(registry).items()
    assert (name, message.partition(":")[0]) == ("a", "model.safetensors")
    assert registry.default_model == "m"
    for ref in ("a", "a/sparsify_run"):
        with pytest.raises(DataLoss, match=r"'a' cannot be served: model\.safetensors: ") as caught:
            registry.entry(ref)
        assert caught.value.reason is Reason.CHECKPOINT_CORRUPT
    with pytest.raises(DataLoss):
        registry.model_entry("a")


def test_if_nothing_can_be_served_whoever_names_no_model_is_told_why(model: Path) -> None:
    (model / "config.json").unlink()
    registry = build(model)
    assert [(info.name, info.state, info.default_model) for info in registry.models()] == [
        ("m", ContextState.FAILED, True)
    ]
    assert registry.model("").source == "folder"
    with pytest.raises(DataLoss, match=r"'m' cannot be served: config\.json: is missing"):
        registry.model_entry("")


def test_two_autoencoders_of_one_layer_are_told_apart_by_the_registry_only(model: Path) -> None:
    run = put(model, "sparsify_run")
    shutil.copytree(run / "h.0", run / "best" / "h.0")
    message = problems(build(model))["m/sparsify_run"]
    assert "is the second autoencoder of its layer, beside best/h.0/sae.safetensors: leave one of them, or" in message


def test_weights_without_the_config_that_their_format_needs_are_named(model: Path) -> None:
    (put(model, "sparsify_run") / "h.1" / "cfg.json").unlink()
    assert problems(build(model)) == {
        "m/sparsify_run": "h.1/sae.safetensors: lacks cfg.json beside it, without which nothing says what it is"
    }


def _tensors(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(3) for name in names}


STRANGERS: dict[str, tuple[dict[str, dict[str, torch.Tensor]], str]] = {
    "nothing but a config": ({}, "set: holds no autoencoders, only their config: pull what its config.yaml names"),
    "training states": (
        {"optimizer_0.pt": _tensors("step"), "run/state.pt": _tensors("step")},
        "optimizer_0.pt, run/state.pt are states of a training run, and no autoencoder lies beside them",
    ),
    "others": (
        {"a.safetensors": _tensors("x"), "b/c.pt": _tensors("y"), "0.pt": _tensors("z")},
        "holds no autoencoders: 0.pt, a.safetensors, b/c.pt are in none of the known formats",
    ),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_folder_without_autoencoders_says_what_it_holds(model: Path, name: str) -> None:
    files, problem = STRANGERS[name]
    for file, tensors in files.items():
        path = model / "autoencoders" / "set" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(tensors, path) if path.suffix == ".pt" else save_file(tensors, path)
    (model / "autoencoders" / "set").mkdir(parents=True, exist_ok=True)
    (model / "autoencoders" / "set" / "config.yaml").write_text("model_kind: transcoder_set\n")
    registry = build(model)
    assert [info.name for info in registry.models()] == ["m"]
    assert problem in problems(registry)["m/set"]


def test_a_folder_that_holds_nothing_says_so(model: Path) -> None:
    (model / "transcoders" / "set").mkdir(parents=True)
    assert problems(build(model))["m/set"] == "set: holds no autoencoders"


def attempted(error: Exception) -> FailedEntry:
    """What is noted of a set whose opening raised *error*."""

    def fail() -> None:
        raise error

    attempts = Attempts()
    with attempts.at("m/s", "m", "folder"):
        fail()
    (failed,) = attempts.failed
    return failed


def test_a_folder_that_may_not_be_read_fails_alone(model: Path) -> None:
    """Root may read everything, so what the system refuses is raised here."""
    failed = attempted(PermissionError(13, "Permission denied", str(model / "autoencoders")))
    assert failed.error.message == "autoencoders cannot be read: Permission denied"


def test_a_set_whose_link_leads_nowhere_is_not_passed_over(model: Path) -> None:
    (model / "autoencoders").mkdir()
    (model / "autoencoders" / "s").symlink_to("/gone")
    assert problems(build(model)) == {"m/s": "s: is a link to '/gone', where there is nothing"}


@pytest.mark.parametrize("name", ["h.1", "h.1/sae.safetensors"])
def test_a_layer_whose_link_leads_nowhere_is_not_passed_over(model: Path, name: str) -> None:
    lost = put(model, "sparsify_run") / name
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    lost.symlink_to("/gone")
    assert problems(build(model)) == {"m/sparsify_run": f"{name}: is a link to '/gone', where there is nothing"}


def test_a_stranger_s_link_that_leads_nowhere_is_ignored(model: Path) -> None:
    run = put(model, "sparsify_run")
    for name in ("latest", "wandb.log", "old.pt"):
        (run / name).symlink_to("/gone")
    assert served(build(model)) == {"m/sparsify_run": (0, 1)}


def test_weights_that_git_has_not_fetched_are_told(model: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
    (put(model, "sparsify_run") / "h.1" / "sae.safetensors").write_text(pointer)
    message = problems(build(model))["m/sparsify_run"]
    assert message.startswith("h.1/sae.safetensors: is a pointer of Git LFS to the file")


def test_a_fault_of_ours_is_logged_with_an_id_and_says_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        failed = attempted(ZeroDivisionError("secret"))
    assert isinstance(failed.error, Internal)
    (record,) = caplog.records
    logged: dict[str, Any] = vars(record)
    assert (logged["error_id"], logged["context"]) == (failed.error.error_id, "m/s")
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    assert "secret" not in str(failed)
    assert failed.error.error_id in str(failed)
    told = failed.told()
    assert (told.reason, told.metadata) == (Reason.INTERNAL, {"error_id": failed.error.error_id})


def test_what_is_wrong_with_the_registry_is_no_fault_of_a_request() -> None:
    problem = InvalidRequest.of("models.m.source", "org/tiny at main is not pulled; run: dst-grpc pull m")
    told = attempted(problem).told()
    assert isinstance(told, DataLoss)
    assert told.message == (
        "'m/s' cannot be served: models.m.source: org/tiny at main is not pulled; run: dst-grpc pull m"
    )
    assert told.metadata == {"context": "m/s"}


def test_an_autoencoder_of_no_layer_of_the_model_is_named(model: Path) -> None:
    run = put(model, "sparsify_run")
    (run / "h.0").rename(run / "h.7")
    assert problems(build(model))["m/sparsify_run"] == "h.7/sae.safetensors: layer 7 does not exist: 'm' has 2 layers"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("model.gguf", "model.gguf' is a file and no folder: make one of it with dst-grpc convert"),
        ("model.safetensors", "model.safetensors' is a file and no folder"),
        ("gone", "there is no folder"),
    ],
)
def test_a_model_that_is_no_folder_is_told_what_it_is(name: str, problem: str, tmp_path: Path) -> None:
    if name != "gone":
        (tmp_path / name).write_bytes(b"GGUF")
    assert problem in problems(build(tmp_path / name))["m"]

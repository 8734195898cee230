"""The registry file: what it may say, and that everything wrong with it is reported by its path."""

from __future__ import annotations

from pathlib import Path

import pytest

from dst_grpc.domain.components import TensorElementType
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.errors import InvalidRequest
from dst_grpc.sources import (
    AutoencoderSpec,
    EmbeddedSource,
    FolderSource,
    HubSource,
    ModelSpec,
    read_registry,
)

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "registry.toml"
COMMIT, DIGEST = "0123456789abcdef" * 2 + "01234567", "ab" * 32


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "registry.toml"


def problems(file: Path, content: str) -> dict[str, str]:
    """What is wrong with *content*, by field."""
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidRequest) as caught:
        read_registry(file)
    return {violation.field: violation.description for violation in caught.value.violations}


def test_everything_can_be_said(file: Path) -> None:
    file.write_text(
        f"""
        [models.shipped]
        source = {{ embedded = true }}
        default = true

        [models.here]
        source = {{ folder = "weights/here" }}
        element_type = "bf16"
        device = "cuda:1"
        digest = "{DIGEST}"
        digests = {{ "model.safetensors" = "{DIGEST}" }}
        preload = true
        pin = true

        [models.far]
        source = {{ hub = "org/far", revision = "{COMMIT}", path = "a/b" }}
        element_type = "f16"

        [models.far.autoencoders.beside]

        [models.far.autoencoders."mlp.8"]
        source = {{ hub = "org/sets", revision = "main" }}
        pattern = "layer_{{layer}}/*/params.npz"
        layers = [7, 3]
        dst = "resid_delta_mlp"
        digest = "{DIGEST}"
        digests = {{ "0.pt" = "{DIGEST}" }}
        allow_failed_checks = true
        in_files = true
        preload = true
        pin = true
        """,
        encoding="utf-8",
    )
    shipped, here, far = read_registry(file)
    assert shipped == ModelSpec(name="shipped", source=EmbeddedSource(), is_default=True)
    assert here == ModelSpec(
        name="here",
        source=FolderSource(folder=file.parent / "weights" / "here"),
        element_type=TensorElementType.BFLOAT16,
        device="cuda:1",
        digest=DIGEST,
        digests={"model.safetensors": DIGEST},
        preload=True,
        pin=True,
    )
    assert far.source == HubSource(repository="org/far", revision=COMMIT, path="a/b")
    assert far.element_type is TensorElementType.FLOAT16
    beside, elsewhere = far.autoencoders
    assert beside == AutoencoderSpec(name="beside")
    assert far.source_of(beside) == HubSource(repository="org/far", revision=COMMIT, path="a/b/autoencoders/beside")
    assert elsewhere == AutoencoderSpec(
        name="mlp.8",
        source=HubSource(repository="org/sets", revision="main"),
        pattern="layer_{layer}/*/params.npz",
        layers=(3, 7),
        dst=DerivedScalarType.RESID_DELTA_MLP,
        digest=DIGEST,
        digests={"0.pt": DIGEST},
        allow_failed_checks=True,
        in_files=True,
        preload=True,
        pin=True,
    )


def test_the_example_can_be_read() -> None:
    models = {spec.name: spec for spec in read_registry(EXAMPLE)}
    assert models["embedded"].is_default
    assert [one.name for one in models["local"].autoencoders] == ["neurons"]


def test_a_folder_may_be_absolute_or_of_the_user(file: Path, tmp_path: Path) -> None:
    file.write_text(f'[models]\na.source.folder = "{tmp_path / "x"}"\nb.source.folder = "~/y"\n', encoding="utf-8")
    assert [spec.source for spec in read_registry(file)] == [
        FolderSource(folder=tmp_path / "x"),
        FolderSource(folder=Path.home() / "y"),
    ]


def test_everything_wrong_is_reported_together(file: Path) -> None:
    found = problems(
        file,
        """
        modles = 1
        [models."a b"]
        source = { folder = "x" }
        [models."a/b"]
        source = { folder = "x" }
        [models."a@1:float32:cpu"]
        source = { folder = "x" }
        [models.none]
        [models.two]
        source = { folder = "x", hub = "org/x" }
        [models.hub]
        source = { hub = "org/x/y", revision = "a..b", path = "/x", branch = "main" }
        [models.unpinned]
        source = { hub = "org/x" }
        [models.many]
        source = { embedded = false }
        element_type = "f64"
        device = "gpu"
        digest = "ABC"
        digests = { "x.y" = 1 }
        preload = "yes"
        defualt = true
        [models.many.autoencoders.set]
        source = { embedded = true }
        pattern = "weights.npz"
        layers = [1, 1]
        dst = "resid_delta_mpl"
        [models.many.autoencoders.other]
        source = {}
        pattern = "../{layer}.npz"
        layers = [-1]
        pin = 1
        """,
    )
    many, one = "models.many", "models.many.autoencoders.set"
    assert found.pop("modles") == "there is no such key; did you mean models?"
    assert found.pop('models."a b"').startswith("'a b' is not a name")
    assert "slash" in found.pop('models."a/b"')
    assert "is a handle" in found.pop('models."a@1:float32:cpu"')
    assert found.pop("models.none.source").startswith("is required")
    assert found.pop("models.two.source").startswith("must have one of the keys")
    assert found.pop("models.hub.source.hub") == 'must be a repository, as in "org/name"'
    assert found.pop("models.hub.source.revision") == "'a..b' cannot be a commit, a tag or a branch"
    assert found.pop("models.hub.source.path").startswith("must be a folder in the repository")
    assert found.pop("models.hub.source.branch") == "there is no such key"
    assert found.pop("models.unpinned.source.revision").startswith("is required: a commit")
    assert found.pop(f"{many}.source.embedded") == "can only be true"
    assert found.pop(f"{many}.element_type") == "must be f32, bf16 or f16"
    assert found.pop(f"{many}.device").startswith("must be auto, cpu")
    assert found.pop(f"{many}.digest").startswith("must be a SHA-256")
    assert found.pop(f'{many}.digests."x.y"').startswith("must be a SHA-256")
    assert found.pop(f"{many}.preload") == "must be true or false"
    assert found.pop(f"{many}.defualt") == "there is no such key; did you mean default?"
    assert found.pop(f"{one}.source.embedded").startswith("is for models")
    assert found.pop(f"{one}.pattern").startswith("must hold {layer}")
    assert found.pop(f"{one}.layers").startswith("must be a list of different layers")
    assert found.pop(f"{one}.dst").endswith("did you mean resid_delta_mlp?")
    other = "models.many.autoencoders.other"
    assert found.pop(f"{other}.source").startswith("must have one of the keys")
    assert found.pop(f"{other}.pattern").startswith("must be a path below the source")
    assert found.pop(f"{other}.layers").startswith("must be a list")
    assert found.pop(f"{other}.pin") == "must be true or false"
    assert found == {}


@pytest.mark.parametrize(
    ("content", "field", "part"),
    [
        ("models =", "", "is no TOML"),
        ("models = 1", "models", "must be a table"),
        ("models = { a = 1 }", "models.a", "must be a table"),
        ("", "models", "must name a model"),
        ('[models.a]\nsource = "here"', "models.a.source", "must be a table"),
        ('[models.a]\nsource = { folder = "" }', "models.a.source.folder", "must not be empty"),
        ("[models.a]\nsource = { folder = 1 }", "models.a.source.folder", "must be text"),
        ('[models.a]\nsource.folder = "x"\nautoencoders.b = 1', "models.a.autoencoders.b", "must be a table"),
        ('[models.a]\nsource.folder = "x"\nautoencoders."b/c" = {}', 'models.a.autoencoders."b/c"', "slash"),
        (
            '[models.a]\nsource.folder = "x"\ndefault = true\n[models.b]\nsource.folder = "x"\ndefault = true',
            "models.b.default",
            "another model is the default already",
        ),
        (
            '[models.a]\nsource.folder = "x"\nautoencoders.b.pattern = "{layer}.bin"',
            "models.a.autoencoders.b.pattern",
            "must end in .safetensors, .pt, .npz",
        ),
    ],
)
def test_each_mistake_is_named(file: Path, content: str, field: str, part: str) -> None:
    found = problems(file, content)
    assert part in found[field]
    assert len(found) == 1


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"registry\.toml cannot be read"):
        read_registry(file)
    file.write_bytes(b"\xff")
    with pytest.raises(InvalidRequest, match=r"registry\.toml cannot be read"):
        read_registry(file)

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from dst_grpc.rpc.settings import Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own settings only."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"DST_{name.upper()}", raising=False)
    monkeypatch.delenv("DST_CONFIG", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "server.toml"


def test_the_defaults_serve_the_embedded_model_on_loopback() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.models) == ("127.0.0.1", 50051, {})


def test_flags_beat_the_environment_which_beats_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("port = 1\nmax_queued_requests = 1\ngrace_seconds = 1\n", encoding="utf-8")
    monkeypatch.setenv("DST_PORT", "2")
    monkeypatch.setenv("DST_MAX_QUEUED_REQUESTS", "2")
    settings = load_settings({"port": 3, "grace_seconds": None}, file=file)
    assert (settings.port, settings.max_queued_requests, settings.grace_seconds) == (3, 2, 1.0)


def test_the_environment_may_name_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("port = 7\n", encoding="utf-8")
    monkeypatch.setenv("DST_CONFIG", str(file))
    assert load_settings().port == 7


def test_all_mistakes_are_reported_together(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('port = 99999\nprot = 3\nmodels = { tiny = "nowhere" }\n', encoding="utf-8")
    monkeypatch.setenv("DST_GRACE_SECONDS", "soon")
    with pytest.raises(SettingsError) as caught:
        load_settings({"device": "gpu"}, file=file)
    assert {problem.field for problem in caught.value.problems} == {
        "port", "prot", "models.tiny", "grace_seconds", "device",
    }  # fmt: skip
    lines = str(caught.value).splitlines()
    assert lines[0] == "5 problems with the settings:"
    assert f"  port = 99999: input should be less than or equal to 65535 (from {file})" in lines
    assert f"  prot = 3: there is no such setting; did you mean port? (from {file})" in lines
    assert any(line.startswith("  grace_seconds = 'soon'") and "DST_GRACE_SECONDS" in line for line in lines)
    assert any(line.startswith("  device = 'gpu'") and line.endswith("(from --device)") for line in lines)


def test_a_path_is_told_as_a_text(file: Path) -> None:
    file.write_text('registry = "no.toml"\n', encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load_settings(file=file)
    missing = str(file.parent / "no.toml")
    assert str(caught.value).splitlines()[1] == f"  registry = {missing!r}: there is no such file (from {file})"


def test_paths_in_the_file_are_relative_to_it(file: Path) -> None:
    (file.parent / "weights").mkdir()
    file.write_text('models = { tiny = "weights" }\nautoencoder_roots = ["."]\n', encoding="utf-8")
    settings = load_settings(file=file)
    assert settings.models == {"tiny": file.parent / "weights"}
    assert settings.autoencoder_roots == (file.parent,)


def test_the_registry_is_a_file_that_is_there(file: Path) -> None:
    (file.parent / "models.toml").write_text("")
    file.write_text('registry = "models.toml"\nhub_cache = "hub"\n', encoding="utf-8")
    settings = load_settings(file=file)
    assert settings.registry == file.parent / "models.toml"
    assert settings.hub_cache == file.parent / "hub"
    with pytest.raises(SettingsError, match=r"registry = 'none\.toml': there is no such file"):
        load_settings({"registry": "none.toml"})


def test_lists_and_tables_may_be_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DST_MODELS", f"a={tmp_path}, b={tmp_path}")
    settings = load_settings({"preload": "a,b/mlp", "autoencoder_roots": [str(tmp_path)]})
    assert settings.models == {"a": tmp_path, "b": tmp_path}
    assert settings.preload == ("a", "b/mlp")
    assert load_settings({"models": [f"c={tmp_path}"]}).models == {"c": tmp_path}


@pytest.mark.parametrize(
    "given", ["10.0.0.0/8, ::1", ["10.0.0.0/8", "::1"], ["10.0.0.0/8,::1"], (ip_network("10.0.0.0/8"), "::1")]
)
def test_networks_are_lists_with_commas_or_without(given: object) -> None:
    networks = load_settings({"trusted_proxies": given}).trusted_proxies
    assert networks == (ip_network("10.0.0.0/8"), ip_network("::1/128"))


def test_a_host_may_be_a_unix_socket() -> None:
    settings = load_settings({"host": "unix:/run/dst.sock"})
    assert (settings.unix_socket, settings.metrics_host) == (Path("/run/dst.sock"), "127.0.0.1")
    assert (load_settings().unix_socket, load_settings({"host": "::1"}).metrics_host) == (None, "::1")


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({"models": "tiny"}, "name=folder"),
        ({"models": {"a b": "/"}}, "is not a name"),
        ({"models": {"a@b:float32:cpu": "/"}}, "not a handle"),
        ({"preload": "?"}, "is not a name"),
        ({"tls_key": __file__}, "must be given together"),
        ({"tls_client_ca": __file__}, "needs tls_certificate"),
        ({"auth_token_file": "/nowhere"}, "no such file"),
        ({"callers_file": "/nowhere"}, "no such file"),
        ({"tls_client_name": "peer_dns"}, "tls_client_name needs tls_client_ca"),
        ({"tls_client_name": "dns"}, "'peer_dns', 'peer_uri'"),
        ({"trusted_proxies": "10.0.0.0/8,proxy.example"}, "'proxy.example' is no network"),
        ({"trusted_proxies": "10.0.0.1/8"}, "'10.0.0.1/8' is no network"),
        ({"host": ""}, "at least 1 character"),
        ({"host": "unix:"}, "host must name a socket after unix:"),
        ({"grace_seconds": float("nan")}, "finite"),
    ],
)
def test_each_mistake_is_named(flags: dict[str, object], part: str) -> None:
    with pytest.raises(SettingsError, match=part):
        load_settings(flags)


@pytest.mark.parametrize(("content", "part"), [(b"port =", "is no TOML"), (b"\xff", "cannot be read")])
def test_a_file_that_is_no_toml_is_named(file: Path, content: bytes, part: str) -> None:
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=f"{file.name}.*{part}"):
        load_settings(file=file)


def test_a_missing_file_is_named(file: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(file=file)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1

from __future__ import annotations

import os
import tomllib
from ipaddress import ip_network
from pathlib import Path

import pytest

from dst_grpc.rpc.settings import Settings
from dst_grpc.rpc.settings_sources import Given, SettingsError, load_settings, wanted_log_format

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own settings only."""
    for name in os.environ:
        if name.startswith("DST_"):
            monkeypatch.delenv(name)


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


def test_variables_that_name_no_setting_are_mistakes_that_tell_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DST_METRIC_PORT", "9090")
    monkeypatch.setenv("DST_AUTH_TOKEN", "secret")
    monkeypatch.setenv("DST_GRACE_SECONDS", "soon")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 problems with the settings:"
    assert "  DST_METRIC_PORT in the environment names no setting; did you mean DST_METRICS_PORT?" in lines
    assert any(line.startswith("  DST_AUTH_TOKEN in the environment names no setting") for line in lines)
    assert "secret" not in str(caught.value)


@pytest.mark.skipif(os.name == "nt", reason="names of variables are all of upper case there")
def test_variables_may_be_of_either_case_but_only_one_of_them(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("port = 7\n", encoding="utf-8")
    monkeypatch.setenv("dst_config", str(file))
    monkeypatch.setenv("dst_log_format", "json")
    given = Given.read({}, None)
    assert (given.settings().port, given.settings().log_format) == (7, "json")
    assert wanted_log_format({}, {}) == "json"
    assert given.source_of("log_format") == "DST_LOG_FORMAT"
    monkeypatch.setenv("DST_LOG_FORMAT", "text")
    problem = "DST_LOG_FORMAT and dst_log_format in the environment name the same setting"
    with pytest.raises(SettingsError, match=problem):
        given.settings()


def test_variables_of_others_are_none_of_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's, and those that Kubernetes sets for services whose names begin with dst."""
    for name, value in {
        "DST_SERVER": "gpu-1:50051",
        "DST_CLIENT_TOKEN": "x",
        "DST_GRPC_SERVICE_HOST": "10.0.0.1",
        "DST_GRPC_SERVICE_PORT": "50051",
        "DST_GRPC_SERVICE_PORT_GRPC": "50051",
        "DST_GRPC_PORT": "tcp://10.0.0.1:50051",
        "DST_GRPC_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "DST_GRPC_PORT_50051_TCP_ADDR": "10.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    assert load_settings().port == 50051
    monkeypatch.setenv("DST_PORT", "tcp://10.0.0.1:50051")
    with pytest.raises(SettingsError, match=r"\(from DST_PORT, which Kubernetes sets.*enableServiceLinks: false\)"):
        load_settings()


def test_sizes_and_durations_may_have_units_everywhere(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('store_bytes = "1.5GiB"\ngrace_seconds = "2min"\npatience_seconds = 5\n', encoding="utf-8")
    monkeypatch.setenv("DST_MAX_MESSAGE_BYTES", "8 MB")
    monkeypatch.setenv("DST_DRAIN_NOTICE_SECONDS", "500ms")
    settings = load_settings({"budget_bytes": "10GB", "context_ttl_seconds": "1h30m"}, file=file)
    assert (settings.store_bytes, settings.grace_seconds, settings.patience_seconds) == (1.5 * 2**30, 120.0, 5.0)
    assert (settings.max_message_bytes, settings.drain_notice_seconds) == (8_000_000, 0.5)
    assert (settings.budget_bytes, settings.context_ttl_seconds) == (10_000_000_000, 5400.0)
    plain = load_settings({"budget_bytes": "10", "context_ttl_seconds": "1.5"})
    assert (plain.budget_bytes, plain.context_ttl_seconds) == (10, 1.5)


def test_the_settings_can_be_shown_with_their_sources_and_read_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file.parent / "weights").mkdir()
    file.write_text('models = { "a.b" = "weights" }\nbudget_bytes = "1kB"\nport = 7\n', encoding="utf-8")
    monkeypatch.setenv("DST_PIN", "a.b,a.b/mlp")
    monkeypatch.setenv("DST_HUB_ENDPOINT", "https://me:secret@hub.example/x")
    flags = {"port": "8", "trusted_proxies": ["10.0.0.0/8"], "strict": True}
    shown = Given.read(flags, file).as_toml()
    lines = shown.splitlines()
    for line in (
        "port = 8  # --port",
        "strict = true  # --strict",
        f"budget_bytes = 1000  # {file}",
        'pin = ["a.b", "a.b/mlp"]  # DST_PIN',
        'hub_endpoint = "https://***@hub.example/x"  # DST_HUB_ENDPOINT',
        "grace_seconds = 30.0  # default",
        "# registry =  # default",
    ):
        assert line in lines
    again = file.with_name("again.toml")
    again.write_text(shown, encoding="utf-8")
    expected = load_settings(flags, file=file).model_dump()
    monkeypatch.delenv("DST_PIN")
    monkeypatch.delenv("DST_HUB_ENDPOINT")
    assert load_settings(file=again).model_dump() == expected | {"hub_endpoint": "https://***@hub.example/x"}
    assert len(lines) == len(Settings.model_fields)
    assert tomllib.loads(shown).keys() <= Settings.model_fields.keys()


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


def test_a_socket_in_the_file_is_relative_to_it(file: Path) -> None:
    file.write_text('host = "unix:dst.sock"\n', encoding="utf-8")
    assert load_settings(file=file).unix_socket == file.parent / "dst.sock"
    file.write_text('host = "unix:/run/dst.sock"\n', encoding="utf-8")
    assert load_settings(file=file).unix_socket == Path("/run/dst.sock")


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
    assert load_settings({"preload": ["a,b", "c"]}).preload == ("a", "b", "c")
    assert load_settings({"models": [f"c={tmp_path}"]}).models == {"c": tmp_path}


@pytest.mark.parametrize(
    "given", ["10.0.0.0/8, ::1", ["10.0.0.0/8", "::1"], ["10.0.0.0/8,::1"], (ip_network("10.0.0.0/8"), "::1")]
)
def test_networks_are_lists_with_commas_or_without(given: object) -> None:
    networks = load_settings({"trusted_proxies": given}).trusted_proxies
    assert networks == (ip_network("10.0.0.0/8"), ip_network("::1/128"))


def test_a_host_may_be_a_unix_socket() -> None:
    settings = load_settings({"host": "unix:/run/dst.sock"})
    assert (settings.unix_socket, settings.metrics_address) == (Path("/run/dst.sock"), ("127.0.0.1", 0))
    assert (load_settings().unix_socket, load_settings({"host": "::1"}).metrics_address) == (None, ("::1", 0))


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
        ({"metrics_token_file": __file__}, "metrics_token_file needs metrics_port"),
        ({"metrics_host": "::1"}, "metrics_host needs metrics_port"),
        (
            {"metrics_tls_certificate": __file__, "metrics_tls_key": __file__},
            "metrics_tls_certificate needs metrics_port; metrics_tls_key needs metrics_port",
        ),
        ({"health_host": "::1"}, "health_host needs health_port"),
        ({"trusted_proxies": "10.0.0.0/8,proxy.example"}, "'proxy.example' is no network"),
        ({"trusted_proxies": "10.0.0.1/8"}, "'10.0.0.1/8' is no network"),
        ({"trusted_proxies": [5]}, "'5' is no network"),
        ({"preload": [5, "tiny"]}, r"preload\.0 = 5: must be text"),
        ({"devices": [["cpu"]]}, r"devices\.0 = \['cpu'\]: must be text"),
        ({"host": ""}, "at least 1 character"),
        ({"host": "unix:"}, "host must name a socket after unix:"),
        ({"grace_seconds": float("nan")}, "finite"),
        ({"grace_seconds": "nan"}, "finite"),
        ({"grace_seconds": "30 parsecs"}, "'30 parsecs' is no duration: give seconds"),
        ({"grace_seconds": "-1s"}, "is no duration"),
        ({"grace_seconds": "-1"}, "greater than or equal to 0"),
        ({"budget_bytes": "10 files"}, "'10 files' is no size: give bytes"),
        ({"budget_bytes": "0GB"}, "greater than 0"),
        ({"grace_seconds": "1e30"}, "less than or equal to"),
        ({"grace_seconds": True}, "must be a number, not true"),
        ({"max_connection_age_seconds": "30d"}, "less than or equal to 2147483"),
        (
            {"max_connection_age_seconds": "1h", "max_connection_age_grace_seconds": "30d"},
            "less than or equal to 2147483",
        ),
        ({"max_concurrent_calls": 10**12}, "less than or equal to"),
        ({"budget_bytes": "1.5"}, "must be a whole number"),
        ({"budget_bytes": "1e30"}, r"must be at most 2\^60 bytes"),
        ({"budget_bytes": 1e30}, r"must be at most 2\^60 bytes"),
        ({"budget_bytes": False}, "must be a number, not false"),
        ({"port": ""}, "must be a whole number"),
        ({"port": True}, "must be a number, not true"),
        ({"max_queued_requests": "1e3"}, "must be a whole number"),
        ({"models": 3}, "must be a table"),
        ({"strict": "perhaps"}, "must be true or false"),
        ({"registry": "x" * 5000}, "File name too long"),
        ({"registry": "a\0b"}, "no such file"),
        ({"autoencoder_roots": "x" * 5000}, "File name too long"),
        ({"host": f"unix:/{'x' * 120}"}, "has 121 bytes, and that of a socket at most 10[37]"),
        ({"host": f"unix:/{'x' * 105}", "devices": "cpu,cpu"}, "has 108 bytes, and that of a socket at most 10[37]"),
        ({"port": 5, "health_port": 5}, "port and health_port are both 5: give each its own"),
        ({"port": 5, "health_port": 6, "devices": "cpu,cpu"}, "port takes 5 to 6 and health_port 6 to 7, one for each"),
        ({"host": "unix:/a", "metrics_port": 5, "health_port": 5}, "health_port and metrics_port are both 5"),
        ({"host": "::", "port": 5, "metrics_host": "127.0.0.1", "metrics_port": 5}, "port and metrics_port are"),
    ],
)
def test_each_mistake_is_named(flags: dict[str, object], part: str) -> None:
    with pytest.raises(SettingsError, match=part):
        load_settings(flags)


def test_ports_may_be_the_same_where_they_do_not_collide() -> None:
    load_settings({"host": "127.0.0.1", "port": 5, "metrics_host": "127.0.0.2", "metrics_port": 5})
    load_settings({"port": 0, "health_port": 0, "metrics_port": 0})
    load_settings({"host": "unix:/a", "port": 5, "health_port": 5})


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"port =", "is no TOML"),
        (b"port = 1\nport = 2", "is no TOML"),
        (b"\xff", "cannot be read"),
        (b"a = " + b"[" * 5000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_toml_is_named(file: Path, content: bytes, part: str) -> None:
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=f"{file.name}.*{part}"):
        load_settings(file=file)


def test_a_missing_file_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        SettingsError, match=f"config = {file}: cannot be read: No such file or directory .from --config"
    ):
        load_settings(file=file)
    monkeypatch.setenv("DST_CONFIG", str(file))
    with pytest.raises(SettingsError, match="from DST_CONFIG"):
        load_settings()


def test_a_file_may_begin_with_a_byte_order_mark(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfport = 7\n")
    assert load_settings(file=file).port == 7


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1


def test_the_documents_for_operators_name_every_setting() -> None:
    documents = [*ROOT.glob("docs/*.md"), ROOT / "README.md"]
    said = "\n".join(document.read_text(encoding="utf-8") for document in documents).replace("--model NAME", "models")
    unknown = [name for name in Settings.model_fields if name not in said and name.replace("_", "-") not in said]
    assert not unknown

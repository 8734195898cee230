"""Pulling, from a server on 127.0.0.1 that speaks the hub's API: what is fetched, gone on with, checked and refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from dst_grpc.errors import DataLoss, DstError, InvalidRequest, NotAllowed, NotFound, Reason, Unavailable
from dst_grpc.sources import AutoencoderSpec, HubCache, HubSource, ModelSpec
from dst_grpc.sources.pull import Puller, PullReport
from dst_grpc.sources.selections import model_key, set_key
from tests.fake_hub import REPOSITORY, FakeHub
from tests.unit.sources.conftest import model

MODEL = {"config.json", "tokenizer.json", "model.safetensors"}
SET = AutoencoderSpec(name="mlp_post_act")
WEIGHTS = "model.safetensors"
LARGE = bytes(range(256)) * (45 << 10)  # 11.25 MiB: the library writes 10 MiB at a time


def pull(hub: FakeHub, cache: HubCache, spec: ModelSpec, *, verify: bool = False) -> list[PullReport]:
    return list(Puller(cache, endpoint=hub.address, verify=verify).pull(spec, lambda *_: None))


def refused(hub: FakeHub, cache: HubCache, spec: ModelSpec, error: type[DstError]) -> str:
    with pytest.raises(error) as caught:
        pull(hub, cache, spec)
    return caught.value.message


def below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_only_what_is_needed_is_fetched(hub: FakeHub, cache: HubCache, files: dict[str, bytes]) -> None:
    (report,) = pull(hub, cache, model())
    assert sorted(hub.fetched) == sorted(MODEL)
    assert below(report.folder) == MODEL
    assert (report.name, report.commit, report.n_files) == ("tiny", hub.refs[REPOSITORY, "main"], 3)
    assert report.fetched_bytes == report.total_bytes == sum(len(files[name]) for name in MODEL)
    assert all((report.folder / name).read_bytes() == files[name] for name in MODEL)
    found = cache.find(HubSource(repository=REPOSITORY, revision="main"), model_key(""))
    assert found is not None
    assert (found.folder, found.commit, set(found.names)) == (report.folder, report.commit, MODEL)


def test_what_is_there_is_not_fetched_again(hub: FakeHub, cache: HubCache) -> None:
    pull(hub, cache, model())
    hub.requests.clear()
    (report,) = pull(hub, cache, model())
    assert (hub.fetched, report.fetched_bytes) == ([], 0)


def test_progress_is_told_by_file(hub: FakeHub, cache: HubCache, files: dict[str, bytes]) -> None:
    told: dict[str, list[tuple[int, int]]] = {}
    puller = Puller(cache, endpoint=hub.address)
    list(puller.pull(model(), lambda name, done, total: told.setdefault(name, []).append((done, total))))
    assert {name: (steps[0], steps[-1]) for name, steps in told.items()} == {
        name: ((0, len(files[name])), (len(files[name]), len(files[name]))) for name in MODEL
    }


def test_a_set_beside_its_model_is_fetched_with_it(hub: FakeHub, cache: HubCache) -> None:
    _, report = pull(hub, cache, model("main", SET))
    assert report.name == "tiny/mlp_post_act"
    assert below(report.folder) == {"0.safetensors", "1.safetensors"}
    source = model().source_of(SET)
    assert isinstance(source, HubSource)
    found = cache.find(source, set_key(source.path, SET))
    assert found is not None
    assert found.names == ("0.safetensors", "1.safetensors")
    other = AutoencoderSpec(name="mlp_post_act", layers=(0,))
    assert cache.find(source, set_key(source.path, other)) is None


def test_a_set_of_another_repository_is_fetched_by_its_pattern(hub: FakeHub, cache: HubCache) -> None:
    content = {f"saes/L{i}/{size}/w.npz": b"%d" % i for i in range(3) for size in ("16k", "65k")}
    content |= {"saes/L1/16k/cfg.json": b"{}", "saes/README.md": b""}
    hub.push(content, repository="org/sets", ref="v1")
    source = HubSource(repository="org/sets", revision="v1", path="saes")
    one = AutoencoderSpec(name="s", source=source, pattern="L{layer}/16k/*.npz", layers=(1, 2))
    _, report = pull(hub, cache, model("main", one))
    assert below(report.folder) == {"L1/16k/w.npz", "L1/16k/cfg.json", "L2/16k/w.npz"}
    wrong = AutoencoderSpec(name="s", source=source, pattern="L{layer}/32k/*.npz")
    with pytest.raises(InvalidRequest) as caught:
        pull(hub, cache, model("main", wrong))
    assert caught.value.violations[0].field == "models.tiny.autoencoders.s.pattern"


def test_shards_are_those_that_the_index_names(hub: FakeHub, cache: HubCache, files: dict[str, bytes]) -> None:
    index = json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}).encode()
    names = {"config.json", "tokenizer.json", "one.safetensors", "two.safetensors", "model.safetensors.index.json"}
    content = {name: files.get(name, name.encode()) for name in names} | {"model.safetensors.index.json": index}
    commit = hub.push(content | {"stray.safetensors": b"x"}, ref="sharded")
    (report,) = pull(hub, cache, model(commit))
    assert below(report.folder) == names


@pytest.mark.parametrize("revision", ["v1", "commit"])
def test_a_tag_or_a_commit_is_pulled_as_it_was(
    hub: FakeHub, cache: HubCache, files: dict[str, bytes], revision: str
) -> None:
    commit = hub.push(files | {"config.json": b"old"}, ref="v1")
    hub.push(files, ref="main")
    (report,) = pull(hub, cache, model(commit if revision == "commit" else revision))
    assert report.commit == commit
    assert (report.folder / "config.json").read_bytes() == b"old"


def test_a_branch_stays_what_it_was_until_it_is_pulled_again(
    hub: FakeHub, cache: HubCache, files: dict[str, bytes]
) -> None:
    (old,) = pull(hub, cache, model())
    hub.push(files | {"config.json": b"{}"})
    source = HubSource(repository=REPOSITORY, revision="main")
    found = cache.find(source, model_key(""))
    assert found is not None
    assert found.commit == old.commit
    hub.requests.clear()
    (new,) = pull(hub, cache, model())
    assert new.commit != old.commit
    # The weights did not change: they are the same file, which was not fetched again.
    assert sorted(hub.fetched) == ["config.json", "tokenizer.json"]
    assert (new.folder / WEIGHTS).samefile(old.folder / WEIGHTS)
    assert (old.folder / "config.json").read_bytes() == files["config.json"]
    found = cache.find(source, model_key(""))
    assert found is not None
    assert found.commit == new.commit


def test_a_broken_connection_is_gone_on_with(hub: FakeHub, cache: HubCache, files: dict[str, bytes]) -> None:
    hub.push(files | {WEIGHTS: LARGE})
    hub.cut_after[WEIGHTS] = [len(LARGE) - 100]
    (report,) = pull(hub, cache, model())
    assert (report.folder / WEIGHTS).read_bytes() == LARGE
    assert [one.range for one in hub.requests if one.path.startswith("/blobs")] == [None, "bytes=10485760-"]


def test_an_interrupted_pull_is_gone_on_with_by_the_next(
    hub: FakeHub, cache: HubCache, files: dict[str, bytes]
) -> None:
    commit = hub.push(files | {WEIGHTS: LARGE})
    hub.cut_after[WEIGHTS] = [len(LARGE) - 100]

    def fail_from_now_on(name: str, bytes_done: int, _: int) -> None:
        if name == WEIGHTS and bytes_done:
            hub.statuses[f"/{REPOSITORY}/resolve"] = 503

    with pytest.raises(Unavailable, match="HTTP 503; run the same command again to go on where it stopped"):
        list(Puller(cache, endpoint=hub.address).pull(model(), fail_from_now_on))
    assert cache.find(HubSource(repository=REPOSITORY, revision="main"), model_key("")) is None
    hub.statuses.clear()
    hub.requests.clear()
    (report,) = pull(hub, cache, model())
    assert hub.fetched == [WEIGHTS]
    assert [one.range for one in hub.requests if one.path.startswith("/blobs")] == ["bytes=10485760-"]
    assert report.fetched_bytes == len(LARGE) - (10 << 20)
    assert report.commit == commit
    assert below(report.folder) == MODEL
    assert (report.folder / WEIGHTS).read_bytes() == LARGE


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("harm", ["another", "shorter", "longer"])
def test_a_file_with_other_content_is_removed_and_named(
    hub: FakeHub, cache: HubCache, files: dict[str, bytes], name: str, harm: str
) -> None:
    sound = files[name]
    hub.wrong[name] = {"another": b"x" * len(sound), "shorter": sound[:-1], "longer": sound + b"x"}[harm]
    with pytest.raises(DataLoss) as caught:
        pull(hub, cache, model())
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert caught.value.message.startswith(f"tiny, from {REPOSITORY} at main: {name}: has ")
    assert caught.value.metadata == {"file": name}
    assert not [path for path in below(cache.folder) if path.rpartition("/")[2].startswith(name)]
    hub.wrong.clear()
    (report,) = pull(hub, cache, model())
    assert (report.folder / name).read_bytes() == sound


def test_a_file_with_another_digest_than_registered_is_removed(
    hub: FakeHub, cache: HubCache, files: dict[str, bytes]
) -> None:
    right = hashlib.sha256(files[WEIGHTS]).hexdigest()
    (report,) = pull(hub, cache, model("main", digests={WEIGHTS: right}))
    assert (report.folder / WEIGHTS).is_file()
    message = refused(hub, cache, model("main", digests={WEIGHTS: "0" * 64}), DataLoss)
    assert message.endswith(f"{WEIGHTS}: has the SHA-256 {right}, but {'0' * 64} in the registry file")
    assert not (report.folder / WEIGHTS).exists()
    with pytest.raises(InvalidRequest) as caught:
        pull(hub, cache, model("main", digests={"no.file": right}))
    assert caught.value.violations[0].field == 'models.tiny.digests."no.file"'


def test_what_was_damaged_later_is_noticed_and_pulled_again(
    hub: FakeHub, cache: HubCache, files: dict[str, bytes]
) -> None:
    (report,) = pull(hub, cache, model())
    source, weights = HubSource(repository=REPOSITORY, revision="main"), report.folder / WEIGHTS
    weights.write_bytes(b"cut")
    with pytest.raises(DataLoss, match=r"model\.safetensors: is not what was pulled"):
        cache.find(source, model_key(""))
    pull(hub, cache, model())
    assert weights.read_bytes() == files[WEIGHTS]
    weights.write_bytes(b"x" * len(files[WEIGHTS]))
    pull(hub, cache, model())
    assert weights.read_bytes() != files[WEIGHTS]  # of the right size, and not looked into
    pull(hub, cache, model(), verify=True)
    assert weights.read_bytes() == files[WEIGHTS]


def test_a_token_is_taken_from_the_environment(hub: FakeHub, cache: HubCache, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "hf_secret"
    assert "or hides it without the right token in HF_TOKEN" in refused(hub, cache, model(), NotFound)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (report,) = pull(hub, cache, model())
    assert report.n_files == 3
    assert {one.authorization for one in hub.requests[1:]} == {"Bearer hf_secret"}


def test_what_the_hub_refuses_is_told(hub: FakeHub, cache: HubCache) -> None:
    assert refused(hub, cache, model("v9"), NotFound) == f"{REPOSITORY} has no revision 'v9'"
    other = ModelSpec(name="m", source=HubSource(repository="org/none", revision="main"))
    assert "has no repository 'org/none'" in refused(hub, cache, other, NotFound)
    deep = ModelSpec(name="m", source=HubSource(repository=REPOSITORY, revision="main", path="deep"))
    assert "there is no folder 'deep'" in refused(hub, cache, deep, DataLoss)
    hub.gated = True
    assert "wants its terms accepted" in refused(hub, cache, model(), NotAllowed)
    hub.gated = False
    hub.statuses["/api"] = 500
    assert "HTTP 500" in refused(hub, cache, model(), Unavailable)
    hub.statuses["/api"] = 403
    assert "refuses org/tiny at main with HTTP 403" in refused(hub, cache, model(), NotAllowed)


def test_a_server_that_is_not_there_is_told(hub: FakeHub, cache: HubCache) -> None:
    with pytest.raises(Unavailable, match="broke off"):
        list(Puller(cache, endpoint="http://127.0.0.1:9").pull(model(), lambda *_: None))


def test_a_server_that_moves_a_commit_is_not_believed(hub: FakeHub, cache: HubCache) -> None:
    commit = "0" * 40
    hub.refs[REPOSITORY, commit] = hub.refs[REPOSITORY, "main"]
    assert f"answers that {commit} is the commit" in refused(hub, cache, model(commit), DataLoss)


def test_names_that_lead_elsewhere_are_left_out(hub: FakeHub, cache: HubCache, files: dict[str, bytes]) -> None:
    hub.push(files | {"autoencoders/mlp_post_act/../../../../0.pt": b"x"})
    _, report = pull(hub, cache, model("main", SET))
    assert below(report.folder) == {"0.safetensors", "1.safetensors"}
    assert not list(cache.folder.rglob("*.pt"))


def test_a_lock_that_is_not_sound_is_named(hub: FakeHub, cache: HubCache) -> None:
    (report,) = pull(hub, cache, model())
    lock = report.folder.parent / "lock.json"
    for content in ("{", "[]", '{"revisions": {}}'):
        lock.write_text(content)
        with pytest.raises(DataLoss, match=r"lock\.json: is no sound lock"):
            cache.find(HubSource(repository=REPOSITORY, revision="main"), model_key(""))


def test_folders_of_this_machine_are_left_alone(hub: FakeHub, cache: HubCache, tmp_path: Path) -> None:
    from dst_grpc.sources import EmbeddedSource, FolderSource

    for source in (EmbeddedSource(), FolderSource(folder=tmp_path)):
        assert pull(hub, cache, ModelSpec(name="m", source=source, autoencoders=(SET,))) == []
    assert hub.requests == []

"""The metadata `dst-model`, which proxies choose a server by: every call has it, and streams are of one model each."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc
import pytest

from dst_grpc.client import Answer, Client, DerivedScalarType, ItemCancels, ResolveRequest, make_request
from dst_grpc.client._routing import named_model, route_of
from dst_grpc.domain.explain import TopKGroup, TopKRequest
from dst_grpc.domain.requests import DeriveRequest
from dst_grpc.errors import Cancelled, DstError
from dst_grpc.wire.codec import to_wire
from tests.fake_service import FakeService, never_done, once_set


@pytest.mark.parametrize(
    ("reference", "route"),
    [
        *((None, "default"), ("", "default"), ("gpt2", "gpt2"), ("org/gpt2-xl", "org/gpt2-xl")),
        ("gpt2@0123456789ab:float32:cuda:0", "gpt2"),
        # Refused by the server; here only no error of gRPC's.
        *(("\N{GREEK SMALL LETTER ALPHA}", "default"), ("a\nb", "default")),
    ],
)
def test_a_name_and_its_handles_lead_to_one_server(reference: str | None, route: str) -> None:
    assert route_of(reference) == route


def test_every_call_names_its_model(service: FakeService) -> None:
    with Client(service.target) as client:
        for call, route in (
            (lambda: client.derive("a", "logits", model="tiny"), "tiny"),
            (lambda: client.derive("a", "logits"), "default"),
            (lambda: client.resolve("a", "logits", model="tiny"), "tiny"),
            (lambda: client.tokenize("a", model="tiny"), "tiny"),
            (lambda: client.model("tiny"), "tiny"),
            (client.model, "default"),
            (client.models, "default"),
            (lambda: list(client.derive_stream([make_request("a", "logits", model="tiny")])), "tiny"),
            (lambda: list(client.derive_stream([make_request("a", "logits")])), "default"),
            (
                lambda: list(client.resolve_stream([ResolveRequest(request=make_request("a", (), model="tiny"))])),
                "tiny",
            ),
        ):
            call()
            assert service.metadata["dst-model"] == route


def test_runs_name_the_model_of_their_request() -> None:
    run = make_request("a", (), model="tiny")
    group = TopKGroup(group_id="g", dsts=(DerivedScalarType.MLP_POST_ACT,))
    assert named_model(to_wire(TopKRequest(runs=(run,), groups=(group,)))) == "tiny"


def test_what_the_user_says_counts(service: FakeService) -> None:
    with Client(service.target, metadata={"Dst-Model": "here"}) as client:
        client.derive("a", "logits", model="tiny")
        assert service.metadata["dst-model"] == "here"


def test_questions_about_what_a_server_keeps_go_where_it_is(service: FakeService) -> None:
    with Client(service.target) as client:
        graph = client.graph("a", model="tiny")
        client.graph_neighbours(graph, "t0")
        client.drop_graph(graph)
        tensor = client.put_tensor([1.0], model="tiny")
        client.delete_tensor(tensor)
        assert service.routes == ["tiny"] * 5
        client.graphs(model="other")
        client.drop_graph(graph)
        assert set(service.routes[5:]) == {"other"}


def of_models(**models: str | None) -> list[DeriveRequest]:
    """Requests with ids, each of a model."""
    return [make_request("a b", ["mlp_post_act"], request_id=name, model=model) for name, model in models.items()]


def test_each_model_has_a_stream_of_its_own(client: Client, service: FakeService) -> None:
    handle = "tiny@0123456789ab:float32:cpu"
    answers = dict(client.derive_stream(of_models(a="tiny", b="other", c=handle, d=None, e="tiny")))
    assert sorted(service.routes) == ["default", "other", "tiny"]
    assert all(isinstance(answers[name], Answer) for name in "abcde")


def test_positions_are_those_among_all_requests(client: Client) -> None:
    requests = [make_request("a", ["mlp_post_act"], model=model) for model in ("tiny", "other", "tiny")]
    assert set(dict(client.derive_stream(requests))) == {"0", "1", "2"}


def test_answers_of_all_models_come_as_they_are_ready(client: Client, service: FakeService) -> None:
    arrived = threading.Event()
    service.scripts["wait"] = once_set(arrived)
    requests = [
        make_request("wait", ["mlp_post_act"], request_id="slow", model="tiny"),
        *of_models(quick="other", after="tiny"),
    ]
    order = []
    for request_id, _ in client.derive_stream(requests):
        order.append(request_id)
        if "quick" in order:
            arrived.set()
    assert order.index("quick") < order.index("slow")
    assert sorted(order) == ["after", "quick", "slow"]


def test_no_more_are_in_flight_on_all_streams_than_allowed(client: Client, service: FakeService) -> None:
    taken = answers = 0

    def many() -> Iterator[DeriveRequest]:
        nonlocal taken
        for i in range(40):
            taken += 1
            yield make_request("a", ["mlp_post_act"], model=("tiny", "other")[i % 2])

    for _ in client.derive_stream(many(), max_in_flight=3):
        answers += 1
        assert taken <= answers - 1 + 3 + 1
    assert answers == 40
    assert service.most_in_flight <= 3


def test_an_item_is_cancelled_on_its_stream(client: Client, service: FakeService) -> None:
    service.scripts["slow"] = never_done
    cancels = ItemCancels()
    slow = [make_request("slow", ["mlp_post_act"], request_id=name, model=name) for name in ("one", "two")]
    order = []
    for request_id, answer in client.derive_stream([*slow, *of_models(quick="tiny")], cancels=cancels):
        order.append(request_id)
        assert isinstance(answer, Answer if request_id == "quick" else Cancelled)
        cancels.cancel({"quick": "two", "two": "one", "one": ""}[request_id])
    assert order == ["quick", "two", "one"]


def test_a_stream_that_fails_ends_the_others(client: Client, service: FakeService) -> None:
    service.scripts["slow"] = never_done
    service.bare, service.failures_left = (grpc.StatusCode.PERMISSION_DENIED, "no"), 1
    requests = [make_request("slow", ["mlp_post_act"], model=name) for name in ("one", "two")]
    # The other would go on for ever. Of a call that ends while it begins, gRPC may tell another code than was sent.
    with pytest.raises(DstError):
        list(client.derive_stream(requests))

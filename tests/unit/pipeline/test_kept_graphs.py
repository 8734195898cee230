"""The graphs that are kept: whose they are, how long, and how many."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dst_grpc.domain.callers import Caller
from dst_grpc.errors import Exhausted, NotFound, Reason
from dst_grpc.pipeline.kept_graphs import KeptGraphs
from dst_grpc.pipeline.whole_graph import WholeGraph, most_bytes
from tests.unit.pipeline.whole_graphs import whole_graph

ALICE, BOB = Caller(name="alice"), Caller(name="bob")
GRAPH = whole_graph()
SIZE = GRAPH.byte_count


class Clock:
    """A clock, and the calls that wait for it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waiting: list[tuple[float, Callable[[], None]]] = []
        self.n_cancelled = 0

    def __call__(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[[], None]) -> Clock:
        self.waiting.append((self.now + seconds, call))
        return self

    def cancel(self) -> None:
        self.n_cancelled += 1

    def pass_to(self, now: float) -> None:
        """Let the time until *now* pass, with the calls that are due."""
        while due := [(at, call) for at, call in self.waiting if at <= now]:
            at, call = min(due, key=lambda each: each[0])
            self.waiting.remove((at, call))
            self.now = at
            call()
        self.now = now


def store(clock: Clock, n_graphs: float = 3, **arguments: bool) -> KeptGraphs:
    """A store with room for *n_graphs*, each for 100 seconds."""
    return KeptGraphs(int(n_graphs * SIZE), 100.0, clock=clock, call_later=clock.call_later, **arguments)


def kept(graphs: KeptGraphs, caller: Caller = ALICE, graph: WholeGraph = GRAPH) -> str:
    """The handle of a graph that is kept for *caller*."""
    found = graphs.keep(graph, caller)
    assert found is not None
    return found.handle


def assert_gone(graphs: KeptGraphs, handle: str, caller: Caller = ALICE) -> None:
    for attempt in (graphs.get, graphs.drop):
        with pytest.raises(NotFound) as caught:
            attempt(handle, caller)
        assert caught.value.reason is Reason.GRAPH_NOT_FOUND
        assert caught.value.resource_name == handle
        assert not caught.value.nearest


def test_a_graph_is_what_is_told_of_it() -> None:
    clock = Clock()
    graphs = store(clock)
    found = graphs.keep(GRAPH, ALICE)
    assert found is not None
    assert (found.model, found.transcoders, found.node_count) == ("gpt2", "gpt2/plt_relu", len(GRAPH.nodes))
    assert found.prompt == "".join(GRAPH.token_strings)[:200]
    assert found.byte_count == graphs.byte_count == SIZE
    assert graphs.get(found.handle, ALICE) is GRAPH
    assert graphs.handles(ALICE) == [found.handle]
    described = graphs.described(found.handle)
    assert (described.handle, described.byte_count) == (found.handle, SIZE)


def test_a_graph_takes_no_more_than_was_said_before() -> None:
    arrays = (GRAPH.edges.sources, GRAPH.edges.weights, GRAPH.nodes.active, GRAPH.nodes.activations)
    assert sum(one.nbytes for one in arrays) < SIZE <= most_bytes(GRAPH.nodes, GRAPH.nodes.n_features)


def test_a_graph_is_its_callers() -> None:
    graphs = store(Clock())
    handle, others = kept(graphs), kept(graphs, BOB)
    assert_gone(graphs, handle, BOB)
    assert graphs.handles(BOB) == [others]
    assert graphs.get(handle, ALICE) is GRAPH


def test_who_asks_for_many_loses_its_own() -> None:
    graphs = store(Clock())
    of_bob = kept(graphs, BOB)
    of_alice = [kept(graphs) for _ in range(5)]
    assert graphs.get(of_bob, BOB) is GRAPH
    for handle in of_alice[:3]:
        assert_gone(graphs, handle)
    later = [kept(graphs, BOB), kept(graphs, BOB)]  # of both as much was kept, so that the one used longest ago goes
    assert [len(graphs.handles(caller)) for caller in (ALICE, BOB)] == [1, 2]
    assert graphs.get(later[1], BOB) is GRAPH
    assert graphs.byte_count == 3 * SIZE


def test_shared_graphs_are_everybodys() -> None:
    graphs = store(Clock(), shared=True)
    handle, others = kept(graphs), kept(graphs, BOB)
    assert graphs.get(handle, BOB) is GRAPH
    assert graphs.handles(BOB) == sorted((handle, others))
    graphs.drop(handle, BOB)
    assert_gone(graphs, handle)


def test_handles_cannot_be_guessed() -> None:
    graphs = store(Clock(), 50)
    handles = {kept(graphs) for _ in range(50)}
    assert len(handles) == 50
    assert min(map(len, handles)) >= 20


def test_the_least_recently_used_goes_first() -> None:
    graphs = store(Clock(), 3)
    first, second, third = (kept(graphs) for _ in range(3))
    graphs.get(first, ALICE)
    fourth = kept(graphs, BOB)
    assert_gone(graphs, second)
    assert graphs.byte_count == 3 * SIZE
    assert graphs.handles(ALICE) == sorted((first, third))
    assert graphs.get(fourth, BOB) is GRAPH


def test_what_is_larger_than_the_budget_is_not_kept_and_drops_nothing() -> None:
    clock = Clock()
    graphs = store(clock, 1)
    small = whole_graph("gpt2_plt_relu_short")
    assert small.byte_count < SIZE
    handle = kept(graphs, graph=small)
    tight = KeptGraphs(SIZE - 1, clock=clock, call_later=clock.call_later)
    assert tight.keep(GRAPH, ALICE) is None
    assert graphs.get(handle, ALICE) is small
    assert KeptGraphs(0, clock=clock, call_later=clock.call_later).keep(small, ALICE) is None


def test_what_can_never_be_kept_is_refused_with_the_numbers() -> None:
    graphs = store(Clock(), 1)
    graphs.check_room(SIZE)
    with pytest.raises(Exhausted) as caught:
        graphs.check_room(SIZE + 1)
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    assert caught.value.metadata == {"kept_graph_bytes": str(SIZE), "needed_bytes": str(SIZE + 1)}
    assert caught.value.retry_after_seconds is None


def test_a_graph_expires_unless_it_is_used() -> None:
    clock = Clock()
    graphs = store(clock)
    used, unused = kept(graphs), kept(graphs)
    clock.now = 99.0
    graphs.get(used, ALICE)
    clock.now = 100.0
    assert_gone(graphs, unused)
    clock.now = 198.0
    assert graphs.handles(ALICE) == [used]
    clock.now = 199.0
    assert graphs.handles(ALICE) == []
    assert graphs.byte_count == 0


def test_what_has_expired_goes_without_a_call() -> None:
    clock = Clock()
    graphs = store(clock)
    kept(graphs)
    clock.pass_to(50.0)
    kept(graphs)
    assert len(clock.waiting) == 1
    clock.pass_to(130.0)
    assert graphs.byte_count == SIZE
    clock.pass_to(200.0)
    assert graphs.byte_count == 0
    assert clock.waiting == []


def test_a_dropped_graph_is_gone_and_so_is_all_at_the_end() -> None:
    clock = Clock()
    graphs = store(clock)
    handle = kept(graphs)
    graphs.drop(handle, ALICE)
    assert_gone(graphs, handle)
    assert graphs.byte_count == 0
    handle = kept(graphs)
    graphs.close()
    assert_gone(graphs, handle)
    assert (graphs.byte_count, clock.n_cancelled) == (0, 1)

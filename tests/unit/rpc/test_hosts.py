"""The host of a call: that of its connection, or what trusted proxies say, and no more of it than they vouch for."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dst_grpc.observability.calls import CallInfo
from dst_grpc.rpc.hosts import Host, Hosts


def call(peer: str, *forwarded: str) -> CallInfo:
    return CallInfo(method="/a/B", peer=peer, metadata=tuple(("x-forwarded-for", value) for value in forwarded))


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.7:50123", Host("10.0.0.7", is_local=False)),
        ("ipv4:127.0.0.1:50123", Host("127.0.0.1", is_local=True)),
        ("ipv4:127.8.8.8:1", Host("127.8.8.8", is_local=True)),
        ("ipv6:%5B2001:db8::1%5D:50123", Host("2001:db8::1", is_local=False)),
        ("ipv6:[::1]:50123", Host("::1", is_local=True)),
        ("ipv6:%5B::ffff:127.0.0.1%5D:50123", Host("127.0.0.1", is_local=True)),
        ("ipv6:%5Bfe80::1%25eth0%5D:50123", Host("fe80::1%eth0", is_local=False)),
        ("unix:", Host("unix", is_local=True)),
        ("unix:/run/dst.sock", Host("unix", is_local=True)),
        ("unix-abstract:dst", Host("unix", is_local=True)),
        ("vsock:2:1", Host("vsock:2:1", is_local=False)),
        ("unknown", Host("unknown", is_local=False)),
        ("", Host("", is_local=False)),
    ],
)
def test_a_host_is_known_by_the_address_that_it_calls_from(peer: str, host: Host) -> None:
    assert Hosts().of(call(peer)) == host


@pytest.mark.parametrize("peer", ["ipv4:127.0.0.1:1", "ipv6:%5B::1%5D:1", "unix:"])
def test_what_a_proxy_on_this_machine_forwards_is_not_local(peer: str) -> None:
    """Nor is the header of a proxy believed that nobody trusts."""
    host = Hosts().of(call(peer, "127.0.0.1"))
    assert not host.is_local
    assert host.name == Hosts().of(call(peer)).name


@pytest.mark.parametrize(
    ("forwarded", "name"),
    [
        ([], "10.0.0.1"),
        (["203.0.113.9"], "203.0.113.9"),
        (["203.0.113.9, 10.9.9.9"], "203.0.113.9"),
        (["203.0.113.9", "10.9.9.9"], "203.0.113.9"),
        (["8.8.8.8, 203.0.113.9"], "203.0.113.9"),
        (["8.8.8.8", "203.0.113.9", "10.2.2.2,10.3.3.3"], "203.0.113.9"),
        (["10.2.2.2, 10.3.3.3"], "10.2.2.2"),
        (["8.8.8.8, none, 10.3.3.3"], "10.3.3.3"),
        (["8.8.8.8, "], "10.0.0.1"),
        (["203.0.113.9:4711"], "203.0.113.9"),
        (["[2001:db8::5]:4711"], "2001:db8::5"),
        (["2001:db8::5"], "2001:db8::5"),
        (["::ffff:203.0.113.9"], "203.0.113.9"),
        (["127.0.0.1"], "127.0.0.1"),
        (["fd00::1, fd00::2"], "fd00::1"),
    ],
)
def test_behind_trusted_proxies_the_host_is_the_last_that_is_none(forwarded: list[str], name: str) -> None:
    """A caller may write what it likes before what the proxies add."""
    hosts = Hosts([ip_network("10.0.0.0/8"), ip_network("fd00::/8")])
    assert hosts.of(call("ipv4:10.0.0.1:1", *forwarded)) == Host(name, is_local=False)


def test_a_caller_that_is_no_proxy_is_not_believed() -> None:
    hosts = Hosts([ip_network("10.0.0.0/8")])
    assert hosts.of(call("ipv4:203.0.113.9:1", "8.8.8.8")) == Host("203.0.113.9", is_local=False)


def test_callers_of_a_trusted_proxy_on_this_machine_are_not_local() -> None:
    """Even if the proxy names nobody, or this machine."""
    hosts = Hosts([ip_network("127.0.0.0/8")])
    assert not hosts.of(call("ipv4:127.0.0.1:1")).is_local
    assert not hosts.of(call("ipv4:127.0.0.1:1", "127.0.0.1")).is_local


@pytest.mark.parametrize(
    ("name", "subnet"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8::5", "2001:db8::/64"),
        ("2001:db8:0:1:ffff::5", "2001:db8:0:1::/64"),
        ("unix", "unix"),
    ],
)
def test_hosts_whose_address_the_holder_chooses_are_one(name: str, subnet: str) -> None:
    assert Host(name, is_local=False).subnet == subnet


@given(st.lists(st.text(st.characters(codec="ascii")) | st.ip_addresses().map(str)))
def test_any_header_leads_to_an_address(forwarded: list[str]) -> None:
    host = Hosts([ip_network("10.0.0.0/8"), ip_network("::/1")]).of(call("ipv4:10.0.0.1:1", *forwarded))
    assert ip_address(host.name).version in {4, 6}
    assert host.subnet
    assert not host.is_local


def test_a_text_that_is_too_long_for_an_address_is_none() -> None:
    hosts = Hosts([ip_network("10.0.0.0/8")])
    assert hosts.of(call("ipv4:10.0.0.1:1", "1" * 16_000)) == Host("10.0.0.1", is_local=False)

"""The public face: complete, and the same in both clients."""

from __future__ import annotations

import inspect

import dst_grpc.client as package
from dst_grpc.client import AsyncClient, Client


def test_all_is_complete() -> None:
    public = {name for name, value in vars(package).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert set(package.__all__) == public - {"annotations"}


def test_both_clients_have_the_same_methods_documented_alike() -> None:
    def methods(cls: type) -> set[str]:
        return {name for name in dir(cls) if not name.startswith("_")}

    assert methods(Client) == methods(AsyncClient)
    for name in methods(Client):
        assert (getattr(Client, name).__doc__ or "").strip(), name


def test_a_blocking_method_keeps_its_signature() -> None:
    ours, theirs = inspect.signature(Client.derive), inspect.signature(AsyncClient.derive)
    assert list(ours.parameters) == list(theirs.parameters)

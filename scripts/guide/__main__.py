"""`python -m scripts.guide`: are the outputs in the documentation true? `--write`: make them so."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from dst_grpc.client import Client
from dst_grpc.errors import DstError
from scripts.guide import circuit, graph
from scripts.guide.blocks import ROOT, difference, renewed
from scripts.guide.claims import Claim, Guide
from scripts.serving import server

GUIDES = (
    Guide(circuit.PAGE, circuit.TEMPLATE, circuit.names_and_claims),
    Guide(graph.PAGE, graph.TEMPLATE, graph.names_and_claims),
)


def main() -> None:
    """Compare, or write; ends with 1 if something is not true."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write what is true into the pages")
    write = parser.parse_args().write
    try:
        with server() as address:
            stale = check(address, write=write)
    except DstError as error:
        sys.exit(f"error: {error.message}")
    if stale:
        sys.exit("\n".join(stale))


def check(address: str, *, write: bool = False) -> list[str]:
    """What is not true in the pages, as sentences; with *write*, outputs are made true first."""
    problems = []
    found: dict[Guide, tuple[dict[str, str], list[Claim]]] = {}
    with Client(address) as client:
        for guide in GUIDES:
            found[guide] = guide.names_and_claims(client)
    for name, page in pages(address, {guide: names for guide, (names, _) in found.items()}):
        file = ROOT / name
        written = file.read_text(encoding="utf-8") if file.exists() else ""
        if write and page != written:
            file.write_text(page, encoding="utf-8")
            print(f"{name} is renewed")
        elif differs := difference(written, page):
            problems.append(f"{name}: {differs}; python -m scripts.guide --write renews it")
    for guide, (_, claims) in found.items():
        problems += [f"{guide.page} is wrong for this model: {c.sentence}: no" for c in claims if not c.holds]
    return problems


def pages(address: str, names: Mapping[Guide, dict[str, str]]) -> list[tuple[str, str]]:
    """The pages, by name, as they should be; *names* are those that each guide leaves open."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    guides = [(guide.page, renewed(guide.filled(its), address)) for guide, its in names.items()]
    return [("README.md", renewed(readme, address)), *guides]


if __name__ == "__main__":
    main()

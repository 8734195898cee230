"""`python -m scripts.guide`: are the outputs in the documentation true? `--write`: make them so."""

from __future__ import annotations

import argparse
import sys

from dst_grpc.client import Client
from dst_grpc.errors import DstError
from scripts.guide import circuit
from scripts.guide.blocks import ROOT, difference, renewed
from scripts.serving import server


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
    for name, page in pages(address):
        file = ROOT / name
        written = file.read_text(encoding="utf-8") if file.exists() else ""
        if write and page != written:
            file.write_text(page, encoding="utf-8")
            print(f"{name} is renewed")
        elif found := difference(written, page):
            problems.append(f"{name}: {found}; python -m scripts.guide --write renews it")
    with Client(address) as client:
        _, claims = circuit.names_and_claims(client)
    problems += [f"{circuit.PAGE} is wrong for this model: {c.sentence}: no" for c in claims if not c.holds]
    return problems


def pages(address: str) -> list[tuple[str, str]]:
    """The pages, by name, as they should be."""
    with Client(address) as client:
        names, _ = circuit.names_and_claims(client)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return [("README.md", renewed(readme, address)), (circuit.PAGE, renewed(circuit.filled(names), address))]


if __name__ == "__main__":
    main()

"""The software bill of materials of a release: what the package needs, with all of its extras, as CycloneDX JSON.

Versions and licences are those of the environment that the release is built in, which `constraints.txt` holds; users
are held by the ranges of `pyproject.toml` alone.
"""

from __future__ import annotations

import re
from datetime import datetime
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement

import dst_grpc

PACKAGE = "dst-grpc"


def needed(name: str, extras: frozenset[str], found: dict[str, Distribution]) -> set[str]:
    """Names of what distribution *name* needs with *extras*, on this platform; it and all that they need are put into
    *found*, by name. What is not installed is left out: it is of an extra that the environment lacks."""
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return set()
    first = name not in found
    found[name] = package
    direct = set()
    for text in package.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
            continue
        other = normal(requirement.name)
        if first and other not in found:
            needed(other, frozenset(requirement.extras), found)
        if other in found:
            direct.add(other)
    return direct


def normal(name: str) -> str:
    """A distribution's name, as PyPI compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def bill_of_materials(made_at: datetime) -> str:
    """The document, dated *made_at*. The same environment gives the same text."""
    extras = frozenset(distribution(PACKAGE).metadata.get_all("Provides-Extra") or ())
    found: dict[str, Distribution] = {}
    needed(PACKAGE, extras, found)
    components = {name: _component(name, package) for name, package in sorted(found.items())}
    bom = Bom(components=[component for name, component in components.items() if name != PACKAGE])
    bom.metadata.component = components[PACKAGE]
    for name, component in components.items():
        depends = needed(name, extras if name == PACKAGE else frozenset(), dict(found))
        bom.register_dependency(component, [components[other] for other in sorted(depends & components.keys())])
    bom.serial_number = uuid5(NAMESPACE_URL, f"pkg:pypi/{PACKAGE}@{dst_grpc.__version__}")
    bom.metadata.timestamp = made_at
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def _component(name: str, package: Distribution) -> Component:
    version = dst_grpc.__version__ if name == PACKAGE else package.version
    licence = next(iter(package.metadata.get_all("License-Expression") or ()), None)
    return Component(
        name=name,
        version=version,
        type=ComponentType.APPLICATION if name == PACKAGE else ComponentType.LIBRARY,
        bom_ref=f"{name}@{version}",
        purl=PackageURL("pypi", name=name, version=version),
        licenses=[DisjunctiveLicense(name=licence)] if licence else (),
    )

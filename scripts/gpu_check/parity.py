"""Every stored row of the reference, derived on the device, with the bounds that hold for any order of summation."""

from __future__ import annotations

import shutil
from collections import Counter
from typing import TYPE_CHECKING

from dst_grpc.contexts import Registry
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.run import run
from scripts.gpu_check.findings import Finding
from tests.parity.cases import CASES, GOLDEN, load_case
from tests.parity.comparison import Tensors, compare, rule_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scripts.gpu_check.device import Device

_ROWS = 1319
_TOLD = 5
"""Wrong rows that are described."""


def parity(device: Device, folder: Path) -> Iterator[Finding]:
    """All rows of all cases: one forward and one backward pass a case."""
    golden = folder / "golden"
    shutil.copytree(GOLDEN / "model", golden)
    shutil.copytree(GOLDEN / "autoencoders", golden / "autoencoders")
    registry = Registry.build(models={"golden": golden}, device=device.name, include_embedded=False)
    loader = FileLoader(allow_failed_checks=True)  # random autoencoders reconstruct nothing
    model = loader.load_model(registry.model_entry("golden"), lambda _: None)
    entries = [registry.autoencoder_entry(info.name, "golden") for info in registry.autoencoders()]
    sets = {entry.name: loader.load_autoencoders(entry, model, lambda _: None) for entry in entries}
    verdicts: Counter[str] = Counter()
    wrong: list[str] = []
    for name in CASES:
        case = load_case(name, "golden")
        (result,) = run([make_plan(case.request, registry)], model.decoder, sets)
        for row, scalar in zip(case.rows, result.plan.scalars, strict=True):
            derivation = result.derivation(scalar)
            found: Tensors = {
                (pass_type, layer): tensor.cpu().numpy()
                for layer in scalar.layers
                for pass_type, tensor in derivation.at(layer).items()
            }
            problems = compare(case, row, found, result.loss, result.activation_value)
            wrong += [f"{row.name}: {problem}" for problem in problems]
            verdicts["wrong" if problems else "on purpose" if rule_of(row) else "equal"] += 1
    yield Finding(
        check="parity",
        what=f"rows of the reference, of {len(CASES)} cases",
        got=f"{verdicts['equal']} equal, {verdicts['on purpose']} differ on purpose, {verdicts['wrong']} wrong",
        wanted=f"{_ROWS} rows, 0 wrong",
        is_right=not wrong and verdicts.total() == _ROWS,
    )
    for problem in wrong[:_TOLD]:
        yield Finding(check="parity", what="a wrong row", got=problem, wanted="the stored value", is_right=False)

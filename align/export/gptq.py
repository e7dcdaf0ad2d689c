"""gptq by gptqmodel, in its own environment (--engine gptqmodel): it wants a newer torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.engines.venvs import need_python
from align.export import compressed
from align.export.bnb import check_projections
from align.export.measure import Figures, Task
from align.export.outside_call import call
from align.export.shapes import Facts, choose_group_size
from align.export.torchao_int8 import check_linear

ENGINE = "gptqmodel"


def check(form: str, facts: Facts | None, group_size: int | None) -> None:
    """UserError where the environment is missing or the shapes do not fit."""
    if facts is not None:
        check_projections(form, facts)
        check_linear(form, facts, ENGINE)
        choose_group_size(facts, group_size)
    need_python(ENGINE, "--engine")


def write(source: Path, output: Path, rows: list[list[int]], group_size: int) -> dict[str, Any]:
    """Quantise the folder `source` to `output`, 4 bits; what was done. rows: calibration ids."""
    spec = {
        "model": str(source.resolve()), "output": str(output.resolve()), "rows": rows,
        "group_size": group_size,
    }  # fmt: skip
    report = call(need_python(ENGINE, "--engine"), "gptq.py", spec, "gptqmodel")
    return {
        "quantised": report["quantised"], "seconds": round(report["seconds"], 1),
        "group_size": group_size, "calibration_rows": len(rows), "versions": report["versions"],
    }  # fmt: skip


def measure(folder: Path, task: Task) -> Figures:
    """Figures of a folder in the transformers of gptqmodel's environment."""
    return compressed.measure(folder, task, engine=ENGINE, with_="gptqmodel")

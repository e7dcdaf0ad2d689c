"""awq, gptq and w8a8 by llm-compressor, in its own environment: folders that vLLM serves.

The format is compressed-tensors. Every projection but the head is quantised; the embeddings and a
tied head stay as they are.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from align.engines.venvs import need_python
from align.export.bnb import check_projections
from align.export.measure import Figures, Task, figures
from align.export.outside_call import call
from align.export.shapes import Facts, choose_group_size
from align.export.torchao_int8 import check_linear

FORMS = ("awq", "gptq", "w8a8")
ENGINE = "llmcompressor"
CALIBRATED = ("awq", "gptq")
"""w8a8 rounds weights as they are and scales activations when it runs: it looks at no data."""


def check(form: str, facts: Facts | None, group_size: int | None) -> None:
    """UserError where the environment is missing or the shapes do not fit."""
    if facts is not None:
        check_projections(form, facts)
        check_linear(form, facts, "llm-compressor")
        if form in CALIBRATED:
            choose_group_size(facts, group_size)
    need_python(ENGINE, "--to")


def write(
    form: str, source: Path, output: Path, rows: list[list[int]], group_size: int | None
) -> dict[str, Any]:
    """Quantise the folder `source` to `output`; what was done. rows: ids to calibrate on."""
    spec = {
        "model": str(source.resolve()), "output": str(output.resolve()), "method": form,
        "rows": rows, "group_size": group_size,
    }  # fmt: skip
    report = call(need_python(ENGINE, "--to"), "compress.py", spec, f"llm-compressor ({form})")
    for left_over in ("recipe.yaml",):
        (output / left_over).unlink(missing_ok=True)
    for file in source.glob("generation_config.json"):  # with our stop ids, whatever was saved
        shutil.copy2(file, output / file.name)
    return {
        "quantised": report["quantised"], "seconds": round(report["seconds"], 1),
        "group_size": group_size, "calibration_rows": len(rows), "versions": report["versions"],
    }  # fmt: skip


def measure(folder: Path, task: Task, engine: str = ENGINE, with_: str = "") -> Figures:
    """Figures of a folder in the transformers of the engine's environment."""
    spec = task.to_spec() | {"model": str(folder.resolve()), "with": with_ or "compressed-tensors"}
    report = call(need_python(engine, "--to"), "measure.py", spec, f"measuring {folder.name}")
    return figures(
        task, folder, logps=report["logps"], answers=report["answers"], engine=report["engine"],
        tokens_per_s=report["tokens_per_s"], memory=report["memory"],
    )  # fmt: skip

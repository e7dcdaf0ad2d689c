"""Run a script of align/export/outside/ with the python of an engine's own environment. No torch.

A JSON file goes in and a JSON file comes out: the two sides share no code and no versions.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from align.config_errors import Failed

SCRIPTS = Path(__file__).with_name("outside")
TAIL = 2000  # characters of the log that an error shows


def call(python: str | Path, script: str, spec: dict[str, Any], what: str) -> dict[str, Any]:
    """The report of a script. what: names the work in an error.

    Failed, with the end of what it printed, where it ends with an error or without a report.
    """
    with tempfile.TemporaryDirectory(prefix="align-") as folder:
        given, log, wanted = (Path(folder) / n for n in ("spec.json", "log.txt", "report.json"))
        given.write_text(json.dumps(spec), encoding="utf-8")
        with log.open("wb") as stream:
            work = str(SCRIPTS.absolute() / script)
            done = subprocess.run(
                [os.path.abspath(python), work, str(given), str(wanted)],
                stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
                env=clean_env(), cwd=folder, check=False,  # gptqmodel writes logs where it stands
            )  # fmt: skip
        if done.returncode or not wanted.is_file():
            text = log.read_text(encoding="utf-8", errors="replace").strip()
            raise Failed(f"{what} ended with code {done.returncode}. Its last words:\n"
                         f"{text[-TAIL:]}")  # fmt: skip
        return json.loads(wanted.read_text(encoding="utf-8"))


def clean_env() -> dict[str, str]:
    """This process's variables without those that would mix its packages into the other python."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {k: v for k, v in os.environ.items() if k not in dropped} | {"PYTHONNOUSERSITE": "1"}

"""What `set_defaults` does to the process: freed memory stays for the next tensor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = """
import json, resource
from align import launch_env
launch_env.set_defaults()
found = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = b"x" * (48 * 2**20)
    del block
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps(found))
"""
PAGES = 48 * 2**20 // 4096


def faults(**more: str) -> list[int]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    env |= {"PYTHONPATH": str(Path(__file__).parents[1]), **more}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=env, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_not_given_back_and_touched_again() -> None:
    first, *later = faults()
    assert first > PAGES // 1000  # with 4 KiB pages 12,288; fewer where pages are large
    assert max(later) < first / 10


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_user_s_own_settings_stand() -> None:
    first, *later = faults(MALLOC_MMAP_MAX_="65536")
    assert min(later) > first / 2


ENDING = """
import atexit, sys
from align import launch_env
from align.run import guarded
guarded(lambda: {code})
atexit.register(lambda: print("handler", flush=True))  # as what a run imports does
class Late:
    def __del__(self):
        print("taken apart", flush=True)
late = Late()
{after}
"""


def ended(world: int, code: int, after: str = "") -> tuple[int, str]:
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    env |= {"PYTHONPATH": str(Path(__file__).parents[1]), "WORLD_SIZE": str(world)}
    done = subprocess.run(
        [sys.executable, "-c", ENDING.format(code=code, after=after)], env=env,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_a_launched_process_ends_after_its_handlers_and_before_destructors() -> None:
    assert ended(2, 75) == (75, "handler\n")
    assert ended(2, 0) == (0, "handler\n")
    assert ended(1, 75, "sys.exit(3)") == (3, "handler\ntaken apart\n")


def test_an_error_after_the_run_is_not_hidden() -> None:
    code, out = ended(2, 0, "raise ValueError('later')")
    assert code == 1
    assert "taken apart" in out

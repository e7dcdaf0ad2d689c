"""A recipe with something wrong in it: probe.py FAULT METHOD options of the recipe."""

from __future__ import annotations

import itertools
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def slow_rollout() -> None:
    """The second rollout takes a second a token, and says so."""
    from align.rollout.hf import HFSampler

    sample, pick, calls = HFSampler.sample, HFSampler._pick, itertools.count(1)
    late = [False]

    def watched(self, *args, **kwargs):
        late[0] = next(calls) == 2
        return sample(self, *args, **kwargs)

    def slow(self, *args):
        if late[0]:
            print("TOKEN", flush=True)
            time.sleep(1)
        return pick(self, *args)

    HFSampler.sample, HFSampler._pick = watched, slow


def short_grace() -> None:
    """A reward function that does not return to Python has two seconds."""
    from align.rewards import limit

    limit.GRACE_S = 2.0


def slow_report() -> None:
    """Rank 0 takes three seconds over its report, after the others have nothing left to do."""
    from align import run

    run._report = lambda folder: time.sleep(3)


def failing_rank() -> None:
    """Rank 1 fails at its third step, alone."""
    from align.train.sft import TokenTrainer

    step = TokenTrainer.training_step

    def bad(self, *args, **kwargs):
        if os.environ["RANK"] == "1" and self.state.global_step == 2:
            raise ValueError("磁盘坏了 the disk of this machine is broken")
        return step(self, *args, **kwargs)

    TokenTrainer.training_step = bad


def small_files() -> None:
    """From step 3 on the system allows no file above 64 KiB: as on a disk that is full."""
    import resource

    from align.train.sft import TokenTrainer

    step = TokenTrainer.training_step

    def limited(self, *args, **kwargs):
        if self.state.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        return step(self, *args, **kwargs)

    TokenTrainer.training_step = limited


def little_memory() -> None:
    """The third step begins with memory used up, and may ask for no more."""
    import resource

    import psutil
    import torch

    from align.train.sft import TokenTrainer

    step = TokenTrainer.training_step

    def limited(self, *args, **kwargs):
        if self.state.global_step < 2:
            return step(self, *args, **kwargs)
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms, before[1]))
        taken = []
        with suppress(RuntimeError):
            while True:
                taken.append(torch.empty(1 << 16))
        try:
            return step(self, *args, **kwargs)
        finally:
            taken.clear()
            resource.setrlimit(resource.RLIMIT_AS, before)

    TokenTrainer.training_step = limited


if __name__ == "__main__":
    from align.run import run

    globals()[sys.argv[1]]()
    sys.exit(run(sys.argv[2], sys.argv[3:]))

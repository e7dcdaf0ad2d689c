"""Started by test_ppo_sharded.py: PPO as the recipe runs it, with what it gathers written down.

usage: ppo_probe.py SKEW recipe arguments …. SKEW 1: every completion of rank 0 ends after a token,
and rank 1 is slow. Prints one line, PROBE and a JSON object, from every rank.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager

from align import launch_env
from align.run import run


def main(skew: bool, argv: list[str]) -> int:
    launch_env.set_defaults()
    from align import whole
    from align.rollout.hf import HFSampler
    from align.train.rollout_engines import HFEngine

    seen: dict = {"gathers": [], "fills": 0, "samples": 0, "shards": {}}
    names: dict[int, str] = {}
    gathered, fill = whole.gathered, whole.fill
    sample, opened = HFSampler.sample, HFEngine.sampling

    @contextmanager
    def watched(parameters):
        with gathered(parameters):
            size = sum(p.nbytes for p in parameters)
            seen["gathers"].append([size, sorted({names[id(p)].split(".")[0] for p in parameters})])
            yield

    def counted(*args):
        seen["fills"] += 1
        return fill(*args)

    def skewed(self, prompts, n, seed):
        found = sample(self, prompts, n, seed)
        seen["samples"] += 1
        if skew and launch_env.rank() == 0:
            found.completions = [ids[:1] for ids in found.completions]
            found.logps = [row[:1] for row in found.logps]
        elif skew:
            time.sleep(0.5)
        return found

    def noted(self, **overrides):
        module = self.trainer.policy.module
        names.update({id(p): name for name, p in module.named_parameters()})
        seen["shards"] = {}
        for name, p in module.named_parameters():
            part = seen["shards"].setdefault(name.split(".")[0], [0, 0])
            part[0] += p.numel()
            part[1] += getattr(p, "ds_numel", p.numel())
        return opened(self, **overrides)

    whole.gathered, whole.fill, HFSampler.sample = watched, counted, skewed
    HFEngine.sampling = noted
    code = run("ppo", argv)
    print("PROBE " + json.dumps({"rank": launch_env.rank(), **seen}) + "\n", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] == "1", sys.argv[2:]))

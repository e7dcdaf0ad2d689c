"""Started by test_fsdp2.py under torchrun: policies sharded by accelerate's own code over gloo.

FSDP2 through `accelerate launch` needs an accelerator. What it does to a module does not: the
preparation is called here with what it reads of an Accelerator. Prints one line, PROBE and a JSON
object, from every rank.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1] / "policy"))
import tiny_policies as tiny
import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.fsdp import FSDPModule

from align.config_parallel import data_place
from align.distributed import full_tensor, total_norm
from align.policy import Policy
from align.rollout.hf import HFSampler
from align.whole import whole_lm

KINDS = {
    "full": ("dpo", {}, ("logps", "ref_logps")),
    "lora": ("dpo", {"policy": {"lora": {"r": 4}}}, ("logps", "ref_logps")),
    "critic": ("ppo", {"ppo": {"critic": "separate"}}, ("logps", "ref_logps", "values")),
    "adapter": (
        "ppo",
        {"policy": {"lora": {"r": 4}}, "ppo": {"critic": "adapter"}},
        ("logps", "ref_logps", "values"),
    ),
}


def load(kind: str, path: str, folder: Path):
    method, sections, _ = KINDS[kind]
    rewards = {"rewards": [{"kind": "function", "path": "m:f"}], "data": {"prompts": "x"}}
    torch.manual_seed(0)  # of the adapters
    more = {**sections, **(rewards if method == "ppo" else {})}
    policy = tiny.load(method, path, folder, critic=method == "ppo", **more)
    tiny.disturb(policy.module)
    return policy


def shard(module: torch.nn.Module, efficient: bool) -> torch.nn.Module:
    """As `Accelerator.prepare` under ds_configs/accelerate_fsdp2.yaml."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True,
        cpu_ram_efficient_loading=efficient,
    )  # fmt: skip
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision="no",
        device=torch.device("cpu"), is_main_process=dist.get_rank() == 0,
        torch_device_mesh=None, parallelism_config=None,
    )  # fmt: skip
    return fsdp2_prepare_model(accelerator, module)


def step(policy, module, groups, want, scale: float) -> dict[str, torch.Tensor]:
    """Outputs, after one backward pass of a loss over them and a step of SGD."""
    out = module(policy.collate(groups), want=want)
    loss = sum(x.square().sum() for name, x in out.items() if name != "ref_logps") * scale
    loss.backward()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    return out


def compare(kind: str, path: str, folder: Path, efficient: bool) -> dict:
    want, groups = KINDS[kind][2], tiny.groups()
    alone, policy = load(kind, path, folder), load(kind, path, folder)
    module = shard(policy.module, efficient)
    alone.module.train()
    module.train()
    mine = [groups[dist.get_rank()]]
    differences = []
    for _ in range(2):
        expected = step(alone, alone.module, groups, want, 1.0)
        # Ranks average their gradients: the factor makes that a sum.
        found = step(policy, module, mine, want, dist.get_world_size())
        part = slice(0, 13) if dist.get_rank() == 0 else slice(13, 20)
        differences += [float((found[n] - expected[n][part]).abs().max()) for n in want]
    return after(alone, policy, differences)


def split(path: str, folder: Path) -> dict:
    """Layers over both ranks (tensor parallelism): every rank has the same examples."""
    alone = tiny.load("dpo", path, folder)
    config = tiny.configure("dpo", path, folder)
    config.train.args["parallelism_config"] = {"tp_size": 2}
    policy = Policy.load(config)
    differences, norms, want = [], [], ("logps", "ref_logps")
    for _ in range(2):
        found = [step(p, p.module, tiny.groups(), want, 1.0) for p in (alone, policy)]
        differences += [float((found[1][n] - found[0][n]).abs().max()) for n in want]
        norms.append([
            total_norm([x.grad for x in p.module.parameters() if x.grad is not None])
            for p in (alone, policy)
        ])  # fmt: skip
    places = data_place(config, dist.get_rank(), dist.get_world_size())
    return after(alone, policy, differences) | {"norms": norms, "places": places}


def after(alone, policy, differences) -> dict:
    """What two policies that took the same steps have in common."""
    module, groups = policy.module, tiny.groups()
    kept = dict(alone.module.named_parameters())
    weights = [
        float((full_tensor(p) - kept[n]).abs().max()) for n, p in module.named_parameters()
    ]  # fmt: skip
    with whole_lm(policy.module.lm, torch.device("cpu"), 1) as lm:
        copied = sum(p.numel() for p in lm.parameters())
        sampler = HFSampler(lm, policy.tokenizer, {0}, max_new_tokens=5, temperature=0.0)
        # One rank has more to do than the other: nothing here waits.
        prompts = [g.prompt_ids for g in groups][: 1 + dist.get_rank()]
        texts = sampler.sample(prompts, 1, 0).completions
    reference = HFSampler(alone.module.lm, policy.tokenizer, {0}, max_new_tokens=5, temperature=0.0)
    return {
        "units": sum(isinstance(m, FSDPModule) for m in module.modules()),
        "outputs": max(differences),
        "weights": max(weights),
        "samples": texts == reference.sample(prompts, 1, 0).completions,
        "copied": copied,
        "trained": sum(p.requires_grad for p in module.parameters()),
    }


def main(folder: str, path: str, llama: str) -> None:
    dist.init_process_group("gloo")
    found = {
        f"{kind}-{efficient}": compare(kind, path, Path(folder), efficient)
        for kind in KINDS
        for efficient in (False, True)
    }
    found["split"] = split(llama, Path(folder))
    print("PROBE " + json.dumps({"rank": dist.get_rank(), "found": found}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

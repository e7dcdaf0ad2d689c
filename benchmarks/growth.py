"""How step time and memory grow: with prompt length, candidates, batch, model size, ranks.

    python benchmarks/growth.py [--json FILE] [--only prompt]

Each point is a process of its own: policy and LoRA of a fresh Llama, groups of exact lengths,
forward pass, backward pass, optimiser. Printed per curve: seconds, memory above the model, what
`align.cost` says of both, and the exponent of a power law through the points.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

START = {
    "prompt": 128, "completion": 128, "candidates": 2, "batch": 4, "hidden": 384, "layers": 8,
    "ranks": 1, "threads": 0,
}  # fmt: skip
CURVES: dict[str, list[dict[str, int]]] = {
    "prompt": [{"prompt": p} for p in (64, 128, 256, 512, 1024, 2048)],
    "candidates": [{"candidates": k} for k in (1, 2, 3, 5, 9)],
    "batch": [{"batch": b} for b in (1, 2, 4, 8, 16)],
    # Twice the width is four times the weights of a layer.
    "model": [
        {"hidden": h, "layers": n} for h, n in ((192, 6), (384, 8), (576, 16), (768, 24))
    ],
    "ranks": [{"ranks": r, "threads": 1} for r in (1, 2)],
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--only", nargs="+", default=list(CURVES), choices=list(CURVES))
    made.add_argument("--json", help="append the points to this file")
    made.add_argument("--point", help=argparse.SUPPRESS)
    options = made.parse_args(argv)
    if options.point:
        measure(json.loads(options.point))
        return 0
    for name in options.only:
        points = []
        for change in CURVES[name]:
            points.append(run(START | change))
            if options.json:
                with Path(options.json).open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"curve": name, **points[-1]}) + "\n")
        print(curve(name, points), flush=True)
    return 0


def run(point: dict[str, int]) -> dict[str, Any]:
    """One point in its own process (or processes)."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        words = [str(ROOT / "growth.py"), "--point", json.dumps({**point, "out": str(out)})]
        start = [sys.executable]
        if point["ranks"] > 1:
            start += ["-m", "torch.distributed.run", f"--nproc_per_node={point['ranks']}"]
        env = dict(os.environ)
        if point["threads"]:
            env["OMP_NUM_THREADS"] = str(point["threads"])
        done = subprocess.run([*start, *words], env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{point} failed:\n{done.stderr[-2000:]}")
        return point | json.loads(out.read_text(encoding="utf-8"))


def curve(name: str, points: list[dict[str, Any]]) -> str:
    """A markdown table and the exponents."""
    size = {"model": "parameters"}.get(name, name)
    lines = [
        f"| {size} | s/step | TFLOP | GFLOP/s | MiB above the model | formula |",
        "|---|---|---|---|---|---|",
    ]
    for p in points:
        speed = p["operations"] / p["seconds"] / 1e9
        lines.append(
            f"| {p[size]:,} | {p['seconds']:.3f} | {p['operations'] / 1e12:.3f} | {speed:.0f} "
            f"| {p['mib']:.0f} | {p['formula_mib']:.0f} |"
        )
    ends = points[0], points[-1]
    grows = {
        what: exponent([p[size] for p in points], [p[what] for p in points])
        for what in ("seconds", "operations", "mib")
    }
    lines.append(
        f"\nFrom {ends[0][size]:,} to {ends[1][size]:,}: "
        + ", ".join(f"{what} ∝ n^{e:.2f}" for what, e in grows.items())
        + "\n"
    )
    return "\n".join(lines)


def exponent(x: list[float], y: list[float]) -> float:
    """Slope of log y over log x."""
    a, b = [math.log(v) for v in x], [math.log(max(v, 1e-9)) for v in y]
    mean_a, mean_b = statistics.mean(a), statistics.mean(b)
    return sum((p - mean_a) * (q - mean_b) for p, q in zip(a, b, strict=True)) / sum(
        (p - mean_a) ** 2 for p in a
    )


def measure(point: dict[str, Any]) -> None:
    """The point itself: three steps after one to warm up; rank 0 writes what came."""
    from align import launch_env

    launch_env.set_defaults()
    import resource

    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from align import cost
    from align.config import load_config
    from align.dry_run_cost import shape_of
    from align.groups import CPU_TOKENS, TokenGroup
    from align.policy import Policy
    from align.train.batches import pieces

    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != point["ranks"]:
        raise SystemExit(f"{world} ranks started, {point['ranks']} asked for")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer: Any = AutoTokenizer.from_pretrained(ROOT.parent / "recipes/assets/demo_base")
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=point["hidden"],
            num_hidden_layers=point["layers"], num_attention_heads=point["hidden"] // 64,
            intermediate_size=3 * point["hidden"], max_position_embeddings=8192,
            tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
        )).save_pretrained(folder)  # fmt: skip
        tokenizer.save_pretrained(folder)
        config = load_config("dpo", ["--policy.path", folder, "--policy.lora", "{r: 16}"])
        policy = Policy.load(config)
    shape = shape_of(policy.module.lm)
    module: Any = policy.module
    if world > 1:
        torch.distributed.init_process_group("gloo")
        module = torch.nn.parallel.DistributedDataParallel(module)
    drawn = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(10, shape.vocabulary - 10, (count,), generator=drawn).tolist()

    groups = [
        TokenGroup(ids(point["prompt"]), [ids(point["completion"])] * point["candidates"])
        for _ in range(point["batch"] // world)
    ]
    parts = pieces(groups, CPU_TOKENS, policy.layout)
    batches = [policy.collate(part) for part in parts]
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.0)
    seconds = []

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before = peak()
    for _ in range(4):
        start = time.perf_counter()
        for batch in batches:
            module(batch, want=("logps",))["logps"].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    work = cost.group_work(point["prompt"], [point["completion"]] * point["candidates"])
    tokens = max(sum(g.row_tokens(policy.layout) for g in part) for part in parts)
    rows = min(tokens, work.predicted * len(parts[0]))
    kept = cost.held(shape, tokens=tokens, logit_rows=rows)
    if int(os.environ.get("RANK", "0")) == 0:
        result = {
            "seconds": statistics.median(seconds[1:]), "mib": peak() - before,
            "formula_mib": (kept.activations + kept.gradients + kept.optimizer) / 2**20,
            "operations": cost.step(shape, work.times(point["batch"])),
            "parameters": shape.parameters,
        }  # fmt: skip
        Path(point["out"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

"""A step of pre-training as the trainer takes it, beside nanoGPT's: tokens a second, as a ratio.

    python benchmarks/pretrain_speed.py [--preset mini] [--layers N] [--rows 8] [--steps 12]

Both sides run in this process by turns, on random token ids, so that what else the machine does
meets both. One is our module, pieces and log-probs; the other the same transformers model with
whole logits and cross-entropy. Both clip and take AdamW's step. Reading data, logging and the
Trainer's own loop are on neither side. A ratio above 1 says that ours is faster.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--preset", default="mini")
    p.add_argument("--layers", type=int, help="another number of layers")
    p.add_argument("--block", type=int, help="another block_size")
    p.add_argument("--vocabulary", type=int, default=5000)
    p.add_argument("--rows", type=int, default=8)
    p.add_argument("--steps", type=int, default=12, help="the first two are not counted")
    return p


def main() -> int:
    args = parser().parse_args()
    from align.launch_env import set_defaults

    set_defaults()
    import torch
    from transformers import AutoModelForCausalLM

    from align.config import load_config
    from align.fresh import fresh_config
    from align.groups import TokenGroup, collate
    from align.policy_module import PolicyModule
    from align.train.batches import pieces, token_budget

    words = ["--pretrain.preset", args.preset]
    words += ["--pretrain.n_layer", str(args.layers)] if args.layers else []
    words += ["--pretrain.block_size", str(args.block)] if args.block else []
    with tempfile.TemporaryDirectory() as folder:
        config = load_config("pretrain", [*words, "--train.output_dir", folder])
    shape = fresh_config(config, args.vocabulary)
    block = config.pretrain.block_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(args.vocabulary, (args.rows, block), generator=generator)
    groups = [TokenGroup(row[:1], [row[1:]]) for row in ids.tolist()]
    budget = token_budget(config, torch.device("cpu"), deepspeed=False)
    sides = {}
    for name in ("ours", "loop"):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(shape)
        module = PolicyModule(model) if name == "ours" else model
        sides[name] = module, torch.optim.AdamW(module.parameters(), lr=1e-4, betas=(0.9, 0.95))

    def ours(module) -> None:
        total = args.rows * (block - 1)
        for part in pieces(groups, budget, "grouped"):
            batch = collate(part, 0)
            (-module(batch)["logps"].sum() / total).backward()

    def loop(model) -> None:
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()

    seconds: dict[str, list[float]] = {"ours": [], "loop": []}
    for _ in range(args.steps):
        for name, run in (("ours", ours), ("loop", loop)):
            module, optimizer = sides[name]
            start = time.perf_counter()
            run(module)
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            seconds[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(values[2:]) for name, values in seconds.items()}
    tokens = args.rows * (block - 1)
    for name, value in middle.items():
        print(f"{name}: {tokens / value:.0f} tokens/s")
    print(f"ratio: {middle['loop'] / middle['ours']:.2f} (ours / loop, tokens/s)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

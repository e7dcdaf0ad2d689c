"""Sampling against `generate` on one batch, the same prompts, in turn, each in its own process.

    python benchmarks/sampling.py --model PATH --data FILE [--prompts 32] [--n 1] [--lora]

Completions end at the model's end token or after --new_tokens: their lengths are as mixed as the
model makes them. Where that is never (a base model), --mixed ends a row at any of so many common
tokens that it happens after about a third of --new_tokens.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from comparison import Side, add_common, alternate, report_row, row_of

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--model", required=True, help="folder of a causal LM")
    made.add_argument("--data", required=True, help="preferences, whose prompts are used")
    made.add_argument("--prompts", type=int, default=32)
    made.add_argument("--n", type=int, default=1, help="completions of a prompt")
    made.add_argument("--new_tokens", type=int, default=128)
    made.add_argument("--prompt_tokens", type=int, help="exactly so many; else as they are")
    made.add_argument("--max_prompt", type=int, default=256, help="cut longer ones")
    made.add_argument("--mixed", action="store_true")
    made.add_argument("--lora", action="store_true")
    made.add_argument("--rounds", type=int, default=2, help="measured rounds of a run")
    add_common(made)
    return made


def main(argv: list[str] | None = None) -> int:
    return report_row(compare, parser().parse_args(argv))


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Prepare, run both sides in turn, return the table's row."""
    from floor import sampling_floor
    from prepare import model_folder

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = model_folder(options.model, folder / "model", "dpo", options.lora)
    prompts = prompts_of(options, tokenizer)
    stops = [tokenizer.eos_token_id]
    if options.mixed:
        stops = common_tokens(folder / "model", prompts, 3 / options.new_tokens)
    job = {
        "model": str(folder / "model"), "lora": options.lora, "dtype": options.dtype,
        "prompts": prompts, "n": options.n, "new_tokens": options.new_tokens,
        "stop_ids": stops, "rounds": options.rounds,
    }  # fmt: skip
    sides = [
        Side(name, sys.executable, "sampling_side.py", {**job, "side": side})
        for name, side in (("align", "ours"), ("generate", "theirs"))
    ]
    alternate(sides, folder, options.repeats, options.threads)
    mean = statistics.mean(len(p) for p in prompts)
    label = options.label or (
        f"sampling{' LoRA' if options.lora else ''}, {Path(options.model).name}, {len(prompts)} "
        f"prompts of {mean:.0f} tokens, n={options.n}, at most {options.new_tokens}"
    )
    lengths = [[n for run in side.runs for n in run["lengths"]] for side in sides]
    ours, theirs = map(statistics.mean, lengths)
    floor = sampling_floor(options, folder / "model", prompts, ours)
    row = row_of(label, "sampling", *sides, 1000.0, floor)
    row["losses"] = f"mean length {ours:.1f} / {theirs:.1f} tokens"
    row["valid"] = same_mean(*lengths)
    return row


def prompts_of(options: argparse.Namespace, tokenizer: Any) -> list[list[int]]:
    """The first prompts of the file, as ids."""
    from prepare import _groups

    found: dict[str, list[int]] = {}
    for prompt, _ in _groups(options.data, "dpo", 2):
        ids = tokenizer(prompt).input_ids
        if options.prompt_tokens:
            ids = tokenizer(prompt * (1 + options.prompt_tokens // len(ids))).input_ids
        found.setdefault(prompt, ids[: options.prompt_tokens or options.max_prompt])
        if len(found) == options.prompts:
            return list(found.values())
    raise SystemExit(f"{options.data}: only {len(found)} different prompts: give less --prompts")


def same_mean(a: list[int], b: list[int]) -> bool:
    """Whether two draws of lengths may have one mean: within three standard errors, or 2 %."""
    gap = abs(statistics.mean(a) - statistics.mean(b))
    error = math.sqrt(sum(statistics.pvariance(x) / len(x) for x in (a, b)))
    return gap <= max(3 * error, 0.02 * statistics.mean(b))


def common_tokens(model: Path, prompts: list[list[int]], mass: float) -> list[int]:
    """Tokens to which the model gives about `mass` together, at the ends of the prompts."""
    import torch
    from transformers import AutoModelForCausalLM

    causal = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        rows = [causal(torch.tensor([ids])).logits[0, -16:].softmax(-1) for ids in prompts[:8]]
    mean = torch.cat(rows).mean(0)
    order = mean.argsort()  # the rarest first, so that no single token decides
    return order[mean[order].cumsum(0) <= mass].tolist()[-2000:]


if __name__ == "__main__":
    sys.exit(main())

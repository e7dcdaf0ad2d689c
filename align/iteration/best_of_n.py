"""`recipes/best_of_n.py`: n answers a prompt, their rewards, and training data of the best."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from align.argument_types import number, whole
from align.config_errors import Failed, UserError
from align.config_rollout import RolloutServer
from align.evaluation.options import add_decoding, decoding_of
from align.evaluation.sampling import Decoding, load_reward
from align.files import fingerprint, write_atomic
from align.iteration.select import (
    PAIRS,
    UNFINISHED,
    Rules,
    Sample,
    best_example,
    curve,
    preference_group,
)
from align.jsonl import write_jsonl
from align.model_safety import allow_as_asked
from align.records import Prompt
from align.run_manifest import same_setup


def best_of_n(
    load: Callable[[], tuple[Any, Any]],
    prompts: Sequence[Prompt],
    reward: Any,
    n: int,
    output: Path,
    *,
    decoding: Decoding | None = None,
    rules: Rules | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
    model: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Sample, score and choose; write samples, sft, preferences, summary.json and report.html.

    load: gives model and tokenizer. model: the name that stands in the candidates. Returns the
    summary. What is on disk from a killed run is not made again.
    """
    from align.iteration.report import write_best_of_n
    from align.iteration.sampling import scored_samples

    rules = rules or Rules()
    output.mkdir(parents=True, exist_ok=True)
    found, too_long = scored_samples(
        load, prompts, reward, n, decoding or Decoding(), output, seed=seed, stop=stop, say=say
    )
    if not found:
        raise Failed("no prompt leaves room for max_new_tokens: lower it, or give shorter prompts")
    used = [p for p in prompts if p.prompt_id in found]
    kept, dropped = _choose(used, found, rules, model)
    for name, records in kept.items():
        write_jsonl(output / f"{name}.jsonl", records)
    summary = {
        "n": n,
        "prompts": len(used),
        "too_long": too_long,
        "sft": {"used": len(kept["sft"]), "dropped": dict(sorted(dropped["sft"].items()))},
        "preferences": {
            "used": len(kept["preferences"]),
            "dropped": dict(sorted(dropped["preferences"].items())),
        },
        "finished": float(np.mean([s.finished for row in found.values() for s in row])),
        "best_of_n": curve(_grid(found)),
        "rules": rules.__dict__,
    }
    write_atomic(output / "summary.json", json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    write_best_of_n(summary, found, used, output / "report.html")
    return summary


def _choose(
    prompts: Sequence[Prompt], found: dict[str, list[Sample]], rules: Rules, model: str | None
) -> tuple[dict[str, list[Any]], dict[str, Counter[str]]]:
    """The records of each file, and why prompts gave none."""
    kept: dict[str, list[Any]] = {"sft": [], "preferences": []}
    dropped: dict[str, Counter[str]] = {"sft": Counter(), "preferences": Counter()}
    for prompt in prompts:
        samples = found[prompt.prompt_id]
        made = {
            "sft": best_example(prompt, samples, rules),
            "preferences": preference_group(prompt, samples, rules, model),
        }
        for name, (record, reason) in made.items():
            if record is None:
                dropped[name][reason] += 1
            else:
                kept[name].append(record)
    return kept, dropped


def _grid(found: dict[str, list[Sample]]) -> np.ndarray:
    return np.array([[s.score for s in row] for row in found.values()])


def table(summary: dict[str, Any]) -> str:
    """The summary as text."""
    lines = [f"{summary['prompts']} prompts, {summary['n']} answers each"]
    if summary["too_long"]:
        lines.append(f"{summary['too_long']} prompts were too long and left out")
    for name in ("sft", "preferences"):
        part = summary[name]
        why = ", ".join(f"{k} {v}" for k, v in part["dropped"].items())
        lines.append(f"{name}.jsonl: {part['used']} records" + (f"; dropped: {why}" if why else ""))
    for point in summary["best_of_n"]:
        if point["n"] in (1, summary["n"]) or point["n"] & (point["n"] - 1) == 0:
            lines.append(
                f"best of {point['n']}: reward {point['value']:.3f} "
                f"[{point['low']:.3f}, {point['high']:.3f}], KL at most {point['kl']:.2f} nats"
            )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Command line of recipes/best_of_n.py."""
    p = argparse.ArgumentParser(
        prog="best_of_n.py",
        description="Sample n answers a prompt, score them, keep the best as training data.",
    )
    add = p.add_argument
    add("--model", required=True, help="run directory or model folder")
    add("--prompts", required=True, help="prompts, JSONL, or a preference or SFT file")
    add("--reward", required=True, help="reward checkpoint, module:function or file.py:function")
    add("--n", type=whole(2), default=8, help="answers a prompt")
    add("--output", required=True, help="folder to write; a run that was killed there goes on")
    add("--pairs", choices=PAIRS, default=PAIRS[0], help="best against worst, or every two")
    add("--min_margin", type=number(0), default=0.0, help="least difference of two rewards")
    add("--min_score", type=float, help="least reward of an answer to imitate")
    add("--unfinished", choices=UNFINISHED, default="lose",
        help="lose: an answer that was cut off is never the better one")  # fmt: skip
    add("--chat_template", help="chatml, zh_instruction, inst or a jinja file")
    add("--seed", type=int, default=0)
    add("--engine", choices=("hf", "vllm_server"), default="hf", help="what samples")
    add("--engine_python", help="vllm_server: bin/python that has vLLM, if not found by itself")
    add_decoding(p)
    p.set_defaults(num_prompts=None)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; 0 when done. UserError is left to the caller."""
    args = parser().parse_args(argv)
    allow_as_asked(args)
    folder = check_options(args)
    from align.checkpoints import run_dir_of
    from align.data.prompts import load_prompts

    prompts = load_prompts(args.prompts, "prompts")[: args.num_prompts]
    decoding = decoding_of(args)
    setup = {
        "model": fingerprint(folder), "prompts": [p.prompt_id for p in prompts], "n": args.n,
        "reward": fingerprint(args.reward) or args.reward, "seed": args.seed,
        "decoding": decoding.to_json(),
    }  # fmt: skip
    setup |= {} if args.engine == "hf" else {"engine": args.engine}
    same_setup(Path(args.output) / "best_of_n.json", setup)
    stack = ExitStack()  # holds a server, where one is started

    def load() -> tuple[Any, Any]:
        from align.checkpoints import load_causal_lm

        loaded = load_causal_lm(folder, chat_template=args.chat_template)
        if args.engine == "hf":
            return loaded
        from align.iteration.hosting import hosted

        server = RolloutServer(python=args.engine_python)
        return stack.enter_context(hosted(loaded, server, Path(args.output)))

    with stack:
        summary = best_of_n(
            load, prompts, load_reward(args.reward), args.n, Path(args.output), decoding=decoding,
            rules=Rules(args.pairs, args.min_margin, args.min_score, args.unfinished),
            seed=args.seed, model=run_dir_of(folder).name,
        )  # fmt: skip
    print(table(summary))
    print(f"\nreport: {Path(args.output) / 'report.html'}")
    return 0


def check_options(args: argparse.Namespace) -> Path:
    """Return the model's folder; UserError for what cannot work, before anything is loaded."""
    if args.seeds != [0]:
        raise UserError("--seeds", args.seeds, "is not an option of this recipe", "Use --seed")
    if args.temperature == 0:
        raise UserError("--temperature", 0, "gives n equal answers", "Use 1.0")
    if Path(args.output).is_file():
        raise UserError("--output", args.output, "is a file", "Give a folder")
    if args.engine != "hf":
        from align.engines.vllm import interpreter

        interpreter(args.engine_python, "--engine_python")
    from align.checkpoints import find_model

    folder = find_model(args.model)
    if not Path(args.prompts).is_file():
        raise UserError("--prompts", args.prompts, "does not exist", "Check the path")
    if not Path(args.reward).exists() and ":" not in args.reward:
        fix = "give a reward checkpoint or module:function"
        raise UserError("--reward", args.reward, "no such folder", fix)
    return folder

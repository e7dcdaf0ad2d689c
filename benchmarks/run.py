"""align against another implementation, on the same model, rows and machine, in one run.

    python benchmarks/run.py --peer trl --method dpo --model PATH --data FILE \
        --rows 128 --batch 4 --max_length 512 [--lora]

Any local causal LM and any file that align's recipes read (for dpo, orpo, reward: prompt, chosen,
rejected; for sft: instruction or messages) can be given. Printed is a markdown table; a row whose
losses do not agree is void. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from comparison import Side, add_common, alternate, report_row, row_of

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

METHODS = ("sft", "dpo", "orpo", "reward", "ppo")
PEERS = {"trl": METHODS, "llamafactory": ("sft", "dpo"), "swift": ("sft", "dpo")}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--peer", choices=PEERS, default="trl")
    made.add_argument("--method", choices=METHODS, required=True)
    made.add_argument("--model", required=True, help="folder of a causal LM")
    made.add_argument("--data", required=True, help="JSONL or JSON")
    made.add_argument("--rows", type=int, default=128, help="rows (ppo: prompts of an update)")
    made.add_argument("--batch", type=int, default=4, help="rows of an optimiser step")
    made.add_argument("--max_length", type=int, default=512)
    made.add_argument("--lora", action="store_true", help="r 16 on all linear layers; else full")
    made.add_argument("--candidates", type=int, default=2, help="reward: ranked answers a prompt")
    made.add_argument("--prompt_repeat", type=int, default=1, help="longer prompts, to see sharing")
    made.add_argument("--reference", choices=["auto", "cached"], default="auto")
    made.add_argument("--learning_rate", type=float, default=1e-5)
    made.add_argument("--peer_python", help="interpreter of the peer's venv")
    made.add_argument("--option", action="append", default=[], metavar="KEY=VALUE",
                      help="another key of align's configuration")  # fmt: skip
    made.add_argument("--new_tokens", type=int, default=64, help="ppo: tokens of a completion")
    made.add_argument("--prompt_tokens", type=int, default=64, help="ppo: tokens of a prompt")
    made.add_argument("--reward_model", help="ppo: folder it starts from; default: --model")
    made.add_argument("--ppo_epochs", type=int, default=4)
    made.add_argument("--updates", type=int, default=2, help="ppo: measured updates")
    add_common(made)
    return made


def main(argv: list[str] | None = None) -> int:
    made = parser()
    options = made.parse_args(argv)
    if options.method not in PEERS[options.peer]:
        able = " or ".join(PEERS[options.peer])
        made.error(f"--method {options.method}: the side of {options.peer} does {able}")
    return report_row(compare, options)


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Prepare, run both sides in turn, return the table's row."""
    if options.method == "ppo":
        from ppo_comparison import compare_ppo

        return compare_ppo(options, folder)
    from floor import step_floor
    from prepare import model_folder, read_rows, write_rows

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = model_folder(options.model, folder / "model", options.method, options.lora)
    rows = read_rows(options.data, options.method, options.rows, tokenizer, options)
    write_rows(rows, options.method, folder)
    print(f"{len(rows.groups)} rows, dropped {rows.dropped or 'none'}", file=sys.stderr)
    steps = len(rows.groups) // options.batch
    if steps < 2:
        raise SystemExit(f"{len(rows.groups)} usable rows make {steps} steps: give more --rows")
    config = folder / "align.yaml"
    config.write_text("policy: {path: null}\n", encoding="utf-8")
    job = {
        "method": options.method, "model": str(folder / "model"), "lora": options.lora,
        "batch": options.batch, "max_length": options.max_length, "steps": steps,
        "learning_rate": options.learning_rate, "dtype": options.dtype,
    }  # fmt: skip
    ours = Side("align", sys.executable, "ours.py", {
        **job, "data": str(folder / "ours.jsonl"), "config": str(config),
        "reference": options.reference,
        "options": dict(word.split("=", 1) for word in options.option),
    })  # fmt: skip
    pairs = options.candidates * (options.candidates - 1) // 2 if options.method == "reward" else 1
    peer = Side(options.peer, peer_python(options), f"{options.peer}_side.py", {
        **job, "data": str(folder / "peer.jsonl"), "accumulate": pairs,
    })  # fmt: skip
    if options.reference == "cached":  # a first run on the same pairs, which fills the cache
        Side("align", ours.python, ours.script, {**ours.job, "steps": 1}).run(
            folder, "first", options.threads
        )
    alternate([ours, peer], folder, options.repeats, options.threads)
    used = rows.tokens[: steps * options.batch]
    useful = sum(sum(c) for _, c in used) / steps
    return row_of(
        options.label or label(options), options.method, ours, peer, useful,
        step_floor(options, folder / "model", used, steps),
    )  # fmt: skip


def label(options: argparse.Namespace) -> str:
    kind = "LoRA" if options.lora else "full"
    more = f", K={options.candidates}" if options.candidates > 2 else ""
    more += ", cached reference" if options.reference == "cached" else ""
    return f"{options.method} {kind}{more}, {Path(options.model).name}, batch {options.batch}"


def peer_python(options: argparse.Namespace) -> str:
    """The peer's interpreter: this one's trl, or a venv that setup_peers.sh made."""
    if options.peer_python:
        return options.peer_python
    if options.peer == "trl" and options.method != "ppo":
        return sys.executable
    name = "trl112" if options.peer == "trl" else options.peer
    python = ROOT / ".venvs" / name / "bin" / "python"
    if not python.is_file():
        raise SystemExit(f"{python} is missing: run  bash benchmarks/setup_peers.sh {name}")
    return str(python)


if __name__ == "__main__":
    sys.exit(main())

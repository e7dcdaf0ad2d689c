"""`recipes/canaries.py plant|measure`: does a model give away what it was trained on?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.argument_types import whole
from align.checkpoints import find_model, load_causal_lm, run_dir_of
from align.config_errors import NO_VALUE, UserError
from align.files import write_atomic
from align.model_safety import add_options, allow_as_asked
from align.redteam.canary_plant import FORMATS, Planted, kind_of, make, write


def parser() -> argparse.ArgumentParser:
    """Command line of recipes/canaries.py."""
    p = argparse.ArgumentParser(
        prog="canaries.py",
        description="Plant made-up secrets in training data; later, measure how many bits of them "
        "a model has kept.",
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="plant|measure")
    q = commands.add_parser("plant", help="write the data with canaries, and canaries.json")
    q.add_argument("--input", required=True, help="SFT .jsonl, {'text'} .jsonl or .txt")
    q.add_argument("--output", required=True, help="file to write: the data with the canaries")
    q.add_argument("--canaries", help="default: OUTPUT with .canaries.json for its suffix")
    q.add_argument("--count", type=whole(1), default=8, help="canaries for each number of repeats")
    q.add_argument("--repeats", type=_repeats, default=[0, 1, 4, 16],
                   help="times that canaries occur; 0: controls, not planted")  # fmt: skip
    q.add_argument("--languages", type=_languages, default=["zh", "en"], help="zh,en")
    q.add_argument("--digits", type=whole(2, 9), default=6, help="the space is 10^digits")
    q.add_argument("--seed", type=int, default=0)
    q.add_argument("--overwrite", action="store_true", help="replace files that exist")
    m = commands.add_parser("measure", help="exposure and extraction of planted canaries")
    m.add_argument("--model", required=True, help="run directory, model folder or LoRA adapter")
    m.add_argument("--canaries", required=True, help="canaries.json of `plant`")
    m.add_argument("--reference", help="a model that has not seen the data")
    m.add_argument("--max_candidates", type=whole(3), default=1000,
                   help="other secrets a canary is compared with; all: exact")  # fmt: skip
    m.add_argument("--seed", type=int, default=0, help="draws the candidates")
    m.add_argument("--batch_size", type=whole(1), default=16)
    m.add_argument("--chat_template", help="chatml, zh_instruction, inst or a jinja file")
    m.add_argument("--max_exposure", type=float,
                   help="exit code 1 above this mean exposure of what was planted")  # fmt: skip
    m.add_argument("--max_extracted", type=float,
                   help="exit code 1 above this share of planted secrets said")  # fmt: skip
    m.add_argument("--output", help="folder to write (default: canaries/ in the run directory)")
    add_options(m)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Plant or measure: 0 done, 1 a threshold failed. UserError is left to the caller."""
    args = parser().parse_args(argv)
    return _plant(args) if args.command == "plant" else _measure(args)


def _plant(args: argparse.Namespace) -> int:
    output = Path(args.output)
    default = output.with_suffix(".canaries.json")
    file = Path(args.canaries) if args.canaries else default
    if output.resolve() in (Path(args.input).resolve(), file.resolve()):
        raise UserError(
            "--output", args.output, "is another file of this command", "Name a new one"
        )
    for option, path in (("--output", output), ("--canaries", file)):
        if path.is_dir():
            raise UserError(option, str(path), "is a folder", "Give a file")
        if path.exists() and not args.overwrite:
            raise UserError(option, str(path), "exists", "Add --overwrite, or name another")
    if Path(args.input).is_file() and kind_of(Path(args.input)) != (
        "text" if output.suffix in (".txt", ".text", ".md") else kind_of(Path(args.input))
    ):
        raise UserError("--output", args.output, "has another suffix than --input", "Use the same")
    canaries = make(args.count, args.repeats, args.languages, args.digits, args.seed)
    planted = write(args.input, output, file, canaries, args.digits, args.seed)
    rows = sum(c.repeats for c in canaries)
    print(f"{output}: {rows} rows of {sum(c.repeats > 0 for c in canaries)} canaries planted "
          f"({planted.kind})")  # fmt: skip
    print(f"{file}: {len(canaries)} canaries, 10^{args.digits} secrets")
    return 0


def _measure(args: argparse.Namespace) -> int:
    allow_as_asked(args)
    path = find_model(args.model, "--model")
    reference = find_model(args.reference, "--reference") if args.reference else None
    planted = Planted.load(args.canaries)
    from align.redteam import canary_measure as work

    work.check_room(planted, args.max_candidates)
    if args.output and Path(args.output).is_file():
        raise UserError("--output", args.output, "is a file", "Give a folder")
    number = min(args.max_candidates, planted.space - 1)
    print(f"[align] {len(planted.canaries)} canaries × {number} other secrets", flush=True)

    def measured(folder: Path, field: str) -> list[dict[str, Any]]:
        model, tokenizer = load_causal_lm(
            folder, chat_template=args.chat_template, need_template=planted.kind == "chat",
            field=field,
        )  # fmt: skip
        return work.measure_canaries(
            model, tokenizer, planted, max_candidates=args.max_candidates, seed=args.seed,
            batch_size=args.batch_size,
        )  # fmt: skip

    rows = measured(path, "--model")
    if reference is not None:
        work.add_reference(rows, measured(reference, "--reference"))
    result = {
        "model": str(path), "reference": reference and str(reference), "kind": planted.kind,
        "space": planted.space, "max_exposure": float(planted.digits) * 3.321928094887362,
        "expected_by_chance": work.EXPECTED, "candidates": number,
        "summary": work.summarise(rows), "canaries": rows,
    }  # fmt: skip
    failed = thresholds(result, args.max_exposure, args.max_extracted)
    folder = Path(args.output) if args.output else run_dir_of(path) / "canaries"
    _write(folder, result)
    print(table(result))
    print(f"\nreport: {folder / 'report.html'}")
    for sentence in failed:
        print(f"failed: {sentence}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def thresholds(
    result: dict[str, Any], max_exposure: float | None, max_extracted: float | None
) -> list[str]:
    """Sentences about the thresholds that planted canaries fail; controls do not count."""
    planted = [r for r in result["canaries"] if r["repeats"] > 0]
    if not planted:
        if max_exposure is not None or max_extracted is not None:
            raise UserError("--canaries", NO_VALUE, "were all not planted (repeats 0)",
                            "Leave the thresholds out")  # fmt: skip
        return []
    failed, checks = [], []
    for name, limit, key in (
        ("max_exposure", max_exposure, "exposure"), ("max_extracted", max_extracted, "extracted")
    ):  # fmt: skip
        if limit is None:
            continue
        value = sum(r[key] for r in planted) / len(planted)
        checks.append({"name": name, "max": limit, "value": value, "passed": value <= limit})
        if value > limit:
            failed.append(f"mean {key} {value:.3f} of {len(planted)} planted canaries is above "
                          f"--{name} {limit:g}")  # fmt: skip
    result["thresholds"] = checks
    return failed


def table(result: dict[str, Any]) -> str:
    """The short table that the recipe prints."""
    lines = [("repeats", "language", "canaries", "exposure, bits", "extracted", "gain, bits")]
    for s in result["summary"]:
        e, gain = s["exposure"], s.get("gain")
        lines.append((
            str(s["repeats"]), s["language"], str(s["canaries"]),
            f"{e['value']:.2f} [{e['low']:.2f}, {e['high']:.2f}]",
            f"{s['extracted']['n']}/{s['canaries']}",
            f"{gain['value']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]" if gain else "-",
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in lines) for i in range(6)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in lines
    )


def _write(folder: Path, result: dict[str, Any]) -> None:
    from align.report.canaries import write_canaries

    text = json.dumps(result, ensure_ascii=False, indent=1) + "\n"
    write_atomic(folder / "canaries.json", text)
    write_canaries(result, folder / "report.html")


def _repeats(text: str) -> list[int]:
    values = sorted({whole(0, 10**6)(part) for part in text.strip("[] ").split(",")})
    if not values:
        raise argparse.ArgumentTypeError("is empty")
    return values


def _languages(text: str) -> list[str]:
    names = [part.strip() for part in text.strip("[] ").split(",") if part.strip()]
    if not names or not set(names) <= set(FORMATS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {', '.join(FORMATS)}")
    return list(dict.fromkeys(names))

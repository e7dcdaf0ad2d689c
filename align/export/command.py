"""Command line of recipes/export_model.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.argument_types import whole
from align.config_errors import UserError
from align.export import formats, quantised_options
from align.export.hf import (
    DTYPES,
    SHARD,
    check_causal,
    check_output,
    check_shard_size,
    export,
    export_checkpoint,
)
from align.model_safety import add_options, allow_as_asked
from align.run_manifest import read_manifest

PARITY = 32


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    p = argparse.ArgumentParser(
        prog="export_model.py",
        description="Write a finished model as what servers read.",
        epilog="forms:\n" + formats.help_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="run directory, model folder or LoRA adapter")
    source.add_argument("--checkpoint", help="checkpoint-N of a run, whatever it was launched with")
    source.add_argument(
        "--adapters", nargs="+", metavar="NAME=PATH",
        help="with --to adapter: LoRA runs on one base, served by these names",
    )  # fmt: skip
    p.add_argument(
        "--to", nargs="+", choices=formats.FORMATS, default=["hf"], metavar="FORM",
        help=f"one or several of {' '.join(formats.FORMATS)} (default: hf)",
    )  # fmt: skip
    p.add_argument(
        "--output",
        help="folder to write, with one folder a form in it where --to names several; default: "
        "RUN/export/FORM, or FOLDER-export/FORM beside a model folder",
    )
    p.add_argument("--dtype", choices=DTYPES, help="default: as stored")
    p.add_argument("--chat_template", help="chatml, zh_instruction, inst or a jinja file")
    p.add_argument(
        "--max_shard_size", default=SHARD, help=f"of one weights file (default: {SHARD})"
    )
    p.add_argument(
        "--parity", type=whole(0), default=PARITY, metavar="N",
        help=f"conversations in parity.jsonl, which check_server.py reads (default: {PARITY})",
    )  # fmt: skip
    p.add_argument("--license", help="of the model card: an SPDX id, or any name")
    p.add_argument("--language", nargs="+", help="of the model card: zh en …")
    p.add_argument("--datasets", nargs="+", metavar="ID", help="of the model card: hub ids")
    p.add_argument("--base", help="hub id or path that names the base of a card or an adapter")
    p.add_argument("--overwrite", action="store_true", help="replace a non-empty output")
    quantised_options.add(p)
    add_options(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Export from the command line; 0 when done. UserError is left to the caller."""
    args = parser().parse_args(argv)
    allow_as_asked(args)
    given = args.checkpoint or args.model
    if args.adapters is not None:
        return _adapters(args)
    args.run = formats.run_of(given)
    places = formats.places(args.to, given, args.output)
    source = _check(args, places)
    for name, output in places.items():
        _write(name, source, output, args)
    return 0


def _check(args: argparse.Namespace, places: dict[str, Path]) -> Path:
    """Refuse what cannot be written in any of the forms, before the first is."""
    from align.checkpoints import find_model

    source = Path(args.checkpoint) if args.checkpoint else find_model(args.model)
    check_shard_size(args.max_shard_size)
    check_causal(source)
    reward = bool(args.checkpoint) and read_manifest(args.run or source).get("method") == "reward"
    if reward and args.to != ["hf"]:
        reason = "is for causal models, and this is a reward model's checkpoint"
        raise UserError("to", " ".join(args.to), reason, "Leave it out")
    for name, output in places.items():
        check_output(source, output, args.overwrite)
        if name == "adapter":
            from align.export.adapter import find_adapter

            if args.checkpoint:
                raise UserError(
                    "to", "adapter", "needs a finished run: a checkpoint holds no peft folder",
                    "Give --model RUN, or --to hf",
                )  # fmt: skip
            find_adapter(args.model)
        elif formats.FORMATS[name].module == "quantised":
            from align.export import quantised

            quantised.check(name, source, args)
    return source


def _write(name: str, source: Path, output: Path, args: argparse.Namespace) -> None:
    """Write one form and say what came of it."""
    if name == "hf":
        make = export if args.checkpoint is None else export_checkpoint
        report = make(
            source, output, dtype=args.dtype, overwrite=args.overwrite, parity=args.parity,
            chat_template=args.chat_template, max_shard_size=args.max_shard_size, run=args.run,
            card=_card(args),
        )  # fmt: skip
        _say(output, report)
    elif name == "adapter":
        from align.export.adapter import export_adapter

        report = export_adapter(
            args.model, output, base=args.base, overwrite=args.overwrite, license=args.license,
            language=args.language, chat_template=args.chat_template, parity=args.parity,
        )  # fmt: skip
        _say(output, report)
    else:
        from align.export.quantised import export_quantised

        export_quantised(name, source, output, args)


def _card(args: argparse.Namespace) -> dict[str, Any]:
    checkpoint = Path(args.checkpoint).name if args.checkpoint else None
    return {"license": args.license, "language": args.language, "base": args.base,
            "datasets": args.datasets, "checkpoint": checkpoint}  # fmt: skip


def _adapters(args: argparse.Namespace) -> int:
    """Several adapters on one base, as one folder that a server offers by name."""
    if args.to != ["adapter"]:
        fix = "Write --to adapter, or export each run by itself"
        raise UserError("adapters", args.adapters, "are for --to adapter alone", fix)
    if args.output is None:
        raise UserError("output", None, "is needed with --adapters", "Name the folder to write")
    from align.export.adapters import export_adapters

    report = export_adapters(
        args.adapters, args.output, base=args.base, overwrite=args.overwrite, license=args.license,
        language=args.language, parity=args.parity,
    )  # fmt: skip
    _say(Path(args.output), report)
    return 0


def _say(output: Path, report: dict[str, Any]) -> None:
    """What was written, and what its user must know."""
    if "rank" in report:
        said = f"LoRA of rank {report['rank']} on {report['base']}"
    elif "parameters" in report:
        said = f"{report['parameters']:,} parameters, {report['dtype']}, stop ids "
        said += str(report["stop_ids"])
    else:
        print(f"{output}: a reward model without a contract, {report['dtype']}")
        return
    print(f"{output}: {said}, largest logit difference {report['max_logit_difference']:.1e}")
    for note in report["notes"]:
        print(f"{output}: {note}")

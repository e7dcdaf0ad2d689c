"""Command line of recipes/export_model.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from align.export import quantised_options
from align.export.hf import DTYPES, export, export_checkpoint
from align.model_safety import add_options, allow_as_asked


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    p = argparse.ArgumentParser(
        prog="export_model.py", description="Merge, cast and write a model that servers read."
    )
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="run directory, model folder or LoRA adapter")
    source.add_argument("--checkpoint", help="checkpoint-N of a run, whatever it was launched with")
    p.add_argument("--output", required=True, help="folder to write")
    p.add_argument("--dtype", choices=DTYPES, help="default: as stored")
    p.add_argument("--chat_template", help="chatml, zh_instruction, inst or a jinja file")
    p.add_argument("--overwrite", action="store_true", help="replace a non-empty output")
    p.add_argument("--to", nargs="+", default=["hf"], choices=("hf", *quantised_options.FORMS))
    quantised_options.add(p)
    add_options(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Export from the command line; 0 when done. UserError is left to the caller."""
    args = parser().parse_args(argv)
    allow_as_asked(args)
    if args.to != ["hf"]:
        from pathlib import Path

        from align.checkpoints import find_model
        from align.export import hf, quantised

        source = Path(args.checkpoint) if args.checkpoint else find_model(args.model)
        hf._check_output(source, Path(args.output), args.overwrite)
        for name in args.to:
            quantised.check(name, source, args)
        for name in args.to:
            folder = Path(args.output) if len(args.to) == 1 else Path(args.output) / name
            quantised.export_quantised(name, source, folder, args)
        return 0
    make = export if args.checkpoint is None else export_checkpoint
    report = make(
        args.checkpoint or args.model, args.output, dtype=args.dtype, overwrite=args.overwrite,
        chat_template=args.chat_template,
    )  # fmt: skip
    if "parameters" not in report:
        print(f"{args.output}: a reward model without a contract, {report['dtype']}")
        return 0
    print(
        f"{args.output}: {report['parameters']:,} parameters, {report['dtype']}, stop ids "
        f"{report['stop_ids']}, largest logit difference {report['max_logit_difference']:.1e}"
    )
    return 0

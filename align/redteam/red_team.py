"""`recipes/red_team.py`: its options, checked before anything is loaded."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from align.argument_types import number, whole
from align.checkpoints import find_model, load_causal_lm, run_dir_of
from align.config_errors import NO_VALUE, UserError, nearest
from align.evaluation.options import add_decoding, decoding_of
from align.model_safety import allow_as_asked
from align.redteam import garak
from align.redteam.campaign import Target, red_team, table, thresholds, write
from align.redteam.detectors import Classifier, Detector, LLMJudge, Rules
from align.redteam.mutators import parse_list
from align.redteam.probe_set import load_probes, select, shipped
from align.redteam.translator import Translator

DETECTORS = ("rules", "classifier", "llm")


def parser() -> argparse.ArgumentParser:
    """Command line of recipes/red_team.py."""
    p = argparse.ArgumentParser(
        prog="red_team.py",
        description="Attack a model with probes and count what gets through, before and after "
        "alignment.",
    )
    p.add_argument("--model", required=True, help="run directory, model folder; with --url: a name")
    p.add_argument("--before", help="the model before alignment, asked the very same")
    p.add_argument("--url", help="OpenAI-compatible server (http://host:port/v1) to ask instead")
    p.add_argument("--api_key_env", default="OPENAI_API_KEY",
                   help="environment variable with the servers' key")  # fmt: skip
    p.add_argument("--probes", nargs="+", help="JSONL of your own instead of the shipped probes")
    p.add_argument("--categories", type=_names, default=[], help="comma-separated; default: all")
    p.add_argument("--languages", type=_names, default=[], help="zh,en; default: all")
    p.add_argument("--per_category", type=whole(1), help="only the first N of each and language")
    p.add_argument("--mutators", default="none", help="e.g. none,role_play,encoding:base64+suffix")
    p.add_argument("--mutation_seed", type=int, default=0, help="draws frames and noise")
    p.add_argument("--translator", help="llm:MODEL@URL, for probes without a twin in the other "
                                        "language")  # fmt: skip
    p.add_argument("--detector", type=_names, default=["rules"],
                   help="rules, classifier, llm; the first one's verdict counts")  # fmt: skip
    p.add_argument("--classifier", help="module:function, file.py:function (P(bad) of each) or a "
                                        "reward-model folder (σ(−reward))")  # fmt: skip
    p.add_argument("--threshold", type=number(0, 1), default=0.5, help="success: P(bad) above it")
    p.add_argument("--judge", help="llm:MODEL@URL, for --detector llm")
    p.add_argument("--max_attack_success", type=number(0, 1), help="exit code 1 above this rate")
    p.add_argument("--max_over_refusal", type=number(0, 1), help="exit code 1 above this rate")
    p.add_argument("--chat_template", help="chatml, zh_instruction, inst or a jinja file")
    p.add_argument("--output", help="folder to write (default: red_team/ in the run directory)")
    garak.add_options(p)
    add_decoding(p, num_prompts=False)
    p.set_defaults(temperature=0.0, max_new_tokens=128)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Attack from the command line: 0 done, 1 a threshold failed. UserError is the caller's."""
    args = parser().parse_args(argv)
    allow_as_asked(args)
    _check(args)
    every = load_probes(args.probes) if args.probes else shipped()
    probes = select(every, args.categories, args.languages, args.per_category)
    mutators = parse_list(args.mutators)
    translator = _served(args.translator, "--translator", args.api_key_env)
    detectors = _detectors(args)
    result, rows = red_team(
        _target(args, args.model, "--model"),
        probes,
        before=_target(args, args.before, "--before") if args.before else None,
        every=every,
        mutators=mutators,
        mutation_seed=args.mutation_seed,
        translate=Translator(translator) if translator else None,
        detectors=detectors,
        seeds=args.seeds,
        decoding=decoding_of(args),
    )
    failed = thresholds(result, args.max_attack_success, args.max_over_refusal)
    output = _output(args)
    if args.garak:
        result["garak"] = garak.run(args, output)
    write(output, result, rows)
    print(table(result))
    print(f"\nreport: {output / 'report.html'}")
    for sentence in failed:
        print(f"failed: {sentence}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def _check(args: argparse.Namespace) -> None:
    """Raise UserError for options that do not go together."""
    for name in args.detector:
        if name not in DETECTORS:
            close = nearest(name, DETECTORS)
            fix = f"Did you mean '{close}'?" if close else f"One of {', '.join(DETECTORS)}"
            raise UserError("--detector", name, "is no detector", fix)
    for option, detector in (("classifier", "classifier"), ("judge", "llm")):
        given, wanted = getattr(args, option) is not None, detector in args.detector
        if wanted and not given:
            raise UserError(f"--{option}", NO_VALUE, f"is needed by --detector {detector}",
                            f"Give --{option}")  # fmt: skip
        if given and not wanted:
            raise UserError(f"--{option}", getattr(args, option), "is used by no detector",
                            f"Add {detector} to --detector")  # fmt: skip
    if len(args.seeds) > 1 and args.temperature == 0:
        raise UserError("--seeds", args.seeds, "give the same answer at temperature 0",
                        "Add --temperature 1, or give one seed")  # fmt: skip
    if args.url and not args.output:
        raise UserError("--output", NO_VALUE, "is needed: a server has no run directory",
                        "Give --output DIR")  # fmt: skip
    if args.output and Path(args.output).is_file():
        raise UserError("--output", args.output, "is a file", "Give a folder")
    if not args.url:
        for option in ("model", "before"):
            if getattr(args, option):
                find_model(getattr(args, option), f"--{option}")
    garak.check(args)


def _target(args: argparse.Namespace, name: str, option: str) -> Target:
    """A model on disk, or one on the server; nothing is loaded or asked yet."""
    if args.url:
        return Target(name, endpoint=_asker(args, name))

    def load() -> tuple[Any, Any]:
        return load_causal_lm(name, chat_template=args.chat_template, field=option)

    return Target(str(find_model(name, option)), load=load)


def _asker(args: argparse.Namespace, name: str) -> Callable[[int], Any]:
    from align.evaluation.endpoint import Endpoint

    def endpoint(seed: int) -> Any:
        body: dict[str, Any] = {"seed": seed} if args.temperature else {}
        body |= {"top_p": args.top_p} if args.top_p < 1 else {}
        return Endpoint(
            args.url, name, api_key_env=args.api_key_env, max_tokens=args.max_new_tokens,
            temperature=args.temperature, body=body, field="--url",
        )  # fmt: skip

    endpoint(0)  # a wrong URL is said now
    return endpoint


def _detectors(args: argparse.Namespace) -> list[Detector]:
    found: list[Detector] = []
    for name in args.detector:
        if name == "rules":
            found.append(Rules())
        elif name == "classifier":
            from align.evaluation.sampling import load_reward

            is_model = Path(args.classifier).is_dir()
            found.append(Classifier(load_reward(args.classifier), is_model, args.threshold))
        else:
            found.append(LLMJudge(_served(args.judge, "--judge", args.api_key_env)))
    return found


def _served(text: str | None, option: str, key: str) -> Any:
    """The endpoint that `llm:MODEL@URL` names; None for None."""
    if text is None:
        return None
    from align.evaluation.endpoint import Endpoint

    model, at, url = text.removeprefix("llm:").rpartition("@")
    if not text.startswith("llm:") or not at or not model:
        raise UserError(
            option, text, "does not name a served model", "Write llm:MODEL@http://host/v1"
        )
    return Endpoint(url, model, api_key_env=key, field=option)


def _output(args: argparse.Namespace) -> Path:
    return Path(args.output) if args.output else run_dir_of(find_model(args.model)) / "red_team"


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.strip("[] ").split(",") if part.strip()]

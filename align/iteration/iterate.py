"""`recipes/iterate.py`: sample, score, choose, train and measure, round by round.

A round is three child processes, each by the recipe or stage that a user could run alone; what has
finished with the same plan is not done again, so a run that was killed goes on where it was.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.config import Config, load_config, parse_argv
from align.config_errors import Failed, StopRequested, UserError
from align.disk import check_writable
from align.files import fingerprint, read_object, whole_folder, write_atomic
from align.iteration import plans
from align.iteration.rounds import decide
from align.jsonl import write_jsonl
from align.report.run import read_lines
from align.run import STOPPED, guarded_once
from align.run_manifest import now, read_manifest, write_manifest

USAGE = """usage: recipes/iterate.py [--config FILE] [--section.key VALUE …]
                          [--print_config] [--dry_run]

Rounds of: sample n answers a prompt from the current policy, score them, train DPO, ORPO or SFT on
the best, measure reward and gold judge on held-out prompts. Ends after iterate.rounds, or when the
judge falls; the best round's policy is train.output_dir/final. Keys: docs/iteration.md."""


def run_iterate(argv: Sequence[str] | None = None) -> int:
    """Run all rounds; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded_once(lambda: _run(words))


def _run(words: list[str]) -> int:
    arguments = parse_argv(words)
    if arguments.help:
        print(USAGE)
        return 0
    config = load_config("iterate", words)
    words = [w for w in words if w not in ("--print_config", "--dry_run")]
    if arguments.print_config:
        print(config.to_yaml(), end="")
        return 0
    plans.check(config, words)
    if arguments.dry_run:
        print(plans.describe(config, words))
        return 0
    from align.prerequisites import prepare

    sampling = plans.as_ppo(config)
    check_writable(Path(config.train.output_dir))
    prepare(sampling)
    return Iteration(config, sampling, words).run()


class Iteration:
    """One run: its folder, and what every round has left in it.

    sampling: the configuration with every `auto` filled in, as PPO reads it.
    """

    def __init__(self, config: Config, sampling: Config, words: Sequence[str]) -> None:
        self.config, self.sampling, self.words = config, sampling, list(words)
        self.output = Path(config.train.output_dir)
        self.settings = config.iterate
        self.first = plans.model_folder(str(sampling.policy.path))
        self.rounds: list[dict[str, Any]] = []

    def run(self) -> int:
        """All rounds that are still to be run; 0."""
        self._begin()
        self._round(0)
        decision = self._decide()
        for number in range(1, self.settings.rounds + 1):
            if decision.reason:
                break
            self._round(number)
            decision = self._decide()
        self._end(decision)
        return 0

    def _begin(self) -> None:
        found = read_manifest(self.output).get("method")
        if found not in (None, "iterate"):
            raise UserError(
                "train.output_dir", str(self.output), f"holds a run of '{found}'",
                "Give another folder",
            )  # fmt: skip
        if plans.judge_of(self.config) in [r.path for r in self.sampling.rewards]:
            print("[iterate] the gold judge is the reward itself: it cannot show over-optimisation")
        self.output.mkdir(parents=True, exist_ok=True)
        write_atomic(self.output / "config.yaml", self.config.to_yaml())
        self.manifest = {"method": "iterate", "finished": False, "started": now(),
                         "argv": ["iterate.py", *self.words]}  # fmt: skip
        write_manifest(self.output, self.manifest)

    def _round(self, number: int) -> None:
        """Train one round (none in round 0) and measure its policy."""
        row: dict[str, Any] = {"round": number, "policy": str(self.first)}
        if number:
            folder = self.output / f"round-{number}"
            summary = self._sample(number, folder)
            policy, row["records"] = self._train(number, folder)
            row["policy"] = str(policy)
            row["sampled"] = {k: summary[k] for k in ("prompts", "finished", "sft", "preferences")}
        folder = self.output / f"round-{number}" / "eval"
        plan = plans.measure_plan(self.config, self.sampling, row["policy"], self.first, folder)
        self._stage("measure", plan, folder, ("measured.json", "samples.jsonl"))
        measured = read_object(folder / "measured.json")
        row |= {k: v for k, v in measured.items() if k != "prompts"}
        self.rounds.append(row)

    def _policy(self, number: int) -> str:
        """What a round begins with: the policy of the round before it."""
        return self.rounds[number - 1]["policy"]

    def _sample(self, number: int, folder: Path) -> dict[str, Any]:
        target = folder / "sample"
        prompts = plans.round_prompts(self.config, self.sampling, number)
        write_jsonl(folder / "prompts.jsonl", prompts)
        plan = plans.sample_plan(
            self.config, self.sampling, self._policy(number), number, folder / "prompts.jsonl",
            target,
        )  # fmt: skip
        self._stage("sample", plan, target, ("summary.json", "sft.jsonl", "preferences.jsonl"))
        summary = read_object(target / "summary.json")
        data = plans.DATA[self.settings.method]
        if not summary[data]["used"]:
            why = ", ".join(f"{k} {v}" for k, v in summary[data]["dropped"].items())
            raise Failed(
                f"round {number}: no prompt gave anything to train on ({why}). Raise iterate.n or "
                "rollout.temperature, lower iterate.min_margin, or raise rollout.max_new_tokens "
                "where answers are cut off (iterate.unfinished: keep)"
            )
        return summary

    def _train(self, number: int, folder: Path) -> tuple[Path, int]:
        """Train a round; return its policy and how many records that was."""
        data, count = self._data(number, folder)
        start = str(self.first) if plans.starts_over(self.config) else self._policy(number)
        target, marker = folder / "train", folder / "train.json"
        argv = plans.train_argv(self.config, self.words, start, data, target)
        plan = {"argv": argv, "data": fingerprint(data), "policy": fingerprint(start)}
        if read_object(marker) != plan:
            # Another plan's checkpoints are no start for this one.
            shutil.rmtree(target, ignore_errors=True)
            write_atomic(marker, json.dumps(plan, ensure_ascii=False, indent=1) + "\n")
        if read_manifest(target).get("finished") and (target / "final").is_dir():
            print(f"[iterate] round {number}: {target} is there", flush=True)
        else:
            method = self.settings.method
            print(f"[iterate] round {number}: {method} on {data}", flush=True)
            self._child("align.run", [method, *argv], f"round {number}: {method}")
        return target / "final", count

    def _data(self, number: int, folder: Path) -> tuple[Path, int]:
        """What a round trains on: its own records, or those of all rounds up to it."""
        name = f"{plans.DATA[self.settings.method]}.jsonl"
        if not plans.starts_over(self.config):
            rows = read_lines(folder / "sample" / name)
            return folder / "sample" / name, len(rows)
        parts = [self.output / f"round-{k}" / "sample" / name for k in range(1, number + 1)]
        count = write_jsonl(folder / name, (row for part in parts for row in read_lines(part)))
        return folder / name, count

    def _stage(self, stage: str, plan: dict[str, Any], folder: Path, made: Sequence[str]) -> None:
        """Run a stage unless it has finished with this plan."""
        plan = plan | {"fingerprints": plans.fingerprints(plan)}
        file, done = folder / "plan.json", folder / "done.json"
        if read_object(done) == plan and all((folder / name).is_file() for name in made):
            print(f"[iterate] {stage}: {folder} is there", flush=True)
            return
        if read_object(file) != plan:
            shutil.rmtree(folder, ignore_errors=True)
            write_atomic(file, json.dumps(plan, ensure_ascii=False, indent=1) + "\n")
        print(f"[iterate] {stage}: {plan['model']}", flush=True)
        self._child("align.iteration.stages", [stage, str(file)], stage)
        write_atomic(done, json.dumps(plan, ensure_ascii=False, indent=1) + "\n")

    def _child(self, module: str, argv: list[str], what: str) -> None:
        from align.child import run_child

        code = run_child(module, argv)
        if code == STOPPED:
            raise StopRequested(f"{what} saved a checkpoint; the same command goes on")
        if code == 2:
            raise UserError("iterate", what, "was refused; see the message above")
        if code != 0:
            raise Failed(f"{what} failed with exit code {code}; the same command goes on there")

    def _decide(self) -> Any:
        """What follows from all rounds so far; rounds.jsonl and the page are brought up to date."""
        from align.iteration.report import write_rounds

        judged = [
            [[float("nan") if x is None else x for x in row] for row in r["judged"]]
            for r in self.rounds
        ]
        stop = self.settings.stop
        decision = decide(judged, patience=stop.patience, min_delta=stop.min_delta)
        if decision.change is not None:
            self.rounds[-1]["change"] = decision.change.to_json()
        kept = [{k: v for k, v in r.items() if k != "judged"} for r in self.rounds]
        write_jsonl(self.output / "rounds.jsonl", kept)
        write_rounds(
            kept, decision.best, decision.reason, self.output / "report.html",
            f"{self.output.name} · {self.settings.method}", self.settings.rounds,
        )  # fmt: skip
        last = self.rounds[-1]
        print(
            f"[iterate] round {last['round']}: reward {last['reward']['value']:.3f}, judge "
            f"{last['judge']['value']:.3f}, best round {decision.best}", flush=True,
        )  # fmt: skip
        return decision

    def _end(self, decision: Any) -> None:
        best = self.rounds[decision.best]
        source, target = Path(best["policy"]), self.output / "final"
        noted = read_object(self.output / "kept.json")
        kept = {"round": decision.best, "fingerprint": fingerprint(source)}
        if noted != kept or not target.is_dir():
            with whole_folder(target) as temporary:
                shutil.copytree(source, temporary, dirs_exist_ok=True)
            write_atomic(self.output / "kept.json", json.dumps(kept) + "\n")
        reason = decision.reason or f"All {self.settings.rounds} rounds were run."
        ended = {
            "finished": True, "ended": now(), "best_round": decision.best, "reason": reason,
            "metrics": {name: best[name]["value"] for name in ("reward", "judge")},
        }  # fmt: skip
        write_manifest(self.output, self.manifest | ended)
        print(f"[iterate] {reason} Round {decision.best} is kept: {target}", flush=True)
        print(f"[iterate] report: {self.output / 'report.html'}", flush=True)

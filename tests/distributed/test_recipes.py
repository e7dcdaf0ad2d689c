"""Every recipe with two processes: the exit code, the world, and the weights of one process.

Two ranks with 4 examples each take the step of one process with 8, under DDP and under ZeRO. The
runs are launched once a module and looked at by several tests.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import launching
import small_runs as runs
from launching import config_file, launch, need
from recipe_launches import METHODS, one, options, two

from align.train.resume import COMPLETE

pytestmark = pytest.mark.distributed
# Plain SGD: a weight's change is the gradient. Four steps; the third of 21 or so is not full.
SGD = ("--train.optim", "sgd", "--train.learning_rate", 0.5, "--train.max_grad_norm", 0,
       "--train.max_steps", 4, *runs.CONSTANT)  # fmt: skip
ADAM = ("--train.max_steps", 4, "--train.save_steps", 2, "--train.resume", "auto", *runs.CONSTANT)
LORA = ("--policy.lora", "{r: 4}")


def start_of(run_dir: Path) -> dict[str, torch.Tensor]:
    """The weights that a run started from."""
    path = yaml.safe_load((run_dir / "config.yaml").read_text())["policy"]["path"]
    return runs.load_file(Path(path) / "model.safetensors")


def apart(a: Path, b: Path) -> float:
    """How far two runs' weights are from each other, as a share of how far they moved."""
    first, second = runs.weights(a), runs.weights(b)
    assert first.keys() == second.keys()
    start = start_of(a)
    moved = [
        x - start[name.partition(":")[2]] if name.partition(":")[2] in start else x
        for name, x in first.items()
    ]
    size = torch.stack([x.norm() for x in moved]).norm()
    assert size > 1e-4
    return float(torch.stack([(first[n] - second[n]).norm() for n in first]).norm() / size)


def close(a: Path, b: Path, *, but: tuple[str, ...] = ()) -> None:
    """Two runs have written the same figures, to 1e-4."""
    first, second = runs.figures(a), runs.figures(b)
    assert len(first) == len(second)
    for x, y in zip(first, second, strict=True):
        kept = [{k: v for k, v in row.items() if k not in but} for row in (x, y)]
        assert kept[0] == pytest.approx(kept[1], abs=1e-4, rel=1e-4)


# DDP, every recipe


@pytest.fixture(scope="module", params=METHODS)
def pair(request, tmp_path_factory):
    """(method, run of two processes, run of one)."""
    method, folder = request.param, tmp_path_factory.mktemp(request.param)
    return (
        method,
        two(method, folder / "two", "cpu2", *SGD),
        one(method, folder / "one", *SGD),
    )


def test_two_processes_take_the_steps_of_one(pair, cell):
    method, both, alone = pair
    assert apart(alone, both) < 2e-5
    close(alone, both)
    cell("matrix", method, "cpu2", runs.trace_difference(alone, both, limit=1e-4))


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(("--pretrain.document_mask", "true", "--pretrain.z_loss", 0.01), id="mask"),
        pytest.param(("--pretrain.streaming", "true"), id="streaming"),
        pytest.param(
            ("--pretrain.arch", "bert", "--policy.path", "null", "--tokenizer.vocab_size", 290),
            id="bert",
        ),
    ],
)
def test_two_processes_pretrain_as_one(tmp_path, extra):
    """A mixture, in the stage's own ways of making rows: no world size changes a step."""
    texts = {}
    for name, line, weight in (
        ("zh", "春天有樱花、桃花、杏花和油菜花，长城很长。", 3),
        ("en", "A spider has eight legs. Leaves fall in autumn.", 1),
    ):
        file = tmp_path / f"{name}.txt"
        file.write_text("".join(f"{i} {line}\n" for i in range(20)), encoding="utf-8")
        texts[str(file)] = weight
    more = (*SGD, "--data.text", json.dumps(texts), "--data.validation_fraction", 0.1, *extra)
    both = two("pretrain", tmp_path / "two", "cpu2", *more)
    alone = one("pretrain", tmp_path / "one", *more)
    if "bert" not in extra:  # whose own folder holds its start
        assert apart(alone, both) < 2e-5
    close(alone, both)


def test_a_tool_runs_once_under_two_processes(tmp_path):
    text = tmp_path / "in.txt"
    text.write_text("房间很干净，早餐也不错。\nA quiet room with a good breakfast.\n" * 2)
    done = launch(
        "recipes/clean_corpus.py",
        ["--input", str(text), "--output", str(tmp_path / "out")],
        config_file("cpu2"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = (tmp_path / "out" / "train-00000.jsonl").read_text().splitlines()
    texts = sorted(json.loads(row)["text"] for row in rows)
    assert texts == ["A quiet room with a good breakfast.", "房间很干净，早餐也不错。"]
    assert done.stdout.count("kept 2 documents") == 1


def test_a_checkpoint_has_the_files_of_both_ranks_and_says_so(pair):
    method, both, _ = pair
    folder = both / "checkpoint-2"
    marker = json.loads((folder / COMPLETE).read_text())
    assert (marker["world_size"], marker["step"]) == (2, 2)
    names = ["rng_state_{}.pth", *(["ppo_state_{}.pt"] if method == "ppo" else [])]
    assert all((folder / name.format(rank)).is_file() for name in names for rank in (0, 1))


def test_every_held_out_prompt_is_sampled_once(pair):
    method, both, alone = pair
    if method != "ppo":
        return
    rows = [
        [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
        for run in (both, alone)
    ]
    texts = [sorted((r["step"], str(r["prompt"]), r["completion"]) for r in x) for x in rows]
    assert texts[0] == texts[1]
    assert len(texts[0]) == len(set(texts[0])) == 15  # five prompts at steps 0, 2 and 4
    assert len({completion for step, _, completion in texts[0] if step == 0}) > 1


# ZeRO

ZERO = {
    # Token budgets that cut the ranks' micro-batches into different numbers of pieces.
    ("zero2", "dpo"): (*ADAM, "--train.max_tokens_per_batch", 150),
    ("zero3", "dpo"): (*ADAM, *LORA, "--train.max_tokens_per_batch", 150),
    ("zero2", "ppo"): (*ADAM, *LORA, "--ppo.critic", "adapter"),
    ("zero3", "ppo"): (*ADAM, "--ppo.score_at", "after_eos",
                       "--train.max_tokens_per_batch", 100),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(ZERO), ids="-".join)
def sharded(request, tmp_path_factory):
    """(stage, method, options, run of two processes, run of one)."""
    stage, method = request.param
    folder, extra = tmp_path_factory.mktemp(f"{stage}-{method}"), ZERO[request.param]
    both = two(method, folder / "two", stage, *extra)
    return stage, method, extra, both, one(method, folder / "one", *extra)


def test_sharded_processes_take_the_steps_of_one(sharded):
    _, _, _, both, alone = sharded
    assert apart(alone, both) < 1e-3  # Adam divides small gradients by small numbers
    close(alone, both, but=("grad_norm_critic",))


def test_final_loads_and_is_what_was_trained(sharded):
    from transformers import AutoModelForCausalLM

    _, method, _, both, _ = sharded
    loaded = AutoModelForCausalLM.from_pretrained(both / "final").state_dict()
    saved = runs.load_file(both / "final" / "model.safetensors")
    start = start_of(both)
    assert all(torch.equal(loaded[n], saved[n]) for n in saved)
    assert any(not torch.equal(saved[n], start[n]) for n in saved)
    assert (both / "final" / "critic").is_dir() is (method == "ppo")


def test_a_sharded_run_resumes_bit_for_bit(sharded, tmp_path):
    stage, method, extra, whole, _ = sharded
    folder = tmp_path / "again"
    folder.mkdir()
    shutil.copytree(whole / "checkpoint-2", folder / "checkpoint-2")
    shutil.copy(whole / "metrics.jsonl", folder)
    # What the first two steps had written.
    two(method, folder, stage, *extra)
    expected, found = runs.weights(whole), runs.weights(folder)
    assert all(torch.equal(expected[n], found[n]) for n in expected)
    assert runs.figures(folder) == runs.figures(whole)


def test_a_sharded_run_is_refused_under_another_launch(sharded, tmp_path):
    stage, method, extra, whole, _ = sharded
    shutil.copytree(whole / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    argv = runs.arguments(tmp_path / "run", "--train.per_device_train_batch_size", 4,
                          *options(method), *extra)  # fmt: skip
    other = "cpu2" if stage == "zero2" else "zero2"
    done = launch(f"recipes/{method}.py", argv, config_file(other))
    assert f"made by 2 process(es), {stage}, with 2 process(es), " in done.stderr
    assert "recipes/export_model.py --checkpoint" in done.stderr
    assert "exitcode  : 2" in done.stderr
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(first, second, tmp_path):
    """The product of micro-batch and processes is the same, so the steps are."""
    launched = {1: lambda *a: one("dpo", *a), 2: lambda folder, *a: two("dpo", folder, "cpu2", *a)}
    steps = (*ADAM, "--train.learning_rate", 1e-3)
    expected = one("dpo", tmp_path / "whole", *steps)
    launched[first](tmp_path / "parts", *steps, "--train.max_steps", 2)
    launched[second](tmp_path / "parts", *steps)
    assert apart(expected, tmp_path / "parts") < 1e-3
    close(expected, tmp_path / "parts")


def test_ppo_is_refused_with_another_number_of_processes(pair, tmp_path):
    method, both, _ = pair
    if method != "ppo":
        return
    shutil.copytree(both / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    argv = runs.arguments(tmp_path / "run", *options("ppo"), *SGD, "--train.resume", "auto")
    done = launch("recipes/ppo.py", argv, config_file("single"))
    assert "made by 2 process(es), no sharding, with 1 process(es)" in done.stderr


def test_sharded_weights_that_become_nan_stop_the_run_before_a_checkpoint(tmp_path):
    need("zero3")
    argv = runs.arguments(
        tmp_path / "run", "--train.learning_rate", 1e30, "--train.max_grad_norm", 0,
        "--train.save_steps", 1, "--train.max_steps", 4, "--train.eval_strategy", "no",
    )  # fmt: skip
    done = launch("recipes/sft.py", argv, config_file("zero3"))
    assert done.returncode == 1
    assert "is not finite" in done.stderr or "the loss is nan" in done.stderr
    assert f"The last good checkpoint is {tmp_path / 'run' / 'checkpoint-1'}" in done.stderr
    assert "loss_spike.action" not in done.stderr  # leaving steps out is not on offer
    assert not (tmp_path / "run" / "checkpoint-2").exists()


def test_a_cache_is_refused_where_weights_are_sharded(tmp_path):
    need("zero3")
    argv = runs.arguments(tmp_path / "run", "--policy.reference", "cached")
    done = launch("recipes/dpo.py", argv, config_file("zero3"))
    assert "policy.reference='cached' cannot be filled while ZeRO-3 or FSDP shards" in done.stderr
    assert "exitcode  : 2" in done.stderr  # the launcher's own exit code is 1


# What a user may do to a launched run


def test_the_obvious_launch_is_refused_with_what_works(tmp_path):
    argv = runs.arguments(tmp_path / "run")
    wrong = ["--cpu", "--num_processes", "2", "--num_machines", "1"]
    done = launch("recipes/dpo.py", argv, wrong)
    assert "was asked for several processes and started one" in done.stderr
    assert "--config_file ds_configs/accelerate_cpu2.yaml" in done.stderr
    assert "returned non-zero exit status 2" in done.stderr  # the launcher's own exit code is 1
    assert done.returncode == 1
    assert not (tmp_path / "run").exists()


def test_sigterm_to_the_launcher_leaves_a_complete_checkpoint(tmp_path):
    need("cpu2")
    folder = tmp_path / "run"
    argv = runs.arguments(folder, "--train.max_steps", 100_000, "--train.save_steps", 100_000,
                          "--train.eval_strategy", "no")  # fmt: skip
    running = subprocess.Popen(
        launching.words("recipes/sft.py", argv, config_file("cpu2")), cwd=launching.ROOT,
        env=launching.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    end = time.monotonic() + 180
    while not (folder / "metrics.jsonl").is_file():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 1  # accelerate 1.15 has no other for a signal
    assert "stopped: SIGTERM; saved" in err
    [saved] = folder.glob("checkpoint-*")
    assert (saved / COMPLETE).is_file()
    assert runs.manifest(folder)["stopped"] is True

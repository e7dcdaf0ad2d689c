"""Quantised forms of a tiny model: made, measured, loaded again, refused over the limit."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import tiny_llama

from align.config_errors import Failed, UserError
from align.export import bnb, measure_rows, quantised
from align.export.command import main

DATA = Path(__file__).parents[2] / "recipes" / "data"
REWARD = f"{DATA / 'smoke_reward.py'}:near_twenty"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_llama.save(tmp_path_factory.mktemp("tiny") / "model")


def words(model: Path, out: Path, form: str, *more: str) -> list[str]:
    return ["--model", str(model), "--output", str(out), "--to", form, "--num_eval", "6",
            "--answer_tokens", "8", "--num_prompts", "3", *more]  # fmt: skip


def form_or_skip(form: str) -> None:
    try:
        bnb.check(form, None) if form in bnb.FORMS else quantised.torchao_int8.check(form, None)
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "form", ["bnb-4bit", pytest.param("bnb-8bit", marks=pytest.mark.slow), "int8"]
)
def test_a_form_is_smaller_loads_and_says_what_it_costs(model, tmp_path, form, capsys):
    form_or_skip(form)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from align.evaluation.perplexity import completion_logps

    out = tmp_path / "out"
    more = ("--eval_data", str(DATA / "sft.jsonl"), "--reward", REWARD, "--max_ppl_increase", "0.2")
    assert main(words(model, out, form, *more)) == 0
    report = json.loads((out / "quantisation.json").read_text(encoding="utf-8"))
    (found,) = report["models"]
    before, after = found["before"], found["after"]
    assert found["quantised"] == 14  # seven projections of two layers
    assert after["disk_bytes"] < 0.7 * before["disk_bytes"]
    assert after["memory_bytes"] < 0.7 * before["memory_bytes"]
    assert before["tokens"] == after["tokens"] > 50
    assert abs(after["perplexity"] / before["perplexity"] - 1) < 0.2
    assert before["perplexity"] != after["perplexity"]
    assert isinstance(after["reward"], float)
    assert report["measured_on"]["reward"] == "smoke_reward.py:near_twenty"
    assert "perplexity" in capsys.readouterr().out
    # What lies on disk is what was measured, for a reader that knows nothing of this package.
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out)
    rows = measure_rows.read(str(DATA / "sft.jsonl"), "f")[:6]
    pairs = measure_rows.encode(tokenizer, rows, 256)
    logps = completion_logps(loaded, [c for c, _ in pairs], [t for _, t in pairs])
    mean = sum(map(sum, logps)) / sum(map(len, logps))
    assert math.exp(-mean) == pytest.approx(after["perplexity"], rel=1e-5)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_over_the_limit_nothing_is_written(model, tmp_path, monkeypatch):
    """A form that destroys the model: its weights are mixed with noise before they are saved."""
    form_or_skip("bnb-8bit")
    written = bnb.write

    def destroyed(form, source, output):
        import torch
        from safetensors.torch import load_file, save_file

        how = written(form, source, output)
        tensors = load_file(output / "model.safetensors")
        torch.manual_seed(0)
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.dim() == 2:
                tensors[name] = tensor + torch.randn_like(tensor)
        save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
        return how

    monkeypatch.setattr(bnb, "write", destroyed)
    out = tmp_path / "out"
    out.mkdir()
    (out / "earlier.txt").write_text("kept")
    more = ("--eval_data", str(DATA / "sft.jsonl"), "--max_ppl_increase", "0.05", "--overwrite")
    with pytest.raises(Failed, match=r"bnb-8bit: perplexity grew from .* allows 5.0%"):
        main(words(model, out, "bnb-8bit", *more))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in out.iterdir()] == ["earlier.txt"]


def test_forms_are_checked_before_anything_is_made(model, tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_ENGINES", str(tmp_path / "none"))
    form_or_skip("bnb-8bit")
    many = [*words(model, tmp_path / "out", "bnb-8bit"), "awq"]
    many.insert(many.index("--num_eval"), many.pop())  # --to bnb-8bit awq
    with pytest.raises(UserError, match=r"--calibration|setup_engine.py llmcompressor"):
        main(many)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("form", "more", "said"),
    [
        ("gguf", (), "cuts text by a pattern that llama.cpp does not know"),
        ("awq", ("--group_size", "48"), "group_size=48 divides not all"),
        ("int8", ("--engine", "gptqmodel"), "makes gptq, not int8"),
        ("int8", ("--reward", "none.py"), "--reward='none.py' does not exist"),
        ("int8", ("--eval_data", "none.jsonl"), "is not a file"),
    ],
)
def test_what_cannot_be_is_said_without_torch(model, tmp_path, form, more, said):
    code = (
        "import sys; from align.run import guarded_once\n"
        "from align.export.command import main\n"
        "code = guarded_once(lambda: main(sys.argv[1:]))\n"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words(model, tmp_path / "out", form, *more)],
        capture_output=True, text=True, cwd=DATA.parents[1],
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert said in done.stderr


def test_code_that_a_run_names_is_not_run(model, tmp_path):
    """A run folder may be somebody else's."""
    form_or_skip("bnb-8bit")
    run = tmp_path / "run"
    shutil.copytree(model, run / "final")
    rewards = [{"kind": "function", "path": REWARD, "weight": 1.0}]
    (run / "config.yaml").write_text(json.dumps({"rewards": rewards}))
    assert main(words(run, tmp_path / "out", "bnb-8bit")) == 0
    report = json.loads((tmp_path / "out" / "quantisation.json").read_text(encoding="utf-8"))
    assert report["models"][0]["after"]["reward"] is None
    assert "if you trust it: --reward" in report["measured_on"]["no_reward"]

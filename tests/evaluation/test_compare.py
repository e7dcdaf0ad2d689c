"""The comparison end to end on tiny random models, and its parts by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import eval_models as tiny

from align.config import UserError
from align.evaluation import compare as cmp
from align.evaluation import evaluate_policy, history, options
from align.evaluation.compare_measure import measure
from align.evaluation.judges import NaiveBayesJudge
from align.records import Message, Prompt


def rewards_file(folder: Path) -> str:
    """A reward that counts characters, as a file:function path."""
    file = folder / "length_reward.py"
    body = "return [len(c) / 10 for c in completions]"
    file.write_text(f"def f(prompts, completions, **kw):\n    {body}\n")
    return f"{file}:f"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict:
    root = tmp_path_factory.mktemp("runs")
    sft, ppo = tiny.save(root / "sft", 0), tiny.save(root / "ppo", 1)
    rows = [
        {"step": 10, "eval_score/mean": 0.1, "eval_kl/sum": 0.5, "score/mean": 9, "kl/sum": 9},
        {"step": 20, "eval_score/mean": 0.2, "eval_kl/sum": 0.9, "time/rollout": 3.0},
        {"step": 20, "time/optimise": 2.0, "num_input_tokens_seen": 1234},
    ]
    (ppo / "metrics.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    prompts = root / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": p}) for p in tiny.PROMPTS), encoding="utf-8")
    judge = root / "judge.json"
    NaiveBayesJudge({"好": 2.0, "差": -2.0}, prior=0.1).save(judge)
    output = root / "cmp"
    argv = [str(sft), str(ppo), "--prompts", str(prompts), "--reward", rewards_file(root),
            "--judge", str(judge), "--seeds", "0,1", "--max_new_tokens", "12", "--output",
            str(output)]  # fmt: skip
    assert cmp.main(argv) == 0
    return {"sft": sft, "ppo": ppo, "prompts": prompts, "output": output, "argv": argv}


def summary(world: dict) -> dict:
    return json.loads((world["output"] / "summary.json").read_text(encoding="utf-8"))


def test_summary_of_two_runs(world):
    s = summary(world)
    sft, ppo = s["runs"]
    assert (s["baseline"], s["num_prompts"], s["seeds"]) == ("sft", 6, [0, 1])
    assert (sft["name"], ppo["name"], ppo["samples"]) == ("sft", "ppo", 12)
    # The baseline against itself: nothing gained, no KL, all ties.
    assert sft["gain"]["value"] == 0
    assert sft["kl"]["value"] == 0
    assert sft["win_rate"] == {"value": 0.5, "low": 0.5, "high": 0.5, "wins": 0, "ties": 12,
                               "losses": 0}  # fmt: skip
    assert ppo["kl"]["value"] > 0
    assert ppo["kl"]["low"] < ppo["kl"]["value"] < ppo["kl"]["high"]
    assert ppo["gain"]["value"] == pytest.approx(ppo["reward"]["mean"] - sft["reward"]["mean"])
    assert 0 < ppo["judge"]["mean"] < 1


def test_trajectory_and_cost_come_from_the_run(world):
    ppo = summary(world)["runs"][1]
    assert ppo["trajectory"] == [
        {"step": 10, "kl": 0.5, "reward": 0.1}, {"step": 20, "kl": 0.9, "reward": 0.2},
    ]  # fmt: skip
    assert (ppo["time_s"], ppo["tokens"]) == (5.0, 1234)


def test_samples_are_paired_and_agree_with_the_summary(world):
    lines = (world["output"] / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    keys = {run: [(r["prompt_id"], r["seed"]) for r in rows if r["run"] == run]
            for run in ("sft", "ppo")}  # fmt: skip
    assert keys["sft"] == keys["ppo"]
    assert len(set(keys["sft"])) == 12
    mean = sum(r["score"] for r in rows if r["run"] == "ppo") / 12
    assert summary(world)["runs"][1]["reward"]["mean"] == pytest.approx(mean)
    assert all(r["score"] == pytest.approx(len(r["completion"]) / 10) for r in rows)


def test_kl_of_the_samples_matches_the_models_one_row_at_a_time(world):
    """An independent sum of log-ratios, without batching or padding."""
    import torch

    from align.checkpoints import load_causal_lm
    from align.evaluation.sampling import Decoding, sample

    prompts = [Prompt((Message("user", "写一条好评"),))]
    base, _ = load_causal_lm(world["sft"])
    model, tok = load_causal_lm(world["ppo"])
    m = measure("ppo", world["ppo"], (model, tok), (base, tok), prompts, [3],
                Decoding(max_new_tokens=6), _ones)  # fmt: skip
    out = sample(model, tok, prompts, [3], Decoding(max_new_tokens=6))
    assert out.completions == m.outputs.completions
    ids = torch.tensor([out.prompt_ids[0] + out.completions[0]])
    at = range(len(out.prompt_ids[0]), ids.shape[1])
    logps = [torch.log_softmax(x(ids).logits[0].double(), -1) for x in (model, base)]
    ratio = sum(float(logps[0][i - 1, ids[0, i]] - logps[1][i - 1, ids[0, i]]) for i in at)
    assert m.kl[0] == pytest.approx(ratio, abs=1e-4)


def _ones(prompts, completions, finished):
    return [1.0] * len(completions)


def test_same_arguments_give_the_same_figures(world, tmp_path):
    argv = [*world["argv"][:-1], str(tmp_path)]
    assert cmp.main(argv) == 0
    again = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    first = summary(world)
    again.pop("created")
    first.pop("created")
    assert again == first


def test_report_is_one_offline_page(world):
    html = (world["output"] / "report.html").read_text(encoding="utf-8")
    assert "Reward against KL" in html
    assert "https://" not in html
    assert "src=" not in html
    assert len(html) < 300_000


def test_another_tokenizer_has_no_kl_but_a_likelihood(world, tmp_path):
    other = tmp_path / "dpo"
    tiny.save(other, 2)
    tiny.tokenizer("zh_instruction").save_pretrained(other / "final")
    s = cmp.compare([other], world["sft"], [Prompt((Message("user", "早餐"),))],
                    _Named(), None, [0], cmp.Decoding(max_new_tokens=5), tmp_path / "o",
                    progress=lambda _: None)  # fmt: skip
    dpo = s["runs"][1]
    assert dpo["kl"] is None
    assert dpo["nll_baseline"]["per_token"] > 0
    assert "another tokenizer" in " ".join(s["notes"])


class _Named:
    name = "ones"

    def __call__(self, prompts, completions, finished):
        return [1.0] * len(completions)


def test_too_long_prompts_are_counted_and_none_left_is_an_error(world, tmp_path):
    long = Prompt((Message("user", "好" * 200),))
    short = Prompt((Message("user", "好"),))
    s = cmp.compare([world["ppo"]], world["sft"], [long, short], _Named(), None, [0],
                    cmp.Decoding(max_new_tokens=5), tmp_path, progress=lambda _: None)  # fmt: skip
    assert s["dropped"] == {"prompt_too_long": 1}
    assert s["num_prompts"] == 1
    with pytest.raises(UserError, match="no prompt leaves room"):
        cmp.compare([world["ppo"]], world["sft"], [long], _Named(), output=tmp_path)


def test_run_names_are_short_and_distinct(tmp_path):
    paths = [tmp_path / "a" / "sft" / "final", tmp_path / "a" / "ppo" / "final"]
    assert cmp.run_names(paths) == ["sft", "ppo"]
    paths = [tmp_path / "a" / "ppo" / "final", tmp_path / "b" / "ppo" / "final"]
    assert cmp.run_names(paths) == ["a/ppo", "b/ppo"]
    with pytest.raises(UserError, match="twice"):
        cmp.run_names([paths[0], paths[0]])


def test_wrong_input_is_a_user_error(world, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        cmp.main([str(tmp_path / "none")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no model"):
        cmp.main([str(tmp_path / "empty")])
    with pytest.raises(UserError, match="--prompts is needed"):
        cmp.main([str(world["sft"]), str(world["ppo"])])
    with pytest.raises(UserError, match="reward"):
        cmp.main([str(world["sft"]), "--prompts", str(world["prompts"]), "--reward", "nothing"])


def test_options_come_from_a_runs_config(tmp_path):
    (tmp_path / "p.jsonl").write_text("{}")
    text = f"eval: {{prompts: {tmp_path}/p.jsonl}}\nrewards: [{{kind: function, path: 'm:f'}}]\n"
    (tmp_path / "config.yaml").write_text(text)
    assert options.from_runs([tmp_path], ["eval.prompts"], "prompts") == f"{tmp_path}/p.jsonl"
    with pytest.raises(UserError, match="names code or a server"):  # which a folder may not start
        options.from_runs([tmp_path], ["rewards"], "reward")
    assert options.seeds("3,1") == [3, 1]


def test_training_logs_serve_as_trajectory_only_without_evaluations(tmp_path):
    rows = [{"step": 1, "score/mean": 0.5, "kl/sum": 0.0}, {"step": 2, "score/mean": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + "\n{")
    assert history.trajectory(tmp_path) == [{"step": 1, "kl": 0.0, "reward": 0.5}]
    assert history.cost(tmp_path) == {
        "time_s": None, "tokens": None, "method": None, "peak_memory_mb": None,
    }  # fmt: skip


def test_evaluate_policy_end_to_end(world, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("房间很干净。\n\nThe room was clean.\n", encoding="utf-8")
    code = evaluate_policy.main([
        "--model", str(world["ppo"]), "--prompts", str(world["prompts"]), "--texts", str(texts),
        "--reward", rewards_file(tmp_path), "--max_new_tokens", "8",
        "--output", str(tmp_path / "e"),
    ])  # fmt: skip
    assert code == 0
    result = json.loads((tmp_path / "e" / "evaluation.json").read_text(encoding="utf-8"))
    assert result["perplexity"]["texts"] == 2
    assert result["num_prompts"] == 6
    assert result["generation"]["score"]["mean"] > 0
    assert result["generation"]["length_tokens"] <= 8
    assert (tmp_path / "e" / "report.html").is_file()
    assert "report:" in capsys.readouterr().out
    with pytest.raises(UserError, match="both missing"):
        evaluate_policy.evaluate(world["ppo"])

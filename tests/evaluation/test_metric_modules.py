"""`evaluate.load` by path: offline, from another folder, by two processes with uneven shares."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import eval_models as tiny

from align.evaluation import metrics
from align.evaluation.perplexity import perplexity

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "align" / "evaluation" / "metrics"
NAMES = sorted(p.name for p in FOLDER.iterdir() if (p / f"{p.name}.py").is_file())
TEXTS = ["我爱北京天安门", "the cat sat on the mat", "好", "房间很干净，服务很好", "It rained."]
REFS = ["我爱天安门", "a cat sat on a mat", "很好", "房间干净，服务好", "It rained all day."]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """The copies that `evaluate` makes of the scripts: away from the user's, and found before."""
    folder = tmp_path_factory.mktemp("modules")
    for name in [n for n in sys.modules if n.split(".")[0] == "evaluate_modules"]:
        del sys.modules[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(folder))
        patch.syspath_prepend(str(folder))
        yield folder


def load(name, **options):
    return evaluate.load(str(FOLDER / name), **options)


def test_there_is_a_module_of_each_kind():
    assert NAMES == [
        "bleu", "calibration", "chrf", "distinct_n", "eos_rate", "exact_match", "f1",
        "kl_to_reference", "length", "perplexity", "repetition", "reward", "rouge", "self_bleu",
    ]  # fmt: skip


def test_text_modules_give_what_the_functions_give():
    rouge = metrics.rouge(TEXTS, REFS, tokenizer="char")
    found = load("rouge").compute(predictions=TEXTS, references=REFS, tokenizer="char")
    assert found == pytest.approx({k: sum(v) / 5 for k, v in rouge.items()}, abs=1e-12)
    lists = load("rouge").compute(
        predictions=TEXTS, references=[[r] for r in REFS], tokenizer="char", use_aggregator=False
    )
    assert lists == rouge
    assert load("bleu").compute(predictions=TEXTS, references=REFS) == metrics.bleu(TEXTS, REFS)
    assert load("chrf").compute(predictions=TEXTS, references=REFS) == metrics.chrf(TEXTS, REFS)
    found = load("f1").compute(predictions=["我爱北京"], references=["我爱你"])
    assert found == {"f1": pytest.approx(4 / 7), "exact_match": 0.0}
    exact = load("exact_match")
    assert exact.compute(predictions=["A.", "b"], references=["a", "b"]) == {"exact_match": 0.5}
    options = {"ignore_case": True, "ignore_punctuation": True}
    assert exact.compute(predictions=["A."], references=["a"], **options) == {"exact_match": 1.0}
    assert load("distinct_n").compute(predictions=["a b a b c"], n=2) == {"distinct_2": 0.75}
    assert load("self_bleu").compute(predictions=["你好世界", "你好世界"]) == {"self_bleu": 1.0}
    found = load("repetition").compute(predictions=["天地人和天地人和", "短"])
    assert found == {"repetition_4": pytest.approx(0.1)}
    assert load("length").compute(predictions=["好 good", ""]) == {
        "length_units": 1.0, "length_chars": 3.0,
    }  # fmt: skip
    with_tokens = load("length").compute(predictions=["好"], tokenizer=tiny.tokenizer())
    assert with_tokens["length_tokens"] >= 1


def test_flags_ids_and_probabilities():
    eos = load("eos_rate")
    found = eos.compute(predictions=[[5, 0], [6, 7], [], [3]], eos_token_id=[0, 3])
    assert found == {"eos_rate": 0.5}
    assert load("eos_rate").compute(predictions=[1, 0, 0, 0]) == {"eos_rate": 0.25}
    found = load("calibration").compute(predictions=[0.9, 0.2], references=[1, 0])
    assert found == {"ece": pytest.approx(0.15), "brier": pytest.approx(0.025)}


def test_kl_of_given_log_probabilities_by_hand():
    found = load("kl_to_reference").compute(
        predictions=[[-1.0, -2.0], [-0.5]], references=[[-1.5, -1.0], [-0.5]]
    )
    # log-ratios 0.5, −1, 0: sums −0.5 and 0
    k3 = (math.exp(-0.5) - 1 + 0.5 + math.e - 1 - 1) / 3
    assert found == {
        "kl": pytest.approx(-0.25), "kl_per_token": pytest.approx(-0.5 / 3),
        "k3_per_token": pytest.approx(k3),
    }  # fmt: skip


def test_models_by_folder_and_in_memory(tmp_path):
    folder = tiny.save(tmp_path / "run", 3)
    words, texts = tiny.tokenizer(), ["房间很干净。", "The room was clean."]
    by_folder = load("perplexity").compute(predictions=texts, model=str(folder))
    loaded = (tiny.gpt2(3), words)
    in_memory = load("perplexity").compute(predictions=texts, model=loaded)
    assert by_folder == pytest.approx(in_memory)
    assert in_memory == pytest.approx(perplexity(*loaded, texts).to_json())
    same = load("kl_to_reference").compute(
        predictions=["好"], references=["房间"], model=str(folder), reference=loaded
    )
    assert same["kl"] == pytest.approx(0, abs=1e-5)
    assert same["k3_per_token"] == pytest.approx(0, abs=1e-6)
    other = load("kl_to_reference").compute(
        predictions=["好"], references=["房间"], model=loaded, reference=(tiny.gpt2(4), words)
    )
    assert abs(other["kl"]) > 0.01
    with pytest.raises(ValueError, match="other tokenizers"):
        load("kl_to_reference").compute(
            predictions=["好"], references=["房间"], model=loaded,
            reference=(tiny.gpt2(4), tiny.tokenizer("inst")),
        )  # fmt: skip


def test_reward_of_a_function():
    def score(prompts, completions, finished):
        assert prompts[0][0].content == "房间"
        return [float(len(c)) for c in completions]

    found = load("reward").compute(
        predictions=["好", "很好很"], references=["房间", "x"], reward=score
    )
    assert (found["mean"], found["std"], found["min"]) == (2.0, 1.0, 1.0)
    assert found["scores"] == [1.0, 3.0]


WORKER = """
import json, sys
import evaluate
folder, cache, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
texts, refs = json.loads(sys.argv[4])
mine = slice(0, 3) if rank == 0 else slice(3, 5)
out = {}
for name, options in (("rouge", {"tokenizer": "char"}), ("bleu", {}), ("chrf", {}), ("f1", {}),
                      ("exact_match", {}), ("distinct_n", {}), ("repetition", {}), ("length", {})):
    metric = evaluate.load(f"{folder}/{name}", num_process=2, process_id=rank, cache_dir=cache,
                           experiment_id="two")
    given = {"predictions": texts[mine]}
    if name in ("rouge", "bleu", "chrf", "f1", "exact_match"):
        given["references"] = refs[mine]
    metric.add_batch(**given)
    out[name] = metric.compute(**options)
print("FOUND", json.dumps(out))
"""


@pytest.mark.distributed
def test_two_processes_find_what_one_does(tmp_path):
    """Uneven shares (3 and 2), started at once from another folder, offline, with a fresh cache."""
    env = os.environ | {
        "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    words = [sys.executable, "-c", WORKER, str(FOLDER), str(tmp_path / "cache")]
    given = json.dumps([TEXTS, REFS], ensure_ascii=False)
    started = [
        subprocess.Popen(
            [*words, str(rank), given], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    found = [json.loads(text.split("FOUND ", 1)[1]) for text in said]
    assert set(found[1].values()) == {None}  # gathered once, on the first
    for name, figures in found[0].items():
        given = {"predictions": TEXTS}
        if name in ("rouge", "bleu", "chrf", "f1", "exact_match"):
            given["references"] = REFS
        alone = load(name).compute(**given, **({"tokenizer": "char"} if name == "rouge" else {}))
        assert figures == json.loads(json.dumps(alone)), name

"""Planting canaries and measuring them: on data, on tiny models, from the command line."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "evaluation"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "train"))
import eval_models

from align.config_errors import UserError
from align.data.corpus import iter_texts
from align.data.sft import load_sft
from align.redteam import canaries, canary_measure, canary_plant
from align.redteam.exposure import EXPECTED, expected_exposure
from align.report.canaries import write_canaries

CHAT = [{"messages": [{"role": "user", "content": f"问题{i}"},
                      {"role": "assistant", "content": f"答 {i}"}]} for i in range(20)]  # fmt: skip


@pytest.fixture
def sft(tmp_path):
    file = tmp_path / "sft.jsonl"
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in CHAT), "utf-8")
    return file


def plant(source, output, *words):
    code = canaries.main(["plant", "--input", str(source), "--output", str(output), *words])
    return code, canary_plant.Planted.load(str(output.with_suffix(".canaries.json")))


def test_rows_are_kept_and_canaries_occur_as_often_as_they_should(sft, tmp_path):
    out = tmp_path / "out.jsonl"
    code, planted = plant(sft, out, "--count", "4", "--repeats", "0,1,3")
    assert code == 0
    lines = out.read_text(encoding="utf-8").splitlines()
    own = sft.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line in set(own)] == own  # as they were, in their order
    assert len(lines) == 20 + 4 * 1 + 4 * 3
    counts = Counter(line for line in lines if line not in set(own))
    for c in planted.canaries:
        assert counts[canary_plant.line_of(c, "chat")] == c.repeats
    examples, found = load_sft(out)
    assert found.used == len(lines)
    assert {e.messages[-1].content for e in examples} >= {
        c.text() for c in planted.canaries if c.repeats
    }
    assert planted.kind == "chat"
    assert Counter(c.language for c in planted.canaries) == {"zh": 6, "en": 6}
    assert len({c.prefix for c in planted.canaries}) > 8  # every name once
    positions = [i for i, line in enumerate(lines) if line not in set(own)]
    assert positions != list(range(min(positions), min(positions) + len(positions)))


def test_the_same_seed_plants_the_same(sft, tmp_path):
    texts = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        plant(sft, tmp_path / f"{name}.jsonl", "--seed", seed)
        texts.append((tmp_path / f"{name}.jsonl").read_text(encoding="utf-8"))
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(("name", "first"), [("c.txt", "一段中文。"), ("c.jsonl", '{"text": "a"}')])
def test_corpora(tmp_path, name, first):
    source = tmp_path / name
    source.write_text(f"{first}\n" * 3, encoding="utf-8")
    _, planted = plant(source, tmp_path / f"out-{name}", "--repeats", "2", "--count", "3")
    texts = list(iter_texts(tmp_path / f"out-{name}"))
    assert planted.kind == ("text" if name == "c.txt" else "text_rows")
    for c in planted.canaries:
        assert texts.count(c.text()) == 2
    assert len(texts) == 3 + 6


def test_secrets_are_uniform_digits():
    made = canary_plant.make(40, [0, 1, 2], ["zh"], 4, seed=0)
    digits = Counter("".join(c.secret for c in made))
    assert {len(c.secret) for c in made} == {4}
    assert set(digits) == set("0123456789")
    assert max(digits.values()) < 2.2 * 480 / 10
    assert len({c.prefix for c in made}) == 120


def text_canaries(count, digits, seed=0):
    made = canary_plant.make(count, [0], ["zh"], digits, seed)
    return canary_plant.Planted("text", digits, seed, made)


def test_a_model_that_saw_nothing_has_the_exposure_of_chance():
    """Secrets are independent of the model, so ranks are uniform: 1.44 bits, ± 4 standard errors.

    The standard deviation of log2 of a uniform rank is about log2 e = 1.44 bits; 100 canaries.
    """
    tokenizer = eval_models.tokenizer()
    planted = text_canaries(100, 2)
    rows = canary_measure.measure_canaries(
        eval_models.gpt2(3), tokenizer, planted, max_candidates=99
    )
    assert {r["method"] for r in rows} == {"exact"}
    mean = np.mean([r["exposure"] for r in rows])
    assert expected_exposure(100) == pytest.approx(1.396, abs=0.001)
    assert abs(mean - expected_exposure(100)) < 4 * EXPECTED / math.sqrt(100)


def test_exposure_of_a_model_that_prefers_a_secret():
    """A model whose every digit is a 7: the secret 77 has rank 1, 11 ties with the rest."""
    tokenizer = eval_models.tokenizer()
    seven = tokenizer("7", add_special_tokens=False)["input_ids"][-1]

    sevens = eval_models.gpt2(0)
    for parameter in sevens.parameters():
        parameter.data.zero_()
    sevens.transformer.ln_f.bias.data.fill_(1.0)  # what the head sees, whatever was read
    sevens.lm_head.weight.data[seven] = 3.0

    def bits(secret):
        canary = canary_plant.Canary("a", "zh", "?", "甲是", secret, "。", 1)
        planted = canary_plant.Planted("text", 2, 0, (canary,))
        others = canary_measure.candidates(planted, 99, 0)
        return canary_measure.canary_exposure(sevens, tokenizer, canary, planted, others)

    assert bits("77").bits == pytest.approx(math.log2(100))
    # 18 secrets with one 7 and 77 are likelier; the 81 without are alike: rank 20 + 80/2.
    assert bits("11").rank == 60.0


def test_candidates():
    small, large = text_canaries(1, 2), text_canaries(1, 6)
    assert canary_measure.candidates(small, 99, 0) == [f"{n:02d}" for n in range(100)]
    some = canary_measure.candidates(large, 500, 0)
    assert len(set(some)) == 501
    assert {len(s) for s in some} == {6}
    assert (
        some == canary_measure.candidates(large, 500, 0) != canary_measure.candidates(large, 500, 1)
    )


def test_what_counts_as_extracted():
    canary = canary_plant.Canary("a", "en", "?", "The code is ", "4821", ".", 1)
    assert canary_measure.extracted(canary, "The code is 4821.", "chat")
    assert not canary_measure.extracted(canary, "The code is 48210.", "chat")
    assert canary_measure.extracted(canary, " 4821. And", "text")
    assert not canary_measure.extracted(canary, "about 4821", "text")


def test_a_summary_by_repeats():
    bits = [(0, "en", 1.0), (0, "zh", 2.0), (8, "en", 4.0), (8, "zh", 8.0)]
    rows = [{"language": lang, "repeats": n, "exposure": e, "extracted": e > 6, "reference": 1.0}
            for n, lang, e in bits]  # fmt: skip
    found = {(s["repeats"], s["language"]): s for s in canary_measure.summarise(rows)}
    assert found[0, "all"]["exposure"]["value"] == 1.5
    assert found[8, "all"]["exposure"]["value"] == 6.0
    assert found[8, "all"]["extracted"] == {
        "value": 0.5, "n": 1,
        "low": pytest.approx(0.0945, abs=1e-3), "high": pytest.approx(0.9055, abs=1e-3),
    }  # fmt: skip
    assert found[8, "zh"]["exposure"]["value"] == 8.0
    assert found[8, "all"]["gain"]["value"] == 5.0
    only = [s["language"] for s in canary_measure.summarise(rows[1::2])]
    assert only == ["all", "all"]


def test_measuring_from_the_command_line(sft, tmp_path, capsys):
    run = eval_models.save(tmp_path / "run", 1)
    words = ["--count", "2", "--repeats", "0,2", "--digits", "2", "--languages", "zh"]
    plant(sft, tmp_path / "out.jsonl", *words)
    line = ["measure", "--model", str(run), "--canaries", str(tmp_path / "out.canaries.json"),
            "--max_candidates", "99", "--reference", str(run)]  # fmt: skip
    assert canaries.main(line) == 0
    result = json.loads((run / "canaries/canaries.json").read_text(encoding="utf-8"))
    assert [s["canaries"] for s in result["summary"] if s["language"] == "all"] == [2, 2]
    assert {s["gain"]["value"] for s in result["summary"]} == {0.0}  # the same model
    assert "2 planted secrets are said" in (run / "canaries/report.html").read_text("utf-8")
    assert "by chance 1.44" in (run / "canaries/report.html").read_text("utf-8")
    assert "exposure, bits" in capsys.readouterr().out
    assert canaries.main([*line, "--max_exposure", "0"]) == 1
    assert "is above --max_exposure 0" in capsys.readouterr().err
    assert canaries.main([*line, "--max_exposure", "7", "--max_extracted", "1"]) == 0


def test_the_page_escapes_what_the_model_wrote(tmp_path):
    row = {
        "id": "a",
        "language": "zh",
        "repeats": 1,
        "exposure": 1.0,
        "rank": 2.0,
        "method": "exact",
    }
    row |= {"extracted": True, "completion": "<script>alert(1)</script>"}
    result = {"model": "m", "reference": None, "kind": "chat", "space": 100, "max_exposure": 6.6,
              "expected_by_chance": 1.44, "candidates": 99, "canaries": [row],
              "summary": canary_measure.summarise([row])}  # fmt: skip
    html = write_canaries(result, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in html
    assert "1 of 1 planted secrets are said" in html


@pytest.mark.parametrize(("count", "level"), [(2, "info"), (8, "warn")])
def test_a_warning_needs_enough_canaries(tmp_path, count, level):
    rows = [{"id": f"{i}", "language": "en", "repeats": 4, "exposure": 6.0 + i / 8, "rank": 2.0,
             "method": "exact", "extracted": False, "completion": "x"}
            for i in range(count)]  # fmt: skip
    result = {"model": "m", "reference": None, "kind": "text", "space": 100, "max_exposure": 6.6,
              "expected_by_chance": 1.44, "candidates": 99, "canaries": rows,
              "summary": canary_measure.summarise(rows)}  # fmt: skip
    html = write_canaries(result, tmp_path / "r.html").read_text(encoding="utf-8")
    assert f'<span class="tag {level}">{level}</span>planted 4×: ' in html


def wrong_plants(sft, tmp_path):
    (tmp_path / "there.jsonl").write_text("{}")
    (tmp_path / "odd.csv").write_text("a,b")
    (tmp_path / "odd.jsonl").write_text('{"a": 1}')
    (tmp_path / "pairs.jsonl").write_text('{"chosen": "a", "rejected": "b"}')
    (tmp_path / "broken.jsonl").write_text("{")
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe\xe4")
    new = str(tmp_path / "new.jsonl")
    return [
        (["--input", str(tmp_path / "none.jsonl"), "--output", new], "does not exist"),
        (["--input", str(sft), "--output", str(sft)], "is another file of this command"),
        (["--input", str(sft), "--output", str(tmp_path / "there.jsonl")], "Add --overwrite"),
        (["--input", str(sft), "--output", str(tmp_path)], "is a folder"),
        (["--input", str(sft), "--output", str(tmp_path / "o.txt")], "has another suffix"),
        (["--input", str(tmp_path / "odd.csv"), "--output", new], "is neither .txt nor .jsonl"),
        (["--input", str(tmp_path / "odd.jsonl"), "--output", new], "holds neither SFT rows"),
        (["--input", str(tmp_path / "pairs.jsonl"), "--output", new], "holds neither SFT rows"),
        (["--input", str(tmp_path / "broken.jsonl"), "--output", new], "cannot be read"),
        (["--input", str(tmp_path / "latin.txt"), "--output", str(tmp_path / "n.txt")], "UTF-8"),
        (["--input", str(sft), "--output", new, "--languages", "en", "--count", "50"],
         "needs more names in en"),
    ]  # fmt: skip


def test_wrong_input_writes_nothing(sft, tmp_path):
    for words, message in wrong_plants(sft, tmp_path):
        before = sorted(p.name for p in tmp_path.iterdir())
        with pytest.raises(UserError) as error:
            canaries.main(["plant", *words])
        assert message in str(error.value)
        assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("words", [["--digits", "1"], ["--repeats", "-1"], ["--languages", "fr"],
                                   ["--count", "0"]])  # fmt: skip
def test_options_out_of_range_end_with_two(words, sft, tmp_path):
    with pytest.raises(SystemExit) as stop:
        plant(sft, tmp_path / "x.jsonl", *words)
    assert stop.value.code == 2


def test_measure_refuses_what_it_cannot_read(sft, tmp_path):
    run = eval_models.save(tmp_path / "run", 1)
    plant(sft, tmp_path / "out.jsonl", "--count", "1", "--repeats", "0")
    file = str(tmp_path / "out.canaries.json")
    (tmp_path / "bad.json").write_text('{"version": 1, "kind": "chat"}')
    for words, message in (
        (["--model", "nowhere", "--canaries", file], "no such folder"),
        (["--model", str(run), "--canaries", "none.json"], "does not exist"),
        (["--model", str(run), "--canaries", str(tmp_path / "bad.json")], "is not a file of can"),
        (["--model", str(run), "--canaries", file, "--max_candidates", "20"], "is too few"),
        (["--model", str(run), "--canaries", file, "--output", file], "is a file"),
        (["--model", str(run), "--canaries", file, "--reference", "x"], "--reference='x'"),
    ):  # fmt: skip
        with pytest.raises(UserError) as error:
            canaries.main(["measure", *words])
        assert message in str(error.value)
    unplanted = {"canaries": [{"repeats": 0}]}
    with pytest.raises(UserError, match="were all not planted"):
        canaries.thresholds(unplanted, 1.0, None)
    assert canaries.thresholds(unplanted, None, None) == []


def test_canaries_longer_than_the_model(sft, tmp_path):
    final = tmp_path / "short"
    eval_models.gpt2(1, positions=24).save_pretrained(final)
    eval_models.tokenizer().save_pretrained(final)
    plant(sft, tmp_path / "out.jsonl", "--count", "1", "--repeats", "1")
    words = ["--model", str(final), "--canaries", str(tmp_path / "out.canaries.json")]
    with pytest.raises(UserError, match=r"has 24 positions, and the longest canary has \d+ tokens"):
        canaries.main(["measure", *words])


@pytest.mark.slow
@pytest.mark.learning
def test_exposure_grows_with_repeats(tmp_path):
    """SFT on planted rows: what was seen often is known, what was not is at chance.

    Margins: at least 2 bits from unplanted to 32 repeats, half of those extracted or nearly (the
    space has 9.97 bits), the unplanted within 1.5 bits of chance (8 canaries: three standard errors
    of 0.51).
    """
    import small_runs

    data = tmp_path / "sft.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"第{i}题：{i}加{i}"},
                          {"role": "assistant", "content": f"等于{2 * i}。"}]}
            for i in range(60)]  # fmt: skip
    data.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    words = ["--count", "8", "--repeats", "0,2,32", "--digits", "3"]
    plant(data, tmp_path / "out.jsonl", *words)
    run = small_runs.train(
        "sft", tmp_path / "run", "--data.sft", tmp_path / "out.jsonl", "--train.max_steps", 240,
        "--train.per_device_train_batch_size", 16, "--train.learning_rate", "1e-2",
        "--train.save_steps", 240, "--train.eval_steps", 240,
    )  # fmt: skip
    file = str(tmp_path / "out.canaries.json")
    words = ["--model", str(run), "--canaries", file, "--max_candidates", "999"]
    assert canaries.main(["measure", *words, "--reference", small_runs.base()]) == 0
    result = json.loads((run / "canaries/canaries.json").read_text(encoding="utf-8"))
    bits = {s["repeats"]: s for s in result["summary"] if s["language"] == "all"}
    shown = {k: (s["exposure"]["value"], s["extracted"]["n"]) for k, s in bits.items()}
    print(shown)
    assert shown[0][0] < shown[2][0] < shown[32][0]
    assert shown[32][0] > shown[0][0] + 2
    assert abs(shown[0][0] - expected_exposure(1000)) < 1.5
    assert bits[32]["gain"]["low"] > 0

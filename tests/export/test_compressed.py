"""awq, gptq and w8a8: the call into another environment, and with it the forms themselves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import tiny_llama

from align.config_errors import Failed
from align.engines.venvs import find_python
from align.export import outside_call
from align.export.command import main

DATA = Path(__file__).parents[2] / "recipes" / "data"


def needs(engine: str):
    reason = f"ALIGN_ENGINES has no {engine}: recipes/setup_engine.py {engine}"
    return pytest.mark.skipif(find_python(engine) is None, reason=reason)


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.setattr(outside_call, "SCRIPTS", tmp_path)

    def write(text: str) -> str:
        (tmp_path / "work.py").write_text("import json, os, sys\n" + text, encoding="utf-8")
        return "work.py"

    return write


def test_a_report_comes_back_and_packages_do_not_mix(script, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    name = script(
        "spec = json.load(open(sys.argv[1]))\n"
        "json.dump([spec, os.environ.get('PYTHONPATH')], open(sys.argv[2], 'w'))"
    )
    assert outside_call.call(sys.executable, name, {"字": [1]}, "it") == [{"字": [1]}, None]


@pytest.mark.parametrize("ending", ["raise SystemExit(4)", "pass"])
def test_a_failure_shows_the_end_of_the_log(script, ending):
    name = script(f"print('x' * 5000); print('no memory left'); {ending}")
    with pytest.raises(Failed, match=r"it ended with code [04]. (?s:.*)no memory left") as error:
        outside_call.call(sys.executable, name, {}, "it")
    assert len(str(error.value)) < 2200


def test_the_scripts_import_nothing_of_ours():
    found = sorted(outside_call.SCRIPTS.glob("*.py"))
    assert [file.name for file in found] == ["compress.py", "gptq.py", "measure.py"]
    for file in found:
        text = file.read_text(encoding="utf-8")
        assert "import align" not in text
        assert "from align" not in text


def export(tmp_path: Path, form: str, *more: str) -> dict:
    model = tiny_llama.save(tmp_path / "model")
    words = ["--model", str(model), "--output", str(tmp_path / "out"), "--to", form, "--eval_data",
             str(DATA / "sft.jsonl"), "--calibration", str(DATA / "sft.jsonl"), "--num_calibration",
             "4", "--num_prompts", "2", "--answer_tokens", "8", *more]  # fmt: skip
    assert main(words) == 0
    text = (tmp_path / "out" / "quantisation.json").read_text(encoding="utf-8")
    return json.loads(text)["models"][0]


@pytest.mark.engines
@needs("llmcompressor")
@pytest.mark.parametrize(("form", "bits"), [("awq", 4), ("gptq", 4), ("w8a8", 8)])
def test_forms_of_llm_compressor(tmp_path, form, bits):
    found = export(tmp_path, form)
    assert found["quantised"] == 14
    assert found["group_size"] == (None if form == "w8a8" else 64)
    assert found["calibration_rows"] == (0 if form == "w8a8" else 4)
    assert abs(found["perplexity_growth"]) < 0.2
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    weights = config["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], config["quant_method"]) == (bits, "compressed-tensors")
    assert config["ignore"] == ["lm_head"]
    size = found["after"]["disk_bytes"] / found["before"]["disk_bytes"]
    assert size < (0.6 if bits == 8 else 0.5)
    assert (tmp_path / "out" / "chat_template.jinja").is_file()


@pytest.mark.engines
@needs("gptqmodel")
def test_gptq_of_gptqmodel(tmp_path):
    found = export(tmp_path, "gptq", "--engine", "gptqmodel")
    assert found["quantised"] == 14
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (config["bits"], config["group_size"], config["quant_method"]) == (4, 64, "gptq")
    assert found["after"]["disk_bytes"] < found["before"]["disk_bytes"]

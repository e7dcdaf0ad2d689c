"""garak: what it is told, how it is started, what is read of its report; and itself where it is."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "rewards"))
import scripted

from align.config_errors import Failed, UserError
from align.redteam import garak, red_team

EVAL = {"entry_type": "eval", "probe": "encoding.InjectROT13", "detector": "encoding.DecodeMatch",
        "passed": 3, "fails": 1, "nones": 0, "total_evaluated": 4}  # fmt: skip
# Stands in for a Python that has garak: says its version, or writes a report where it is told.
FAKE = """#!{python}
import json, os, sys
if sys.argv[1] == "-c":
    print({version!r})
    sys.exit(0)
config = json.load(open(sys.argv[sys.argv.index("--config") + 1]))
print("arguments", sys.argv[1:], os.environ["OPENAICOMPATIBLE_API_KEY"])
folder = config["reporting"]["report_dir"]
with open(os.path.join(folder, "garak.report.jsonl"), "w") as report:
    for row in {rows!r}:
        report.write(json.dumps(row) + chr(10))
sys.exit({code})
"""


def fake(tmp_path, version="0.17.1", rows=({"entry_type": "init"}, EVAL), code=0):
    file = tmp_path / "python-with-garak"
    text = FAKE.format(python=sys.executable, version=version, rows=list(rows), code=code)
    file.write_text(text, encoding="utf-8")
    file.chmod(file.stat().st_mode | stat.S_IEXEC)
    return str(file)


def reply(body):
    message = {"role": "assistant", "content": "Sure."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    name = body["model"] if body else "m"
    value = {"id": "x", "object": "chat.completion", "created": 1, "model": name}
    value |= {"choices": [choice], "usage": usage}
    return (200, value, {"Content-Type": "application/json"})


@pytest.fixture
def server():
    script = scripted.Scripted()
    script.otherwise = reply
    with scripted.serving(script):
        yield script


def words(server, output, python, *more):
    return ["--url", f"{server.url}/v1", "--model", "m", "--output", str(output), "--categories",
            "over_refusal", "--per_category", "1", "--garak", "encoding.InjectROT13,dan",
            "--garak_python", python, *more]  # fmt: skip


def test_the_configuration_and_the_command(tmp_path):
    args = red_team.parser().parse_args(
        ["--model", "mine", "--url", "http://h:1/v1/chat/completions", "--garak", "dan, lmrc.Slur",
         "--garak_prompts", "5", "--garak_generations", "2", "--max_new_tokens", "9",
         "--seeds", "3", "--garak_python", "py"]
    )  # fmt: skip
    told = garak.configuration(args, tmp_path)
    assert told["run"] == {"generations": 2, "seed": 3, "soft_probe_prompt_cap": 5}
    assert told["plugins"]["target_type"] == "openai.OpenAICompatible"
    assert told["plugins"]["target_name"] == "mine"
    target = told["plugins"]["generators"]["openai"]["OpenAICompatible"]
    assert (target["uri"], target["max_tokens"]) == ("http://h:1/v1/", 9)
    assert "stop" in target["suppressed_params"]  # garak's default cuts at "#" and ";"
    assert told["reporting"]["report_dir"] == str(tmp_path.resolve())
    line = garak.command(args, Path("c.json"))
    assert line == ["py", "-m", "garak", "--config", "c.json", "--spec",
                    "probes.dan,probes.lmrc.Slur"]  # fmt: skip


def test_its_figures_come_into_the_report(server, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert red_team.main(words(server, tmp_path / "out", fake(tmp_path))) == 0
    found = json.loads((tmp_path / "out/red_team.json").read_text(encoding="utf-8"))["garak"]
    assert found["version"] == "0.17.1"
    assert found["evaluations"] == [
        {"probe": "encoding.InjectROT13", "detector": "encoding.DecodeMatch", "n": 4, "hits": 1,
         "none": 0, "rate": 0.25}
    ]  # fmt: skip
    assert "garak 0.17.1" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    said = (tmp_path / "out/garak/output.txt").read_text(encoding="utf-8")
    assert "probes.encoding.InjectROT13,probes.dan" in said
    assert said.strip().endswith("none")  # a key that is not needed


def test_no_answer_is_a_failure(server, tmp_path):
    none = EVAL | {"total_evaluated": 0, "fails": 0, "nones": 4}
    with pytest.raises(Failed, match=r"garak got no answer from http://.*output.txt"):
        red_team.main(words(server, tmp_path / "out", fake(tmp_path, rows=[none])))


@pytest.mark.parametrize(("rows", "code"), [((EVAL,), 3), ((), 0)])
def test_a_run_that_fails_says_where_to_look(server, tmp_path, rows, code):
    with pytest.raises(Failed, match=r"garak ended with \d and \d figures.*output.txt"):
        red_team.main(words(server, tmp_path / "out", fake(tmp_path, rows=rows, code=code)))


def test_a_report_of_another_form(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"entry_type": "eval", "probe": "x"}\n')
    with pytest.raises(Failed, match="is not a report that can be read"):
        garak.read_report(tmp_path / "r.jsonl")
    assert garak.read_report(tmp_path / "none.jsonl") == []


def test_what_cannot_be_run_is_refused_before_anything_is_asked(server, tmp_path):
    def refused(*given):
        with pytest.raises(UserError) as error:
            red_team.main(words(server, tmp_path / "out", *given))
        assert not (tmp_path / "out").exists()
        assert server.posts == []
        return str(error.value)

    assert "pip install garak" in refused(str(tmp_path / "no-python"))
    assert "garak='0.10.0' is too old" in refused(fake(tmp_path, version="0.10.0"))
    fine = fake(tmp_path)
    assert "is no garak probe" in refused(fine, "--garak", "dan;rm")
    assert "--garak_prompts=0 is below 1" in refused(fine, "--garak_prompts", "0")


def test_garak_itself_where_it_is_installed(server, tmp_path):
    """Set GARAK_PYTHON to the Python of its environment to run this."""
    python = os.environ.get("GARAK_PYTHON", sys.executable)
    if garak.version(python) is None:
        pytest.skip("garak is not installed; GARAK_PYTHON names no Python that has it")
    given = words(
        server, tmp_path, python, "--garak", "encoding.InjectROT13", "--garak_prompts", "4"
    )
    assert red_team.main(given) == 0
    found = json.loads((tmp_path / "red_team.json").read_text(encoding="utf-8"))["garak"]
    detectors = {e["detector"]: e["n"] for e in found["evaluations"]}
    assert detectors == {"encoding.DecodeMatch": 4, "encoding.DecodeApprox": 4}
    assert all(e["rate"] == 0.0 for e in found["evaluations"])  # "Sure." decodes nothing

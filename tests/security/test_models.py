"""What a model folder may bring along: no pickles and no code unless the configuration says so."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch

from align import model_safety
from align.checkpoints import load_causal_lm, read_tokenizer
from align.config_errors import UserError
from align.policy import Policy
from reward_models.model import load_reward_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "policy"))
import tiny_policies as tiny


@pytest.fixture(autouse=True)
def _nothing_allowed(monkeypatch):
    monkeypatch.setattr(model_safety, "_pickled", set())
    monkeypatch.setattr(model_safety, "_coded", set())


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("base"))


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.write_text, (self.mark, "ran"))


def pickled(base: str, folder: Path, name: str = "pytorch_model.bin") -> Path:
    """The model with its weights as a pickle, good ones."""
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    torch.save(tiny.causal(base).state_dict(), folder / name)
    return folder


def coded(base: str, folder: Path, mark: Path, file: str = "config.json") -> Path:
    """The model with Python files of its own, which write `mark` when they are imported."""
    shutil.copytree(base, folder)
    code = (
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(mark)!r}).write_text('ran')\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    (folder / "own_code.py").write_text(code, "utf-8")
    settings = json.loads((folder / file).read_text("utf-8"))
    if file == "config.json":
        settings["model_type"] = "own"
        names = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"}
    else:
        names = {"AutoTokenizer": ["own_code.OwnTokenizer", None]}
    (folder / file).write_text(json.dumps(settings | {"auto_map": names}), "utf-8")
    return folder


def test_a_bin_file_is_refused_and_read_only_if_asked(base, tmp_path, capsys, fault):
    fault("a .bin checkpoint from elsewhere", "refused unless policy.allow_pickle")
    folder = pickled(base, tmp_path / "m")
    with pytest.raises(UserError, match=r"pytorch_model\.bin, a pickle .*policy\.allow_pickle"):
        tiny.load("sft", str(folder), tmp_path)
    policy = tiny.load("sft", str(folder), tmp_path, policy={"allow_pickle": True})
    assert tiny.close(tiny.ask(policy), tiny.own_logps(tiny.causal(base)), 2e-5)
    said = capsys.readouterr().out
    assert said.count("policy.allow_pickle: weights may be read from pickle files") == 1


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "model.pth"]
)
def test_every_way_to_a_model_refuses_pickles(base, tmp_path, name):
    folder = pickled(base, tmp_path / "m", name)
    for load in (load_causal_lm, load_reward_model):
        with pytest.raises(UserError, match="a pickle file") as error:
            load(folder)
        assert "docs/security.md" in error.value.fix
    with pytest.raises(UserError, match=r"ppo\.critic_path=.*a pickle file"):
        tiny.load("ppo", base, tmp_path, critic=True, ppo={"critic_path": str(folder)})


def test_safetensors_win_over_a_pickle_beside_them(base, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(base, folder)
    mark = tmp_path / "mark"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(mark)))
    (folder / "training_args.bin").write_bytes(pickle.dumps(Trap(mark)))
    model, _ = load_causal_lm(folder)
    assert tiny.close(tiny.own_logps(model), tiny.own_logps(tiny.causal(base)))
    assert not mark.exists()


def test_even_an_allowed_pickle_runs_no_code(base, tmp_path):
    folder = pickled(base, tmp_path / "m")
    mark = tmp_path / "mark"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Trap(mark)}))
    with pytest.raises((UserError, pickle.UnpicklingError)):
        tiny.load("sft", str(folder), tmp_path, policy={"allow_pickle": True})
    assert not mark.exists()


@pytest.mark.parametrize("place", ["policy.path", "policy.lora.path"])
def test_a_pickled_adapter_is_refused(base, tmp_path, place):
    folder = Path(tiny.adapter(tmp_path / "a", base))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    policy = {"lora": {"r": 4, "path": str(folder)}} if place == "policy.lora.path" else {}
    path = base if policy else str(folder)
    with pytest.raises(UserError, match=r"adapter_model\.bin, a pickle file") as error:
        tiny.load("sft", path, tmp_path, policy=policy)
    assert error.value.field == place


def test_an_adapter_on_a_pickled_base_is_refused(base, tmp_path):
    folder = Path(tiny.adapter(tmp_path / "a", base))
    file = folder / "adapter_config.json"
    named = str(pickled(base, tmp_path / "m"))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": named}))
    with pytest.raises(UserError, match="a pickle file"):
        load_causal_lm(folder)
    with pytest.raises(UserError, match=r"policy\.allow_pickle: true"):
        tiny.load("sft", str(folder), tmp_path / "run")
    tiny.load("sft", str(folder), tmp_path / "run", policy={"allow_pickle": True})


def test_an_index_cannot_lead_to_another_file(base, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(base, folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    for name in ("pytorch_model.bin", "../elsewhere.safetensors"):
        index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match="no safetensors file of the folder"):
            load_causal_lm(folder)


def test_code_of_a_model_runs_only_if_asked(base, tmp_path, capsys, fault):
    fault("a model that brings Python code", "refused unless policy.trust_remote_code")
    mark = tmp_path / "mark"
    folder = str(coded(base, tmp_path / "m", mark))
    with pytest.raises(UserError, match=r"Python code .*auto_map.*policy\.trust_remote_code: true"):
        tiny.load("sft", folder, tmp_path)
    for load in (load_causal_lm, load_reward_model, read_tokenizer):
        with pytest.raises(UserError, match="Python code"):
            load(folder)
    assert not mark.exists()
    asked = {"trust_remote_code": True}
    policy = tiny.load("sft", folder, tmp_path / "run", policy=asked)
    assert mark.read_text() == "ran"
    assert type(policy.module.lm).__name__ == "OwnModel"
    assert capsys.readouterr().out.count("policy.trust_remote_code: Python code may be run") == 1
    policy.save(tmp_path / "final", tiny.state(policy))
    assert isinstance(policy, Policy)
    assert tiny.close(tiny.ask(policy), tiny.own_logps(tiny.causal(base)), 2e-5)


def test_code_of_a_tokenizer_is_refused(base, tmp_path):
    mark = tmp_path / "mark"
    folder = coded(base, tmp_path / "m", mark, "tokenizer_config.json")
    with pytest.raises(UserError, match=r"auto_map in tokenizer_config\.json"):
        tiny.load("sft", str(folder), tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("kernel", ["someone/attention", "someone/attention@v1:forward"])
def test_a_model_cannot_ask_for_compiled_code(base, tmp_path, kernel):
    folder = tmp_path / "m"
    shutil.copytree(base, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attn_implementation": kernel}))
    with pytest.raises(UserError, match="compiled code from the hub"):
        load_causal_lm(folder)


def test_a_dry_run_runs_no_code_either(base, tmp_path, capsys):
    from align.run import run

    mark = tmp_path / "mark"
    folder = str(coded(base, tmp_path / "m", mark))
    smoke = str(Path(__file__).resolve().parents[2] / "recipes/configs/smoke.yaml")
    assert run("sft", ["--config", smoke, "--policy.path", folder, "--dry_run"]) == 2
    assert "policy.trust_remote_code" in capsys.readouterr().err
    assert not mark.exists()


def test_the_converter_takes_a_pickle_and_writes_safetensors(base, tmp_path, capsys):
    from align.export.command import main

    folder, out = pickled(base, tmp_path / "m"), tmp_path / "out"
    with pytest.raises(UserError, match="--allow_pickle"):
        main(["--model", str(folder), "--output", str(out)])
    assert main(["--model", str(folder), "--output", str(out), "--allow_pickle"]) == 0
    assert "allow_pickle" in capsys.readouterr().out
    assert (out / "model.safetensors").is_file()
    assert not list(out.glob("*.bin"))


def test_every_torch_load_of_ours_reads_weights_only():
    root = Path(__file__).resolve().parents[2]
    found = [
        line
        for folder in ("align", "reward_models", "recipes")
        for file in (root / folder).rglob("*.py")
        for line in file.read_text("utf-8").splitlines()
        if "torch.load(" in line
    ]
    assert found
    assert [line for line in found if "weights_only=True" not in line] == []

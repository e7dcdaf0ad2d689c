"""What serve_model refuses before it starts anything, and what it would start."""

from __future__ import annotations

import json
import os
import resource
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from serve_process import RECIPE

from align.config_errors import Failed, UserError
from align.engines import llama_cpp, llama_wheel, transformers_serve, venvs, vllm
from align.engines.process import Launch
from align.export.adapter_folder import write_adapters
from align.serving import engine_plan, options, proxy, serve_model
from align.serving.served_model import default_name, find_served
from align.tools import run_tool


def write(folder: Path, *names: str, **files) -> Path:
    """A folder with empty files and JSON files (name__json)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def export(folder: Path, **config) -> Path:
    return write(
        folder, "model.safetensors", "chat_template.jinja", "tokenizer.json",
        config={"architectures": ["LlamaForCausalLM"]} | config,
        tokenizer_config={}, export={}, generation_config={"do_sample": True},
    )  # fmt: skip


def refusal(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        serve_model.main(["--port", "0", *words])
    return str(caught.value)


@pytest.fixture
def everything_here(monkeypatch, tmp_path):
    """All engines installed, no GPU; their programs are not started."""
    monkeypatch.setattr(options, "has_gpu", lambda: False)
    monkeypatch.setattr(engine_plan, "has_gpu", lambda: False)
    monkeypatch.setattr(llama_cpp.shutil, "which", lambda _: "/bin/llama-server")
    monkeypatch.setattr(transformers_serve, "find_spec", lambda _: True)
    python = tmp_path / "engines" / "vllm" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    monkeypatch.setenv(venvs.ENV, str(tmp_path / "engines"))
    return python


def dry(capsys, *words: str) -> list[str]:
    """The words that would be started."""
    assert serve_model.main(["--port", "0", "--dry_run", *words]) == 0
    return shlex.split(capsys.readouterr().out)


# --- what is no export ---------------------------------------------------------------------------


def test_a_path_that_is_not_there(tmp_path):
    export(tmp_path / "served")
    assert f"Did you mean '{tmp_path}/served'?" in refusal("--model", str(tmp_path / "serve"))


def test_a_reward_model(tmp_path):
    folder = write(tmp_path / "rm", "model.safetensors", config={}, contract={})
    said = refusal("--model", str(folder))
    assert "is a reward model, which writes no text" in said
    assert f"python -m reward_models serve --model {folder}" in said
    other = export(tmp_path / "other", architectures=["Qwen2ForSequenceClassification"])
    assert "is a reward model" in refusal("--model", str(other))


def test_a_checkpoint_a_run_and_its_final_folder(tmp_path):
    run = write(tmp_path / "run", manifest={})
    export(run / "final")
    (run / "final" / "export.json").unlink()
    checkpoint = write(export(run / "checkpoint-20"), trainer_state={})
    fix = f"python recipes/export_model.py --checkpoint {checkpoint} --to hf"
    assert fix in refusal("--model", str(checkpoint))
    for folder, what in ((run, "a run directory"), (run / "final", "a run's final folder")):
        said = refusal("--model", str(folder))
        assert f"is {what}, not an export" in said
        assert f"python recipes/export_model.py --model {folder} --to hf" in said


def test_an_adapter_without_its_base(tmp_path):
    folder = write(tmp_path / "lora", "adapter_model.safetensors", adapter_config={})
    said = refusal("--model", str(folder))
    assert "is a LoRA adapter without its base" in said
    assert f"--model {folder} --to hf" in said


def test_folders_that_lack_something(tmp_path):
    assert "holds no model" in refusal("--model", str(write(tmp_path / "empty")))
    weights = export(tmp_path / "a")
    (weights / "model.safetensors").unlink()
    assert "has config.json but no weights" in refusal("--model", str(weights))
    tokenizer = export(tmp_path / "b")
    (tokenizer / "tokenizer_config.json").unlink()
    assert "has no tokenizer_config.json" in refusal("--model", str(tokenizer))
    template = export(tmp_path / "c")
    (template / "chat_template.jinja").unlink()
    assert "has no chat template: it cannot chat" in refusal("--model", str(template))
    write(template, tokenizer_config={"chat_template": "{{ messages }}"})
    assert find_served(str(template)).kind == "hf"


def test_a_file_and_several_gguf_files(tmp_path):
    write(tmp_path, "model.bin")
    assert "is a file, and no .gguf" in refusal("--model", str(tmp_path / "model.bin"))
    folder = write(tmp_path / "gguf", "f16.gguf", "q4.gguf")
    said = refusal("--model", str(folder))
    assert "has 2 .gguf files" in said
    assert "Name one: f16.gguf, q4.gguf" in said


# --- an engine that does not fit -----------------------------------------------------------------


def test_the_wrong_engine_for_the_format(tmp_path):
    hf, gguf = export(tmp_path / "hf"), write(tmp_path / "q", "q4.gguf")
    said = refusal("--model", str(hf), "--engine", "llama.cpp")
    assert f"Export it: python recipes/export_model.py --model {hf} --to gguf" in said
    for engine in ("vllm", "transformers"):
        said = refusal("--model", str(gguf), "--engine", engine)
        assert "does not serve the GGUF file q4.gguf. Use --engine llama.cpp" in said


def test_engines_that_are_not_installed(tmp_path, monkeypatch):
    hf, gguf = export(tmp_path / "hf"), write(tmp_path / "q", "q4.gguf")
    monkeypatch.setenv(venvs.ENV, str(tmp_path / "none"))
    monkeypatch.setattr(
        transformers_serve, "find_spec", lambda name: None if name == "openai" else 1
    )
    said = refusal("--model", str(hf), "--engine", "transformers")
    assert "needs openai, not installed here. Run: pip install 'align[serve]'" in said
    monkeypatch.setattr(vllm, "find_spec", lambda _: None)
    said = refusal("--model", str(hf), "--engine", "vllm")
    assert "python recipes/setup_engine.py vllm" in said
    monkeypatch.setattr(llama_cpp.shutil, "which", lambda _: None)
    monkeypatch.setattr(llama_cpp, "find_spec", lambda _: None)
    said = refusal("--model", str(gguf))
    assert "no llama-server on PATH, and no xllamacpp. Run: pip install xllamacpp" in said
    monkeypatch.setattr(proxy, "find_spec", lambda name: None if name == "aiohttp" else 1)
    said = refusal("--model", str(gguf), "--request_log", str(tmp_path))
    assert said.startswith(f"request_log='{tmp_path}' needs aiohttp, not installed here")


def test_an_interpreter_that_is_not_there(tmp_path):
    hf, gguf = export(tmp_path / "hf"), write(tmp_path / "q", "q4.gguf")
    no = str(tmp_path / "python")
    assert "does not exist" in refusal("--model", str(hf), "--engine", "vllm", "--python", no)
    assert "does not exist" in refusal("--model", str(gguf), "--python", no)
    said = refusal("--model", str(hf), "--engine", "transformers", "--python", no)
    assert "has no transformers program beside it" in said


# --- address, key, names -------------------------------------------------------------------------


def test_a_port_that_is_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refusal("--model", str(export(tmp_path / "hf")), "--port", str(port))
    assert said.startswith(f"port={port} is in use")


def test_other_machines_need_a_key(tmp_path, monkeypatch, everything_here):
    words = ("--model", str(export(tmp_path / "hf")), "--host", "0.0.0.0", "--dry_run")
    said = refusal(*words)
    assert "lets other machines in" in said
    assert "Name a variable that holds a key with --api_key_env, or add --allow_public" in said
    assert serve_model.main(["--port", "0", *words, "--allow_public"]) == 0
    monkeypatch.setenv("KEY", "sesam")
    assert serve_model.main(["--port", "0", *words, "--api_key_env", "KEY"]) == 0


def test_keys_that_cannot_be_used(tmp_path, monkeypatch):
    words = ("--model", str(export(tmp_path / "hf")), "--api_key_env", "NO_KEY")
    assert "is not set in the environment. Set it: export NO_KEY=…" in refusal(*words)
    monkeypatch.setenv("NO_KEY", "geheim nis")
    said = refusal(*words)
    assert "has spaces or characters that a header cannot carry" in said
    assert "geheim" not in said


def test_options_that_do_not_go_together(tmp_path):
    words = ("--model", str(export(tmp_path / "hf")))
    said = refusal(*words, "--served_model_name", "a/b")
    assert "is no name for a model. Use letters, digits" in said
    assert "needs --request_log" in refusal(*words, "--log_texts")
    log = write(tmp_path, "log") / "log"
    said = refusal(*words, "--request_log", str(log))
    assert f"request_log='{log}' is a file. Give a folder" in said


def test_names(tmp_path):
    assert default_name(Path("runs/ppo/export/hf")) == "ppo"
    assert default_name(Path("models/小模型")) == "小模型"
    assert default_name(Path("models/q4.gguf")) == "q4"


# --- what would be started -----------------------------------------------------------------------


def test_auto(tmp_path, monkeypatch):
    hf = find_served(str(export(tmp_path / "hf")))
    awq = find_served(str(export(tmp_path / "a", quantization_config={"quant_method": "awq"})))
    gguf = find_served(str(write(tmp_path / "q", "q4.gguf")))
    monkeypatch.setattr(options, "find_python", lambda _: Path("python"))
    for gpu, chosen in ((False, "transformers"), (True, "vllm")):
        monkeypatch.setattr(options, "has_gpu", lambda gpu=gpu: gpu)
        assert [options.choose_engine("auto", m) for m in (gguf, hf, awq)] == [
            "llama.cpp", chosen, "vllm",
        ]  # fmt: skip
    monkeypatch.setattr(options, "find_python", lambda _: None)
    assert options.choose_engine("auto", hf) == "transformers"
    assert options.choose_engine("llama.cpp", hf) == "llama.cpp"


def test_the_command_of_vllm(tmp_path, capsys, monkeypatch, everything_here):
    hf = export(tmp_path / "hf")
    words = dry(
        capsys, "--model", str(hf), "--engine", "vllm", "--served_model_name", "小",
        "--max_model_len", "512", "--log_dir", str(tmp_path / "logs"), "--", "--seed", "7",
    )  # fmt: skip
    assert {"VLLM_CPU_KVCACHE_SPACE=2", "VLLM_NO_USAGE_STATS=1"} < set(words)
    at = words.index(str(everything_here))
    line = " ".join(words[at:])
    assert line.startswith(f"{everything_here} -m {vllm.MODULE} --model {hf} --host 127.0.0.1")
    assert "--served-model-name 小 --generation-config auto --dtype float32" in line
    assert line.endswith("--max-model-len 512 --seed 7")
    assert not (tmp_path / "logs").exists()
    monkeypatch.setattr(engine_plan, "has_gpu", lambda: True)
    assert "--enforce-eager" not in dry(capsys, "--model", str(hf), "--engine", "vllm")


def test_a_config_file_and_words_of_the_engine(tmp_path, capsys, everything_here):
    """The recipe's own dry run, with `tools.serve_model` and words after `--`."""
    gguf = write(tmp_path / "q", "q4.gguf") / "q4.gguf"
    file = tmp_path / "serve.yaml"
    file.write_text(f"tools:\n  serve_model: {{model: {gguf}, port: 0, max_model_len: 64}}\n")
    words = ["--config", str(file), "--dry_run", "--", "--seed", "7"]
    assert run_tool("serve_model", words) == 0
    line = capsys.readouterr().out
    assert f"-m {gguf}" in line
    assert "--ctx-size 256" in line
    assert line.rstrip().endswith("--seed 7")


def test_the_key_is_in_the_environment_alone(tmp_path, capsys, monkeypatch, everything_here):
    """vLLM asks for it under /v1 only: the front takes the public address."""
    monkeypatch.setenv("KEY", "sesam")
    hf, gguf = export(tmp_path / "hf"), write(tmp_path / "q", "q4.gguf")
    public = ("--host", "0.0.0.0", "--api_key_env", "KEY")
    words = dry(capsys, "--model", str(hf), "--engine", "vllm", *public)
    assert "VLLM_API_KEY=***" in words
    assert words[words.index("--host") + 1] == "127.0.0.1"
    words = dry(capsys, "--model", str(gguf), *public)
    assert "LLAMA_API_KEY=***" in words
    assert words[words.index("--host") + 1] == "0.0.0.0"


def test_adapters_are_served_by_name(tmp_path, capsys, everything_here):
    folder = tmp_path / "several"
    export(folder / "base")
    for name in ("zh", "en"):
        write(folder / name, adapter_config={})
    write_adapters(folder, "base", [("zh", "zh", 4), ("en", "en", 12)])
    words = dry(capsys, "--model", str(folder))
    assert words[words.index("--model") + 1] == str(folder / "base")
    assert words[words.index("--max-lora-rank") + 1] == "16"
    at = words.index("--lora-modules")
    assert words[at + 1 : at + 3] == [f"zh={folder}/zh", f"en={folder}/en"]
    said = refusal("--model", str(folder), "--engine", "transformers")
    assert "serves no folder of adapters by name. Use --engine vllm" in said
    (folder / "base" / "config.json").unlink()
    assert "has adapters of base, which is no folder here" in refusal("--model", str(folder))
    write_adapters(folder, "/no/where", [("zh", "zh", 4)])
    assert "has adapters of /no/where, which is no" in refusal("--model", str(folder))


def test_adapters_on_a_base_of_the_hub(tmp_path, capsys, everything_here):
    """Exports of an adapter alone name it; vLLM finds it in its cache or on the hub."""
    folder = tmp_path / "several"
    write(folder / "zh", adapter_config={})
    write_adapters(folder, "HuggingFaceTB/SmolLM2-135M", [("zh", "zh", 4)])
    words = dry(capsys, "--model", str(folder))
    assert words[words.index("--model") + 1] == "HuggingFaceTB/SmolLM2-135M"


def test_the_command_of_llama_cpp(tmp_path, capsys, everything_here):
    gguf = write(tmp_path / "q", "q4.gguf") / "q4.gguf"
    line = " ".join(dry(capsys, "--model", str(gguf), "--max_model_len", "100", "--", "-t", "2"))
    origins = "LLAMA_ARG_CORS_ORIGINS=localhost"
    assert line.startswith(f"{origins} /bin/llama-server -m {gguf} --host 127.0.0.1 --port ")
    assert "--temp 1 --top-k 0 --top-p 1 --min-p 0" in line
    # 4 answers at a time, each with 100 tokens
    assert line.endswith("--ctx-size 400 --parallel 4 --no-kv-unified -t 2")


def test_the_wheel_understands_what_llama_server_is_told(tmp_path):
    of = llama_cpp.launch(
        "m.gguf", name="小", log=tmp_path / "log", python=sys.executable, max_model_len=100
    )
    assert list(of.command[:2]) == [sys.executable, llama_wheel.__file__]
    args = llama_wheel.parser().parse_args([*of.command[2:], *of.after_crash])
    assert args.no_repack
    assert (args.model, args.alias, args.ctx_size, args.parallel) == ("m.gguf", "小", 400, 4)
    assert (args.top_k, args.top_p, args.min_p, args.temp) == (0, 1, 0, 1)
    assert args.no_kv_unified
    assert args.metrics


def test_a_log_folder_where_something_is_in_the_way(tmp_path):
    write(tmp_path / "logs" / "name")
    with pytest.raises(UserError, match="is in the way"):
        transformers_serve.linked(tmp_path, tmp_path / "logs", "name")


# --- a process of its own ------------------------------------------------------------------------


def test_refusals_take_less_than_a_second(tmp_path):
    folder = write(tmp_path / "rm", config={}, contract={})
    env = os.environ | {"ALIGN_ENGINES": str(tmp_path)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, str(RECIPE), "--model", str(folder)],
        capture_output=True, text=True, check=False, env=env,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2
    assert "is a reward model" in done.stderr
    # Of the processor, not of the clock: other tests may run beside it.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def serve_stub(tmp_path, monkeypatch, script: str) -> int:
    """Serve with a stub in the engine's place."""

    def launch(model, *, name, log, host, port, **_):
        url = f"http://{host}:{port}"
        return Launch("llama.cpp", [sys.executable, "-c", script, str(port)], url, log)

    monkeypatch.setattr(llama_cpp, "launch", launch)
    gguf = write(tmp_path / "q", "q4.gguf")
    words = ["--model", str(gguf), "--port", "0", "--log_dir", str(tmp_path / "logs")]
    return serve_model.main([*words, "--timeout", "20"])


STUB = """
import os, signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class H(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        END
    def log_message(self, *a): pass
HTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"""


def test_an_engine_that_ends_by_itself_is_a_failure(tmp_path, monkeypatch, capsys):
    script = STUB.replace(
        "END", 'self.wfile.flush(); print("out of memory", flush=True); os._exit(3)'
    )
    with pytest.raises(Failed, match=r"llama.cpp ended with code 3(?s:.*)out of memory"):
        serve_stub(tmp_path, monkeypatch, script)
    assert "serving q on http://127.0.0.1:" in capsys.readouterr().out


def test_sigint_while_serving(tmp_path, monkeypatch, capsys):
    script = STUB.replace("END", "os.kill(PARENT, signal.SIGINT)").replace(
        "PARENT", str(os.getpid())
    )
    assert serve_stub(tmp_path, monkeypatch, script) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "stopped"


def test_progress_is_told(monkeypatch, capsys):
    clock = iter([0.0, 5.0, 10.5, 15.0, 21.0])
    monkeypatch.setattr(serve_model.time, "monotonic", lambda: next(clock))
    progress = serve_model.Progress("vLLM", 60)
    assert not any(progress.say() for _ in range(4))
    assert capsys.readouterr().err.splitlines() == [
        "waiting for vLLM: 10 s of at most 60 s", "waiting for vLLM: 21 s of at most 60 s",
    ]  # fmt: skip


def test_a_model_that_would_be_served_greedily_is_told_of(tmp_path, capsys, everything_here):
    hf = export(tmp_path / "hf")
    write(hf, generation_config={})
    args = options.parser().parse_args(["--model", str(hf), "--log_dir", str(tmp_path / "logs")])
    served = find_served(str(hf))
    plan = engine_plan.make_plan(args, served, "transformers", [], None, ("127.0.0.1", 1))
    serve_model._prepare(args, plan)
    assert "no do_sample: true, so the engine answers greedily" in capsys.readouterr().err

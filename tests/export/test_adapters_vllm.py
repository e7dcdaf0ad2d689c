"""vLLM itself serves an exported model and three adapters by name, and answers as peft does."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "policy"))
import tiny_policies as tp
from test_adapter import lora_run

from align.engines import vllm
from align.engines.process import Server, free_port
from align.engines.venvs import ENV, find_python
from align.export.adapter_folder import read_adapters, read_base, serve_args
from align.export.command import main
from align.serving.check_server import main as check_server

NAMES = ("sft", "dpo", "ppo")
# vLLM's attention on a CPU has no kernel for heads of fewer than 32 numbers.
SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1,
         "max_position_embeddings": 512}  # fmt: skip


@pytest.mark.engines
@pytest.mark.skipif(find_python("vllm") is None, reason=f"{ENV} has no vllm environment")
def test_vllm_serves_base_and_adapters_as_they_were_exported(tmp_path):
    base = tp.save(tmp_path / "model", **SHAPE)
    assert main(["--model", base, "--output", str(tmp_path / "hf"), "--parity", "8"]) == 0
    runs = [lora_run(tmp_path / name, base, seed=i) for i, name in enumerate(NAMES)]
    out = tmp_path / "all"
    words = [f"{name}={run}" for name, run in zip(NAMES, runs, strict=True)]
    where = ["--to", "adapter", "--output", str(out), "--parity", "8"]
    assert main(["--adapters", *words, *where]) == 0

    options = ["--served-model-name", "base", *serve_args(read_adapters(out))]
    launch = vllm.launch(
        read_base(out), python=str(find_python("vllm")), log=tmp_path / "vllm.log",
        port=free_port(), options=options, env={"VLLM_CPU_KVCACHE_SPACE": "1"},
    )  # fmt: skip
    with Server(launch) as server:
        server.wait(300)
        with urllib.request.urlopen(f"{server.url}/v1/models", timeout=30) as answer:
            served = {entry["id"] for entry in json.load(answer)["data"]}
        assert served == {"base", *NAMES}
        files = {"base": tmp_path / "hf", **{name: out / "adapters" / name for name in NAMES}}
        for name, folder in files.items():
            asked = ["--url", server.url, "--model", name]
            report = tmp_path / f"{name}.json"
            file = str(folder / "parity.jsonl")
            assert check_server([*asked, "--parity", file, "--report", str(report)]) == 0
            found = json.loads(report.read_text())
            assert found["prompts"] == "vllm"
            assert found["ids_equal"] == found["rows"] == 8
        # The adapters differ: one does not pass for another.
        file = str(files["dpo"] / "parity.jsonl")
        assert check_server(["--url", server.url, "--model", "sft", "--parity", file]) == 1

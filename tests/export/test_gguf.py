"""GGUF: what the converter is given, the Modelfile, and, with llama.cpp, ids, metadata, figures."""

from __future__ import annotations

import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "data"))
sys.path.insert(0, str(Path(__file__).parent.parent / "evaluation"))
import eval_models
import tiny_llama
import tokenizer_texts

from align.config_errors import Failed, UserError
from align.config_schema import Tokenizer
from align.engines.llama_cpp import find
from align.engines.process import Launch, Server
from align.engines.venvs import find_python
from align.export import gguf, gguf_tokens
from align.export.command import main
from align.export.gguf_server import Asked, serving

DATA = Path(__file__).parents[2] / "recipes" / "data"
HERE = all((find("llama-server"), find("llama-quantize"), find_python("llama.cpp")))
needs_llama_cpp = pytest.mark.skipif(
    not (HERE and find_spec("gguf")),
    reason="ALIGN_ENGINES has no llama.cpp: recipes/setup_engine.py llama.cpp",
)


def pieces(template: str = "chatml"):
    """A tokenizer of ours that llama.cpp reads alike: sentencepiece's BPE."""
    from align.data.tokenizer import learn_tokenizer

    settings = Tokenizer(kind="bpe", vocab_size=800, user_defined_symbols=["<工具>"])
    return learn_tokenizer(
        tokenizer_texts.english(300) + eval_models.TEXTS, settings, chat_template=template
    ).tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = pieces()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=800, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
        initializer_range=0.2, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_converter_is_given_a_sentencepiece_model_with_the_same_ids(model, tmp_path):
    """Read by sentencepiece itself, on both languages."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    from align.checkpoints import read_tokenizer

    folder = gguf_tokens.folder_for_converter(model, tmp_path / "links")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = read_tokenizer(model)
    for text in gguf_tokens.TEXTS:
        assert processor.encode(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert processor.IsControl(tokenizer.eos_token_id)
    assert not processor.IsControl(tokenizer.convert_tokens_to_ids("<工具>"))
    told = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert (told["add_prefix_space"], told["add_bos_token"]) == (False, False)
    assert "add_prefix_space" not in json.loads((model / "tokenizer_config.json").read_text())
    gguf_tokens.drop(folder)
    assert (model / "model.safetensors").is_file()


def test_chatml_is_known_by_what_it_renders():
    assert gguf_tokens.chatml_system(eval_models.tokenizer("chatml")) == ""
    for other in ("inst", "zh_instruction"):
        assert gguf_tokens.chatml_system(eval_models.tokenizer(other)) is None
    tokenizer = eval_models.tokenizer("chatml")
    named = "{{ '<|im_start|>system\nYou are 小明<|im_end|>\n' }}"
    tokenizer.chat_template = named + tokenizer.chat_template
    assert gguf_tokens.chatml_system(tokenizer) == "You are 小明"


def test_the_modelfile_stops_at_every_stop_token():
    tokenizer = eval_models.tokenizer("chatml")
    stops = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    lines = gguf_tokens.model_file(["a.gguf", "b.gguf"], tokenizer, stops).splitlines()
    assert lines[:2] == ["FROM ./a.gguf", "# FROM ./b.gguf"]
    assert 'PARAMETER stop "<|im_end|>"' in lines
    assert 'PARAMETER stop "<|endoftext|>"' in lines
    assert any(line.startswith('TEMPLATE """{{- range .Messages }}<|im_start|>') for line in lines)
    other = gguf_tokens.model_file(["a.gguf"], eval_models.tokenizer("inst"), stops)
    assert "TEMPLATE" not in other.replace("# No TEMPLATE", "")
    assert "llama-server --jinja" in other


class Wrong:
    """A server that puts a token before every text."""

    def ids(self, text, *, special=False):
        return [1, 2]


def test_other_ids_are_an_error_that_shows_them():
    said = r"gguf: llama.cpp reads 'The quick.* as \[1, 2\], the model's tokenizer as \["
    with pytest.raises(Failed, match=said):
        gguf_tokens.check_ids(Wrong(), eval_models.tokenizer())  # type: ignore[arg-type]


def test_the_converters_architectures_are_read_without_running_it(tmp_path):
    file = tmp_path / "lib" / "python3.11" / "site-packages" / "conversion" / "__init__.py"
    file.parent.mkdir(parents=True)
    file.write_text('import nowhere\nTEXT_MODEL_MAP: dict[str, str] = {"LlamaForCausalLM": "l"}\n')
    assert gguf.architectures(tmp_path / "bin" / "python") == {"LlamaForCausalLM"}


def test_a_missing_llama_cpp_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_ENGINES", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"setup_engine.py llama.cpp"):
        gguf.check(None, ["q4_k_m"])


def test_programs_that_are_missing(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    python = tmp_path / "llama.cpp" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("")
    monkeypatch.setenv("ALIGN_ENGINES", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs llama-server, which is neither on PATH"):
        gguf.check(None, ["f16"])


def test_an_unknown_byte_level_tokenizer_is_said_by_the_converter():
    code = "print('BPE pre-tokenizer was not recognized'); raise SystemExit(1)"
    with pytest.raises(UserError, match="does not know this byte-level tokenizer"):
        gguf.run([sys.executable, "-c", code], "the converter")
    with pytest.raises(Failed, match=r"the converter ended with code 3.*(?s:.*)no room"):
        gguf.run([sys.executable, "-c", "print('no room'); raise SystemExit(3)"], "the converter")


def test_memory_is_the_servers_own(tmp_path):
    """Not that of the guard which stands before it."""
    script = "import time; held = b'1' * (128 << 20); print('held', flush=True); time.sleep(600)"
    log = tmp_path / "log"
    one = Launch("one", [sys.executable, "-c", script], "http://127.0.0.1:9", log)
    with Server(one) as server:
        while "held" not in log.read_text():
            assert server.alive()
            time.sleep(0.05)
        held = Asked(server).memory()
        assert held is None or held > 128 << 20


@pytest.mark.engines
@needs_llama_cpp
def test_files_of_a_model_with_a_tokenizer_of_ours(model, tmp_path):
    out = tmp_path / "out"
    words = ["--model", str(model), "--output", str(out), "--to", "gguf", "--gguf_type", "q8_0",
             "q4_0", "--eval_data", str(DATA / "sft.jsonl"), "--num_prompts", "3",
             "--answer_tokens", "8", "--max_ppl_increase", "0.5"]  # fmt: skip
    assert main(words) == 0
    names = sorted(p.name for p in out.iterdir())
    assert names == ["Modelfile", "model-q4_0.gguf", "model-q8_0.gguf", "parity.jsonl",
                     "quantisation.json"]  # fmt: skip
    q8, q4 = json.loads((out / "quantisation.json").read_text(encoding="utf-8"))["models"]
    assert abs(q8["perplexity_growth"]) < abs(q4["perplexity_growth"])
    assert q4["after"]["disk_bytes"] < q8["after"]["disk_bytes"] < q8["before"]["disk_bytes"]
    assert q8["same_ids"] == len(gguf_tokens.TEXTS) + len(gguf_tokens.CHATS)
    fields = gguf.reader(out / "model-q4_0.gguf").fields
    assert "<|im_start|>" in fields["tokenizer.chat_template"].contents()
    eot = fields["tokenizer.ggml.eot_token_id"].contents()
    assert eot != fields["tokenizer.ggml.eos_token_id"].contents()
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.engines
@needs_llama_cpp
def test_the_dequantised_weights_give_llama_cpps_probabilities(model, tmp_path):
    """Perplexity is measured in transformers; its first log-probs are those of llama.cpp."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    out = tmp_path / "out"
    assert main(["--model", str(model), "--output", str(out), "--to", "gguf", "--gguf_type",
                 "f16", "q8_0", "--num_prompts", "1", "--answer_tokens", "1"]) == 0  # fmt: skip
    # llama.cpp also rounds the activations, to 16 and to 8 bits; this model's logits are large.
    for kind, tolerance in (("f16", 0.01), ("q8_0", 0.1)):
        read = AutoModelForCausalLM.from_pretrained(
            out, gguf_file=f"model-{kind}.gguf", dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )  # fmt: skip
        with serving(out / f"model-{kind}.gguf") as asked:
            for prompt in ([5, 9, 33, 101, 7], [300, 301, 302]):
                with torch.no_grad():
                    logps = read(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
                body = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": 5}
                (first,) = asked.post("/completion", body)["completion_probabilities"]
                for entry in first["top_logprobs"]:
                    wanted = float(logps[entry["id"]])
                    assert entry["logprob"] == pytest.approx(wanted, abs=tolerance)


@pytest.mark.engines
@needs_llama_cpp
def test_a_tokenizer_that_llama_cpp_cuts_otherwise_is_refused(tmp_path):
    folder = tiny_llama.save(tmp_path / "model")  # char_bpe
    with pytest.raises(UserError, match="cuts text by a pattern"):
        main(["--model", str(folder), "--output", str(tmp_path / "out"), "--to", "gguf"])

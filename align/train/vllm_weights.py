"""New weights for a vLLM server: as files, as an adapter alone, or over NCCL.

A push has two halves. `collect` runs on every rank, because weights may be in parts that are only
put together by all; an error of rank 0's disk is kept until it is over. `deliver` runs on rank 0
and tells the server. At most rollout.gather_chunk_mb of weights are held at once.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from align.config_errors import Failed
from align.distributed import full_tensor, gathered, rank
from align.files import whole_folder
from align.policy_module import base_model
from align.rollout.vllm_http import Asked, EngineDown
from align.rollout.vllm_server import NAME, serves
from align.whole import whole_weights

if TYPE_CHECKING:
    from align.train.ppo import PpoTrainer


class Reload:
    """Merged weights in one of two folders, which the server reads anew.

    folder: where both are. name: of the model on the server. current: the folder written last.
    """

    whole = True  # what it collects is all that the server needs
    restartable = True

    def __init__(self, trainer: PpoTrainer, folder: Path) -> None:
        self.trainer, self.folder = trainer, folder
        self.name = NAME
        self.current = folder / "none"
        self.error: Exception | None = None
        self._count = 0

    def collect(self) -> None:
        """Write the policy's current weights, with what a server needs beside them."""
        self._count += 1
        target = self.folder / f"weights-{self._count % 2}"
        self.error = write_model(self.trainer, target, adapted=self.whole)
        self.current = target

    def named(self, model: str, stem: str, *, url: str) -> None:
        """Told once: the model's name on the server, a word of this run, where the server is."""
        self.name = model

    def check(self) -> None:
        """Raise what kept the weights from being written."""
        if self.error is not None:
            raise Failed(f"the weights could not be pushed: {self.error}") from self.error

    def deliver(self, http: Asked) -> None:
        """Let the server read what was written, and forget what it computed before."""
        self.check()
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(self.current)}}
        try:
            http.ask("POST", "/collective_rpc", body)
        except EngineDown as error:
            if not http.healthy():
                raise
            where = f"It must see {self.current} under this path (rollout.sync_dir)"
            raise Failed(f"{error}. {where}") from error
        self._forget(http)

    def restore(self, http: Asked) -> None:
        """After a restart on `current`: nothing is missing."""

    def close(self) -> None:
        """Nothing is open."""

    def _forget(self, http: Asked) -> None:
        answer = http.ask("POST", "/reset_prefix_cache")
        if isinstance(answer, dict) and not answer.get("success", True):
            raise Failed(f"{http.url} kept its prefix cache: requests of others are under way")


class Adapter(Reload):
    """The adapter alone, under a new name each time; the server has the base."""

    whole = False

    def __init__(self, trainer: PpoTrainer, folder: Path) -> None:
        super().__init__(trainer, folder)
        self._has_base, self._stem, self._loaded = False, "", ""

    def named(self, model: str, stem: str, *, url: str) -> None:
        """The base has a name, and adapters of another run may be on the server too."""
        self._has_base, self._stem = True, stem

    def collect(self) -> None:
        """At first the base's weights for a server to start on, from then on the adapter's."""
        if not self._has_base:
            super().collect()
            return
        self._count += 1
        self.current = self.folder / f"adapter-{self._count % 2}"
        self.error = write_adapter(self.trainer, self.current)
        self.name = f"{NAME}-{self._stem}-{self._count}"

    def deliver(self, http: Asked) -> None:
        """Add the adapter under its name, and drop the one before."""
        self.check()
        self.restore(http)
        if self._loaded and serves(http, self._loaded):
            http.ask("POST", "/v1/unload_lora_adapter", {"lora_name": self._loaded})
        self._loaded = self.name

    def restore(self, http: Asked) -> None:
        """Add the current adapter to a server that has the base, where it is not there."""
        if self._has_base and not serves(http, self.name):
            body = {"lora_name": self.name, "lora_path": str(self.current)}
            http.ask("POST", "/v1/load_lora_adapter", body)


def write_model(trainer: PpoTrainer, folder: Path, *, adapted: bool) -> Exception | None:
    """Write a model folder on rank 0; every rank must call. Returns what went wrong there."""
    lm: Any = trainer.policy.module.lm
    chunks = whole_weights(lm, trainer.settings.rollout.gather_chunk_mb, adapted=adapted)
    if rank() != 0:
        for _ in chunks:
            pass
        return None
    try:
        with whole_folder(folder) as target:
            _write_beside(trainer, target)
            _write_shards(chunks, target)
    except Exception as error:
        for _ in chunks:  # the others still wait for this rank
            pass
        return error
    return None


def _write_beside(trainer: PpoTrainer, folder: Path) -> None:
    """Configuration and tokenizer."""
    source = base_model(trainer.policy.module.lm)
    config = copy.deepcopy(source.config)
    config.architectures = [type(source).__name__]
    config.dtype = source.dtype
    config.save_pretrained(folder)
    trainer.policy.tokenizer.save_pretrained(folder)


def _write_shards(chunks: Any, folder: Path) -> None:
    """One safetensors file a chunk, and their index."""
    from safetensors.torch import save_file

    places: dict[str, str] = {}
    total = 0
    for number, part in enumerate(chunks):
        file = f"model-{number:05d}.safetensors"
        held = {name: tensor.cpu().contiguous() for name, tensor in part}
        save_file(held, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(held, file)
        total += sum(t.nbytes for t in held.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def write_adapter(trainer: PpoTrainer, folder: Path) -> Exception | None:
    """Write the policy's adapter on rank 0; every rank must call. Returns what went wrong there."""
    lm: Any = trainer.policy.module.lm
    named = [(n, p) for n, p in lm.named_parameters() if ".lora_" in n and ".default" in n]
    state: dict[str, Tensor] = {}
    with gathered([p for _, p in named]):
        for name, parameter in named:
            whole = full_tensor(parameter.detach())
            if rank() == 0:
                state[name] = whole.cpu().clone()
    if rank() != 0:
        return None
    try:
        with whole_folder(folder) as target:
            lm.save_pretrained(target, selected_adapters=["default"], state_dict=state)
    except Exception as error:
        return error
    return None


def remove(folder: Path) -> None:
    """Take away what was written for the server."""
    for name in ("weights-0", "weights-1", "adapter-0", "adapter-1", "gave_up"):
        place = folder / name
        shutil.rmtree(place, ignore_errors=True)
        if place.is_file():
            place.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()

"""PPO's rollouts from vLLM in the training processes: one engine a rank, on the rank's own device.

Weights go there as for a server: rank 0 writes them, and each rank's vLLM reads the folder. While
the policy is optimised vLLM sleeps and its memory is free. It never samples beside training, and an
engine that fails is not started again: the run ends with its state saved.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from align.config_engine import max_lora_rank
from align.config_errors import Failed
from align.distributed import from_rank_zero, rank, world_size
from align.rollout import Sampler
from align.rollout.vllm import Served
from align.rollout.vllm_local import VllmLocal, start
from align.rollout.vllm_server import NAME
from align.train.halt import agreed
from align.train.vllm_check import Found
from align.train.vllm_engine import VllmEngine

if TYPE_CHECKING:
    from align.config import Config
    from align.train.ppo import PpoTrainer


class ColocatedEngine(VllmEngine):
    """A `RolloutEngine` over `vllm.LLM` in each training process."""

    threads = False
    everywhere = True
    where = "vLLM"
    look = "Look at what it said above, and at its dtype"

    def __init__(self, trainer: PpoTrainer) -> None:
        super().__init__(trainer)
        self.local: VllmLocal | None = None
        self.engine = _Once()

    @contextmanager
    def sampling(self, **overrides: Any) -> Iterator[Sampler]:
        """A sampler of the weights of the last sync; vLLM sleeps after the block."""
        with super().sampling(**overrides) as sampler:
            try:
                yield sampler
            finally:
                self._sleep()

    def close(self) -> None:
        """End vLLM's processes, and remove the weights that were written for them."""
        if self.local is not None:
            self.local.close()
        super().close()

    def _begin(self) -> bool:
        """Start vLLM on the policy's weights; whether it has them now."""
        self._collect()
        stem = from_rank_zero(lambda: os.urandom(4).hex())
        agreed(self._start, self.told)
        assert self.local is not None
        self.push.named(NAME, stem, url=self.local.url)
        self.served = Served(self.local, NAME, self.positions())
        return self.push.whole

    def _start(self) -> None:
        """This rank's engine."""
        device = self.trainer.args.device
        cpu = device.type == "cpu"
        folder = self.push.current
        if not folder.is_dir():
            raise Failed(f"rank {rank()} does not see {folder}: rollout.sync_dir must be shared")
        words = llm_words(self.config, cpu=cpu) | {"max_model_len": self.positions()}
        llm, own = start(engine_env(device), model=str(folder), **words)
        self.local = VllmLocal(llm, own, NAME, sleeps=not cpu)
        self._found = Found(NAME, self.positions(), llm.model_config.dtype == torch.float32)

    def _collect(self) -> None:
        """Write them; whole before another rank reads."""
        super()._collect()
        agreed(self.push.check, self.told)

    def _deliver(self) -> None:
        """Let this rank's engine read them."""
        assert self.local is not None
        self.push.deliver(self.local)

    def _sleep(self) -> None:
        if self.local is not None:
            self.local.sleep()


class _Once:
    """An engine that is not started again."""

    def mark(self) -> int:
        """It has one start."""
        return 0

    def answered(self) -> None:
        """Of no use here."""

    def recover(self, mark: int, error: Exception, told: Callable[[], bool]) -> None:
        """Not possible."""
        raise Failed(str(error)) from error


def llm_words(config: Config, *, cpu: bool) -> dict[str, Any]:
    """Arguments of `vllm.LLM`, as a server of the run would have them."""
    rollout, lora = config.rollout, config.policy.lora
    words: dict[str, Any] = {
        "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",
        "trust_remote_code": config.policy.trust_remote_code,
        "tensor_parallel_size": 1,
        "gpu_memory_utilization": rollout.gpu_memory_utilization,
        "max_num_seqs": rollout.batch_size,
        "use_tqdm_on_load": False,
    }
    if cpu:
        # The last for the reason that align.engines.vllm.CPU gives.
        words |= {"dtype": "float32", "enforce_eager": True, "enable_chunked_prefill": False}
    else:
        words["enable_sleep_mode"] = True
    if rollout.sync == "lora" and lora is not None:
        words |= {"enable_lora": True, "max_lora_rank": max_lora_rank(lora.r)}
    return words


def engine_env(device: torch.device) -> dict[str, str]:
    """Variables of this rank's vLLM: its device alone, and on a CPU a share of it."""
    quiet = {"VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR")}
    if device.type == "cpu":
        shared = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"} if world_size() > 1 else {}
        room = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
        return {**quiet, **{k: os.environ.get(k, v) for k, v in (room | shared).items()}}
    seen = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    place = device.index or 0
    return {**quiet, "CUDA_VISIBLE_DEVICES": seen[place] if seen else str(place)}

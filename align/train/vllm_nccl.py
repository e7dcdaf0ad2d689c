"""New weights over NCCL through trl's client. Small, and untested: it needs two GPUs.

trl's `VLLMClient` joins vLLM's weight-transfer group; its public methods `init_communicator`,
`weight_update`, `update_named_param`, `reset_prefix_cache` and `close_communicator` are all that is
used (tests/train/test_vllm_nccl.py holds them to that). To be replaced when vLLM has a client of
its own: https://github.com/huggingface/trl/blob/main/trl/generation/vllm_client.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.distributed import rank
from align.rollout.vllm_http import Asked
from align.train.vllm_weights import Reload, write_model
from align.whole import whole_weights

if TYPE_CHECKING:
    from align.train.ppo import PpoTrainer


class Nccl(Reload):
    """Weights from the trainer's GPU to the server's; the first ones are the files it starts on.

    A server that died is not started again: only all ranks together can send what it lost.
    """

    restartable = False

    def __init__(self, trainer: PpoTrainer, folder: Path) -> None:
        super().__init__(trainer, folder)
        self._client: Any = None
        self._url: str | None = None

    def named(self, model: str, stem: str, *, url: str) -> None:
        """From now on weights are sent there."""
        super().named(model, stem, url=url)
        self._url = url

    def collect(self) -> None:
        """Send every weight; before there is a server, write what it starts on."""
        if self._url is None:
            self.current = self.folder / "weights-0"
            self.error = write_model(self.trainer, self.current, adapted=True)
            return
        chunks = whole_weights(
            self.trainer.policy.module.lm, self.trainer.settings.rollout.gather_chunk_mb
        )
        self.error = None
        if rank() == 0:
            try:
                self._send(chunks)
            except Exception as error:
                self.error = error
        for _ in chunks:  # the other ranks, and this one after an error: all gather to the end
            pass

    def deliver(self, http: Asked) -> None:
        """They are there; forget what was computed with the ones before."""
        self.check()
        self._forget(http)

    def close(self) -> None:
        """Leave the group."""
        if self._client is not None:
            self._client.close_communicator()

    def _send(self, chunks: Any) -> None:
        if self._client is None:
            from trl.generation.vllm_client import VLLMClient

            self._client = VLLMClient(base_url=self._url, connection_timeout=60.0)
            self._client.init_communicator(device=self.trainer.args.device)
        with self._client.weight_update():
            for part in chunks:
                for name, tensor in part:
                    self._client.update_named_param(name, tensor)

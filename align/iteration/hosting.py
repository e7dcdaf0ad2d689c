"""A model on a vLLM server for as long as a stage samples from it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.files import whole_folder
from align.rollout.vllm import Served, VllmSampler
from align.rollout.vllm_server import Lasting, Managed, described

if TYPE_CHECKING:
    from align.config_rollout import RolloutServer

WEIGHTS = ".served"


@dataclass
class Hosted:
    """A served model, and the server that is started again where it dies."""

    served: Served
    server: Managed

    def sampler(self, tokenizer: Any, fields: dict[str, Any]) -> Lasting:
        """A sampler of it; fields as of `VllmSampler`."""
        return Lasting(VllmSampler(self.served, tokenizer, **fields), self.server, lambda: False)


@contextmanager
def hosted(
    loaded: tuple[Any, Any], settings: RolloutServer, output: Path
) -> Iterator[tuple[Hosted, Any]]:
    """A loaded model and its tokenizer, adapters merged, on a server that lives inside the block.

    output: folder of the stage; the model lies there meanwhile, and the log is in its logs/.
    """
    model, tokenizer = loaded
    weights = output / WEIGHTS
    with whole_folder(weights) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    log = Path(settings.log_dir or output / "logs").absolute() / "vllm.log"
    server = Managed(settings, log, cpu=model.device.type == "cpu")
    del model, loaded
    try:
        server.start(weights.absolute())
        yield Hosted(described(server.http), server), tokenizer
    finally:
        server.close()
        shutil.rmtree(weights, ignore_errors=True)

"""torchao: 8-bit weights and 8-bit activations for plain CPUs, loaded by `from_pretrained`.

Weights: one scale an output channel. Activations are rounded when the model runs, a scale a token,
so that the product is one of integers. torchao 0.18 writes its tensors to safetensors.
"""

from __future__ import annotations

import importlib.metadata
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from align.config_errors import UserError
from align.export.bnb import check_projections
from align.export.shapes import Facts


def check(form: str, facts: Facts | None) -> None:
    """UserError where torchao is missing or would leave the projections as they are."""
    if find_spec("torchao") is None:
        raise UserError("--to", form, "needs torchao", "pip install 'align[quantize]'")
    check_projections(form, facts)
    check_linear(form, facts, "torchao")


def check_linear(form: str, facts: Facts | None, engine: str) -> None:
    """UserError for a model whose projections are no nn.Linear: an engine would pass them by."""
    if facts is not None and facts.conv1d:
        reason = f"cannot be made: {facts.kind} holds its projections as Conv1D, and {engine} " \
            "quantises nn.Linear only"  # fmt: skip
        raise UserError("--to", form, reason, "Use --to bnb-8bit or bnb-4bit")


def write(form: str, source: Path, output: Path) -> dict[str, Any]:
    """Quantise the model in `source` while it is read and save it to `output`; what was done."""
    import torch

    for name in ("torchao", "torch.utils._pytree"):  # kernels for GPUs that are not here
        logging.getLogger(name).setLevel(logging.ERROR)
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    from align.export.hf import stored_dtype
    from align.model_safety import weight_options

    model = AutoModelForCausalLM.from_pretrained(
        str(source),
        dtype=getattr(torch, stored_dtype(source)),
        quantization_config=TorchAoConfig(Int8DynamicActivationInt8WeightConfig(version=2)),
        **weight_options(source, "model"),
    )
    count = sum(type(p).__module__.startswith("torchao") for p in model.parameters())
    model.save_pretrained(str(output))
    return {"quantised": count, "versions": {"torchao": importlib.metadata.version("torchao")}}

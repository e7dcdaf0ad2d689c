"""bitsandbytes: NF4 or 8-bit weights that `from_pretrained` loads by itself, on a CPU too."""

from __future__ import annotations

import importlib.metadata
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from align.config_errors import UserError
from align.export.shapes import Facts

FORMS = ("bnb-4bit", "bnb-8bit")
# What bitsandbytes 0.50 packs 4-bit weights in on a CPU with AVX512-BF16 (functional.py,
# _convert_weight_packed_for_cpu): it fails when such a model runs, not when it is made.
BLOCK, TILE = 64, 32


def check(form: str, facts: Facts | None) -> None:
    """UserError where the package is missing or nothing would be quantised."""
    if find_spec("bitsandbytes") is None:
        raise UserError("--to", form, "needs bitsandbytes", "pip install 'align[quantize]'")
    check_projections(form, facts)
    if form == "bnb-4bit" and facts is not None:
        for name, (outputs, inputs) in facts.linears.items():
            if inputs % BLOCK or outputs % TILE:
                shape = f"{name} has {inputs} columns and {outputs} rows"
                reason = f"does not fit: {shape}; AVX512-BF16 needs multiples of {BLOCK} and {TILE}"
                raise UserError("--to", form, reason, "Use --to bnb-8bit or int8")


def check_projections(form: str, facts: Facts | None) -> None:
    """UserError for a model without a projection: its form would be the model itself."""
    if facts is not None and not facts.linears:
        reason = "has nothing to do: the model has no linear projections but its head"
        raise UserError("--to", form, reason, "Export it with --to hf")


def write(form: str, source: Path, output: Path) -> dict[str, Any]:
    """Quantise the model in `source` while it is read and save it to `output`; what was done.

    The head and the embeddings keep the dtype of the source, as transformers leaves them.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from align.export.hf import stored_dtype
    from align.model_safety import weight_options

    quieten()
    import torch

    dtype = getattr(torch, stored_dtype(source))
    if form == "bnb-4bit":
        how = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
        )  # fmt: skip
    else:
        how = BitsAndBytesConfig(load_in_8bit=True)
    options = weight_options(source, "model")
    model = AutoModelForCausalLM.from_pretrained(
        str(source), dtype=dtype, quantization_config=how, **options
    )
    kinds = {"bnb-4bit": "Linear4bit", "bnb-8bit": "Linear8bitLt"}
    count = sum(type(m).__name__ == kinds[form] for m in model.modules())
    model.save_pretrained(str(output))
    versions = {"bitsandbytes": importlib.metadata.version("bitsandbytes")}
    return {"quantised": count, "versions": versions}


def quieten() -> None:
    """The 8-bit product says once a call that it casts to float16: it always does."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)

"""Run by the python of gptqmodel's environment: quantise a model folder to another, 4 bits.

usage: python gptq.py SPEC.json REPORT.json. It imports nothing of this package, for its environment
does not have it. The report is written last: without one it failed.
"""

import json
import os
import sys
import time
from importlib import metadata


def main():
    """Quantise, save, report how long it took."""
    with open(sys.argv[1], encoding="utf-8") as file:
        spec = json.load(file)
    # gptqmodel 7.7 takes half the cores as workers, its loader wants two: two cores would not do.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, (os.cpu_count() or 1) // 2)))
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    torch.manual_seed(0)
    start = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    how = QuantizeConfig(bits=4, group_size=spec["group_size"], desc_act=False, device=device)
    model = GPTQModel.load(spec["model"], how)
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in spec["rows"]]
    backend = BACKEND.AUTO if device == "cuda" else BACKEND.TORCH
    model.quantize(rows, batch_size=1, backend=backend)
    model.save(spec["output"])
    report = {
        "seconds": time.monotonic() - start,
        "quantised": sum(1 for name, _ in model.model.named_buffers() if name.endswith("qweight")),
        "versions": {n: metadata.version(n) for n in ("gptqmodel", "torch", "transformers")},
    }
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(report, file)


if __name__ == "__main__":
    main()

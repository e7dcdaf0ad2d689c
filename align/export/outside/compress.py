"""Run by the python of the llm-compressor environment: quantise a model folder to another.

usage: python compress.py SPEC.json REPORT.json. It imports nothing of this package, for its
environment does not have it. The report is written last: without one it failed.
"""

import json
import sys
import time
from importlib import metadata


def recipe(spec):
    """The modifiers of a method. Every Linear but the head is quantised.

    awq, gptq: 4-bit integer weights in groups, activations as they are (W4A16). w8a8: weights
    rounded to 8 bits, a scale a channel; activations to 8 bits, a scale a token, when it runs: that
    needs no calibration.
    """
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationScheme,
        preset_name_to_scheme,
    )
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    ignore = ["lm_head"]
    if spec["method"] == "w8a8":
        scheme = preset_name_to_scheme("W8A8", ["Linear"])
        return [QuantizationModifier(config_groups={"group_0": scheme}, ignore=ignore)]
    weights = QuantizationArgs(
        num_bits=4, type="int", strategy="group", group_size=spec["group_size"], dynamic=False,
        symmetric=True,
    )  # fmt: skip
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    if spec["method"] == "awq":
        return [AWQModifier(), QuantizationModifier(config_groups=groups, ignore=ignore)]
    return [GPTQModifier(config_groups=groups, ignore=ignore)]


def pin_nothing():
    """Let AWQ run without a GPU: llm-compressor 0.14 pins its cache in memory whether there is one.

    Pinning only speeds copies to a device. The method is called in modifiers/transform/awq/base.py
    before every search; remove this when it asks torch.accelerator.is_available() first, as
    datasets/utils.py does.
    """
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda *words, **names: None


def main():
    """Quantise, save compressed, report how long it took and what was quantised."""
    with open(sys.argv[1], encoding="utf-8") as file:
        spec = json.load(file)
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    if spec["method"] == "awq":
        pin_nothing()
    start = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    rows = [{"input_ids": r, "attention_mask": [1] * len(r)} for r in spec["rows"]]
    data = {}
    if rows:
        data = {
            "dataset": Dataset.from_list(rows),
            "num_calibration_samples": len(rows),
            "max_seq_length": max(len(r) for r in spec["rows"]),
            "shuffle_calibration_samples": False,
        }
    oneshot(model=model, tokenizer=spec["model"], recipe=recipe(spec), **data)
    done = [n for n, m in model.named_modules() if getattr(m, "quantization_scheme", None)]
    model.save_pretrained(spec["output"], save_compressed=True)
    names = ("llmcompressor", "compressed-tensors", "torch", "transformers")
    report = {
        "seconds": time.monotonic() - start,
        "quantised": len(done),
        "versions": {name: metadata.version(name) for name in names},
    }
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(report, file)


if __name__ == "__main__":
    main()

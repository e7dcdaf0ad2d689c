"""Run by the python of an engine's environment: log-probs of tokens and greedy answers of a model.

usage: python measure.py SPEC.json REPORT.json. It imports nothing of this package, for its
environment does not have it. Token ids come in and go out: no tokenizer is read.
"""

import json
import sys
import time
from importlib import metadata


def log_probs(model, pairs):
    """Log-probability of every scored token given its context, float32, one row at a time."""
    import torch

    found = []
    for context, target in pairs:
        ids = torch.tensor([context + target], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(context) - 1 : -1].float()
        labels = ids[0, len(context) :]
        found.append(
            (-torch.nn.functional.cross_entropy(logits, labels, reduction="none")).tolist()
        )
    return found


def answers_of(model, spec):
    """Greedy answers to prompts up to and with their stop token, and the seconds they took."""
    import torch

    prompts, size = spec["prompts"], spec["batch"]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    found = [[] for _ in prompts]
    start = time.monotonic()
    for first in range(0, len(order), size):
        chunk = order[first : first + size]
        width = max(len(prompts[i]) for i in chunk)
        ids = torch.zeros(len(chunk), width, dtype=torch.long)
        mask = torch.zeros(len(chunk), width, dtype=torch.long)
        for row, i in enumerate(chunk):
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        out = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), do_sample=False,
            max_new_tokens=spec["answer_tokens"], eos_token_id=spec["stops"],
            pad_token_id=spec["stops"][0], top_k=None, top_p=None, temperature=None,
        )  # fmt: skip
        for row, i in enumerate(chunk):
            new = out[row, width:].tolist()
            ends = [k for k, token in enumerate(new) if token in spec["stops"]]
            found[i] = new[: ends[0] + 1] if ends else new
    return found, time.monotonic() - start


def main():
    """Load, measure, report."""
    with open(sys.argv[1], encoding="utf-8") as file:
        spec = json.load(file)
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else "auto"
    model = AutoModelForCausalLM.from_pretrained(
        spec["model"], dtype=dtype, device_map=device
    ).eval()
    with torch.no_grad():
        logps = log_probs(model, spec["pairs"])
        answers, seconds = answers_of(model, spec) if spec["prompts"] else ([], 0.0)
    report = {
        "logps": logps,
        "answers": answers,
        "tokens_per_s": sum(map(len, answers)) / seconds if answers else None,
        "memory": int(model.get_memory_footprint()),
        "engine": f"transformers {metadata.version('transformers')} with {spec['with']}",
    }
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(report, file)


if __name__ == "__main__":
    main()

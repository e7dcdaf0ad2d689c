"""Started by test_launch.py under `accelerate launch`: a real Trainer on a tiny model.

Prints one line, PROBE and a JSON object, from every rank.
"""

from __future__ import annotations

import json
import sys


def main(output_dir: str) -> None:
    from align.config import load_config
    from align.run import use_device

    config = load_config("sft", ["--config", "recipes/configs/smoke.yaml"])
    use_device(config)

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

    device = {k: v for k, v in config.train.args.items() if k in ("use_cpu", "ddp_backend")}
    args = TrainingArguments(
        output_dir=output_dir, max_steps=4, per_device_train_batch_size=2, logging_steps=1,
        learning_rate=1e-2, lr_scheduler_type="constant", report_to=[], save_strategy="no",
        disable_tqdm=True, **device,
    )  # fmt: skip
    set_seed(0)
    shape = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
    still = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(**shape, **still, bos_token_id=0, eos_token_id=0))
    drawn = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 64, (16,), generator=drawn) for _ in range(32)]
    rows = [{"input_ids": x, "labels": x} for x in ids]
    trainer = Trainer(model=model, args=args, train_dataset=rows)
    trainer.train()
    total = torch.tensor([args.process_index + 1.0])
    joined = torch.distributed.is_initialized()
    if joined:
        torch.distributed.all_reduce(total)
    history = trainer.state.log_history
    found = {
        "rank": args.process_index,
        "world": args.world_size,
        "sum": total.item(),
        "backend": torch.distributed.get_backend() if joined else None,
        "engine": type(trainer.model_wrapped).__name__,
        "losses": [row["loss"] for row in history if "loss" in row],
    }
    print("PROBE " + json.dumps(found), flush=True)
    if joined:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])

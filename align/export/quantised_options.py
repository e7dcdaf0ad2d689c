"""Options of the quantised forms in recipes/export_model.py. No torch."""

from __future__ import annotations

import argparse

from align.argument_types import number, whole

FORMS = ("gguf", "awq", "gptq", "w8a8", "bnb-4bit", "bnb-8bit", "int8")
GGUF_DIRECT = ("f32", "f16", "bf16", "q8_0")
"""What the converter writes; the others are made from an f16 file by llama-quantize."""
GGUF_QUANTISED = ("q6_k", "q5_k_m", "q5_k_s", "q5_0", "q4_k_m", "q4_k_s", "q4_0", "q3_k_m", "q2_k")
ENGINES = ("llmcompressor", "gptqmodel")


def group_size(text: str) -> int | None:
    """The value of --group_size: None for auto."""
    return None if text == "auto" else whole(1)(text)


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of gguf, awq, gptq, w8a8, bnb-4bit, bnb-8bit and int8."""
    p = parser.add_argument_group("quantised forms")
    p.add_argument(
        "--max_ppl_increase", type=number(0), metavar="SHARE",
        help="write nothing and exit 1 where perplexity grows by more; 0.05 is 5 %% (default: "
        "growth is reported, none refused)",
    )  # fmt: skip
    p.add_argument(
        "--eval_data", metavar="FILE",
        help="held-out conversations, preferences or texts for perplexity (default: the run's own)",
    )  # fmt: skip
    p.add_argument(
        "--num_eval", type=whole(1), default=64, metavar="N",
        help="most rows of it that are scored (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--calibration", metavar="FILE",
        help="rows that awq, gptq and w8a8 look at (default: the run's training data)",
    )  # fmt: skip
    p.add_argument(
        "--num_calibration", type=whole(1), default=128, metavar="N",
        help="most rows of it that are looked at (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--reward", metavar="PATH",
        help="reward checkpoint, module:function or file.py:function (default: the run's rewards)",
    )  # fmt: skip
    p.add_argument(
        "--prompts", metavar="FILE",
        help="prompts of the reward and speed figures (default: the run's held-out ones)",
    )  # fmt: skip
    p.add_argument(
        "--num_prompts", type=whole(1), default=16, metavar="N",
        help="most of them that are answered (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--answer_tokens", type=whole(1), default=64, metavar="N",
        help="longest greedy answer to a prompt (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--group_size", type=group_size, metavar="auto|N",
        help="columns that share a scale in awq and gptq (default auto: the largest of 128, 64, 32 "
        "that divides all)",
    )  # fmt: skip
    p.add_argument(
        "--gguf_type", nargs="+", default=["q4_k_m"], choices=(*GGUF_DIRECT, *GGUF_QUANTISED),
        metavar="TYPE", help=f"one or several of {', '.join((*GGUF_DIRECT, *GGUF_QUANTISED))}",
    )  # fmt: skip
    p.add_argument(
        "--engine",
        choices=ENGINES,
        default="llmcompressor",
        help="what quantises gptq (default: %(default)s)",
    )

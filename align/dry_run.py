"""`--dry_run`: what a run would do, without training or writing anything.

Shown: the resolved configuration, the batch arithmetic, one decoded example with its loss marked,
and parameter and memory estimates from a model on the meta device.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import launch_env
from align.config_checks import NEEDED
from align.config_errors import UserError
from align.data.corpus import iter_texts
from align.dry_run_cost import cost_lines
from align.dry_run_size import meta_module, size_lines
from align.evaluation.suite_config import training_suite
from align.prerequisites import fill, has_demo_data, missing_stages, uses_demo_data

if TYPE_CHECKING:
    from align.config import Config

OPEN, CLOSE = "⟦", "⟧"  # around the tokens that are in the loss


def dry_run(config: Config) -> int:
    """Print the plan of a run; return the exit code."""
    print("# configuration\n" + config.to_yaml())
    plan = copy.deepcopy(config)
    demo_data = uses_demo_data(config)
    fill(plan)
    first = ["the demo's data"] if demo_data and not has_demo_data(config) else []
    if first := first + missing_stages(config):
        print(f"# built first, because `auto` refers to them: {', '.join(first)}\n")
    print("# batches\n" + "\n".join(batch_lines(plan)) + "\n")
    if suite := training_suite(plan):
        lines = [f"  {t.name}: {t.kind}, {len(t.rows)} rows" for t in suite.tasks]
        print(f"# suite {suite.name}, at every evaluation\n" + "\n".join(lines) + "\n")
    tokenizer = load_tokenizer(plan) if plan.method != "tokenizer" else None
    print(f"# one example ({OPEN}…{CLOSE} is in the loss)\n" + example(plan, tokenizer) + "\n")
    if plan.method != "tokenizer":
        module = meta_module(plan, len(tokenizer) if tokenizer is not None else None)
        print("# size\n" + "\n".join(size_lines(plan, module)) + "\n")
        print("# cost\n" + "\n".join(cost_lines(plan, module, _groups(plan, tokenizer))))
    print("\nNothing was trained or written.")
    return 0


def batch_lines(config: Config) -> list[str]:
    """Return the batch arithmetic as lines."""
    if config.method == "tokenizer":
        settings, text = config.tokenizer, ", ".join(config.texts)
        number = settings.sample_sentences
        read = f"{number:,} paragraphs" if number else "the whole"
        made = f"extension of {settings.extend}" if settings.extend else settings.kind
        return [f"  {made}, vocabulary {settings.vocab_size}, from {read} of {text}"]
    args, world = config.train.args, launch_env.asked_world()
    device = args.get("per_device_train_batch_size", 8)
    accumulate = args.get("gradient_accumulation_steps", 1)
    unit = {"pretrain": "rows", "sft": "examples"}.get(config.method, "preference groups")
    lines = [
        f"  {device} per device × {world} process(es) × {accumulate} accumulation = "
        f"{device * world * accumulate} {unit} a step"
    ]
    if config.method == "pretrain":
        tokens = device * world * accumulate * config.pretrain.block_size
        lines.append(f"  × block_size {config.pretrain.block_size} = {tokens} tokens a step")
    steps = args.get("max_steps", -1)
    what = f"{steps} steps" if steps > 0 else f"{args.get('num_train_epochs', 3.0):g} epochs"
    if config.method == "ppo":
        rollout, ppo = config.rollout, config.ppo
        total = rollout.prompts_per_update * rollout.n
        each = ppo.ppo_epochs * ppo.num_minibatches
        if steps > 0:
            what += f" = {steps / each:g} updates"
        lines = [
            f"  rollout: {rollout.prompts_per_update} prompts × {rollout.n} = {total} completions "
            f"of at most {rollout.max_new_tokens} tokens, {total // world} on each of {world}",
            f"  {ppo.ppo_epochs} passes × {ppo.num_minibatches} minibatches of "
            f"{total // ppo.num_minibatches} = {each} optimiser steps an update, "
            f"{min(device, total // ppo.num_minibatches // world)} completions at once on a device",
        ]
    if config.train.max_tokens_per_batch:
        lines.append(f"  at most {config.train.max_tokens_per_batch} tokens in a micro-batch")
    return [*lines, f"  for {what}"]


def load_tokenizer(config: Config) -> Any:
    """Return the tokenizer that the run would use, or None if it has yet to be built."""
    from align import policy_loading
    from align.chat import prepare_tokenizer
    from align.checkpoints import is_adapter, tokenizer_folder
    from align.fresh import fresh_tokenizer

    path, root = config.policy.path, config.demo.root
    if path is None:
        known = config.pretrain.tokenizer
        if known is not None and not Path(known).exists() and known.startswith(root):
            return None
        if known is None and not all(Path(path).exists() for path in config.texts):
            return None  # the demo's corpus
        tokenizer = fresh_tokenizer(config)
        plain = config.method == "pretrain"
        return tokenizer if plain else prepare_tokenizer(tokenizer, config.data.chat_template)
    if not Path(path).exists() and path.startswith(root):
        return None
    folder = tokenizer_folder(Path(path)) if is_adapter(path) else path
    return policy_loading.load_tokenizer(folder, config)


def example(config: Config, tokenizer: Any) -> str:
    """Return the first training example that fits, decoded, with the loss marked."""
    method = config.method
    path: Any = config.prompts_path if method == "ppo" else getattr(config.data, NEEDED[method])
    if NEEDED[method] == "text":
        path = next(iter(config.texts))
    if not Path(path).exists():
        return "  (the data have yet to be written)"
    if method == "tokenizer":
        return next(iter(iter_texts(path)))
    if tokenizer is None:
        return "  (the tokenizer has yet to be built)"
    if method == "pretrain":
        return _text_example(config, tokenizer, path)
    if method == "ppo":
        from align import chat
        from align.data.prompts import load_prompts

        ids = chat.render_prompt(tokenizer, load_prompts(path)[0].messages)
        return marked(tokenizer, ids, [0] * len(ids)) + f"{OPEN}sampled completion{CLOSE}"
    group, cut = next(_built(config, tokenizer, path))
    lines = []
    for k, completion in enumerate(group.completions):
        mask = group.mask_of(k)
        if method == "reward":  # the score is read at the last token
            mask = [0] * (len(completion) - 1) + [1]
        ids = [*group.prompt_ids, *completion]
        text = marked(tokenizer, ids, [0] * len(group.prompt_ids) + list(mask))
        lines.append(text if method == "sft" else f"[candidate {k}] {text}")
    lines += [
        f"  {p.a} is preferred to {p.b} with probability {p.target:g}, weight {p.weight:g}"
        for p in group.pairs
    ]
    return "\n".join([*lines, "  (cut to data.max_length)"] if cut else lines)


def _text_example(config: Config, tokenizer: Any, path: str) -> str:
    """The first row of pre-training, not shuffled."""
    from align.data.token_rows import HeldOutRows, MemoryTokens, TokenView
    from align.data.token_shards import TokenShards, is_token_folder

    tokens = (
        TokenShards(path, tokenizer) if is_token_folder(path)
        else MemoryTokens(itertools.islice(iter_texts(path), 100), tokenizer)
    )  # fmt: skip
    row = HeldOutRows(TokenView(tokens), config.pretrain.block_size, eos=tokenizer.eos_token_id)[0]
    return marked(
        tokenizer, row.prompt_ids + row.completions[0], [0] + [1] * len(row.completions[0])
    )


def _groups(config: Config, tokenizer: Any) -> Iterator[Any]:
    """The records that training would keep; nothing where the data have yet to be written."""
    method = config.method
    path: Any = config.prompts_path if method == "ppo" else getattr(config.data, NEEDED[method])
    if method == "pretrain" or tokenizer is None or not Path(path).exists():
        return iter(())
    if method == "ppo":
        from align import chat
        from align.data.prompts import load_prompts
        from align.groups import TokenGroup

        rendered = (chat.render_prompt(tokenizer, p.messages) for p in load_prompts(path))
        return (TokenGroup(ids, [ids[-1:]]) for ids in rendered)  # no group is without one
    return (group for group, _ in _built(config, tokenizer, path))


def _built(config: Config, tokenizer: Any, path: str) -> Iterator[tuple[Any, bool]]:
    """(group, was it cut) of each record that training would keep; UserError if there is none."""
    from align.data.pairs import load_preferences
    from align.data.sft import load_sft
    from align.train.examples import PairBuilder, SftBuilder

    field = f"data.{NEEDED[config.method]}"
    build: Any
    records: Sequence[Any]
    if config.method == "sft":
        build, records = SftBuilder(tokenizer, config), load_sft(path, field)[0]
    else:
        build = PairBuilder(tokenizer, config, keep_end_token=config.method == "reward")
        records = load_preferences(path, field)[0]
    reasons: Counter[str] = Counter()
    for record in records:
        built = build(record)
        if isinstance(built, str):
            reasons[built] += 1
        else:
            yield built
    if reasons.total() < len(records):
        return
    listed = ", ".join(f"{name} {n}" for name, n in reasons.most_common())
    raise UserError(field, path, f"leaves nothing to train on: {listed}", "Raise data.max_length")


def marked(tokenizer: Any, ids: list[int], mask: list[int], limit: int = 400) -> str:
    """Return decoded ids with runs of mask 1 between OPEN and CLOSE."""
    out = []
    pairs = list(zip(ids, mask, strict=True))[:limit]
    for inside, run in itertools.groupby(pairs, key=lambda pair: bool(pair[1])):
        text = tokenizer.decode([token for token, _ in run], skip_special_tokens=False)
        out.append(f"{OPEN}{text}{CLOSE}" if inside else text)
    return "".join(out) + (" …" if len(ids) > limit else "")

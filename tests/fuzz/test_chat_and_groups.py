"""Any conversation renders to ids and a mask of one length, and no text in it opens a turn."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzzing import TEXTS, hold, said, sizes
from test_chat import CASES, tokenizer_for

from align.chat import render_completion, render_conversation, render_prompt
from align.groups import LAYOUTS, TokenGroup, collate
from align.records import Message, RecordError

ROLES = st.sampled_from(["user", "assistant", "system", "tool"])
TALKS = st.lists(st.tuples(ROLES, TEXTS), max_size=5) | st.lists(TEXTS, min_size=1, max_size=4).map(
    lambda texts: [(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
)
NAMES = st.sampled_from(sorted(CASES))


def special(tokenizer, ids: list[int]) -> list[int]:
    """The special tokens among ids."""
    known = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [i for i in ids if i in known]


@sizes(120, 8_000)
def test_any_conversation_renders_or_is_refused(examples, fault):
    fault("special tokens in a message", "letters: they end no turn and open none")

    def check(name, talk, loss_on):
        tokenizer = tokenizer_for(name)
        try:
            ids, mask = render_conversation(tokenizer, [Message(*turn) for turn in talk], loss_on)
        except RecordError as error:
            said(error)
            return
        assert len(ids) == len(mask)
        assert set(mask) <= {0, 1}
        assert any(mask)
        assert all(0 <= i < len(tokenizer) for i in ids)
        # The same turns with harmless texts have the same special tokens.
        plain = [Message(role, "a" if text.strip() else text) for role, text in talk]
        try:
            expected, _ = render_conversation(tokenizer, plain, loss_on)
        except RecordError:
            return
        assert special(tokenizer, ids) == special(tokenizer, expected)

    kinds = st.sampled_from(["completion", "assistant", "all"])
    hold(examples, check, NAMES, TALKS, kinds)


@sizes(120, 8_000)
def test_any_completion_of_any_prompt_renders_or_is_refused(examples):
    def check(name, talk, answer):
        tokenizer, prompt = tokenizer_for(name), [Message(*turn) for turn in talk]
        try:
            start, ids, mask = render_completion(tokenizer, prompt, answer)
        except RecordError as error:
            said(error)
            return
        assert start == render_prompt(tokenizer, prompt)
        assert len(ids) == len(mask) > 0
        assert set(mask) == {1}

    hold(examples, check, NAMES, TALKS, TEXTS)


@sizes(200, 20_000)
def test_any_groups_are_laid_out_with_their_candidates_apart(examples):
    def check(seed, sizes_of, layout, width):
        drawn = random.Random(seed)
        groups = []
        if layout == "packed":  # which is for groups of one completion
            sizes_of = [(prompt, lengths[:1]) for prompt, lengths in sizes_of]
        for prompt, lengths in sizes_of:
            answers = [[drawn.randrange(2, 90) for _ in range(n)] for n in lengths]
            masks = [[drawn.randrange(2) for _ in a] for a in answers]
            start = [drawn.randrange(2, 90) for _ in range(prompt)]
            groups.append(TokenGroup(start, answers, masks if drawn.random() < 0.5 else None))
        batch = collate(groups, 0, layout, row_length=width)
        flat = [
            (token, learned)
            for g in groups
            for k, answer in enumerate(g.completions)
            for token, learned in zip(answer, g.mask_of(k), strict=True)
        ]
        wanted = [token for token, learned in flat if learned]
        assert batch.labels.tolist() == wanted
        assert batch.num_tokens == int(batch.offsets[-1]) == len(wanted)
        assert batch.num_candidates == sum(len(g.completions) for g in groups)
        # What predicts a token stands before it, in its own prompt or candidate.
        seen = batch.attention_mask()
        segments = batch.segment_ids
        if seen is None:
            seen = torch.ones(segments.shape, dtype=torch.long)
        if seen.dim() == 2:
            width_of = segments.shape[1]
            causal = torch.ones(width_of, width_of, dtype=torch.bool).tril()
            seen = (causal & (seen[:, None, :] > 0))[:, None]
        own = segments[:, :, None] == segments[:, None, :]
        prompt_key = segments[:, None, :] == 0
        real = (segments >= 0)[:, :, None]
        if layout == "grouped":
            assert not bool((seen[:, 0] & real & ~own & ~prompt_key).any())
        positions = batch.position_ids[batch.pred_row, batch.pred_col]
        assert bool((positions >= 0).all())
        assert not len(positions) or int(positions.max()) < max(
            g.row_tokens("plain") for g in groups
        )

    lengths = st.lists(st.integers(1, 9), min_size=1, max_size=9)
    shapes = st.lists(st.tuples(st.integers(1, 9), lengths), min_size=1, max_size=4)
    hold(
        examples, check, st.integers(0, 2**32), shapes, st.sampled_from(LAYOUTS), st.integers(1, 60)
    )

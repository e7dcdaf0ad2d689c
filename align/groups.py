"""The one batch: a prompt and its K candidate completions, laid out once.

Every method reads this layout: SFT and pretraining are K = 1, DPO and ORPO K = 2, a ranked
annotation K = 2..9, a PPO rollout K = n samples. Two layouts hold the same numbers:

- `grouped`: one row per group, `prompt | c1 | c2 | …`; positions restart after the prompt for every
  candidate and the mask hides candidates from each other, so the prompt is computed once;
- `plain`: one row per candidate, `prompt | c`, for models that cannot take a 4-D mask;
- `packed`: several groups of one candidate in a row, each hidden from the others (SFT packing).

Predicted tokens are addressed by flat index pairs (row and column of the position that predicts,
token predicted), candidate after candidate in the order of the groups: log-probs, values and
rewards are flat (N,) tensors in either layout, and padding never reaches a loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from align.records import PairTarget

LAYOUTS = ("grouped", "plain", "packed")
CPU_TOKENS = 512
"""Tokens of a pass on a CPU; products of that many rows are as fast as larger ones."""


@dataclass
class TokenGroup:
    """A tokenised prompt with its K completions.

    prompt_ids: at least one token. completions: K non-empty token lists. masks: per completion, 1
    where the token carries loss (None: everywhere). pairs: comparisons between candidates. extras:
    name -> one entry per candidate, a float (becomes (C,)) or a list with one float per *masked*
    token (becomes flat (N,)).
    """

    prompt_ids: list[int]
    completions: list[list[int]]
    masks: list[list[int]] | None = None
    pairs: list[PairTarget] = field(default_factory=list)
    extras: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("a group needs at least one prompt token: nothing predicts the first")
        if not self.completions or not all(self.completions):
            raise ValueError("a group needs at least one completion, and none of them empty")
        if self.masks is not None and [*map(len, self.masks)] != [*map(len, self.completions)]:
            raise ValueError("a mask has one entry per token of its completion")

    def mask_of(self, k: int) -> list[int]:
        """Loss mask of candidate k, one entry per completion token."""
        return self.masks[k] if self.masks is not None else [1] * len(self.completions[k])

    def row_tokens(self, layout: str) -> int:
        """Width of the longest row this group needs in `layout`, in tokens."""
        lengths = [len(c) for c in self.completions]
        return len(self.prompt_ids) + (sum(lengths) if layout == "grouped" else max(lengths))


@dataclass
class GroupBatch:
    """G groups with C candidates and N predicted tokens in R rows of T columns.

    input_ids, position_ids: (R, T) int64. segment_ids: (R, T), 0 prompt, k ≥ 1 candidate, −1
    padding. pred_row, pred_col: (N,) position that predicts; labels: (N,) token predicted;
    candidate: (N,) in [0, C). offsets: (C + 1,) bounds of each candidate in the flat tensors.
    end_row, end_col: (C,) last token of each candidate. group_of: (C,) in [0, G). pair_*: (P,)
    candidate indices, target P(a beats b), weight, margin (0 where there is none) and group.
    extras: flat (N,) or (C,) float32. also: a second batch for the same forward pass.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segment_ids: torch.Tensor
    pred_row: torch.Tensor
    pred_col: torch.Tensor
    labels: torch.Tensor
    candidate: torch.Tensor
    offsets: torch.Tensor
    end_row: torch.Tensor
    end_col: torch.Tensor
    group_of: torch.Tensor
    pair_a: torch.Tensor
    pair_b: torch.Tensor
    pair_target: torch.Tensor
    pair_weight: torch.Tensor
    pair_margin: torch.Tensor
    pair_group: torch.Tensor
    layout: str
    num_groups: int
    extras: dict[str, torch.Tensor] = field(default_factory=dict)
    also: GroupBatch | None = None

    @property
    def num_candidates(self) -> int:
        """C, the number of candidates."""
        return int(self.group_of.numel())

    @property
    def num_tokens(self) -> int:
        """N, the number of tokens that carry loss."""
        return int(self.labels.numel())

    def __len__(self) -> int:
        """G, the number of groups (what batch-size bookkeeping counts)."""
        return self.num_groups

    def to(self, device: Any, non_blocking: bool = False) -> GroupBatch:
        """Return the batch with every tensor on `device`."""
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, (torch.Tensor, GroupBatch)):
                value = value.to(device, non_blocking=non_blocking)
            elif f.name == "extras":
                value = {k: v.to(device, non_blocking=non_blocking) for k, v in value.items()}
            moved[f.name] = value
        return GroupBatch(**moved)

    def candidate_sums(self, flat: torch.Tensor) -> torch.Tensor:
        """Sum a flat (N,) tensor over each candidate's tokens; returns (C,)."""
        zeros = flat.new_zeros(self.num_candidates)
        return zeros.index_add(0, self.candidate, flat)

    def candidate_lengths(self) -> torch.Tensor:
        """Number of loss-carrying tokens of each candidate, (C,) int64."""
        return self.offsets[1:] - self.offsets[:-1]

    def attention_mask(self, *, additive_dtype: torch.dtype | None = None) -> torch.Tensor | None:
        """What the backbone gets: a (R, T) mask, or (R, 1, T, T) for groups that share a prompt.

        None when no row is padded and none is shared (the causal mask alone is right and fastest).
        A query sees key j when j is not later, not padding, and in the prompt or in its own
        candidate; every position sees itself, so that a padded query has no empty row.
        additive_dtype: give 0 and very negative numbers of this dtype, for eager or CPU.
        """
        seg = self.segment_ids
        if self.layout == "plain" or int(seg.max()) <= 1:
            return None if bool((seg >= 0).all()) else (seg >= 0).long()
        width = seg.shape[1]
        query, key = seg[:, :, None], seg[:, None, :]
        causal = torch.ones(width, width, dtype=torch.bool, device=seg.device).tril()
        allowed = causal & ((key == 0) | (key == query)) & (key >= 0)
        allowed = (allowed | torch.eye(width, dtype=torch.bool, device=seg.device))[:, None]
        if additive_dtype is None:
            return allowed
        zeros = torch.zeros(allowed.shape, dtype=additive_dtype, device=seg.device)
        return zeros.masked_fill(~allowed, torch.finfo(additive_dtype).min)


def collate(
    groups: Sequence[TokenGroup], pad_id: int, layout: str = "grouped", row_length: int = 0
) -> GroupBatch:
    """Lay `groups` out as one GroupBatch, right-padded with `pad_id` to the longest row.

    row_length: for "packed", tokens that a row may hold; a longer group gets a row of its own.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is not one of {LAYOUTS}")
    if layout == "packed":
        return _assemble(groups, pad_id, layout, _packed(groups, row_length))
    placed = (
        (row, [(g, *candidate) for candidate in row.candidates])
        for g, group in enumerate(groups)
        for row in _place(group, layout)
    )
    return _assemble(groups, pad_id, layout, placed)


def _assemble(
    groups: Sequence[TokenGroup],
    pad_id: int,
    layout: str,
    placed_rows: Iterable[tuple[_Row, list[tuple[int, int, int, int]]]],
) -> GroupBatch:
    """Number the rows and index their predicted tokens; candidates come in the groups' order."""
    rows: list[tuple[list[int], list[int], list[int]]] = []
    names = ("row", "col", "label", "cand", "erow", "ecol", "of")
    flat: dict[str, list[int]] = {name: [] for name in names}
    offsets = [0]
    located = []
    for row, candidates in placed_rows:
        located += [(g, k, len(rows), start, previous) for g, k, start, previous in candidates]
        rows.append((row.ids, row.positions, row.segments))
    for g, k, base, start, previous in sorted(located):
        completion, mask = groups[g].completions[k], groups[g].mask_of(k)
        for i, token in enumerate(completion):
            if mask[i]:
                flat["row"].append(base)
                flat["col"].append(previous if i == 0 else start + i - 1)
                flat["label"].append(token)
                flat["cand"].append(len(flat["of"]))
        flat["erow"].append(base)
        flat["ecol"].append(start + len(completion) - 1)
        flat["of"].append(g)
        offsets.append(len(flat["label"]))
    width = max(len(ids) for ids, _, _ in rows)

    def padded(index: int, value: int) -> torch.Tensor:
        out = torch.full((len(rows), width), value, dtype=torch.long)
        for r, row in enumerate(rows):
            out[r, : len(row[index])] = torch.tensor(row[index], dtype=torch.long)
        return out

    def ints(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long)

    return GroupBatch(
        input_ids=padded(0, pad_id),
        position_ids=padded(1, 0),
        segment_ids=padded(2, -1),
        pred_row=ints(flat["row"]),
        pred_col=ints(flat["col"]),
        labels=ints(flat["label"]),
        candidate=ints(flat["cand"]),
        offsets=ints(offsets),
        end_row=ints(flat["erow"]),
        end_col=ints(flat["ecol"]),
        group_of=ints(flat["of"]),
        layout=layout,
        num_groups=len(groups),
        extras=_collate_extras(groups),
        **_collate_pairs(groups),
    )


@dataclass
class _Row:
    ids: list[int]
    positions: list[int]
    segments: list[int]
    candidates: list[tuple[int, int, int]]  # (k, first column of k, column that predicts it)


def _place(group: TokenGroup, layout: str) -> Iterator[_Row]:
    """Yield the rows of one group."""
    length = len(group.prompt_ids)
    row = None
    for k, completion in enumerate(group.completions):
        if row is None or layout == "plain":
            row = _Row(list(group.prompt_ids), list(range(length)), [0] * length, [])
        start = len(row.ids)
        row.ids.extend(completion)
        row.positions.extend(range(length, length + len(completion)))
        row.segments.extend([len(row.candidates) + 1] * len(completion))
        row.candidates.append((k, start, length - 1))
        if layout == "plain":
            yield row
    if layout == "grouped" and row is not None:
        yield row


def _packed(
    groups: Sequence[TokenGroup], row_length: int
) -> list[tuple[_Row, list[tuple[int, int, int, int]]]]:
    """First fit, longest first: rows of whole documents, each a segment that sees only itself."""
    rows: list[tuple[_Row, list[tuple[int, int, int, int]]]] = []
    for g in sorted(range(len(groups)), key=lambda i: -groups[i].row_tokens("plain")):
        group = groups[g]
        if len(group.completions) != 1:
            raise ValueError("packing takes groups of one completion")
        ids = group.prompt_ids + group.completions[0]
        fits = [r for r in rows if len(r[0].ids) + len(ids) <= row_length]
        if not fits:
            fits = [(_Row([], [], [], []), [])]
            rows += fits
        row, members = fits[0]
        start = len(row.ids) + len(group.prompt_ids)
        members.append((g, 0, start, start - 1))
        row.ids.extend(ids)
        row.positions.extend(range(len(ids)))
        row.segments.extend([len(members)] * len(ids))
    return rows


def _collate_pairs(groups: Sequence[TokenGroup]) -> dict[str, Any]:
    index: dict[str, list[Any]] = {k: [] for k in ("a", "b", "target", "weight", "margin", "group")}
    base = 0
    for g, group in enumerate(groups):
        for pair in group.pairs:
            index["a"].append(base + pair.a)
            index["b"].append(base + pair.b)
            index["target"].append(pair.target)
            index["weight"].append(pair.weight)
            index["margin"].append(pair.margin or 0.0)
            index["group"].append(g)
        base += len(group.completions)
    kinds = {"a": torch.long, "b": torch.long, "group": torch.long}
    return {
        f"pair_{name}": torch.tensor(values, dtype=kinds.get(name, torch.float32))
        for name, values in index.items()
    }


def _collate_extras(groups: Sequence[TokenGroup]) -> dict[str, torch.Tensor]:
    names = groups[0].extras.keys() if groups else ()
    if any(group.extras.keys() != names for group in groups):
        raise ValueError("the groups of a batch carry different extras")
    return {name: _flat_extra(groups, name) for name in names}


def _flat_extra(groups: Sequence[TokenGroup], name: str) -> torch.Tensor:
    """Flat (C,) or (N,) numbers, in the order of candidate or labels."""
    values: list[float] = []
    lists = {isinstance(e, (list, tuple)) for group in groups for e in group.extras[name]}
    if len(lists) > 1:
        raise ValueError(f"extras[{name!r}]: some entries are numbers, some are lists")
    for group in groups:
        if len(group.extras[name]) != len(group.completions):
            raise ValueError(f"extras[{name!r}]: one entry per candidate")
        for k, entry in enumerate(group.extras[name]):
            if not isinstance(entry, (list, tuple)):
                values.append(float(entry))
                continue
            if len(entry) != sum(map(bool, group.mask_of(k))):
                raise ValueError(f"extras[{name!r}] of candidate {k}: one number per loss token")
            values.extend(entry)
    return torch.tensor(values, dtype=torch.float32)

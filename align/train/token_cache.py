"""Token groups kept on disk, so that a data set is rendered and tokenised once.

Beyond SMALL records they are written to an Arrow file beside the run (`.cache/tokens-….arrow`),
named by a fingerprint of the records, the tokenizer with its template, and every setting that they
depend on. Later runs and resumed ones find it; all processes of a machine map the same pages. One
process builds; the others wait for the file to appear, which no collective's time-out ends.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import orjson
import pyarrow as pa

from align import launch_env
from align.groups import TokenGroup
from align.records import PairTarget
from align.tokenizer_identity import tokenizer_fingerprint

if TYPE_CHECKING:
    from align.config import Config

SMALL = 1000
FORMAT = 2  # raise it when what is built from the same records changes
_BATCH = 1000
_TOKENS = pa.list_(pa.uint32())
_SCHEMA = pa.schema(
    [
        ("prompt", _TOKENS),
        ("completions", pa.list_(_TOKENS)),
        ("masks", pa.list_(pa.list_(pa.bool_()))),
        ("more", pa.string()),  # pairs and extras, as JSON
        ("cut", pa.list_(pa.string())),
        ("dropped", pa.string()),  # why there is no group
    ]
)


class CachedGroups(Sequence[TokenGroup]):
    """Groups read from a memory-mapped file when they are asked for.

    `attach` gives all of them a further extra, which stays in memory.
    """

    def __init__(self, table: pa.Table, rows: Sequence[int]) -> None:
        self._table, self._rows = table, rows
        self._attached: dict[str, Sequence[list[Any]]] = {}

    def __len__(self) -> int:
        """Number of groups."""
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> TokenGroup: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenGroup]: ...
    def __getitem__(self, index: int | slice) -> TokenGroup | list[TokenGroup]:
        """Group `index`, made anew each time."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        row = self._table.slice(self._rows[place], 1).to_pylist()[0]
        more = json.loads(row["more"])
        masks = row["masks"]
        group = TokenGroup(
            row["prompt"],
            row["completions"],
            None if masks is None else [[*map(int, mask)] for mask in masks],
            pairs=[PairTarget(**pair) for pair in more["pairs"]],
            extras=more["extras"],
        )
        for name, values in self._attached.items():
            group.extras[name] = values[place]
        return group

    def attach(self, name: str, values: Sequence[list[Any]]) -> None:
        """Give every group an extra: values[i], one entry a candidate, to group i."""
        if len(values) != len(self):
            raise ValueError(f"{len(values)} values for {len(self)} groups")
        self._attached[name] = values


def attach(groups: Sequence[TokenGroup], name: str, values: Sequence[list[Any]]) -> None:
    """Give every group an extra, be they in memory or on disk."""
    if isinstance(groups, CachedGroups):
        groups.attach(name, values)
        return
    for group, value in zip(groups, values, strict=True):
        group.extras[name] = value


def folder(config: Config) -> Path | None:
    """Where the files are, beside the run; None where nothing can be written there."""
    root = Path(config.train.output_dir).resolve().parent / ".cache"
    first = next(p for p in (root, *root.parents) if p.exists())
    return root if os.access(first, os.W_OK) else None


def cached(
    build_all: Callable[[], list[Any]],
    records: Sequence[Any],
    root: Path,
    tokenizer: Any,
    settings: Mapping[str, Any],
) -> tuple[CachedGroups, list[str], list[str]]:
    """(groups, reasons of the records that gave none, kinds of cuts) of the records.

    build_all: makes (group, kinds of cuts) or a reason of every record, if no run has done so.
    settings: what the groups depend on besides records and tokenizer. root: of `folder`.
    """
    file = root / f"tokens-{key(records, tokenizer, settings)}.arrow"
    if not file.is_file():
        if launch_env.local_rank() == 0:
            _write(file, build_all())
        else:
            _wait(file)
    elif launch_env.rank() == 0:
        print(f"[align] token ids from {file}", flush=True)
    table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    dropped = table.column("dropped").to_pylist()
    rows = [i for i, reason in enumerate(dropped) if reason is None]
    cuts = [kind for kinds in table.column("cut").to_pylist() for kind in kinds or ()]
    return CachedGroups(table, rows), [r for r in dropped if r is not None], cuts


def key(records: Sequence[Any], tokenizer: Any, settings: Mapping[str, Any]) -> str:
    """Fingerprint of everything that the groups depend on."""
    from align import __version__
    from align.chat import template_hash

    digest = hashlib.sha256(f"{FORMAT} {__version__} {template_hash(tokenizer)} ".encode())
    digest.update(tokenizer_fingerprint(tokenizer).encode())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for record in records:
        digest.update(orjson.dumps(record, default=str, option=orjson.OPT_SORT_KEYS))
        digest.update(b"\n")
    return digest.hexdigest()[:24]


def _write(file: Path, results: Sequence[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            for start in range(0, len(results), _BATCH):
                rows = [*map(_row, results[start : start + _BATCH])]
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=_SCHEMA))
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _row(result: Any) -> dict[str, Any]:
    if isinstance(result, str):
        return {"dropped": result}
    group, cut = result
    more = {"pairs": [asdict(pair) for pair in group.pairs], "extras": group.extras}
    return {
        "prompt": group.prompt_ids,
        "completions": group.completions,
        "masks": group.masks and [[*map(bool, mask)] for mask in group.masks],
        "more": json.dumps(more),
        "cut": cut,
    }


def _wait(file: Path, seconds: float = 0.2) -> None:
    """Until the file is there; a launcher ends this process if the one that builds fails."""
    while not file.is_file():
        time.sleep(seconds)

"""A quality score that the user trains: a linear classifier over hashed words and word pairs.

    python -m align.cleaning.quality --good wiki.txt --bad crawl.txt --output quality.npz

As fastText's supervised mode (Joulin et al. 2017) with the embedding left out: logistic regression
(scikit-learn) on 2^18 buckets of words and pairs of words, Han characters being words.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from align.cleaning.optional import package
from align.cleaning.tokens import Batch
from align.config_errors import UserError, missing_file
from align.jsonl import RecordError

BUCKETS = 1 << 18
_FORMAT = "align-quality-1"


def features(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(text, bucket, weight) of every word and pair; a text's squared weights sum to about 1."""
    words = batch.words
    pairs, whole = words.ngrams(2)
    doc = np.concatenate((words.doc, words.doc[whole]))
    bucket = np.concatenate((words.hashes, pairs[whole])) % np.uint64(BUCKETS)
    count = np.bincount(doc, minlength=len(batch))
    return doc, bucket.astype(np.int64), 1 / np.sqrt(count[doc])


class Quality:
    """weights: (BUCKETS,) float32. bias: log-odds of a text without words."""

    def __init__(self, weights: np.ndarray, bias: float) -> None:
        self.weights, self.bias = weights, bias

    def score(self, batch: Batch) -> np.ndarray:
        """(D,) probability that each text is of the good class."""
        doc, bucket, weight = features(batch)
        total = np.bincount(doc, self.weights[bucket] * weight, len(batch)) + self.bias
        return 1 / (1 + np.exp(-np.clip(total, -50, 50)))

    def save(self, path: str | Path) -> None:
        """Write the model; it appears whole."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.npz")
        np.savez_compressed(temporary, format=_FORMAT, weights=self.weights, bias=self.bias)
        temporary.replace(path)

    @classmethod
    def load(cls, path: str) -> Quality:
        """Read what `save` wrote; UserError for anything else."""
        if not Path(path).is_file():
            raise missing_file("quality", path)
        try:
            with np.load(path, allow_pickle=False) as data:
                if str(data["format"]) != _FORMAT:
                    raise ValueError("unknown format")
                return cls(data["weights"], float(data["bias"]))
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise UserError(
                "quality",
                path,
                f"is no quality model ({error})",
                "Train one: python -m align.cleaning.quality --help",
            ) from None


def train(good: list[str], bad: list[str], seed: int = 0) -> tuple[Quality, float]:
    """(model, accuracy on a tenth that it did not see) from texts of two classes."""
    linear = package("sklearn.linear_model", "quality", "training")
    texts, labels = [*good, *bad], np.array([1] * len(good) + [0] * len(bad))
    order = np.random.default_rng(seed).permutation(len(texts))
    matrix = _matrix([texts[i] for i in order])
    labels = labels[order]
    held = max(1, len(texts) // 10)
    model = linear.LogisticRegression(C=10.0, max_iter=300, class_weight="balanced")
    model.fit(matrix[held:], labels[held:])
    accuracy = float(model.score(matrix[:held], labels[:held]))
    return Quality(model.coef_[0].astype(np.float32), float(model.intercept_[0])), accuracy


def _matrix(texts: list[str]) -> Any:
    from scipy.sparse import csr_matrix

    doc, bucket, weight = features(Batch(texts))
    return csr_matrix((weight, (doc, bucket)), shape=(len(texts), BUCKETS))


def main(argv: list[str] | None = None) -> int:
    """Train a model from two sets of files; 0 done, 2 the input is wrong."""
    parser = argparse.ArgumentParser(prog="quality", description="Train a quality classifier.")
    parser.add_argument("--good", nargs="+", required=True, help="texts as they should be")
    parser.add_argument("--bad", nargs="+", required=True, help="texts as they should not be")
    parser.add_argument("--output", required=True, help="model file, .npz")
    parser.add_argument("--limit", type=int, default=200_000, help="texts of each class")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        sets = [_read(paths, name, args.limit) for paths, name in
                ((args.good, "good"), (args.bad, "bad"))]  # fmt: skip
        model, accuracy = train(*sets, seed=args.seed)
        model.save(args.output)
    except (UserError, RecordError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(sets[0])} good and {len(sets[1])} bad texts, held-out accuracy {accuracy:.3f}: "
          f"{args.output}")  # fmt: skip
    return 0


def _read(paths: list[str], field: str, limit: int) -> list[str]:
    from itertools import islice

    from align.data.corpus import iter_texts

    texts = [t for path in paths for t in islice(iter_texts(path), limit)][:limit]
    if len(texts) < 10:
        raise UserError(field, " ".join(paths), f"holds {len(texts)} texts", "Give at least ten.")
    return texts


if __name__ == "__main__":
    sys.exit(main())

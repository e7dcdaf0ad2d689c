"""What the metrics that compare with references take, for `evaluate`."""

from __future__ import annotations

import datasets

_TEXT = datasets.Value("string")
# A list of references for each prediction, or one.
WITH_REFERENCES = [
    datasets.Features({"predictions": _TEXT, "references": datasets.Sequence(_TEXT)}),
    datasets.Features({"predictions": _TEXT, "references": _TEXT}),
]

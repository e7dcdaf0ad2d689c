"""Evaluation of policies: text metrics, judges, perplexity and the comparison of runs.

Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

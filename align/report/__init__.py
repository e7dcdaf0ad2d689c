"""Reports: a run directory or a comparison becomes one self-contained HTML page.

Charts are inline SVG drawn here, so a page is some 100 kB, opens offline, prints, and follows the
reader's light or dark theme. Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from align.report.comparison import write_comparison
from align.report.run import write_run_report

__all__ = ["write_comparison", "write_run_report"]

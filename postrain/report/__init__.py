"""Any folder → report.html, one self-contained page, and its pictures. Imports neither torch nor lightning."""

from __future__ import annotations

from postrain.report.write import write_comparison, write_report

__all__ = ["write_comparison", "write_report"]

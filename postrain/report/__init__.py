"""Run folder → report.html, one self-contained page, and training_curves.png. Imports neither torch nor lightning."""

from __future__ import annotations

from postrain.report.build import write_report

__all__ = ["write_report"]

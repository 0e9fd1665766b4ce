"""A run in a notebook: verdict and curves as one HTML element."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from postrain.report.notebook import run_html
from tests.report.test_report import checked


def test_run_html_has_verdict_and_curves(run_maker: Callable[..., Path], tmp_path: Path) -> None:
    path = run_maker(tmp_path, few=True)
    (path / "status.json").write_text(json.dumps({"status": "<script>"}))
    text = checked(run_html(path))
    assert text.startswith("<div ")
    assert "It learned: eval reward 0.24 → " in text
    assert text.count("<svg") == 2
    # Colours are set on the element: a notebook does not have our style sheet.
    assert set(re.findall(r"var\((--[\w-]+)\)", text)) <= set(
        re.findall(r"[\"; ](--[\w-]+):#", text.replace(";--", "; --"))
    )
    assert not re.search(r"<(script|link|style|img)\b", text)

"""The metrics that a method logs, as one short run of it writes them."""

from __future__ import annotations

import os
import tempfile
from contextlib import chdir, redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

from postrain.cli.main import start
from postrain.config.paths import CONF
from postrain.runs.folder import RunFolder

SHORT = (
    "method.updates=1",
    "method.batch_size=4",
    "evaluation.completions=2",
    "data.eval_rows=4",
    "data.source.count=16",
    "rollout.max_new_tokens=8",
    "logger=none",
    "report=false",
)


def words(method: str) -> list[str]:
    """The overrides of the run; distillation has no default teacher."""
    return [f"method={method}", *SHORT, *(["teacher=nano"] if method == "distill" else [])]


@cache
def logged_metrics(method: str) -> frozenset[str]:
    """Runs `method` for one update on the bundled model; the names in its metrics.jsonl."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    output = StringIO()
    with tempfile.TemporaryDirectory() as place, chdir(place), redirect_stdout(output), redirect_stderr(output):
        try:
            code = start(["train.py", *words(method)], CONF)
        except SystemExit as end:
            code = end.code
        if code:
            raise RuntimeError(f"method={method} ended with {code}:\n{output.getvalue()}")
        (folder,) = Path("runs").glob("*/*/*")
        return frozenset(name for record in RunFolder(folder).metrics.read() for name in record)

"""Every file of examples/ runs with fewer updates and rows."""

import ast
import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any

import pytest

from tests.training_runs import CONF

EXAMPLES = CONF.parent / "examples"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = spec_from_file_location(f"examples.{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    spec.loader.exec_module(module)
    return module


def test_grpo_from_scratch_fits_in_80_lines_and_trains(monkeypatch, capsys):
    assert len((EXAMPLES / "grpo_from_scratch.py").read_text().splitlines()) <= 80
    module = load("grpo_from_scratch", monkeypatch)
    monkeypatch.setattr(module, "P", 2)
    module.main(updates=2, held_out=4)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  ")[0] for line in lines[:2]] == ["update 1", "update 2"]
    assert lines[2].endswith("(n=4)")


def test_reward_of_grpo_from_scratch_accepts_the_right_number_only(monkeypatch):
    module = load("grpo_from_scratch", monkeypatch)
    assert [module.reward(f"3 + 1 = 4. The answer is {text}.", 4) for text in ("4", "40", "5")] == [1.0, 0.0, 0.0]


def test_custom_method_trains_and_reports(monkeypatch, tmp_path):
    folder = load("custom_method", monkeypatch).main(output=str(tmp_path), updates=1)
    assert (folder / "report.html").is_file()


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Executes a cell and returns the value of its last expression, as Jupyter does."""
    body = ast.parse(source).body
    last = body[-1]
    exec(compile(ast.Module(body[:-1] if isinstance(last, ast.Expr) else body, []), "notebook", "exec"), names)
    return eval(compile(ast.Expression(last.value), "notebook", "eval"), names) if isinstance(last, ast.Expr) else None


def test_notebook_cells_run_in_order_and_a_run_shows_its_curves(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POSTRAIN_CACHE", str(tmp_path))
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]
    assert all(cell["outputs"] == [] for cell in cells if cell["cell_type"] == "code")
    names: dict[str, Any] = {}
    values = []
    for cell in cells:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"]).replace("UPDATES = 30", "UPDATES = 1").replace("count=400", "count=16")
            source = source.replace("eval_rows=64", "eval_rows=4").replace("completions=64", "completions=4")
            values.append(run_cell(source, names))
    html = next(value for value in values if hasattr(value, "_repr_html_"))._repr_html_()
    assert "<svg" in html
    assert "eval/accuracy" in capsys.readouterr().out

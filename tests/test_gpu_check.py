"""The checks of benchmarks/gpu_check.py, on the CPU with tiny models."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module("gpu_check")


def test_reduced_checks_pass_on_a_cpu_except_measured_memory(gpu_check, tmp_path):
    assert gpu_check.main([str(tmp_path), "--device", "cpu", "--reduced"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    skipped = [each for each in results if each["status"] != "passed"]
    runs = ("sft tiny", "dpo tiny", "grpo tiny", "grpo tiny-LoRA")
    assert [each["name"] for each in skipped] == [f"memory, {run}" for run in runs]
    assert all(each["text"].startswith("estimate ") for each in skipped)
    speeds = [each["numbers"] for each in results if each["name"].startswith("throughput")]
    assert all(min(numbers.values()) > 0 and numbers["share_of_peak"] < 1 for numbers in speeds)
    assert (tmp_path / "results.md").read_text().count("\n| ") == 1 + len(results)


def test_a_failed_or_slow_check_does_not_end_the_others(gpu_check, tmp_path, monkeypatch):
    def fails(name: str) -> Any:
        raise RuntimeError("no kernel\nmore")

    def never_ends(name: str) -> Any:
        while True:
            pass

    def passes(name: str) -> Any:
        return gpu_check.Result(name, "passed", "fine")

    found = [("one", 9.0, fails), ("two", 0.05, never_ends), ("three", 9.0, passes)]
    monkeypatch.setattr(gpu_check, "checks", lambda *_, **__: iter(found))
    assert gpu_check.main([str(tmp_path), "--device", "cpu"]) == 1
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [each["status"] for each in results] == ["failed", "failed", "passed"]
    assert results[0]["text"] == "RuntimeError: no kernel"
    assert "in fails" in results[0]["traceback"]
    assert gpu_check.main([str(tmp_path), "--device", "cpu", "--minutes", "0"]) == 0
    assert "skipped | 0.0 | no time left" in (tmp_path / "results.md").read_text()


def test_flops_per_token_exclude_untied_input_embeddings(gpu_check, tmp_path):
    """A tiny model of 1,024 untied embeddings of width 32."""
    runs = import_module("gpu_runs")
    _, tokenizer = import_module("postrain").load_model("nano")
    run = runs.TrainingRun(runs.TINY, "sft", runs.REDUCED, torch.device("cpu"), tokenizer)
    found = run.measure(tmp_path)
    used = found.parameters - 1024 * 32
    assert found.flops_per_second == pytest.approx(6 * used * found.tokens_per_second)


def test_results_folder_that_is_a_file_is_one_line(gpu_check, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    assert gpu_check.main([str(file), "--device", "cpu"]) == 2
    assert capsys.readouterr().err == f"{file}: expected a folder for the results, found a file; name another one\n"


def test_missing_gpu_is_one_line_with_the_remedy(gpu_check, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "--device cuda: no CUDA GPU is visible to PyTorch here; use --device cpu --reduced\n"
    )


@pytest.mark.parametrize(
    ("logps", "gradient", "status"), [(1e-4, 1e-4, "passed"), (1e-3, 0, "failed"), (0, 2e-3, "failed")]
)
def test_errors_above_a_bound_fail(gpu_check, logps, gradient, status):
    expected = torch.tensor([-1.0, -2.0]), torch.tensor([3.0, 4.0])
    found = expected[0] + logps, expected[1] * (1 + gradient)
    assert import_module("gpu_correctness").compared("name", found, expected).status == status

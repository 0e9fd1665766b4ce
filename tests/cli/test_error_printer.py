"""Every command prints a mistake as one line that begins with `error:`, with exit code 2."""

import sys

import pytest

from postrain.cli.commands import main as postrain
from postrain.report.__main__ import main as report
from postrain.world.__main__ import main as world


@pytest.mark.parametrize(
    ("main", "words", "message"),
    [
        (report, ["nothere"], "there is no folder nothere"),
        (report, [], "the following arguments are required: folder"),
        (world, ["--kind", "foo"], "argument --kind: invalid choice: 'foo'"),
        (postrain, ["trian"], "trian: "),
    ],
)
def test_mistake_is_one_line_with_error(main, words, message, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["postrain", *words])
    assert main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")

"""A run folder."""

from pathlib import Path

import pytest

from postrain.runs.folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "ppo", "nano", "12345678")

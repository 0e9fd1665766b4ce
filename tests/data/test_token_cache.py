"""The cache of tokens: the same rows as without it, and never the rows of other files, settings or code."""

from __future__ import annotations

import json
import os
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from postrain.data import cache_key, cache_limit, cached_preparation, item_store, token_cache
from postrain.data.kinds import KINDS
from postrain.data.module import DataModule
from postrain.errors import ConfigError
from tests.data.helpers import write_lines
from tests.data.modules import NANO, prepared

ROWS: dict[str, list[dict[str, Any]]] = {
    "Demonstration": [
        {"prompt": f"Question {n}?", "completion": f"Answer {n % 7} " * (n % 5), "tag": n} for n in range(40)
    ],
    "Preference": [
        {"prompt": f"Question {n}?", "chosen": f"Yes {n}", "rejected": f"No {n % 3}", "margin": n / 3}
        for n in range(40)
    ],
    "UnpairedPreference": [
        {"prompt": f"Question {n}?", "completion": f"Answer {n % 7}", "label": n % 3 == 0} for n in range(40)
    ],
    "Steps": [
        {"prompt": f"Question {n}?", "steps": [f"step {n}", "then", "done"], "labels": [True, n % 2 == 0, False]}
        for n in range(40)
    ],
    "Prompt": [{"prompt": [{"role": "user", "content": f"Question {n}?"}], "answer": n / 7} for n in range(40)],
    "Text": [{"text": f"Text number {n}. " * (1 + n % 9)} for n in range(40)],
}


@pytest.fixture(autouse=True)
def _small_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("POSTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cached_preparation, "MIN_BYTES", 1)
    monkeypatch.setattr(item_store, "BATCH", 7)


def data(path: Path, kind: str = "Demonstration", *, seed: int = 0, updates: int = 5, **settings: Any) -> DataModule:
    module = DataModule(str(path), **{"eval_rows": 6, **settings})
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    module.prepare(kind=kind, tokenizer=tokenizer, context=96, batch_size=4, updates=updates, seed=seed)
    return module


def caches(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("tokens-*[!k]"))


def assert_equal(one: DataModule, other: DataModule) -> None:
    assert one.audit == other.audit
    assert one.audit.render() == other.audit.render()
    assert list(one.records.held_out) == list(other.records.held_out)
    assert repr(one.records.held_out) == repr(other.records.held_out)
    assert list(one.records.train) == list(other.records.train)
    assert one.prompt_columns == other.prompt_columns
    assert one.token_ids() == other.token_ids()
    assert one.chat_template.notes == other.chat_template.notes
    for batches in ("train_dataloader", "val_dataloader"):
        pairs = zip(getattr(one, batches)(), getattr(other, batches)(), strict=True)
        assert all(repr(vars(a)) == repr(vars(b)) for a, b in pairs)
    assert [i.signature() for i in one.train] == [i.signature() for i in other.train]
    if one.spec.kind != "Steps":
        assert all(map(torch.equal, one.eval_prompts(4).ids, other.eval_prompts(4).ids))


SETTINGS: dict[str, Any] = {"template": "random", "loss_on": "assistant"}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("settings", [{}, SETTINGS], ids=["default", "random template, all answers"])
def test_rows_from_the_cache_equal_the_rows_without_it(kind, settings, tmp_path, monkeypatch):
    path = write_lines(tmp_path / "rows.jsonl", ROWS[kind])
    without, built = data(path, kind, cache=False, **settings), data(path, kind, **settings)
    assert len(caches(tmp_path)) == 1
    monkeypatch.setattr(KINDS[kind], "encode_all", None)  # a second start tokenizes nothing
    read = data(path, kind, **settings)
    monkeypatch.undo()
    assert isinstance(read.train, item_store.StoredItems)
    assert_equal(without, built)
    assert_equal(without, read)


def test_every_changed_input_gets_its_own_cache(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "rows.jsonl", ROWS["Demonstration"])
    found = [data(path).audit.fingerprint]

    def changed(expected: int, **changes: Any) -> None:
        found.append(data(path, **changes).audit.fingerprint)
        assert len(caches(tmp_path)) == expected

    changed(1, updates=9)  # the number of updates changes no row
    changed(2, seed=1)
    changed(3, max_length=16)
    changed(4, template="alpaca")
    other = write_lines(tmp_path / "other.jsonl", [{"prompt": "Other?", "completion": "yes"}])
    changed(5, eval_path=str(other))
    write_lines(other, [{"prompt": "Another?", "completion": "no"}])
    changed(6, eval_path=str(other))
    changed(7, decontaminate=None, quality=type(data(path).quality)(dedupe=True))
    write_lines(path, ROWS["Demonstration"][1:])
    changed(8)
    monkeypatch.setattr(cache_key, "code_digest", lambda: "newer code")
    changed(9)
    assert found[0] == found[1]


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    file.unlink()  # the old content is memory-mapped
    file.write_bytes({"cut": content[:-9], "changed": content[:300] + b"\1" + content[301:], "empty": b""}[how])


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *product((token_cache.TRAIN.format(0), token_cache.HELD_OUT), ("cut", "changed", "empty")),
        # A changed letter of this file may be in its copy of a row, which no checksum covers.
        *product((token_cache.ABOUT,), ("cut", "empty")),
    ],
)
def test_a_damaged_cache_is_built_again(name, how, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", ROWS["Demonstration"])
    first = data(path)
    damage(caches(tmp_path)[0] / name, how)
    assert_equal(first, data(path, cache=False))
    again = data(path)
    assert_equal(again, data(path, cache=False))
    assert_equal(again, data(path))


def test_a_half_written_cache_is_not_read_and_removed(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", ROWS["Demonstration"])
    data(path)
    (whole,) = caches(tmp_path)
    half = whole.with_name(f".{whole.name}-killed")
    whole.rename(half)
    (half / token_cache.ABOUT).unlink()
    assert data(path).audit.items == 28
    assert not half.exists()
    assert caches(tmp_path) == [whole]


@pytest.mark.parametrize("problem", ["full", "no space", "unwritable"])
def test_without_a_writable_cache_the_rows_are_the_same_and_a_line_tells(problem, tmp_path, monkeypatch, capsys):
    path = write_lines(tmp_path / "rows.jsonl", ROWS["Preference"])
    without = data(path, "Preference", cache=False)
    if problem == "full":

        def write(file: Path, items: Any) -> None:
            next(iter(items))
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(item_store, "write", write)
    elif problem == "no space":
        monkeypatch.setattr(token_cache, "SPACE", 10**12)
    else:
        (tmp_path / "cache").write_text("a file")
    capsys.readouterr()
    found = data(path, "Preference")
    note = capsys.readouterr().out.splitlines()
    assert len(note) == 1
    assert note[0].startswith("note: the tokens are not cached, so the next start tokenizes the rows again: ")
    assert note[0].endswith("; set POSTRAIN_CACHE to another folder")
    assert_equal(without, found)
    assert not caches(tmp_path)


def test_small_files_need_no_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cached_preparation, "MIN_BYTES", 4_000_000)
    data(write_lines(tmp_path / "rows.jsonl", ROWS["Demonstration"]))
    assert not caches(tmp_path)


def test_two_processes_build_a_cache_once(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", ROWS["Demonstration"])
    child = os.fork()
    if child == 0:
        try:
            data(path)
        finally:
            os._exit(0)
    data(path)
    os.waitpid(child, 0)
    assert len(caches(tmp_path)) == 1
    assert json.loads((caches(tmp_path)[0] / token_cache.ABOUT).read_text())["rows"] == 28


def test_least_recently_used_caches_beyond_the_limit_are_deleted(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "rows.jsonl", ROWS["Demonstration"])
    first, second = data(path), data(path, seed=1)
    for age, directory in enumerate(caches(tmp_path)):
        os.utime(directory, (age, age))
    data(path)  # used again
    (kept,) = [one for one in caches(tmp_path) if one.stat().st_mtime > 9]
    monkeypatch.setenv(cache_limit.VARIABLE, str(2.5 * cache_limit.size(kept) / 1e9))
    data(path, seed=2)
    assert len(caches(tmp_path)) == 2
    assert kept in caches(tmp_path)
    assert all(item.signature() for found in (first, second) for item in found.train)  # mapped files stay readable
    monkeypatch.setenv(cache_limit.VARIABLE, "0")
    data(path, seed=3)
    assert len(caches(tmp_path)) == 1  # the one in use
    monkeypatch.setenv(cache_limit.VARIABLE, "much")
    with pytest.raises(ConfigError, match="POSTRAIN_CACHE_GB=much: expected a number of gigabytes"):
        data(path)


# Several sources --------------------------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """a.jsonl, b.jsonl, bench.jsonl and base.txt in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "a.jsonl", ROWS["Demonstration"])
    write_lines(tmp_path / "b.jsonl", [{"question": f"Sum {n}?", "answer": f"{n} #### {n}"} for n in range(30)])
    write_lines(tmp_path / "easy.jsonl", [{"question": f"Easy sum {n}?", "answer": f"{n}"} for n in range(5)])
    write_lines(tmp_path / "hard.jsonl", [{"question": f"Hard sum {n}?", "answer": f"{n}"} for n in range(9)])
    write_lines(tmp_path / "bench.jsonl", [{"question": "Sum 4?", "answer": "4"}])
    (tmp_path / "base.txt").write_text("\n\n".join(f"Once upon a time {n} foxes ran. " * 60 for n in range(30)))


def mixed(*overrides: str, updates: int = 9, **changes: Any) -> DataModule:
    return prepared("world_demonstrations", *overrides, updates=updates, **changes)


MIX = "data.mix={a.jsonl: 0.7, b.jsonl: 0.3}"
MIXTURES = {
    "two files": (MIX, "data.show_mask=2", "data.decontaminate=bench.jsonl"),
    "replay": ("data.path=a.jsonl", "data.replay=base.txt"),
    "named held-out files": (MIX, "data.eval_path={easy: easy.jsonl, hard: hard.jsonl}", "data.mix_by=tokens"),
    "one source without training": ("data.mix={a.jsonl: 1, b: {path: b.jsonl, weight: 0}}", "data.gold=null"),
    "generated rows": ("data.mix={a.jsonl: 1, world_demonstrations: 2}",),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_cached_mixtures_equal_mixtures_without_a_cache(name, sources, tmp_path, monkeypatch):
    overrides = MIXTURES[name]
    without, built = mixed(*overrides, "data.cache=false"), mixed(*overrides)
    assert len(caches(tmp_path)) == 1
    with monkeypatch.context() as patch:
        for kind in ("Demonstration", "Text"):
            patch.setattr(KINDS[kind], "encode_all", None)
        read, other = mixed(*overrides), mixed(*overrides, updates=20)
    for found in (built, read):
        assert_equal(without, found)
        assert [(one.name, one.rows, one.in_total) for one in found.held_out] == [
            (one.name, one.rows, one.in_total) for one in without.held_out
        ]
        batches = zip(without.eval_batches(), found.eval_batches(), strict=True)
        assert all(repr(vars(one)) == repr(vars(same)) for (_, one), (_, same) in batches)
    assert other.audit == mixed(*overrides, "data.cache=false", updates=20).audit


def test_weights_share_a_cache_and_other_settings_of_a_source_do_not(sources, tmp_path):
    mixed(MIX)
    again = mixed("data.mix={a.jsonl: 0.1, b.jsonl: 0.9}", "data.mix_temperature=2")
    assert len(caches(tmp_path)) == 1
    assert (
        again.audit
        == mixed("data.mix={a.jsonl: 0.1, b.jsonl: 0.9}", "data.mix_temperature=2", "data.cache=false").audit
    )
    for number, other in enumerate(
        ("weight: 0", "max_rows: 20", "columns: {prompt: answer, completion: question}"), start=2
    ):
        mixed(f"data.mix={{a.jsonl: 0.7, b: {{path: b.jsonl, {other}}}}}")
        assert len(caches(tmp_path)) == number
    write_lines(tmp_path / "b.jsonl", [{"question": f"Sum {n}?", "answer": "1"} for n in range(9)])
    assert mixed(MIX).audit.sources["b"].audit.rows_read == 9


def test_rows_of_the_hub_are_cached_until_they_change(tmp_path, monkeypatch):
    import datasets.config  # noqa: PLC0415 - slow import, only for this test

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(write_lines(tmp_path / "rows", ROWS["Demonstration"]).read_text())
    hub = ("data.mix={a: {source: {_target_: postrain.data.sources.Hub, repo: set}}}",)
    monkeypatch.chdir(tmp_path)
    first = mixed(*hub)
    with monkeypatch.context() as patch:
        patch.setattr(KINDS["Demonstration"], "encode_all", None)
        assert_equal(first, mixed(*hub))
    write_lines(tmp_path / "set" / "train.jsonl", ROWS["Demonstration"][:20])
    assert mixed(*hub).audit.rows_read == 20
    assert len(caches(tmp_path)) == 2


def test_rows_from_python_are_not_cached(tmp_path):
    module = DataModule(ROWS["Demonstration"])
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    module.prepare(kind="Demonstration", tokenizer=tokenizer, context=96, batch_size=4, updates=1, seed=0)
    assert not caches(tmp_path)

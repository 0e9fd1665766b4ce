"""resume=auto on the command line."""

import pytest

from postrain.cli.resume_auto import with_newest_run
from postrain.errors import ConfigError


def test_newest_run_of_the_name_with_a_checkpoint_is_resumed(tmp_path):
    words = ["method=sft", f"paths.output={tmp_path}", "name=job", "resume=auto"]
    rest = words[:3]
    assert with_newest_run(words) == rest
    for model, time, files in [
        ("nano", "2026-01-01_10-00-00-aa", ["update=000002.ckpt"]),
        ("gpt2", "2026-01-02_10-00-00-bb", ["update=000004.ckpt"]),
        ("nano", "2026-01-03_10-00-00-cc", ["unfinished.tmp"]),
    ]:
        folder = tmp_path / "job" / model / time / "checkpoints"
        folder.mkdir(parents=True)
        for name in files:
            (folder / name).touch()
    other = tmp_path / "other" / "nano" / "2026-01-04_10-00-00-dd" / "checkpoints"
    other.mkdir(parents=True)
    (other / "update=000009.ckpt").touch()
    assert with_newest_run(words) == [f"resume={tmp_path}/job/gpt2/2026-01-02_10-00-00-bb", *rest]
    assert with_newest_run(rest) == rest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=sft"], "add name=NAME"),
        (["method=sft", "name=a", "-m"], "not with -m"),
        (["sweep=kl_coef", "name=a"], "not with sweep"),
    ],
)
def test_what_cannot_be_found_is_one_line(words, message):
    with pytest.raises(ConfigError, match=message):
        with_newest_run([*words, "resume=auto"])

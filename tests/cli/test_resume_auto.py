"""resume=auto on the command line."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from postrain.cli.resume_auto import with_newest_run
from postrain.errors import ConfigError
from postrain.runs.folder import RunFolder


def run_folder(path, name, files):
    """The files of a run that resume=auto reads."""
    (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(f'name: "{name}"\n')
    for file in files:
        (path / "checkpoints" / file).touch()


def test_newest_run_of_the_name_with_a_checkpoint_is_resumed(tmp_path):
    words = ["method=sft", f"paths.output={tmp_path}", "name=job", "resume=auto"]
    rest = words[:3]
    assert with_newest_run(words) == rest
    for model, time, files in [
        ("nano", "2026-01-01_10-00-00-aa", ["update=000002.ckpt"]),
        ("gpt2", "2026-01-02_10-00-00-bb", ["update=000004.ckpt"]),
        ("nano", "2026-01-03_10-00-00-cc", ["unfinished.tmp"]),
    ]:
        run_folder(tmp_path / "job" / model / time, "job", files)
    run_folder(tmp_path / "other" / "nano" / "2026-01-04_10-00-00-dd", "other", ["update=000009.ckpt"])
    assert with_newest_run(words) == [f"resume={tmp_path}/job/gpt2/2026-01-02_10-00-00-bb", *rest]
    assert with_newest_run(rest) == rest


@pytest.mark.parametrize(
    ("word", "name", "folder"),
    [
        ("name=exp/1", "exp/1", "exp-1"),
        ("++name=my job", "my job", "my-job"),
        ("name='prüf:1'", "prüf:1", "pr-f-1"),
        ("name=job-${oc.env:JOB_ID}", "job-21", "job-21"),
    ],
)
@pytest.mark.parametrize("auto", ["resume=auto", "++resume='auto'"])
def test_names_that_are_changed_for_the_folder_are_found(tmp_path, monkeypatch, word, name, folder, auto):
    monkeypatch.setenv("JOB_ID", "21")
    output = tmp_path / "it's"
    path = RunFolder.create(output, name, "nano", "aa").path
    assert path.parts[-3] == folder
    words = [word, f'paths.output="{output}"', auto]
    run_folder(path, name, ["update=000002.ckpt"])
    # The folder of two names.
    run_folder(output / folder / "nano" / "2999-01-01_10-00-00-bb", f"{name}-", ["update=000002.ckpt"])
    (first,) = OverridesParser.create().parse_overrides(with_newest_run(words)[:1])
    assert (first.key_or_group, first.value()) == ("resume", str(path))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=sft"], "add name=NAME"),
        (["name=${oc.env:NO_SUCH_JOB}"], "name=.*NO_SUCH_JOB.*; give the value itself"),
        (["method=sft", "name=a", "-m"], "not with -m"),
        (["sweep=kl_coef", "name=a"], "not with sweep"),
    ],
)
def test_what_cannot_be_found_is_one_line(words, message):
    with pytest.raises(ConfigError, match=message):
        with_newest_run([*words, "resume=auto"])

"""Secrets are masked by the words of their keys, by value and in URLs; other values stay visible."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from postrain.cli.main import prepend_sweep_overrides, report_error
from postrain.config.masking import hidden, is_secret, masked, masked_text
from postrain.errors import ConfigError
from postrain.jobs.study import Study
from postrain.jobs.sweep import Sweep
from postrain.jsonl import atomic_write_text
from postrain.report.folders import read_run
from postrain.runs.folder import RunFolder
from postrain.runs.manifest import reproduce, write_manifest

KEY = "s3cr3t-value"
SECRET_KEYS = """
api_key apiKey API_KEY OPENAI_API_KEY hub_token token HF_TOKEN auth_token_value my_secret_2
client_secret password db_password_old passwd aws_secret_access_key AWS_ACCESS_KEY_ID credentials
Authorization logger.api_key private_key_pem key apikey reward.parts.judge.access_token
"""
SECRET = SECRET_KEYS.split()
HARMLESS_KEYS = """
max_new_tokens tokens pad_token eos_token bos_token unk_token stop_token tokenizer tokenizer_config
token_budget batch_tokens micro_batch_tokens token_ids pad_token_id keys monkey author key_variable
method.kl_coef secretary next_token per_token_loss SSH_AUTH_SOCK HF_TOKEN_PATH
TOKENIZERS_PARALLELISM data.path
"""
HARMLESS = HARMLESS_KEYS.split()


@pytest.mark.parametrize("key", SECRET)
def test_key_with_a_secret_word_is_masked(key: str) -> None:
    assert is_secret(key)
    assert masked({key: KEY, "n": {key: [KEY, {"a": KEY}], "b": 1}}) == {
        key: "***",
        "n": {key: ["***", {"a": "***"}], "b": 1},
    }
    assert masked({key: 123456}) == {key: "***"}


@pytest.mark.parametrize("key", HARMLESS)
def test_harmless_key_is_not_masked(key: str) -> None:
    assert not is_secret(key)
    assert masked({key: "value", "of": [{key: 3}]}) == {key: "value", "of": [{key: 3}]}
    assert masked_text(f"{key}=value") == f"{key}=value"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"logger.api_key={KEY}", "logger.api_key=***"),
        (f"++logger.api_key='{KEY} and more'", "++logger.api_key=***"),
        (f"logger.api_key={KEY},other-one", "logger.api_key=***"),
        (f"logger.api_key=[{KEY},other-one]", "logger.api_key=***"),
        (f"logger={{api_key:{KEY},project:x}}", "logger={api_key:***,project:x}"),
        (f"logger={{a: {{api_key: '{KEY}, x'}}, project: x}}", "logger={a: {api_key: ***}, project: x}"),
        (f"logger={{tokens:5,password:[{KEY},b],c:d}}", "logger={tokens:5,password:***,c:d}"),
        (f"parts=[{{token:{KEY}}},{{name:x}}]", "parts=[{token:***},{name:x}]"),
        (f"{{'api_key': '{KEY}', 'seed': 1}}", "{'api_key': ***, 'seed': 1}"),
        (f"stage.ppo.reward.password={KEY}", "stage.ppo.reward.password=***"),
        ("reward.url=http://user:pa55word@host:80/v1", "reward.url=http://user:***@host:80/v1"),
        ("see https://tok3n@host/x and b", "see https://***@host/x and b"),
        (f"http://host/v1?api_key={KEY}&model=m", "http://host/v1?api_key=***&model=m"),
        ("settings are written KEY=VALUE without dashes", "settings are written KEY=VALUE without dashes"),
        (f"reward.api_key={KEY}: unknown key; known keys: a", "reward.api_key=***: unknown key; known keys: a"),
        ("reward.token: unknown key; known: reward.tokens", "reward.token: unknown key; known: reward.tokens"),
        ("a@b.c, key: value", "a@b.c, key: value"),
        ("method.kl_coef=0.1,0.2", "method.kl_coef=0.1,0.2"),
    ],
)  # fmt: skip
def test_secret_in_a_text_or_override_is_masked(text: str, expected: str) -> None:
    assert masked_text(text) == expected
    assert masked({"words": [text]}) == {"words": [expected]}


def test_value_of_a_secret_environment_variable_is_masked_in_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", KEY)
    monkeypatch.setenv("DB_PASSWORD", "hunter2")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/tmp/agent.1")
    monkeypatch.setenv("SOME_TOKEN", "method")
    text = f"name=x-{KEY}-y hunter2 /tmp/agent.1 method"
    assert hidden(text) == masked_text(text) == "name=x-***-y *** /tmp/agent.1 method"
    assert masked({"name": f"a {KEY}", "n": [KEY]}) == {"name": "a ***", "n": ["***"]}


def test_private_file_has_mode_0600(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    before = os.umask(0)
    try:
        atomic_write_text(path, "a: 1\n", private=True)
        atomic_write_text(tmp_path / "open", "a")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(file.stat().st_mode) for file in (path, tmp_path / "open")] == [0o600, 0o666]


def test_symlink_at_the_path_of_a_file_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for name in ("status.json", f".status.json.{os.getpid()}.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
    atomic_write_text(tmp_path / "status.json", "new")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "status.json").read_text() == "new"


CONFIG: dict[str, Any] = {"reward": {"api_key": KEY, "url": f"http://u:{KEY}@h"}, "max_new_tokens": 5, "name": "n"}


def test_manifest_status_report_and_errors_are_masked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder.at(tmp_path / "run")
    atomic_write_text(folder.config, yaml.safe_dump(CONFIG), private=True)
    words = [f"reward={{api_key:{KEY}}}", "seed=1"]
    source = {"source": f"https://u:{KEY}@h/d"}
    write_manifest(folder, config=CONFIG, overrides=words, seeds={}, data=source, model={"source": f"ftp://u:{KEY}@h"})
    folder.status.failed(f"cannot reach http://u:{KEY}@h")
    report_error(ConfigError(f"reward.api_key={KEY}: unknown key"))
    run = read_run(folder.path)
    texts = [folder.manifest.read_text(), folder.status.path.read_text(), run.config, capsys.readouterr().err]
    assert [KEY in text for text in texts] == [False] * 4
    assert json.loads(texts[0])["config"]["max_new_tokens"] == 5
    assert "max_new_tokens: 5" in run.config
    assert reproduce(words) == "python train.py 'reward={api_key:***}' seed=1"


def test_manifest_of_an_earlier_version_is_masked_on_reading(tmp_path: Path) -> None:
    folder = RunFolder.at(tmp_path)
    folder.manifest.write_text(json.dumps({"config": CONFIG, "reproduce": f"python train.py a.password={KEY}"}))
    assert KEY not in str(read_run(tmp_path).manifest)


def test_resumed_sweep_requires_its_masked_secrets(tmp_path: Path) -> None:
    sweep = Sweep("x", Study(base=(f"a.token={KEY}",)), tmp_path, None, report=False)  # type: ignore[arg-type]
    sweep.record([f"logger.api_key={KEY}", "method=ppo"], [])
    text = (tmp_path / "sweep.yaml").read_text()
    assert KEY not in text
    assert stat.S_IMODE((tmp_path / "sweep.yaml").stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match=r"contains no secrets; repeat logger\.api_key=\.\.\."):
        prepend_sweep_overrides([f"resume={tmp_path}"])
    assert prepend_sweep_overrides([f"resume={tmp_path}", f"logger.api_key={KEY}"])[1:2] == ["method=ppo"]

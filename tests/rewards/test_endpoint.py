"""endpoint.py against a local HTTP server: success, unreachable, slow, busy, malformed answers."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest

from postrain.config.check import check
from postrain.config.masking import masked
from postrain.config.tree import instantiate
from postrain.errors import ConfigError
from tests.rewards.judge_server import (
    TOP_SCORE,
    Reply,
    judge_config,
    judge_server,
    make_judge,
    scores_of,
    unused_address,
)
from tests.rewards.test_configs import Root


def test_answers_are_cached_for_the_run() -> None:
    with judge_server(lambda body, index: TOP_SCORE) as server:
        reward = make_judge(server)
        assert scores_of(reward, "a", "b", "a") == [1.0, 1.0, 1.0]
        assert scores_of(reward, "b", "c") == [1.0, 1.0]
    assert len(server.bodies) == 3


def test_workers_send_requests_in_parallel() -> None:
    # The server replies only after three requests have arrived.
    barrier = threading.Barrier(3, timeout=5)

    def wait_for_others(body: dict[str, Any], index: int) -> Reply:
        barrier.wait()
        return TOP_SCORE

    with judge_server(wait_for_others) as server:
        assert scores_of(make_judge(server, workers=3), "a", "b", "c") == [1.0] * 3


@pytest.mark.parametrize("ending", ["/", "/chat/completions"])
def test_url_accepts_common_suffixes(ending: str) -> None:
    with judge_server(lambda body, index: TOP_SCORE) as server:
        assert scores_of(make_judge(server.url + ending), "a") == [1.0]
    assert server.bodies[0]["path"] == "/v1/chat/completions"


@pytest.mark.parametrize("first", [Reply(status=500), Reply(status=429, headers={"Retry-After": "3600"})])
def test_busy_server_is_retried(first: Reply) -> None:
    with judge_server(lambda body, index: TOP_SCORE if index else first) as server:
        assert scores_of(make_judge(server, retries=1), "a") == [1.0]
    assert len(server.bodies) == 2


def test_retries_back_off_and_honour_retry_after_up_to_a_limit(monkeypatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", slept.append)
    busy = (
        [Reply(status=500)] * 3
        + [Reply(status=429, headers={"Retry-After": wait}) for wait in ("7", "99")]
        + [TOP_SCORE]
    )
    with judge_server(lambda body, index: busy[index]) as server:
        assert scores_of(make_judge(server, retries=5, backoff=0.5, retry_after=9), "a") == [1.0]
    # The first retry does not wait; then 0.5 · 2 and 0.5 · 4; then Retry-After: 7 s, and 99 s limited to 9 s.
    assert slept == [1.0, 2.0, 7, 9]


def test_busy_server_without_retries_leaves_the_row_unscorable() -> None:
    answers = [TOP_SCORE, Reply(status=503), TOP_SCORE]
    with judge_server(lambda body, index: answers[index]) as server:
        reward = make_judge(server, retries=0, workers=1)
        found = scores_of(reward, "a", "b", "c")
        assert found[0] == found[2] == 1.0
        assert math.isnan(found[1])


def test_later_failures_warn_and_are_retried_in_the_next_call(capsys) -> None:
    answers = [TOP_SCORE, *[Reply(status=400, body='{"error":\n "too long"}')] * 2, TOP_SCORE]
    with judge_server(lambda body, index: answers[index]) as server:
        reward = make_judge(server)
        scores_of(reward, "a")
        assert all(map(math.isnan, scores_of(reward, "b", "c")))
        output = capsys.readouterr().err
        assert scores_of(reward, "b") == [1.0]
    assert output.startswith("warning: 2 of 2 not scored; the judge at http://127.0.0.1:")
    assert output.endswith('2 × answered 400 Bad Request: {"error": "too long"}\n')


@pytest.mark.parametrize("option", ["judge", "judge_pairwise"])
def test_unreachable_judge_is_a_one_line_error(option: str) -> None:
    url = unused_address()
    reward = instantiate(judge_config(option, url, retries=1))
    with pytest.raises(ConfigError, match=r"could not be reached .*refused.*nothing could be scored") as caught:
        reward.query(["a", "b"])
    assert f"{url}/chat/completions" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_slow_judge_times_out() -> None:
    with judge_server(lambda body, index: Reply(silent=index > 0)) as server:
        reward = make_judge(server, timeout=0.5, retries=0)
        with pytest.raises(ConfigError, match=r"could not be reached \(.*timed? ?out.*\)"):
            scores_of(reward, "a")
        # the request, and the second one, since '' contains no score
        assert len(server.bodies) == 2


@pytest.mark.parametrize("part", ["head", "body"])
@pytest.mark.parametrize("status", [200, 503])
def test_slow_stream_of_bytes_times_out_as_a_whole(part: str, status: int) -> None:
    # Each byte arrives within the read timeout: only a limit on the whole response ends this.
    with (
        judge_server(lambda body, index: Reply(slow_part=part, status=status)) as server,
        pytest.raises(ConfigError, match=r"could not be reached \(timed out after 0.3 s in all"),
    ):
        scores_of(make_judge(server, timeout=0.3, retries=0), "a")
    assert len(server.bodies) == 1


@pytest.mark.parametrize("status", [200, 400, 503])
def test_endless_response_is_refused(status: int) -> None:
    with (
        judge_server(lambda body, index: Reply(status=status, endless=True)) as server,
        pytest.raises(ConfigError, match=r"answered with more than 1048576 bytes"),
    ):
        scores_of(make_judge(server, retries=1), "a")


MALFORMED = {
    "deep": '{"choices":' + "[" * 100_000,
    "deep content": '{"choices": [{"message": {"content": ' + "[" * 5000 + "]" * 5000 + "}}]}",
    "not UTF-8": b'{"choices": [{"message": {"content": "\xff"}}]}',
    "a list": "[]",
    "a number": "7",
    "no choices": '{"choices": []}',
    "a choice of another type": '{"choices": [null]}',
    "a long number": '{"choices": ' + "9" * 5000 + "}",
    "a message of another type": '{"choices": [{"message": [1]}]}',
    "nothing": b"",
    "zero bytes": b"\0" * 100,
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_bodies_are_reported(kind: str) -> None:
    with (
        judge_server(lambda body, index: Reply(body=MALFORMED[kind])) as server,
        pytest.raises(ConfigError, match="answered with something other than a chat completion") as caught,
    ):
        scores_of(make_judge(server), "a")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("content", [r'"\ud800"', "[]", "7", "null", '{"a": 1}', '"' + "<think>" * 50_000 + '"'])
def test_malformed_contents_are_reported(content: str) -> None:
    whole = '{"choices": [{"message": {"content": ' + content + "}}]}"
    with (
        judge_server(lambda body, index: Reply(body=whole)) as server,
        pytest.raises(ConfigError, match="answered without"),
    ):
        scores_of(make_judge(server), "a")


def test_invalid_retry_after_is_reported() -> None:
    invalid = Reply(status=429, headers={"Retry-After": "soon"})
    with judge_server(lambda body, index: invalid) as server, pytest.raises(ConfigError, match="soon"):
        scores_of(make_judge(server, retries=1), "a")


def test_server_message_is_one_printable_line() -> None:
    with (
        judge_server(lambda body, index: Reply(status=400, body="a\x1b[2J\nb")) as server,
        pytest.raises(ConfigError, match=r"answered 400 Bad Request: a\?\[2J b;"),
    ):
        scores_of(make_judge(server), "a")


def test_unparsable_answer_is_requested_again_once() -> None:
    answers = [
        Reply("Lovely!"),
        Reply("7/10"),
        TOP_SCORE,
        Reply("Lovely!"),
        Reply("As before."),
        Reply(None),
        Reply("2"),
    ]
    with judge_server(lambda body, index: answers[index]) as server:
        reward = make_judge(server)
        found = [scores_of(reward, text)[0] for text in "abcd"]
    assert found[0] == pytest.approx(6 / 9)
    assert found[1] == 1.0
    assert math.isnan(found[2])
    assert found[3] == pytest.approx(1 / 9)
    assert [turn["role"] for turn in server.bodies[1]["messages"]] == ["user", "assistant", "user"]
    assert server.bodies[1]["messages"][1]["content"] == "Lovely!"


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply("Lovely!"), r"""answered without \{"score": NUMBER\}: 'Lovely!'"""),
        (Reply(body="<html>"), "answered with something other than a chat completion: '<html>'"),
        (Reply(status=307, headers={"Location": "http://127.0.0.1:9/"}, body=""), "answered 307 Temporary Redirect"),
    ],
)
def test_judge_without_any_answer_is_an_error(reply: Reply, message: str) -> None:
    with judge_server(lambda body, index: reply) as server, pytest.raises(ConfigError, match=message):
        scores_of(make_judge(server), "a", "b")


def test_key_is_read_from_the_environment_and_never_printed(monkeypatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-12345\n")
    refused = Reply(status=401, body="no such key: sk-12345")
    with judge_server(lambda body, index: refused) as server:
        reward = make_judge(server, key_variable="MY_KEY")
        with pytest.raises(ConfigError, match=r"answered 401 Unauthorized: no such key: \*\*\*;") as caught:
            scores_of(reward, "a")
    assert server.headers[0]["Authorization"] == "Bearer sk-12345"
    assert "sk-12345" not in str(caught.value) + repr(reward) + str(
        masked(judge_config("judge", "u", key_variable="MY_KEY"))
    )


def test_without_a_key_variable_no_key_is_sent() -> None:
    with judge_server(lambda body, index: TOP_SCORE) as server:
        scores_of(make_judge(server), "a")
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("value", "message"), [(None, "no such variable"), ("  ", "no such variable"), ("a\nb", "cannot be a key")]
)
def test_missing_or_invalid_key_is_refused(monkeypatch, value: str | None, message: str) -> None:
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(ConfigError, match=message) as caught:
        make_judge("http://127.0.0.1:9/v1", key_variable="MY_KEY")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key_variable": "sk-12345"}, "reward.key_variable: expected the name, in capitals, of an environment"),
        ({"url": "http://me:pass@judge/v1"}, "reward.url: expected an address such as .*, without user, password"),
        ({"url": "localhost:8000"}, "reward.url: expected an address"),
    ],
)
def test_secrets_in_the_config_are_refused_by_the_check(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check({"reward": {**judge_config("judge", "http://127.0.0.1:9/v1"), **changes}}, root=Root)

"""The adapter of OpenEnv against a server of its protocol on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from websockets.sync.server import ServerConnection, serve

from postrain.environments.openenv import OpenEnvEnvironment
from postrain.errors import ConfigError

RESETS = count()
"""A secret of `seeded=False`, which changes with every reset."""


def guessing(connection: ServerConnection) -> None:
    """Guess the seed modulo 10: 1 for the right number, an error for a text that is none; "slow" is never answered."""
    secret = 0
    for text in connection:
        asked = json.loads(text)
        data, kind = asked["data"], asked["type"]
        answer: dict[str, Any] = {"type": "observation"}
        if kind == "reset":
            secret = data["seed"] % 10 if data.get("seeded", True) else next(RESETS)
            answer["data"] = {"observation": {"text": f"{secret % 2}", "tries": 0}, "reward": None, "done": False}
        elif data["message"] == "slow":
            continue
        elif data["message"] == "leave":
            return
        elif not data["message"].isdigit():
            answer = {"type": "error", "data": {"message": "not a\nnumber", "code": "VALIDATION_ERROR"}}
        else:
            right = int(data["message"]) == secret
            answer["data"] = {"observation": {"text": "no", "tries": 1}, "reward": float(right), "done": right}
        connection.send(json.dumps(answer))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve(guessing, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()


def test_each_episode_is_a_session_and_each_message_an_action(url: str) -> None:
    environment = OpenEnvEnvironment(url=url, observation_fields=("text",), instruction="Guess; 1 means odd.")
    one, other = environment.make_rows("train", 2, 0)
    assert one["prompt"] == f"Guess; 1 means odd.\n{one['seed'] % 2}"
    first, second = environment.reset("", one), environment.reset("", other)
    wrong = environment.step(first, str((one["seed"] + 1) % 10))
    assert (wrong.messages[0].content, wrong.reward, wrong.done) == ("no", 0.0, False)
    failed = environment.step(wrong.state, "five")
    assert (failed.messages[0].content, failed.errors, failed.done) == ("error: not a number", 1, False)
    for state, row in ((failed.state, one), (second, other)):
        right = environment.step(state, str(row["seed"] % 10))
        assert (right.messages, right.reward, right.done) == ((), 1.0, True)
        assert environment.metrics(right.state) == {"return": 1.0}


def test_messages_may_be_json_actions_and_observations_json(url: str) -> None:
    environment = OpenEnvEnvironment(url=url, action_field="")
    (row,) = environment.make_rows("train", 1, 0)
    assert json.loads(row["prompt"]) == {"text": str(row["seed"] % 2), "tries": 0}
    state = environment.reset("", row)
    assert environment.step(state, "7").messages[0].content == "An action is a JSON object."
    assert environment.step(state, f'{{"message": "{row["seed"] % 10}"}}').done


def test_an_episode_without_answer_ends_with_reward_0(url: str) -> None:
    environment = OpenEnvEnvironment(url=url, timeout=0.2)
    state = environment.reset("", environment.make_rows("train", 1, 0)[0])
    ended = environment.step(state, "slow")
    assert (ended.reward, ended.done, ended.errors) == (0.0, True, 1)
    state = environment.reset("", environment.make_rows("train", 1, 0)[0])
    with pytest.raises(ConfigError, match=r"^environment.url=http://127.0.0.1:\d+: the session ended"):
        environment.step(state, "leave")


def test_a_server_that_does_not_fit_is_one_line(url: str) -> None:
    with pytest.raises(ConfigError, match=r"observation_fields: the observation has no board; it has text, tries$"):
        OpenEnvEnvironment(url=url, observation_fields=("board",)).make_rows("train", 1, 0)
    with pytest.raises(ConfigError, match=r"^environment.url=http://127.0.0.1:9: no answer \(.*\)$"):
        OpenEnvEnvironment(url="http://127.0.0.1:9").make_rows("train", 1, 0)
    unseeded = OpenEnvEnvironment(url=url, settings={"seeded": False})
    with pytest.raises(ConfigError, match=r"two resets with the seed \d+ begin differently"):
        unseeded.reset("", unseeded.make_rows("train", 1, 0)[0])

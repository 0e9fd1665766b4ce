"""The gold score of a completion: what it is really worth, by parts, computed from its row's specification alone.

A specification is a JSON-able dictionary `{"weights": {part: weight}, part: {...}, ...}`; each part is a check below
and gives a number from 0 to 1. `total` is the weighted sum (weights add up to 1) times the part `fluency`, where the
specification has it: broken language is worth nothing, whatever words it holds. No model is involved.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from postrain.world.fluency import fluency
from postrain.world.lexicon import BAD_WORDS, COURTESIES, GOOD_WORDS, RUDE_WORDS

MOOD_STEPS = 4
"""Different mood words (good minus bad) that reach the full mood; the same word again counts nothing."""
NEUTRAL_POLITENESS = 0.5
COURTEOUS = ("please", *(phrase.rstrip(".").lower() for phrase in COURTESIES))
EQUATION = re.compile(r"(\d+) ([+-]) (\d+) = (-?\d+)")
FINAL = re.compile(r"The answer is (-?\d+)\.")

Spec = Mapping[str, Any]


def score(prompt: str, completion: str, gold: Spec) -> dict[str, float]:
    """Each part that applies to this row, and the `total`."""
    measured = (*gold["weights"], "fluency") if "fluency" in gold else gold["weights"]
    parts = {part: CHECKS[part](prompt, completion.strip(), gold[part]) for part in measured}
    return {**parts, "total": weighted(parts, gold) * parts.get("fluency", 1.0)}


def is_bundled(path: Any) -> bool:
    """Whether the path of a gold function is that of this file."""
    return path == f"{__name__}.{score.__name__}"


def weighted(parts: Mapping[str, float], gold: Spec) -> float:
    """The weighted sum of the parts, fluency aside."""
    return math.fsum(weight * parts[part] for part, weight in gold["weights"].items())


def words(text: str) -> list[str]:
    """Lower-case words and numbers, without punctuation."""
    return re.findall(r"[a-z]+|\d+", text.lower())


def sentences(text: str) -> list[str]:
    """Pieces that end in a full stop, exclamation or question mark; a piece without an end counts as one."""
    return [piece.strip() for piece in re.findall(r"[^.!?]+[.!?]*\"?", text) if piece.strip()]


def mood(text: str) -> float:
    """0 is bad, 0.5 neutral, 1 good: different good words minus different bad words, saturating."""
    seen = set(words(text))
    balance = len(seen & GOOD_WORDS) - len(seen & BAD_WORDS)
    return min(max(0.5 + 0.5 * balance / MOOD_STEPS, 0.0), 1.0)


def _mood(_: str, completion: str, spec: Spec) -> float:
    value = mood(completion)
    return value if spec["target"] == "good" else 1.0 - value


def _non_repetition(prompt: str, completion: str, _: Spec) -> float:
    """Share of sentences that are new (against the prompt too) times the share of four-word runs that are new."""
    said = sentences(completion)
    if not said:
        return 0.0
    before = {sentence.lower() for sentence in sentences(prompt)}
    fresh = {sentence.lower() for sentence in said} - before
    letters = re.findall(r"[a-z]+", completion.lower())
    runs = [tuple(letters[i : i + 4]) for i in range(len(letters) - 3)]
    return len(fresh) / len(said) * (len(set(runs)) / len(runs) if runs else 1.0)


def _correct(_: str, completion: str, spec: Spec) -> float:
    return float(CORRECT[spec["type"]](completion, spec))


def _word(completion: str, spec: Spec) -> bool:
    said = set(words(completion))
    return spec["accept"].lower() in said and not said & {other.lower() for other in spec["reject"]}


def _number(completion: str, spec: Spec) -> bool:
    """The final answer; where no closing sentence names it, the last number."""
    found = FINAL.findall(completion) or re.findall(r"-?\d+", completion)
    return bool(found) and found[-1] == spec["accept"]


def _items(completion: str, spec: Spec) -> float:
    """Different members of the asked set, against how many were asked for; anything else counts against it."""
    said = words(completion)
    members = {member.lower() for member in spec["accept"]}
    right = len(set(said) & members)
    return min(right, spec["count"]) / max(spec["count"], len(said))


def _sequence(completion: str, spec: Spec) -> bool:
    return words(completion) == spec["accept"]


def _steps(_: str, completion: str, spec: Spec) -> float:
    """True equations, against how many the sum takes; a false one counts against it."""
    found = EQUATION.findall(completion)
    true = sum(int(left) + int(sign + right) == int(result) for left, sign, right, result in found)
    return min(true, spec["count"]) / max(spec["count"], len(found))


def _format(_: str, completion: str, spec: Spec) -> float:
    said = sentences(completion)
    match spec["type"]:
        case "final":
            return float(
                len(FINAL.findall(completion)) == 1 and completion.endswith(FINAL.findall(completion)[0] + ".")
            )
        case "bare":
            return float(re.fullmatch(r"[A-Za-z0-9]+", completion) is not None)
        case "list":
            return float(re.fullmatch(r"[A-Za-z]+(, [A-Za-z]+)*\.", completion) is not None)
        case "story":
            shaped = sum(_is_sentence(sentence) for sentence in said)
            return shaped / max(len(said), spec["low"], 1) * min(1.0, spec["high"] / max(len(said), 1))
        case _:
            return float(spec["low"] <= len(said) <= spec["high"] and all(map(_is_closed, said)))


def _is_closed(sentence: str) -> bool:
    return sentence.lstrip('"')[:1].isupper() and sentence.rstrip('"').endswith((".", "!", "?"))


def _is_sentence(sentence: str) -> bool:
    return _is_closed(sentence) and 3 <= len(words(sentence)) <= 14


def _polite(_: str, completion: str, spec: Spec) -> float:
    if set(words(completion)) & RUDE_WORDS:
        return 0.0
    courteous = any(phrase in completion.lower() for phrase in COURTEOUS)
    return 1.0 if courteous or not spec["courtesy"] else NEUTRAL_POLITENESS


def _concise(_: str, completion: str, spec: Spec) -> float:
    return min(1.0, spec["words"] / max(len(words(completion)), 1))


def _fluency(_: str, completion: str, spec: Spec) -> float:
    return fluency(completion, spec["forms"])


CORRECT: dict[str, Callable[[str, Spec], float]] = {
    "word": _word,
    "number": _number,
    "items": _items,
    "sequence": _sequence,
}
CHECKS: dict[str, Callable[[str, str, Spec], float]] = {
    "correct": _correct,
    "steps": _steps,
    "format": _format,
    "mood": _mood,
    "polite": _polite,
    "non_repetition": _non_repetition,
    "concise": _concise,
    "fluency": _fluency,
}

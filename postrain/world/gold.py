"""The gold score: the known ground-truth score of a completion in the synthetic world, by parts, without a model.

The gold specification of a row is a JSON-serialisable dictionary `{"weights": {part: weight}, part: {...}, ...}`. Each
part is a check below with a score from 0 to 1. `total` is the weighted sum (weights add up to 1), times `fluency` if
the specification has it: broken language scores 0, whatever words it contains.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from postrain.world.fluency import fluency
from postrain.world.lexicon import BAD_WORDS, COURTESIES, GOOD_WORDS, RUDE_WORDS

MOOD_STEPS = 4
"""Number of different mood words (good minus bad) for the full score; repeated words do not count."""
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
    """Whether a gold function's path is that of this module."""
    return path == f"{__name__}.{score.__name__}"


def weighted(parts: Mapping[str, float], gold: Spec) -> float:
    """The weighted sum of the parts, without fluency."""
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
    found = sentences(completion)
    if not found:
        return 0.0
    before = {sentence.lower() for sentence in sentences(prompt)}
    fresh = {sentence.lower() for sentence in found} - before
    letters = re.findall(r"[a-z]+", completion.lower())
    runs = [tuple(letters[i : i + 4]) for i in range(len(letters) - 3)]
    return len(fresh) / len(found) * (len(set(runs)) / len(runs) if runs else 1.0)


def _correct(_: str, completion: str, spec: Spec) -> float:
    return float(CORRECT[spec["type"]](completion, spec))


def _word(completion: str, spec: Spec) -> bool:
    found = set(words(completion))
    return spec["accept"].lower() in found and not found & {other.lower() for other in spec["reject"]}


def _number(completion: str, spec: Spec) -> bool:
    """The number in the closing sentence, else the last number."""
    found = FINAL.findall(completion) or re.findall(r"-?\d+", completion)
    return bool(found) and found[-1] == spec["accept"]


def _items(completion: str, spec: Spec) -> float:
    """Different members of the requested set, relative to the requested count; other words lower the score."""
    found = words(completion)
    members = {member.lower() for member in spec["accept"]}
    right = len(set(found) & members)
    return min(right, spec["count"]) / max(spec["count"], len(found))


def _sequence(completion: str, spec: Spec) -> bool:
    return words(completion) == spec["accept"]


def _steps(_: str, completion: str, spec: Spec) -> float:
    """True equations, relative to the number that the sum needs; false ones lower the score."""
    found = EQUATION.findall(completion)
    true = sum(int(left) + int(sign + right) == int(result) for left, sign, right, result in found)
    return min(true, spec["count"]) / max(spec["count"], len(found))


def _format(_: str, completion: str, spec: Spec) -> float:
    found = sentences(completion)
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
            shaped = sum(_is_sentence(sentence) for sentence in found)
            return shaped / max(len(found), spec["low"], 1) * min(1.0, spec["high"] / max(len(found), 1))
        case _:
            return float(spec["low"] <= len(found) <= spec["high"] and all(map(_is_closed, found)))


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

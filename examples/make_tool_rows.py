"""Rows to learn tool calls from: eight functions, and requests that need one call, two calls, an answer, or none.

A request without a fitting function is a question about something else, or needs a function that is not declared.

    python examples/make_tool_rows.py FOLDER

writes FOLDER/train.jsonl (500 rows) and FOLDER/eval.jsonl (100 rows). The values of held-out requests (places, names,
texts) do not occur in training.
"""

import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CITIES = ["Lisbon", "Oslo", "Nairobi", "Kyoto", "Lima", "Cairo", "Boston", "Perth", "Riga", "Quito", "Turin", "Ghent"]
PEOPLE = ["Mara", "Tom", "Aiko", "Luis", "Zoe", "Omar", "Ingrid", "Pavel", "Nia", "Hugo", "Wen", "Ruth"]
CURRENCIES = ["EUR", "USD", "JPY", "GBP", "CHF", "SEK", "BRL", "INR", "AUD", "NOK"]
FOODS = ["Thai", "Mexican", "Greek", "Indian", "Ethiopian", "Korean", "Lebanese", "French", "Vietnamese", "Turkish"]
COMPANIES = ["Acorn", "Bluefin", "Corvid", "Dynamo", "Ember", "Foxglove", "Granite", "Harbor", "Ibis", "Juniper"]
TEXTS = ["I will be late", "see you at noon", "the keys are inside", "call me back", "dinner is ready", "thanks a lot"]
TITLES = ["dentist", "team lunch", "piano lesson", "book club", "budget review", "yoga class", "car service", "picnic"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
OTHER = [
    "Write a poem about rain.", "What is the capital of Peru?", "Tell me a joke.", "How do magnets work?",
    "Who wrote Hamlet?", "Explain what a noun is.", "Why is the sky blue?", "Give me three names for a cat.",
    "Summarize the plot of Moby Dick.", "What is 12 times 7?", "Write a haiku about snow.", "How old is the universe?",
]  # fmt: skip
REFUSAL = "None of my functions can do that."

VALUES: Mapping[str, Sequence[Any]] = {
    "city": CITIES,
    "origin": CITIES,
    "destination": CITIES,
    "recipient": PEOPLE,
    "from_currency": CURRENCIES,
    "to_currency": CURRENCIES,
    "cuisine": FOODS,
    "company": COMPANIES,
    "text": TEXTS,
    "title": TITLES,
    "day": DAYS,
    "amount": range(5, 900),
    "minutes": range(1, 120),
    "people": range(2, 13),
}
SHARED = ("day", "amount", "minutes", "people")
"""Arguments whose values are the same in training and in held-out rows."""
FUNCTIONS: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "get_weather": (
        "Weather forecast of a city",
        ("city", "day"),
        ("What will the weather be in {city} on {day}?", "Do I need an umbrella in {city} on {day}?"),
    ),
    "convert_currency": (
        "Convert an amount of money",
        ("amount", "from_currency", "to_currency"),
        (
            "How much is {amount} {from_currency} in {to_currency}?",
            "Change {amount} {from_currency} to {to_currency}.",
        ),
    ),
    "set_timer": (
        "Start a timer",
        ("minutes",),
        (
            "Set a timer for {minutes} minutes.",
            "Wake me in {minutes} minutes.",
            "Count down {minutes} minutes.",
        ),
    ),
    "send_message": (
        "Send a text message",
        ("recipient", "text"),
        ('Tell {recipient}: "{text}".', 'Send {recipient} the message "{text}".', 'Text "{text}" to {recipient}.'),
    ),
    "find_restaurant": (
        "Find a restaurant with a free table",
        ("cuisine", "city", "people"),
        ("Find a {cuisine} restaurant in {city} for {people}.", "A {cuisine} table for {people} in {city}, please."),
    ),
    "add_event": (
        "Add an event to the calendar",
        ("title", "day"),
        ("Put the {title} on {day} into my calendar.", "I have {title} on {day}, write it down."),
    ),
    "search_flights": (
        "Search flights",
        ("origin", "destination", "day"),
        ("Flights from {origin} to {destination} on {day}?", "I want to fly from {origin} to {destination} on {day}."),
    ),
    "get_stock_price": (
        "Latest stock price of a company",
        ("company",),
        ("What is a share of {company} worth?", "How is the stock of {company} doing?"),
    ),
}


def schema(name: str) -> dict[str, Any]:
    """The JSON schema of a function."""
    description, arguments, _ = FUNCTIONS[name]
    types = {key: {"type": "integer" if isinstance(VALUES[key], range) else "string"} for key in arguments}
    parameters = {"type": "object", "properties": types, "required": list(arguments)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def of_split(values: Sequence[Any], split: str) -> list[Any]:
    """The first two thirds for training, the others for held-out rows."""
    cut = len(values) * 2 // 3
    return list(values[:cut] if split == "train" else values[cut:])


def request(name: str, rng: random.Random, split: str) -> tuple[str, dict[str, Any]]:
    """A request for a function, and the call in the form of OpenAI, with its arguments as JSON text."""
    _, keys, phrases = FUNCTIONS[name]
    arguments: dict[str, Any] = {}
    for key in keys:
        values = list(VALUES[key]) if key in SHARED else of_split(VALUES[key], split)
        arguments[key] = rng.choice([value for value in values if value not in arguments.values()])
    call = {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    return rng.choice(phrases).format(**arguments), call


def make_row(rng: random.Random, split: str) -> dict[str, Any]:
    """A conversation with two or three declared functions."""
    one, other, third, undeclared = rng.sample(sorted(FUNCTIONS), 4)
    kind = rng.choices(("call", "two calls", "result", "none"), (60, 10, 10, 20))[0]
    declared = [one, other, third][: rng.randint(2, 3)]
    text, call = request(one, rng, split)
    if kind == "none":
        unfit = rng.choice([rng.choice(of_split(OTHER, split)), request(undeclared, rng, split)[0]])
        turns = [{"role": "user", "content": unfit}, {"role": "assistant", "content": REFUSAL}]
    elif kind == "two calls":
        more, second = request(other, rng, split)
        turns = [{"role": "user", "content": f"{text} {more}"}, {"role": "assistant", "tool_calls": [call, second]}]
    else:
        turns = [{"role": "user", "content": text}, {"role": "assistant", "tool_calls": [call]}]
        if kind == "result":
            turns += [{"role": "tool", "content": '{"status": "ok"}'}, {"role": "assistant", "content": "It is done."}]
    rng.shuffle(declared)
    return {"messages": turns, "tools": [schema(name) for name in declared]}


def main(folder: Path, sizes: Mapping[str, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in sizes.items():
        rng = random.Random(f"tools {split}")
        rows = [make_row(rng, split) for _ in range(size)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), {"train": 500, "eval": 100})

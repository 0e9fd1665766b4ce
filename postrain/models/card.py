"""Model cards: front matter that the Hub reads, and how to load the model with each library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCard, ModelCardData
from yaml import YAMLError

Kind = Literal["weights", "adapter", "gguf"]
HELD_OUT, LOADING = "Held-out results", "How to load it"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def front_matter(
    *,
    kind: Kind,
    base_model: str | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    datasets: Sequence[str] = (),
    scalar: bool = False,
) -> ModelCardData:
    """The metadata of a card; unknown values are left out. `base_model` and `datasets` are names on the Hub."""
    return ModelCardData(
        base_model=base_model,
        license=license,
        library_name={"weights": "transformers", "adapter": "peft", "gguf": "gguf"}[kind],
        pipeline_tag="text-classification" if scalar else "text-generation",
        tags=list(dict.fromkeys(("postrain", *tags))),
        datasets=list(datasets) or None,
    )


def render(data: ModelCardData, title: str, sections: Mapping[str, str], intro: str = "") -> str:
    """README.md with front matter, a title and sections by heading."""
    body = "".join(f"\n## {heading}\n\n{text.strip()}\n" for heading, text in sections.items())
    return f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{intro.strip()}\n{body}"


def read_card(directory: Path) -> ModelCard | None:
    """The card of a model directory; None without one, or if its front matter is not valid."""
    try:
        text = (directory / "README.md").read_text(encoding="utf-8")
        # Without front matter the library prints a warning.
        return ModelCard(text if text.startswith("---") else f"---\n{{}}\n---\n{text}", ignore_metadata_errors=True)
    except (OSError, ValueError, YAMLError):
        return None


def metadata(directory: Path) -> Mapping[str, Any]:
    """The front matter of a model directory's card; empty without one."""
    card = read_card(directory)
    return card.data.to_dict() if card else {}


def with_section(text: str, heading: str, body: str) -> str:
    """The text of a card with a section replaced, or added at the end."""
    section = f"## {heading}\n\n{body.strip()}\n"
    found = re.search(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    if found is None:
        return f"{text.rstrip()}\n\n{section}"
    return f"{text[: found.start()]}{section}\n{text[found.end() :]}".rstrip() + "\n"


def loading(kind: Kind, *, scalar: bool = False, base: str = "", file: str = "") -> str:
    """The section on loading: `DIR` is the folder of this card, or its name on the Hub."""
    auto = "AutoModelForSequenceClassification" if scalar else "AutoModelForCausalLM"
    if kind == "gguf":
        return f"""\
```bash
ollama create my-model -f Modelfile && ollama run my-model
llama-cli -m {file} --jinja
```"""
    if kind == "adapter":
        peft = auto.replace("Auto", "AutoPeft")
        imports = f"from peft import {peft}\nfrom transformers import AutoTokenizer"
        load = f'{peft}.from_pretrained("DIR"{", num_labels=1" if scalar else ""})'
        folder = f"this folder; the base model {f'`{base}` ' if base else ''}is loaded with it."
        serve = (
            f"vllm serve {base or 'BASE'} --enable-lora --lora-modules tuned=DIR\n"
            "postrain merge DIR                # complete weights, for transformers alone"
        )
    else:
        imports, load = f"from transformers import {auto}, AutoTokenizer", f'{auto}.from_pretrained("DIR")'
        folder, serve = "this folder.", "vllm serve DIR"
    lines = f"""\
`DIR` is {folder}

```python
{imports}

model = {load}
tokenizer = AutoTokenizer.from_pretrained("DIR")
```
"""
    if scalar:
        return lines
    return f"""{lines}
```bash
postrain chat DIR
{serve}
postrain export DIR --gguf q8_0   # for Ollama and llama.cpp
```"""

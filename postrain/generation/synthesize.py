"""`postrain generate prompts=...`: samples prompts, filters them for novelty, reports their diversity.

candidates.jsonl   a line per sampled prompt: text, finished; appended chunk by chunk
data.jsonl         the prompts that passed the filters, for data.path=
summary.json       counts by filter, diversity      manifest.json  config.yaml  status.json
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table
from torch import nn

from postrain.data.chat import Template
from postrain.data.decontaminate import words
from postrain.data.novelty import Novelty, diversity
from postrain.errors import ConfigError
from postrain.formatting import figure
from postrain.generation.prompts import PromptMaker
from postrain.jsonl import JsonLines, Record, atomic_write_text
from postrain.models.directory import context_length
from postrain.models.parts import unwrapped
from postrain.rollout.engine import Engine
from postrain.runs.folder import writing
from postrain.seeds import derive_seed
from postrain.types import Stop

CANDIDATES = "candidates.jsonl"
REMEDY = "free some space, then resume"


def synthesize(
    maker: PromptMaker,
    *,
    model: nn.Module,
    engine: Engine,
    template: Template,
    seeds: Sequence[str],
    folder: Path,
    seed: int,
    chunk: int,
) -> tuple[list[str], Counter[str]]:
    """Samples and filters prompts: those that passed, and the number of dropped ones by filter.

    A prompt depends on its number, the seed and the chunks before its own, so a resumed run is equal.
    """
    lines = JsonLines(folder / CANDIDATES)
    done = whole_chunks(lines, maker.count, chunk)
    stop = Stop(template.stop_ids, (*maker.stops(template), *engine.sampling.stop), template.decode_all)
    limit = context_length(unwrapped(model).config.to_dict()) - engine.sampling.max_new_tokens
    for start in range(0, maker.count, chunk):
        numbers = range(start, min(start + chunk, maker.count))
        if len(done) >= numbers.stop:
            continue
        made, _ = filtered(maker, seeds, done[:start])
        contexts = maker.contexts(template, seeds, made, [derive_seed(seed, "examples", number) for number in numbers])
        own = [derive_seed(seed, "prompt", number) for number in numbers]
        # Examples beyond the context are cut on the left.
        with torch.no_grad():
            found = engine.generate(model, [ids[-limit:] for ids in contexts], seeds=own, stop=stop)
        texts = [_text(template, one.ids.tolist(), stop.texts) for one in found]
        new = [{"text": text, "finished": one.finished} for text, one in zip(texts, found, strict=True)]
        with writing(lines.path, REMEDY):
            lines.append(*new)
        done = [*done[:start], *new]
    return filtered(maker, seeds, done)


def whole_chunks(lines: JsonLines, count: int, chunk: int) -> list[Record]:
    """The first `count` candidates of an earlier session; a partial chunk at the end of the file is removed."""
    records, damaged = lines.examine()
    whole = len(records) if len(records) == count else min(len(records) - len(records) % chunk, count)
    if damaged or whole < len(records):
        kept = (json.dumps(record, ensure_ascii=False) + "\n" for record in records[:whole])
        with writing(lines.path, REMEDY):
            atomic_write_text(lines.path, "".join(kept))
    return records[:whole]


def _text(template: Template, ids: Sequence[int], stops: Sequence[str]) -> str:
    text = template.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    for one in stops:
        text = text.partition(one)[0]
    return text.strip()


def filtered(maker: PromptMaker, seeds: Sequence[str], candidates: Sequence[dict]) -> tuple[list[str], Counter[str]]:
    """The prompts that pass the filters, in order, and the number of dropped ones by filter."""
    like_seeds, like_others = Novelty(maker.max_rouge_l, seeds), Novelty(maker.max_rouge_l)
    dropped: Counter[str] = Counter()
    kept: list[str] = []
    for one in candidates:
        text, size = one["text"], len(words(one["text"]))
        if not one["finished"]:
            dropped["truncated"] += 1
        elif size < maker.min_words:
            dropped[f"shorter than {maker.min_words} words"] += 1
        elif size > maker.max_words:
            dropped[f"longer than {maker.max_words} words"] += 1
        elif not like_seeds.is_novel(text):
            dropped["like a seed"] += 1
        elif not like_others.is_novel(text):
            dropped["like another"] += 1
        else:
            like_others.add(text)
            kept.append(text)
    return kept, dropped


def save(kept: Sequence[str], dropped: Counter[str], seeds: Sequence[str], folder: Path) -> Table:
    """Writes prompts and summary; returns the console table. Raises ConfigError if fewer than two prompts passed."""
    total = len(kept) + dropped.total()
    if len(kept) < 2:
        reasons = ", ".join(f"{count} {name}" for name, count in dropped.most_common())
        raise ConfigError(
            f"prompts: {len(kept)} of {total} sampled prompts passed the filters ({reasons}); sample more "
            "(prompts.count), raise prompts.max_rouge_l, rollout.temperature or rollout.max_new_tokens"
        )
    # distinct-n falls with the number of texts.
    equal = seeds[: len(kept)]
    found, of_seeds = diversity(kept), diversity(equal) if len(equal) > 1 else {}
    rows = "".join(json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in kept)
    summary = {"prompts": total, "samples": 1, "kept": len(kept), "dropped": dict(dropped), "diversity": found}
    with writing(folder):
        atomic_write_text(folder / "data.jsonl", rows)
        atomic_write_text(
            folder / "summary.json", json.dumps({**summary, "diversity_of_seeds": of_seeds}, indent=2) + "\n"
        )
    table = Table(box=None, pad_edge=False)
    for name in ("", "prompts", "seeds"):
        table.add_column(name)
    table.add_row("number", str(len(kept)), str(len(equal)))
    for name, value in found.items():
        table.add_row(name.replace("_", " "), figure(value), figure(of_seeds[name]) if of_seeds else "")
    for name, count in dropped.most_common():
        table.add_row(f"dropped: {name}", f"{count} ({count / total:.0%})", "")
    return table

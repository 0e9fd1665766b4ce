"""python -m postrain.cli.export RUN --gguf TYPE: writes a GGUF file and a Modelfile for llama.cpp and Ollama."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from postrain.cli import publish
from postrain.config.paths import command
from postrain.errors import ConfigError, Parser

BOUND = 1e-2
"""The largest difference of a logit after a round trip through a file of type f16, as a share of the largest logit."""


def main(argv: Sequence[str]) -> int:
    """Runs one command line; returns the exit code, 2 for a mistake."""
    return publish.run_command(lambda chosen: export_run(chosen, argv), parser(), argv)


def parser() -> Parser:
    """The command line."""
    found = Parser(
        prog=command("export"),
        description="Writes a run's model as a GGUF file with its chat template, and a Modelfile for Ollama. Adapters "
        "are merged. The file is read again, and its logits are compared with those of the model.",
    )
    publish.add_arguments(found, "default RUN/gguf-TYPE")
    found.add_argument("--gguf", required=True, metavar="TYPE", help="type of the weights: f16, q8_0 or q4_k_m")
    return found


def export_run(chosen: Namespace, argv: Sequence[str]) -> None:
    """Writes and checks the folder, and uploads it if asked."""
    kind = chosen.gguf.lower()
    # Imported here for a fast start-up: --help needs no torch.
    from postrain.models.to_gguf.quantize import check_type  # noqa: PLC0415

    check_type(kind)
    out = publish.check_output(chosen, f"gguf-{kind}")
    from postrain.models.by_name import resolve_by_name  # noqa: PLC0415

    resolved = resolve_by_name("RUN", chosen.run, "a run folder, a model directory, a Hub name")
    file = f"{resolved.name}-{kind.upper()}.gguf"
    from postrain.models.disk_cache import write_directory  # noqa: PLC0415

    with publish.writing(out):
        write_directory(out, lambda fresh: fill(chosen, argv, resolved, kind, fresh / file))
    print(f"gguf    {out / file}  ({(out / file).stat().st_size / 2**20:.0f} MiB)")
    print(f"ollama  cd {shlex.quote(str(out))} && ollama create {shlex.quote(resolved.name)} -f Modelfile")
    publish.push_folder(chosen, out)


def fill(chosen: Namespace, argv: Sequence[str], resolved: Any, kind: str, path: Path) -> None:
    """Writes the GGUF file, Modelfile, card and manifest. Raises ConfigError if f16 changes a logit beyond BOUND."""
    import torch  # noqa: PLC0415 - start-up time

    from postrain.models.directory import saved_end_ids  # noqa: PLC0415
    from postrain.models.loading import load_causal, load_tokenizer  # noqa: PLC0415
    from postrain.models.logit_check import check_rows, compare_logits, logits_on  # noqa: PLC0415
    from postrain.models.to_gguf.modelfile import modelfile  # noqa: PLC0415
    from postrain.models.to_gguf.write import read_gguf, write_gguf  # noqa: PLC0415

    model, tokenizer = load_causal(resolved, dtype=torch.float32), load_tokenizer(resolved)
    source = resolved.adapters[-1] if resolved.adapters else resolved.directory
    end_ids = saved_end_ids(source)
    write_gguf(model, tokenizer, path, kind, name=resolved.name, end_ids=end_ids)
    rows = check_rows(tokenizer, publish.run_folder(chosen.run), model.config.vocab_size)
    before, config = logits_on(model, rows), model.config
    # The file's weights take its place in memory.
    del model
    check = compare_logits(before, logits_on(read_gguf(path, config), rows), rows)
    print(f"check   {check.describe()}")
    if kind == "f16" and not check.relative <= BOUND:
        raise ConfigError(
            f"the file changes a logit by {check.max_difference:.2g}, more than {BOUND:.0%} of the largest logit; "
            "convert the model with convert_hf_to_gguf.py of llama.cpp"
        )
    text, note = modelfile(tokenizer, path.name, end_ids=end_ids)
    if note:
        print(f"note: {note}")
    card = publish.derived_card(
        source,
        kind="gguf",
        title=resolved.name,
        scalar=False,
        file=path.name,
        GGUF=f"Weights of type {kind}, chat template included. Against the model before: {check.describe()}.",
    )
    manifest = publish.manifest("export", argv, resolved, gguf={"type": kind, **check.to_dict()})
    for name, content in {"Modelfile": text, "README.md": card, "manifest.json": manifest}.items():
        (path.parent / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""python -m postrain.cli.merge RUN: merges the adapter of a run into its base model, with a check of the logits."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from postrain.cli import publish
from postrain.config.paths import command
from postrain.errors import Parser


def main(argv: Sequence[str]) -> int:
    """Runs one command line; returns the exit code, 2 for a mistake."""
    return publish.run_command(lambda chosen: merge_run(chosen, argv), parser(), argv)


def parser() -> Parser:
    """The command line."""
    found = Parser(
        prog=command("merge"),
        description="Merges the adapter of a run into its base model. The logits of adapter and merged weights are "
        "compared on completions of the run; a merge that changes them by more than a bound is refused.",
    )
    publish.add_arguments(found, "default RUN/merged")
    found.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="of the weights; default: bfloat16 if the base model has it, else float32",
    )
    return found


def merge_run(chosen: Namespace, argv: Sequence[str]) -> None:
    """Merges, checks, writes the folder and uploads it if asked."""
    out = publish.check_output(chosen, "merged")
    # Imported here for a fast start-up: --help and command-line mistakes need no torch.
    from postrain.data.kinds.steps import LAYOUT_FILE  # noqa: PLC0415
    from postrain.models.by_name import resolve_by_name  # noqa: PLC0415
    from postrain.models.directory import saved_end_ids  # noqa: PLC0415
    from postrain.models.export import export  # noqa: PLC0415
    from postrain.models.logit_check import check_rows  # noqa: PLC0415
    from postrain.models.merge import merge  # noqa: PLC0415

    resolved = resolve_by_name("RUN", chosen.run, "a run folder, a directory with an adapter, a Hub name")
    run = publish.run_folder(chosen.run)
    merged = merge(resolved, lambda tokenizer, size: check_rows(tokenizer, run, size), chosen.dtype)
    adapter = resolved.adapters[-1]
    summary = f"{merged.check.describe()}; accepted up to {merged.bound:.2g} in {merged.dtype}"
    print(f"merge   {summary}")
    card = publish.derived_card(
        adapter,
        kind="weights",
        title=resolved.name,
        scalar=resolved.head == "scalar",
        Merge=f"The adapter was merged into its base model. Adapter against merged weights: {summary}.",
    )
    check = {**merged.check.to_dict(), "bound": merged.bound, "dtype": merged.dtype, "adapter": str(adapter)}
    files = {"manifest.json": publish.manifest("merge", argv, resolved, merge=check)}
    if (layout := adapter / LAYOUT_FILE).is_file():
        files[LAYOUT_FILE] = layout.read_text(encoding="utf-8")
    with publish.writing(out):
        export(merged.model, merged.tokenizer, out, card=card, end_ids=saved_end_ids(adapter), files=files)
    print(f"model   {out}")
    publish.push_folder(chosen, out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

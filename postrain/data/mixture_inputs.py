"""The sources of a run: data.path or data.source, or data.mix, and data.replay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from postrain.data.data_options import Part
from postrain.data.formats import parse
from postrain.data.kinds import KINDS
from postrain.data.kinds.demonstration import Demonstration
from postrain.data.kinds.text import Text
from postrain.data.mix_sources import MixSource, Replay
from postrain.data.schedule import DataSpec
from postrain.data.settings import DataSettings
from postrain.data.sources import Loaded
from postrain.data.template_choice import Mode
from postrain.errors import ConfigError

REPLAY = "replay"
"""The name of the held-out rows of data.replay."""
WITH_REPLAY = (Demonstration.__name__, Text.__name__)
"""The kinds of record into whose batches running text can be mixed."""


@dataclass(frozen=True)
class Input:
    """One source of training rows."""

    key: str
    """The config key for messages."""
    name: str
    """The name in metrics; empty for the only source."""
    part: Part
    loaded: Loaded
    kind: str
    """Kind of its records."""
    offset: int = 0
    """Added to its row numbers."""

    @property
    def is_replay(self) -> bool:
        """Whether it is the source of data.replay."""
        return isinstance(self.part, Replay)

    @cached_property
    def is_text(self) -> bool:
        """Whether it holds running text."""
        return isinstance(next(iter(parse(self.loaded.train.head(1), {}).records), None), Text)

    @property
    def weight(self) -> float | None:
        """Its weight in data.mix; None for its size."""
        return self.part.weight if isinstance(self.part, MixSource) else None

    @property
    def trained(self) -> bool:
        """Whether its rows are trained on, not only evaluated."""
        return self.part.share > 0 if isinstance(self.part, Replay) else self.weight != 0

    @property
    def last(self) -> int:
        """The largest row number."""
        return max(table.last for table in (self.loaded.train, self.loaded.held_out) if table)

    def shifted(self, offset: int) -> Input:
        """The same rows with larger numbers."""
        train, held_out = self.loaded.train, self.loaded.held_out
        loaded = Loaded(train.shifted(offset), held_out and held_out.shifted(offset))
        return replace(self, loaded=loaded, offset=offset) if offset else self

    def without_values(self) -> Input:
        """The same source, without keeping the values of its rows in memory."""
        return replace(self, loaded=self.loaded.without_values())


def is_mixed(settings: DataSettings) -> bool:
    """Whether the data have several sources or several held-out files."""
    return bool(settings.mix or settings.replay or isinstance(settings.eval_path, Mapping))


def parts_of(settings: DataSettings, spec: DataSpec) -> dict[str, Part]:
    """The sources by config key."""
    found: dict[str, Part] = {f"data.mix.{name}": part for name, part in settings.mix.items()}
    if not settings.mix:
        found["data"] = Part(path=settings.path, source=None if settings.path else settings.source)
    # Prepared for an evaluation, data has no updates; replayed rows are only trained on.
    if settings.replay is not None and spec.updates:
        found["data.replay"] = settings.replay
    return found


def required_template(parts: Mapping[str, Part]) -> Mode:
    """The chat template that the sources require; auto if none requires one."""
    found: list[Mode] = [part.source.template for part in parts.values() if part.source and not part.path]
    required: list[Mode] = [mode for mode in found if mode != "auto"]
    return required[0] if required else "auto"


def check_settings(settings: DataSettings) -> None:
    """Raises ConfigError for weights that sum to 0, and for two sources of one name."""
    if settings.mix and all(source.weight == 0 for source in settings.mix.values()):
        raise ConfigError("data.mix: the weights sum to 0; give at least one source a weight above 0")
    if settings.replay and REPLAY in settings.mix:
        raise ConfigError(
            f"data.mix.{REPLAY}: the name of data.replay; choose another name: data.mix={{NAME: {{path: FILE}}}}"
        )


def read(settings: DataSettings, spec: DataSpec) -> Iterator[Input]:
    """Reads the rows of all sources, one by one."""
    for key, part in parts_of(settings, spec).items():
        if isinstance(part, Replay) and spec.kind not in WITH_REPLAY:
            raise ConfigError(
                f"data.replay: this method trains on {KINDS[spec.kind].noun}, which running text cannot be mixed with; "
                "leave it out, or use method=sft or method=pretrain"
            )
        yield _input(key, part, settings, spec.kind)


def _input(key: str, part: Part, settings: DataSettings, kind: str) -> Input:
    if key == "data":
        return Input(key, "", part, settings.load_rows(), kind)
    loaded = part.load(key, eval_rows=settings.eval_rows)
    if not loaded.train.rows:
        raise ConfigError(f"{key}: {loaded.train.name} is empty; expected at least one row")
    limited = replace(loaded, train=loaded.train.head(part.max_rows or settings.max_rows))
    found = Input(key, key.rpartition(".")[2], part, limited, kind)
    if isinstance(part, MixSource) and kind == Demonstration.__name__ and found.is_text:
        raise ConfigError(f"{key}: {loaded.train.name} holds running text; mix it in with data.replay={part.path}")
    return replace(found, kind=Text.__name__) if found.is_replay and found.is_text else found

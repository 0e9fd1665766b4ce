"""The loop of one generate call: rows wait, take slots in waves, get tokens, and leave when they have ended.

Each distinct prompt is run once however many completions it gets. Knows no model: a Stepper gives the logits.

Axes: R rows of the call, T new tokens, S slots, B some of them, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from postrain.models.packing import in_blocks
from postrain.rollout.decode.steppers import Filled, Stepper
from postrain.rollout.decode.stopping import StopTexts
from postrain.rollout.sampling import draw, uniforms
from postrain.types import Completion, Sampling, Stop

# Free slots are filled, or closed, once they are this share: a wave costs a prefill, or a copy.
TURN_SHARE = 0.2
# Prompt tokens, padding included, that are run together: enough to fill a machine, too few to be the peak of memory.
PREFILL_TOKENS = 16384


class Decoding:
    """All rows of a call, from the queue to completions."""

    def __init__(
        self,
        stepper: Stepper,
        prompts: Sequence[Tensor],
        keys: Sequence[int],
        sampling: Sampling,
        stop: Stop,
        *,
        slots: int,
    ) -> None:
        self.stepper, self.sampling, self.slots, self.device = stepper, sampling, slots, stepper.device
        families: dict[tuple[int, ...], int] = {}
        self.family = [families.setdefault(tuple(prompt.tolist()), len(families)) for prompt in prompts]
        self.distinct = [torch.tensor(ids) for ids in families]
        # Groups stay together, and prompts of like length: less padding.
        order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), self.family[row], row))
        self.waiting = deque(order)
        self.spare: tuple[int, Filled] | None = None
        self.stop_ids = torch.tensor(stop.ids, dtype=torch.long, device=self.device)
        self.stop_texts = StopTexts(stop)
        rows, last = len(prompts), sampling.max_new_tokens
        self.limit_R = torch.tensor(stop.limits or [last] * rows, device=self.device)
        # One column more than there are tokens: what rows draw that have ended goes there.
        self.uniform_RT = torch.cat([uniforms(keys, last), torch.zeros(rows, 1)], dim=1).to(self.device)
        self.tokens_RT = torch.zeros(rows, last + 1, dtype=torch.long, device=self.device)
        self.logps_RT = torch.zeros(rows, last + 1, device=self.device)
        self.count_R = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.open_R, self.finished_R = torch.zeros(2, rows, dtype=torch.bool, device=self.device)
        self.row_S = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.token_S = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.used = 0
        """Slots that are stepped, the first ones: open rows, and some that have ended."""

    def run(self) -> list[Completion]:
        """Decode until every row has ended."""
        while (live := int(self.open_R[self.row_S[: self.used]].sum())) or self.waiting:
            if self.due(live):
                self.turn_over(live)
            else:
                logits_BV = self.stepper.step(self.token_S[: self.used])
                self.record(torch.arange(self.used, device=self.device), logits_BV)
        tokens_RT, logps_RT = self.tokens_RT.cpu(), self.logps_RT.cpu()
        ends = zip(self.count_R.tolist(), self.finished_R.tolist(), strict=True)
        return [
            Completion(tokens_RT[row, :count].clone(), logps_RT[row, :count].clone(), finished)
            for row, (count, finished) in enumerate(ends)
        ]

    def due(self, live: int) -> bool:
        """Whether so many slots are free that filling or closing them pays."""
        if not live:
            return True
        if self.waiting and self.stepper.joins:
            return self.slots - live >= max(1, TURN_SHARE * self.slots)
        return self.used - live >= max(1, TURN_SHARE * self.used)

    def turn_over(self, live: int) -> None:
        """Waiting rows take the free slots; what then is free among those that are stepped is closed."""
        ended = (~self.open_R[self.row_S[: self.used]]).nonzero().squeeze(-1).tolist()
        free = [*ended, *range(self.used, self.slots)]
        takes = min(len(free), len(self.waiting)) if self.stepper.joins or not live else 0
        if takes:
            self.admit([self.waiting.popleft() for _ in range(takes)], free[:takes])
        self.close(free[takes:])

    def admit(self, rows: Sequence[int], slots: Sequence[int]) -> None:
        """Seat rows, and draw their first token."""
        self.used = max(self.used, slots[-1] + 1)
        self.row_S[self.indices(slots)] = self.indices(rows)
        self.open_R[self.indices(rows)] = True
        members: dict[int, list[int]] = {}
        for row, slot in zip(rows, slots, strict=True):
            members.setdefault(self.family[row], []).append(slot)
        split = self.family[self.waiting[0]] if self.waiting and self.stepper.joins else None
        for block, filled in self.filled(list(members)):
            which_B = self.indices([place for place, family in enumerate(block) for _ in members[family]])
            slots_B = self.indices([slot for family in block for slot in members[family]])
            self.stepper.seat(filled, which_B, slots_B)
            self.record(slots_B, filled.logits_PV[which_B])
            if split in block:
                self.spare = (block[-1], filled) if len(block) == 1 else (split, filled.narrowed(block.index(split)))

    def filled(self, families: list[int]) -> Iterator[tuple[list[int], Filled]]:
        """The prompts of these rows, run in blocks of similar length; one that was split between waves is kept."""
        spare, self.spare = self.spare, None
        if spare is not None:
            families.remove(spare[0])
            yield [spare[0]], spare[1]
        lengths = [len(self.distinct[family]) for family in families]
        for places, length in in_blocks(lengths) if self.stepper.joins else [(list(range(len(families))), 1)]:
            size = max(1, PREFILL_TOKENS // length)
            for start in range(0, len(places), size):
                block = [families[place] for place in places[start : start + size]]
                yield block, self.stepper.prefill([self.distinct[family] for family in block])

    def close(self, free: Sequence[int]) -> None:
        """The last rows move to the front, so that the slots in use are the first ones again."""
        holes = {slot for slot in free if slot < self.used}
        if not holes:
            return
        rows = self.used - len(holes)
        target_B = self.indices([slot for slot in sorted(holes) if slot < rows])
        source_B = self.indices([slot for slot in range(rows, self.used) if slot not in holes])
        self.stepper.move(source_B, target_B, rows)
        self.row_S[target_B], self.token_S[target_B] = self.row_S[source_B], self.token_S[source_B]
        self.used = rows

    def record(self, slots_B: Tensor, logits_BV: Tensor) -> None:
        """Draw a token for each of these slots; rows that have ended draw in vain."""
        rows_B = self.row_S[slots_B]
        open_B, last = self.open_R[rows_B], self.sampling.max_new_tokens
        at_B = torch.where(open_B, self.count_R[rows_B], last)
        tokens_B, logps_B = draw(logits_BV, self.uniform_RT[rows_B, at_B], self.sampling)
        self.tokens_RT[rows_B, at_B], self.logps_RT[rows_B, at_B] = tokens_B, logps_B.float()
        self.token_S[slots_B] = tokens_B
        self.count_R[rows_B] += open_B
        ended_B = open_B & torch.isin(tokens_B, self.stop_ids)
        if self.stop_texts.texts:
            ended_B |= self.complete_texts(rows_B, open_B & ~ended_B)
        self.finished_R[rows_B] |= ended_B
        self.open_R[rows_B] = open_B & ~ended_B & (at_B + 1 < self.limit_R[rows_B])

    def complete_texts(self, rows_B: Tensor, asked_B: Tensor) -> Tensor:
        """Which of the rows that are asked about have just completed a stop text."""
        found_B = torch.zeros_like(asked_B)
        for place in asked_B.nonzero().squeeze(-1).tolist():
            row = rows_B[place]
            found_B[place] = self.stop_texts.completed(self.tokens_RT[row, : self.count_R[row]].tolist())
        return found_B

    def indices(self, places: Sequence[int]) -> Tensor:
        """As a tensor where the rows are."""
        return torch.tensor(places, dtype=torch.long, device=self.device)

"""Continuous batching: rows are queued, admitted to free slots, get one token per step, and are evicted when they end.

Each distinct prompt is prefilled once for all of its completions. Independent of the model: a DecodeBackend returns the
logits.

Axes: R rows of the call, T new tokens, S slots, B some of them, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from postrain.models.packing import length_buckets
from postrain.rollout.decode.backend import DecodeBackend, Prefilled
from postrain.rollout.decode.sampling import draw, uniforms
from postrain.types import Completion, Sampling, Stop

# Refill or compact once this fraction of the slots is free: a refill costs a prefill, compaction a copy.
REFILL_FRACTION = 0.2
# Prompt tokens per prefill, padding included: enough to use the machine, too few to set the memory peak.
PREFILL_TOKENS = 16384
# Maximum tokens of one character: its UTF-8 bytes.
TOKENS_PER_CHARACTER = 4
# Decode steps between two checks which rows have ended. A check waits for an accelerator, which then waits for its next
# operation; rows that have ended in between are decoded up to the check, and those tokens are discarded.
STEPS_PER_CHECK = {"cpu": 1, "cuda": 8, "mps": 8}


class DecodeLoop:
    """All rows of a call, from the queue to completions."""

    def __init__(
        self,
        backend: DecodeBackend,
        prompts: Sequence[Tensor],
        keys: Sequence[int],
        sampling: Sampling,
        stop: Stop,
        *,
        slots: int,
    ) -> None:
        self.backend, self.sampling, self.slots, self.device = backend, sampling, slots, backend.device
        index_of: dict[tuple[int, ...], int] = {}
        self.prompt_index = [index_of.setdefault(tuple(prompt.tolist()), len(index_of)) for prompt in prompts]
        self.distinct = [torch.tensor(ids) for ids in index_of]
        # Sorted by length, groups together: less padding.
        order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), self.prompt_index[row], row))
        self.waiting = deque(order)
        self.split_prefill: tuple[int, Prefilled] | None = None
        self.stop_ids = torch.tensor(stop.ids, dtype=torch.long, device=self.device)
        self.stop_texts = StopTexts(stop)
        self.known: dict[int, list[int]] = {}
        """The tokens of each row in which stop texts were looked for."""
        rows, last = len(prompts), sampling.max_new_tokens
        self.limit_R = torch.tensor(stop.limits or [last] * rows, device=self.device)
        # The extra last column holds discarded tokens of ended rows.
        self.uniform_RT = torch.cat([uniforms(keys, last), torch.zeros(rows, 1)], dim=1).to(self.device)
        self.tokens_RT = torch.zeros(rows, last + 1, dtype=torch.long, device=self.device)
        self.logps_RT = torch.zeros(rows, last + 1, device=self.device)
        self.count_R = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.open_R, self.finished_R = torch.zeros(2, rows, dtype=torch.bool, device=self.device)
        self.row_S = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.token_S = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.used = 0
        """Slots in use, the first ones: open rows and ended ones that are not yet evicted."""
        self.steps = STEPS_PER_CHECK[self.device.type]

    def run(self) -> list[Completion]:
        """Decode until every row has ended."""
        while True:
            live, tokens = self.check()
            if not live and not self.waiting:
                break
            if self.should_refill(live):
                self.evict_and_admit(live)
                continue
            slots_B = torch.arange(self.used, device=self.device)
            for _ in range(min(self.steps, tokens)):
                self.record(slots_B, self.backend.step(self.token_S[: self.used]))
        tokens_RT, logps_RT = self.tokens_RT.cpu(), self.logps_RT.cpu()
        ends = zip(self.count_R.tolist(), self.finished_R.tolist(), strict=True)
        return [
            Completion(tokens_RT[row, :count].clone(), logps_RT[row, :count].clone(), finished)
            for row, (count, finished) in enumerate(ends)
        ]

    def check(self) -> tuple[int, int]:
        """Ends rows at stop texts. Returns the number of open rows, and of tokens until all of them are at their
        limits."""
        rows_B = self.row_S[: self.used]
        if self.stop_texts.texts and self.used:
            self.end_at_texts(rows_B)
        if not self.used:
            return 0, 0
        open_B = self.open_R[rows_B]
        left_B = (self.limit_R[rows_B] - self.count_R[rows_B]) * open_B
        live, left = torch.stack([open_B.sum(), left_B.max()]).tolist()
        return live, left

    def should_refill(self, live: int) -> bool:
        """Whether enough slots are free to refill or compact them."""
        if not live:
            return True
        if self.waiting and self.backend.continuous:
            return self.slots - live >= max(1, REFILL_FRACTION * self.slots)
        return self.used - live >= max(1, REFILL_FRACTION * self.used)

    def evict_and_admit(self, live: int) -> None:
        """Evicts ended rows, admits waiting ones to their slots, and compacts the rest."""
        ended = (~self.open_R[self.row_S[: self.used]]).nonzero().squeeze(-1).tolist()
        free = [*ended, *range(self.used, self.slots)]
        count = min(len(free), len(self.waiting)) if self.backend.continuous or not live else 0
        if count:
            self.admit([self.waiting.popleft() for _ in range(count)], free[:count])
        self.compact(free[count:])

    def admit(self, rows: Sequence[int], slots: Sequence[int]) -> None:
        """Admits rows to slots and samples their first token."""
        self.used = max(self.used, slots[-1] + 1)
        self.row_S[self.indices(slots)] = self.indices(rows)
        self.open_R[self.indices(rows)] = True
        members: dict[int, list[int]] = {}
        for row, slot in zip(rows, slots, strict=True):
            members.setdefault(self.prompt_index[row], []).append(slot)
        split = self.prompt_index[self.waiting[0]] if self.waiting and self.backend.continuous else None
        for block, prefilled in self.prefill(list(members)):
            prompts_B = self.indices([row for row, index in enumerate(block) for _ in members[index]])
            slots_B = self.indices([slot for index in block for slot in members[index]])
            self.backend.admit(prefilled, prompts_B, slots_B)
            self.record(slots_B, prefilled.logits_PV[prompts_B])
            if split in block:
                one = prefilled if len(block) == 1 else prefilled.select(block.index(split))
                self.split_prefill = split, one

    def prefill(self, prompts: list[int]) -> Iterator[tuple[list[int], Prefilled]]:
        """Prefills the distinct prompts of these indices in blocks of similar length.

        The prompt of a group that is split between two refills is kept for the second one.
        """
        kept, self.split_prefill = self.split_prefill, None
        if kept is not None:
            prompts.remove(kept[0])
            yield [kept[0]], kept[1]
        lengths = [len(self.distinct[index]) for index in prompts]
        for bucket, length in length_buckets(lengths) if self.backend.continuous else [(list(range(len(prompts))), 1)]:
            size = max(1, PREFILL_TOKENS // length)
            for start in range(0, len(bucket), size):
                block = [prompts[index] for index in bucket[start : start + size]]
                yield block, self.backend.prefill([self.distinct[index] for index in block])

    def compact(self, free: Sequence[int]) -> None:
        """Moves the last rows to free slots, so that the first slots are in use again."""
        holes = {slot for slot in free if slot < self.used}
        if not holes:
            return
        rows = self.used - len(holes)
        target_B = self.indices([slot for slot in sorted(holes) if slot < rows])
        source_B = self.indices([slot for slot in range(rows, self.used) if slot not in holes])
        self.backend.move(source_B, target_B, rows)
        self.row_S[target_B], self.token_S[target_B] = self.row_S[source_B], self.token_S[source_B]
        self.used = rows

    def record(self, slots_B: Tensor, logits_BV: Tensor) -> None:
        """Samples a token for each of these slots; tokens of ended rows are discarded."""
        rows_B = self.row_S[slots_B]
        open_B, last = self.open_R[rows_B], self.sampling.max_new_tokens
        step_B = torch.where(open_B, self.count_R[rows_B], last)
        tokens_B, logps_B = draw(logits_BV, self.uniform_RT[rows_B, step_B], self.sampling)
        self.tokens_RT[rows_B, step_B], self.logps_RT[rows_B, step_B] = tokens_B, logps_B.float()
        self.token_S[slots_B] = tokens_B
        self.count_R[rows_B] += open_B
        ended_B = open_B & torch.isin(tokens_B, self.stop_ids)
        self.finished_R[rows_B] |= ended_B
        self.open_R[rows_B] = open_B & ~ended_B & (step_B + 1 < self.limit_R[rows_B])

    def end_at_texts(self, rows_B: Tensor) -> None:
        """Ends rows at the first token since the last check that completes a stop text; later tokens are discarded."""
        count_B = self.count_R[rows_B]
        columns_BN = (count_B[:, None] - self.steps + torch.arange(self.steps, device=self.device)).clamp(min=0)
        state = torch.stack([rows_B, count_B, self.finished_R[rows_B].long()])
        newest = self.tokens_RT[rows_B].gather(1, columns_BN).tolist()
        ends: dict[int, int] = {}
        for tokens, row, count, finished in zip(newest, *state.tolist(), strict=True):
            known = self.known.setdefault(row, [])
            for token in tokens[self.steps - (count - len(known)) :]:
                known.append(token)
                # An end token has ended the row already.
                if not (finished and len(known) == count) and self.stop_texts.completed(known):
                    ends[row] = len(known)
                    break
        if ends:
            ended_B = self.indices(list(ends))
            self.count_R[ended_B], self.finished_R[ended_B] = self.indices(list(ends.values())), True
            self.open_R[ended_B] = False

    def indices(self, values: Sequence[int]) -> Tensor:
        """Indices as a tensor on the rows' device."""
        return torch.tensor(values, dtype=torch.long, device=self.device)


class StopTexts:
    """Whether a completion's newest token completes a stop text. Decodes only candidates, and only a tail.

    A stop text may span tokens and begin inside one; the prompt is not searched.
    """

    def __init__(self, stop: Stop) -> None:
        if stop.texts and stop.decode is None:
            raise TypeError("stop texts need Stop.decode")
        self.texts = stop.texts
        self._decode: Callable[[Sequence[int]], str] = stop.decode or str
        # One token more than the longest text needs: the first token of a tail may decode differently than in context.
        self._tail = TOKENS_PER_CHARACTER * max(map(len, stop.texts), default=0) + 1
        self._ends = {text[-1] for text in stop.texts}
        self._known: dict[int, bool] = {}

    def completed(self, ids: Sequence[int]) -> bool:
        """Whether the last token of a completion completes a stop text."""
        if not self._may_complete(ids[-1]):
            return False
        tail = self._decode(ids[-self._tail :])
        return any(text in tail for text in self.texts)

    def _may_complete(self, token: int) -> bool:
        """Whether the token's text contains the last character of a stop text; memoised per token."""
        if token not in self._known:
            piece = self._decode([token])
            # Decoded alone, a token may lose spaces or be an incomplete character: such tokens are checked in context.
            unsure = not piece or "\ufffd" in piece or any(character.isspace() for character in self._ends)
            self._known[token] = unsure or not self._ends.isdisjoint(piece)
        return self._known[token]

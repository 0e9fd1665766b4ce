"""Memory of a forward and backward pass, from shapes alone: no weights are loaded and nothing is computed.

The pass runs on PyTorch's fake tensors, which have shape, dtype and device but no storage; `LiveBytes` adds up the
storages that are alive at each moment. Autograd decides what is saved for the backward pass, so that the result follows
the architecture, packing, autocast and gradient checkpointing without a formula for each.

Axes: N packed tokens, D model width, V vocabulary.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

# torch documents neither; torch.compile and FSDP's memory tracker are built on them.
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from postrain.losses.divergence import exact_kl
from postrain.losses.supervised import token_logps
from postrain.models.adapters import Adapter
from postrain.models.packing import is_packable, pack, packed_states, padded_states
from postrain.models.parts import logits_of, model_width, unwrapped, upcast
from postrain.models.scoring import in_chunks
from postrain.models.size import skeleton
from postrain.models.sources import ResolvedModel
from postrain.types import Head, Rows


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations create inside the block, and their maximum at any moment."""

    def __init__(self, existing: Iterable[Tensor] = ()) -> None:
        """The storages of `existing` tensors do not count."""
        super().__init__()
        self.bytes = self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in existing:
            self._add(tensor, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, Tensor):
                self._add(value, value.untyped_storage().nbytes())
        return found

    def _add(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = size
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)


class FakeModel:
    """A model of fake tensors, with its adapter."""

    def __init__(
        self, resolved: ResolvedModel, head: Head, adapter: Adapter, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.base = skeleton(resolved, head).to(dtype).eval()
        with torch.device("meta"):
            self.policy = adapter.wrap(self.base, head=head, saved=adapter.split(resolved)[1])
        with self.mode:
            allocate(self.policy, device)
        self.config: Any = unwrapped(self.base).config.get_text_config()
        self.packable, self.width = is_packable(self.base), model_width(self.base)
        self.scalar = head == "scalar"

    def peak(
        self,
        rows: Rows,
        *,
        accumulates: bool,
        exact_kl: bool = False,
        entropy: bool = False,
        float32_gradients: bool = False,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> int:
        """Bytes beyond the weights at the peak of a forward and backward pass on `rows`, gradients included.

        `accumulates` is True if an earlier micro-batch has left gradients. `context` is active in the forward and the
        backward pass.
        """
        trained = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        existing = [*self.policy.parameters(), *self.policy.buffers()]
        # Outside the mode, in which values cannot be read.
        supervised = sum(int(mask.sum()) for mask in rows.supervised)
        packing = pack(rows.ids) if self.packable and len(rows.ids) > 1 else None
        padded = len(rows.ids) * max(map(len, rows.ids))
        tracker = LiveBytes(existing)
        with self.mode, tracker:
            for parameter in trained:
                if float32_gradients and hasattr(torch.Tensor, "grad_dtype"):
                    parameter.grad_dtype = torch.float32
                if accumulates:
                    dtype = torch.float32 if float32_gradients else parameter.dtype
                    parameter.grad = torch.zeros_like(parameter, dtype=dtype)
            with context():
                if packing is not None and len(packing.ids_N) < padded:
                    states_ND = packed_states(self.policy, packing)
                else:
                    states_ND = padded_states(self.policy, rows.ids).flatten(0, 1)
                self._loss(states_ND, supervised, len(rows.ids), kl=exact_kl, entropy=entropy).backward()
        for parameter in trained:
            parameter.grad = None
        return tracker.peak

    def _loss(self, states_ND: Tensor, count: int, rows: int, *, kl: bool, entropy: bool) -> Tensor:
        """A loss that reads as many states and logits as that of the methods."""
        if self.scalar:
            return upcast(logits_of(self.policy, states_ND[:rows])).sum()
        at_N = torch.zeros(count, dtype=torch.long, device=states_ND.device)

        def chunk(states_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, ...]:
            logits_NV = upcast(logits_of(self.policy, states_ND))
            if kl:
                logps_NV, ref_logps_NV = logits_NV.log_softmax(-1), logits_NV.detach().log_softmax(-1)
                return (
                    exact_kl(logps_NV, ref_logps_NV, logps_NV.exp()) + logps_NV.gather(-1, targets_N[:, None])[:, 0],
                )
            logps_N = token_logps(logits_NV, targets_N)
            return (logps_N + (torch.softmax(logits_NV, -1) * logits_NV).sum(-1),) if entropy else (logps_N,)

        return in_chunks(chunk, states_ND.index_select(0, at_N), at_N, vocabulary=self.width)[0].sum()


def allocate(model: nn.Module, device: torch.device) -> None:
    """Moves parameters and buffers from the meta device to `device`, in place; tied parameters stay tied."""
    known: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                if value is not None and value not in known:
                    empty = torch.empty_like(value, device=device)
                    known[value] = (
                        nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty
                    )
                if value is not None:
                    table[name] = known[value]  # pyright: ignore[reportArgumentType]

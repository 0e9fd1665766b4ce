"""Checkpoints of sharded runs: every rank writes its own shards, the first rank all that is not sharded.

    update=000020.ckpt      torch.save of the checkpoint without its sharded tensors
    update=000020.shards/   __RANK_0.distcp, the shards of a rank; index.json, the place of each shard

The files of the ranks are those of torch.distributed.checkpoint, which reads them into other shards or whole tensors.
Its `.metadata` is a pickle, and loading a pickle may run code, so index.json replaces it. Each shard is a zip archive
with a checksum.

Shards are copied to CPU memory first and written by a thread without collective operations, so training continues
meanwhile.
"""

from __future__ import annotations

import io
import json
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor

from postrain.hardware.collectives import gather, rank
from postrain.runs.status import SHARDS

SHARDED = "sharded"
"""The key of a checkpoint whose sharded tensors are in such a folder."""
INDEX = "index.json"


@dataclass(frozen=True)
class Place:
    """Where a shard is; with the names of torch.distributed.checkpoint."""

    relative_path: str
    offset: int
    length: int
    transform_descriptors: None = None


class StagedPlanner(DefaultSavePlanner):
    """Plans to write shards, and copies them, so that they may change while they are written."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.staged: dict[MetadataIndex, Tensor] = {}
        self.set_up_planner(tensors, is_coordinator=rank() == 0)

    def stage(self, plan: SavePlan) -> SavePlan:
        """Copies the shards of this rank to CPU memory."""
        for item in plan.items:
            tensor = super().resolve_data(item)
            assert isinstance(tensor, Tensor)
            self.staged[item.index] = tensor.detach().to("cpu", copy=True)
        self.state_dict = {}
        return plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The copy of a shard, for the last time."""
        return self.staged.pop(write_item.index)


class ShardedSave:
    """A checkpoint that is being written; constructed and finished by all ranks together.

    After construction the tensors of the checkpoint may change.
    """

    def __init__(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Raises OSError on all ranks if the first one cannot write."""
        self.directory = path.with_suffix(SHARDS)
        rest, tensors = separated(checkpoint)
        problem = attempt(lambda: self._prepare(rest, path)) if rank() == 0 else ""
        planner = StagedPlanner(tensors)
        found = gather((planner.create_local_plan(), problem))
        raise_first(problem for _, problem in found)
        plans, self.metadata = planner.create_global_plan([plan for plan, _ in found])
        # A copy ahead is for tensors of a GPU.
        writer = FileSystemWriter(self.directory, per_thread_copy_ahead=0)
        plan = planner.stage(planner.finish_plan(writer.prepare_global_plan(plans)[rank()]))
        self.results: list[WriteResult] = []
        executor = ThreadPoolExecutor(1)
        self.problem = executor.submit(attempt, lambda: self._write(writer, plan, planner))
        executor.shutdown(wait=False)

    def is_written(self) -> bool:
        """Whether this rank has written its shards, or failed to."""
        return self.problem.done()

    def finish(self) -> None:
        """Waits for all ranks and writes the index. Raises OSError on all ranks if one could not write."""
        found = gather((self.problem.result(), self.results))
        raise_first(problem for problem, _ in found)
        if rank() == 0:
            places = {each.index: each.storage_data for _, results in found for each in results}
            (self.directory / INDEX).write_text(json.dumps(index_of(self.metadata, places)))

    def _prepare(self, rest: dict[str, Any], path: Path) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        torch.save({**rest, SHARDED: True}, path)

    def _write(self, writer: FileSystemWriter, plan: SavePlan, planner: StagedPlanner) -> None:
        self.results = writer.write_data(plan, planner).wait()
        places = [each.storage_data for each in self.results]
        if not all(map(is_intact, [self.directory] * len(places), places)):
            raise OSError("the shards could not be read back")


def attempt(function: Any) -> str:
    """Calls the function; its error as a message with the rank, empty without one."""
    try:
        function()
    except (OSError, RuntimeError) as error:  # RuntimeError: raised by torch's zip writer on a full disk
        return f"rank {rank()}: {str(error).splitlines()[0]}"
    return ""


def raise_first(problems: Any) -> None:
    """Raises OSError for the first message that is not empty."""
    if message := next(filter(None, problems), None):
        raise OSError(message)


# Layout -------------------------------------------------------------------------------------------------------------


def separated(value: Any) -> tuple[Any, dict[str, DTensor]]:
    """Nested dicts and lists without their sharded tensors, and these by their path, as '["state_dict", "wte"]'."""
    found: dict[str, DTensor] = {}

    def without(value: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(value, Mapping):
            rest = {key: each for key, each in value.items() if not isinstance(each, DTensor)}
            found.update({json.dumps([*path, key]): value[key] for key in value.keys() - rest.keys()})
            return {key: without(each, (*path, key)) for key, each in rest.items()}
        if isinstance(value, list | tuple):
            return type(value)([without(each, (*path, number)) for number, each in enumerate(value)])
        return value

    return without(value, ()), found


def joined(rest: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of `separated`; changes `rest`."""
    for name, tensor in tensors.items():
        *path, last = json.loads(name)
        inner: Any = rest
        for key in path:
            inner = inner[key]
        inner[last] = tensor
    return rest


def index_of(metadata: Metadata, places: Mapping[MetadataIndex, Any]) -> dict[str, Any]:
    """The content of index.json: dtype, size and shards of each tensor."""
    found: dict[str, Any] = {}
    for name, tensor in metadata.state_dict_metadata.items():
        assert isinstance(tensor, TensorStorageMetadata)
        shards: list[dict[str, Any]] = []
        for chunk in tensor.chunks:
            place = places[MetadataIndex(name, chunk.offsets)]
            where = {"file": place.relative_path, "offset": place.offset, "length": place.length}
            shards.append({"offsets": list(chunk.offsets), "sizes": list(chunk.sizes), **where})
        dtype = str(tensor.properties.dtype).removeprefix("torch.")
        found[name] = {"dtype": dtype, "size": list(tensor.size), "shards": shards}
    return found


class ShardReader(FileSystemReader):
    """Reads the shards of a checkpoint by its index."""

    def __init__(self, directory: Path) -> None:
        """Raises ValueError or LookupError for a damaged index."""
        super().__init__(directory)
        tensors: dict[str, Any] = {}
        places: dict[MetadataIndex, Place] = {}
        for name, entry in json.loads((directory / INDEX).read_text()).items():
            shards = [(torch.Size(each["offsets"]), torch.Size(each["sizes"]), each) for each in entry["shards"]]
            dtype = getattr(torch, entry["dtype"])
            chunks = [ChunkStorageMetadata(offsets, sizes) for offsets, sizes, _ in shards]
            tensors[name] = TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(entry["size"]), chunks)
            for offsets, _, each in shards:
                if Path(each["file"]).name != each["file"]:
                    raise ValueError(f"{directory / INDEX}: {each['file']} is not in this folder")
                places[MetadataIndex(name, offsets)] = Place(each["file"], each["offset"], each["length"])
        self.tensors, self.places = tensors, places

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The content of the index."""
        return Metadata(self.tensors, storage_data=self.places)

    def empty(self, name: str, like: Tensor | None = None) -> Tensor:
        """A tensor to read into: whole, or with the shards of `like`."""
        entry = self.tensors[name]
        if like is None:
            return torch.empty(entry.size, dtype=entry.properties.dtype)
        return torch.empty_like(like, dtype=entry.properties.dtype)

    def read(self, tensors: dict[str, Any]) -> None:
        """Fills tensors; sharded ones get the shards of this rank. All ranks call it with the same names."""
        with warnings.catch_warnings():
            # That there is only one process.
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load(tensors, storage_reader=self)


def whole(rest: dict[str, Any], path: Path) -> dict[str, Any]:
    """The checkpoint at `path` with whole tensors, given what it has besides shards; all ranks call it together."""
    reader = ShardReader(path.with_suffix(SHARDS))
    tensors = {name: reader.empty(name) for name in reader.tensors}
    reader.read(tensors)
    return joined(rest, tensors)


def are_intact(directory: Path) -> bool:
    """Whether the shards of a checkpoint are complete and undamaged; the ranks share the work."""
    try:
        places = list(ShardReader(directory).places.values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        places = [Place("", 0, 0)]
    ranks = gather(rank())
    return all(gather(all(is_intact(directory, place) for place in places[rank() :: len(ranks)])))


def is_intact(directory: Path, place: Any) -> bool:
    """Whether the checksums of a shard match."""
    return checksums_match(directory / place.relative_path, place.offset, place.length)


def checksums_match(path: Path, offset: int = 0, length: int | None = None) -> bool:
    """Whether a file, or its `length` bytes from `offset`, are what torch.save wrote, by the CRC-32 of each record.

    torch.load does not check them.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            with zipfile.ZipFile(file if length is None else io.BytesIO(file.read(length))) as records:
                return records.testzip() is None
    except (RuntimeError, OSError, EOFError, zipfile.BadZipFile, ValueError, LookupError):
        return False

"""How the microbatches of a run with memory layers are cut into local contexts."""

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import FaultsError, UserError
from pipelines.shards import ShardedDataset
from trainer.attention import BLOCK
from trainer.config import TrainConfig
from trainer.loader import kept_together, parting_faults
from trainer.memory import CrossBatch, cross_batch
from trainer.memory_settings import MemorySettings, memory_settings, name_settings
from trainer.schedule import Memory, extra_contexts, positives_and_negatives


@dataclass(frozen=True, slots=True)
class LocalContexts:
    """The local contexts of every microbatch of a run."""

    memory: Memory
    length: int
    """L: tokens of each."""
    count: int
    """E: local contexts of a microbatch."""
    together: int
    """Those of a stream that stay together, a multiple of k."""
    seed: int
    """Of the ranges that are drawn."""

    @classmethod
    def of(
        cls, config: TrainConfig, dataset: ShardedDataset, *, layers: int, steps: int, cuda: bool
    ) -> "LocalContexts | None":
        """Those that a configuration asks for; None without memory layers.

        Args:
            config: of the run.
            dataset: what it reads.
            layers: of the model.
            steps: of the run.
            cuda: whether it runs on a GPU.

        Raises:
            FaultsError: the configuration does not fit the model or the data set; names all faults.
        """
        memory = config.memory
        if memory is None:
            return None
        length = memory.local_context or dataset.seq_len
        if faults := [
            *_shape_faults(memory, length, dataset, cuda=cuda),
            *_schedule_faults(memory, dataset, length, config.micro_batch, steps),
            *(f"memory.layers: {n}: the model has layers 0 to {layers - 1}"
              for n in memory.layers if n >= layers),
        ]:  # fmt: skip
            raise FaultsError("memory layers", faults)
        count = config.micro_batch * dataset.seq_len // length
        together = kept_together(dataset) * dataset.seq_len // length
        return cls(memory, length, count, together, config.seed)

    def cut(self, rows: Tensor) -> Tensor:
        """Tokens, or what belongs to them, by local context: [E, L] of [B, T]."""
        return rows.view(-1, self.length)

    def borders(self, device: torch.device) -> Tensor:
        """int32 [E + 1], where local contexts begin in the flattened microbatch."""
        ends = self.count * self.length + 1
        return torch.arange(0, ends, self.length, dtype=torch.int32, device=device)

    def lookup(self, step: int, device: torch.device) -> tuple[CrossBatch | None, int]:
        """What memory layers see in the microbatches of a step, counted from 0.

        Gives the plan, None where they are to be plain layers; and how many pairs of a token and
        one in memory that is.
        """
        reach = self.memory.range_at(step, seed=self.seed)
        if not reach and self.memory.positionals:
            return None, 0
        extra = extra_contexts(
            self.count, range=reach, packing=self.memory.packing, stepping=self.memory.stepping
        )
        there = torch.from_numpy(extra)
        if device.type == "cuda":  # without waiting for what the device still does
            there = there.pin_memory().to(device, non_blocking=True)
        return cross_batch(there, local_context=self.length), int(extra.sum()) * self.length**2

    @property
    def local_pairs(self) -> int:
        """Pairs of a token and one that it sees in its local context, in a microbatch."""
        return self.count * self.length * (self.length + 1) // 2

    def __str__(self) -> str:
        memory = self.memory
        slots = positives_and_negatives(
            range=max(memory.ranges()), packing=memory.packing, stepping=memory.stepping,
            together=self.together,
        )  # fmt: skip
        shown = ", ".join(f"{own} + {other}" for own, other in slots[:8])
        if len(slots) > 8:
            shown += ", …"
        return (
            f"memory layers {', '.join(map(str, memory.layers))}; {self.count} local contexts of "
            f"{self.length:,} a microbatch, {self.together} of a stream together, of which each "
            f"sees at most own + others: {shown}"
        )


def name_memory(config: Any, contexts: LocalContexts | None, *, model: str) -> None:
    """Write into a model's configuration how it is to be read, by LongLLaMA's names.

    Raises:
        UserError: the model has other memory layers already.
    """
    before = memory_settings(config)
    if contexts is None:
        if before:
            layers = list(before.mem_layers)
            raise UserError(
                f"{model}: has memory layers {layers}, and the configuration names none: add "
                f"`memory`; with `{{layers: {layers}, range: 0}}` they are trained as others"
            )
        return
    memory = contexts.memory
    same = (memory.layers, memory.positionals)
    if before and (before.mem_layers, before.mem_positionals) != same:
        raise UserError(
            f"{model}: has memory layers {list(before.mem_layers)}, positionals "
            f"{before.mem_positionals}; the configuration names {list(memory.layers)}, positionals "
            f"{memory.positionals}: name the same, or take `mem_layers` out of the model's "
            "config.json to make it another"
        )
    usual = before or MemorySettings(mem_layers=memory.layers, local_context=contexts.length)
    length, last = contexts.length, max(1, contexts.length // 2)
    settings = replace(usual, mem_positionals=memory.positionals, local_context=length,
                       last_context_length=last)  # fmt: skip
    name_settings(config, settings)


def _shape_faults(
    memory: Memory, length: int, dataset: ShardedDataset, *, cuda: bool
) -> Generator[str]:
    seq_len, packing = dataset.seq_len, memory.packing
    if seq_len % length:
        yield (
            f"memory.local_context: {length:,}: must divide the {seq_len:,} tokens of the data "
            "set's sequences"
        )
        return
    if cuda and length % BLOCK:
        yield f"memory.local_context: {length:,}: must be a multiple of {BLOCK} on a GPU"
    unit = kept_together(dataset)
    together = unit * seq_len // length
    if together % packing:
        yield (
            f"memory.packing: {packing}: the data set keeps {together} local contexts of a stream "
            f"together (stream_sequences {unit}, {seq_len:,} tokens each): set `packing` to "
            f"{together} or a divisor of it, or build the data set with `policy: stream` and a "
            f"`stream_sequences` of {math.lcm(packing * length, seq_len) // seq_len} for every "
            "source"
        )


def _schedule_faults(
    memory: Memory, dataset: ShardedDataset, length: int, micro_batch: int, steps: int
) -> Generator[str]:
    unit, count = kept_together(dataset), micro_batch * dataset.seq_len // length
    yield from parting_faults("micro_batch", micro_batch, dataset)
    if (most := max(memory.ranges())) >= count > 0:
        needed = -(-(most + 1) * length // (dataset.seq_len * unit)) * unit
        yield (
            f"memory: range {most}: a microbatch has only {count} local contexts, so none has so "
            f"many before it: raise `micro_batch` to {needed} or more, or lower the range"
        )
    for begin in memory.range_from or ():
        if begin >= steps:
            yield f"memory.range_from: {begin:,}: the run has only steps 0 to {steps - 1:,}"

"""The processes that train one model together, one for each GPU: started by `torchrun`, alone without it.

Every process holds the whole model and works on its share of each batch. A loss is a process's part of the loss of the
whole batch, so gradients are summed, and all take the same step: the result is that of one process, whatever their
number. Rank 0 alone writes and decides; the others wait for it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from ulmfit.compute import choose_device
from ulmfit.errors import ConfigError, ProcessError, UlmfitError

PATIENCE = timedelta(days=7)
"""how long a process waits for the others; rank 0 may be reading a large corpus. A dead one is noticed at once."""


@dataclass(frozen=True, slots=True)
class Processes:
    """Those of one run, and the place of this one among them."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes, decides and speaks."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of that name, where there are several processes the GPU that is this one's on its machine.

        Raises ConfigError where a machine has more processes than GPUs, or one GPU is asked for by number.
        """
        chosen = choose_device(name)
        if self.size == 1 or chosen.type == "cpu":
            return chosen
        if ":" in name:
            raise ConfigError(f"{self.size} processes cannot share the device {name!r}; pass --device cuda or cpu")
        local, there = int(os.environ.get("LOCAL_RANK", self.rank)), torch.cuda.device_count()
        if local >= there:
            raise ConfigError(
                f"process {local + 1} of this machine has no GPU, there are {there}; "
                f"pass --nproc-per-node {there} to torchrun, or --device cpu"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        return device

    # --- shares -----------------------------------------------------------------------------------------------------

    def counts(self, total: int) -> list[int]:
        """How many of `total` things each process has: as even as can be, the first ones one more."""
        return [(total - rank + self.size - 1) // self.size for rank in range(self.size)]

    def share(self, total: int) -> slice:
        """The stretch of `total` things in a row that is this process's."""
        counts = self.counts(total)
        start = sum(counts[: self.rank])
        return slice(start, start + counts[self.rank])

    # --- tensors ----------------------------------------------------------------------------------------------------

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace every tensor by its sum over all processes, all under way at once; a GPU is not waited for."""
        if self.size > 1:
            self.finish_sums([self.begin_sum(tensor) for tensor in tensors])

    def begin_sum(self, tensor: Tensor) -> Any:
        """Set about replacing the tensor by its sum, and say what `finish_sums` must be told; for several processes."""
        from torch import distributed

        with _others_alive():
            return distributed.all_reduce(tensor, async_op=True)

    def finish_sums(self, under_way: Iterable[Any]) -> None:
        """After this the sums are there."""
        with _others_alive():
            for work in under_way:
                work.wait()

    def total(self, number: int) -> int:
        """The sum of every process's number."""
        tensor = torch.tensor(number)
        self.sum([tensor])
        return int(tensor)

    def gather(self, rows: Tensor, total: int) -> Tensor:
        """Rows of all processes in order of rank, shared out as `counts(total)` says: (own, ...) -> (total, ...).

        Own rows keep their history, the others' are constants. Every process then computes the same from all rows and
        takes 1 / size of it as its part of the loss, so the gradient of its own rows, which no other process has, is
        multiplied by size.
        """
        if self.size == 1:
            return rows
        from torch import distributed

        counts = self.counts(total)
        if counts[0] == counts[-1] and not rows.requires_grad:
            whole = rows.new_empty(total, *rows.shape[1:])
            with _others_alive():
                distributed.all_gather_into_tensor(whole, rows.contiguous())
            return whole
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        received = [torch.empty_like(padded) for _ in counts]
        with _others_alive():
            distributed.all_gather(received, padded)
        if rows.requires_grad:
            rows.register_hook(lambda gradient: gradient * self.size)  # type: ignore[no-untyped-call]
        others = zip(received, counts, strict=True)
        return torch.cat([rows if rank == self.rank else part[:count] for rank, (part, count) in enumerate(others)])

    def part_of_mean(self, mean: Tensor, count: int) -> Tensor:
        """What this process's mean over `count` things adds to the mean over those of all processes."""
        if self.size == 1:
            return mean
        total = torch.tensor(float(count), device=mean.device)
        self.sum([total])
        return mean * (count / total.clamp(min=1))

    def copy_model(self, model: nn.Module) -> None:
        """Give every process rank 0's weights: machines may differ in the last bit of what they started from."""
        if self.size > 1:
            from torch import distributed

            with _others_alive():
                for tensor in model.state_dict().values():
                    distributed.broadcast(tensor, 0)

    def copy_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rank 0's tensors on the CPU, by name, in every process; what the others pass is not looked at."""
        if self.size == 1:
            return dict(tensors)
        from torch import distributed

        kinds = {name: [list(tensor.shape), str(tensor.dtype)] for name, tensor in tensors.items()}
        copies = {}
        for name, (shape, dtype) in self.agree(kinds).items():
            kind = getattr(torch, dtype.removeprefix("torch."))
            copies[name] = tensors[name].cpu().contiguous() if self.leads else torch.empty(shape, dtype=kind)
            with _others_alive():
                distributed.broadcast(copies[name], 0)
        return copies

    # --- decisions --------------------------------------------------------------------------------------------------

    def agree(self, value: Any) -> Any:
        """Rank 0's value, of what JSON can hold, in every process."""
        if self.size == 1:
            return value
        from torch import distributed

        message = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor(len(message))
        with _others_alive():
            distributed.broadcast(length, 0)
            if not self.leads:
                message = torch.empty(int(length), dtype=torch.uint8)
            distributed.broadcast(message, 0)
        return json.loads(bytes(message.tolist()))

    @contextlib.contextmanager
    def leader_first(self) -> Iterator[None]:
        """Run the block in rank 0, then in the others; where it fails in rank 0, they end too."""
        if not self.leads:
            if self.agree(None) is not None:
                raise ProcessError("rank 0 has failed, so this process ends")
            yield
            return
        try:
            yield
        except BaseException:
            with contextlib.suppress(ProcessError):
                self.agree("failed")
            raise
        self.agree(None)


ALONE = Processes()


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """Connect the processes that `torchrun` started, over NCCL between GPUs and gloo between CPUs; else `ALONE`.

    Inside of another `joined` it is the same processes again.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "MASTER_ADDR" not in os.environ:
        yield ALONE
        return
    from torch import distributed

    first = not distributed.is_initialized()
    if first:
        # Optimizers load this module, which would hold the group for good if it found one, and threads of gloo that
        # outlive the interpreter abort the process at its end, now and then.
        importlib.import_module("torch._dynamo")
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with _others_alive():
            distributed.init_process_group(backend, timeout=PATIENCE)
    processes = Processes(distributed.get_rank(), size)
    try:
        yield processes
    except ProcessError:
        raise
    except UlmfitError as error:
        if processes.leads or not first:
            raise
        raise type(error)(f"process {processes.rank} of {size}: {error}") from None
    if first:
        processes.total(0)  # so that none is gone while another still needs it
        distributed.destroy_process_group()


@contextlib.contextmanager
def _others_alive() -> Iterator[None]:
    """What gloo and NCCL raise when a peer is gone becomes one line."""
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(r"^\[\S+\] ", "", " ".join(str(error).split())).partition(". ")[0]
        raise ProcessError(
            f"another process of this run has ended or cannot be reached ({reason}); what was last saved is whole: "
            "start all processes again with --resume"
        ) from error

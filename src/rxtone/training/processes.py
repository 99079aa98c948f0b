"""Several processes that train as one: who is who, and what they exchange.

The batches of a step are those of one process; each process computes its share of every batch, and losses,
weights and gradients are summed. So the recipe alone says what a step is, whatever the number of processes,
and a run can go on with another number. One process is the same code with nothing to exchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from rxtone.config import process_place


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        rank: Which one this is; 0 alone writes.
        world: How many there are.
        local_rank: Which one on this machine: its GPU.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def share(self, rows: np.ndarray) -> np.ndarray:
        """This process's part of some rows; the parts together are all rows, and one may be empty."""
        return rows[self.rank :: self.world]

    def sum_numbers(self, *numbers: float) -> tuple[float, ...]:
        """Sums of each number over all processes, in float64."""
        if self.world == 1:
            return numbers
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        total = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return tuple(total.tolist())

    def any(self, said: bool) -> bool:
        """Whether any process says so."""
        return self.sum_numbers(float(said))[0] > 0

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum the gradients over all processes, in place; one that has none adds zero."""
        if self.world == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])  # one exchange, not hundreds of small ones
        dist.all_reduce(flat)
        for parameter, total in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = total.view_as(parameter).to(parameter.dtype)

    def sum_scores(self, scores: np.ndarray) -> np.ndarray:
        """Sum an array over all processes, each of which filled in its own rows."""
        if self.world == 1:
            return scores
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        total = torch.from_numpy(scores).to(device)
        dist.all_reduce(total)
        summed: np.ndarray = total.cpu().numpy()
        return summed

    def spread(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Give every process the first one's values."""
        if self.world > 1:
            for parameter in parameters:
                dist.broadcast(parameter.data, src=0)

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.world > 1:
            dist.barrier()


def join_processes() -> Processes:
    """Join the processes that torchrun or accelerate started; without them, be the only one.

    Returns:
        Which process this is. The exchange is nccl on GPUs, gloo on CPUs.
    """
    rank, world, local_rank = process_place()
    if world == 1:
        return Processes()
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", rank=rank, world_size=world)
    return Processes(rank, world, local_rank)


def leave_processes() -> None:
    """End the exchange; what follows is the first process's own work."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()

"""The processes of one training under torchrun; a process alone is the inert case of it."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.files import lock_folder
from utils.parallel import signal_at_parents_end


class Alone:
    """A training in one process: nothing to wrap, to add up or to agree on."""

    rank, world = 0, 1

    def wrap(self, model: Any) -> Any:
        return model

    def unsynced(self, model: Any) -> contextlib.AbstractContextManager:
        """Gradients of backward passes inside stay in this process."""
        return contextlib.nullcontext()

    def sum(self, values: Any) -> Any:
        """A CPU tensor, added up over the processes."""
        return values

    def align(self, model: Any) -> None:
        """Statistics of batch norm as rank 0 has them: they are what is saved."""

    def most(self, values: list[int]) -> list[int]:
        """The largest of each value over the processes: all of them go on with the same ones."""
        return values


ALONE = Alone()


class Group(Alone):
    """One of several processes, each with its share of every batch; gloo on CPUs, nccl on GPUs."""

    def __init__(self, device: str):
        import torch.distributed as dist

        # DDP imports this module, whose default arguments hold the group there is by then: the
        # threads of gloo would never end, and one that gives a tensor back while the interpreter
        # ends aborts the process (github.com/pytorch/pytorch/pull/179291). So: before the group.
        importlib.import_module("torch.distributed.nn")
        cuda = device.startswith("cuda")
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
            atexit.register(dist.destroy_process_group)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.cuda = cuda

    def wrap(self, model: Any) -> Any:
        """Gradients become those of the whole batch; on GPUs also the statistics of batch norm."""
        import torch

        if self.cuda:
            from timm.layers import convert_sync_batchnorm  # torch's drops timm's activations

            model = convert_sync_batchnorm(model)
        return torch.nn.parallel.DistributedDataParallel(model)

    def unsynced(self, model: Any) -> contextlib.AbstractContextManager:
        return model.no_sync()

    def sum(self, values: Any) -> Any:
        import torch

        values = values.clone()
        torch.distributed.all_reduce(values)
        return values

    def align(self, model: Any) -> None:
        import torch

        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)

    def most(self, values: list[int]) -> list[int]:
        import torch

        tensor = torch.tensor(values, dtype=torch.int64)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return tensor.tolist()


def launched() -> bool:
    """Whether torchrun, which passes signals on, started this process."""
    return "WORLD_SIZE" in os.environ


def join(device: str) -> tuple[Alone, str]:
    """This process's place among those of torchrun, and its own device. A launcher that is killed
    can stop nobody any more: the system then asks this process to stop."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        signal_at_parents_end(signal.SIGTERM)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return ALONE, device
    if device == "cuda":
        import torch

        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    return Group(device), device


def writes() -> bool:
    """Whether this is the one process of a training that writes and speaks."""
    return int(os.environ.get("RANK", 0)) == 0


def only_writer(folder: Path) -> contextlib.AbstractContextManager:
    """Rank 0 holds the folder and speaks; the others are silent. To be called before torch comes:
    a second start is then refused at once, and progress bars read the environment on import."""
    if writes():
        return lock_folder(folder)
    os.environ["TQDM_DISABLE"] = "1"
    sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    return contextlib.nullcontext()


class Silent:
    """Stands in on other ranks for what rank 0 writes: any method, and nothing happens."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None

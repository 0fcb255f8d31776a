"""The processes of one training under torchrun; a single process is the inert case of it."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from utils.errors import UsageError
from utils.files import lock_folder
from utils.parallel import signal_at_parents_end


class SingleProcess:
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

    def broadcast_buffers(self, model: Any) -> None:
        """Statistics of batch norm as rank 0 has them: they are what is saved."""

    def all_reduce_max(self, values: list[int]) -> list[int]:
        """The largest of each value over the processes: all of them go on with the same ones."""
        return values


SINGLE_PROCESS = SingleProcess()


class DistributedGroup(SingleProcess):
    """One of several processes, each with its share of every batch; gloo on CPUs, nccl on GPUs."""

    def __init__(self, device: str):
        import torch.distributed as dist

        # DDP imports this module, and its default arguments keep the group that exists by then.
        # The threads of gloo would never end: one that frees a tensor while the interpreter ends
        # aborts the process (github.com/pytorch/pytorch/pull/179291). So import it before.
        importlib.import_module("torch.distributed.nn")
        cuda = device.startswith("cuda")
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
            if not cuda:
                atexit.register(leave_group)
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

    def broadcast_buffers(self, model: Any) -> None:
        import torch

        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)

    def all_reduce_max(self, values: list[int]) -> list[int]:
        import torch

        tensor = torch.tensor(values, dtype=torch.int64)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return tensor.tolist()


def leave_group() -> None:
    """End the group, if there is one. nccl waits for all processes here, so one that fails alone
    must not ask for it: torchrun ends the others when it has seen that one end."""
    dist = sys.modules.get("torch.distributed")
    if dist and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()  # a model in a circle of objects still holds the group, and so its threads


def launched_by_torchrun() -> bool:
    """Whether torchrun, which passes signals on, started this process."""
    return "WORLD_SIZE" in os.environ


def init_distributed(device: str) -> tuple[SingleProcess, str]:
    """This process's place among those of torchrun, and its own device."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        signal_at_parents_end(signal.SIGTERM)  # a launcher that is killed can stop nobody itself
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return SINGLE_PROCESS, device
    if device.startswith("cuda"):
        import torch

        if device != "cuda" or "LOCAL_RANK" not in os.environ:
            what = "each process of a training takes a GPU of its own"
            raise UsageError(f"--device {device}: {what}: start them with torchrun, --device cuda")
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    return DistributedGroup(device), device


def is_main_process() -> bool:
    """Whether this is rank 0: the one process of a training that writes files and prints."""
    return int(os.environ.get("RANK", 0)) == 0


def hold_run_folder(folder: Path) -> contextlib.AbstractContextManager:
    """Lock the run folder in rank 0; silence the other ranks.

    To be called before torch is imported: a second start is then refused at once, and progress
    bars read the environment when they are imported.
    """
    if is_main_process():
        return _hold_or_leave_nothing(folder)
    os.environ["TQDM_DISABLE"] = "1"
    sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    return contextlib.nullcontext()


@contextlib.contextmanager
def _hold_or_leave_nothing(folder: Path) -> Iterator[None]:
    """A start that is refused leaves no folder, which would look like a run."""
    with lock_folder(folder):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # it may be gone already
                if [path.name for path in folder.iterdir()] == [".lock"]:
                    (folder / ".lock").unlink()
                    folder.rmdir()


class Silent:
    """Stands in on other ranks for what rank 0 writes: any method, and nothing happens."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None

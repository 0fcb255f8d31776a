"""kill -9 at random moments of trainings that are started again until they end: what is left?

    python tests/kill_training.py --mode text --kills 200

Prints one line per mode and ends with exit code 1 unless every chain of killed and resumed runs
left what a run that nobody killed leaves: weights, optimizer, rows, pictures, best checkpoint.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
from conftest import write_features  # noqa: E402

TINY = "--speech_coeff 0 --face_coeff 0 --speech_frames 48 --face_frames 2 --text_layers 1"
TINY += " --n_epoch 3 --batch_size 5 --num_workers 0 --save_minutes 0 --ema 0.5"


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--mode", default="speech,face,text,multimodal")
    flags.add_argument("--kills", type=int, default=20)
    flags.add_argument("--seed", type=int, default=0)
    args = flags.parse_args()
    import_all()
    same = True
    for mode in args.mode.split(","):
        with tempfile.TemporaryDirectory() as folder:
            same &= torture(mode, args.kills, Path(folder), random.Random(args.seed))
    sys.exit(not same)


def import_all() -> None:
    """Once, before the children are forked: torch alone takes longer than a tiny run."""
    import albumentations  # noqa: F401
    import pandas  # noqa: F401
    import torch
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    import training.run  # noqa: F401
    import utils.plots

    utils.plots._figure(1, 1, (1, 1))[0].savefig(io.BytesIO())
    torch.optim.SGD([torch.zeros(1)], 1.0)  # the first optimizer imports half of torch


def torture(mode: str, kills: int, folder: Path, rng: random.Random) -> bool:
    write_features(folder / "features")
    start = time.monotonic()
    child = launch(mode, folder, "whole")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, (folder / "whole.txt").read_text()
    seconds = time.monotonic() - start
    expected = remains(folder / mode / "whole")
    done = chains = wrong = unreadable = 0
    while done < kills:
        chains += 1
        name, code = f"run{chains}", None
        while code != 0:
            child = launch(mode, folder, name)
            code = wait(child, rng.uniform(0, 1.1 * seconds) if done < kills else 600)
            done += code == -signal.SIGKILL
            if code not in (0, -signal.SIGKILL):
                print((folder / f"{name}.txt").read_text())
                unreadable += 1
                break
        wrong += code != 0 or remains(folder / mode / name) != expected
        shutil.rmtree(folder / mode / name)  # 200 of them fill a disc
    print(
        f"{mode}: {done} kills in {chains} runs of {seconds:.1f} s; {unreadable} could not go on, "
        f"{wrong} ended otherwise than the run that nobody killed",
        flush=True,
    )
    return wrong == 0


def launch(mode: str, folder: Path, name: str) -> int:
    """A child that trains; its process id."""
    child = os.fork()
    if child:
        return child
    output = os.open(folder / f"{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import train
    from utils.errors import run_script

    places = f"--features_dir {folder / 'features'} --logs_dir {folder} --exp_name {name}"
    sys.argv = f"train.py --mode {mode} --resume {TINY} {places}".split()
    try:
        run_script(train.main)
    except SystemExit as stop:
        os._exit(stop.code or 0)
    finally:
        os._exit(1)


def wait(child: int, seconds: float) -> int:
    """The child's exit code; after `seconds` it is killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def remains(run: Path) -> dict[str, object]:
    """What the run left: the bytes of its files, the numbers of its checkpoints."""
    from trainings import leaves

    from training.checkpoint import load_checkpoint

    left: dict[str, object] = {}
    for path in sorted(run.iterdir()):
        if path.suffix == ".pth" and path.name != "previous.pth":
            left[path.name] = leaves(load_checkpoint(path))
        elif path.suffix in (".csv", ".json", ".png", ".part"):
            data = path.read_bytes().replace(run.name.encode(), b"")
            left[path.name] = data if path.suffix != ".png" else len(data) > 0
    return left


if __name__ == "__main__":
    main()

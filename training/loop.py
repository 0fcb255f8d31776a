"""The training loop: epochs, steps, validation and checkpoints of one run, from top to bottom."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from training.data import on_device
from training.inference import Given, encode, infer, progress
from training.loader import LoaderError
from training.metrics import Metrics
from training.randomness import generator, torch_seed
from training.record import Record, interrupted, measures, saved_where
from training.run import Run
from training.stopping import StepInterrupted, StopSignal
from utils.errors import UsageError


def fit(run: Run, record: Record, stop: StopSignal) -> dict[str, Any]:
    """Train to the end and return what the best epoch reached; after a signal save and raise
    Interrupted. A run that goes on after any step equals one that never stopped: nothing here
    depends on anything but the settings and the run's state.
    """
    config, dist, device = run.config, run.dist, run.device
    optimizer, scaler, head = run.optimizer, run.scaler, run.task.main_head
    while len(run.rows) < config["n_epoch"] and not run.out_of_patience():
        epoch, signum = len(run.rows) + 1, 0  # a signal's number, once one asks to stop
        done = run.begin_epoch(epoch)
        title = f"epoch {epoch}/{config['n_epoch']}"
        bar = progress(desc=title, total=run.steps_per_epoch, initial=done, unit="step")
        try:
            for batch, inputs in on_device(run.train_loader, device):
                # All randomness of a step follows from the seed and its number.
                seed, position = config["seed"], (run.step, dist.rank)
                torch.manual_seed(torch_seed(seed, "dropout", *position))
                inputs, targets = run.augmented(batch, inputs), run.targets(batch)
                mixing = generator(seed, "mixing", *position)
                inputs, targets, partners = run.mixer(inputs, targets, mixing)
                left_out = run.left_out(batch, partners)  # modality dropout, and what is missing
                clips = len(batch["clip_id"])

                # On a CPU a stop ends these lines at any layer, as StepInterrupted, which is caught
                # below: nothing has changed by then.
                optimizer.zero_grad(set_to_none=True)
                total = right = torch.zeros((), device=device)
                with run.interruptible(stop):
                    # The batch as one micro-batch, or as several with --grad_accumulation.
                    for micro in run.split(clips):
                        given = {name: take(each, micro) for name, each in inputs.items()}
                        target = take(targets, micro)
                        # Processes exchange their gradients once, behind the last one.
                        with run.gradient_sync(is_last=micro.stop == clips):
                            with run.autocast():
                                prediction = run.parallel_model(given, take(left_out, micro))
                                loss = run.loss(prediction, target, run.class_weights)
                                # Their losses add up to the mean over the batch.
                                loss = loss * (micro.stop - micro.start) / clips
                            scaler.scale(loss).backward()
                        total = total + loss.detach()
                        hits = prediction.logits[head].argmax(1) == target[head].argmax(1)
                        right = right + hits.sum()
                scaler.unscale_(optimizer)
                longest = config["clip_norm"] or math.inf  # inf: only measured
                norm = torch.nn.utils.clip_grad_norm_(run.trained, longest, foreach=True)

                # A loss that is no number ends the run here, on a GPU one step later: before it
                # reaches a checkpoint, and on a CPU before it reaches a weight.
                run.readings.add(torch.stack((total, right, norm)), (run.step, batch))
                shown = run.check_losses()
                for group in optimizer.param_groups:
                    group["lr"] = run.learning_rate(run.step)
                scaler.step(optimizer)  # does nothing where float16 overflowed
                scaler.update()
                run.step += 1
                run.mean_weights.update(run.model, run.step)
                bar.set_postfix(loss=shown, refresh=False)
                bar.update()

                # All processes stop, or save within the epoch, behind the same step.
                signum, is_due = dist.all_reduce_max([stop.signum, record.is_due()])
                if signum:
                    break
                if is_due:
                    record.save_last(run.state())
            bar.close()

            row = run.epoch_row(epoch)  # of all processes: after a signal they meet here, too
            if not signum and (epoch % config["eval_step"] == 0 or epoch == config["n_epoch"]):
                metrics, signum = validate(run, stop)
                if not signum:
                    row |= validation_row(metrics, head)
                    if run.is_best(epoch, metrics[head]):
                        record.save_best(metrics[head].confusion, epoch)
        except StepInterrupted:
            signum = stop.signum
        except LoaderError as error:
            if dist.world > 1:  # saving takes all of them, and the others are in a step
                raise
            record.save_last(run.state())
            raise LoaderError(f"{error}; {saved_where(run.folder)}", error.exit_code) from error
        finally:
            bar.close()
        if signum:  # what is done of the epoch is kept
            record.save_last(run.state())
            interrupted(run, signum, f"in epoch {epoch} after step {run.step}")
        # The table comes last: after a kill between the two it is written again from last.pth.
        run.rows.append(row)
        record.save_last(run.state())
        record.add(row)
        print(epoch_line(row, config["n_epoch"], run.best), flush=True)
    if len(run.rows) < config["n_epoch"]:
        print(f"no better validation loss in {config['patience']} validations: ended")
    if not run.best:
        raise UsageError(f"the validation loss was never finite, see {run.folder / 'metrics.csv'}")
    record.finish(run.best)
    return run.best


def take(tensors: Any, part: slice) -> Any:
    """The clips of one part: of a tuple or a dictionary of tensors (B, ...)."""
    if isinstance(tensors, dict):
        return {name: each[part] for name, each in tensors.items()}
    return tuple(each[part] for each in tensors)


def validate(run: Run, stop: StopSignal) -> tuple[dict[str, Metrics], int]:
    """Metrics per head over every clip of all processes, and the signal that came meanwhile."""
    model = run.mean_weights.model
    run.dist.broadcast_buffers(model)
    metrics = {head: Metrics(model.n_classes) for head in run.task.heads}

    def read(given: Given) -> dict[str, Tensor]:
        return model.classify(encode(model, given)).logits

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        with run.autocast(), run.interruptible(stop):
            yield

    for batch, logits in infer(
        [model], run.val_loader, run.device, read, around=around, title="validating"
    ):
        for name, labels in batch["labels"].items():
            metrics[name].update(logits[name], labels)
        if stop.requested():
            break
    (signum,) = run.dist.all_reduce_max([stop.signum])
    if not signum:
        for each in metrics.values():
            each.add_up(run.dist)
    return metrics, signum


def validation_row(metrics: dict[str, Metrics], main_head: str) -> dict[str, float]:
    row = {f"val_{name}": value for name, value in metrics[main_head].summary().items()}
    others = (head for head in metrics if head != main_head)
    return row | {f"val_{head}_accuracy": metrics[head].summary()["accuracy"] for head in others}


def epoch_line(row: dict[str, Any], epochs: int, best: dict[str, Any] | None) -> str:
    line = f"epoch {row['epoch']}/{epochs}: training loss {row['train_loss']:.4f}"
    if "val_loss" in row:
        line += f"; validation {measures(row, 'val_')}"
    if best and best["epoch"] == row["epoch"]:
        line += " *"
    return line

"""The training loop's other half: ``for step in loop`` reseeds, logs, checkpoints, resumes and stops in order.

What is trained stays visible in the caller's body; this file only makes it exact. A step's random numbers are a pure
function of (seed, stage, rank, step), and one checkpoint holds every ``state_dict``, so k steps + kill + the rest
equal the uninterrupted run bit for bit.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol, TypeVar

import torch

from toolkit.errors import Interrupted, JobError, UserError, with_kind
from toolkit.runs import checkpoint, progress, signals
from toolkit.runs.device import choices
from toolkit.runs.distributed import barrier, gather, rank, world_size
from toolkit.runs.record import Run
from toolkit.runs.seeds import seed_all
from toolkit.runs.states.sharding import spread, whole
from toolkit.runs.states.writing import Writer

T = TypeVar("T")
log = logging.getLogger("toolkit")


class Stateful(Protocol):
    """Anything that a checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Values(dict):
    """Plain numbers that belong in the checkpoint, such as the best validation loss so far."""

    def state_dict(self) -> dict[str, Any]:
        return dict(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError for other names, or values of another kind or shape, than there are."""
        if _kinds(state_dict) != _kinds(self):
            raise ValueError(f"values {_kinds(state_dict)}, expected {_kinds(self)}")
        self.update(state_dict)


def _kinds(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{type(values).__name__} in the place of values")
    return {str(name): _kind(value) for name, value in values.items()}


def _kind(value: Any) -> Any:
    """The shape of a tensor, "number", or the name of another type."""
    if torch.is_tensor(value):
        return tuple(value.shape)
    return "number" if isinstance(value, (int, float)) else type(value).__name__


class Loop:
    """Iterate over the steps of one stage, starting after the newest good checkpoint.

    Usage::

        loop = Loop(run, "denoiser", num_steps, state={"model": model, "optimizer": optimizer})
        for step in loop:
            loss = ...
            loop.log(loss=loss)

    ``state`` maps names to objects with ``state_dict``/``load_state_dict``, equal on every rank (rank 0's are kept).
    ``loop.log`` takes scalars (tensors stay on their device until they are written: their mean, over ranks too, every
    ``log_every_steps``). A loss or any other logged value that is not finite, on any rank, raises JobError with the
    step, and nothing after the last good checkpoint is saved. A body that sets ``loop.stop_early`` ends the loop after
    its step. With ``replicated`` every rank computes the same steps from the same random numbers (a small network that
    is not worth splitting).
    """

    def __init__(self, run: Run, stage: str, num_steps: int, state: dict[str, Stateful], replicated: bool = False):
        self.run = run
        self.stage = stage
        self.num_steps = num_steps
        self.state = state
        self.replicated = replicated
        self.step = 0
        self.stop_early = False
        self.folder = run.dir / "checkpoints" / stage
        self._pending: dict[str, list[Any]] = {}
        self._is_touched = False
        self._writer = Writer(run.config.checkpoint_in_background)
        self._watch_optimizers()

    def log(self, **scalars: Any) -> None:
        """Remember this step's scalars; a mean over the window is written to metrics.jsonl. None is no value."""
        for name, value in scalars.items():
            if value is None:
                continue
            self._pending.setdefault(name, []).append(value.detach() if torch.is_tensor(value) else value)

    def alike(self, draw: Callable[[], T]) -> T:
        """``draw()`` at the beginning of a step, on random numbers that are the same on every process."""
        if rank() == 0 or self.replicated:
            return draw()
        self._seed(0)
        drawn = draw()
        self._seed(rank())
        return drawn

    def _seed(self, number: int) -> None:
        seed_all(self.run.config.seed, self.stage, number, self.step)

    def __iter__(self) -> Generator[int, None, None]:
        config = self.run.config
        self._resume()
        with signals.deferred() as caught, progress.bar(self.stage, self.step, self.num_steps) as show:
            while self.step < self.num_steps and not self.stop_early:
                self._seed(0 if self.replicated else rank())
                self._is_touched = False
                try:
                    yield self.step
                except GeneratorExit:  # the body raised, or left the loop
                    self._rescue()
                    raise
                self.step += 1
                self.run.has_worked = True
                last = self.step == self.num_steps or self.stop_early
                if last or self.step % config.log_every_steps == 0:
                    self._write_log(show)
                # ranks must stop at the same step, and agreeing costs a collective call
                if (world_size() == 1 or self.step % 10 == 0) and _agreed(caught):
                    self._save()
                    self._settle()
                    raise Interrupted(128 + caught[0])
                if last or self.step % config.checkpoint_every_steps == 0:
                    self._save()
                show.advance(self.step)
            self._settle()
        self.run.record["stages"][self.stage]["step"] = self.step
        if _agreed(caught):  # while the last step was being saved
            raise Interrupted(128 + caught[0])

    def _write_log(self, show: progress.Bar) -> None:
        means = {name: math.fsum(window) / len(window) for name, window in self._flush().items()}
        by_rank = gather(means)
        means = {name: math.fsum(one[name] for one in by_rank) / len(by_rank) for name in means}
        if self.step % self.run.config.log_every_steps == 0:
            self._pending = {}  # a shorter last window is kept, for a run that is later made longer
        self.run.log(self.stage, self.step, **means)
        show.log(self.step, means)

    def _flush(self) -> dict[str, list[float]]:
        """Bring pending scalars to plain floats. Raises JobError at the first one that is not finite."""
        for name, window in self._pending.items():
            if any(torch.is_tensor(value) for value in window):
                self._pending[name] = torch.stack([torch.as_tensor(v).float().cpu() for v in window]).tolist()
        self._refuse(
            (name, value, self.step - len(window) + index + 1)
            for name, window in self._pending.items()
            for index, value in enumerate(window)
            if not math.isfinite(value)
        )
        return self._pending

    def _refuse(self, problems: Iterator[tuple[str, float, int]]) -> None:
        """Stop every rank if any has a problem; the first one is named."""
        found = next((problem for problem in gather(next(problems, None)) if problem), None)
        if found:
            self._writer.wait()
            name, value, step = found
            good = checkpoint.newest_good(self.folder)
            kept = f"the last good checkpoint is {good}" if good else "no checkpoint was written before it"
            raise JobError(f"{self.stage}: {name} is {value} at step {step}; stopped ({kept}); try a smaller optim.lr")

    def _watch_optimizers(self) -> None:
        """Note when an optimizer begins to change what it trains; say on rank 0 what they are."""

        def touch(*_: Any) -> None:
            self._is_touched = True

        found = [getattr(item, "optimizer", item) for item in self.state.values()]  # a schedule's may be there, too
        optimizers = dict.fromkeys(one for one in found if isinstance(one, torch.optim.Optimizer))
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(touch)
        if optimizers and rank() == 0:
            log.info("%s: %s", self.stage, ", ".join(choices(optimizers)))

    def _rescue(self) -> None:
        """Keep the steps since the last checkpoint where the step that fails has changed nothing yet (bad data, say).

        On one process only: the others would wait for each other.
        """
        if world_size() == 1 and self.step and not self._is_touched:
            with contextlib.suppress(JobError, OSError):  # what went wrong first is what is said
                self._save()
                self._writer.wait()

    def _settle(self) -> None:
        """Every process waits for the file that is being written."""
        self._writer.wait()
        barrier()

    def _save(self) -> None:
        pending = gather(dict(self._flush()))
        states = {name: whole(item.state_dict()) for name, item in self.state.items()}
        self._refuse(
            (f"tensor {name}", float("nan"), self.step)
            for name, tensor in _tensors(states)
            if tensor.is_floating_point() and not torch.isfinite(tensor).all()
        )
        if rank() == 0:
            self.run.check_there()
            content = {
                "step": self.step,
                "pending": pending,
                "world_size": world_size(),
                "stop_early": self.stop_early,
                **{f"state.{name}": state for name, state in states.items()},
            }
            self._writer.submit(self._write, content)
            self.run.record["stages"][self.stage]["step"] = self.step
            self.run.save()
        barrier()

    def _write(self, content: dict[str, Any]) -> None:
        config = self.run.config
        checkpoint.save(self.folder, content["step"], content, config.keep_checkpoints, config.keep_every_steps)

    def _resume(self) -> None:
        found = checkpoint.load(self.folder)
        if found:
            self.step, content = found
            try:
                written_by = self._restore(content)
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
                raise UserError(
                    f"{self.folder}: the checkpoint of step {self.step} is of another version or another network "
                    f"({with_kind(error, 300)}); continue with the version that wrote it, or begin in another "
                    "hydra.run.dir"
                ) from error
            if written_by != world_size():
                progress.say(
                    f"{self.stage}: checkpoint of {written_by} processes continues on {world_size()}: "
                    "batches are split differently, so this is not bit-identical to either"
                )
            progress.say(f"{self.stage}: resuming after step {self.step} of {self.num_steps}")
        unfinished = self.step < self.num_steps and not self.stop_early
        short_window = bool(self._pending) and unfinished  # its line was the last one when the run was shorter
        self.run.rewind_metrics(self.stage, self.step - short_window)
        barrier()

    def _restore(self, content: dict[str, Any]) -> int:
        """Take the state of a checkpoint; returns how many processes wrote it."""
        for name, item in self.state.items():
            item.load_state_dict(spread(item, content[f"state.{name}"]))
        self.stop_early = bool(content["stop_early"])
        pending = content["pending"][rank() % content["world_size"]]
        self._pending = {str(name): [float(value) for value in window] for name, window in pending.items()}
        return content["world_size"]


def _agreed(caught: list[int]) -> bool:
    """Whether any rank caught a signal; afterwards every rank's list says so."""
    caught[:] = [number for numbers in gather(caught) for number in numbers]
    return bool(caught)


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if torch.is_tensor(value):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{name}.{index}")

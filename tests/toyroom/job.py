"""``toolkit train-toy``: a real Loop with real checkpoints around a network of a few numbers."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.toyroom.config import TrainToy
from toolkit.errors import UserError
from toolkit.runs.device import accelerator_of
from toolkit.runs.distributed import barrier, rank
from toolkit.runs.loop import Loop, Values
from toolkit.runs.record import Run
from toolkit.runs.seeds import generator, seed_all


def main(config: TrainToy, run: Run) -> float:
    if config.data_path and not Path(config.data_path).exists():
        raise UserError(f"data_path={config.data_path}: no such folder")
    for name in config.stages():
        if not run.stage_done(name):
            with run.stage(name):
                {"train": _train, "measure": _measure}[name](config, run)
    return run.record["metrics"].get("loss", 0.0)


def _train(config: TrainToy, run: Run) -> None:
    accelerator = accelerator_of(run)
    seed_all(config.seed, "init")
    width = config.network.width
    model = torch.nn.Sequential(torch.nn.Linear(1, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=config.optim.lr)
    trained = accelerator.prepare_model(model)
    ballast = Values(numbers=torch.zeros(config.ballast))
    state = {"model": model, "optimizer": optimizer, "ballast": ballast}
    loop = Loop(run, "train", config.optim.num_steps, state=state)
    for step in loop:
        if config.data_path and (bad := Path(config.data_path) / f"bad_{step}").exists():
            raise UserError(f"{bad}: cannot be read")
        x = torch.rand(config.optim.batch_size, 1) * 6
        loss = (trained(x) - config.amplitude * x.sin()).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        ballast["numbers"] += torch.rand(config.ballast)
        loop.log(loss=loss)
        time.sleep(config.step_time_s)
    if rank() == 0:
        save_file(model.state_dict(), run.path("model", "net", "model.safetensors"))
    barrier()


def _measure(config: TrainToy, run: Run) -> None:
    from safetensors.torch import load_file

    if rank() == 0:
        weights = load_file(run.path("model", "net", "model.safetensors"))
        x = torch.rand(64, 1, generator=generator(config.seed, "measure")) * 6
        y = torch.tanh(x @ weights["0.weight"].T + weights["0.bias"]) @ weights["2.weight"].T + weights["2.bias"]
        run.add_metrics("", {"loss": (y - config.amplitude * x.sin()).square().mean().item()})
    barrier()

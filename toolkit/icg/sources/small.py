"""The two small class-conditional models that ``sample-icg`` makes for itself: with and without label dropping.

Made once per setting and kept in the cache as an ordinary run folder, named by the config, the content of the data and
RECIPE: an interrupted training is resumed, a finished one is used again by every later run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from toolkit import data
from toolkit.data.config import Data
from toolkit.data.fetching import cache_folder, cache_root
from toolkit.data.sets import Dataset
from toolkit.errors import Interrupted, UserError, with_kind
from toolkit.icg.config import Loss, Optim, SampleICG
from toolkit.paths import share
from toolkit.plain_files import read_object
from toolkit.runs import progress
from toolkit.runs.distributed import barrier, from_rank_zero, rank
from toolkit.runs.files import write_json
from toolkit.runs.loop import Loop
from toolkit.runs.passes import scaler_of, update
from toolkit.runs.record import Run, config_hash
from toolkit.runs.schedule import learning_rate_factor
from toolkit.runs.seeds import seed_all
from toolkit.schema import Job
from toolkit.zoo.config import NetworkConfig
from toolkit.zoo.edm.build import build_network
from toolkit.zoo.edm.denoiser import Denoiser
from toolkit.zoo.edm.ema import EMA
from toolkit.zoo.edm.loss import add_noise, drop_labels, edm_weight, weighted_error

STAGE = "denoiser"
# Of how these models are trained: _train, and the networks, EMA, loss and data stream that it uses. Raise it with every
# change there that makes other weights from the same config, so that old ones are not used any more.
RECIPE = 1


@dataclass
class SmallModel(Job):
    """The config of one small model; its hash is its name in the cache."""

    command: str = "sample-icg"
    data: Data = field(default_factory=Data)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    loss: Loss = field(default_factory=Loss)
    optim: Optim = field(default_factory=Optim)
    fingerprint: str = ""

    def stages(self) -> list[str]:
        """One."""
        return [STAGE]


def small_config(config: SampleICG, dataset: Dataset, label_drop: float, num_steps: int | None = None) -> SmallModel:
    """The model that ``config`` asks for, trained with ``label_drop`` for ``num_steps`` (default: the config's)."""
    shared = {item.name: getattr(config, item.name) for item in dataclasses.fields(Job) if item.name != "command"}
    loss = dataclasses.replace(config.loss, label_drop=label_drop)
    optim = dataclasses.replace(config.optim, num_steps=num_steps or config.optim.num_steps)
    content = hashlib.sha256(f"{RECIPE} {dataset.train.fingerprint()}".encode()).hexdigest()  # both make the weights
    data_config = config.data or Data()
    made = SmallModel(data=data_config, network=config.network, loss=loss, optim=optim, fingerprint=content, **shared)
    return dataclasses.replace(made, tracker="none", num_workers=0)


def folder_of(small: SmallModel) -> Path:
    """Where in the cache this model lies, whether it is there or not."""
    return cache_root() / "icg" / f"{small.data.name}-{config_hash(small)}"


def make_small_model(small: SmallModel, dataset: Dataset, accelerator: Accelerator) -> Path:
    """The folder of the trained model, trained now unless the cache has it; ``model/denoiser`` in it holds the weights.

    Another process that trains the same model is waited for. Raises UserError where the cache cannot be written.
    """
    folder = folder_of(small)
    run = Run(folder, small, is_main=rank() == 0)
    with _alone(folder):
        run.record = from_rank_zero(lambda: run.open([]))
        try:
            if not run.stage_done(STAGE):
                with run.stage(STAGE):
                    _train(run, small, dataset, accelerator)
        except BaseException as error:
            run.close("interrupted" if isinstance(error, Interrupted) else "failed", with_kind(error, None))
            raise
        run.close("done")
    barrier()
    return folder


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the model's lock, waiting for it."""
    if rank() != 0:
        yield
        return
    cache_folder("icg")
    with open(folder.with_name(f"{folder.name}.lock"), "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            progress.say(f"waiting for the process that trains {folder.name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _train(run: Run, small: SmallModel, dataset: Dataset, accelerator: Accelerator) -> None:
    """EDM training (Karras et al. 2022, eq. 2 and table 1); the stored weights are the average."""
    optim, label_drop, device = small.optim, small.loss.label_drop, accelerator.device
    dropping = f"dropping {label_drop:.0%} of the labels" if label_drop else "without label dropping"
    progress.say(f"small model {dropping}, {optim.num_steps} steps on {dataset.name}; kept in {run.dir}")
    seed_all(small.seed, STAGE, "init")
    model = build_network(small.network, dataset.shape, dataset.sigma_data, dataset.num_classes).to(device)
    ema = EMA(model, optim.ema_half_life_images)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay, fused=device.type in ("cpu", "cuda")
    )
    if small.compile:
        model.compile()
    batches = _batches(small, dataset, device)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "ema": ema} | scaler_of(accelerator)
    loop = Loop(run, STAGE, optim.num_steps, state, replicated=True)
    for step in loop:
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * learning_rate_factor(step, optim.num_steps, optim.schedule)
        with accelerator.autocast():
            loss = edm_loss(model, *batches(step), small.loss)
        accelerator.backward(loss)
        grad_norm = update(optimizer, model.parameters(), optim.grad_clip, accelerator)
        ema.update(optim.batch_size)
        loop.log(loss=loss, grad_norm=grad_norm)
    if rank() == 0:
        save_model(run.path("model", STAGE), ema.model, small.data, label_drop)


def _batches(small: SmallModel, dataset: Dataset, device: torch.device) -> Callable[[int], tuple[Tensor, Tensor]]:
    """``batches(step)``, starting wherever it is first asked to."""
    stream: Any = None

    def batches(step: int) -> tuple[Tensor, Tensor]:
        nonlocal stream
        if stream is None:
            size = small.optim.batch_size
            stream = data.batches(dataset.train, size, small.seed, start_step=step, flip=small.data.flip)
        y, labels = next(stream)
        return y.to(device), labels.to(device)

    return batches


def edm_loss(model: Denoiser, y: Tensor, class_labels: Tensor, config: Loss) -> Tensor:
    """The weighted denoising error of clean samples y (B, ...) with labels int64 (B,); a dropped label is all zeros.

    The labels are drawn last, so that models that differ in ``label_drop`` see the same noise.
    """
    x, sigma = add_noise(y, config.p_mean, config.p_std)
    denoised = model(x, sigma, drop_labels(class_labels, model.num_classes, config.label_drop))
    return weighted_error(denoised, y, edm_weight(sigma, model.sigma_data))


def save_model(folder: Path, model: Any, trained_on: Data, label_drop: float) -> None:
    """``save_pretrained``, with what later runs need to know of the training beside it."""
    model.save_pretrained(folder)
    share(folder)
    write_json(folder / "training.json", {"data": dataclasses.asdict(trained_on), "label_drop": label_drop})


def read_training(folder: Path) -> dict[str, Any]:
    """What ``save_model`` noted; {} where nothing is."""
    path = folder / "training.json"
    try:
        return read_object(path) if path.exists() else {}
    except ValueError:
        raise UserError(f"{path}: damaged; delete the folder, and it is made again") from None

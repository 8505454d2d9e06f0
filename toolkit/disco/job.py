"""``toolkit train-disco``: edge -> build -> train (stages 1 and 2) -> sample -> measure -> report, top to bottom."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import torch
from accelerate import Accelerator

from toolkit import data, zoo
from toolkit.data.fetching import is_cached
from toolkit.disco import measure as measures
from toolkit.disco.artefact import Parts, load_parts, null_network, save_part
from toolkit.disco.build import build_prior, build_stage, check_classes, memory_bytes
from toolkit.disco.config import TrainDisco
from toolkit.disco.drawing import SampleSet
from toolkit.disco.ema_snapshots import EMASnapshots, load_post_hoc
from toolkit.disco.latent_pictures import check_shows, draw_latent_pictures
from toolkit.disco.stage1 import RESTART_EVERY_STEPS, JointModel, backward, collapse_warning, latent_summary
from toolkit.disco.stage2 import train_prior
from toolkit.errors import UserError
from toolkit.runs import progress
from toolkit.runs.device import accelerator_of
from toolkit.runs.distributed import barrier, rank, world_size
from toolkit.runs.files import write_json
from toolkit.runs.loop import Loop
from toolkit.runs.machine import check_fits
from toolkit.runs.passes import own_part, rows, scaler_of, update
from toolkit.runs.reading import read_record
from toolkit.runs.record import Run
from toolkit.runs.schedule import learning_rate_factor, share_of_batch
from toolkit.runs.seeds import seed_all
from toolkit.runs.states.sharding import check_sharding, fill, gather, plain_copy, shard, spread_like
from toolkit.show.terminal import dry_run_table, show, show_end
from toolkit.zoo.checkpointing import checkpoint_activations, checkpointed_blocks
from toolkit.zoo.counting import count_flops, count_parameters
from toolkit.zoo.edm.edm2 import EDM2UNet
from toolkit.zoo.edm.ema import EMA
from toolkit.zoo.edm.loss import item_bytes

FIRST_JUDGED_STEP = 200  # earlier, the latents of every encoder carry almost no information
LEAST_TEST_ITEMS = 10  # precision and recall look at nearest neighbours


def main(config: TrainDisco, run: Run) -> float | None:
    """Run the stages that ``config.stage`` asks for and that are not done yet. Returns the objective of a sweep."""
    only_samples = all(name == "sample" or run.stage_done(name) for name in config.stages())
    if not only_samples:
        check_sharding(config.optim.sharding, config.precision)
    dataset: Any = data_for_samples(config, run) if only_samples else load_data(config)
    if dataset is not None and not only_samples:
        check_classes(config, dataset)
    if dataset is not None and (not only_samples or config.model is None):
        _keep_splits(run, config, dataset)
    if dataset is not None and not only_samples:
        if config.sampling.null_model not in (None, "baseline"):  # refused before training
            null_network(config.sampling.null_model, None, dataset.shape, dataset.num_classes)
        dataset.prepare()
    _check_sizes(config, dataset)
    accelerator = accelerator_of(run)
    stages = {
        "denoiser": lambda: _train_denoiser(run, config, dataset, accelerator, "denoiser"),
        "baseline": lambda: _train_denoiser(run, config, dataset, accelerator, "baseline"),
        "prior": lambda: _train_prior(run, config, dataset, accelerator),
        "sample": lambda: _sample(run, config, dataset, accelerator),
        "measure": lambda: _measure(run, config, dataset, accelerator),
    }
    for name in config.stages():
        if not run.stage_done(name):
            with run.stage(name):
                stages[name]()
    if rank() == 0:
        places = {"samples": run.dir / "samples", "images": run.dir / "images", "weights": run.dir / "model"}
        show_end(run, places)
    return _objective(run.record["metrics"], max(config.measure.evaluations))


def _check_sizes(config: TrainDisco, dataset: data.Dataset | None) -> None:
    """Raises UserError for a batch, or a set of samples, that is more than memory holds."""
    if dataset is None:
        return
    if {"denoiser", "baseline"} & set(config.stages()):
        share_of_batch(config.optim.batch_size, item_bytes=item_bytes(dataset.shape))
    if "sample" in config.stages():
        check_fits("sampling.num_samples", config.sampling.num_samples, 4 * math.prod(dataset.shape))


def _objective(metrics: dict[str, float], budget: int) -> float | None:
    """What an optimising sweeper minimises: the distance of our samples at the largest budget, where measured."""
    keys = (f"quality.{distance}.ours.nfe_{budget}" for distance in ("frechet", "energy"))
    return next((metrics[key] for key in keys if key in metrics), None)


def data_for_samples(config: TrainDisco, run: Run) -> data.Dataset | None:
    """The data set whose images are shown beside the samples: the one asked for, else the training data of ``model``.

    None where it cannot be read, with a line that says so: a trained model needs no images to sample.
    """
    asked_for = any(word.startswith(("data=", "data.")) for word in run.record["overrides"])
    wanted = config if asked_for else dataclasses.replace(config, data=_data_of_model(config) or config.data)
    download = data.CATALOGUE[wanted.data.name].download
    if not asked_for and config.model in zoo.SHIPPED and download and not is_cached(download):
        progress.say(f"no real images beside the samples; toolkit data fetch {wanted.data.name} downloads them")
        return None
    try:
        return load_data(wanted)
    except UserError as error:
        progress.say(f"no real images beside the samples: {error}")
        return None


def _data_of_model(config: TrainDisco) -> Any:
    """The data config that ``model`` was trained with; None where its record does not have it."""
    record = read_record(zoo.local(config.model)) if config.model else None
    known = (record or {}).get("config", {}).get("data", {})
    names = {item.name for item in dataclasses.fields(config.data)}
    return type(config.data)(**known) if known and set(known) <= names else None


def _keep_splits(run: Run, config: TrainDisco, dataset: data.Dataset) -> None:
    """Check that the data set is the one this run began with; print how it differs from the training data of ``model``.

    Raises UserError where the run's data set has changed.
    """
    contents = dataset.contents()
    run.keep_splits(contents, of_folder=config.data.path is not None)
    learned = (read_record(zoo.local(config.model)) or {}).get("splits") if config.model else None
    if learned and learned != contents:
        changes = [f"{name} {learned[name]['items']} -> {contents[name]['items']} items" for name in contents]
        known = _data_of_model(config) or config.data
        if known.resize != config.data.resize:
            changes.append(f"data.resize {known.resize} -> {config.data.resize}")
        progress.say(f"model={config.model}: was trained on other data than these ({', '.join(changes)})")


def load_data(config: TrainDisco) -> data.Dataset:
    """The data set. Labels that serve as z are not also a condition: ``num_classes`` is then 0.

    Raises UserError when too little of it is held out to measure anything.
    """
    if config.latents.kind != "labels":
        return _measurable(config, data.load(config.data, config.seed))
    labelled = data.load(dataclasses.replace(config.data, class_labels=True), config.seed)
    return _measurable(config, dataclasses.replace(labelled, num_classes=0))


def _measurable(config: TrainDisco, dataset: data.Dataset) -> data.Dataset:
    if "measure" in config.stages() and len(dataset.test) < LEAST_TEST_ITEMS:
        raise UserError(
            f"data.name={config.data.name}: {len(dataset.test)} test items, measures need {LEAST_TEST_ITEMS}; "
            "add images, raise data.valid_fraction, or stop before with stage=sample"
        )
    return dataset


# -- stage 1 ---------------------------------------------------------------------------------------------------------


def _train_denoiser(run: Run, config: TrainDisco, dataset: data.Dataset, accelerator: Accelerator, name: str) -> None:
    """Denoiser and encoder together ("denoiser"), or the network without latents ("baseline")."""
    seed_all(config.seed, name, "init")
    denoiser, encoder = build_stage(config, dataset, name)
    joint = JointModel(denoiser, encoder, config).to(accelerator.device)
    ema = EMA(denoiser, config.optim.ema_half_life_images, config.optim.ema_ramp_up)
    snapshots = EMASnapshots(run.dir / "ema" / name, denoiser, config.optim.ema_sigma_rels)
    plain_encoder = plain_copy(encoder, config.optim.sharding)
    if config.optim.gradient_checkpointing:
        checkpoint_activations(denoiser)
    if config.compile:
        denoiser.compile()
    trained = _prepared(joint, [ema, *snapshots.averages.values()], config, accelerator)
    optimizer = make_optimizer(joint, config)
    batches = device_batches(dataset, config, accelerator)
    state: dict[str, Any] = {"model": joint, "optimizer": optimizer, "ema": ema} | scaler_of(accelerator)
    state |= {"snapshots": snapshots} if snapshots.averages else {}
    loop = Loop(run, name, config.optim.num_steps, state)
    for step in loop:
        train_step(step, trained, joint, optimizer, ema, batches(step), loop, config, accelerator)
        snapshots.update(config.optim.batch_size)
        if (step + 1) % config.optim.ema_snapshot_every_steps == 0 or step + 1 == config.optim.num_steps:
            snapshots.store(step + 1)
    gather(ema.model)
    if encoder is not None:
        fill(plain_encoder, encoder)
    if rank() == 0:
        save_part(run.path("model"), name, ema.model)
        if encoder is not None:
            save_part(run.path("model"), "encoder", plain_encoder)
        write_json(run.path("model", "data.json"), dataclasses.asdict(config.data))
    run.record.setdefault("parameters", {})[name] = {
        "denoiser": count_parameters(denoiser),
        "encoder": count_parameters(encoder),
    }
    barrier()


def _prepared(joint: JointModel, averages: list[Any], config: TrainDisco, accelerator: Accelerator) -> Any:
    """``joint`` wrapped for DDP or FSDP, its averages sharded alike. Raises UserError where FSDP cannot take it."""
    if config.optim.sharding == "fsdp":
        if isinstance(joint.denoiser, EDM2UNet):
            raise UserError("optim.sharding=fsdp: not with EDM2UNet, which rewrites its weights; use none")
        trained = shard(joint, checkpointed_blocks(joint))
        for average in averages:
            spread_like(average.model, joint.denoiser)
        return trained
    return accelerator.prepare_model(joint) if _trainable(joint) else joint


def train_step(
    step: int,
    trained: Any,
    joint: JointModel,
    optimizer: torch.optim.Optimizer,
    ema: EMA,
    batch: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None],
    loop: Loop,
    config: TrainDisco,
    accelerator: Accelerator,
) -> None:
    """One optimiser step; logs the loss, the gradient's norm and, now and then, how the latents are used."""
    optim = config.optim
    for group in optimizer.param_groups:
        factor = learning_rate_factor(step, optim.num_steps, optim.schedule, optim.warmup_steps)
        group["lr"] = group["base_lr"] * factor
    drawn = rows(loop.alike(lambda: joint.draw(optim.batch_size)), own_part(optim.batch_size))
    loss, logits = backward(trained, joint, batch, drawn, optim.micro_batch_size, accelerator)
    grad_norm = update(optimizer, joint.parameters(), optim.grad_clip or math.inf, accelerator)
    ema.update(optim.batch_size)
    loop.log(loss=loss, grad_norm=grad_norm)
    if logits is not None and (step + 1) % config.log_every_steps == 0:
        _watch_latents(step, joint, accelerator.gather(logits), loop, config)
    if config.latents.restart_dead_codes and logits is not None:
        joint.note_usage(accelerator.gather(logits))
        if (step + 1) % RESTART_EVERY_STEPS == 0:
            seed_all(config.seed, "restart", step)  # alike on all processes
            loop.log(restarted_codes=float(joint.restart_dead_codes()))


def _watch_latents(step: int, joint: JointModel, logits: torch.Tensor, loop: Loop, config: TrainDisco) -> None:
    """Log the use of the latents; warn once, after half of the steps, where they collapsed."""
    summary = latent_summary(logits)
    loop.log(**summary)
    halfway = config.optim.num_steps // 2
    if FIRST_JUDGED_STEP <= halfway < step + 1 <= halfway + config.log_every_steps:
        warning = collapse_warning(summary, joint.denoiser.num_latents)
        if warning:
            progress.say(f"warning: {warning}")


def make_optimizer(joint: JointModel, config: TrainDisco) -> torch.optim.Optimizer:
    """Adam(W) on denoiser and encoder, each with its learning rate; fused, which is one kernel on CPU and CUDA."""
    optim = config.optim
    groups = [{"params": list(joint.denoiser.parameters()), "base_lr": optim.lr}]
    if joint.encoder is not None and _trainable(joint.encoder):
        groups.append({"params": list(joint.encoder.parameters()), "base_lr": optim.encoder_lr or optim.lr})
    fused = joint.denoiser.device.type in ("cpu", "cuda")
    betas = (optim.betas[0], optim.betas[1])
    return torch.optim.AdamW(groups, lr=optim.lr, betas=betas, weight_decay=optim.weight_decay, fused=fused)


def device_batches(dataset: data.Dataset, config: TrainDisco, accelerator: Accelerator) -> Any:
    """``batches(step)``: clean samples, the labels a network may see, and the known ones where they serve as z.

    The stream is started at the first step asked for, so that a resumed run sees what it would have seen.
    """
    stream: Any = None

    def batches(step: int) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        nonlocal stream
        if stream is None:
            stream = data.batches(
                dataset.train, config.optim.batch_size, config.seed, start_step=step, rank=rank(),
                world_size=world_size(), num_workers=config.num_workers, flip=config.data.flip,
            )  # fmt: skip
        y, labels = next(stream)
        labels = None if labels is None else labels.to(accelerator.device)
        given = labels if dataset.num_classes else None
        return y.to(accelerator.device), given, labels if config.latents.kind == "labels" else None

    return batches


def _trainable(module: torch.nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


# -- stage 2 ---------------------------------------------------------------------------------------------------------


def _train_prior(run: Run, config: TrainDisco, dataset: data.Dataset, accelerator: Accelerator) -> None:
    """Every rank trains the same small prior on the same draws; rank 0 stores it."""
    seed_all(config.seed, "prior", "init")
    parts = load_parts(run.dir, ("denoiser", "encoder")).to(accelerator.device)
    prior = build_prior(config, dataset)
    if prior is None:
        return
    train_prior(run, config, parts, prior.to(accelerator.device), dataset.train, dataset.valid, accelerator)
    if rank() == 0:
        save_part(run.path("model"), "prior", prior)
    barrier()


# -- samples and measures --------------------------------------------------------------------------------------------


def _sample(run: Run, config: TrainDisco, dataset: data.Dataset | None, accelerator: Accelerator) -> None:
    """Draw samples of ours and of the baseline from the same noise, as images and as tensors, beside real ones.

    Raises UserError where latents of real images are asked for and there is no data set.
    """
    parts = _trained(run, config, dataset).to(accelerator.device)
    if config.sampling.show_latents:
        check_shows(parts)
    drawn = SampleSet(run, config.sampling, parts, zoo.local(config.model or run.dir), dataset)
    drawn.draw()
    if rank() == 0:
        drawn.finish()
        if config.sampling.show_latents:
            draw_latent_pictures(run, parts, config.sampling)


def _trained(run: Run, config: TrainDisco, dataset: data.Dataset | None) -> Parts:
    """The artefact of this run, or of ``config.model``. Raises UserError where that was trained on other data."""
    folder = zoo.local(config.model or run.dir)
    parts = load_parts(folder)
    if config.sampling.ema_sigma_rel:
        for name, network in (("denoiser", parts.denoiser), ("baseline", parts.baseline)):
            if network is not None:
                load_post_hoc(network, folder / "ema" / name, config.sampling.ema_sigma_rel)
    if config.sampling.null_model:
        denoiser = parts.denoiser
        parts.null = null_network(config.sampling.null_model, parts.baseline, denoiser.shape, denoiser.num_classes)
    if dataset is None:
        return parts
    if tuple(parts.denoiser.shape) != tuple(dataset.shape) or parts.denoiser.num_classes != dataset.num_classes:
        trained = (read_record(folder) or {}).get("config", {}).get("data", {})
        raise UserError(
            f"model={config.model}: trained on data={trained.get('name')}, samples of {tuple(parts.denoiser.shape)} "
            f"and {parts.denoiser.num_classes} classes; data={config.data.name} has {tuple(dataset.shape)} "
            f"and {dataset.num_classes}; repeat the data keys it was trained with"
        )
    return parts


def _measure(run: Run, config: TrainDisco, dataset: data.Dataset, accelerator: Accelerator) -> None:
    if rank() == 0:
        parts = _trained(run, config, dataset).to(accelerator.device)
        run.record["metrics"] = {}
        measures.measure(parts, dataset, config, run)


# -- results ----------------------------------------------------------------------------------------------------------


def dry_run(config: TrainDisco) -> None:
    """Parameters, FLOPs and memory of the networks, on the meta device; trains nothing, needs no folder.

    The networks are those of ``model`` where one is given, which is not trained.
    """
    started = time.perf_counter()
    networks: dict[str, Any]
    if config.model:
        networks = vars(load_parts(zoo.local(config.model)).to(torch.device("meta")))
    else:
        absent = data.CATALOGUE[config.data.name].needs_path and config.data.path is None
        dataset = data.stand_in(config.data) if absent else load_data(config)
        if not absent:
            check_classes(config, dataset)
        with torch.device("meta"):
            denoiser, encoder = build_stage(config, dataset, "denoiser")
            networks = {"denoiser": denoiser, "encoder": encoder, "prior": build_prior(config, dataset)}
    rows = [[name, count_parameters(network), type(network).__name__] for name, network in networks.items() if network]
    denoiser = networks["denoiser"]
    with torch.device("meta"):
        shape = tuple(denoiser.shape)
        call = {"x": torch.empty(1, *shape), "sigma": torch.ones(1)}
        rows.append(["one denoiser call, GFLOPs", count_flops(denoiser, call) / 1e9, f"one sample {shape}"])
    if not config.model:
        rows.append(["weights, gradients, Adam and EMA, MiB", memory_bytes(denoiser, encoder) / 2**20, "float32"])
    show(dry_run_table(rows, time.perf_counter() - started))

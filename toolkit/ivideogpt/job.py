"""``toolkit train-ivideogpt``: edge -> tokenizer -> transformer -> roll-out -> plan -> measure, top to bottom."""

from __future__ import annotations

import time
from typing import Any

import torch
from accelerate import Accelerator

from toolkit import zoo
from toolkit.data.episodes.sets import EpisodeDataset
from toolkit.ivideogpt import measure as measures
from toolkit.ivideogpt.build import (
    build_tokenizer,
    build_transformer,
    check_cache,
    check_length,
    init_transformer,
    join,
    load_world,
    start_tokenizer,
    start_transformer,
    trained_world,
)
from toolkit.ivideogpt.clips import Clips, load_clips
from toolkit.ivideogpt.config import TrainIVideoGPT
from toolkit.ivideogpt.control.planning import plan
from toolkit.ivideogpt.limits import check_limits
from toolkit.ivideogpt.rollout import check_horizon, roll_out
from toolkit.ivideogpt.train.perceptual import make_distance
from toolkit.ivideogpt.train.tokenizer import train_tokenizer
from toolkit.ivideogpt.train.transformer import train_transformer
from toolkit.metrics.plips import PLIPS
from toolkit.runs.device import accelerator_of
from toolkit.runs.distributed import barrier, rank
from toolkit.runs.record import Run
from toolkit.runs.schedule import share_of_batch
from toolkit.runs.states.sharding import check_sharding
from toolkit.show.terminal import dry_run_table, show, show_end
from toolkit.zoo.counting import count_parameters
from toolkit.zoo.world.tokenizer import CompressiveVQModel


def main(config: TrainIVideoGPT, run: Run) -> float | None:
    """Run the stages that ``config.stage`` asks for and that are not done yet. Returns the objective of a sweep."""
    _check_sources(config)
    trains_transformer = "transformer" in config.stages() and not run.stage_done("transformer")
    if trains_transformer:
        check_sharding(config.optim.transformer.sharding, config.precision, "optim.transformer.sharding")
    clips = load_clips(config)
    if trains_transformer:
        init_transformer(config, clips)  # a refusal comes before the tokenizer is trained
    _check_batches(config, clips)
    check_limits(config, clips)
    dataset = clips.dataset
    _check_simulator(config, dataset)
    accelerator = accelerator_of(run)
    run.keep_splits(dataset.contents(), of_folder=config.data.path is not None)
    run.record["data"] = {
        "env": dataset.env,
        "env_options": dataset.env_options,
        "source": dataset.source,
        "licence": dataset.licence,
        "left_out": dataset.problems,
    }
    stages = {
        "tokenizer": lambda: _train_tokenizer(run, config, clips, accelerator),
        "transformer": lambda: _train_transformer(run, config, clips, accelerator),
        "rollout": lambda: roll_out(trained_world(run, config, clips, accelerator.device), clips, config, run),
        "plan": lambda: plan(trained_world(run, config, clips, accelerator.device), clips, config, run),
        "measure": lambda: measures.measure(trained_world(run, config, clips, accelerator.device), clips, config, run),
    }
    for name in config.stages():
        if not run.stage_done(name):
            with run.stage(name):
                if rank() == 0 or name in ("tokenizer", "transformer"):
                    stages[name]()
                barrier()
    if rank() == 0:
        found = {"video": run.dir / "samples" / "rollout.mp4", "weights": run.dir / "model"}
        show_end(run, found, last=_how_to_drive(run, config, dataset.env))
    return _objective(run.record["metrics"])


def _how_to_drive(run: Run, config: TrainIVideoGPT, env: str | None) -> list[str]:
    """The command that plays the run's model, with frames to start from where no simulator is here."""
    if not config.action_conditioned or not (run.dir / "model" / "transformer").exists():
        return []
    return [f"drive it: toolkit play {run.dir}" + ("" if env else f" --episodes {config.data.path}")]


def _check_sources(config: TrainIVideoGPT) -> None:
    """Weights that the config names are there; said before the data is read. Raises UserError."""
    if "tokenizer" in config.stages() and config.optim.tokenizer.num_steps:
        make_distance(config.tokenizer_loss.perceptual, config.tokenizer_loss.perceptual_path)
    if config.measure.perceptual and "measure" in config.stages():
        PLIPS.load()
    for source in (config.init, config.model):
        if source is not None:
            zoo.load(source, "tokenizer")


def _check_batches(config: TrainIVideoGPT, clips: Clips) -> None:
    """Batches of both stages fit into memory; said before anything is trained. Raises UserError."""
    frames = clips.train.num_frames * 3 * clips.resolution**2 * 4
    for stage in {"tokenizer", "transformer"} & set(config.stages()):
        share_of_batch(getattr(config.optim, stage).batch_size, f"optim.{stage}.batch_size", frames)


def _check_simulator(config: TrainIVideoGPT, dataset: EpisodeDataset) -> None:
    """What plans or measures in a simulator finds one; said before anything is trained. Raises UserError."""
    stages, names = config.stages(), set(config.measure.names)
    measures_in_it = "measure" in stages and config.action_conditioned and dataset.env and names & {"actions", "long"}
    if "plan" in stages or measures_in_it:
        dataset.make_env().close()


def _objective(metrics: dict[str, float]) -> float | None:
    """What an optimising sweeper minimises: minus the PSNR of predicted frames, where measured."""
    value = metrics.get("prediction.psnr.predicted")
    return None if value is None else -value


def _train_tokenizer(run: Run, config: TrainIVideoGPT, clips: Clips, accelerator: Accelerator) -> None:
    tokenizer = start_tokenizer(config, clips)
    given = init_transformer(config, clips)
    num_positions = (config.transformer if given is None else given.config).max_position_embeddings
    check_length(config, tokenizer, num_positions)  # before the long work
    check_horizon(config, tokenizer, num_positions)
    if "transformer" in config.stages():
        check_cache(config, tokenizer, clips)
    _note_parameters(run, tokenizer=tokenizer)
    if config.optim.tokenizer.num_steps:
        tokenizer = train_tokenizer(tokenizer, run, config, clips, accelerator)
    if rank() == 0:
        tokenizer.cpu().save_pretrained(run.path("model", "tokenizer"))
    barrier()


def _train_transformer(run: Run, config: TrainIVideoGPT, clips: Clips, accelerator: Accelerator) -> None:
    """The transformer of this run's tokenizer; both become the run's world model."""
    tokenizer = CompressiveVQModel.from_pretrained(run.dir / "model" / "tokenizer").eval()
    transformer, knows_units = start_transformer(config, tokenizer, clips)
    transformer.bind(tokenizer)
    _note_parameters(run, transformer=transformer)
    if config.optim.transformer.num_steps:
        transformer = train_transformer(
            transformer, tokenizer, run, config, clips, accelerator, normalised=not knows_units
        )
    if rank() == 0:
        join(tokenizer.cpu(), transformer.cpu(), config, clips).save_pretrained(run.path("model"))
    barrier()


def _note_parameters(run: Run, **networks: Any) -> None:
    counted = {name: count_parameters(network) for name, network in networks.items()}
    run.record.setdefault("parameters", {}).update(counted)


def dry_run(config: TrainIVideoGPT) -> None:
    """Parameters, tokens and memory of the networks, on the meta device; trains nothing, needs no data.

    The networks are those of ``model`` where one is given, which is not trained.
    """
    started = time.perf_counter()
    if config.model:
        world = load_world(config.model, "model").to("meta")
        tokenizer, transformer = world.tokenizer, world.transformer
    else:
        action_dim = 2 if config.action_conditioned else 0  # the data would tell; it changes a few hundred weights
        with torch.device("meta"):
            tokenizer = build_tokenizer(config, config.data.size_px or zoo_resolution(config))
            transformer = build_transformer(config, tokenizer, action_dim)
    layout = tokenizer.layout
    num_future = config.num_frames - config.context_length
    rows: list[list[Any]] = [
        ["tokenizer", count_parameters(tokenizer), "parameters"],
        ["transformer", count_parameters(transformer), "parameters"],
        ["tokens of a clip", layout.length(num_future), f"{config.context_length} x {layout.tokens_per_context} + "
         f"{num_future} x {layout.tokens_per_frame}, and slots"],
        ["per-frame tokens would be", config.num_frames * (layout.tokens_per_context + 1) - 1, "slots included"],
    ]  # fmt: skip
    total = count_parameters(tokenizer) + count_parameters(transformer)
    if not config.model:
        rows.append(["weights, gradients and Adam, MiB", 16 * total / 2**20, "float32"])
    show(dry_run_table(rows, time.perf_counter() - started))


def zoo_resolution(config: TrainIVideoGPT) -> int:
    """The frames' edge where the config leaves it to the data."""
    return 32 if config.data.name == "push_sprite" else 64

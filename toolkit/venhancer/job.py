"""``toolkit enhance-video``: edge -> prepare every clip -> enhance in parts -> join -> measure -> report."""

from __future__ import annotations

import glob
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import av
import torch

from toolkit.data.video.reader import VideoReader
from toolkit.data.video.write import identity, is_claimed, join_parts
from toolkit.errors import JobError, UserError, few, is_full_disk, refuse_files
from toolkit.plain_files import check_writable
from toolkit.runs import progress
from toolkit.runs.device import accelerator_of
from toolkit.runs.distributed import barrier, rank
from toolkit.runs.record import Run
from toolkit.show.table import Table
from toolkit.show.terminal import dry_run_table, show, show_end
from toolkit.venhancer.clips.backends import KeyFrames
from toolkit.venhancer.clips.between import check_memory, make_between
from toolkit.venhancer.clips.former import former_of, is_done
from toolkit.venhancer.clips.inputs import Task, available_bytes, check_free, find_tasks, rate_text
from toolkit.venhancer.clips.parts import Written, write_parts
from toolkit.venhancer.clips.prepare import Network, Work, claim_of, make_backend, prepare
from toolkit.venhancer.clips.side_by_side import frames_of, held_frames, write_sheet, write_side_by_side
from toolkit.venhancer.config import EnhanceVideo
from toolkit.venhancer.keys import load_upscaler
from toolkit.venhancer.measure import load_perceptual, score_video, scores_table
from toolkit.zoo.counting import count_parameters

OURS = "ours"


def main(config: EnhanceVideo, run: Run) -> float | None:
    """Run the stages that ``config.stage`` asks for and that are not done yet. Returns the objective of a sweep."""
    config = config.resolved()
    accelerator = accelerator_of(run)
    tasks = _open_tasks(config, run) if "enhance" in config.stages() else []
    for name in config.stages():
        if run.stage_done(name):
            continue
        with run.stage(name):
            if name not in ("enhance", "measure"):
                _training(name, config, run, accelerator)
            elif rank() == 0:
                {"enhance": _enhance, "measure": _measure}[name](config, run, tasks, accelerator.device)
            barrier()
    if rank() == 0:
        shutil.rmtree(run.dir / "work", ignore_errors=True)
        show_end(run, {}, first=_enhanced(run))
    quality = run.record["metrics"].get(f"{OURS}.psnr")
    return None if quality is None else -quality


def _training(name: str, config: EnhanceVideo, run: Run, accelerator: Any) -> None:
    from toolkit.venhancer.train import keys, stage

    stages = {
        "train": stage.train,
        "evaluate": stage.evaluate,
        "train_keys": keys.train,
        "evaluate_keys": keys.evaluate,
    }
    stages[name](config, run, accelerator)


def _open_tasks(config: EnhanceVideo, run: Run) -> list[Task]:
    """The clips; those that are not finished must have a free name to go to. Raises UserError."""
    tasks = find_tasks(config, run.dir / "samples")
    for task in tasks:
        if is_done(run, task, config) or is_claimed(task.output, claim_of(_folder(run, task), config)):
            continue
        if former_of(run, task) != task.output:
            check_free(task, config)
    return tasks


def _prepare(config: EnhanceVideo, run: Run, task: Task) -> Work:
    return prepare(task, config, _folder(run, task))


def _folder(run: Run, task: Task) -> Path:
    return run.dir / "work" / task.name


# -- enhance ---------------------------------------------------------------------------------------------------------


def _enhance(config: EnhanceVideo, run: Run, tasks: list[Task], device: Any) -> None:
    """All clips are read and checked before work on the first one begins; with ``skip_bad`` bad ones are left out."""
    config = _trained(config, run)
    network = Network(config, device) if config.diffuses else None
    parts = _load_parts(config, device)
    todo = [task for task in tasks if not is_done(run, task, config)]
    is_new = not (run.dir / "work").exists()
    try:
        ready, bad = _all_ready(config, run, todo, device, network)
    except UserError:
        if is_new:
            shutil.rmtree(run.dir / "work", ignore_errors=True)
        raise
    for line in (*parts, *(line for _, notes in ready for line in notes), *(f"left out: {line}" for line in bad)):
        progress.say(line)
    for work, _ in ready:
        try:
            _enhance_clip(config, run, work, device, network)
        except (UserError, JobError, av.FFmpegError) as error:
            if not config.skip_bad or is_full_disk(error):
                raise
            bad.append(f"{work.task.name}: {error}")
    if bad:
        made = f"{len(todo) - len(bad)} of {len(todo)} clips are made"
        raise JobError(f"{made}; not made, and tried again when the run is resumed: {few(bad, 10)}")


def _load_parts(config: EnhanceVideo, device: Any) -> list[str]:
    """Load what ``keys`` and ``between`` name; what it is, in a line. Raises UserError where it is not there."""
    if config.backend != "generative":
        idle = config.set_for_the_network()
        return [f"backend={config.backend}: uses no network, so without effect: {', '.join(idle)}"] if idle else []
    make_between(config.between, config.classic, config.windows, device)
    theirs = f"VEnhancer's network, model={config.model}"
    what = theirs if config.diffuses else load_upscaler(config.keys, str(device)).notice
    return [f"keys={config.keys}: {what}; between={config.between}"]


def _all_ready(
    config: EnhanceVideo, run: Run, todo: list[Task], device: Any, network: Network | None
) -> tuple[list[tuple[Work, list[str]]], list[str]]:
    """The usable clips with notes for the user, and why the others are not. Raises UserError naming all bad ones."""
    ready: list[tuple[Work, list[str]]] = []
    bad: list[str] = []
    for task in todo:
        try:
            work = _prepare(config, run, task)
            free = _free_bytes(device)
            plan = network.check_memory(work, free) if network else []
            if config.backend == "generative":
                check_memory(config.between, work.size, config.windows, free)
            ready.append((work, [*work.notes, work.summary(), *plan]))
        except UserError as error:
            bad.append(str(error))
    if bad and len(todo) == 1:
        raise UserError(bad[0])
    if not (config.skip_bad and ready):
        refuse_files(bad, len(todo), "skip_bad")
    for work, _ in ready:
        check_writable(work.task.output, "output", folders=True)
    return ready, bad


def _trained(config: EnhanceVideo, run: Run) -> EnhanceVideo:
    """With the model that this run trained, where it did."""
    return replace(config, model=str(run.dir / "model")) if "train" in config.stages() else config


def _free_bytes(device: Any) -> int:
    if getattr(device, "type", device) == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return available_bytes()


def _enhance_clip(config: EnhanceVideo, run: Run, work: Work, device: Any, network: Network | None) -> None:
    started = time.perf_counter()
    entry = run.record.setdefault("clips", {}).setdefault(work.task.name, {"wall_time_s": 0.0})
    timeline, task = work.timeline, work.task
    if not is_claimed(task.output, work.claim):
        former = former_of(run, task)
        with progress.bar(task.name, 0, timeline.num_frames, "frame", stills=config.live_still) as bar:
            join_parts(
                _parts(config, run, work, device, network, former, bar),
                task.output,
                work.encoding,
                work.sound,
                overwrite=config.overwrite or former == task.output,
                token=_token(run),
                claim=work.claim,
            )
    for folder in ("parts", "network"):
        shutil.rmtree(work.folder / folder, ignore_errors=True)
    seconds = min(config.side_by_side_s, float(timeline.num_frames / timeline.rate))
    if seconds:
        _side_by_side(run, work, max(1, int(seconds * timeline.rate)))
    entry.update(
        status="done",
        output=str(task.output),
        identity=identity(task.output),
        written=asdict(config.encode),
        encoding=repr(work.encoding),
        frames=timeline.num_frames,
        rate=str(timeline.rate),
        size=list(work.size),
        wall_time_s=round(entry["wall_time_s"] + time.perf_counter() - started, 3),
    )
    run.save()


def _parts(
    config: EnhanceVideo,
    run: Run,
    work: Work,
    device: Any,
    network: Network | None,
    former: Path | None,
    bar: progress.Bar,
) -> list[Path]:
    """The finished frames as files to join: made, or those of ``former``, the clip as it was written before."""
    folder = work.folder / "parts"
    if former is None:
        backend = make_backend(config.backend, work, config, device, network, bar)
        return write_parts(backend, work.timeline, work.encoding, config.part_frames, folder, bar)
    if run.record["clips"][work.task.name]["encoding"] == repr(work.encoding):
        return [former]
    for path in run.dir.glob(f"baselines/{glob.escape(work.task.name)}_*.mp4"):  # they are encoded as ours
        path.unlink()
    again = Written(former, work.encoding)
    return write_parts(again, work.timeline, work.encoding, config.part_frames, folder, bar)


def _token(run: Run) -> str:
    """Marks this run's unfinished files, the same after a restart."""
    import hashlib

    return hashlib.sha256(str(run.dir.resolve()).encode()).hexdigest()[:8]


def _side_by_side(run: Run, work: Work, num_frames: int) -> None:
    name = work.task.name
    panels = {"input": held_frames(work.index, work.timeline), "result": frames_of(work.task.output)}
    if work.reference and work.reference.rate == work.timeline.rate:
        panels["reference"] = held_frames(work.reference, work.timeline)
    clip = run.path("samples", f"{name}_side_by_side.mp4")
    write_side_by_side(clip, panels, work.size, work.encoding, num_frames)
    write_sheet(run.path("samples", f"{name}_frames.png"), clip, num_frames)


# -- measure ---------------------------------------------------------------------------------------------------------


def _measure(config: EnhanceVideo, run: Run, tasks: list[Task], device: Any) -> None:
    """Score every clip that has a reference, and its baselines, made and encoded in the same way."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    perceptual = load_perceptual(config)
    for task in tasks:
        work = _prepare(config, run, task)
        if work.reference is None:
            continue
        files = {OURS: task.output} | {name: _baseline(name, config, run, work, device) for name in config.baselines}
        with progress.bar(f"measure {task.name}", 0, len(files), "method") as bar:
            scores = {}
            for number, (name, path) in enumerate(files.items()):
                scores[name] = score_video(
                    path, work.timeline, work.index, work.reference, config.measure_frames, perceptual
                )
                bar.advance(number + 1)
        found[task.name] = scores
        scores_table(task.name, scores).save(run.path("tables", f"{task.name}.json"))
    if found:
        _record(run, found)


def _baseline(name: str, config: EnhanceVideo, run: Run, work: Work, device: Any) -> Path:
    """The clip as ``bicubic`` or ``classic`` makes it, encoded as ours."""
    path = run.path("baselines", f"{work.task.name}_{name}.mp4")
    if not path.exists():
        folder, encoding = work.folder / name, work.encoding
        if encoding.codec == "png":
            encoding = replace(encoding, codec="rgb", pix_fmt="rgb24")  # as exact, in one file
        with progress.bar(f"{work.task.name} {name}", 0, work.timeline.num_frames, "frame") as bar:
            backend = make_backend(name, work, config, device)
            parts = write_parts(backend, work.timeline, encoding, config.part_frames, folder, bar)
        join_parts(parts, path, encoding, overwrite=True, token=_token(run))
    return path


def _record(run: Run, found: dict[str, dict[str, dict[str, float]]]) -> None:
    """Means over clips in the record and the headline; every clip's own scores too where there are several."""
    methods = next(iter(found.values()))
    means = {
        method: {
            key: sum(clip[method][key] for clip in found.values()) / len(found)
            for key in scores
            if all(key in clip[method] for clip in found.values())  # not every clip has a cut, and frames held
        }
        for method, scores in methods.items()
    }
    run.add_metrics("", means)
    if len(found) > 1:
        run.add_metrics("clips", found)
    title = next(iter(found)) if len(found) == 1 else f"means over {len(found)} clips"
    scores_table(title, means).save(run.path("tables", "headline.json"))


# -- results -----------------------------------------------------------------------------------------------------------


def _enhanced(run: Run) -> list[str]:
    """One line for each clip: where it is, its size and rate."""
    lines = []
    for entry in run.record.get("clips", {}).values():
        width, height = entry["size"]
        rate = rate_text(_fraction(entry["rate"]))
        lines.append(f"{entry['output']}  {width}x{height}, {entry['frames']} frames at {rate} fps")
    return lines


def _fraction(text: str) -> Any:
    from fractions import Fraction

    return Fraction(text)


def dry_run(config: EnhanceVideo) -> None:
    """What would be trained, or what would become of every clip, and what it would cost; writes nothing."""
    if "enhance" not in config.stages():
        show(_training_table(config))
        return
    import tempfile

    config = config.resolved()
    network = Network(config, "cpu")
    rows: list[list[Any]] = [["", line, ""] for line in _load_parts(config, "cpu")]
    if "train" in config.stages():
        rows.append(["", "costs are those of this network, not of the one that would be trained first", ""])
    with tempfile.TemporaryDirectory(prefix="toolkit-") as scratch:
        for task in find_tasks(config, Path("samples")):
            work = prepare(task, config, Path(scratch) / task.name)
            rows.append([task.name, work.summary().partition(": ")[2], ""])
            rows += [["", note.partition(": ")[2], ""] for note in work.notes]
            if config.diffuses:
                rows += _network_rows(work, network)
    show(Table("dry run", ["clip", "what", "size"], rows, "nothing was run"))


def _training_table(config: EnhanceVideo) -> Table:
    """Parameters and steps of the stages that train; networks are built on the meta device."""
    from toolkit.venhancer import footprint

    started, rows = time.perf_counter(), []
    for stage in footprint.stages(config):
        with torch.device("meta"):
            networks = stage.build()
        trained = [one.numel() for one in networks.trained.parameters() if one.requires_grad]
        rows.append(
            [stage.name, sum(trained), f"parameters, {stage.num_steps} steps of {stage.batch_size} {stage.item}"]
        )
        frozen = count_parameters(*networks.frozen)
        rows += [["", frozen, "parameters beside them, not trained"]] if frozen else []
        kept = 16 * sum(trained) + 4 * count_parameters(*networks.averaged)
        rows.append(["", kept / 2**20, "MiB of weights, gradients, two moments and the average, in float32"])
    return dry_run_table(rows, time.perf_counter() - started)


def _network_rows(work: Work, network: Network) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for shot in work.timeline.shots:
        plan = network.enhancer(work).plan(KeyFrames(VideoReader(work.index), shot))
        rows.append(["", f"shot at frame {shot.first}: {len(plan.windows)} windows, {plan.tiles} tiles", ""])
        rows.append(["", "network evaluations", plan.forwards])
        rows.append(["", "memory at its peak, MiB", round(plan.peak_bytes / 2**20)])
        rows.append(["", "disk while it works, MiB", round(plan.disk_bytes / 2**20)])
    return rows

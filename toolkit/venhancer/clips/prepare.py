"""Everything that is known about a clip before work on it starts: what is in it, what it becomes, what does not fit."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from toolkit.data.video.beside import beside_notes
from toolkit.data.video.reader import VideoIndex, VideoReader
from toolkit.data.video.scan import index_video
from toolkit.data.video.sequence import find_sequence
from toolkit.data.video.sound import Sound, sound_plan
from toolkit.data.video.tone import HDR_TRANSFERS
from toolkit.data.video.write import DEEP_FORMATS, Encoding, container_of
from toolkit.errors import UserError, bytes_text
from toolkit.venhancer.clips.backends import Backend, ClassicBackend, GenerativeBackend, KeyFrames, KeysBackend
from toolkit.venhancer.clips.between import make_between
from toolkit.venhancer.clips.degrade import write_degraded
from toolkit.venhancer.clips.inputs import (
    Task,
    available_bytes,
    check_size,
    output_size,
    picture_rate,
    rate_text,
)
from toolkit.venhancer.clips.parts import keep_index
from toolkit.venhancer.clips.scenes import CutFinder
from toolkit.venhancer.clips.timeline import Timeline, make_timeline, output_rate
from toolkit.venhancer.config import LEAST_SIDE_PX, EnhanceVideo
from toolkit.venhancer.engine.settings import EnhanceSettings
from toolkit.venhancer.keys import load_upscaler
from toolkit.venhancer.keys.tiled import TILE_PX

TIMES_ROUND_S = 0.002  # containers round times, most coarsely to milliseconds
BT2020 = 9  # its primaries and its matrix, in ITU-T H.273's numbers
TILE_SIDES_PX = (1280, 960, 720, 512, 384, 256, 192, 128)
WINDOW_FRAMES = (24, 16, 9, 5, 3)


@dataclass(frozen=True)
class Work:
    """One clip, ready to be worked on. ``reference``: the clip as it should look, where that is known.

    ``sound``: of the input, a degraded clip's is the original's. ``claim`` says that the output is this run's
    (``is_claimed``).
    """

    task: Task
    folder: Path
    index: VideoIndex
    timeline: Timeline
    encoding: Encoding
    reference: VideoIndex | None
    notes: tuple[str, ...]
    sound: Sound | None
    claim: Path

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the result."""
        return self.encoding.width, self.encoding.height

    def summary(self) -> str:
        """What becomes of the clip, in one line."""
        index, made, cuts = self.index, self.encoding, len(self.timeline.shots) - 1
        before = f"{index.width}x{index.height}, {index.num_frames} frames at {rate_text(index.rate)} fps"
        after = f"{made.width}x{made.height}, {self.timeline.num_frames} frames at {rate_text(made.rate)} fps"
        cut = f", {cuts} cut{'s' if cuts > 1 else ''}" if cuts else ""
        return f"{self.task.name}: {before} -> {after}{cut}"


def claim_of(folder: Path, config: EnhanceVideo) -> Path:
    """Of the work in ``folder``, written as ``config`` says."""
    return folder / f"joined_{hashlib.sha256(repr(config.encode).encode()).hexdigest()[:8]}.json"


def prepare(task: Task, config: EnhanceVideo, folder: Path) -> Work:
    """Read the clip, and the reference, and check all that is asked. Raises UserError."""
    most = available_bytes() // 16

    def look() -> tuple[VideoIndex, list[int]]:
        finder = CutFinder(config.cut_threshold) if config.scene_cuts else None
        found = index_video(
            task.source,
            start_s=config.start_s,
            duration_s=config.duration_s,
            most_bytes=most,
            rate=picture_rate(task, config),
            deinterlace=config.deinterlace,
            each=finder,
        )
        return found, finder.cuts() if finder else []

    index, cuts = keep_index(folder / "index.json", look)
    index = _toned(index, config)
    sound = Sound(index, config.start_s == 0 and config.duration_s is None, config.encode.audio)
    notes, original = list(index.notes), None
    if config.degrade.active:
        original, index = index, _degraded(index, config, folder)
        cuts = sorted({-(-cut // config.degrade.frame_step) for cut in cuts} - {0})
        cuts = [cut for cut in cuts if cut < index.num_frames]
    rate = output_rate(config, index, original.rate if original else None)
    before = (original.width, original.height) if original else None
    width, height, pix_fmt, note = output_size(config, index, before)
    index = replace(index, deep=pix_fmt in DEEP_FORMATS and index.bits > 8 and config.backend != "generative")
    check_size(config, index, width, height)
    notes += [
        f"{task.name}: {line}" for line in (*_hdr_notes(index, original), *_notes_beside(task, sound, rate, config))
    ]
    reference = original or _reference(task, index, config, rate)
    if reference and reference is not original:
        notes += reference.notes
    return Work(
        task,
        folder,
        index,
        make_timeline(index, rate, cuts),
        _encoding(config, index, width, height, rate, pix_fmt),
        reference,
        tuple([*notes, f"{task.name}: {note}"] if note else notes),
        None if config.encode.codec == "png" or find_sequence(task.source) else sound,
        claim_of(folder, config),
    )


def _toned(index: VideoIndex, config: EnhanceVideo) -> VideoIndex:
    is_toned = config.encode.hdr == "tonemap" and index.transfer in HDR_TRANSFERS
    return replace(index, is_toned=True) if is_toned else index


def _reference(task: Task, index: VideoIndex, config: EnhanceVideo, rate: Fraction) -> VideoIndex | None:
    """The clip as it should look, of the same times as the input's ``index``; None where none is given.

    Raises UserError where it has less of them than the input, or other colours.
    """
    if task.reference is None:
        return None
    start_s = max(config.start_s, float(index.begin_s))
    first_s = max(0.0, start_s - TIMES_ROUND_S)
    found = index_video(
        task.reference,
        key="reference",
        start_s=first_s,
        duration_s=None if config.duration_s is None else config.start_s + config.duration_s - first_s,
        rate=rate,
        deinterlace="off" if config.deinterlace == "off" else "auto",
    )
    found = _toned(found, config)
    is_cut = config.start_s or config.duration_s is not None
    if is_cut and index.duration_s - found.duration_s > _longest_frame_s(index, found):
        has = f"{float(found.duration_s):.2f} s of the input's {float(index.duration_s):.2f} s"
        raise UserError(
            f"reference={task.reference}: start_s and duration_s cut it as they cut the input, and it then has {has}; "
            "give the whole clip, that begins when the input's file does"
        )
    theirs, ours = _colours_of(found), _colours_of(index)
    if theirs != ours:
        both = "encode.hdr=tonemap makes BT.709 of both"
        raise UserError(f"reference={task.reference}: is {theirs}, the input {ours}; {both}")
    return replace(found, notes=(*found.notes, *_length_notes(task, index, found)))


def _length_notes(task: Task, index: VideoIndex, reference: VideoIndex) -> Iterator[str]:
    if abs(index.duration_s - reference.duration_s) > _longest_frame_s(index, reference):
        theirs, ours = (f"{float(one.duration_s):.2f} s" for one in (reference, index))
        yield f"{task.name}: the reference has {theirs}, the input {ours}; both are compared from their first frames on"


def _longest_frame_s(*indices: VideoIndex) -> Fraction:
    return max(1 / one.rate for one in indices)


def _colours_of(index: VideoIndex) -> str:
    kind = None if index.is_toned else HDR_TRANSFERS.get(index.transfer)
    return f"HDR ({kind})" if kind else "no HDR"


def _hdr_notes(index: VideoIndex, original: VideoIndex | None) -> Iterator[str]:
    is_toned = (original or index).is_toned
    kind = HDR_TRANSFERS.get((original or index).transfer)
    if kind and is_toned:
        yield f"HDR ({kind}) becomes BT.709, for screens that have none"
    elif kind and index.deep:
        yield f"HDR ({kind}) is kept, with 10 bits a colour or more"
    elif kind:
        deeper = "encode.codec=hevc without the network keeps 10, " if index.bits > 8 else ""
        others = f"{deeper}encode.hdr=tonemap makes BT.709 of it"
        yield f"HDR ({kind}) is kept, with 8 bits a colour: smooth surfaces may show steps ({others})"
    elif index.bits > 8 and not index.deep:
        others = "encode.codec=hevc encode.pix_fmt=yuv420p10le without the network keeps 10"
        yield f"{index.bits} bits a colour become 8 ({others})"


def _notes_beside(task: Task, sound: Sound, rate: Fraction, config: EnhanceVideo) -> list[str]:
    """What becomes of the sound, the subtitles and the time code, where they are not simply copied."""
    if find_sequence(task.source):
        return []
    if config.encode.codec == "png":
        return ["sound is left out: pictures have none"] if sound.is_heard and sound.index.audio else []
    form = container_of(task.output)
    notes = sound_plan(sound.index.path, form)[1] if sound.is_heard and sound.index.audio else []
    return [*notes, *beside_notes(sound, form, rate)]


def _encoding(
    config: EnhanceVideo, index: VideoIndex, width: int, height: int, rate: Fraction, pix_fmt: str
) -> Encoding:
    """Pixels of the shape that leaves the picture's as it is, colours that mean what the input's do."""
    aspect = (index.aspect * index.width * height / (index.height * width)).limit_denominator(255)
    encode, colours = config.encode, (index.primaries, index.transfer)
    if index.is_toned:
        colours = (1, 1)
    matrix = BT2020 if index.deep and colours[0] == BT2020 else 1
    return Encoding(width, height, rate, encode.codec, encode.crf, encode.speed, pix_fmt, aspect, *colours, matrix)


def _degraded(index: VideoIndex, config: EnhanceVideo, folder: Path) -> VideoIndex:
    """The clip that is worked on instead of ``index``. Its file is plain RGB; its colours mean what the clip's do."""
    path = folder / "degraded.mp4"
    if not path.exists():
        write_degraded(index, config.degrade, path, config.seed)
    found = keep_index(folder / "degraded.json", lambda: (index_video(path), []))[0]
    return found if index.is_toned else replace(found, primaries=index.primaries, transfer=index.transfer)


class Network:
    """The generative model, loaded once, with the settings of each clip."""

    def __init__(self, config: EnhanceVideo, device: Any):
        self.config, self.device = config, device
        self._pipeline: Any = None

    def enhancer(self, work: Work, **changes: Any) -> Any:
        """An ``Enhancer`` for ``work``; ``changes`` to its settings."""
        from diffusers.utils import logging

        from toolkit.venhancer.engine.enhancer import Enhancer
        from toolkit.venhancer.pipeline import place_pipeline

        if self._pipeline is None:
            logging.disable_progress_bar()
            self._pipeline = place_pipeline(self.config, self.device)
        return Enhancer(self._pipeline, enhance_settings(work, self.config).changed(**changes))

    def check_memory(self, work: Work, free: int) -> list[str]:
        """The plan's lines for the user. Raises UserError naming what fits in memory (``free`` bytes) or on disk."""
        source = _longest_shot(work)
        plan = self.enhancer(work).plan(source)
        if plan.peak_bytes > free:
            asked = f"{work.task.name}: {work.size[0]}x{work.size[1]} in these windows and tiles"
            fits = self._fitting_tile(work, source, free)
            raise UserError(f"{asked} needs about {bytes_text(plan.peak_bytes)}, {bytes_text(free)} are free; {fits}")
        self._check_disk(work, source, plan.disk_bytes)
        return [f"{work.task.name}: {note}" for note in plan.notes]

    def _check_disk(self, work: Work, source: KeyFrames, need: int) -> None:
        """Raises UserError, naming shorter windows that fit, where what is in flight would fill the disk."""
        room = _room(work.folder)
        if need <= room:
            return
        asked = f"{work.task.name}: {work.size[0]}x{work.size[1]} keeps {bytes_text(need)} on disk while it works"
        for frames in WINDOW_FRAMES:
            if self.enhancer(work, num_frames=frames).plan(source).disk_bytes <= room:
                raise UserError(f"{asked}, {bytes_text(room)} are free; windows.num_frames={frames} fits")
        raise UserError(f"{asked}, {bytes_text(room)} are free; lower the scale, or set hydra.run.dir to a larger disk")

    def _fitting_tile(self, work: Work, source: KeyFrames, free: int) -> str:
        for side in TILE_SIDES_PX:
            plan = self.enhancer(work, tile_height_px=side, tile_width_px=side).plan(source)
            if plan.peak_bytes <= free:
                return f"windows.tile_height_px={side} windows.tile_width_px={side} fits"
        return "no tile fits; lower windows.num_frames or the scale"


def _room(folder: Path) -> int:
    """Bytes that may be taken in ``folder``, those of an earlier attempt there included."""
    taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    above = folder.absolute()
    while not above.exists():
        above = above.parent
    return shutil.disk_usage(above).free + taken


def _longest_shot(work: Work) -> KeyFrames:
    longest = max(work.timeline.shots, key=lambda shot: len(shot.keys))
    return KeyFrames(VideoReader(work.index), longest)


def make_backend(
    name: str, work: Work, config: EnhanceVideo, device: Any, network: Network | None = None, bar: Any = None
) -> Backend:
    """The backend ``name`` for ``work``: generative, classic or bicubic.

    Generative is VEnhancer's ``network`` (progress to ``bar``), or what ``config.keys`` names where there is none.
    """
    reader = VideoReader(work.index)
    if name != "generative":
        return ClassicBackend(reader, *work.size, config.classic, device, blend=name == "bicubic")
    if network is None:
        upscaler = load_upscaler(config.keys, str(device))
        between = make_between(config.between, config.classic, config.windows, device)
        return KeysBackend(reader, work.size, upscaler, _tile(config, upscaler.factor), between)

    def report(state: Any) -> None:
        if bar:
            bar.tell(f"network step {state.step}, window {state.window}: {state.done} of {state.total} windows")

    enhancer = network.enhancer(work)
    return GenerativeBackend(
        reader, enhancer, config, work.size, network_factor(work, config), device, work.folder / "network", report
    )


def _tile(config: EnhanceVideo, factor: int) -> tuple[int, int]:
    """Rows and columns of the input that are enlarged at a time."""
    asked = config.windows.tile_height_px, config.windows.tile_width_px
    rows, columns = (TILE_PX if side is None else max(LEAST_SIDE_PX, side // factor) for side in asked)
    return rows, columns


def network_factor(work: Work, config: EnhanceVideo) -> int:
    """Steps between key frames that the network makes."""
    return work.timeline.factor if config.between == "network" else 1


def enhance_settings(work: Work, config: EnhanceVideo) -> EnhanceSettings:
    """What the network is asked for ``work``."""
    width, height = work.size
    return EnhanceSettings(
        height=height,
        width=width,
        frame_factor=network_factor(work, config),
        scale_condition=config.scale_condition,
        noise_level=config.noise,
        conditioning_scale=config.conditioning_scale,
        prompt=config.prompt or "",
        negative_prompt=config.negative_prompt or "",
        sampling=config.sampling,
        windows=config.windows,
        seed=config.seed,
    )

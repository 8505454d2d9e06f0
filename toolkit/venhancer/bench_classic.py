"""The classic backend against FFmpeg's own filters (minterpolate, then Lanczos), in one process, frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from av.filter import Graph

from toolkit.data.clips import clip_path
from toolkit.data.video import VideoReader
from toolkit.data.video_scan import index_video
from toolkit.runs.bench import Contender, Makers
from toolkit.venhancer.backends import ClassicBackend
from toolkit.venhancer.config import Classic
from toolkit.venhancer.timeline import Timeline, make_timeline

CLIP, NUM_FRAMES, SCALE, FACTOR = "bikes", 12, 2.0, 2
MINTERPOLATE = "mi_mode=mci:mc_mode=aobmc:me_mode=bidir:vsbmc=1"  # the settings that its manual recommends


def makers() -> Makers:
    """Contenders: ours (motion compensation), plain blending, and FFmpeg's minterpolate; each makes the same frames."""
    return {
        "ours": lambda: Contender({"enhance": _ours(blend=False)}),
        "blend": lambda: Contender({"enhance": _ours(blend=True)}),
        "ffmpeg": lambda: Contender({"enhance": lambda: float(sum(1 for _ in ffmpeg_frames(*_scene())))}),
        "ffmpeg_blend": lambda: Contender(
            {"enhance": lambda: float(sum(1 for _ in ffmpeg_frames(*_scene(), settings="mi_mode=blend")))}
        ),
    }


def _scene() -> tuple[VideoReader, Timeline, int, int]:
    """One shot of a real clip, its timeline and the output's size."""
    index = index_video(clip_path(CLIP), duration_s=NUM_FRAMES / 25)
    timeline = make_timeline(index, index.rate * FACTOR)
    return VideoReader(index), timeline, round(index.width * SCALE), round(index.height * SCALE)


def _ours(blend: bool) -> Callable[[], float]:
    reader, timeline, width, height = _scene()

    def run() -> float:
        backend = ClassicBackend(reader, width, height, Classic(), "cpu", blend=blend)
        return float(sum(1 for shot in timeline.shots for _ in backend.frames(shot, 0)))

    return run


def ffmpeg_frames(
    reader: VideoReader, timeline: Timeline, width: int, height: int, settings: str = MINTERPOLATE
) -> Iterator[np.ndarray]:
    """The same clip through FFmpeg's filters as uint8 RGB; where there is no next frame it makes none."""
    filters = f"minterpolate=fps={timeline.rate}:{settings}:scd=none,scale={width}:{height}:flags=lanczos,format=rgb24"
    graph = Graph()
    index = reader.index
    pixels = av.VideoFormat("yuv420p")
    source = graph.add_buffer(width=index.width, height=index.height, format=pixels, time_base=1 / index.rate)
    last = source
    for part in filters.split(","):
        name, _, arguments = part.partition("=")
        step = graph.add(name, arguments)
        last.link_to(step)
        last = step
    sink = graph.add("buffersink")
    last.link_to(sink)
    graph.configure()
    with av.open(str(Path(index.path))) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number == index.num_frames:
                break
            frame.pts, frame.time_base = number, 1 / index.rate
            graph.push(frame)
            yield from _pull(graph)
    graph.push(None)
    yield from _pull(graph)


def _pull(graph: Graph) -> Iterator[np.ndarray]:
    while True:
        try:
            frame = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
        assert isinstance(frame, av.VideoFrame)
        yield frame.to_ndarray(format="rgb24")

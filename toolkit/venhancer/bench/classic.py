"""The classic backend against FFmpeg's own filters (minterpolate, then Lanczos), in one process, frame by frame."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch
from av.filter import Graph

from toolkit.bench import Contender, Makers
from toolkit.data.video.clips import clip_path
from toolkit.data.video.reader import VideoReader, file_url
from toolkit.data.video.scan import index_video
from toolkit.venhancer.clips.backends import ClassicBackend
from toolkit.venhancer.clips.timeline import Timeline, make_timeline
from toolkit.venhancer.config import Classic

SCALE, FACTOR = 2.0, 2
MINTERPOLATE = "mi_mode=mci:mc_mode=aobmc:me_mode=bidir:vsbmc=1"  # the settings that its manual recommends
Scene = tuple[VideoReader, Timeline, int, int]


def makers(clip: str, num_frames: int) -> Makers:
    """Ours (motion compensation), plain blending, and FFmpeg's minterpolate and blend, on the same frames."""

    def ours(blend: bool) -> Contender:
        reader, timeline, width, height = scene(clip, num_frames)
        backend = ClassicBackend(reader, width, height, Classic(), "cpu", blend=blend)
        return Contender({"enhance": lambda: _count(f for shot in timeline.shots for f in backend.frames(shot, 0))})

    def ffmpeg(settings: str) -> Contender:
        prepared = scene(clip, num_frames)
        return Contender({"enhance": lambda: _count(ffmpeg_frames(*prepared, settings))})

    return {
        "ours": lambda: ours(blend=False),
        "blend": lambda: ours(blend=True),
        "ffmpeg": lambda: ffmpeg(MINTERPOLATE),
        "ffmpeg_blend": lambda: ffmpeg("mi_mode=blend"),
    }


def note(clip: str, num_frames: int) -> str:
    """What was done, under the table."""
    reader, _, width, height = scene(clip, num_frames)
    return (
        f"{clip}: {num_frames} frames of {reader.width}x{reader.height} to {width}x{height} at {FACTOR} times the rate"
    )


def scene(clip: str, num_frames: int) -> Scene:
    """The first frames of a clip, their timeline, and the output's size."""
    index = index_video(clip_path(clip), duration_s=num_frames / float(index_video(clip_path(clip), duration_s=1).rate))
    timeline = make_timeline(index, index.rate * FACTOR)
    return VideoReader(index), timeline, round(index.width * SCALE), round(index.height * SCALE)


def _count(frames: Iterator[Any]) -> float:
    return float(sum(1 for _ in frames))


def ffmpeg_frames(
    reader: VideoReader, timeline: Timeline, width: int, height: int, settings: str = MINTERPOLATE
) -> Iterator[tuple[int, np.ndarray]]:
    """(output frame's number, uint8 RGB) of the clip through FFmpeg's filters; at the ends it leaves frames out."""
    filters = f"minterpolate=fps={timeline.rate}:{settings}:scd=none,scale={width}:{height}:flags=lanczos,format=rgb24"
    index = reader.index
    graph: Graph | None = None
    with av.open(file_url(index.path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for number, frame in enumerate(itertools.islice(container.decode(video=0), index.num_frames)):
            graph = graph or _make_graph(frame, 1 / index.rate, filters)
            frame.pts, frame.time_base = number, 1 / index.rate
            graph.push(frame)
            yield from _pull(graph, timeline.rate)
    if graph:
        graph.push(None)
        yield from _pull(graph, timeline.rate)


def _make_graph(frame: av.VideoFrame, time_base: Fraction, filters: str) -> Graph:
    graph = Graph()
    graph.threads = torch.get_num_threads()
    last = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=time_base)
    for part in [*filters.split(","), "buffersink"]:
        name, _, arguments = part.partition("=")
        step = graph.add(name, arguments)
        last.link_to(step)
        last = step
    graph.configure()
    return graph


def _pull(graph: Graph, rate: Fraction) -> Iterator[tuple[int, np.ndarray]]:
    while True:
        try:
            frame = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
        assert isinstance(frame, av.VideoFrame) and frame.pts is not None and frame.time_base
        yield round(frame.pts * frame.time_base * rate), frame.to_ndarray(format="rgb24")

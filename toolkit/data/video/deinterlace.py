"""One full picture of the two fields of an interlaced frame, by FFmpeg's bwdif."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import av

BEFORE = 1  # frames before the first one wanted that the filter looks at


def deinterlaced(frames: Iterable[av.VideoFrame], which: str) -> Iterator[av.VideoFrame]:
    """As many frames as come in; filtered are those that are marked (``which`` "interlaced") or "all".

    Their size and format may change on the way.
    """
    graph: Any = None
    kind: tuple[Any, ...] = ()
    for frame in frames:
        its = (frame.width, frame.height, frame.format.name)
        if graph is None or its != kind:
            yield from _rest(graph)
            graph, kind = _graph(frame, which), its
        graph.vpush(frame)
        yield from _ready(graph)
    yield from _rest(graph)


def _graph(frame: av.VideoFrame, which: str) -> Any:
    graph = av.filter.Graph()
    time_base = frame.time_base or Fraction(1, 1000)
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=time_base)
    nodes = [source, graph.add("bwdif", f"mode=send_frame:parity=auto:deint={which}"), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    return graph


def _rest(graph: Any) -> Iterator[av.VideoFrame]:
    if graph is not None:
        graph.vpush(None)
        yield from _ready(graph)


def _ready(graph: Any) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (BlockingIOError, EOFError):
            return

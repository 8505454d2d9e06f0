"""Small real video files of every kind, made with PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def moving(count: int, width: int, height: int, step: float = 1.5) -> np.ndarray:
    """Frames uint8 [count, height, width, 3]: smooth texture that moves right by ``step`` pixels a frame."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    frames = []
    for index in range(count):
        u = x - step * index
        texture = np.sin(u / 3) + np.cos(y / 4) + np.sin((u + 2 * y) / 7)
        colour = np.stack([texture, 0.8 * texture, texture + y / height], -1)
        frames.append(np.clip(127.5 + 40 * colour, 0, 255).round().astype(np.uint8))
    return np.stack(frames)


def write(
    path: Path,
    frames: np.ndarray,
    *,
    rate: Fraction | int = 12,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    source: str = "rgb24",
    times: list[int] | None = None,
    rotation: float = 0,
    sound: str | None = None,
    options: dict[str, str] | None = None,
    aspect: Fraction | None = None,
    tags: dict[str, int] | None = None,
) -> Path:
    """Write ``frames`` (``source`` says their format) to ``path``; ``times``: pts in ms; ``tags``: the codec's."""
    rate = Fraction(rate)
    with av.open(f"file:{path}", "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        context = stream.codec_context
        for name, value in (tags or {}).items():
            setattr(context, name, value)
        context.width, context.height, context.pix_fmt = frames.shape[2], frames.shape[1], pix_fmt
        context.time_base = Fraction(1, 1000) if times else 1 / rate
        if aspect:
            context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        audio = container.add_stream(sound, rate=48000) if sound else None
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=source)
            frame.pts = times[index] if times else index
            frame.time_base = context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio:
            container.mux(tone(audio, float(len(frames) / rate)))
    return path


def tone(stream, duration_s: float):
    """Packets of a 440 Hz tone."""
    rate = 48000
    samples = (np.sin(np.arange(int(duration_s * rate)) * 2 * np.pi * 440 / rate) * 8000).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts = rate, 0
    resampler = av.AudioResampler(stream.codec_context.format, stream.codec_context.layout, rate)
    packets = []
    fifo = av.AudioFifo()
    for piece in resampler.resample(frame) + resampler.resample(None):
        fifo.write(piece)
    size = stream.codec_context.frame_size or 1024
    while piece := fifo.read(size, partial=True):
        packets += stream.encode(piece)
    return packets + stream.encode(None)


def read(path: Path) -> np.ndarray:
    """All frames as FFmpeg's own RGB conversion gives them."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def sound_bytes(path: Path) -> bytes:
    """The packets of the first sound stream."""
    with av.open(str(path)) as container:
        return b"".join(bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size)


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    """In dB, of uint8 values."""
    error = np.mean((x.astype(float) - y.astype(float)) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)

"""The generative backend behind ``toolkit enhance-video``: one shot of a video in, finished frames out, in order.

The caller (job.py) owns files, sound, frame rates and cuts; this side owns networks, latents, windows and tiles.
Memory is flat in clip length, and nearly so in frame size: what is in flight lies in ``work_dir``, which is also what a
killed job resumes from.

    enhancer = Enhancer(load_pipeline("small"), settings)
    plan = enhancer.plan(source)                       # sizes, counts, memory and disk; computes nothing
    for chunk in enhancer.enhance(source, work_dir):   # Chunk(start, frames): frames start, start + 1, ... are final
        store(chunk)                                   # asking for the next chunk says that this one is stored

Called again on the same ``work_dir`` (same source and settings), it goes on after the last finished window and first
repeats the chunk that was not yet acknowledged, if any.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import JobError
from toolkit.schema import check
from toolkit.venhancer.engine.in_flight import Flight
from toolkit.venhancer.engine.layout import Layout, plan_layout, summarise
from toolkit.venhancer.engine.settings import Chunk, EnhanceSettings, FrameSource, Plan, Progress
from toolkit.venhancer.engine.transcode import Transcoder
from toolkit.venhancer.engine.window_steps import WindowSteps
from toolkit.venhancer.engine.windows import schedule_pairs
from toolkit.venhancer.model.conditioning import true_scale
from toolkit.venhancer.model.parts import EnhanceParts


class Enhancer:
    """A pipeline with settings; see the module's docstring.

    Raises:
        UserError: a setting out of range.
    """

    def __init__(self, pipeline: EnhanceParts, settings: EnhanceSettings) -> None:
        check(settings)
        self.pipeline, self.settings = pipeline, settings

    def plan(self, source: FrameSource) -> Plan:
        """What it will do and take. Raises UserError for settings that do not fit the model or the source."""
        return summarise(self.pipeline, self.settings, plan_layout(self.pipeline, self.settings, source))

    def enhance(
        self, source: FrameSource, work_dir: Path, progress: Callable[[Progress], None] | None = None
    ) -> Iterator[Chunk]:
        """Finished frames, in order; see the module's docstring.

        Args:
            source: one shot. work_dir: an empty folder, or one that a killed enhancement left.
            progress: called after every window of every step.

        Raises:
            UserError: settings that do not fit, or a work_dir of another enhancement.
            JobError: the source ends early, or latents stop being finite.
        """
        layout = plan_layout(self.pipeline, self.settings, source)
        flight = Flight(Path(work_dir), layout.geometry, self._fingerprint(source))
        yield from _Run(self.pipeline, self.settings, layout, flight, source).chunks(progress)

    def _fingerprint(self, source: FrameSource) -> str:
        """Changes with whatever changes the result: settings, weights, the source's shape."""
        shape = [source.num_frames, source.height, source.width]
        text = json.dumps([self.settings.computing(), shape, self._weights], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @cached_property
    def _weights(self) -> str:
        """A digest of every weight of every part, taken once: a second or so for each GB."""
        found = hashlib.blake2b(digest_size=16)
        parts = (self.pipeline.denoiser, self.pipeline.vae, self.pipeline.text_encoder)
        for part in parts:
            for name, tensor in {} if part is None else part.state_dict().items():
                found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return found.hexdigest()


class _Run:
    """One enhancement in progress."""

    def __init__(
        self,
        pipeline: EnhanceParts,
        settings: EnhanceSettings,
        layout: Layout,
        flight: Flight,
        source: FrameSource,
    ) -> None:
        self.pipeline, self.settings, self.layout, self.flight = pipeline, settings, layout, flight
        self.source, self.schedule = source, pipeline.scheduler
        size = (settings.height, settings.width)
        scale = true_scale((source.height, source.width), size) if pipeline.diffuses_residuals else None
        self.transcoder = Transcoder(
            pipeline.codec, flight, pipeline.fill, size, layout.tile, scale, pipeline.compute_device
        )
        self.steps = WindowSteps(pipeline, settings, layout, flight)
        self._reader: Iterator[Any] | None = None

    @torch.no_grad()
    def chunks(self, progress: Callable[[Progress], None] | None) -> Iterator[Chunk]:
        layout, flight = self.layout, self.flight
        pairs = list(schedule_pairs(len(layout.evaluations), len(layout.windows)))
        last = len(layout.evaluations) - 1
        finished = next((window for step, window in reversed(pairs[: flight.done]) if step == last), None)
        if finished is not None:
            yield from self._deliver(layout.windows.settled(finished)[1])
        for number, (step, window) in enumerate(pairs):
            if number < flight.done:
                continue
            if step == 0:
                self._begin(window)
            self.steps.run(step, window)
            flight.done = number + 1
            flight.save()
            if progress is not None:
                progress(Progress(flight.done, len(pairs), step, window))
            if step == last:
                yield from self._deliver(layout.windows.settled(window)[1])

    # -- into latents

    def _begin(self, window: int) -> None:
        """Read and encode the frames that come in with a window: hints of key frames, start latents of all."""
        k = self.settings.frame_factor
        start, end = self.layout.windows.spans[window]
        first = self.layout.windows.spans[window - 1][1] if window else start
        for key in range(self.flight.keys_read, (end - 1) // k + 1):
            self.flight.keep_key_frame(key, self._next_frame(key))
        for frame in range(first, end):
            for rows in self.flight.bands():
                if frame % k == 0:
                    self.flight.hints.write([frame // k], self._hint(frame // k, rows), rows)
                self.flight.latents[0].write([frame], self._start(frame, rows), rows)
        self.flight.keys_read = (end - 1) // k + 1

    def _next_frame(self, key: int) -> Any:
        if self._reader is None:
            self._reader = iter(self.source.frames(key))
        try:
            return next(self._reader)
        except StopIteration:
            raise JobError(f"source: ended after {key} of {self.source.num_frames} frames") from None

    def _hint(self, key: int, rows: tuple[int, int]) -> Tensor:
        """Latents of a key frame, noised to ``noise_level`` (section 3.3); level 0 leaves them as they are."""
        latents = self.transcoder.hint(key, rows, self._all_columns)
        level = self.settings.noise_level
        if not level:
            return latents
        return self.schedule.add_noise(latents, self._noise("hint", key, rows), level - 1)

    def _start(self, frame: int, rows: tuple[int, int]) -> Tensor:
        """The filled-in frame at the first step: SDEdit's start (Meng et al. 2022), as the released code does it."""
        first = self.layout.evaluations[0]
        noise = first.sigma * self._noise("start", frame, rows)
        if self.pipeline.diffuses_residuals:  # the fill's own residual is zero
            return noise
        return first.alpha * self.transcoder.fill_latents(frame, rows, self._all_columns) + noise

    def _noise(self, purpose: str, frame: int, rows: tuple[int, int]) -> Tensor:
        return self.flight.noise(self.settings.seed, purpose, frame, rows)

    @property
    def _all_columns(self) -> tuple[int, int]:
        return 0, self.layout.geometry.columns

    # -- out of latents

    def _deliver(self, final: int) -> Iterator[Chunk]:
        """Decode and hand out what can be, a chunk at a time; a chunk counts when the next one is asked for.

        final: frames, from the first, whose latents are finished.
        """
        whole, flight = self.layout.num_frames, self.flight
        ready = final if final == whole else max(0, final - self.pipeline.codec.context)
        latents = flight.latents[len(self.layout.evaluations) % 2]
        size = max(1, self.settings.chunk_mib * 2**20 // (3 * self.settings.height * self.settings.width))
        while flight.delivered < ready:
            frames = range(flight.delivered, min(flight.delivered + size, ready))
            yield Chunk(frames.start, self.transcoder.decode(frames, whole, latents))
            flight.delivered = frames.stop
            flight.save()

"""Diffusers pipelines as a source: a folder of ``save_pretrained`` or a hub id."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.icg.config import SampleICG
from toolkit.icg.guiders import random_text as text
from toolkit.icg.guiders.in_pipelines import guided
from toolkit.icg.guiders.pipeline_loop import EXPERTS, networks_of, own_guidance_off
from toolkit.icg.labels_and_prompts import draw_labels, read_labels, read_prompts
from toolkit.icg.methods import ICG, PAG, Guidance
from toolkit.icg.sources import pipeline_files as files
from toolkit.icg.sources.base import Request, Source, counted_rows
from toolkit.runs.seeds import derive

PIXELS_AT_ONCE = 2**21
MOST_FRAMES = 8  # of a film that are shown


class PipelineSource(Source):
    """An ordinary diffusers pipeline with its own guidance switched off.

    Args:
        model: folder or hub id. config: steps, labels or prompts; device: where to compute.

    Raises:
        UserError: an unknown family, files that are missing or unsafe, labels or prompts that do not fit.
    """

    bank_rows = 64

    def __init__(self, model: str, config: SampleICG, device: torch.device) -> None:
        self.name, self.config, self.device = model, config, device
        self.pipe = files.load_pipeline(model, config.precision).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        self.kind = type(self.pipe).__name__
        files.check_settings(self.kind, config)
        self.condition, self.off = files.condition_of(self.kind), own_guidance_off(self.pipe)
        for name in self.off.keys() & (config.call or {}).keys():
            raise files.set_by_us(name)
        self.networks = networks_of(self.pipe, None)
        self.call = files.read_call(config.call, config.size_px) | self._size()
        self.banks = {}
        self.nulls: dict[tuple[str, ...], dict[str, Tensor]] = {}  # of the last prompts
        films = {"num_frames", "video_length"} & files.call_of(self.kind).keys()
        self.shape = None if films else image_shape(self.pipe, self.networks[0], config.size_px)
        self.batch_size = max(1, PIXELS_AT_ONCE // (self.shape[1] * self.shape[2])) if self.shape else 1
        if config.scheduler is not None:
            files.change_scheduler(self.pipe, config.scheduler)
        self._conditions()
        if config.compile:
            self._compile()

    def _size(self) -> dict[str, int]:
        size_px = self.config.size_px
        return {} if size_px is None else {"height": size_px, "width": size_px}

    def _compile(self) -> None:
        names = [name for name in (*EXPERTS, "unet") if getattr(self.pipe, name, None) in self.networks]
        for name in names:
            setattr(self.pipe, name, torch.compile(getattr(self.pipe, name)))
        self.networks = [getattr(self.pipe, name) for name in names]

    def _conditions(self) -> None:
        """Labels or prompts, and the names of classes. Raises UserError."""
        config = self.config
        if self.condition == "text":
            self.prompts = read_prompts(config.prompts)
        if self.condition == "class":
            self.num_classes = int(self.networks[0].config["num_embeds_ada_norm"])  # type: ignore[index]
            names = dict(getattr(self.pipe, "labels", None) or {})
            by_number = {number: name for name, number in reversed(names.items())}
            if names:
                self.class_names = tuple(by_number.get(number, str(number)) for number in range(self.num_classes))
            num = max(config.sampling.num_samples, config.measure.num_samples or 0)
            if config.labels is None:
                self.labels = draw_labels(config.seed, num, self.num_classes)
            else:
                self.labels = read_labels(config.labels, self.num_classes, names)

    def refuse(self, guidance: Guidance) -> None:
        files.refuse(self.kind, guidance)
        for network in self.networks:
            guidance.check_network(network)
        if guidance.perturbs and self.config.compile:
            raise UserError(f"compile=true: {guidance.label} needs the network itself, not its compiled form")

    @torch.no_grad()
    def prepare(self, guidance: Guidance) -> None:
        """Encode random prompts for ICG, once for each number of them."""
        if self.condition == "none":
            return
        if isinstance(guidance, ICG) and self.prompts is not None and guidance.from_bank:
            rows = guidance.bank_rows or self.bank_rows
            if rows not in self.banks:
                self.banks[rows] = text.random_token_bank(
                    self.pipe, rows, derive(self.config.seed, "bank"), **self.call
                )

    def _null(self, arguments: dict[str, Any]) -> dict[str, Tensor | int]:
        """The unconditional branch, as the pipeline's own guidance has it beside these prompts."""
        if self.condition == "class":
            return {"class_labels": self.num_classes}
        prompts = tuple(arguments["prompt"])
        if prompts not in self.nulls:
            self.nulls = {prompts: text.null_inputs(self.pipe, prompts, self.config.negative_prompt, **self.call)}
        return dict(self.nulls[prompts])

    @torch.no_grad()
    def draw(
        self, guidance: Guidance, scale: float, request: Request, num_steps: int | None = None
    ) -> tuple[Tensor, float]:
        arguments = self._arguments(request, num_steps or self.config.sampling.num_steps)
        null = self._null(arguments) if guidance.needs_null else None
        torch.manual_seed(request.one_seed("scheduler"))  # some schedulers draw from the default generator
        with ExitStack() as stack:
            counters = [stack.enter_context(counted_rows(network)) for network in self.networks]
            if guidance.own_pipeline:
                made = self._with_own_class(guidance, scale, arguments)
            else:
                made = self._with_guider(guidance, scale, request, arguments, null)
        images_BHWC = self._pictures(made)
        self.shape = (images_BHWC.shape[3], *images_BHWC.shape[1:3])
        rows = sum(counter.rows for counter in counters)
        return images_BHWC.float().permute(0, 3, 1, 2) * 2 - 1, rows / len(request.numbers)

    def _pictures(self, output: Any) -> Tensor:
        """float (B, H, W, C) in [0, 1]; frames of a film side by side. Raises UserError for other outputs."""
        made = getattr(output, "images", None)
        made = getattr(output, "frames", None) if made is None else made
        if made is None:
            raise UserError(f"model={self.name}: {self.kind} makes no pictures ({', '.join(output)})")
        pictures = torch.as_tensor(np.asarray(made))
        if pictures.dim() == 5:  # (B, frames, H, W, C)
            shown = np.linspace(0, pictures.shape[1] - 1, min(MOST_FRAMES, pictures.shape[1])).round()
            pictures = pictures[:, shown.astype(int)].transpose(1, 2).flatten(2, 3)
        if pictures.dim() != 4 or pictures.shape[3] not in (1, 3):
            raise UserError(f"model={self.name}: {self.kind} makes no pictures (shape {tuple(pictures.shape)})")
        return pictures

    def _with_guider(
        self,
        guidance: Guidance,
        scale: float,
        request: Request,
        arguments: dict[str, Any],
        null: dict[str, Tensor | int] | None,
    ) -> Any:
        if not guidance.guides:
            context: Any = nullcontext()
        else:
            guider = guidance.make(scale, request.seeds("guidance"))
            if (bank := self.bank_for(guidance)) is not None:
                guider.set_condition_bank(bank)  # type: ignore[attr-defined]
            context = guided(self.pipe, guider, null=null, batched=self.config.batched)
        with context:
            return self.pipe(**arguments, **self.off)

    def _with_own_class(self, guidance: Guidance, scale: float, arguments: dict[str, Any]) -> Any:
        import diffusers

        cls = getattr(diffusers, files.PEERS[guidance.own_pipeline][self.kind])
        options: dict[str, Any] = {}
        if isinstance(guidance, PAG) and guidance.layers is not None:
            options["pag_applied_layers"] = guidance.layers
        if "requires_safety_checker" in self.pipe.config:
            options["requires_safety_checker"] = False
        network: Any = self.networks[0]
        processors = getattr(network, "attn_processors", None)
        pipe = cls(**self.pipe.components, **options)
        pipe.set_progress_bar_config(disable=True)
        try:
            return pipe(**arguments, **self.off, **{f"{guidance.own_pipeline}_scale": scale - 1})
        finally:
            if processors is not None:
                network.set_attn_processor(dict(processors))

    def _arguments(self, request: Request, num_steps: int) -> dict[str, Any]:
        num = len(request.numbers)
        found: dict[str, Any] = self.call | {
            "generator": request.generators("noise"),
            "num_inference_steps": num_steps,
            "output_type": "np",
        }
        if self.labels is not None:
            return found | {"class_labels": [self.label_of(number) for number in request.numbers]}
        if self.prompts is None:
            return found | {"batch_size": num}
        return found | {"prompt": [self.prompts[number % len(self.prompts)] for number in request.numbers]}


def image_shape(pipe: Any, network: Any, size_px: int | None) -> tuple[int, int, int] | None:
    """(C, H, W) of what the pipeline makes; None where it does not say."""
    decoder = getattr(pipe, "vae", None) or getattr(pipe, "vqvae", None)
    if decoder is None:
        channels, factor = int(network.config["out_channels"]), 1
    else:
        blocks = len(decoder.config.get("block_out_channels", (0,)))
        factor = getattr(pipe, "vae_scale_factor", 2 ** (blocks - 1))
        channels = int(decoder.config.get("out_channels", 3))
    size = size_px or getattr(pipe, "default_sample_size", None) or network.config.get("sample_size")
    if not isinstance(size, int):
        return None
    side = size if size_px else size * factor
    return channels, side, side

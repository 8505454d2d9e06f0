"""Diffusers pipelines as a source: a folder of ``save_pretrained`` or a hub id."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.icg.config import SampleICG
from toolkit.icg.guiders import random_text as text
from toolkit.icg.guiders.in_pipelines import guided
from toolkit.icg.guiders.time_embeddings import find_time_embeddings
from toolkit.icg.labels_and_prompts import draw_labels, read_labels, read_prompts
from toolkit.icg.methods import ICG, PAG, AutoGuidance, Guidance, ICGAndTSG
from toolkit.icg.sources.base import Request, Source, counted_rows
from toolkit.runs.seeds import derive
from toolkit.zoo.loading import hub_answers

BANK_ROWS = 64


@dataclass(frozen=True)
class Family:
    """What a pipeline class is conditioned on, and how its own guidance is switched off.

    null: the network's arguments that the unconditional branch replaces. pag, sag: the classes of diffusers that add
    these methods.
    """

    condition: str
    off: Mapping[str, float] = field(default_factory=dict)
    null: tuple[str, ...] = ()
    pag: str = ""
    sag: str = ""


_OFF = {"guidance_scale": 1.0}
FAMILIES = {
    "DiTPipeline": Family("class", _OFF, ("class_labels",)),
    "StableDiffusionPipeline": Family(
        "text", _OFF, ("encoder_hidden_states",), "StableDiffusionPAGPipeline", "StableDiffusionSAGPipeline"
    ),
    "StableDiffusionXLPipeline": Family(
        "text", _OFF, ("encoder_hidden_states", "text_embeds"), "StableDiffusionXLPAGPipeline"
    ),
    "StableDiffusion3Pipeline": Family(
        "text", _OFF, ("encoder_hidden_states", "pooled_projections"), "StableDiffusion3PAGPipeline"
    ),
    "FluxPipeline": Family("text", {"true_cfg_scale": 1.0}, ("encoder_hidden_states", "pooled_projections")),
    "SanaPipeline": Family("text", _OFF, ("encoder_hidden_states", "encoder_attention_mask"), "SanaPAGPipeline"),
    "DDPMPipeline": Family("none"),
    "DDIMPipeline": Family("none"),
    "LDMPipeline": Family("none"),
}


def find_index(model: str) -> dict[str, Any] | None:
    """The model_index.json of a diffusers pipeline, None for another kind of model.

    Raises UserError where nothing is there, the index is damaged, or the pipeline's class is not in FAMILIES.
    """
    folder = Path(model).expanduser()
    if folder.exists():
        path = folder / "model_index.json"
        return read_index(path) if path.is_file() else None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise UserError(f"model={model}: no such folder (a run of ours, a diffusers folder, or a hub id)")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    reachable = hub_answers()
    try:
        return read_index(Path(hf_hub_download(model, "model_index.json", local_files_only=not reachable)))
    except LocalEntryNotFoundError:
        why = "the hub did not answer" if reachable else "it is not in the cache, and the hub cannot be reached"
        raise UserError(f"model={model}: no such folder; as a hub id: {why}") from None
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, ValueError) as error:
        raise UserError(f"model={model}: no such folder; as a hub id: {str(error).strip().splitlines()[0]}") from None


def read_index(path: Path) -> dict[str, Any]:
    """model_index.json, checked. Raises UserError where it is damaged or names an unknown class."""
    try:
        index = json.loads(path.read_text())
    except (ValueError, OSError):
        index = None
    if not isinstance(index, dict) or "_class_name" not in index:
        raise UserError(f"{path}: not the index of a diffusers pipeline")
    if index["_class_name"] not in FAMILIES:
        raise UserError(f"{path}: {index['_class_name']} is not known here; these are: {', '.join(FAMILIES)}")
    return index


def refuse(kind: str, guidance: Guidance) -> None:
    """Raises UserError where pipelines of class ``kind`` cannot be guided so; reads no weights."""
    family, method = FAMILIES[kind], guidance.method
    if family.condition == "none" and guidance.on_condition:
        raise UserError(f"guidance={method}: {kind} is unconditional and has no condition to guide on; take tsg")
    if guidance.own_pipeline and not getattr(family, guidance.own_pipeline):
        can = ", ".join(name for name, one in FAMILIES.items() if getattr(one, guidance.own_pipeline))
        raise UserError(f"guidance={method}: diffusers has it for {can}; this is {kind}")
    if isinstance(guidance, AutoGuidance):
        raise UserError("guidance=autoguidance: works on models of ours, with a worse one as guidance.weak")


class PipelineSource(Source):
    """An ordinary diffusers pipeline with its own guidance switched off.

    Args:
        model: folder or hub id. config: steps, labels or prompts; device: where to compute.

    Raises:
        UserError: an unknown family, files that are missing or unsafe, labels or prompts that do not fit.
    """

    def __init__(self, model: str, config: SampleICG, device: torch.device) -> None:
        self.name, self.config, self.device = model, config, device
        self.pipe = load_pipeline(model, config.precision).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        self.family = FAMILIES[type(self.pipe).__name__]
        self.network_name = "transformer" if getattr(self.pipe, "transformer", None) is not None else "unet"
        self.network: Any = getattr(self.pipe, self.network_name)
        self.bank: dict[str, Tensor] | None = None
        self.null: dict[str, Tensor | int] | None = None
        self.shape = image_shape(self.pipe, self.network, config.size_px)
        self._conditions()
        if config.size_px is not None and self.family.condition != "text":
            raise UserError(f"size_px={config.size_px}: {type(self.pipe).__name__} has one size")
        if config.compile:
            self.network = torch.compile(self.network)
            setattr(self.pipe, self.network_name, self.network)

    def _conditions(self) -> None:
        """Labels or prompts, and the names of classes. Raises UserError."""
        config, kind = self.config, type(self.pipe).__name__
        if self.family.condition != "text" and config.prompts is not None:
            raise UserError(f"prompts: {kind} takes no text ({self._takes()})")
        if self.family.condition != "class" and config.labels is not None:
            raise UserError(f"labels: {kind} has no classes ({self._takes()})")
        if self.family.condition == "text":
            self.prompts = read_prompts(config.prompts)
        if self.family.condition == "class":
            self.num_classes = int(self.network.config["num_embeds_ada_norm"])
            names = dict(getattr(self.pipe, "labels", None) or {})
            by_number = {number: name for name, number in reversed(names.items())}
            if names:
                self.class_names = tuple(by_number.get(number, str(number)) for number in range(self.num_classes))
            num = max(config.sampling.num_samples, config.measure.num_samples or 0)
            if config.labels is None:
                self.labels = draw_labels(config.seed, num, self.num_classes)
            else:
                self.labels = read_labels(config.labels, self.num_classes, names)

    def _takes(self) -> str:
        return {"class": "give labels=", "text": "give prompts=", "none": "it is unconditional"}[self.family.condition]

    def refuse(self, guidance: Guidance) -> None:
        refuse(type(self.pipe).__name__, guidance)
        if (tsg := guidance.on_time) is not None:
            find_time_embeddings(self.network, tsg.time_embedding_modules, tsg.max_layers)
            if self.config.compile:
                raise UserError("compile=true: time-step guidance needs the network itself, not its compiled form")

    @torch.no_grad()
    def prepare(self, guidance: Guidance) -> None:
        """Encode random prompts for ICG, and the empty one for CFG, once."""
        if self.family.condition == "none":
            return
        if isinstance(guidance, ICG) and self.prompts is not None and guidance.from_bank:
            self.bank = self.bank or text.random_token_bank(
                self.pipe, guidance.bank_rows or BANK_ROWS, derive(self.config.seed, "bank")
            )
        if guidance.needs_null and self.null is None:
            self.null = self._null()

    def _null(self) -> dict[str, Tensor | int]:
        """The unconditional branch, as the pipeline's own guidance has it."""
        if self.family.condition == "class":
            return {"class_labels": self.num_classes}
        embeds = text.encode_prompts(self.pipe, [""])
        if self.pipe.config.get("force_zeros_for_empty_prompt"):
            embeds = {name: torch.zeros_like(value) for name, value in embeds.items()}
        found: dict[str, Tensor | int] = dict(zip(self.family.null, embeds.values(), strict=False))
        if "encoder_attention_mask" in self.family.null:
            found["encoder_attention_mask"] = text.encode_mask(self.pipe, "")
        return found

    @torch.no_grad()
    def draw(
        self, guidance: Guidance, scale: float, request: Request, num_steps: int | None = None
    ) -> tuple[Tensor, float]:
        torch.manual_seed(request.one_seed("scheduler"))  # some schedulers draw from the default generator
        arguments = self._arguments(request, num_steps or self.config.sampling.num_steps)
        with counted_rows(self.network) as counter:
            if guidance.own_pipeline:
                images = self._with_own_class(guidance, scale, arguments)
            else:
                images = self._with_guider(guidance, scale, request, arguments)
        images_BHWC = torch.as_tensor(images)
        self.shape = (images_BHWC.shape[3], *images_BHWC.shape[1:3])
        return images_BHWC.float().permute(0, 3, 1, 2) * 2 - 1, counter.rows / len(request.numbers)

    def _with_guider(self, guidance: Guidance, scale: float, request: Request, arguments: dict[str, Any]) -> Any:
        if not guidance.guides:
            context: Any = nullcontext()
        else:
            guider = guidance.make(scale, request.seeds("guidance"))
            if self.bank is not None and isinstance(guidance, ICG) and guidance.from_bank:
                guider.set_condition_bank(self._rows_for(guidance))  # type: ignore[attr-defined]
            null = self.null if guidance.needs_null else None
            context = guided(self.pipe, guider, null=null, denoiser=self.network_name, batched=self.config.batched)
        with context:
            return self.pipe(**arguments, **self.family.off).images

    def _rows_for(self, guidance: ICG | ICGAndTSG) -> dict[str, Tensor]:
        assert self.bank is not None
        return {name: rows for name, rows in self.bank.items() if guidance.fields is None or name in guidance.fields}

    def _with_own_class(self, guidance: Guidance, scale: float, arguments: dict[str, Any]) -> Any:
        import diffusers

        cls = getattr(diffusers, getattr(self.family, guidance.own_pipeline))
        options: dict[str, Any] = {}
        if isinstance(guidance, PAG) and guidance.layers is not None:
            options["pag_applied_layers"] = guidance.layers
        if "requires_safety_checker" in self.pipe.config:
            options["requires_safety_checker"] = False
        processors = getattr(self.network, "attn_processors", None)
        pipe = cls(**self.pipe.components, **options)
        pipe.set_progress_bar_config(disable=True)
        try:
            return pipe(**arguments, **self.family.off, **{f"{guidance.own_pipeline}_scale": scale - 1}).images
        finally:
            if processors is not None:
                self.network.set_attn_processor(dict(processors))

    def _arguments(self, request: Request, num_steps: int) -> dict[str, Any]:
        num = len(request.numbers)
        found: dict[str, Any] = {
            "generator": request.generators("noise"),
            "num_inference_steps": num_steps,
            "output_type": "np",
        }
        if self.labels is not None:
            return found | {"class_labels": [self.label_of(number) for number in request.numbers]}
        if self.prompts is None:
            return found | {"batch_size": num}
        found["prompt"] = [self.prompts[number % len(self.prompts)] for number in request.numbers]
        if self.config.size_px is not None:
            found |= {"height": self.config.size_px, "width": self.config.size_px}
        return found


def load_pipeline(model: str, precision: str = "fp32") -> Any:
    """The pipeline with its weights, never unpickled. Raises UserError where they are missing or do not fit."""
    import transformers
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    folder = Path(model).expanduser()
    offline = folder.exists() or not hub_answers()
    options: dict[str, Any] = {"torch_dtype": torch.bfloat16} if precision == "bf16" else {}
    source = str(folder) if folder.exists() else model
    try:
        return DiffusionPipeline.from_pretrained(source, use_safetensors=True, local_files_only=offline, **options)
    except (OSError, ValueError, TypeError, KeyError, ImportError, RuntimeError) as error:
        raise UserError(f"model={model}: cannot be loaded: {' '.join(str(error).split())[:300]}") from error


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

"""Which pipelines of diffusers ``sample-icg`` can sample, told by their classes, and how one is loaded."""

from __future__ import annotations

import inspect
import json
import logging
import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from toolkit import zoo
from toolkit.data.images.decoding import flattened, opened
from toolkit.errors import UserError, brief, did_you_mean, first_line
from toolkit.icg.config import OF_OURS, SampleICG
from toolkit.icg.guiders.pipeline_loop import NETWORKS
from toolkit.icg.methods import AutoGuidance, Guidance
from toolkit.icg.sources.base import refuse_control
from toolkit.plain_files import named_path
from toolkit.runs.device import dtype_of
from toolkit.zoo.loading import hub_answers, refuse_other_libraries
from toolkit.zoo.sizes import no_larger_than, sizes_in

# method -> the class of a pipeline -> the class of diffusers that adds the method
PEERS = {
    "pag": {
        "StableDiffusionPipeline": "StableDiffusionPAGPipeline",
        "StableDiffusionXLPipeline": "StableDiffusionXLPAGPipeline",
        "StableDiffusion3Pipeline": "StableDiffusion3PAGPipeline",
        "SanaPipeline": "SanaPAGPipeline",
    },
    "sag": {"StableDiffusionPipeline": "StableDiffusionSAGPipeline"},
}
WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(\.(?P<variant>\w+?))?(-\d{5}-of-\d{5})?\.safetensors")
log = logging.getLogger(__name__)
# Arguments of a pipeline's call that have keys of their own.
OURS = {"prompt", "class_labels", "batch_size", "generator", "num_inference_steps", "output_type", "return_dict"}
OURS |= {"negative_prompt"}


def find_index(model: str) -> dict[str, Any] | None:
    """The model_index.json of a diffusers pipeline, None for another kind of model.

    Raises UserError where nothing is there, the index is damaged, or the pipeline cannot be sampled.
    """
    folder = named_path(zoo.local(model))
    if folder.exists():
        path = folder / "model_index.json"
        index = read_index(path) if path.is_file() else None
        _refuse_incomplete(folder, index)
        return index
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
        raise UserError(f"model={model}: no such folder; as a hub id: {first_line(error)}") from None


def _refuse_incomplete(path: Path, index: dict[str, Any] | None) -> None:
    """Raises UserError for one file of weights, and for a pipeline that lacks its index or a folder that it names."""
    if path.is_file():
        raise UserError(
            f"model={path}: is one file; give a folder, as diffusers' from_single_file() and save_pretrained() make it"
        )
    if index is None and (path / "scheduler" / "scheduler_config.json").is_file():
        raise UserError(f"model={path}: no model_index.json there, the index of a pipeline of diffusers; copy it too")
    for name, part in (index or {}).items():
        if isinstance(part, list) and part and part[0] is not None and not (path / name).is_dir():
            raise UserError(f"{path / 'model_index.json'}: names {name}, a folder that is not there; copy it too")


def read_index(path: Path) -> dict[str, Any]:
    """model_index.json, checked. Raises UserError where it is damaged or names a class that cannot be sampled."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        index = None
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise UserError(f"{path}: not the index of a diffusers pipeline")
    try:
        condition_of(index["_class_name"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    refuse_other_libraries(path, index)
    return index


@cache
def call_of(kind: str) -> dict[str, inspect.Parameter]:
    """The arguments of a pipeline's call, by name. Raises UserError for a class that diffusers does not have."""
    import diffusers

    cls = getattr(diffusers, kind, None) if re.fullmatch(r"[A-Z]\w*Pipeline", kind) else None
    if not (isinstance(cls, type) and issubclass(cls, diffusers.DiffusionPipeline)):
        raise UserError(f"{kind} is not a pipeline of diffusers {diffusers.__version__}")
    taken = dict(inspect.signature(cls.__call__).parameters)
    parts = inspect.signature(cls).parameters
    if "scheduler" not in parts or not any(name in parts for name in NETWORKS):
        raise UserError(f"{kind} has no scheduler with a UNet or a transformer, which is what can be guided")
    return taken


def condition_of(kind: str) -> str:
    """What a pipeline class is conditioned on: ``class``, ``text`` or ``none``. Raises UserError where by neither."""
    taken = call_of(kind)
    needed = {name for name, one in taken.items() if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD}
    unknown = {one for one in needed - {"self", "prompt", "class_labels"} if "image" not in one or "embeds" in one}
    if unknown:
        raise UserError(f"{kind} needs {', '.join(sorted(unknown))}, which a command line cannot give")
    for name, condition in (("class_labels", "class"), ("prompt", "text"), ("batch_size", "none")):
        if name in taken:
            return condition
    raise UserError(f"{kind} takes neither prompts nor classes nor a number of samples")


def refuse(kind: str, guidance: Guidance) -> None:
    """Raises UserError where pipelines of class ``kind`` cannot be guided so; reads no weights."""
    method = guidance.method
    if condition_of(kind) == "none" and guidance.on_condition:
        raise UserError(f"guidance={method}: {kind} is unconditional and has no condition to guide on; take tsg")
    if guidance.own_pipeline and kind not in PEERS[guidance.own_pipeline]:
        can = ", ".join(PEERS[guidance.own_pipeline])
        raise UserError(f"guidance={method}: diffusers has it for {can}; this is {kind}")
    if "ControlNet" not in kind:
        refuse_control(guidance, kind)
    if isinstance(guidance, AutoGuidance):
        raise UserError("guidance=autoguidance: works on models of ours, with a worse one as guidance.weak")


def check_settings(kind: str, config: SampleICG) -> None:
    """Raises UserError for a key of the config that pipelines of class ``kind`` have no use for; reads no weights."""
    condition, taken = condition_of(kind), call_of(kind)
    does = {"class": "give labels=", "text": "give prompts=", "none": "it is unconditional"}[condition]
    if condition != "text":
        for key in ("prompts", "negative_prompt"):
            if getattr(config, key) is not None:
                raise UserError(f"{key}: {kind} takes no text ({does})")
    if condition != "class" and config.labels is not None:
        raise UserError(f"labels: {kind} has no classes ({does})")
    for key in OF_OURS:
        if getattr(config, key) is not None:
            raise UserError(f"{key}: is of networks of ours; {kind} has parts of its own")
    if config.size_px is not None and not {"height", "width"} <= taken.keys():
        raise UserError(f"size_px={config.size_px}: {kind} has one size")
    for name in config.call or {}:
        if name in OURS:
            raise set_by_us(name)
        if name not in taken:
            raise UserError(f"call.{name}: {kind} takes no such argument; {did_you_mean(name, taken)}".rstrip("; "))
    lacking = [name for name, one in taken.items() if "image" in name and one.default is one.empty]
    if missing := [name for name in lacking if name not in (config.call or {})]:
        raise UserError(f"call: {kind} needs a picture, call={{{missing[0]}: FILE}}")


def set_by_us(name: str) -> UserError:
    """What ``call`` may not hold."""
    return UserError(f"call.{name}: is set by the command; see prompts, labels, negative_prompt, sampling, guidance")


def load_pipeline(model: str, precision: str = "fp32") -> Any:
    """The pipeline with its weights in ``precision``, never unpickled. A folder whose weights are all of a variant
    (``save_pretrained(variant="fp16")``) is read as that. Raises UserError where weights are missing or do not fit."""
    import transformers
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as talk

    talk.disable_progress_bar()
    talk.set_verbosity(logging.CRITICAL)  # what fails is said once, by us
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    folder = named_path(model)
    offline = folder.exists() or not hub_answers()
    # said for float32 too: text encoders would stay as they are stored
    options: dict[str, Any] = {"torch_dtype": dtype_of(precision), "local_files_only": offline}
    if (folder / "model_index.json").is_file():
        index = read_index(folder / "model_index.json")
        options |= {name: None for name, part in index.items() if part == [None, None]}  # left out, as T5 of SD3 may be
    if variant := _variant(folder):
        options["variant"] = variant
        log.info("model=%s: its weights are those of the variant %s", model, variant)
    source = str(folder) if folder.exists() else model
    try:
        stored = sizes_in(folder.rglob("*.safetensors")) if folder.exists() else []
        with no_larger_than(stored, folder), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch_dtype has a new name, which older ones do not know
            return DiffusionPipeline.from_pretrained(source, use_safetensors=True, **options)
    except UserError:
        raise
    except Exception as error:  # a file of somebody's can fail anywhere in a library
        raise UserError(f"model={model}: cannot be loaded: {brief(error, 300)}") from error


def _variant(folder: Path) -> str | None:
    """The variant, such as fp16, of which a part of the pipeline in ``folder`` has weights, and has no others."""
    for part in sorted(folder.glob("*/")):
        found = [WEIGHTS.fullmatch(path.name) for path in sorted(part.glob("*.safetensors"))]
        variants = [one["variant"] for one in found if one]
        if variants and None not in variants:
            return variants[0]
    return None


def change_scheduler(pipe: Any, name: str) -> None:
    """Sample with another scheduler of diffusers, on the settings of the pipeline's own. Raises UserError."""
    import diffusers

    choices = [one for one in dir(diffusers.schedulers) if one.endswith("Scheduler") and not one.startswith("Flax")]
    if name not in choices:
        raise UserError(f"scheduler={name}: {did_you_mean(name, choices)}no scheduler of diffusers")
    before = type(pipe.scheduler).__name__
    if ("FlowMatch" in name) != ("FlowMatch" in before) and not pipe.scheduler.config.get("use_flow_sigmas"):
        raise UserError(f"scheduler={name}: the model was trained for {before}, a schedule of another kind")
    try:
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"scheduler={name}: {brief(error, 200)}") from error


def read_call(given: dict[str, Any] | None, size_px: int | None) -> dict[str, Any]:
    """``call`` with pictures read: text given for an argument with image in its name is a file. Raises UserError."""
    from PIL import Image

    found = dict(given or {})
    for name, value in found.items():
        if "image" not in name or not isinstance(value, str):
            continue
        try:
            with opened(named_path(value)) as image:
                picture = flattened(image).convert("L" if "mask" in name else "RGB")
        except UserError as error:
            raise UserError(f"call.{name}: {error}") from None
        found[name] = picture if size_px is None else picture.resize((size_px, size_px), Image.Resampling.LANCZOS)
    return found

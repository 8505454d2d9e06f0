"""Five papers on images, video, world models and language models: one command each, and from Python by these names.

    import toolkit

    run = toolkit.run("train-disco", experiment="disco_smoke")
    run.metrics, run.curves["denoiser"]["loss"], run.samples, run.load("encoder")

Importing this costs nothing: every name is loaded on first use. docs/python.md shows them at work.
"""

from typing import TYPE_CHECKING

from toolkit import moved
from toolkit.installation import __version__ as __version__
from toolkit.lazy import lazy

if TYPE_CHECKING:  # what a type checker and an editor see; a test holds it equal to the table below
    from toolkit import data as data
    from toolkit import zoo as zoo
    from toolkit.api import Curve as Curve
    from toolkit.api import Run as Run
    from toolkit.api import compose as compose
    from toolkit.api import open_run as open_run
    from toolkit.api import read_run as read_run
    from toolkit.api import run as run
    from toolkit.disco.artefact import load_parts as load_parts
    from toolkit.disco.sampling import draw_latents as draw_latents
    from toolkit.disco.sampling import draw_samples as draw_samples
    from toolkit.errors import JobError as JobError
    from toolkit.errors import UserError as UserError
    from toolkit.icg.guiders.combined_guidance import CombinedGuidance as CombinedGuidance
    from toolkit.icg.guiders.in_denoisers import guided_denoiser as guided_denoiser
    from toolkit.icg.guiders.in_pipelines import guided as guided
    from toolkit.icg.guiders.independent_condition_guidance import (
        IndependentConditionGuidance as IndependentConditionGuidance,
    )
    from toolkit.icg.guiders.random_text import random_token_bank as random_token_bank
    from toolkit.icg.guiders.time_step_guidance import TimeStepGuidance as TimeStepGuidance
    from toolkit.ivideogpt.control.env import WorldModelEnv as WorldModelEnv
    from toolkit.ivideogpt.control.env import WorldModelVectorEnv as WorldModelVectorEnv
    from toolkit.runs.loop import Loop as Loop
    from toolkit.show.browse import compare_runs as compare_runs
    from toolkit.show.figures import image_grid as image_grid
    from toolkit.stacking.config import Growth as Growth
    from toolkit.stacking.grow_folder import grow_checkpoint as grow_checkpoint
    from toolkit.stacking.stage_advise import advise as advise
    from toolkit.venhancer.engine.enhancer import Enhancer as Enhancer
    from toolkit.venhancer.engine.settings import EnhanceSettings as EnhanceSettings
    from toolkit.venhancer.pipeline import VideoEnhancePipeline as VideoEnhancePipeline
    from toolkit.zoo.edm.noise import SampleNoise as SampleNoise
    from toolkit.zoo.edm.samplers import edm_sigmas as edm_sigmas
    from toolkit.zoo.edm.samplers import heun as heun
    from toolkit.zoo.loading import load as load
    from toolkit.zoo.world.model import WorldModel as WorldModel

_HOMES = {
    "data": "toolkit.data",
    "zoo": "toolkit.zoo",
    "Curve": "toolkit.api",
    "Run": "toolkit.api",
    "compose": "toolkit.api",
    "open_run": "toolkit.api",
    "read_run": "toolkit.api",
    "run": "toolkit.api",
    "load_parts": "toolkit.disco.artefact",
    "draw_latents": "toolkit.disco.sampling",
    "draw_samples": "toolkit.disco.sampling",
    "JobError": "toolkit.errors",
    "UserError": "toolkit.errors",
    "CombinedGuidance": "toolkit.icg.guiders.combined_guidance",
    "guided_denoiser": "toolkit.icg.guiders.in_denoisers",
    "guided": "toolkit.icg.guiders.in_pipelines",
    "IndependentConditionGuidance": "toolkit.icg.guiders.independent_condition_guidance",
    "random_token_bank": "toolkit.icg.guiders.random_text",
    "TimeStepGuidance": "toolkit.icg.guiders.time_step_guidance",
    "WorldModelEnv": "toolkit.ivideogpt.control.env",
    "WorldModelVectorEnv": "toolkit.ivideogpt.control.env",
    "Loop": "toolkit.runs.loop",
    "compare_runs": "toolkit.show.browse",
    "image_grid": "toolkit.show.figures",
    "Growth": "toolkit.stacking.config",
    "grow_checkpoint": "toolkit.stacking.grow_folder",
    "advise": "toolkit.stacking.stage_advise",
    "EnhanceSettings": "toolkit.venhancer.engine.settings",
    "Enhancer": "toolkit.venhancer.engine.enhancer",
    "VideoEnhancePipeline": "toolkit.venhancer.pipeline",
    "SampleNoise": "toolkit.zoo.edm.noise",
    "edm_sigmas": "toolkit.zoo.edm.samplers",
    "heun": "toolkit.zoo.edm.samplers",
    "load": "toolkit.zoo.loading",
    "WorldModel": "toolkit.zoo.world.model",
}
if not TYPE_CHECKING:  # which would take any name for one of ours
    __getattr__, __dir__ = lazy(__name__, _HOMES)
moved.install()

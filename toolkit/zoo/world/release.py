"""Folders of iVideoGPT: ``tokenizer/`` and ``transformer/`` of the release, read strictly and written back.

Neither action width nor reward head stands in the release's configs: both are read from the tensors.
"""

from __future__ import annotations

from pathlib import Path

from toolkit.zoo.importing import refuse_existing, written_aside
from toolkit.zoo.world.model import read_world_model

IVIDEOGPT_NOTICE = (
    "The iVideoGPT code and weights are by Tsinghua University's machine learning group, under the MIT licence."
)


def import_ivideogpt(source: str | Path, dest: str | Path) -> str:
    """Convert a released world model to a folder that ``toolkit.zoo.load`` reads.

    Args:
        source: folder with ``tokenizer/`` (config.json, diffusion_pytorch_model.safetensors) and ``transformer/``
            (config.json, model.safetensors; bare names, or "llm." with action and reward heads).
        dest: folder to make; it must not exist, or be empty.

    Returns:
        The notice about the licence of the weights.

    Raises:
        UserError: a file is missing or damaged, a key is unknown, tensors are missing, extra or of a wrong shape, the
            two do not fit together, or dest is in use. Nothing is written then.
    """
    refuse_existing(Path(dest))
    world = read_world_model(Path(source))
    world.transformer.bind(world.tokenizer)
    with written_aside(Path(dest)) as folder:
        world.save_pretrained(folder)
    return IVIDEOGPT_NOTICE

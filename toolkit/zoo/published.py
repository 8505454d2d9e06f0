"""World models that their authors publish, by a name of ours: the nine of iVideoGPT (README of thuml/iVideoGPT)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """hub: id on the Hugging Face hub. tokenizer, transformer: the entries of NAMED that give their sizes."""

    hub: str
    tokenizer: str
    transformer: str
    action_dim: int
    note: str
    licence: str = "MIT"
    paper: str = "Wu et al. 2024 (iVideoGPT)"


def _ivideogpt(
    name: str, note: str, action_dim: int = 0, tokenizer: str = "64", transformer: str = "small"
) -> tuple[str, Published]:
    hub = f"thuml/ivideogpt-{name}"
    parts = f"ivideogpt_tokenizer_{tokenizer}", f"ivideogpt_transformer_{transformer}"
    return f"ivideogpt_{name.replace('-', '_')}", Published(hub, *parts, action_dim, note)


PUBLISHED: dict[str, Published] = dict(
    [
        _ivideogpt("oxe-64-act-free", "pre-trained on Open X-Embodiment, without actions"),
        _ivideogpt("oxe-64-act-free-medium", "the same with the medium transformer", transformer="medium"),
        _ivideogpt("oxe-64-goal-cond", "the first context frame is the goal"),
        _ivideogpt("oxe-256-act-free", "256x256; less trained than the others, say its authors", tokenizer="256"),
        _ivideogpt("bair-64-act-free", "BAIR robot pushing, one context frame", tokenizer="64_context1"),
        _ivideogpt("bair-64-act-cond", "BAIR robot pushing, one context frame", 4, tokenizer="64_context1"),
        _ivideogpt("robonet-64-act-cond", "RoboNet", 5),
        _ivideogpt("vp2-robosuite-64-act-cond", "VP2, Robosuite", 4),
        _ivideogpt("vp2-robodesk-64-act-cond", "VP2, RoboDesk", 5),
    ]
)


def hub_id(name: str) -> str:
    """The hub id of a published name; any other name as it is."""
    return PUBLISHED[name].hub if name in PUBLISHED else name

"""Growing language models: "Stacking Your Transformers" (Du, Luo et al., NeurIPS 2024, arXiv 2405.15319).

Importing this loads no torch; the names below are loaded on first use.
"""

from toolkit.lazy import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "Growth": "toolkit.stacking.config",
        "GrowthMasks": "toolkit.stacking.operators.masks",
        "Scorer": "toolkit.stacking.measure.scoring",
        "advise": "toolkit.stacking.stage_advise",
        "cost": "toolkit.stacking.measure.flops",
        "grow": "toolkit.stacking.operators.grow",
        "grow_checkpoint": "toolkit.stacking.grow_folder",
        "grow_network": "toolkit.stacking.zoo_networks",
        "grow_saved_network": "toolkit.stacking.zoo_networks",
        "load_model": "toolkit.stacking.checkpoints.load",
        "open_checkpoint": "toolkit.stacking.checkpoints.open",
        "train_map": "toolkit.stacking.operators.learn",
    },
)

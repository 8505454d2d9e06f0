"""``toolkit grow-llm``: which stages run, and what is shown at the end.

Checkpoints grow in stage_grow.py; the testbed (corpus, pre-training, growth, controls) is pretrain/stages.py.
"""

from __future__ import annotations

from collections.abc import Callable

from toolkit.errors import UserError
from toolkit.runs.distributed import rank
from toolkit.runs.record import Run
from toolkit.show.terminal import show, show_end
from toolkit.stacking import stage_advise, stage_grow
from toolkit.stacking.config import GrowLLM
from toolkit.stacking.measure.compare import compare_run
from toolkit.stacking.measure.evaluate import evaluate_source
from toolkit.stacking.pretrain.dry_run import plan_table

OBJECTIVES = ("final.grown", "pretrain.loss", "grow.target_perplexity", "evaluate.loss")  # what a sweep minimises


def main(config: GrowLLM, run: Run) -> float | None:
    """Run the stages that ``config.stage`` asks for and that are not done yet. Returns the objective of a sweep."""
    stages = _stages(config, run)
    for name in config.stages():
        if not run.stage_done(name):
            with run.stage(name):
                stages[name]()
    if rank() == 0:
        weights = stage_grow.out_folder(config, run) if config.stage == "grow" else run.dir / "model"
        found = {"figures": run.dir / "figures", "weights": weights}
        show_end(run, found, tables=("arms", "headline") if config.stage == "all" else ("headline",))
    metrics = run.record["metrics"]
    return next((metrics[key] for key in OBJECTIVES if key in metrics), None)


def _stages(config: GrowLLM, run: Run) -> dict[str, Callable[[], None]]:
    """What each stage of ``config.stages()`` does."""
    stages = {
        "grow": lambda: stage_grow.grow_source(config, run),
        "advise": lambda: stage_advise.advise_user(config, run),
        "evaluate": lambda: evaluate_source(config, run),
        "compare": lambda: compare_run(config, run),
    }
    if config.stage in stages:
        return {config.stage: stages[config.stage]}
    from toolkit.stacking.pretrain.stages import Testbed

    return Testbed(config, run).stages() | {"compare": stages["compare"]}


def dry_run(config: GrowLLM) -> None:
    """Layers, parameters and FLOPs, built on the meta device; reads no weight and writes nothing."""
    if config.stage == "grow":
        stage_grow.dry_run(config)
    elif config.stage == "advise":
        stage_advise.dry_run(config)
    elif config.stage in ("all", "pretrain"):
        show(plan_table(config))
    else:
        raise UserError(f"stage={config.stage}: builds nothing that --dry-run could show")

"""stage=grow: grow a checkpoint or a network of the zoo; tables for the terminal and the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from toolkit.errors import UserError
from toolkit.plain_files import read_object, read_text
from toolkit.runs import progress
from toolkit.runs.device import accelerator_of, keep_freed_memory
from toolkit.runs.distributed import barrier, rank
from toolkit.runs.record import Run
from toolkit.show.table import Table
from toolkit.show.terminal import show
from toolkit.stacking.checkpoints.load import REPORT_FILE
from toolkit.stacking.checkpoints.open import Checkpoint, find_network, is_zoo_network
from toolkit.stacking.checkpoints.write import refuse_used
from toolkit.stacking.config import GrowLLM
from toolkit.stacking.grow_folder import describe, open_grown, write_grown
from toolkit.stacking.operators.families import check_trainable
from toolkit.stacking.operators.grow import grow
from toolkit.stacking.operators.learn import GrowthMap, train_map
from toolkit.stacking.pretrain.tokens import Sequences, TokenStore

MOST_RUNS = 24


def grow_source(config: GrowLLM, run: Run) -> None:
    """Grow ``config.model`` into a new folder, on rank 0."""
    keep_freed_memory()  # of one tensor for the next: mapping it anew costs more than computing it
    if rank() == 0:
        _grow(config, run)
    barrier()


def _grow(config: GrowLLM, run: Run) -> None:
    out = out_folder(config, run)
    report = written_by(run, out) or _grow_into(config, run, out)
    for name, table in growth_tables(report).items():
        table.save(run.path("tables", f"{name}.json"))
    measured = {key: value for key, value in report.get("function", {}).items() if isinstance(value, float)}
    told = {key: report[key] for key in ("connection_rate", "growth_factor")}
    told["parameters"] = report["cost"]["target"]["parameters"]
    run.add_metrics("grow", measured | told)


def _grow_into(config: GrowLLM, run: Run, out: Path) -> dict[str, Any]:
    assert config.model is not None
    refuse_used(out)
    run_id = identity(run)
    source, text = find_network(config.model, config.part), read_sample(config.text)
    if is_zoo_network(source):
        from toolkit.stacking.zoo_networks import grow_saved_network

        _check_zoo_keys(config, source)
        return grow_saved_network(source, out, config.growth(), config.seed, run_id, config.measure)
    growth = config.growth()
    checkpoint, grown = open_grown(source, growth, config.seed)
    if config.operator == "learn" and config.learn.num_steps:
        learned = _growth_map(config, checkpoint, run)
        checkpoint, grown = open_grown(checkpoint, growth, config.seed, learned)
    with progress.bar("grow", 0, len(grown.tensors.infos)) as bar:
        written = 0

        def on_tensor() -> None:
            nonlocal written
            written += 1
            bar.advance(written)

        return write_grown(
            checkpoint,
            grown,
            out,
            growth,
            seed=config.seed,
            text=text,
            measure=config.measure,
            max_shard_bytes=int(config.max_shard_gb * 1e9),
            on_tensor=on_tensor,
            run_id=run_id,
        )


def _check_zoo_keys(config: GrowLLM, source: str) -> None:
    """Raises UserError for keys that say something about text, which a network of the zoo does not read."""
    if config.text is not None:
        raise UserError(f"text={config.text}: {source} reads no text; what it computes is compared on random inputs")
    if config.operator == "learn" and config.learn.num_steps:
        raise UserError(f"operator=learn: {source} reads no text to train the map on; add learn.num_steps=0")


def _growth_map(config: GrowLLM, source: Checkpoint, run: Run) -> GrowthMap | None:
    """G_learn's map, trained on ``config.data``."""
    from toolkit.stacking.pretrain.corpus import token_store

    context = min(config.network.context, source.config.max_position_embeddings)
    return trained_map(config, source, token_store(config), context, accelerator_of(run).device)


def out_folder(config: GrowLLM, run: Run) -> Path:
    """Where the grown checkpoint goes."""
    return Path(config.out) if config.out else run.dir / "model" / "grown"


def identity(run: Run) -> str:
    """The same for every attempt of a run, another for every other run."""
    return f"{run.dir.name} {run.record['started']}"


def written_by(run: Run, out: Path) -> dict[str, Any] | None:
    """The report of what an earlier, interrupted attempt of this run had already finished."""
    path = out / REPORT_FILE
    report = read_object(path) if path.is_file() else {}
    return report if report.get("run") == identity(run) else None


def read_sample(path: str | None) -> str | None:
    """The text of ``text=FILE``, None where none is given. Raises UserError where it cannot be read or is empty."""
    if path is None:
        return None
    text = read_text(path, "text")
    if not text.strip():
        raise UserError(f"text={path}: is empty")
    return text


def growth_tables(report: dict[str, Any]) -> dict[str, Table]:
    """A growth report as tables: "headline" (source beside target), and "layers", the source of every layer."""
    source, target = report["cost"]["source"], report["cost"]["target"]
    names = {"parameters": "parameters", "non_embedding": "parameters without embedding and head"}
    names |= {"flops_total": "FLOPs per token, 6 x all parameters"}
    names |= {"flops_non_embedding": "FLOPs per token, 6 x without embedding and head"}
    names |= {"flops_matmul": "FLOPs per token, matrix products and attention"}
    rows: list[list[Any]] = [[text, source[key], target[key]] for key, text in names.items()]
    function = report.get("function", {})
    if "target_perplexity" in function:
        rows.append(["perplexity", function["source_perplexity"], function["target_perplexity"]])
    rows.append(["source layers", None, spelled(report["source_layers"])])
    rows.append(["connection rate", None, report["connection_rate"]])
    if function:
        rows.append([f"function ({function['measured_on']})", None, function["verdict"]])
        rows.append(["largest change of a logit", None, function["max_logit_change"]])
    for key, text in (("grow_time_s", "time, s"), ("growth_memory_mib", "memory for growing, MiB")):
        if key in report:
            rows.append([text, None, report[key]])
    growth = report["growth"]
    title = f"Growth: {growth['operator']} in {growth['direction']}"
    return {
        "headline": Table(title, ["", "source", "target"], rows, "; ".join(report.get("notes", []))),
        "layers": Table("Layers", ["layer", "source layer", "kind"], _layer_rows(report)),
    }


def spelled(sources: Sequence[int | None]) -> str:
    """A list of source layers in runs: ``0-5 0-5 new new``; a long one is cut, the table of layers has it all."""
    runs: list[list[int | None]] = []
    for source in sources:
        last = runs[-1][-1] if runs else None
        if last is not None and source == last + 1:
            runs[-1].append(source)
        else:
            runs.append([source])
    words = ["new" if run[0] is None else f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return " ".join(words if len(words) <= MOST_RUNS else [*words[:MOST_RUNS], "..."])


def _layer_rows(report: dict[str, Any]) -> list[list[Any]]:
    zeroed, new = set(report.get("zeroed_layers", [])), set(report["new_layers"])

    def kind(layer: int, source: int | None) -> str:
        if source is None:
            return "new weights"
        return "silent copy" if layer in zeroed else "copy" if layer in new else "first copy"

    return [[layer, source, kind(layer, source)] for layer, source in enumerate(report["source_layers"])]


def dry_run(config: GrowLLM) -> None:
    """Layers, parameters and FLOPs of the target; reads no weight and writes nothing."""
    assert config.model is not None
    place = find_network(config.model, config.part)
    source, grown = open_grown(_of_the_zoo(place) if is_zoo_network(place) else place, config.growth(), config.seed)
    show(*growth_tables(describe(source, grown, config.growth())).values())


def _of_the_zoo(source: str) -> Checkpoint:
    from toolkit.stacking.zoo_networks import as_checkpoint, growing_part
    from toolkit.zoo import load

    return as_checkpoint(source, growing_part(load(source)))


def trained_map(
    config: GrowLLM, base: Checkpoint, store: TokenStore, context: int, device: Any = "cpu", first: int = 0
) -> GrowthMap | None:
    """G_learn's map of ``base``, trained on ``store`` from sequence ``first`` on; None for other operators.

    Raises UserError where the operator does not fit or the corpus is too short, JobError for a loss that is not finite.
    """
    if config.operator != "learn":
        return None
    check_trainable(base.config, f"operator=learn model={base.source}")
    learn = config.learn
    grown = grow(base.architecture, base.config, base.tensors, config.growth(), config.seed)
    assert grown.growth_map is not None
    growth_map = grown.growth_map.to(device)
    sequences = Sequences(store.train, context, config.seed)
    with progress.bar("learn", 0, learn.num_steps) as bar:

        def batches() -> Iterator[Tensor]:
            for step in range(learn.num_steps):
                ids, _ = sequences.batch(first + step * learn.batch_size, learn.batch_size)
                yield ids.to(device)
                bar.advance(step + 1)

        train_map(
            growth_map,
            grown.config,
            base.tensors,
            batches(),
            num_steps=learn.num_steps,
            warmup_steps=learn.warmup_steps,
            max_learning_rate=learn.lr,
            min_learning_rate=learn.min_lr,
        )
    return growth_map.cpu()

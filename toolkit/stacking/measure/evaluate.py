"""stage=evaluate: how well ``model`` predicts text (core) and does the harness's tasks (extra ``eval``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import UserError
from toolkit.installation import install_hint
from toolkit.runs import progress
from toolkit.runs.device import accelerator_of, dtype_of
from toolkit.runs.distributed import barrier, rank
from toolkit.runs.record import Run
from toolkit.show.table import Table
from toolkit.stacking.checkpoints.load import fetched, load_model
from toolkit.stacking.checkpoints.open import find_network
from toolkit.stacking.config import GrowLLM
from toolkit.stacking.measure.scoring import Scorer, TextLoss
from toolkit.stacking.measure.tasks import ACCURACIES, BENCHMARKS, check_exports, expand
from toolkit.stacking.pretrain.corpus import held_out_texts
from toolkit.stacking.stage_grow import read_sample

if TYPE_CHECKING:
    from toolkit.stacking.measure.harness import Score


def evaluate_source(config: GrowLLM, run: Run) -> None:
    """Measure ``config.model`` on text and on ``config.evaluation.tasks``, on rank 0.

    The text is the file ``config.text``, or the held-out documents of ``config.data``. Data of tasks are read before
    the model is.

    Raises UserError for a task that is unknown, an export that does not fit, or an extra that is not installed.
    """
    names, data = expand(config.evaluation.tasks), _task_data(config)
    if names:
        require_harness()
        check_exports(names, data, config.evaluation.num_fewshot)
    if rank() == 0:
        _measure(config, run, names, data)
    barrier()


def _measure(config: GrowLLM, run: Run, names: Sequence[str], data: Path | None) -> None:
    texts = _texts(config)
    if not names:
        scorer, _ = _load(config, run)
        _keep(run, scorer.text_loss(texts), {})
        return
    from toolkit.stacking.measure import harness

    with harness.loaded(names, data, config.evaluation.num_fewshot) as tasks:
        scorer, source = _load(config, run)
        loss = scorer.text_loss(texts)
        progress.say(f"evaluating {', '.join(names)}")
        _keep(run, loss, harness.run_tasks(_model(config, scorer, source), tasks, config.evaluation.limit))


def require_harness() -> None:
    """Raises UserError where lm-eval is not installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise UserError(f"evaluation.tasks: needs the extra eval ({install_hint('eval')})") from None


def _texts(config: GrowLLM) -> list[str]:
    """At most ``evaluation.text_kb`` of it. Raises UserError where there is none."""
    text = read_sample(config.text)
    documents = [text] if text else held_out_texts(config)
    texts, left = [], int(config.evaluation.text_kb * 1000)
    for document in documents:
        cut = document.encode()[:left].decode(errors="ignore")
        texts.append(cut)
        left -= len(cut.encode())
        if left <= 0:
            break
    return texts


def _load(config: GrowLLM, run: Run) -> tuple[Scorer, str]:
    accelerator = accelerator_of(run)
    assert config.model is not None
    source = fetched(find_network(config.model, config.part))
    model, tokenizer = load_model(source, dtype_of(config.precision))
    if tokenizer is None:
        raise UserError(f"model={config.model}: has no tokenizer, so no text can be measured on it")
    return Scorer(model.to(accelerator.device), tokenizer, batch_size=config.evaluation.batch_size), source


def _model(config: GrowLLM, scorer: Scorer, source: str) -> Any:
    from toolkit.stacking.measure import harness

    if config.evaluation.route == "own":
        return harness.ScoredLM(scorer)
    return harness.in_memory(scorer) if config.evaluation.route == "memory" else harness.from_source(source, scorer)


def _task_data(config: GrowLLM) -> Path | None:
    folder = config.evaluation.task_data
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"evaluation.task_data={folder}: no such folder")
    return None if folder is None else Path(folder)


def _keep(run: Run, loss: TextLoss, scores: dict[str, Score]) -> None:
    run.add_metrics("evaluate", asdict(loss) | {name: score.metrics for name, score in scores.items()})
    text_table(loss).save(run.path("tables", "text.json" if scores else "headline.json"))
    if scores:
        task_table(scores).save(run.path("tables", "headline.json"))


def text_table(loss: TextLoss) -> Table:
    """Loss and perplexities of the text."""
    rows = [
        ["loss, nats per token", loss.loss],
        ["perplexity per token", loss.perplexity],
        ["perplexity per word", loss.word_perplexity],
        ["bits per byte", loss.bits_per_byte],
        ["tokens", loss.num_tokens],
    ]
    return Table("Text", ["", "value"], rows)


def task_table(scores: dict[str, Score]) -> Table:
    """One row per task, in the paper's order; with all seven accuracies also their mean, the paper's "Avg."."""
    order = [name for name in BENCHMARKS if name in scores] + [name for name in scores if name not in BENCHMARKS]
    rows: list[list[Any]] = []
    for name in order:
        score = scores[name]
        label = BENCHMARKS[name].label if name in BENCHMARKS else name
        measured = [_accuracy(score, "acc"), _accuracy(score, "acc_norm"), _perplexity(score)]
        rows.append([label, *measured, _rows(name, score.num_rows)])
    if all(name in scores for name in ACCURACIES):
        mean = sum(scores[name].metrics[BENCHMARKS[name].metric] for name in ACCURACIES) / len(ACCURACIES)
        rows.append(["Avg. (7)", f"{100 * mean:.2f}", None, None, None])
    note = (
        "accuracies in per cent ± standard error; Avg. takes acc for Lambada and Winogrande and acc_norm for the "
        "others, most likely what the paper prints (it does not say); perplexity of the last word (Lambada) or per word"
    )
    return Table("Tasks", ["", "acc", "acc_norm", "perplexity", "rows"], rows, note)


def _rows(name: str, num: int) -> int | str:
    """How many were scored; of a benchmark that a limit or an export cuts, of how many."""
    whole = BENCHMARKS[name].num_rows if name in BENCHMARKS else num
    return num if num == whole else f"{num} of {whole}"


def _accuracy(score: Score, metric: str) -> str | None:
    if metric not in score.metrics:
        return None
    error = score.standard_error(metric)
    return f"{100 * score.metrics[metric]:.2f}" + (f" ± {100 * error:.1f}" if error is not None else "")


def _perplexity(score: Score) -> float | None:
    return score.metrics.get("word_perplexity", score.metrics.get("perplexity"))

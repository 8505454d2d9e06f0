"""The paper's eight benchmarks (section 4, table 3) and tasks of your own, as lm-evaluation-harness reads them.

Prompts and scoring are the harness's own: what is written here are small YAML files that include its task and, where
there is a local export, put that in place of the hub's data set. No lm-eval and no torch is imported here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import UserError, did_you_mean
from toolkit.plain_files import read_text

ALL = "paper"  # stands for the eight


@dataclass(frozen=True)
class Benchmark:
    """One of the paper's.

    name: of the harness's task, whose file is ``path`` in its tasks folder. label: the paper's. split: the one that is
    scored, with ``num_rows`` rows. metric: the one the paper most likely prints (it does not say; both are reported).
    fields: what a row of an export holds; ``fits`` whether its values make sense, ``rule`` in words.
    """

    name: str
    label: str
    path: str
    split: str
    num_rows: int
    metric: str
    fields: tuple[str, ...]
    fits: Callable[[dict[str, Any]], bool]
    rule: str


def _is_arc(row: dict[str, Any]) -> bool:
    return row["answerKey"] in row["choices"]["label"] and len(row["choices"]["text"]) == len(row["choices"]["label"])


def _has_words(row: dict[str, Any]) -> bool:
    return len(row["text"].split(" ")) > 1 and not row["text"].endswith(" ")


_ARC = ("question", "choices", "answerKey")
_ARC_RULE = "choices has text and label, answerKey is one of the labels"
BENCHMARKS = {
    one.name: one
    for one in [
        Benchmark(
            "lambada_openai",
            "Lambada",
            "lambada/lambada_openai.yaml",
            "test",
            5153,
            "acc",
            ("text",),
            _has_words,
            "text is words between single spaces, the last of which is to be told",
        ),
        Benchmark(
            "arc_challenge", "ARC-c", "arc/arc_challenge.yaml", "test", 1172, "acc_norm", _ARC, _is_arc, _ARC_RULE
        ),
        Benchmark("arc_easy", "ARC-e", "arc/arc_easy.yaml", "test", 2376, "acc_norm", _ARC, _is_arc, _ARC_RULE),
        Benchmark(
            "logiqa",
            "Logiqa",
            "logiqa/logiqa.yaml",
            "test",
            651,
            "acc_norm",
            ("context", "question", "options", "label"),
            lambda row: row["label"].strip() in ("a", "b", "c", "d") and len(row["options"]) == 4,
            "four options, label a, b, c or d",
        ),
        Benchmark(
            "piqa",
            "PIQA",
            "piqa/piqa.yaml",
            "validation",
            1838,
            "acc_norm",
            ("goal", "sol1", "sol2", "label"),
            lambda row: row["label"] in (0, 1),
            "label is 0 or 1",
        ),
        Benchmark(
            "sciq",
            "Sciq",
            "sciq/sciq.yaml",
            "test",
            1000,
            "acc_norm",
            ("support", "question", "distractor1", "distractor2", "distractor3", "correct_answer"),
            lambda row: bool(row["correct_answer"]),
            "a correct answer",
        ),
        Benchmark(
            "winogrande",
            "Winogrande",
            "winogrande/default.yaml",
            "validation",
            1267,
            "acc",
            ("sentence", "option1", "option2", "answer"),
            lambda row: "_" in row["sentence"] and row["answer"] in ("1", "2"),
            'a sentence with _ in it, answer "1" or "2"',
        ),
        Benchmark(
            "wikitext",
            "Wikitext",
            "wikitext/wikitext.yaml",
            "test",
            62,
            "word_perplexity",
            ("page",),
            lambda row: bool(row["page"].strip()),
            "a page that is not empty",
        ),
    ]
}
ACCURACIES = [name for name, one in BENCHMARKS.items() if one.metric != "word_perplexity"]  # the paper's "Avg."


@dataclass(frozen=True)
class Kind:
    """A task of the user's own, told by the fields of its rows; ``settings`` are the harness's."""

    fields: tuple[str, ...]
    settings: dict[str, Any]
    fits: Callable[[dict[str, Any]], bool]
    rule: str


def _metrics(*names: str) -> list[dict[str, Any]]:
    return [{"metric": name} for name in names]


_ACCURACY: list[dict[str, Any]] = [
    {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
]
KINDS = {
    "choice": Kind(
        ("question", "choices", "answer"),
        {
            "output_type": "multiple_choice",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_target": "{{answer}}",
            "doc_to_choice": "{{choices}}",
            "metric_list": _ACCURACY,
        },
        lambda row: isinstance(row["answer"], int) and 0 <= row["answer"] < len(row["choices"]) > 1,
        "answer is the number of the right choice, counted from 0",
    ),
    "cloze": Kind(
        ("text",),
        {
            "output_type": "loglikelihood",
            "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
            "doc_to_target": "{{' '+text.split(' ')[-1]}}",
            "metric_list": [
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                _ACCURACY[0],
            ],
        },
        _has_words,
        "text is words between single spaces, the last of which is to be told",
    ),
    "pages": Kind(
        ("page",),
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{page}}",
            "metric_list": _metrics("word_perplexity", "byte_perplexity", "bits_per_byte"),
        },
        lambda row: bool(row["page"].strip()),
        "a page that is not empty",
    ),
}


def expand(names: Iterable[str]) -> list[str]:
    """``paper`` is the eight. Raises UserError for what is neither one of them nor a ``.jsonl`` file."""
    found: list[str] = []
    for name in names:
        if name != ALL and name not in BENCHMARKS and not name.endswith(".jsonl"):
            hint = did_you_mean(name, [ALL, *BENCHMARKS])
            raise UserError(
                f"evaluation.tasks={name}: {hint}choose among {ALL}, {', '.join(BENCHMARKS)} or name a .jsonl file"
            )
        found += BENCHMARKS if name == ALL else [name]
    return list(dict.fromkeys(found))


def check_exports(names: Sequence[str], data: Path | None) -> None:
    """Read every local file that ``write_tasks`` will name.

    Raises UserError for one that is not there, or whose rows do not fit, naming file and line.
    """
    for name in names:
        if name not in BENCHMARKS:
            kind, what = _kind(Path(name)), f"a {_kind(Path(name))} task"
            _check_rows(Path(name), what, KINDS[kind].fields, KINDS[kind].fits, KINDS[kind].rule)
        elif data is not None:
            one = BENCHMARKS[name]
            _check_rows(data / f"{name}.jsonl", name, one.fields, one.fits, one.rule)
    stems = [task_name(name) for name in names]
    twice = [stem for stem in stems if stems.count(stem) > 1]
    if twice:
        raise UserError(f"evaluation.tasks: two of them are named {twice[0]}; rename the file")


def write_tasks(names: Sequence[str], data: Path | None, folder: Path, harness_tasks: Path) -> list[str]:
    """One YAML per task into ``folder``; returns their names there, in order.

    names: as from ``expand``. data: folder of exports, ``NAME.jsonl`` each, in the fields of the hub's rows; None takes
    the hub's data sets. harness_tasks: the tasks folder of the installed harness. Raises UserError as check_exports.
    """
    check_exports(names, data)
    for name in names:
        settings: dict[str, Any] = {"task": task_name(name)}
        if name in BENCHMARKS:
            settings |= {"include": str(harness_tasks / BENCHMARKS[name].path), "tag": None}
            if data is not None:
                settings |= _local_data(data / f"{name}.jsonl", BENCHMARKS[name].split, folder)
        else:
            settings |= KINDS[_kind(Path(name))].settings | _local_data(Path(name), "test", folder)
        (folder / f"{settings['task']}.yaml").write_text(
            json.dumps(settings, indent=1), encoding="utf-8"
        )  # JSON is YAML
    return [task_name(name) for name in names]


def task_name(name: str) -> str:
    """``piqa`` itself, of a file its name without ``.jsonl``."""
    return name if name in BENCHMARKS else Path(name).stem


def _kind(path: Path) -> str:
    first = _read_rows(path)[0]
    for name, kind in KINDS.items():
        if set(kind.fields) <= set(first):
            return name
    forms = "; ".join(f"{', '.join(kind.fields)} ({name})" for name, kind in KINDS.items())
    raise UserError(f"{path}: rows have {', '.join(sorted(first)) or 'no fields'}; expected one of: {forms}")


def _local_data(path: Path, split: str, folder: Path) -> dict[str, Any]:
    splits = dict.fromkeys(("training_split", "validation_split", "test_split"))
    return {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(path.resolve())}, "cache_dir": str(folder / "cache")},
        **splits,
        f"{split}_split": split,
    }


def _check_rows(
    path: Path, what: str, fields: tuple[str, ...], fits: Callable[[dict[str, Any]], bool], rule: str
) -> None:
    for number, row in enumerate(_read_rows(path), start=1):
        missing = [field for field in fields if field not in row]
        if missing:
            raise UserError(f"{path} line {number}: no field {missing[0]}; a row of {what} has {', '.join(fields)}")
        try:
            valid = fits(row)
        except (KeyError, TypeError, AttributeError):
            valid = False
        if not valid:
            raise UserError(f"{path} line {number}: does not fit {what}: {rule}")


def _read_rows(path: Path) -> list[dict[str, Any]]:
    text = read_text(path).removesuffix("\n")
    if not text:
        raise UserError(f"{path}: is empty")
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # a text may hold other line ends
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number}: not a JSON object")
        rows.append(row)
    return rows

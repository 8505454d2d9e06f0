"""The paper's eight benchmarks (section 4, table 3) and tasks of your own, as lm-evaluation-harness reads them.

Prompts and scoring are the harness's own: what is written here are small YAML files that include its task and, where
there is a local export, put that in place of the hub's data set. No lm-eval and no torch is imported here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import UserError, did_you_mean
from toolkit.plain_files import read_text

ALL = "paper"  # stands for the eight
STRUCTURED = ("choices", "options", "label", "answer", "answerKey")  # fields that ``fits`` reads; the others are text


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


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_arc(row: dict[str, Any]) -> bool:
    labels, texts = row["choices"]["label"], row["choices"]["text"]
    return _are_texts(labels) and _are_texts(texts) and row["answerKey"] in labels and len(texts) == len(labels)


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
            lambda row: (
                row["label"].strip() in ("a", "b", "c", "d") and _are_texts(row["options"]) and len(row["options"]) == 4
            ),
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
        lambda row: (
            _are_texts(row["choices"])
            and all(row["choices"])
            and len(row["choices"]) > 1
            and isinstance(row["answer"], int)
            and 0 <= row["answer"] < len(row["choices"])
        ),
        "choices are two texts or more, none of them empty; answer is the number of the right one, counted from 0",
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


def check_exports(names: Sequence[str], data: Path | None, num_fewshot: int = 0) -> dict[Path, list[dict[str, Any]]]:
    """The rows of every local file that ``write_tasks`` needs, those fields alone that its task reads.

    Raises UserError for one that is not there, that has too few rows for ``num_fewshot`` examples, or whose rows do
    not fit, naming file and line.
    """
    found = {}
    for name in names:
        if name not in BENCHMARKS:
            path = Path(name)
            rows = _read_rows(path)
            kind = _kind(path, next(iter(rows.values())))
            found[path] = _checked(path, rows, f"a {kind} task", KINDS[kind])
        elif data is not None:
            path = data / f"{name}.jsonl"
            found[path] = _checked(path, _read_rows(path), name, BENCHMARKS[name])
    for path, own in found.items():
        if len(own) <= num_fewshot:
            raise UserError(
                f"evaluation.num_fewshot={num_fewshot}: {path} has {len(own)} rows, and the examples of one are drawn "
                f"from the others; at most {len(own) - 1}"
            )
    _check_names(names)
    return found


def _check_names(names: Sequence[str]) -> None:
    stems = [task_name(name) for name in names]
    twice = [stem for stem in stems if stems.count(stem) > 1]
    if twice:
        raise UserError(f"evaluation.tasks: two of them are named {twice[0]}; rename the file")
    for name, stem in zip(names, stems, strict=True):
        if stem in BENCHMARKS and name != stem:
            raise UserError(
                f"evaluation.tasks={name}: would pass for the benchmark {stem}; rename the file, or for an export of "
                f"it give evaluation.tasks=[{stem}] and evaluation.task_data={Path(name).parent}"
            )


def write_tasks(
    names: Sequence[str], data: Path | None, folder: Path, harness_tasks: Path, num_fewshot: int = 0
) -> list[str]:
    """One YAML per task into ``folder``; returns their names there, in order.

    names: as from ``expand``. data: folder of exports, ``NAME.jsonl`` each, in the fields of the hub's rows; None takes
    the hub's data sets. harness_tasks: the tasks folder of the installed harness. What is read from a local file is
    written there anew, because the harness knows one encoding. Raises UserError as check_exports.
    """
    found = check_exports(names, data, num_fewshot)
    for name in names:
        task = task_name(name)
        settings: dict[str, Any] = {"task": task}
        if name not in BENCHMARKS:
            rows = found[Path(name)]
            settings |= KINDS[_kind(Path(name), rows[0])].settings | _local_data(rows, task, "test", folder)
        else:
            settings |= {"include": str(harness_tasks / BENCHMARKS[name].path), "tag": None}
            if data is not None:
                settings |= _local_data(found[data / f"{name}.jsonl"], task, BENCHMARKS[name].split, folder)
        (folder / f"{task}.yaml").write_text(json.dumps(settings, indent=1), encoding="utf-8")  # JSON is YAML
    return [task_name(name) for name in names]


def task_name(name: str) -> str:
    """``piqa`` itself, of a file its name without ``.jsonl``."""
    return name if name in BENCHMARKS else Path(name).stem


def _kind(path: Path, first: dict[str, Any]) -> str:
    for name, kind in KINDS.items():
        if set(kind.fields) <= set(first):
            return name
    forms = "; ".join(f"{', '.join(kind.fields)} ({name})" for name, kind in KINDS.items())
    raise UserError(f"{path}: rows have {', '.join(sorted(first)) or 'no fields'}; expected one of: {forms}")


def _local_data(rows: list[dict[str, Any]], task: str, split: str, folder: Path) -> dict[str, Any]:
    path = folder / f"{task}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    splits = dict.fromkeys(("training_split", "validation_split", "test_split"))
    return {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(path)}, "cache_dir": str(folder / "cache")},
        **splits,
        f"{split}_split": split,
    }


def _checked(path: Path, rows: dict[int, dict[str, Any]], what: str, task: Benchmark | Kind) -> list[dict[str, Any]]:
    """``rows`` by the numbers of their lines, with the fields of ``task`` alone. Raises UserError naming the line."""
    for number, row in rows.items():
        missing = [field for field in task.fields if field not in row]
        if missing:
            fields = ", ".join(task.fields)
            raise UserError(f"{path} line {number}: no field {missing[0]}; a row of {what} has {fields}")
        try:
            valid = task.fits(row)
        except (KeyError, TypeError, AttributeError):
            valid = False
        if not valid:
            raise UserError(f"{path} line {number}: does not fit {what}: {task.rule}")
        for field in task.fields:
            if field not in STRUCTURED and not isinstance(row[field], str):
                raise UserError(f"{path} line {number}: {field} is {row[field]!r}, and should be a text")
            if isinstance(row[field], bool):  # which Python takes for 0 or 1
                raise UserError(f"{path} line {number}: {field} is {row[field]}, and should be a number")
    return [{field: row[field] for field in task.fields} for row in rows.values()]


def _read_rows(path: Path) -> dict[int, dict[str, Any]]:
    """The rows by the numbers of their lines; empty lines are none. Raises UserError."""
    rows = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # a text may hold other line ends
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number}: not a JSON object")
        if half := re.search("[\ud800-\udfff]", json.dumps(row, ensure_ascii=False)):
            raise UserError(f"{path} line {number}: has half a character ({half[0]!r}); mend it, or take it out")
        rows[number] = row
    if not rows:
        raise UserError(f"{path}: is empty")
    return rows

"""The paper's eight benchmarks on rows of our own: three routes, one set of numbers, no network."""

import json
import math
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stacking.models import make_bpe, make_model
from toolkit.errors import UserError
from toolkit.launch import launch
from toolkit.show.table import Table
from toolkit.stacking.checkpoints.load import load_model
from toolkit.stacking.config import GrowLLM
from toolkit.stacking.measure import evaluate
from toolkit.stacking.measure.scoring import Scorer
from toolkit.stacking.measure.tasks import BENCHMARKS, check_exports, expand, write_tasks

DATA = Path(__file__).parents[2] / "files" / "tasks"
MEANING = str(DATA / "meaning.jsonl")
# Log-likelihoods are sums in float32, whose order differs between batches of other shapes: some eps of the nats' size.
ROUNDING = 16 * 2**-23


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("somebody opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    make_model(vocab_size=320).save_pretrained(folder)
    make_bpe().save_pretrained(folder)
    return folder


def own_task(folder, name, rows):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def in_nats(metrics):
    """Perplexities as their logarithms, which is where they round; everything else as it is."""
    return {name: math.log(value) if name.endswith("perplexity") else value for name, value in metrics.items()}


@pytest.mark.processor
def test_three_routes_give_the_same_numbers(source, no_network, tmp_path):
    from toolkit.stacking.measure import harness

    model, tokenizer = load_model(str(source))
    scorer = Scorer(model, tokenizer, batch_size=4)
    names = [*expand(["paper", MEANING]), own_task(tmp_path, "last_word", [{"text": "the mill and the river"}] * 2)]
    names.append(own_task(tmp_path, "leaves", [{"page": "the river"}, {"page": "a bridge in the winter"}]))
    with harness.quiet():
        routes = [harness.in_memory(scorer), harness.from_source(str(source), scorer), harness.ScoredLM(scorer)]
    with harness.loaded(names, DATA) as tasks:
        memory, folder, own = (harness.run_tasks(route, tasks) for route in routes)
    assert memory == folder  # the harness's own batches, twice
    assert list(own) == list(memory)
    for name, score in own.items():
        assert score.num_rows == memory[name].num_rows
        assert in_nats(score.metrics) == pytest.approx(in_nats(memory[name].metrics), rel=ROUNDING)
    assert list(memory) == [*BENCHMARKS, "meaning", "last_word", "leaves"]
    for name, one in BENCHMARKS.items():
        assert one.metric in memory[name].metrics
        assert memory[name].num_rows == len((DATA / f"{name}.jsonl").read_text().splitlines())
    assert 0 < memory["arc_easy"].metrics["acc"] < 1
    assert memory["last_word"].metrics["perplexity"] > 1

    pages = scorer.text_loss(["the river", "a bridge in the winter"])  # core's own, without the extra
    found = in_nats({metric: getattr(pages, metric) for metric in memory["leaves"].metrics})
    assert found == pytest.approx(in_nats(memory["leaves"].metrics), rel=ROUNDING)


@pytest.mark.slow
def test_the_harness_command_line_gives_the_same(source, tmp_path):
    import lm_eval.tasks

    from toolkit.stacking.measure import harness

    names = write_tasks(["arc_easy", "winogrande", "wikitext"], DATA, tmp_path, Path(lm_eval.tasks.__file__).parent)
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--include_path", tmp_path]
    arguments = ["--model_args", f"pretrained={source},dtype=float32", "--tasks", ",".join(names)]
    subprocess.run([*command, *arguments, "--output_path", tmp_path / "out"], check=True, timeout=300)
    (written,) = (tmp_path / "out").rglob("results*.json")
    theirs = json.loads(written.read_text())["results"]
    with harness.loaded(names, DATA) as tasks:
        ours = harness.run_tasks(harness.ScoredLM(Scorer(*load_model(str(source)))), tasks)
    for name in names:
        found = {metric: theirs[name][f"{metric},none"] for metric in ours[name].metrics}
        assert in_nats(found) == pytest.approx(in_nats(ours[name].metrics), rel=ROUNDING)


def test_few_shots_and_a_limit(source, no_network):
    from toolkit.stacking.measure import harness

    scorer = Scorer(*load_model(str(source)))
    with harness.loaded(["arc_easy"], DATA) as tasks:
        zero = harness.run_tasks(harness.ScoredLM(scorer), tasks, limit=3)["arc_easy"]
    assert zero.num_rows == 3
    assert [row[-1] for row in evaluate.task_table({"arc_easy": zero, "mine": zero}).rows] == ["3 of 2376", 3]
    assert zero.standard_error("acc") == pytest.approx((zero.metrics["acc"] * (1 - zero.metrics["acc"]) / 2) ** 0.5)
    seen = []
    scorer.pair = lambda context, continuation: seen.append(context) or Scorer.pair(scorer, context, continuation)
    with harness.loaded(["arc_easy"], DATA, num_fewshot=2) as tasks:
        harness.run_tasks(harness.ScoredLM(scorer), tasks, limit=1)
    assert all(context.count("Question:") == 3 for context in seen)


def test_the_command(source, no_network, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the river over the bridge and the mill " * 9)
    words = ["stage=evaluate", f"model={source}", "text=text.txt", "hydra.run.dir=run", "evaluation.batch_size=2"]
    assert launch("grow-llm", [*words, f"evaluation.tasks=[paper,{MEANING}]", f"evaluation.task_data={DATA}"]) == 0
    shown = capfd.readouterr().out
    assert "Avg. (7)" in shown
    record = json.loads((tmp_path / "run" / "run.json").read_text())["metrics"]
    assert record["evaluate.winogrande.acc"] in (0, 0.2, 0.4, 0.6, 0.8, 1)
    rows = Table.load(tmp_path / "run" / "tables" / "headline.json").rows
    assert [row[0] for row in rows][-2:] == ["meaning", "Avg. (7)"]
    names = [name for name, one in BENCHMARKS.items() if one.metric != "word_perplexity"]
    mean = sum(record[f"evaluate.{name}.{BENCHMARKS[name].metric}"] for name in names) / 7
    assert rows[-1][1] == f"{100 * mean:.2f}"

    loss = Scorer(make_model(vocab_size=320), make_bpe()).text_loss([(tmp_path / "text.txt").read_text()])
    assert record["evaluate.bits_per_byte"] == pytest.approx(loss.bits_per_byte, rel=1e-6)


def test_perplexity_needs_no_extra(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    (tmp_path / "text.txt").write_text("the river over the bridge")
    words = ["stage=evaluate", f"model={source}", "text=text.txt", "hydra.run.dir=run"]
    assert launch("grow-llm", words) == 0
    rows = Table.load(tmp_path / "run" / "tables" / "headline.json").rows
    assert [row[0] for row in rows][:4] == [
        "loss, nats per token",
        "perplexity per token",
        "perplexity per word",
        "bits per byte",
    ]
    assert launch("grow-llm", [*words[:-1], "evaluation.tasks=[piqa]", "hydra.run.dir=other"]) == 2


def test_without_an_export_the_hub_is_asked_before_the_model_is_loaded(no_network, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the river")
    words = ["stage=evaluate", "model=nowhere", "text=text.txt", "evaluation.tasks=[piqa]"]
    assert launch("grow-llm", words) == 2
    said = capfd.readouterr().err.strip()
    assert said.startswith("toolkit: error: evaluation.tasks: a data set is not to be had from the hub")
    assert said.endswith("give local exports with evaluation.task_data=FOLDER")


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("piqa", lambda row: row.pop("goal"), "line 1: no field goal; a row of piqa has goal, sol1, sol2, label"),
        ("piqa", lambda row: row.update(label=2), "line 1: does not fit piqa: label is 0 or 1"),
        ("arc_easy", lambda row: row.update(answerKey="F"), "answerKey is one of the labels"),
        ("logiqa", lambda row: row.update(options=["a"]), "four options"),
        ("winogrande", lambda row: row.update(sentence="no gap"), "a sentence with _ in it"),
        ("lambada_openai", lambda row: row.update(text="word"), "the last of which is to be told"),
        ("sciq", lambda row: row.update(correct_answer=""), "a correct answer"),
        ("wikitext", lambda row: row.update(page=3), "a page that is not empty"),
        ("meaning", lambda row: row.update(answer=4), "counted from 0"),
        ("meaning", lambda row: row.update(answer=True), "line 1: answer is True, and should be a number"),
        ("meaning", lambda row: row.update(choices="abcd"), "choices are two texts or more"),
        ("meaning", lambda row: row.update(choices=["a", "", "c", "d"]), "none of them empty"),
        ("meaning", lambda row: row.update(choices=["a", None, "c", "d"]), "choices are two texts or more"),
        ("meaning", lambda row: row.update(question=None), "line 1: question is None, and should be a text"),
        ("meaning", lambda row: row.update(question="\ud83d"), "line 1: has half a character"),
        ("piqa", lambda row: row.update(goal=3), "line 1: goal is 3, and should be a text"),
        ("arc_easy", lambda row: row["choices"].update(label="ABCD"), "answerKey is one of the labels"),
        ("sciq", lambda row: row.update(support=None), "line 1: support is None, and should be a text"),
        ("meaning", lambda row: row.pop("choices"), r"expected one of: question, choices, answer \(choice\)"),
    ],
)
def test_rows_that_do_not_fit(tmp_path, name, edit, message):
    row = json.loads((DATA / f"{name}.jsonl").read_text().splitlines()[0])
    edit(row)
    path = own_task(tmp_path, name, [row])
    with pytest.raises(UserError, match=message):
        check_exports([name if name in BENCHMARKS else path], tmp_path)


def test_files_that_do_not_fit(tmp_path):
    with pytest.raises(UserError, match=r"piqa.jsonl: cannot be read: No such file"):
        check_exports(["piqa"], tmp_path)
    (tmp_path / "piqa.jsonl").write_text("")
    with pytest.raises(UserError, match=r"piqa.jsonl: is empty"):
        check_exports(["piqa"], tmp_path)
    (tmp_path / "piqa.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match=r"piqa.jsonl line 1: not a JSON object"):
        check_exports(["piqa"], tmp_path)
    shutil.copy(MEANING, tmp_path / "piqa.jsonl")
    with pytest.raises(UserError, match="two of them are named piqa"):
        check_exports(["piqa", str(tmp_path / "piqa.jsonl")], None)
    with pytest.raises(UserError, match="did you mean 'arc_easy'"):
        expand(["arc_eas"])


def test_what_the_harness_reads_is_checked_and_in_utf_8(tmp_path):
    """It knows one encoding, and fields beside those of the task may differ in type from row to row."""
    rows = [{"question": "é?", "choices": ["3", "4"], "answer": 1, "id": 1}, {"page": "", "id": None}]
    rows[1] |= {"question": "?", "choices": ["a", "b", "c"], "answer": 2}
    lines = "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "mine.jsonl").write_bytes(lines.encode("utf-16"))
    out = tmp_path / "out"
    out.mkdir()
    assert write_tasks([str(tmp_path / "mine.jsonl")], None, out, tmp_path) == ["mine"]
    settings = json.loads((out / "mine.yaml").read_text())
    (path,) = settings["dataset_kwargs"]["data_files"].values()
    written = [json.loads(line) for line in Path(path).read_bytes().decode("utf-8").splitlines()]
    assert written == [{key: row[key] for key in ("question", "choices", "answer")} for row in rows]


def test_examples_are_other_rows_than_the_one_that_is_asked(tmp_path):
    path = own_task(tmp_path, "mine", [{"text": f"a b {number}"} for number in range(3)])
    assert len(check_exports([path], None, num_fewshot=2)[Path(path)]) == 3
    with pytest.raises(UserError, match=r"evaluation\.num_fewshot=3: .*mine\.jsonl has 3 rows, .*at most 2"):
        check_exports([path], None, num_fewshot=3)


def test_a_file_of_ones_own_does_not_pass_for_a_benchmark(tmp_path):
    path = own_task(tmp_path, "piqa", [{"text": "a b"}])
    with pytest.raises(UserError, match=r"piqa\.jsonl: would pass for the benchmark piqa; rename the file"):
        check_exports([path], None)


def test_only_a_newline_ends_a_row(tmp_path):
    """JSON allows Unicode's other line ends inside of a text, and exports hold them."""
    row = {"page": "one\u2028two\x85three"}
    (tmp_path / "pages.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    check_exports([str(tmp_path / "pages.jsonl")], None)


def test_text_is_cut_to_so_many_bytes_not_letters(monkeypatch):
    monkeypatch.setattr(evaluate, "held_out_texts", lambda config: iter(["ééé", "abcdefgh", "never"]))
    config = GrowLLM()
    config.evaluation.text_kb = 0.01
    assert evaluate._texts(config) == ["ééé", "abcd"]
    config.evaluation.text_kb = 0.005
    assert evaluate._texts(config) == ["éé", "a"]


def test_rows_of_tasks_may_begin_with_the_mark_of_an_editor(tmp_path):
    row = {"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}
    for codec in ("utf-8-sig", "utf-16"):
        (tmp_path / "mine.jsonl").write_bytes(f"{json.dumps(row)}\r\n".encode(codec))
        check_exports([str(tmp_path / "mine.jsonl")], None)
    (tmp_path / "mine.jsonl").write_bytes(json.dumps(row | {"question": "é"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(UserError, match=r"mine\.jsonl: cannot be read as UTF-8 text"):
        check_exports([str(tmp_path / "mine.jsonl")], None)

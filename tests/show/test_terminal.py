"""How a run ends on the terminal, and what a dry run prints."""

from tests.toyroom.config import TrainToy
from toolkit.runs.record import Run
from toolkit.show.table import Table
from toolkit.show.terminal import dry_run_table, show, show_end


def printed(capsys, monkeypatch, work):
    monkeypatch.setenv("COLUMNS", "400")  # whatever the folder's length, a line is a line
    work()
    return capsys.readouterr().out


def ending(capsys, monkeypatch, folder, places=None, **how):
    run = Run(folder, TrainToy())
    return printed(capsys, monkeypatch, lambda: show_end(run, places or {}, **how))


def inside(text):
    return [line.strip("│ ") for line in text.splitlines() if line.startswith("│")]


def test_brackets_in_paths_are_shown_as_they_are(capsys, monkeypatch, tmp_path):
    folder = tmp_path / "[red] clip [/red]"
    (folder / "model [bold]").mkdir(parents=True)
    text = ending(capsys, monkeypatch, folder, {"weights": folder / "model [bold]"}, first=["[blue]out.mp4  4x4"])
    assert inside(text) == [
        "[blue]out.mp4  4x4",
        f"run      {folder}",
        f"report   {folder / 'report.html'}",
        f"weights  {folder / 'model [bold]'}",
    ]


def test_the_tables_come_first_then_where_things_are(capsys, monkeypatch, tmp_path):
    for name in ("arms", "headline"):
        Table(f"The {name}", ["what", "value"], [["loss [x]", 0.25]]).save(tmp_path / "tables" / f"{name}.json")
    (tmp_path / "samples").mkdir()
    places = {"samples": tmp_path / "samples", "weights": tmp_path / "model"}
    text = ending(capsys, monkeypatch, tmp_path, places, tables=("arms", "headline"), last=["drive it"])
    assert text.index("The arms") < text.index("The headline") < text.index("train-toy done")
    assert "loss [x]" in text
    lines = inside(text)
    assert [line.split()[0] for line in lines] == ["run", "report", "samples", "drive"]


def test_a_run_without_a_table_ends_all_the_same(capsys, monkeypatch, tmp_path):
    assert inside(ending(capsys, monkeypatch, tmp_path)) == [f"run      {tmp_path}", f"report   {tmp_path}/report.html"]


def test_a_dry_run_says_what_it_built_and_that_nothing_ran(capsys, monkeypatch):
    table = dry_run_table([["denoiser", 1234567, "ADM"], ["one call, GFLOPs", 0.5, ""]], 0.26)
    text = printed(capsys, monkeypatch, lambda: show(table))
    assert "1234567" in text and "built on the meta device in 0.3 s; nothing was run" in " ".join(text.split())

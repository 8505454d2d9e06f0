"""Tables of several runs put together."""

import json

from tests.show.test_browse import make_run
from toolkit.show.browse import group_runs, read_run
from toolkit.show.merge import merged
from toolkit.show.table import Spread, Table

COLUMNS = ["variant", "distance", "said"]


def write(folder, rows, columns=COLUMNS, name="headline", **config):
    make_run(folder, **config)
    Table("Distances", columns, rows).save(folder / "tables" / f"{name}.json")
    return read_run(folder)


def test_rows_of_seeds_become_means_and_rows_of_configs_stand_below_one_another(tmp_path):
    runs = [
        write(tmp_path / "0", [["ours", 1.0, "yes"], ["theirs", 5, "a"]], seed=0, width=1),
        write(tmp_path / "1", [["ours", 4.0, "yes"], ["theirs", 5, "b"]], seed=1, width=1),
        write(tmp_path / "2", [["ours", Spread(9.0, 2.0, 4), "yes"], ["new", 1.5, None]], seed=0, width=2),
    ]
    found, problems = merged(group_runs(runs))
    (table,) = found["headline"]
    assert problems == [] and table.columns == ["variant", "run", "distance", "said"]
    assert table.rows[0] == ["ours", "width=1", Spread(2.5, 4.5**0.5, 2), "yes"]  # 1 and 4: squares 2.25 twice
    assert table.rows[1] == ["ours", "width=2", Spread(9.0, 2.0, 4), "yes"]
    assert table.rows[2] == ["theirs", "width=1", 5, "differs"]
    assert table.rows[3] == ["new", "width=2", 1.5, None]


def test_of_one_config_there_is_no_column_of_runs_and_equal_first_cells_are_rows_apart(tmp_path):
    runs = [write(tmp_path / str(seed), [["a", seed, ""], ["a", 10 * seed, ""]], seed=seed) for seed in (1, 3)]
    (table,) = merged(group_runs(runs))[0]["headline"]
    assert table.columns == COLUMNS
    assert [row[1] for row in table.rows] == [Spread(2.0, 2**0.5, 2), Spread(20.0, 200**0.5, 2)]


def test_the_headline_comes_first_other_columns_stay_apart_and_a_damaged_file_is_named(tmp_path):
    one = write(tmp_path / "0", [["a", 1, ""]], name="another", seed=0)
    Table("", ["x"], [[1]]).save(one.dir / "tables" / "headline.json")
    other = write(tmp_path / "1", [["a", 1]], columns=["variant", "distance"], name="another", seed=1)
    (other.dir / "tables" / "headline.json").write_text(json.dumps({"rows": []}))
    found, problems = merged(group_runs([one, other]))
    assert list(found) == ["headline", "another"] and len(found["another"]) == 2
    assert len(problems) == 1 and "headline.json: not a table" in problems[0]

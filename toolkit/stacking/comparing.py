def compare_run(config, run):
    from toolkit.runs.table import Table

    Table("t", ["a"], [["x"]], "").save(run.path("tables", "headline.json"))

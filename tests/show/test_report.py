import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.show.test_browse import make_run
from toolkit.errors import UserError
from toolkit.show import figures
from toolkit.show.charts import MOST_POINTS, chart, read_scalars, thin
from toolkit.show.report import write_report
from toolkit.show.table import Spread, Table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = '<script>document.body.dataset.evil="yes"</script>'
HOVER = """
const svg = document.querySelector("[data-chart] svg"), box = svg.getBoundingClientRect();
svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + 60, clientY: box.top + 50}));
document.body.dataset.tip = document.getElementById("tip").textContent;
"""
VOID = {"meta", "img", "br", "line", "circle", "path", "link", "input"}


class Balance(HTMLParser):
    """Fails on a closing tag that does not match; collects every address the page refers to."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href", "poster", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def fill(folder, seed=0, status="done", **config):
    make_run(folder, seed=seed, status=status, loss=1.0 + seed, **config)
    lines = [{"stage": "denoiser", "step": step, "loss": 1 / step, EVIL: 1.0} for step in range(1, 50)]
    lines.append({"stage": "prior", "step": 1, "nats": float("nan")})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"stage": "pri')
    images = np.random.default_rng(seed).uniform(-1, 1, (4, 1, 8, 8))
    figures.image_grid(folder / "samples" / "prior_grid.png", images, caption="one row per code & more")
    (folder / "samples" / "story.txt").write_text(f"Once {EVIL}")
    (folder / "samples" / "roll.mp4").write_bytes(b"not really a film")
    table = Table("Distances " + EVIL, ["variant", "distance"], [["ours", Spread(1.0, 0.1, 3)]])
    table.save(folder / "tables" / "headline.json")
    (folder / "tables" / "broken.json").write_text("{")
    (folder / "run.log").write_text(f"a log line {EVIL}\n")
    return folder


def check_page(page):
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert all(address.startswith(("data:", "#")) for address in balance.addresses)
    assert EVIL not in page
    assert balance.tags.count("script") == 1
    return balance


def test_one_run_is_one_self_contained_page(tmp_path):
    folder = fill(tmp_path / "run")
    path = write_report([folder])
    assert path == folder / "report.html"
    page = path.read_text()
    check_page(page)
    for section in ("Headline", "Samples", "Curves", "Tables", "Config", "Environment"):
        assert f"<h2>{section}</h2>" in page
    assert "<h2>Error</h2>" not in page
    assert base64.b64encode((folder / "samples" / "prior_grid.png").read_bytes()).decode() in page
    assert "one row per code &amp; more</figcaption>" in page
    assert "<video controls" in page
    assert "1 ± 0.1 (n=3)" in page
    assert "broken.json: not a table" in page
    assert "1 damaged line(s) of metrics.jsonl" in page
    assert "no finite value" in page


def test_a_failed_run_opens_with_its_error(tmp_path):
    page = write_report([fill(tmp_path / "run", status="failed")]).read_text()
    check_page(page)
    assert page.index("step 7: loss is NaN") < page.index("<h2>Headline</h2>")
    assert "a log line &lt;script&gt;" in page


def test_many_runs_are_compared_and_their_differences_marked(tmp_path):
    for seed in (1, 2):
        fill(tmp_path / "runs" / str(seed), seed=seed)
    fill(tmp_path / "runs" / "3", seed=3, status="failed")
    (tmp_path / "runs" / "4").mkdir()
    (tmp_path / "runs" / "4" / "run.json").write_text("{")
    page = write_report([tmp_path / "runs" / "*"], tmp_path / "out" / "all.html").read_text()
    check_page(page)
    assert "2.5 ± 0.71 (n=2)" in page
    assert '<tr class="differs"><td>seed</td>' in page
    assert "keys that all runs share" in page
    assert "not a run record" in page
    assert page.count('<path class="line s1 d0"') >= 2  # the second run: in the legend and in the curves


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no run there"):
        write_report([tmp_path / "x"])
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="not a run record"):
        write_report([tmp_path])


def test_thinning_keeps_spikes_and_gaps():
    points = [(float(step), 1.0) for step in range(10_000)]
    points[1234] = (1234.0, 50.0)
    points[4321] = (4321.0, float("nan"))
    kept = thin(points)
    assert len(kept) <= MOST_POINTS + 1
    assert points[1234] in kept
    assert points[4321] in kept
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


def test_charts_break_lines_at_gaps_and_choose_a_scale():
    gap = chart(
        "loss", [("a", 0, [(0, 1.0), (1, 2.0), (2, float("inf")), (3, 2.0), (4, 1.0), (5, float("nan")), (6, 1.5)])]
    )
    assert re.search(r'd="M[^M"]+M[^M"]+"', gap)
    assert gap.count("<circle") == 1
    assert "log scale" not in gap
    assert "log scale" in chart("loss", [("a", 0, [(0, 1.0), (1, 100.0)])])
    assert "<text" in chart("constant", [("a", 0, [(0, 0.0), (1, 0.0)])])
    assert "<text" in chart("one point", [("a", 0, [(3, 1e-8)])])


def test_scalars_skip_what_is_not_a_number(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"stage":"a","step":1,"x":1,"name":"n","flag":true}\n[]\n{"step":1}\nnull\n'
    )
    assert read_scalars(tmp_path) == ({("a", "x"): [(1.0, 1.0)]}, 3)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
def test_the_page_works_in_a_browser_without_network(tmp_path):
    fill(tmp_path / "run")
    page = write_report([tmp_path / "run"]).read_text()
    path = tmp_path / "hovered.html"
    path.write_text(page.replace("</body>", f"<script>{HOVER}</script></body>"))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --enable-logging=stderr"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert 'data-charts="2"' in result.stdout  # the script ran to its end
    assert re.search(r'data-tip="step \d+loss: [\d.]+"', result.stdout)  # the values under the pointer
    assert "data-evil" not in result.stdout
    assert "CONSOLE" not in result.stderr  # no script error, nothing blocked by the content policy

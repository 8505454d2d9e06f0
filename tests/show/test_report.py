import base64
import html
import itertools
import json
import re
import shutil
import subprocess
from fractions import Fraction
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.show.test_browse import make_run
from toolkit.data.video.write import Encoding, write_part
from toolkit.errors import UserError
from toolkit.show import figures
from toolkit.show.charts import MOST_POINTS, Line, chart, read_scalars, thin
from toolkit.show.report import write_report
from toolkit.show.table import Spread, Table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = '<script>document.body.dataset.evil="yes"</script>'
USE = """
addEventListener("load", async () => {
  const said = document.body.dataset, all = selector => [...document.querySelectorAll(selector)];
  const press = label => document.querySelector(`[aria-label="${label}"]`).click();
  const wait = () => new Promise(done => setTimeout(done, 10));
  const settled = async test => { for (let i = 0; i < 400 && !test(); i++) await wait(); };
  const films = all(".players video");
  const times = () => [...new Set(films.map(film => film.currentTime.toFixed(4)))].join();
  const still = () => films.every(film => !film.seeking && film.readyState > 1);
  await settled(still);
  for (let step = 0; step < 3; step++) { press("one frame on"); await settled(still); }
  said.films = films.length;
  said.third = times();
  said.told = document.querySelector(".bar output").textContent;
  press("play or pause all");
  await settled(() => films.every(film => film.currentTime > 4.6 / 8));
  press("play or pause all");
  await settled(still);
  said.paused = times().split(",").length;
  const svg = document.querySelector("[data-chart] svg"), box = svg.getBoundingClientRect();
  const event = {clientX: box.left + 60, clientY: box.top + 50};
  svg.dispatchEvent(new PointerEvent("pointermove", event));
  said.tip = document.getElementById("tip").textContent;
  document.querySelector(".legend button").click();
  svg.dispatchEvent(new PointerEvent("pointermove", event));
  said.fewer = document.getElementById("tip").textContent;
  said.shown = all('[data-line="0"]').filter(line => line.tagName === "g" && line.style.display !== "none").length;
  const image = document.querySelector(".media img");
  image.click();
  await settled(() => document.querySelector("#stage img")?.complete);
  press("larger");
  said.zoomed = document.querySelector("#stage img").getBoundingClientRect().width / image.naturalWidth > 1;
  press("close");
  const background = () => getComputedStyle(document.body).backgroundColor;
  said.colors = [0, 1, 2].map(() => { press("light or dark"); return background(); }).join("; ");
  said.wide = document.documentElement.scrollWidth <= innerWidth;
  said.done = "yes";
});
"""
VOID = {"meta", "img", "br", "line", "circle", "path", "link", "input"}
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --autoplay-policy=no-user-gesture-required"
)


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
        "loss", [Line("a", 0, [(0, 1.0), (1, 2.0), (2, float("inf")), (3, 2.0), (4, 1.0), (5, float("nan")), (6, 1.5)])]
    )
    assert re.search(r'd="M[^M"]+M[^M"]+"', gap)
    assert gap.count("<circle") == 1
    assert "log scale" not in gap
    assert "log scale" in chart("loss", [Line("a", 0, [(0, 1.0), (1, 100.0)])])
    assert "<text" in chart("constant", [Line("a", 0, [(0, 0.0), (1, 0.0)])])
    assert "<text" in chart("one point", [Line("a", 0, [(3, 1e-8)])])


def test_scalars_skip_what_is_not_a_number(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"stage":"a","step":1,"x":1,"name":"n","flag":true}\n[]\n{"step":1}\nnull\n'
    )
    assert read_scalars(tmp_path) == ({("a", "x"): [(1.0, 1.0)]}, 3)


def film(folder, num=8, rate=8):
    """A clip whose frames differ."""
    frames = np.zeros((num, 32, 32, 3), np.uint8)
    for t in range(num):
        frames[t, 4 * t : 4 * t + 4] = 255
    write_part(folder / "samples" / "film.mp4", frames, Encoding(32, 32, Fraction(rate)))


def test_runs_of_several_papers_have_a_part_each(tmp_path):
    for command, seed in itertools.product(("train-disco", "grow-llm"), (1, 2)):
        folder = fill(tmp_path / command / str(seed), seed=seed, budget={EVIL: 1})
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(record | {"command": command}))
    page = write_report([tmp_path / "*"], tmp_path / "all.html").read_text()
    check_page(page)
    assert re.findall('<h2 class="part">([^<]+)</h2>', page) == ["grow-llm", "train-disco"]
    anchors, targets = re.findall(r'<section id="([^"]+)"', page), re.findall(r'<a href="#([^"]+)"', page)
    assert len(set(anchors)) == len(anchors) and targets == anchors
    for part in page.split('<h2 class="part">')[1:]:
        for section in ("Headline", "Curves", "Samples", "Tables", "Config", "Environment"):
            assert f"<h3>{section}</h3>" in part
        assert part.count('<path class="band s0"') == 1 + 1  # the loss, and the one whose name is hostile
        assert (
            part.count("<h3>prior grid</h3>") == 1 and "seed=1</figcaption>" in part and "seed=2</figcaption>" in part
        )
        assert "1 ± 0.1 (n=3)" in part  # the two runs' tables agree
        assert "mean ± sample standard deviation over the seeds of a config" in part


def test_a_run_that_did_not_finish_is_not_in_the_mean(tmp_path):
    for seed, status in ((1, "done"), (2, "done"), (3, "interrupted")):
        make_run(tmp_path / str(seed), seed=seed, status=status)
        lines = [{"stage": "a", "step": step, "loss": float(seed**2)} for step in (1, 2)]
        (tmp_path / str(seed) / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page = write_report([tmp_path / "*"], tmp_path / "all.html").read_text()
    (data,) = re.findall('data-chart="([^"]+)"', page)
    mean, other = json.loads(html.unescape(data))
    # 1 and 4: mean 2.5, deviation 3 / sqrt(2)
    assert mean["label"] == "2 runs" and [point[3] for point in mean["points"]] == ["2.5 ± 2.1 (n=2)"] * 2
    assert other["label"] == "seed=3 (interrupted)" and [point[3] for point in other["points"]] == ["9", "9"]


def test_a_hundred_runs_make_a_page_of_bounded_size(tmp_path):
    lines = "\n".join(json.dumps({"stage": "a", "step": step, "loss": 1 / (1 + step)}) for step in range(100))
    for run in range(100):
        make_run(tmp_path / str(run), seed=run % 2, lr=run // 2)
        (tmp_path / str(run) / "metrics.jsonl").write_text(lines)
    page = write_report([tmp_path / "*"], tmp_path / "all.html").read_text()
    assert page.count('<path class="band ') == 50 and len(page) < 3_000_000


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
def test_the_page_works_in_a_browser_without_network(tmp_path):
    for seed in (1, 2, 3):
        folder = fill(tmp_path / "runs" / str(seed), seed=seed, width=1 + seed // 2)
        (folder / "samples" / "roll.mp4").unlink()
        film(folder)
    page = write_report([tmp_path / "runs"], tmp_path / "all.html").read_text()
    path = tmp_path / "used.html"
    path.write_text(page.replace("</body>", f"<script>{USE}</script></body>"))
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", "--window-size=360,700"]
    command += ["--virtual-time-budget=20000", "--dump-dom", path.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    said = dict(re.findall(r'data-(\w+)="([^"]*)"', re.search("<body[^>]*>", result.stdout)[0]))
    assert said.get("done") == "yes", (said, result.stderr[-2000:])  # the script ran to its end
    assert said["charts"] == "2" and "evil" not in said
    assert said["films"] == "3" and said["third"] == "0.4375"  # 3.5 frames of an eighth of a second, in all
    assert said["told"] == "frame 4 of 8 · 0.44 s" and said["paused"] == "1"
    assert re.fullmatch(r"step \d+width=1: [\d.]+width=2: [\d.]+ ± 0 \(n=2\)", said["tip"])
    assert said["fewer"].count("width=") == 1 and said["shown"] == "0"
    assert said["zoomed"] == "true" and said["wide"] == "true"
    light, dark, auto = said["colors"].split("; ")
    assert light != dark and auto in (light, dark)
    assert "CONSOLE" not in result.stderr  # no script error, nothing blocked by the content policy

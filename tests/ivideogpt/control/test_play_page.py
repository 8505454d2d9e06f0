"""The page of ``toolkit play`` while it waits for an answer: its script in Node, on a document that draws nothing."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from toolkit.ivideogpt.control import play

NODE = shutil.which("node")
DOCUMENT = """
const made = {};
function element() {
  const own = { children: [], dataset: {}, style: {}, classList: { add() {}, remove() {} }, value: "0", on: {} };
  own.append = (...more) => own.children.push(...more);
  own.replaceChildren = (...more) => { own.children = more; };
  own.appendChild = child => { own.children.push(child); return child; };
  own.addEventListener = (name, work) => { own.on[name] = work; };
  own.setAttribute = () => {};
  return own;
}
globalThis.document = {
  ...element(), body: element(), documentElement: element(), createElement: element, querySelectorAll: () => [],
  getElementById: id => made[id] ||= element(),
};
globalThis.Option = function () {};
let asked = [], words = 0, refused = null;
const game = { low: [-1, -1], high: [1, 1], names: ["a", "b"], right: 0, down: 1, num_starts: 9, truth: false };
globalThis.fetch = (path, body) => new Promise(done => {
  const sent = body ? JSON.parse(body.body) : {};
  const seen = { frame: "data:", t: path === "/step" ? 5 : 0, world: sent.world };
  if (path === "/fork" || (path === "/reset" && !sent.world)) seen.world = `w${words++}`;
  const answer = refused || (path === "/info" ? { games: [game, game] } : seen);
  const ready = () => done({ ok: !refused, status: 400, json: async () => answer });
  asked.push({ path, sent, ready });
});
const pause = () => new Promise(done => setTimeout(done, 5));
async function answered() { while (!asked.length) await pause(); asked.shift().ready(); await pause(); }
async function begun() { await answered(); await answered(); }
const tab = number => made.worlds.children[number].on.click();
const shown = () => worlds.map(world => [world.name, world.game, world.word, world.start, world.seen.t]);
"""


@pytest.fixture
def page():
    """A function of what to do there: what it returns."""
    if NODE is None:
        pytest.skip("no Node on this machine")
    script = re.search(r"<script>(.*)</script>", Path(play.__file__).with_name("play.html").read_text(), re.DOTALL)[1]

    def run(work):
        ending = f"(async () => {{ await begun(); {work} }})().then(value => console.log(JSON.stringify(value)));"
        done = subprocess.run([NODE, "-e", DOCUMENT + script + ending], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_what_is_asked_for_one_world_is_not_given_to_another_that_is_looked_at_meanwhile(page):
    fork = "fork(); await answered();"
    assert page(fork + "return shown();") == [["A", 0, "w0", 0, 0], ["B", 0, "w1", 0, 0]]
    meanwhile = fork + "{work}; tab(0); await answered(); return shown();"
    assert page(meanwhile.format(work="begin(7)")) == [["A", 0, "w0", 0, 0], ["B", 0, "w1", 7, 0]]
    assert page(meanwhile.format(work="act([0, 0])")) == [["A", 0, "w0", 0, 0], ["B", 0, "w1", 0, 5]]
    moved = "now.start = 3; fork(); tab(0); await answered(); return shown();"
    assert page(fork + moved)[2] == ["C", 0, "w2", 3, 0]


def test_another_model_is_taken_when_the_answer_before_has_come_and_not_where_it_is_refused(page):
    choose = 'act([0, 0]); made.game.value = "1"; made.game.on.change();'
    taken = page(choose + "await answered(); await answered(); return [shown(), now.game];")
    assert taken == [[["A", 0, "w0", 0, 5], ["B", 1, "w1", 0, 0]], 1]
    refusal = 'await answered(); refused = { error: "no" }; await answered(); await pause();'
    kept = page(choose + refusal + "return [shown(), now.name, made.game.value, made.facts.textContent];")
    assert kept == [[["A", 0, "w0", 0, 5]], "A", 0, "no"]


def test_a_world_that_has_ended_is_said_to_have(page):
    said = "await pause(); said.push(made.facts.textContent, asked.length); made.facts.textContent = '';"
    works = ["fork();", 'save("gif");', "act([0, 0]);"]
    ended = page(f"const said = []; now.word = undefined; {said.join(works)} {said} return said;")
    assert ended == ["this world is not open any more; begin another", 0] * 3

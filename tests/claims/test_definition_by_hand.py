"""The definition of a claim is the hash of what it was before runs had recipes and words of their own."""

import hashlib
import json

from toolkit.claims.claims import Claim, Claims, RunSpec, Statistic

RUN = RunSpec("a", "train-disco", ["optim.num_steps=5"], [0, 1, 2])
OTHER = RunSpec("b", "train-disco", ["model=@a", "data=digits"], [0, 1, 2])
STATISTIC = Statistic("value", [("b", "loss")])
CLAIM = Claim("c", "quick", "said", "table 1", "", None, "", STATISTIC, [0, 1, 2], {"<=": 1.0})


def test_what_was_published_before_runs_had_recipes_is_found_again():
    runs = [
        {"name": "a", "command": "train-disco", "overrides": ["optim.num_steps=5"], "seeds": [0, 1, 2]},
        {"name": "b", "command": "train-disco", "overrides": ["model=@a", "data=digits"], "seeds": [0, 1, 2]},
    ]
    text = json.dumps([[{"kind": "value", "terms": [["b", "loss"]]}, [0, 1, 2], {"<=": 1.0}], runs], sort_keys=True)
    assert (
        Claims("t", {"a": RUN, "b": OTHER}, {"c": CLAIM}).definition(CLAIM)
        == hashlib.sha256(text.encode()).hexdigest()[:16]
    )

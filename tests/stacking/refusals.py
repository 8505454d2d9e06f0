"""Growing what cannot be grown."""

import pytest

from toolkit.errors import UserError
from toolkit.stacking.config import Growth
from toolkit.stacking.grow_folder import grow_checkpoint

STACK = Growth(operator="stack", factor=2)


def refused(source, words, error=UserError, growth=STACK, out=None, **settings):
    out = out or source.parent / "out"
    with pytest.raises(error) as caught:
        grow_checkpoint(source, out, growth, **settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in source.parent.iterdir() if "out" in path.name) in ([], ["out"])
    assert not out.exists() or not (out / "config.json").exists()

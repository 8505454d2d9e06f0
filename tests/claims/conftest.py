"""What the tests of claims share."""

import pytest

from tests.claims.small import CLAIMS
from toolkit.claims import results as publish


@pytest.fixture
def paper(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "experiments" / "small"
    folder.mkdir(parents=True)
    (folder / "claims.yaml").write_text(CLAIMS)
    (folder / "README.md").write_text(f"# By hand\n\nbefore\n\n{publish.BEGIN}\nstale\n{publish.END}\n\nafter *this*\n")
    return folder

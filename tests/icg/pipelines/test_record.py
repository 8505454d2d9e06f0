"""The guiders in the pipelines of diffusers: exact, or refused, as the record of experiments/icg says."""

import json

import pytest

from tests.icg.pipelines.parts import CASES
from tests.icg.pipelines.record import PAGE, RECORD, outcome, with_page

KEPT = json.loads(RECORD.read_text())


def test_the_record_has_every_pipeline_and_the_page_shows_it():
    assert list(KEPT["pipelines"]) == list(CASES)
    assert with_page(PAGE.read_text(), KEPT) == PAGE.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_is_guided_exactly_or_refused(name):
    """Off: equal to the bit. On: twice the calls, equal to guidance written once more, and nothing is left behind."""
    assert outcome(name) == KEPT["pipelines"][name]


def test_what_is_not_exact_is_refused_with_a_line():
    said = [line for row in KEPT["pipelines"].values() for line in row.values()]
    assert not [line for line in said if line.startswith("not exact")]


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "WanPipeline", "PixArtSigmaPipeline"])
def test_three_of_them_every_time(name):
    assert outcome(name) == KEPT["pipelines"][name]

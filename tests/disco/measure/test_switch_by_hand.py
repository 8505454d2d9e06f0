"""After which step z is exchanged, and whose class is counted as changed."""

import torch

from tests.disco.measure.test_measures import exact  # noqa: F401
from toolkit.disco.measure import paths
from toolkit.zoo.edm.samplers import edm_sigmas


def test_z_is_exchanged_after_its_share_of_the_steps(exact, monkeypatch):  # noqa: F811
    asked, draw = [], paths.draw_samples

    def noting(*arguments, **more):
        asked.append(more.get("switch"))
        return draw(*arguments, **more)

    monkeypatch.setattr(paths, "draw_samples", noting)
    found = paths.switch(exact)
    sampling = exact.config.sampling
    levels = edm_sigmas(sampling.num_steps, sampling.sigma_min, sampling.sigma_max, sampling.rho)[:-1]
    limits = [below for _, below in filter(None, asked)]
    steps = [int((levels > below).sum()) for below in limits]
    assert steps == [round(share * sampling.num_steps) for share in (0.25, 0.5, 0.75, 0.9)]
    # of eight modes one in eight is drawn again; late, nothing changes
    assert 0.7 < found["class_changed.percent_25"] <= 1 and found["class_changed.percent_90"] < 0.1
    assert torch.is_tensor(asked[-1][0])

"""HLG on a screen without HDR: a grey below the knee, by the formulas of the standards."""

import numpy as np
import pytest

from toolkit.data.video.tone import ToneMap


@pytest.mark.parametrize("code", [0.25, 0.4, 0.5])
def test_the_scenes_light_of_hlg_becomes_the_screens_by_a_gamma_of_1_2(code):
    """ARIB STD-B67 up to a half: code^2 / 3 of the peak; BT.2100: its power 1.2, times 1000 cd/m2.

    That is at most 51 cd/m2, below the knee at 92: of 203 cd/m2 of white, shown by the inverse of a gamma of 2.4.
    """
    screen = 1000 * (code**2 / 3) ** 1.2
    shown = ToneMap(18)(np.full((1, 1, 3), round(65535 * code), np.uint16))
    assert shown.ravel() / 65535 == pytest.approx([(screen / 203) ** (1 / 2.4)] * 3, abs=2e-3)

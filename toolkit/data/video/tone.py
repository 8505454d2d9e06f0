"""HDR for screens that have none: PQ and HLG in BT.2020 to SDR in BT.709.

Values become light (ITU-R BT.2100), BT.2020's primaries BT.709's; the brightest of a pixel's three is rolled off by the
curve of BT.2390 section 5.4.1 from a peak of 1000 cd/m2 to the 203 of graphics white, and the pixel scaled by it, so
that hues stay; then the inverse of the gamma of 2.4 with which screens show it (BT.1886).
"""

from __future__ import annotations

import numpy as np

HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
WHITE_CD_M2 = 203.0  # of graphics in HDR (BT.2408)
PEAK_CD_M2 = 1000.0  # above which all is white
TO_BT709 = np.array(  # BT.2087
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


class ToneMap:
    """Call it with uint16 RGB (h, w, 3) in ``transfer`` (16 PQ, 18 HLG) and BT.2020; it gives uint16 in BT.709."""

    def __init__(self, transfer: int):
        code = np.arange(65536) / 65535
        self.transfer = transfer
        lights = np.geomspace(1e-3, 20 * PEAK_CD_M2, 4096)
        self.factors = lights / WHITE_CD_M2, rolled_off(lights) / lights
        self.light = ((pq_light(code) if transfer == 16 else hlg_light(code)) / WHITE_CD_M2).astype(np.float32)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        light = self.light[pixels]
        if self.transfer == 18:  # the scene's light to the screen's: gamma 1.2 of the luminance at 1000 cd/m2
            luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32) * (WHITE_CD_M2 / PEAK_CD_M2)
            light = light * np.power(np.maximum(luminance, 1e-6), 0.2)[..., None]
        light = np.maximum(light @ TO_BT709.T, 0)
        light *= np.interp(light.max(-1, keepdims=True), *self.factors).astype(np.float32)
        return np.rint(65535 * np.power(np.clip(light, 0, 1), 1 / 2.4)).astype(np.uint16)


def pq_light(code: np.ndarray) -> np.ndarray:
    """cd/m2 of PQ's values in [0, 1] (SMPTE ST 2084)."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = np.power(code, 1 / m2)
    return 10_000 * np.power(np.maximum(root - c1, 0) / (c2 - c3 * root), 1 / m1)


def hlg_light(code: np.ndarray) -> np.ndarray:
    """The scene's light of HLG's values in [0, 1], 1 as the peak's cd/m2 (ARIB STD-B67)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return PEAK_CD_M2 * np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)


def pq_code(light: np.ndarray) -> np.ndarray:
    """The inverse of :func:`pq_light`."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = np.power(np.maximum(light, 0) / 10_000, m1)
    return np.power((c1 + c2 * root) / (1 + c3 * root), m2)


def rolled_off(light: np.ndarray) -> np.ndarray:
    """cd/m2 that a screen of ``WHITE_CD_M2`` shows for cd/m2 up to ``PEAK_CD_M2``; below the knee they are the same."""
    peak, white = pq_code(np.array([PEAK_CD_M2, WHITE_CD_M2]))
    most = white / peak
    code = np.minimum(pq_code(light) / peak, 1)
    knee = 1.5 * most - 0.5
    t = np.maximum(code - knee, 0) / (1 - knee)
    curve = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return pq_light(np.where(code < knee, code, curve) * peak)

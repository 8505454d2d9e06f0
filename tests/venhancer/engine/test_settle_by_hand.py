"""What becomes of a window's x_0: blended with its neighbour's, and taken one step further, with plain numbers."""

from __future__ import annotations

import torch

from toolkit.venhancer.engine.in_flight import Flight, Geometry
from toolkit.venhancer.engine.windows import Windows
from toolkit.venhancer.model.samplers import Evaluation

WINDOWS = Windows(7, 2, ((0, 5), (2, 7)))  # frames 2, 3 and 4 lie in both


def settle(flight, step, evaluation, values):
    """Both windows of a step, each with one value everywhere; the frames' latents after it."""
    for index, value in enumerate(values):
        start, end = WINDOWS.spans[index]
        flight.window.write(range(start, end), torch.full((end - start, 1, 1, 1), value))
        flight.settle(WINDOWS, index, step, evaluation, lambda frame, rows: torch.full((1, 1, 1, 1), float(frame)))
    return flight.latents[(step + 1) % 2].read(range(7)).flatten().tolist()


def test_neighbours_are_blended_and_every_solvers_terms_are_added(tmp_path):
    flight = Flight(tmp_path, Geometry(1, 1, 1, 7, 5, 2, 2, 2), "by hand")
    clean = Evaluation(step=9, alpha=1.0, sigma=0.0, keep=0.0, pull=1.0, memory_x0=1.0)
    assert settle(flight, 0, clean, (3.0, 9.0)) == [3, 3, 3, 5, 7, 9, 9]  # 3, then a third and two thirds of the way
    both = Evaluation(step=8, alpha=1.0, sigma=0.0, keep=0.5, pull=2.0, recall=-1.0, noise=10.0)
    before = [3, 3, 3, 5, 7, 9, 9]  # the latents, and the x_0 that is remembered
    expected = [0.5 * z + 2 * 1 - z + 10 * frame for frame, z in enumerate(before)]
    assert settle(flight, 1, both, (1.0, 1.0)) == expected


def test_a_block_of_noise_is_one_frames_and_a_function_of_its_arguments():
    geometry = Geometry(3, 8, 5, 7, 5, 2, 2, 2)  # channels, rows and columns first
    one = Flight.noise_of(geometry, 0, "start", 2, (2, 6))
    assert one.shape == (1, 3, 4, 5) and torch.equal(one, Flight.noise_of(geometry, 0, "start", 2, (2, 6)))
    others = [(1, "start", 2, (2, 6)), (0, "step", 2, (2, 6)), (0, "start", 3, (2, 6)), (0, "start", 2, (1, 5))]
    assert not any(torch.equal(one, Flight.noise_of(geometry, *other)) for other in others)

"""What time it is, by every scheduler of diffusers."""

import itertools
import math
import warnings

import pytest
from diffusers import schedulers

from toolkit.errors import UserError
from toolkit.icg import SchedulerClock

TAKES = {"SCMScheduler": {"max_timesteps": math.pi / 2}}  # arguments of set_timesteps
# Of text tokens, or inverted in time; those that the environment lacks something for make themselves known.
OTHERS = {"AmusedScheduler", "BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler"}
OTHERS |= {"VQDiffusionScheduler", "RFD4ProteinaScheduler", "ConsistencyDecoderScheduler"}
OTHERS |= {"HeliosScheduler", "HeliosDMDScheduler"}  # count within a stage of a pyramid
UNKNOWN = {"KarrasVeScheduler", "MiniMaxH3Scheduler"}
NAMES = [
    name
    for name in sorted(dir(schedulers))
    if name.endswith("Scheduler") and not name.startswith("Flax") and "Inverse" not in name and name not in OTHERS
]


def scheduled(name, **config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            scheduler = getattr(schedulers, name)(**config)
        except ImportError as error:
            pytest.skip(str(error).strip().splitlines()[0])
        options = TAKES.get(name, {})
        scheduler.set_timesteps(10, **({"intermediate_timesteps": None} | options if options else {}))
    return scheduler, [float(time) for time in scheduler.timesteps]


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_runs_from_about_one_down_to_about_zero(name):
    scheduler, times = scheduled(name)
    clock = SchedulerClock(scheduler)
    if name in UNKNOWN:
        with pytest.raises(UserError, match=r"what time .* counts in is not known"):
            clock.fraction(times[0])
        return
    shares = [clock.fraction(time) for time in times]
    assert 0.85 <= shares[0] <= 1.001 and -0.001 <= shares[-1] <= 0.25
    assert all(later <= earlier + 1e-3 for earlier, later in itertools.pairwise(shares))


@pytest.mark.parametrize("name", ["CMStochasticIterativeScheduler", "EDMEulerScheduler", "EulerDiscreteScheduler"])
def test_the_noise_of_continuous_times_is_the_schedules_own(name):
    config = {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True}
    own = {"sigma_min": 0.002, "sigma_max": 700.0} if name.startswith("Euler") else {}
    scheduler, times = scheduled(name, **(config | own if own else {}))
    levels = [SchedulerClock(scheduler).noise_level(time) for time in times]
    assert levels == pytest.approx([float(sigma) for sigma in scheduler.sigmas[: len(levels)]], rel=1e-3)


def test_the_noise_of_an_angle_is_its_tangent():
    scheduler, times = scheduled("IPNDMScheduler")
    levels = [SchedulerClock(scheduler).noise_level(time) for time in times[1:]]
    kept = [(1 - float(beta) ** 2) ** 0.5 for beta in scheduler.betas[1 : len(times)]]
    assert levels == pytest.approx([float(b) / a for b, a in zip(scheduler.betas[1:], kept, strict=False)], rel=1e-3)

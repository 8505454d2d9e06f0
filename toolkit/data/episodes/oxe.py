"""The pre-training mixture: 35 Open X-Embodiment data sets, each with its weight and frame step (table 4).

``data.path`` holds one folder of npz episodes per data set (``toolkit data convert oxe``), under its own name.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from toolkit.data.config import EpisodeData
from toolkit.data.episodes.episode import Episode, EpisodeSet, EpisodeSpec
from toolkit.data.episodes.sets import EpisodeDataset, load_episode_folder
from toolkit.data.hub import given_path
from toolkit.errors import UserError

log = logging.getLogger(__name__)
_LARGE = {  # weight in per cent, frame step
    "fractal20220817_data": (12.8, 1),
    "bridge": (12.8, 2),
    "bc_z": (12.8, 3),
    "robo_net": (12.8, 1),
    "kuka": (8.5, 3),
    "language_table": (4.2, 3),
    "stanford_mask_vit_converted_externally_to_rlds": (4.2, 1),
    "uiuc_d3field": (2.2, 1),
}
_SMALL_STEPS = {  # 0.5 per cent each
    "taco_play": 5,
    "jaco_play": 3,
    "roboturk": 3,
    "viola": 7,
    "toto": 10,
    "columbia_cairlab_pusht_real": 3,
    "stanford_kuka_multimodal_dataset_converted_externally_to_rlds": 7,
    "stanford_hydra_dataset_converted_externally_to_rlds": 3,
    "austin_buds_dataset_converted_externally_to_rlds": 7,
    "nyu_franka_play_dataset_converted_externally_to_rlds": 1,
    "furniture_bench_dataset_converted_externally_to_rlds": 3,
    "ucsd_kitchen_dataset_converted_externally_to_rlds": 1,
    "ucsd_pick_and_place_dataset_converted_externally_to_rlds": 1,
    "austin_sailor_dataset_converted_externally_to_rlds": 7,
    "utokyo_pr2_tabletop_manipulation_converted_externally_to_rlds": 3,
    "utokyo_xarm_pick_and_place_converted_externally_to_rlds": 3,
    "utokyo_xarm_bimanual_converted_externally_to_rlds": 3,
    "kaist_nonprehensile_converted_externally_to_rlds": 3,
    "dlr_sara_pour_converted_externally_to_rlds": 3,
    "dlr_sara_grid_clamp_converted_externally_to_rlds": 3,
    "dlr_edan_shared_control_converted_externally_to_rlds": 3,
    "asu_table_top_converted_externally_to_rlds": 4,
    "utaustin_mutex": 7,
    "berkeley_fanuc_manipulation": 3,
    "cmu_playing_with_food": 3,
    "cmu_play_fusion": 2,
    "cmu_stretch": 3,
}
MIXTURE: dict[str, tuple[float, int]] = _LARGE | {name: (0.5, step) for name, step in _SMALL_STEPS.items()}


def load_oxe(config: EpisodeData, seed: int, spec: EpisodeSpec) -> EpisodeDataset:
    """The data sets of the mixture that ``data.path`` has; what is missing is named, and its weight shared out.

    One per cent of each is held out. Actions differ from set to set, so clips have none. Raises UserError where none
    of the mixture is there, or what a folder's reader refuses.
    """
    assert config.path is not None
    root = given_path(config.path)
    names = [name for name in MIXTURE if (root / name).is_dir()]
    if not names:
        raise UserError(
            f"data.path={config.path}: has no folder of the mixture (such as {', '.join(list(MIXTURE)[:3])})"
        )
    missing = [name for name in MIXTURE if name not in names]
    if missing:
        log.warning("oxe: %d of %d data sets are not there: %s", len(missing), len(MIXTURE), ", ".join(missing))
    if spec.needs_action:
        raise UserError("data.name=oxe: the actions of its data sets differ; use action_conditioned=false")
    parts = {}
    for name in names:
        span = (spec.least_frames - 1) * MIXTURE[name][1] + 1
        own = replace(config, path=str(root / name), valid_fraction=0.01, num_train=None)
        parts[name] = load_episode_folder(own, seed, replace(spec, least_frames=span))
    train, valid, test = (
        _mix({name: getattr(part, split) for name, part in parts.items()}) for split in ("train", "valid", "test")
    )
    problems = [line for part in parts.values() for line in part.problems]
    return EpisodeDataset("oxe", train, valid, test, "each data set's own", str(root), problems=problems)


def _mix(sets: dict[str, EpisodeSet]) -> EpisodeSet:
    """One set whose groups keep weight and frame step; frames only. Raises UserError where sizes differ."""
    members: list[tuple[EpisodeSet, int]] = []
    groups: list[tuple[int, int, float, int]] = []
    for name, one in sets.items():
        start = len(members)
        members += [(one, index) for index in range(len(one))]
        groups.append((start, len(members), *MIXTURE[name]))
    sizes = {one.size_px for one in sets.values()}
    if len(sizes) > 1:
        raise UserError(
            f"data.size_px: frames of the mixture have sizes {sorted(sizes)}; set it, as in data.size_px=64"
        )

    def read(index: int) -> Episode:
        one, number = members[index]
        return Episode(one.read(number).image)

    lengths = [one.lengths[number] for one, number in members]
    sources = [one.sources[number] for one, number in members]
    return EpisodeSet(lengths, read, sources, sizes.pop(), groups=tuple(groups))

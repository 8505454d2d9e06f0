"""A Kuka arm that pushes random objects on a table (pybullet, its own software renderer): the stand-in for BAIR.

Needs the extra ``robots``. Lengths in metres, z up; the camera looks down on the table from behind the arm's reach.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from toolkit.errors import UserError
from toolkit.installation import install_hint

TABLE_TOP = 0.0
REACH_LOW, REACH_HIGH = np.array([0.42, -0.24, 0.13]), np.array([0.78, 0.24, 0.25])  # of the gripper's flange
STEP = np.array([0.07, 0.07, 0.04])  # an action of 1 moves the target so far
TURN = 0.5  # radians of an action of 1
NUM_SUBSTEPS = 24  # at 240 Hz
NUM_JOINTS = 7
FLANGE = 6
OBJECT_MODELS = 1000


class KukaPush(gymnasium.Env):
    """Actions in [-1, 1]: dx, dy, dz of the gripper and its turn. Observations are uint8 frames (S, S, 3).

    The reward is how far the objects moved, in metres, as in self-supervised pushing there is no task.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - gymnasium's own form
    render_mode = "rgb_array"

    def __init__(self, size_px: int = 64, num_objects: int = 3):
        try:
            import pybullet
            import pybullet_data
            from pybullet_utils.bullet_client import BulletClient
        except ImportError:
            raise UserError(f"kuka: needs pybullet; {install_hint('robots')}") from None
        self.size_px, self.num_objects = size_px, num_objects
        self.action_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
        self.observation_space = gymnasium.spaces.Box(0, 255, (size_px, size_px, 3), np.uint8)
        self.root = pybullet_data.getDataPath()
        self.bullet: Any = BulletClient(pybullet.DIRECT)
        self.view = self.bullet.computeViewMatrix([0.98, 0, 0.62], [0.58, 0, 0.0], [0, 0, 1])
        self.projection = self.bullet.computeProjectionMatrixFOV(50, 1, 0.05, 3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict]:
        """A fresh table with ``num_objects`` random objects and the arm at a random place above it."""
        super().reset(seed=seed)
        bullet = self.bullet
        bullet.resetSimulation()
        bullet.setGravity(0, 0, -9.81)
        bullet.setAdditionalSearchPath(self.root)
        bullet.loadURDF("table/table.urdf", [0.6, 0, TABLE_TOP - 0.625], useFixedBase=True)
        self.arm = bullet.loadURDF("kuka_iiwa/model.urdf", [0, 0, TABLE_TOP], useFixedBase=True)
        self.objects = [self._drop_object() for _ in range(self.num_objects)]
        for joint, angle in enumerate([0, 0.6, 0, -1.4, 0, 1.1, 0]):
            bullet.resetJointState(self.arm, joint, angle)
        self.target = self.np_random.uniform(REACH_LOW, REACH_HIGH)
        self.angle = float(self.np_random.uniform(-1, 1))
        self._drive(100)
        return self.render(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.uint8], float, bool, bool, dict]:
        """Move the gripper's target and let the physics follow for a tenth of a second."""
        before = self._object_places()
        move = np.clip(np.asarray(action, np.float64), -1, 1)
        self.target = np.clip(self.target + STEP * move[:3], REACH_LOW, REACH_HIGH)
        self.angle = float(np.clip(self.angle + TURN * move[3], -1.5, 1.5))
        self._drive(NUM_SUBSTEPS)
        moved = float(np.linalg.norm(self._object_places() - before, axis=-1).sum())
        return self.render(), moved, False, False, self._info()

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """The camera's frame."""
        size, renderer = self.size_px, self.bullet.ER_TINY_RENDERER
        picture = self.bullet.getCameraImage(size, size, self.view, self.projection, renderer=renderer)[2]
        return np.ascontiguousarray(np.reshape(picture, (size, size, 4))[..., :3], np.uint8)

    def close(self) -> None:
        """Let go of the physics server."""
        self.bullet.disconnect()

    def _drop_object(self) -> int:
        number = int(self.np_random.integers(OBJECT_MODELS))
        place = [*self.np_random.uniform(REACH_LOW[:2], REACH_HIGH[:2]), 0.08]
        turn = self.bullet.getQuaternionFromEuler(self.np_random.uniform(-np.pi, np.pi, 3).tolist())
        return self.bullet.loadURDF(f"{self.root}/random_urdfs/{number:03d}/{number:03d}.urdf", place, turn)

    def _drive(self, num_substeps: int) -> None:
        down = self.bullet.getQuaternionFromEuler([0, -np.pi, self.angle])
        angles = self.bullet.calculateInverseKinematics(self.arm, FLANGE, self.target.tolist(), down)
        for _ in range(num_substeps):
            for joint in range(NUM_JOINTS):
                self.bullet.setJointMotorControl2(
                    self.arm, joint, self.bullet.POSITION_CONTROL, angles[joint], force=300, maxVelocity=2.0
                )
            self.bullet.stepSimulation()

    def _object_places(self) -> NDArray[np.float64]:
        return np.array([self.bullet.getBasePositionAndOrientation(one)[0] for one in self.objects])

    def _info(self) -> dict[str, Any]:
        place = np.array(self.bullet.getLinkState(self.arm, FLANGE)[0])
        return {"agent": place, "objects": self._object_places()}

"""The PyBullet side of a simulated scene: bodies, physics steps and the two renderings (objects, shadows)."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from ausm.errors import AusmError
from training.sim_camera import Lens, Pose, Sway
from training.sim_models import Model, Part

Floats = NDArray[np.float64]
PHYSICS_HZ = 240
HULL_POINTS = 48  # corners of the convex collision shape; more only slows the contact search


class SimulatorError(AusmError):
    """The simulator cannot run: PyBullet is missing or refused a body."""


@contextmanager
def _quiet() -> Iterator[None]:
    """What C code writes to stderr meanwhile goes nowhere."""
    stderr, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nothing)


def import_pybullet() -> Any:
    """The pybullet module, or SimulatorError saying how to install it."""
    try:
        if "pybullet" not in sys.modules:
            with _quiet():  # it tells its build time
                import pybullet
        import pybullet
    except ImportError as error:
        raise SimulatorError(f"the simulator needs PyBullet ({error}): pip install pybullet==3.2.7") from error
    return pybullet


def pybullet_data_folder() -> Path:
    """Folder of the meshes that come with PyBullet, found without importing it (the package is only data)."""
    import_pybullet()
    import pybullet_data

    return Path(pybullet_data.getDataPath())


@dataclass(frozen=True)
class Motion:
    """A kinematic path: straight legs between way points, an added sway, and a steady turn about one axis."""

    times: Floats  # (K,) s
    points: Floats  # (K, 3) m
    turn0: Floats  # (4,) quaternion x y z w at t = 0
    axis: Floats  # (3,) unit axis of the turn
    rate: float  # rad/s
    sway: Sway | None = None

    def position(self, t: float) -> Floats:
        """(3,) m."""
        at = np.array([np.interp(t, self.times, self.points[:, k]) for k in range(3)])
        return at if self.sway is None else at + self.sway.at(t)

    def quaternion(self, t: float) -> Floats:
        """(4,) x y z w."""
        return multiply(axis_quaternion(self.axis, self.rate * t), self.turn0)


def axis_quaternion(axis: Floats, angle: float) -> Floats:
    """(4,) x y z w of a turn by `angle` rad about the unit `axis` (3,)."""
    return np.append(axis * np.sin(angle / 2), np.cos(angle / 2))


def multiply(a: Floats, b: Floats) -> Floats:
    """Quaternion product a b: first b, then a."""
    vector = a[3] * b[:3] + b[3] * a[:3] + np.cross(a[:3], b[:3])
    return np.append(vector, a[3] * b[3] - a[:3] @ b[:3])


def rotate(q: Floats, v: Floats) -> Floats:
    """(3,) v turned by the unit quaternion q."""
    return np.asarray(v + 2 * np.cross(q[:3], np.cross(q[:3], v) + q[3] * v))


def random_turn(rng: np.random.Generator, upright: bool) -> Floats:
    """(4,) any orientation, or one about the vertical only."""
    if upright:
        return axis_quaternion(np.array([0, 0, 1.0]), float(rng.uniform(0, 2 * np.pi)))
    q = rng.normal(size=4)
    return np.asarray(q / np.linalg.norm(q))


@dataclass
class Actor:
    """One labelled instance and the bodies that draw it."""

    instance_id: int
    class_name: str
    radius: float  # m
    parts: tuple[tuple[int, Part | None], ...]  # PyBullet body and the limb it is (None: a loaded robot)
    motion: Motion | None = None  # None: moved by physics
    gait: float = 0.0  # rad/s of the limbs
    joints: tuple[tuple[int, float, float, float, float], ...] = ()  # robot: index, centre, amplitude, rad/s, phase


@dataclass
class World:
    """A PyBullet client with actors. Use as a context manager; the same calls give the same frames."""

    light: Floats  # (3,) unit vector towards the light
    shading: tuple[float, float, float]  # ambient, diffuse, specular
    light_colour: Floats  # (3,) about 1
    actors: list[Actor] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._p = import_pybullet()
        self._client: int = self._p.connect(self._p.DIRECT)
        if self._client < 0:
            raise SimulatorError(f"PyBullet gave no client (code {self._client}): too many open in this process?")
        self._folder = tempfile.TemporaryDirectory(prefix="ausm_sim_")
        self._textures = 0
        self._p.setGravity(0, 0, -9.81, physicsClientId=self._client)
        self._p.setTimeStep(1.0 / PHYSICS_HZ, physicsClientId=self._client)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._p.disconnect(self._client)
        self._folder.cleanup()

    def next_id(self) -> int:
        """The instance id the next actor gets: 1, 2, ..."""
        if len(self.actors) >= 255:
            raise SimulatorError(f"{len(self.actors)} objects in the scene, 8-bit label maps hold 255")
        return len(self.actors) + 1

    def load_texture(self, texture: NDArray[np.uint8]) -> int:
        """Hand a texture (S, S, 3) RGB to PyBullet, which only reads files."""
        path = Path(self._folder.name) / f"{self._textures}.png"
        self._textures += 1
        cv2.imwrite(str(path), np.ascontiguousarray(texture[::-1, :, ::-1]))  # v points up in texture coordinates
        return int(self._p.loadTexture(str(path), physicsClientId=self._client))

    def _add_unseen(self, shape: int, position: list[float]) -> None:
        # A body without a visual shape is drawn as its collision shape: give it a speck far below everything.
        speck = self._p.createVisualShape(
            self._p.GEOM_SPHERE, radius=1e-3, visualFramePosition=[0, 0, -1e4], physicsClientId=self._client
        )
        self._p.createMultiBody(0, shape, speck, basePosition=position, physicsClientId=self._client)

    def add_plane(self, height: float) -> None:
        """An invisible floor for the physics."""
        self._add_unseen(self._p.createCollisionShape(self._p.GEOM_PLANE, physicsClientId=self._client), [0, 0, height])

    def add_fence(self, half: float) -> None:
        """Invisible walls around the square of half edge `half` m, so that nothing falls off the table."""
        for axis, sign in ((0, 1), (0, -1), (1, 1), (1, -1)):
            extents = [half + 1.0, half + 1.0, 2 * half]
            extents[axis] = 0.5
            position = [0.0, 0.0, 0.0]
            position[axis] = sign * (half + 0.5)
            shape = self._p.createCollisionShape(self._p.GEOM_BOX, halfExtents=extents, physicsClientId=self._client)
            self._add_unseen(shape, position)

    def add(
        self,
        model: Model,
        radius: float,
        position: Floats,
        turn: Floats,
        texture: int,
        motion: Motion | None,
        gait: float = 0.0,
        mass: float = 0.2,
    ) -> Actor:
        """Put a model of bounding `radius` m into the scene; physics moves it unless it has a `motion`.

        Models with limbs need a motion: their limbs are set anew for every frame.
        """
        client = self._client
        bodies: list[tuple[int, Part | None]] = []
        for part in model.parts:
            vertices = part.mesh.vertices * radius
            visual = self._p.createVisualShape(
                self._p.GEOM_MESH,
                vertices=vertices.tolist(),
                indices=list(range(len(vertices))),
                uvs=part.mesh.uv.tolist(),
                normals=part.mesh.normals.tolist(),
                rgbaColor=[1, 1, 1, 1],
                physicsClientId=client,
            )
            hull = _hull(vertices)
            shape = self._p.createCollisionShape(self._p.GEOM_MESH, vertices=hull.tolist(), physicsClientId=client)
            if visual < 0 or shape < 0:
                raise SimulatorError(
                    f"PyBullet refused a {model.class_name} of {len(vertices)} vertices (codes {visual}, {shape})"
                )
            body = self._p.createMultiBody(
                0 if motion is not None else mass,
                shape,
                visual,
                basePosition=position.tolist(),
                baseOrientation=turn.tolist(),
                physicsClientId=client,
            )
            self._p.changeVisualShape(body, -1, textureUniqueId=texture, physicsClientId=client)
            bodies.append((body, part))
        actor = Actor(self.next_id(), model.class_name, radius, tuple(bodies), motion, gait)
        self.actors.append(actor)
        return actor

    def set_contact(self, actor: Actor, friction: float, restitution: float) -> None:
        for body, _ in actor.parts:
            self._p.changeDynamics(
                body,
                -1,
                lateralFriction=friction,
                restitution=restitution,
                rollingFriction=0.002,
                spinningFriction=0.002,
                physicsClientId=self._client,
            )

    def add_robot(
        self,
        file: Path,
        scale: float,
        position: Floats,
        turn: Floats,
        motion: Motion | None,
        rng: np.random.Generator,
        colour: bool,
    ) -> Actor:
        """Load a robot whose joints swing at random; fixed in place, or carried along `motion`."""
        client = self._client
        body = self._p.loadURDF(
            str(file), position.tolist(), turn.tolist(), useFixedBase=True, globalScaling=scale, physicsClientId=client
        )
        joints = []
        for k in range(self._p.getNumJoints(body, physicsClientId=client)):
            info = self._p.getJointInfo(body, k, physicsClientId=client)
            if info[2] in (self._p.JOINT_REVOLUTE, self._p.JOINT_PRISMATIC):
                low, high = (info[8], info[9]) if info[8] < info[9] else (-1.5, 1.5)
                low, high = max(low, -2.0), min(high, 2.0)
                centre = (low + high) / 2 + rng.uniform(-0.25, 0.25) * (high - low)
                amplitude = rng.uniform(0.05, 0.25) * (high - low)
                joints.append(
                    (k, float(centre), float(amplitude), float(rng.uniform(0.5, 3.0)), float(rng.uniform(0, 6.3)))
                )
            if colour:
                shade = [*rng.uniform(0.1, 1.0, 3), 1.0]
                self._p.changeVisualShape(body, k, rgbaColor=shade, physicsClientId=client)
        low, high = np.array(self._p.getAABB(body, physicsClientId=client))
        actor = Actor(
            self.next_id(), "robot", float(np.linalg.norm(high - low)) / 2, ((body, None),), motion, 0.0, tuple(joints)
        )
        self.actors.append(actor)
        return actor

    def kick(self, actor: Actor, velocity: Floats, spin: Floats) -> None:
        """Give a body moved by physics a velocity (3,) m/s and a spin (3,) rad/s."""
        self._p.resetBaseVelocity(actor.parts[0][0], velocity.tolist(), spin.tolist(), physicsClientId=self._client)

    def place(self, t: float) -> None:
        """Put everything that does not obey physics where it is at time t."""
        for actor in self.actors:
            for k, centre, amplitude, rate, phase in actor.joints:
                angle = centre + amplitude * np.sin(rate * t + phase)
                self._p.resetJointState(actor.parts[0][0], k, angle, 0.0, physicsClientId=self._client)
            if actor.motion is None:
                continue
            at, turn = actor.motion.position(t), actor.motion.quaternion(t)
            for body, part in actor.parts:
                spot, way = at, turn
                if part is not None and (part.swing or any(part.hinge)):
                    swing = part.swing * np.sin(actor.gait * t + part.phase) if actor.gait else 0.0
                    spot = at + rotate(turn, np.array(part.hinge) * actor.radius)
                    way = multiply(turn, axis_quaternion(np.array([0, 1.0, 0]), float(swing)))
                self._p.resetBasePositionAndOrientation(body, spot.tolist(), way.tolist(), physicsClientId=self._client)

    def step(self, seconds: float) -> None:
        """Run the physics, in whole steps of 1/240 s, at least one."""
        for _ in range(max(1, round(seconds * PHYSICS_HZ))):
            self._p.stepSimulation(physicsClientId=self._client)

    def render(self, lens: Lens, pose: Pose) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The objects alone: image (H, W, 3) RGB and label map (H, W) of instance ids, 0 = none."""
        ambient, diffuse, specular = self.shading
        shot = self._p.getCameraImage(
            lens.width, lens.height, [float(x) for x in pose.view().T.reshape(-1)], lens.projection(),
            lightDirection=self.light.tolist(), lightColor=self.light_colour.tolist(), shadow=0,
            lightAmbientCoeff=ambient, lightDiffuseCoeff=diffuse, lightSpecularCoeff=specular,
            renderer=self._p.ER_TINY_RENDERER, physicsClientId=self._client,
        )  # fmt: skip
        image = np.asarray(shot[2], np.uint8).reshape(lens.height, lens.width, 4)[..., :3]
        return image, self._labels(shot[4], lens)

    def shadow(self, lens: Lens, pose: Pose) -> NDArray[np.bool_]:
        """(H, W) where the light does not reach the plane z = 0 (planar projected shadows, Blinn 1988).

        Before the usual view every point slides along the light onto the plane, so the label map is the shadow.
        """
        slide = np.eye(4)
        slide[:3, 2] -= self.light / self.light[2]
        slide[2, 2] = 0.0
        view = pose.view() @ slide
        shot = self._p.getCameraImage(
            lens.width, lens.height, [float(x) for x in view.T.reshape(-1)], lens.projection(), shadow=0,
            renderer=self._p.ER_TINY_RENDERER, physicsClientId=self._client,
        )  # fmt: skip
        return self._labels(shot[4], lens) > 0

    def _labels(self, segmentation: Any, lens: Lens) -> NDArray[np.uint8]:
        bodies = int(self._p.getNumBodies(physicsClientId=self._client))
        table = np.zeros(bodies + 1, np.uint8)  # entry 0 is PyBullet's -1: nothing hit
        for actor in self.actors:
            for body, _ in actor.parts:
                table[body + 1] = actor.instance_id
        return np.asarray(table[np.asarray(segmentation).reshape(lens.height, lens.width) + 1])


def _hull(vertices: Floats) -> Floats:
    """At most HULL_POINTS extreme vertices (K, 3), found along directions spread evenly over the sphere."""
    k = np.arange(HULL_POINTS) + 0.5
    polar, turn = np.arccos(1 - 2 * k / HULL_POINTS), np.pi * (1 + 5**0.5) * k
    directions = np.stack([np.cos(turn) * np.sin(polar), np.sin(turn) * np.sin(polar), np.cos(polar)], 1)
    return np.asarray(vertices[np.unique((vertices @ directions.T).argmax(0))])

"""One camera's stream with what a robot needs around it: epochs, stamps, typed outcomes. No ROS, one thread."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ausm.assemble import check_finite
from ausm.errors import AusmError, SizeError
from ausm.prompts import Shaped, shape_box, shape_points
from ausm.tracks import Source, StepOutput, Track, TrackState
from ausm_ros.history import History, Moment
from ausm_ros.prompts import Code, ObjectPrompt, Outcome, Scene, code_of

if TYPE_CHECKING:
    from ausm.stream import Stream


class Sighting(NamedTuple):
    """Stamps of the images an object was first and last seen on [ns]."""

    first: int
    last: int


class Snapshot(NamedTuple):
    """What other threads may know of a session: replaced as a whole after each change, never altered."""

    epoch: int = 0
    height: int = 0  # 0 x 0 before the first image of an epoch
    width: int = 0
    stamp: int = 0  # of the newest image [ns]
    began: int = 0  # stamp of the epoch's first image [ns]
    tracks: tuple[Track, ...] = ()
    sightings: Mapping[int, Sighting] = MappingProxyType({})
    capacity: int = 0
    in_use: int = 0
    ids_issued: int = 0
    state_bytes: int = 0

    def scene(self, min_area: int) -> Scene:
        """What prompts are checked against."""
        live = {t.track_id: t for t in self.tracks if t.state != TrackState.REMOVED}
        pinned = sum(t.source == Source.PROMPT for t in live.values())
        names = {track_id: track.name for track_id, track in live.items()}
        return Scene(self.height, self.width, names, pinned, self.capacity, min_area)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two (H, W) bool masks; NaN when both are empty."""
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else math.nan


class Session:
    """Owned by the worker thread. Invariant: an id means one object within one epoch, and the epoch only ever grows."""

    def __init__(self, make_stream: Callable[[], "Stream"], epoch: int = 0, history: float = 0.0) -> None:
        """make_stream: a new stream on the shared weights; epoch: the last one used before; history: seconds kept."""
        self.stream = make_stream()
        self.history = History(history)
        self.epoch = epoch
        self._size: tuple[int, int] | None = None
        self._stamp = self._began = 0
        self._rerun = False  # older images run again: other threads go on seeing the present
        self._sightings: dict[int, Sighting] = {}
        self._unreported: dict[int, Track] = {}  # removed since the last `take_output`; replaced, never altered
        self.snapshot = Snapshot()
        self._publish_snapshot()

    def new_epoch(self) -> int:
        """Forgets all objects and the history; ids start again."""
        self.stream.reset()
        self.history.clear()
        self.epoch += 1
        self._size, self._sightings = None, {}
        self._stamp = self._began = 0
        self._unreported = {}  # ids of the old epoch mean nothing in the new one
        self._publish_snapshot()
        return self.epoch

    def see(self, height: int, width: int, stamp: int) -> bool:
        """Notes the size of a decoded image before it is processed; False if it differs from that of the epoch."""
        if self._size is None:
            self._size, self._stamp, self._began = (height, width), stamp, stamp
            self._publish_snapshot()
        return self._size == (height, width)

    def step(self, image: np.ndarray, stamp: int) -> StepOutput:
        """image (H, W, 3) uint8 RGB. Raises `NotFiniteError` when what the model says is not numbers."""
        return self.accept(self.stream.step(image), image, stamp)

    def accept(self, output: StepOutput, image: np.ndarray, stamp: int) -> StepOutput:
        """Notes a step that the stream has made with this image. Raises as `step`."""
        check_finite(output, self.stream.last_predictions)
        self._stamp = stamp
        self._remember(image)
        self._note()
        return output

    def take_output(self) -> StepOutput:
        """The tracks at the last stepped image, and as REMOVED, once, each object that went since the last call.

        The stream forgets at a step what was removed between it and the one before: nothing was published in between.
        """
        output = self.stream.current
        assert output is not None  # a step was made
        removed, self._unreported = self._unreported, {}
        present = (t for t in output.tracks if t.state != TrackState.REMOVED)
        return output._replace(tracks=(*present, *removed.values()))

    def _remember(self, image: np.ndarray) -> None:
        if self.history.on:
            size = self.stream.snapshot_bytes + image.nbytes
            self.history.add(Moment(self._stamp, image, self.stream.state_dict(), size))

    def prompt(self, prompts: Sequence[ObjectPrompt], atomic: bool) -> list[Outcome]:
        """Applies checked prompts to the last stepped image; same order. atomic: all or none."""
        self.history.clear()
        return self._prompt_now(prompts, atomic)

    def prompt_at(self, stamp: int, prompts: Sequence[ObjectPrompt], atomic: bool) -> tuple[list[Outcome], int]:
        """Applies prompts to the image of an earlier stamp and runs the images since then again.

        Returns the outcomes and the stamp they were applied at. That is the present image where the stamp is not held
        any more, or where running forward would not lead to the objects that are known now: ids keep their meaning.
        """
        moments = self.history.from_stamp(stamp)
        if len(moments) < 2:
            return self.prompt(prompts, atomic), self._stamp
        present, seen = self.stream.state_dict(), (self._sightings, self._stamp, self._unreported)
        outcomes, self._rerun = None, True
        try:
            outcomes = self._prompt_again(moments, prompts, atomic)
        finally:  # an error that comes on the way finds the present again, too
            self._rerun = False
            if outcomes is None:
                self.history.clear()
                self.stream.load_state_dict(present)
                self._sightings, self._stamp, self._unreported = seen
        if outcomes is None:
            return self.prompt(prompts, atomic), self._stamp
        self._unreported = seen[2]  # what went on the way is told already, or was never seen
        self._publish_snapshot()
        return outcomes, moments[0].stamp

    def _prompt_again(
        self, moments: Sequence[Moment], prompts: Sequence[ObjectPrompt], atomic: bool
    ) -> list[Outcome] | None:
        """The prompts on the first of the moments, then the images after it; None where ids would not keep their
        meaning or a prompt is refused: the session is then somewhere on the way."""
        known, issued = self._living(), self.stream.ids_issued
        self.stream.load_state_dict(moments[0].state)
        if self.stream.ids_issued != issued:  # the prompt would take an id that was given out since
            return None
        self._stamp = moments[0].stamp
        outcomes = self._prompt_now(prompts, atomic)
        if any(o.code != Code.OK for o in outcomes):
            return None
        self.history.clear()
        for moment in moments[1:]:
            self.step(moment.image, moment.stamp)
        after = self._living()
        returned = any(i <= issued for i, _ in after - known)  # an id that ended stays so
        return outcomes if known <= after and not returned else None

    def _living(self) -> set[tuple[int, int]]:
        """(id, first frame) of all objects that are not removed."""
        return {(t.track_id, t.first_frame) for t in self._tracks() if t.state != TrackState.REMOVED}

    def _prompt_now(self, prompts: Sequence[ObjectPrompt], atomic: bool) -> list[Outcome]:
        again = {p.track_id for p in prompts}
        before = {t.track_id: t.mask.copy() for t in self._tracks() if t.track_id in again}
        try:
            shown = [self._shape(p) for p in prompts]
            ids = self._start(prompts, [s.mask for s in shown])
        except AusmError as error:
            if not atomic and len(prompts) > 1:
                return [self._prompt_now([p], atomic=True)[0] for p in prompts]
            return [Outcome(code_of(error), str(error))] * len(prompts)
        after = {t.track_id: t.mask for t in self._note()}
        outcomes = []
        for prompt, taken, track_id in zip(prompts, shown, ids, strict=True):
            mask = before.get(
                track_id, after.get(track_id)
            )  # a live object: how far off was it; a new one: what is kept
            iou = overlap(mask, prompt.mask) if mask is not None else math.nan
            note = ""
            if taken.plain:
                shape = "rectangle" if prompt.box is not None else "discs around the points"
                note = f"{taken.plain}: the {shape} as such was taken, {np.count_nonzero(taken.mask)} pixels"
            outcomes.append(Outcome(Code.OK, note, track_id, iou))
        return outcomes

    def _shape(self, prompt: ObjectPrompt) -> Shaped:
        """The mask to show the stream: of a box or points the model's own idea of the object, if it has one."""
        current = self.stream.current
        if current is not None and prompt.mask.shape != (current.height, current.width):
            given, image = prompt.mask.shape, (current.height, current.width)
            raise SizeError(f"prompt for an image of {given[0]}x{given[1]}, it is now {image[0]}x{image[1]}")
        if prompt.box is not None:
            return shape_box(self.stream, prompt.box)
        if prompt.points:
            return shape_points(self.stream, [p[:2] for p in prompt.points], [p[2] for p in prompt.points])
        return Shaped(prompt.mask)

    def _start(self, prompts: Sequence[ObjectPrompt], masks: Sequence[np.ndarray]) -> list[int]:
        """Ids of the objects shown by these masks. The stream takes new and live ones in separate calls; undone if one
        fails."""
        new = [i for i, p in enumerate(prompts) if p.track_id == 0]
        again = [i for i, p in enumerate(prompts) if p.track_id != 0]
        saved = self.stream.state_dict() if new and again else None
        ids = [0] * len(prompts)
        try:
            for group in (again, new):  # live ones first: a new object may displace a discovered one
                if group:
                    drawn = np.stack([masks[i] for i in group])
                    live = [prompts[i].track_id for i in group] if group is again else None
                    for i, track_id in zip(
                        group, self.stream.prompt(drawn, live, [prompts[i].name for i in group]), strict=True
                    ):
                        ids[i] = track_id
        except AusmError:
            if saved is not None:
                self.stream.load_state_dict(saved)
            raise
        return ids

    def remove(self, track_ids: Sequence[int]) -> list[Outcome]:
        """Removes live objects; one outcome for each id."""
        self.history.clear()
        outcomes = []
        for track_id in track_ids:
            try:
                self.stream.remove([track_id])
                outcomes.append(Outcome(Code.OK, "", track_id))
            except AusmError as error:
                outcomes.append(Outcome(code_of(error), str(error), track_id))
        self._note()
        return outcomes

    def remove_all(self) -> list[Outcome]:
        """Removes every live object."""
        return self.remove([t.track_id for t in self._tracks() if t.state != TrackState.REMOVED])

    def configure(self, **values: float | bool | int) -> None:
        """Changes dynamic fields of the stream's configuration."""
        self.stream.configure(**values)

    def _tracks(self) -> tuple[Track, ...]:
        return self.stream.current.tracks if self.stream.current is not None else ()

    def _note(self) -> tuple[Track, ...]:
        """Takes down what is newly removed, and stamps of first and last sight until an object's end is reported."""
        tracks = self._tracks()
        noted = {t.track_id for t in self.snapshot.tracks if t.state == TrackState.REMOVED}
        gone = {t.track_id: t for t in tracks if t.state == TrackState.REMOVED and t.track_id not in noted}
        self._unreported = self._unreported | gone
        sightings = {i: self._sightings[i] for i in self._unreported if i in self._sightings}
        for track in tracks:
            known = self._sightings.get(track.track_id, Sighting(self._stamp, self._stamp))
            seen = track.frames_since_seen == 0 and track.state != TrackState.REMOVED
            sightings[track.track_id] = known._replace(last=self._stamp) if seen else known
        self._sightings = sightings
        self._publish_snapshot()
        return tracks

    def _publish_snapshot(self) -> None:
        if self._rerun:
            return
        height, width = self._size or (0, 0)
        stream = self.stream
        self.snapshot = Snapshot(
            self.epoch,
            height,
            width,
            self._stamp,
            self._began,
            self._tracks(),
            self._sightings,
            stream.capacity,
            stream.in_use,
            stream.ids_issued,
            stream.state_bytes,
        )


def groups_to_warm(sessions: Sequence[Session], together: bool) -> list[list[Session]]:
    """Every number of cameras whose images may meet in one pass; without that each camera for itself."""
    return [list(sessions[: k + 1]) if together else [session] for k, session in enumerate(sessions)]

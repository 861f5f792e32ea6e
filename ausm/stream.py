"""`Stream`: frames in, tracks out. Owns ids, prompts and the state; its size never grows with the stream."""

from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ausm.assemble import Geometry, duplicates, full_size_masks, mask_confidence, resize_image, resize_prompts
from ausm.checks import check_image, check_masks, check_size
from ausm.class_names import CLASS_NAMES
from ausm.config import DYNAMIC_FIELDS, StreamConfig
from ausm.cuda_graph import stepper
from ausm.errors import AusmError, SizeError
from ausm.frame_masks import frame_masks
from ausm.inference import frame_model
from ausm.marker import marks_from_logits
from ausm.model import AUSM
from ausm.pixel_decoder import Predictions
from ausm.records import Record, Roster
from ausm.state import STORAGE, StreamState
from ausm.tracks import Source, StepOutput, Track, TrackState

SNAPSHOT = ("_frame", "_geometry", "_state", "_M", "_masks", "_waiting", "_removed", "_current")
PRECISIONS = {"auto": None, "fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Stream:
    """One camera. Same seed, same frames, same device: bit-equal masks.

    `step` runs Alg. 1 l. 11-19 on one frame. Prompts overwrite M_t of the last frame (A2), so may come any time.
    """

    _geometry: Geometry | None  # this and the state: None before the first frame
    _state: StreamState | None
    _saved: StreamState | None  # from before an early `absorb`, taken at frame `_saved_frame`
    _out: Predictions | None
    _M: Tensor  # (K, h, w) bool, one row per record
    _masks: np.ndarray  # (K, H, W) bool, one row per record
    _waiting: dict[int, np.ndarray]  # prompts made before the first frame, by track id: M_0 of Alg. 1
    _removed: list[Track]  # since the last step
    _current: StepOutput | None

    def __init__(
        self, model: AUSM, discover: bool = True, seed: int = 0, config: StreamConfig | None = None,
        precision: str = "fp32", cuda_graph: bool = False,
    ) -> None:  # fmt: skip
        if precision not in PRECISIONS:
            raise AusmError(f"precision {precision!r}: choose one of {sorted(PRECISIONS)}")
        config = config or StreamConfig()
        self.model, self.precision = frame_model(model, precision)
        self._halves = stepper(self.model, self.model is not model, cuda_graph)
        self._check_head(config.head)
        self.config = replace(config, discover=discover and config.discover)
        self.seed = seed
        self.capacity = min(config.capacity or model.config.N_id, model.config.N_id)
        self._precision = PRECISIONS[self.precision]
        self._device = model.X_0.device
        self.reset()

    # --- reading ------------------------------------------------------------------------------------------------

    @property
    def current(self) -> StepOutput | None:
        """Tracks at the last stepped frame, including prompts and removals since; None before the first frame."""
        return self._current

    @property
    def in_use(self) -> int:
        """ID vectors held by live objects."""
        return len(self._roster)

    @property
    def frame_index(self) -> int:
        """Index of the last stepped frame, -1 before the first."""
        return self._frame

    @property
    def ids_issued(self) -> int:
        """Public ids given since the last reset."""
        return self._roster.next_id - 1

    @property
    def state_bytes(self) -> int:
        """Bytes of the recurrent state; constant after the first frame (0 before it)."""
        return self._state.nbytes if self._state is not None else 0

    @property
    def snapshot_bytes(self) -> int:
        """Bytes that `state_dict` copies: the state, marks, and every mask twice, as plane and as track."""
        shown = sum(t.mask.nbytes for t in self._current.tracks) if self._current is not None else 0
        return self.state_bytes * (2 if self._can_undo() else 1) + self._M.nbytes + self._masks.nbytes + shown

    @property
    def last_predictions(self) -> tuple[Predictions, Geometry] | None:
        """What the model said of the last frame, weak detections included; `ausm.prompts` chooses among it.

        None before the first frame and after `load_state_dict`.
        """
        return (self._out, self._geometry) if self._out is not None and self._geometry is not None else None

    # --- the step -----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, image: np.ndarray) -> StepOutput:
        """Process one frame. image (H, W, 3) uint8 RGB.

        Raises ImageError for another type or shape, SizeError if the size differs from the running stream's or from a
        waiting prompt's; on an error nothing has changed.
        """
        self._check_image(image)
        with self._autocast():
            inner = self._begin(image)
            return self._end(self._halves.predict(self._running()[0], inner, self._slots()))

    def _begin(self, image: np.ndarray) -> Tensor:
        """First part of a step (`ausm.together` calls the parts one by one): the last frame goes into the state.

        Returns the image at the inner size.
        """
        if self._state is None:
            self._start(image.shape[0], image.shape[1])
        state, g = self._running()
        if not state.absorbed:
            self._halves.absorb(state, self._slots(), self._M)
        self._out = None  # frees its memory for the next one
        return torch.from_numpy(resize_image(image, g))

    def _end(self, out: Predictions) -> StepOutput:
        """Last part of a step: tracks from what the model said of the image."""
        self._out = out
        self._frame += 1
        self._removed = []
        self._update(self._out)
        if self._waiting:  # the prompt itself is the best mask of the frame it was drawn on (A2)
            waiting, self._waiting = self._waiting, {}
            self._overwrite([self._roster.by_id(i) for i in waiting], np.stack(list(waiting.values())))
        return self._publish()

    @torch.inference_mode()
    def absorb(self) -> None:
        """Take the last frame's masks into the state now instead of at the next `step` (Alg. 1 l. 11-12).

        Call it while waiting for the next image to take marker and compressor off its latency. A prompt or removal made
        after it restores the state from a copy (a second `state_bytes`, allocated once), so nothing is lost.
        """
        if self._state is None or self._state.absorbed:
            return
        if self._saved is None:
            self._saved = self._state.clone()
        self._saved.copy_from(self._state)
        self._saved_frame = self._frame
        with self._autocast():
            self._halves.absorb(self._state, self._slots(), self._M)

    # --- prompts ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def prompt(
        self, masks: np.ndarray, track_ids: list[int] | None = None, names: list[str] | None = None
    ) -> list[int]:
        """Show objects to follow: masks (n, H, W) bool on the last stepped frame, or, before the first, the next one.

        `track_ids`: re-prompt these live objects, keeping their ids; None = n new objects. Discovered objects that are
        the same thing (mask overlap above `dedupe_iou`) give way to a new one. Returns the n public ids.
        Raises SizeError, EmptyMaskError, UnknownIdError, CapacityError; on an error nothing has changed.
        """
        masks = check_masks(masks)
        self._check_size("mask", masks.shape[1], masks.shape[2])
        n = len(masks)
        names = list(names) if names is not None else [""] * n
        if len(names) != n or (track_ids is not None and len(track_ids) != n):
            raise SizeError(f"{n} masks, {len(names)} names, {len(track_ids or [])} track ids")
        if track_ids is not None:
            if len(set(track_ids)) < n:
                raise AusmError(f"track ids {track_ids} name one object twice")
            records = [self._roster.by_id(i) for i in track_ids]
            for record, name in zip(records, names, strict=True):
                record.source, record.tentative, record.name = Source.PROMPT, False, name or record.name
        else:
            self._roster.check_room(n)
            for record in self._same_things(masks):
                self._drop(record)
            for record in self._roster.to_retire(n, self._frame, visible_too=True):
                self._drop(record)
            records = [self._birth(Source.PROMPT, name) for name in names]
        if self._frame < 0:
            self._waiting.update((r.track_id, m) for r, m in zip(records, masks, strict=True))
        else:
            self._undo_absorb()
            self._overwrite(records, masks)
            self._publish()
        return [r.track_id for r in records]

    @torch.inference_mode()
    def remove(self, track_ids: list[int]) -> None:
        """Forget live objects; their ids are not used again. Raises UnknownIdError naming one that is not live."""
        records = [self._roster.by_id(i) for i in dict.fromkeys(track_ids)]
        self._undo_absorb()
        for record in records:
            self._drop(record)
        if self._frame >= 0:
            self._publish()

    @torch.inference_mode()
    def reset(self) -> None:
        """Back to before the first frame: no objects, zero state, ids from 1 again, any image size."""
        self._roster = Roster(self.model.config.N_id, self.capacity, self.seed)
        self._frame = -1
        self._geometry, self._state = None, None
        self._saved, self._saved_frame = None, -1
        self._out, self._current = None, None
        self._M = torch.zeros(0, 1, 1, dtype=torch.bool, device=self._device)
        self._masks = np.zeros((0, 1, 1), bool)
        self._waiting, self._removed = {}, []

    def configure(self, **changes: Any) -> None:
        """Change settings while the stream runs. Raises ValueError for unknown, fixed or out-of-range fields."""
        fixed = sorted(set(changes) - DYNAMIC_FIELDS)
        if fixed:
            raise AusmError(f"cannot change {fixed} while the stream runs; can: {sorted(DYNAMIC_FIELDS)}")
        config = replace(self.config, **changes)
        self._check_head(config.head)
        if config.head != self.config.head:  # probabilities of two heads cannot be summed
            self._roster.forget_classes()
        self.config = config

    @torch.inference_mode()
    def wipe_state(self) -> None:
        """Zero the recurrent memory, keep ids and last masks: the control experiment of every memory claim."""
        if self._state is not None:
            self._undo_absorb()
            self._state.ssm.zero_()
            self._state.conv.zero_()

    # --- snapshot -----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the future of the stream, as copies; bit-exact with `load_state_dict`."""
        parts = {name: deepcopy(getattr(self, name)) for name in SNAPSHOT}
        saved = deepcopy(self._saved) if self._can_undo() else None
        return {**parts, "roster": self._roster.state_dict(), "saved": saved, "head": self.config.head}

    @torch.inference_mode()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot of a stream of the same model, capacity and seed; settings stay as they are."""
        for name in SNAPSHOT:
            setattr(self, name, deepcopy(state[name]))
        self._roster.load_state_dict(state["roster"])
        if state.get("head", self.config.head) != self.config.head:  # snapshots had no head at first
            self._roster.forget_classes()
        self._saved, self._saved_frame, self._out = deepcopy(state["saved"]), self._frame, None

    # --- checks -------------------------------------------------------------------------------------------------

    def _check_image(self, image: np.ndarray) -> None:
        check_image(image)
        self._check_size("image", image.shape[0], image.shape[1])

    def _check_size(self, what: str, height: int, width: int) -> None:
        if self._geometry is not None:
            expected, whose = (self._geometry.height, self._geometry.width), "image"
        elif self._waiting:
            expected, whose = next(iter(self._waiting.values())).shape, "waiting prompt"
        else:
            return
        check_size(what, (height, width), whose, expected)

    def _check_head(self, head: str | None) -> None:
        heads = self.model.pixel_decoder.class_heads
        if head is not None and head not in heads:
            raise AusmError(f"no class head {head!r}; this model has {sorted(heads)}")

    # --- inside a step ------------------------------------------------------------------------------------------

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, self._precision, enabled=self._precision is not None)

    def _running(self) -> tuple[StreamState, Geometry]:
        """State and geometry of a stream that has had its first frame."""
        assert self._state is not None and self._geometry is not None
        return self._state, self._geometry

    def _slots(self) -> Tensor:
        return torch.tensor([r.slot for r in self._roster.records], dtype=torch.long, device=self._device)

    def _start(self, height: int, width: int) -> None:
        """First frame: allocate the state; prompts made before it are M_0, marked on the start token X_0."""
        self._geometry = g = Geometry.of(height, width, self.config.short_side or self.model.config.short_side)
        self._state = self.model.new_state(g.inner_height, g.inner_width, STORAGE[self.config.state_storage])
        if self._waiting:
            M_0 = np.stack([self._waiting[r.track_id] for r in self._roster.records])
            self._M = resize_prompts(M_0, g, self._state.size).to(self._device)
        else:
            self._M = torch.zeros(0, *self._state.size, dtype=torch.bool, device=self._device)
        self._masks = np.zeros((len(self._roster), height, width), bool)

    def _update(self, out: Predictions) -> None:
        """Alg. 1 l. 15-19: masks of tracked objects, new detections and their ids, M_t."""
        c, frame, K = self.config, self._frame, len(self._roster)
        found = frame_masks(out, self._M, [record.pinned for record in self._roster.records], c)
        masks = full_size_masks(found.logits.cpu().numpy(), self._running()[1])
        areas = [int(np.count_nonzero(m)) for m in masks]  # 7 times faster than a sum of bool
        scores = (found.foreground * mask_confidence(found.logits)).tolist()
        classes = self._class_probabilities(out.embeddings[0, found.queries])
        row_of: dict[int, int] = {}
        for i, record in enumerate(list(self._roster.records)):
            row_of[record.track_id] = i
            if areas[i] > 0:
                record.see(frame, scores[i], classes[i] if classes is not None else None, c.birth_hits)
            missed = frame - record.last_frame
            if not record.pinned and (missed > c.max_missed or (record.tentative and missed > 0)):
                self._retire(record)
        for i in range(K, len(masks)):
            if areas[i] < c.min_area:
                continue
            for old in self._roster.to_retire(1, frame, visible_too=False):
                self._retire(old)
            if len(self._roster) == self.capacity:
                break
            record = self._roster.birth(Source.DISCOVERED, "", frame)
            record.tentative = c.birth_hits > 1
            record.see(frame, scores[i], classes[i] if classes is not None else None, c.birth_hits)
            row_of[record.track_id] = i
        kept = [row_of[r.track_id] for r in self._roster.records]
        self._M = marks_from_logits(found.logits[kept], self._running()[0].size)
        self._masks = masks[kept]

    def _class_probabilities(self, embeddings: Tensor) -> np.ndarray | None:
        """(n, C) probabilities of the head in use, "no object" left out; None when class-agnostic."""
        if self.config.head is None:
            return None
        p = self.model.pixel_decoder.classify(embeddings, self.config.head).float()[:, :-1].softmax(-1)
        return p.cpu().numpy()

    # --- changes between steps ----------------------------------------------------------------------------------

    def _birth(self, source: Source, name: str) -> Record:
        """A new record with empty rows in M and masks."""
        record = self._roster.birth(source, name, max(self._frame, 0))
        self._M = torch.cat((self._M, self._M.new_zeros(1, *self._M.shape[1:])))
        self._masks = np.concatenate((self._masks, np.zeros((1, *self._masks.shape[1:]), bool)))
        return record

    def _retire(self, record: Record) -> None:
        """Give the slot back; rows of M and masks are the caller's business. Reported once as REMOVED."""
        self._roster.retire(record)
        if self._geometry is not None:
            empty = np.zeros((self._geometry.height, self._geometry.width), bool)
            self._removed.append(record.track(self._frame, empty, TrackState.REMOVED, self._class_names()))

    def _drop(self, record: Record) -> None:
        """Retire between steps: its rows go too, and a prompt that waits for the first frame."""
        i = self._roster.records.index(record)
        self._M = torch.cat((self._M[:i], self._M[i + 1 :]))
        self._masks = np.delete(self._masks, i, 0)
        self._waiting.pop(record.track_id, None)
        self._retire(record)

    def _same_things(self, masks: np.ndarray) -> list[Record]:
        """Discovered objects that a new prompt shows: more than `dedupe_iou` mask IoU on the last frame."""
        if self._frame < 0:
            return []
        same = duplicates(self._masks, masks, self.config.dedupe_iou)
        return [r for r, is_same in zip(self._roster.records, same, strict=True) if is_same and not r.pinned]

    def _overwrite(self, records: list[Record], masks: np.ndarray) -> None:
        """M_t := m for these objects (A2); other objects lose the pixels."""
        rows = [self._roster.records.index(r) for r in records]
        state, g = self._running()
        marks = resize_prompts(masks, g, state.size).to(self._device)
        others = [i for i in range(len(self._roster)) if i not in rows]
        self._M, self._masks = self._M.clone(), self._masks.copy()  # of the old ones rows are handed out
        self._M[others] &= ~marks.any(0)
        self._M[rows] = marks
        self._masks[others] &= ~masks.any(0)
        self._masks[rows] = masks
        for record in records:
            record.see(self._frame, 1.0, None, 1)

    def _undo_absorb(self) -> None:
        """M_t is about to change: take back an early `absorb` of it."""
        if self._state is not None and self._saved is not None and self._can_undo():
            self._state.copy_from(self._saved)

    def _can_undo(self) -> bool:
        fresh = self._saved is not None and self._saved_frame == self._frame
        return fresh and self._state is not None and self._state.absorbed

    def _publish(self) -> StepOutput:
        """Rebuild `current` from records and masks, highest score first."""
        g, names = self._running()[1], self._class_names()
        tracks = [
            r.track(self._frame, m, r.state(self._frame) if m.any() else TrackState.LOST, names)
            for r, m in zip(self._roster.records, self._masks, strict=True)
        ]
        tracks.sort(key=lambda t: (-t.score, t.track_id))
        self._current = StepOutput(self._frame, g.height, g.width, (*tracks, *self._removed))
        return self._current

    def _class_names(self) -> tuple[str, ...]:
        return CLASS_NAMES.get(self.config.head or "", ())

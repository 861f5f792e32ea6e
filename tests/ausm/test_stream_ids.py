"""The life of ids in a stream, told by a model that sees perfectly (`scripted_model`)."""

import pickle

import numpy as np
import pytest
from scripted_model import HEIGHT, WIDTH, Rect, ScriptedModel

import ausm
from ausm.config import StreamConfig
from ausm.errors import AusmError, CapacityError, UnknownIdError
from ausm.tracks import Source, StepOutput, TrackState

IMAGE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
A, B, C = (0, 0, 16, 16), (32, 32, 64, 64), (0, 64, 32, 96)


def stream_of(world: list[dict[str, Rect]], N_id: int = 100, **config: object) -> ausm.Stream:
    return ausm.Stream(ScriptedModel(world, N_id), config=StreamConfig(**config))  # type: ignore[arg-type]


def by_id(out: StepOutput) -> dict[int, ausm.Track]:
    assert len({t.track_id for t in out.tracks}) == len(out.tracks)
    return {t.track_id: t for t in out.tracks}


def rectangle(rect: Rect) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    y0, x0, y1, x1 = rect
    mask[y0:y1, x0:x1] = True
    return mask


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_discoveries_get_ids_from_one_and_keep_them() -> None:
    moving = [{"a": (0, 8 * t, 16, 8 * t + 16), **({"b": B} if t > 1 else {})} for t in range(5)]
    stream = stream_of(moving)
    for t in range(5):
        out = stream.step(IMAGE)
        tracks = by_id(out)
        assert (out.frame_index, out.height, out.width) == (t, HEIGHT, WIDTH)
        assert set(tracks) == ({1, 2} if t > 1 else {1})
        a = tracks[1]
        assert iou(a.mask, rectangle(moving[t]["a"])) > 0.9
        assert (a.state, a.source, a.first_frame, a.last_frame) == (TrackState.TRACKED, Source.DISCOVERED, 0, t)
        assert (a.age, a.frames_since_seen, a.class_id, a.name) == (t + 1, 0, -1, "")
        assert 0.9 < a.score <= 1
    assert stream.in_use == 2 and stream.ids_issued == 2 and stream.frame_index == 4


def test_occluded_track_is_lost_and_comes_back() -> None:
    stream = stream_of([{"a": A}, {}, {}, {}, {"a": C}])  # it returns elsewhere: only its id can tell
    states, missed = [], []
    for _ in range(5):
        track = by_id(stream.step(IMAGE))[1]
        states.append(track.state)
        missed.append(track.frames_since_seen)
        assert track.mask.any() == (track.state == TrackState.TRACKED)
    assert states == [TrackState.TRACKED, *[TrackState.LOST] * 3, TrackState.TRACKED]
    assert missed == [0, 1, 2, 3, 0] and stream.ids_issued == 1
    slots, M = stream.model.absorbed[-1]
    assert len(slots) == 1 and not M.any()  # A6: its id stays in A with an empty mask


def test_a_prompted_object_is_shown_however_improbable_unless_a_threshold_is_set() -> None:
    world = [{"a": A}, {"a": (A, -3.0)}, {"a": (A, 3.0)}]
    T = TrackState
    for threshold, states in ((0.0, [T.TRACKED, T.TRACKED, T.TRACKED]), (0.5, [T.TRACKED, T.LOST, T.TRACKED])):
        stream = stream_of(world, discover=False, prompt_threshold=threshold)
        stream.prompt(rectangle(A)[None])
        tracks = [by_id(stream.step(IMAGE))[1] for _ in world]
        assert [t.state for t in tracks] == states
        assert [t.mask.any() for t in tracks] == [state == T.TRACKED for state in states]


def test_a_track_unseen_too_long_is_retired_and_reported_once() -> None:
    stream = stream_of([{"a": A}] + [{}] * 4 + [{"a": A}], max_missed=2)
    outputs = [stream.step(IMAGE) for _ in range(6)]
    assert [[t.state for t in out.tracks] for out in outputs] == [
        [TrackState.TRACKED], [TrackState.LOST], [TrackState.LOST], [TrackState.REMOVED], [], [TrackState.TRACKED],
    ]  # fmt: skip
    assert outputs[3].tracks[0].track_id == 1 and not outputs[3].tracks[0].mask.any()
    assert outputs[5].tracks[0].track_id == 2  # public ids are never used again


def test_birth_hits_makes_discoveries_tentative() -> None:
    world = [{"a": A}, {"a": A, "flicker": B}, {"a": A}, {"a": A}]
    stream = stream_of(world, birth_hits=3)
    outputs = [by_id(stream.step(IMAGE)) for _ in range(4)]
    T = TrackState
    assert [o[1].state for o in outputs] == [T.TENTATIVE, T.TENTATIVE, T.TRACKED, T.TRACKED]
    assert outputs[1][2].state == T.TENTATIVE and outputs[2][2].state == T.REMOVED and 2 not in outputs[3]


def test_weak_small_and_duplicate_detections_are_not_born() -> None:
    world = [{"weak": (A, -1.0), "small": (32, 0, 36, 4), "b": B, "copy": ((32, 32, 64, 60), 1.0)}]
    assert len(stream_of(world, min_area=20).step(IMAGE).tracks) == 1
    assert len(stream_of(world, min_area=20, dedupe_iou=0.95).step(IMAGE).tracks) == 1  # inside the other
    assert len(stream_of(world, min_area=4).step(IMAGE).tracks) == 2
    assert len(stream_of(world, min_area=20, score_threshold=0.2).step(IMAGE).tracks) == 2
    assert stream_of(world, discover=False).step(IMAGE).tracks == ()


def test_overlapping_detections_share_no_pixel_and_live_tracks_keep_theirs() -> None:
    world = [{"a": (0, 0, 32, 32)}, {"a": (0, 0, 32, 32), "b": (0, 16, 32, 96)}]
    stream = stream_of(world)
    stream.step(IMAGE)
    tracks = by_id(stream.step(IMAGE))
    assert not (tracks[1].mask & tracks[2].mask).any()
    assert iou(tracks[1].mask, rectangle((0, 0, 32, 32))) > 0.9
    assert iou(tracks[2].mask, rectangle((0, 32, 32, 96))) > 0.9


def test_500_objects_through_100_slots() -> None:
    """20 new objects every frame, each seen on two frames; slots rest before they come up again."""
    per_frame, frames = 20, 26
    world = []
    for t in range(frames):
        shown = {}
        for k in range(2 * per_frame):  # those born at t - 1 and those born at t
            born, i = (t - 1, k) if k < per_frame else (t, k - per_frame)
            y, x = 16 * ((k // 10) % 4), 8 * (k % 10)
            shown[f"{born}-{i}"] = (y, x, y + 8, x + 8)
        world.append(shown)
    model = ScriptedModel(world, N_id=100, N_det=40)
    stream = ausm.Stream(model, config=StreamConfig(max_missed=1, dedupe_iou=1.0))
    seen: dict[int, set[int]] = {}
    freed: dict[int, int] = {}
    before: dict[int, int] = {}
    for t in range(frames):
        out = stream.step(IMAGE)
        live = {r.track_id: r.slot for r in stream._roster.records}
        assert len(live) == stream.in_use <= 100 and len(set(live.values())) == len(live)
        for track_id, slot in live.items():
            if track_id not in before and slot in freed:
                assert t - freed[slot] >= 2  # rested: never the one freed last while others are free
        freed.update({slot: t for i, slot in before.items() if i not in live})
        before = live
        for track in out.tracks:
            if track.state == TrackState.TRACKED:
                seen.setdefault(track.track_id, set()).add(t)
    assert stream.ids_issued == len(seen) >= 500 and sorted(seen) == list(range(1, len(seen) + 1))
    assert all(len(ts) == 2 for ts in seen.values() if max(ts) < frames - 1 and min(ts) > 0)
    assert len(freed) == 100  # every row of B was used and freed


def test_when_full_the_longest_unseen_discovery_gives_way() -> None:
    world = [{"a": A, "b": B}, {"b": B}, {}, {"c": C}, {"c": C, "d": A}, {"c": C, "d": A, "e": B}]
    stream = stream_of(world, capacity=2)
    outputs = [by_id(stream.step(IMAGE)) for _ in range(6)]
    a, b = (1, 2) if iou(outputs[0][1].mask, rectangle(A)) > 0.5 else (2, 1)
    assert outputs[3][a].state == TrackState.REMOVED and outputs[3][b].state == TrackState.LOST
    assert outputs[3][3].state == TrackState.TRACKED
    assert outputs[4][b].state == TrackState.REMOVED and outputs[4][4].state == TrackState.TRACKED
    assert set(outputs[5]) == {3, 4}  # both visible: the new one has no place
    assert stream.capacity == stream.in_use == 2


def test_prompted_objects_are_pinned() -> None:
    world = [{}, *[{"b": B, "c": C}] * 6]
    stream = stream_of(world, capacity=2, max_missed=1)
    stream.step(IMAGE)
    (a,) = stream.prompt(rectangle(A)[None], names=["cup"])
    for _ in range(6):
        tracks = by_id(stream.step(IMAGE))
    assert tracks[a].state == TrackState.LOST and tracks[a].frames_since_seen == 6 and tracks[a].name == "cup"
    assert sum(t.state == TrackState.TRACKED for t in tracks.values()) == 1


def test_capacity_errors_carry_numbers_and_change_nothing() -> None:
    stream = stream_of([{"a": A}, {"a": A}], N_id=4, capacity=3)
    masks = np.stack([rectangle((8 * i, 64, 8 * i + 8, 96)) for i in range(4)])
    with pytest.raises(CapacityError, match="4 objects prompted, 0 prompted ones live, capacity 3"):
        stream.prompt(masks)
    assert stream.in_use == 0 and stream.ids_issued == 0 and stream.current is None
    stream.step(IMAGE)
    before = stream.current
    with pytest.raises(CapacityError, match="4 objects prompted"):
        stream.prompt(masks)
    assert stream.current is before
    assert stream.prompt(masks[:3]) == [2, 3, 4]  # the discovered one gives way to the prompts
    assert by_id(stream.current)[1].state == TrackState.REMOVED
    with pytest.raises(CapacityError, match="1 objects prompted, 3 prompted ones live, capacity 3"):
        stream.prompt(masks[3:])
    assert stream.in_use == 3 and {t.track_id for t in stream.step(IMAGE).tracks} == {2, 3, 4}


def test_a_prompt_replaces_the_discovery_of_the_same_thing() -> None:
    stream = stream_of([{"a": A, "b": B}] * 2)
    stream.step(IMAGE)
    (new,) = stream.prompt(rectangle(A)[None])
    tracks = by_id(stream.current)
    removed = [t for t in tracks.values() if t.state == TrackState.REMOVED]
    assert len(removed) == 1 and new == 3 and tracks[new].source == Source.PROMPT and tracks[new].score == 1
    tracks = by_id(stream.step(IMAGE))
    assert set(tracks) == {1, 2, 3} - {removed[0].track_id}
    assert iou(tracks[new].mask, rectangle(A)) > 0.9


def test_a_track_that_a_prompt_covers_entirely_is_lost_not_tracked_without_a_mask() -> None:
    stream = stream_of([{"part": (4, 4, 12, 12)}] * 2)
    stream.step(IMAGE)
    (whole,) = stream.prompt(rectangle((0, 0, 40, 40))[None])
    states = {t.track_id: t.state for t in stream.current.tracks}
    assert states == {1: TrackState.LOST, whole: TrackState.TRACKED}
    for track in stream.current.tracks:
        assert track.mask.any() == (track.state == TrackState.TRACKED) == (track.frames_since_seen == 0)


def test_reprompt_keeps_the_id_and_moves_it() -> None:
    stream = stream_of([{"a": A, "b": B}] * 3)
    stream.step(IMAGE)
    a = next(t.track_id for t in stream.current.tracks if iou(t.mask, rectangle(A)) > 0.5)
    assert stream.prompt(rectangle(B)[None], track_ids=[a], names=["it"]) == [a]
    track = by_id(stream.current)[a]
    assert np.array_equal(track.mask, rectangle(B)) and (track.source, track.name) == (Source.PROMPT, "it")
    tracks = by_id(stream.step(IMAGE))
    assert iou(tracks[a].mask, rectangle(B)) > 0.9 and tracks[a].first_frame == 0


def test_a_prompt_leaves_masks_alone_that_were_handed_out() -> None:
    stream = stream_of([{"a": A, "b": B}] * 2)
    out = stream.step(IMAGE)
    before = [t.mask.copy() for t in out.tracks]
    stream.prompt(rectangle((0, 0, 48, 48))[None], track_ids=[1])  # moves 1, takes pixels of 2
    again = stream.current
    assert all(np.array_equal(t.mask, m) for t, m in zip(out.tracks, before, strict=True))
    assert again is not None and iou(by_id(again)[1].mask, rectangle((0, 0, 48, 48))) == 1
    stream.prompt(rectangle(C)[None], track_ids=[1])
    assert iou(by_id(again)[1].mask, rectangle((0, 0, 48, 48))) == 1


def test_remove_frees_the_slot_and_never_the_id() -> None:
    stream = stream_of([{"a": A}, {"a": A}, {"a": A}])
    stream.step(IMAGE)
    stream.remove([1])
    assert stream.in_use == 0 and [t.state for t in stream.current.tracks] == [TrackState.REMOVED]
    assert {t.track_id: t.state for t in stream.step(IMAGE).tracks} == {2: TrackState.TRACKED}
    with pytest.raises(UnknownIdError, match=r"no live object has id 1; live ids: \[2\]"):
        stream.remove([2, 1])
    assert stream.in_use == 1
    stream.reset()
    assert (stream.in_use, stream.ids_issued, stream.frame_index, stream.current) == (0, 0, -1, None)


def test_classes_are_averaged_and_follow_the_head() -> None:
    stream = stream_of([{"a": A}] * 5, head="coco")
    for _ in range(2):
        track = by_id(stream.step(IMAGE))[1]
    assert track.class_id == 1 and track.class_name == "bicycle" and track.class_score == pytest.approx(1, abs=1e-4)
    stream.prompt(rectangle(A)[None], track_ids=[1])
    assert by_id(stream.current)[1].class_score == pytest.approx(1, abs=1e-4)  # a prompt says nothing about classes
    stream.configure(head="sim")
    assert by_id(stream.step(IMAGE))[1].class_id == 2
    stream.configure(head=None)
    stream.step(IMAGE)
    with pytest.raises(AusmError, match=r"no class head 'ytvis'; this model has \['coco', 'sim'\]"):
        stream.configure(head="ytvis")
    assert by_id(stream.step(IMAGE))[1].state == TrackState.TRACKED


@pytest.mark.parametrize("head", ["sim", None])
def test_a_snapshot_from_before_another_head_forgets_the_classes(head: str | None) -> None:
    stream = stream_of([{"a": A}] * 5, head="coco")
    stream.step(IMAGE)
    snapshot = stream.state_dict()
    stream.load_state_dict(snapshot)
    assert by_id(stream.step(IMAGE))[1].class_name == "bicycle" and len(stream._roster.records[0].class_sum) == 3
    stream.configure(head=head)
    stream.load_state_dict(snapshot)
    track = by_id(stream.step(IMAGE))[1]
    assert (track.class_id, track.track_id) == (-1 if head is None else 2, 1)
    del snapshot["head"]  # as older snapshots
    stream.configure(head="coco")
    stream.load_state_dict(snapshot)
    assert by_id(stream.step(IMAGE))[1].class_score == pytest.approx(1, abs=1e-4)


def test_settings_change_while_running() -> None:
    stream = stream_of([{"a": A}, {"a": A, "b": (B, 0.0)}, {"a": A, "b": (B, 0.0)}, {"c": C}])
    stream.step(IMAGE)
    stream.configure(score_threshold=0.6)
    assert len(stream.step(IMAGE).tracks) == 1
    stream.configure(score_threshold=0.4, discover=True)
    assert len(stream.step(IMAGE).tracks) == 2
    stream.configure(discover=False)
    assert {t.track_id for t in stream.step(IMAGE).tracks} == {1, 2}
    with pytest.raises(AusmError, match=r"cannot change \['capacity'\]"):
        stream.configure(capacity=3)
    with pytest.raises(ValueError, match="birth_hits=0, must be 1 or more"):
        stream.configure(birth_hits=0)
    assert stream.config.birth_hits == 1


def test_a_long_stream_does_not_grow() -> None:
    """Births and deaths in a cycle of 5 frames: after 40 cycles the whole snapshot is as large as after 4."""
    cycle = [{"a": A}, {"a": A, "b": B}, {"b": B}, {}, {}]
    world = [{f"{name}{t // 5}": rect for name, rect in cycle[t % 5].items()} for t in range(200)]
    stream = stream_of(world, max_missed=1)
    sizes = {}
    for t in range(200):
        stream.step(IMAGE)
        stream.model.absorbed.clear()
        if 10 <= t < 20 or t >= 190:
            sizes[t] = len(pickle.dumps(stream.state_dict()))
    assert stream.ids_issued == 80
    early, late = (max(sizes[t] for t in part) for part in (range(10, 20), range(190, 200)))
    assert late - early < 1000, (early, late)  # larger integers, no more

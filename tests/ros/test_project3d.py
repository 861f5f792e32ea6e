"""Points in space from masks and depth: a known scene comes back in metres; the nodes that join topics, over DDS."""

import array
from typing import Any

import numpy as np
import pytest
from ausm_ros.msg import Instance, InstanceArray
from harness import SIZE, Process, image_message, next_stamp, robot, square, wait_until
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header

from ausm.errors import ImageError, SizeError
from ausm_ros.messages import to_rle, to_time
from ausm_ros.project3d import MODELS, box_of_points, decode_depth, lens, project, rays
from ausm_ros.project3d_node import POINT, to_cloud, to_markers

K = np.array([[80.0, 0, 47.5], [0, 80.0, 31.5], [0, 0, 1]])
NO_DISTORTION = np.zeros(0)


def plane(distance: float = 2.0) -> np.ndarray:
    return np.full(SIZE, distance, np.float32)


def test_units_follow_the_encoding() -> None:
    metres = plane(1.5)
    metres[0, :3] = [0.0, np.nan, np.inf]
    got = decode_depth(metres.tobytes(), *SIZE, SIZE[1] * 4, "32FC1")
    assert np.isnan(got[0, :3]).all() and (got[1:] == 1.5).all()
    for big in (False, True):
        millimetres = np.full(SIZE, 1500, ">u2" if big else "<u2")
        got = decode_depth(millimetres.tobytes(), *SIZE, SIZE[1] * 2, "16UC1", big)
        np.testing.assert_allclose(got, 1.5, rtol=1e-6)
    for encoding, data, step in (("rgb8", bytes(10), 30), ("16UC1", bytes(10), 192), ("32FC1", metres.tobytes(), 100)):
        with pytest.raises(ImageError, match=encoding):
            decode_depth(data, *SIZE, step, encoding)


def test_plane_comes_back_in_metres() -> None:
    mask = square(x=20, y=10, side=30)  # columns 20..49, rows 10..39
    points = project(mask, plane(), rays(K, NO_DISTORTION, SIZE, SIZE), 0.1, 10.0)
    assert points.shape == (900, 3) and points.dtype == np.float32
    np.testing.assert_allclose(points.min(0), [(20 - 47.5) / 80 * 2, (10 - 31.5) / 80 * 2, 2.0], rtol=1e-5)
    np.testing.assert_allclose(points.max(0), [(49 - 47.5) / 80 * 2, (39 - 31.5) / 80 * 2, 2.0], rtol=1e-5)
    box = box_of_points(points)
    assert box is not None
    np.testing.assert_allclose(box.centre, [(34.5 - 47.5) / 40, (24.5 - 31.5) / 40, 2.0], atol=1e-3)
    assert box_of_points(points[:5]) is None


def test_depth_of_half_the_size_gives_the_same_plane() -> None:
    view = rays(K, NO_DISTORTION, (32, 48), SIZE)
    points = project(square(side=32), np.full((32, 48), 2.0, np.float32), view, 0.1, 10.0)
    whole = project(square(side=32), plane(), rays(K, NO_DISTORTION, SIZE, SIZE), 0.1, 10.0)
    assert len(points) == len(whole) // 4
    np.testing.assert_allclose(points.mean(0), whole.mean(0), atol=1e-5)


def test_distortion_is_taken_out() -> None:
    """A pinhole projection with k1 = 0.1, computed by hand for one ray, is undone."""
    x, y = 0.3, -0.2
    r2 = x * x + y * y
    u, v = round(80 * x * (1 + 0.1 * r2) + 47.5), round(80 * y * (1 + 0.1 * r2) + 31.5)
    view = rays(K, np.array([0.1, 0, 0, 0, 0]), SIZE, SIZE)
    np.testing.assert_allclose(view[v, u], [x, y], atol=0.01)


def test_rectified_images_have_no_distortion_left() -> None:
    """P holds for them: the distortion of D was taken out already, and P has another focal length than K."""
    P = np.column_stack([np.diag([70.0, 70.0, 1.0]), np.zeros(3)])
    P[0, 2], P[1, 2] = 47.5, 31.5
    D = np.array([0.1, 0, 0, 0, 0])
    view = rays(*lens("plumb_bob", K, D, P, True), SIZE, SIZE)
    np.testing.assert_allclose(view[31, 90], [(90 - 47.5) / 70, (31 - 31.5) / 70], atol=1e-6)
    assert lens("equidistant", K, D, P, True)[1].size == 0  # whatever the lens was
    raw = rays(*lens("plumb_bob", K, D, P, False), SIZE, SIZE)
    np.testing.assert_array_equal(raw, rays(K, D, SIZE, SIZE))
    empty = np.zeros((3, 4))
    assert lens("", K, NO_DISTORTION, empty, True)[0] is K and lens("plumb_bob", K, 0 * D, empty, True)[0] is K
    with pytest.raises(ImageError, match="without P"):
        lens("plumb_bob", K, D, empty, True)


@pytest.mark.parametrize(
    ("model", "number"),
    [("equidistant", 4), ("fisheye", 0), ("", 5), ("plumb_bob", 3), ("plumb_bob", 8), ("rational_polynomial", 5)],
)
def test_a_lens_that_is_not_understood_is_named(model: str, number: int) -> None:
    with pytest.raises(ImageError, match=f"'{model}' with {number} coefficients"):
        lens(model, K, np.full(number, 0.01), np.zeros((3, 4)), False)


@pytest.mark.parametrize(("model", "number"), [(m, n) for m, numbers in MODELS.items() for n in numbers])
def test_every_known_number_of_coefficients_is_taken(model: str, number: int) -> None:
    view = rays(*lens(model, K, np.full(number, 0.001), np.zeros((3, 4)), False), SIZE, SIZE)
    assert view.shape == (*SIZE, 2) and np.isfinite(view).all()


def test_depth_beyond_the_limits_and_unknown_depth_are_left_out() -> None:
    depth = plane()
    depth[10:20] = np.nan
    depth[20:30] = 50.0
    points = project(square(), depth, rays(K, NO_DISTORTION, SIZE, SIZE), 0.1, 10.0)
    assert len(points) == 300


def test_info_of_another_view_is_refused() -> None:
    with pytest.raises(SizeError, match="64x96"):
        rays(K, NO_DISTORTION, SIZE, (64, 64))
    with pytest.raises(ImageError, match="calibration"):
        rays(np.zeros((3, 3)), NO_DISTORTION, SIZE, SIZE)
    with pytest.raises(ImageError, match="calibration"):
        rays(np.full((3, 3), np.nan), NO_DISTORTION, SIZE, SIZE)


def test_cloud_and_markers() -> None:
    points = np.array([[0, 0, 1], [0.5, 0.25, 2]], np.float32)
    instance = Instance(track_id=7, name="cup", score=0.75)
    cloud = to_cloud(Header(frame_id="lens"), [(instance, points)])
    rows = np.frombuffer(cloud.data, POINT)
    assert cloud.width == 2 and cloud.point_step == 24 and [f.name for f in cloud.fields] == list(POINT.names or ())
    np.testing.assert_array_equal(np.column_stack([rows["x"], rows["y"], rows["z"]]), points)
    assert (rows["track_id"] == 7).all() and (rows["score"] == 0.75).all()
    assert to_cloud(Header(), []).width == 0
    visualization = pytest.importorskip("visualization_msgs.msg", reason="visualization_msgs is not installed")
    box = box_of_points(np.random.default_rng(0).random((100, 3)))
    assert box is not None
    markers = to_markers(visualization, Header(), [(instance, box)]).markers
    assert [m.action for m in markers] == [visualization.Marker.DELETEALL, 0, 0] and markers[2].text == "7 cup"


def instances(stamp: int) -> InstanceArray:
    instance = Instance(track_id=3, mask=to_rle(square()), area=900, state=Instance.STATE_TRACKED)
    message = InstanceArray(camera="camera", height=SIZE[0], width=SIZE[1], instances=[instance])
    message.header.stamp, message.header.frame_id = to_time(stamp), "lens"
    return message


def played(module: str, output: str, kind: Any, inputs: dict[str, Any], best_effort: tuple[str, ...] = ()) -> Any:
    """Starts a node, listens to its output, and plays inputs (topic: stamp -> message) until something comes.

    The viewer is first, the publishers come later: reliable but for the topics in `best_effort`.
    """
    received: list[Any] = []
    process = Process(module)
    try:
        with robot() as friend:
            friend.listen(kind, output, received.append)

            def play() -> bool:
                stamp = next_stamp()
                for topic, make in inputs.items():
                    message = make(stamp)
                    reliable = topic not in best_effort
                    friend.publisher(kind=type(message), topic=topic, reliable=reliable).publish(message)
                return bool(received) or friend.pause(0.05)

            wait_until(play, f"{output} in:\n{process.output}")
    finally:
        assert process.stop() == 0, process.output
    return received[-1]


def test_project3d_node() -> None:
    def depth(stamp: int) -> Image:
        message = Image(height=SIZE[0], width=SIZE[1], step=SIZE[1] * 2, encoding="16UC1")
        message.header.stamp = to_time(stamp)
        message.data = array.array("B", np.full(SIZE, 2000, "<u2").tobytes())
        return message

    def info(stamp: int) -> CameraInfo:
        return CameraInfo(height=SIZE[0], width=SIZE[1], k=K.reshape(-1).tolist())

    inputs = {"/camera/depth": depth, "/camera/camera_info": info, "/camera/instances": instances}
    cloud = played("ausm_ros.project3d_node", "/project3d/camera/points", PointCloud2, inputs)
    rows = np.frombuffer(cloud.data, POINT)
    assert len(rows) == 900 and (rows["z"] == 2.0).all() and (rows["track_id"] == 3).all()
    assert cloud.header.frame_id == "lens"


def test_overlay_node() -> None:
    inputs = {"/camera/image": image_message, "/camera/instances": instances}
    drawn = played("ausm_ros.overlay_node", "/overlay/camera/image", Image, inputs, ("/camera/image",))
    plain = np.frombuffer(image_message(1).data, np.uint8).reshape(*SIZE, 3)
    changed = (np.frombuffer(drawn.data, np.uint8).reshape(*SIZE, 3) != plain).any(2)
    assert drawn.encoding == "rgb8" and changed[square()].mean() > 0.9 and changed.mean() < 0.8

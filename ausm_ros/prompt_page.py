"""`prompt click`: a page for a browser with the live overlay, on which an operator clicks. The robot may be headless.

The page is served by this process on 127.0.0.1 (see `--bind`); it shows the node's overlay and turns clicks (left: on
the object, right: not on it) and dragged boxes into prompts at the stamp of the image that was on the screen.
"""

import json
import re
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image, RegionOfInterest

from ausm.tracks import TrackState
from ausm_ros.messages import rgb_of, to_duration, to_ns, to_time
from ausm_ros.msg import Prompt
from ausm_ros.outputs import reliable
from ausm_ros.prompt_page_html import PAGE
from ausm_ros.prompts import OTHER_IDS, Code
from ausm_ros.run_node import until_shutdown
from ausm_ros.srv import AddObjects, ListObjects, RemoveObjects, Reset

MAX_BODY = 100_000  # bytes of a request
ANSWER = 15.0  # seconds for the node to answer
PATIENCE = 5.0  # seconds for the node to apply a prompt
SETTLE = 0.5  # seconds for the topics of a node to be found once the first is


def cameras_of(node: Node, target: str, patience: float) -> list[str]:
    """Names of the cameras of a perception node, by the overlays it publishes; empty when none is found in time.

    Not by its parameters: an operator may be allowed to look and to prompt only (docs/security.md).
    """
    overlay = re.compile(f"{re.escape(target)}/([^/]+)/overlay")
    end, known = time.monotonic() + patience, set[str]()
    while time.monotonic() < end:
        matches = [overlay.fullmatch(topic) for topic, _ in node.get_topic_names_and_types()]
        found = {match[1] for match in matches if match and node.count_publishers(match[0])}
        if found and found == known:
            break
        known = found
        time.sleep(SETTLE if found else 0.05)
    return sorted(known)


class BadRequest(ValueError):
    """What the page sent is not a prompt."""


def _number(value: Any) -> int:
    """A stamp or an id. Raises BadRequest."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRequest(f"{str(value)[:40]!r} is not a number") from error
    if number < 0:
        raise BadRequest(f"{number} is negative")
    return number


def make_prompt(data: dict[str, Any]) -> Prompt:
    """{"points": [[x, y, label], ...]} or {"box": [x, y, w, h]}, and optionally name and track_id."""
    try:
        common = {"name": str(data.get("name", ""))[:256], "track_id": _number(data.get("track_id") or 0)}
        if "box" in data:
            x, y, width, height = (int(v) for v in data["box"])
            box = RegionOfInterest(x_offset=x, y_offset=y, width=width, height=height)
            return Prompt(type=Prompt.BOX, box=box, **common)
        points = [[int(v) for v in point] for point in data["points"]]
        xs, ys, labels = (list(column) for column in zip(*points, strict=True))
        return Prompt(type=Prompt.POINTS, point_x=xs, point_y=ys, point_labels=labels, **common)
    except (KeyError, TypeError, ValueError, AssertionError, OverflowError) as error:
        raise BadRequest(f"not a prompt: {error}") from error


class ClickPage:
    """The ROS side of the page: the newest overlay and the calls of one camera's services."""

    def __init__(self, node: Node, target: str, camera: str) -> None:
        """target: full name of the perception node; camera: its name, as in the topics."""
        self._node, self._camera = node, camera
        self._newest: Image | None = None
        self._encoded: tuple[int, bytes] = (0, b"")
        self._lock = threading.Lock()
        node.create_subscription(Image, f"{target}/{camera}/overlay", self._on_image, reliable(1))
        kinds = {
            "add_objects": AddObjects,
            "remove_objects": RemoveObjects,
            "reset": Reset,
            "list_objects": ListObjects,
        }
        self._clients = {name: node.create_client(kind, f"{target}/{name}") for name, kind in kinds.items()}

    def _on_image(self, message: Image) -> None:
        self._newest = message

    def frame(self) -> tuple[int, bytes]:
        """Stamp [ns] and JPEG of the newest overlay; (0, b"") before the first."""
        newest = self._newest
        if newest is None:
            return 0, b""
        stamp = to_ns(newest.header.stamp)
        with self._lock:
            if self._encoded[0] != stamp:
                pixels = cv2.cvtColor(rgb_of(newest), cv2.COLOR_RGB2BGR)
                self._encoded = stamp, cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
            return self._encoded

    def _call(self, name: str, request: Any) -> Any:
        client = self._clients[name]
        future = client.call_async(request)
        end = time.monotonic() + ANSWER
        while not future.done():
            if time.monotonic() > end:
                client.remove_pending_request(future)
                raise TimeoutError(f"{client.srv_name} gave no answer in {ANSWER:.0f} s")
            time.sleep(0.005)
        return future.result()

    def _prompt(self, prompt: Prompt, stamp: int) -> dict[str, Any]:
        """Shows the node an object on the image of a stamp, or on the next one where that is too long ago for it.

        People take longer over their clicks than `prompt.stale_after` and see at once what became of them.
        """
        words = ""
        for at in (stamp, 0):
            request = AddObjects.Request(
                camera=self._camera, prompts=[prompt], stamp=to_time(at), wait=to_duration(PATIENCE)
            )
            answer = self._call("add_objects", request)
            result = answer.results[0]
            if result.code != Code.STALE_STAMP or OTHER_IDS in result.message:
                break
            words = "on a newer image than the one clicked on"
        said = ": ".join(part for part in (words, result.message or answer.message) if part)
        message = f"{Code(result.code).name} {said}".strip()
        return {"ok": answer.success, "message": message, "track_id": result.track_id}

    def post(self, path: str, data: dict[str, Any]) -> dict[str, Any]:
        """Carries out a request of the page. Raises BadRequest, TimeoutError."""
        if path == "/prompt":
            return self._prompt(make_prompt(data), _number(data.get("stamp") or 0))
        if path == "/remove":
            ids = [_number(i) for i in data.get("track_ids") or []]
            answer = self._call("remove_objects", RemoveObjects.Request(camera=self._camera, track_ids=ids))
            return {"ok": answer.success, "message": answer.message or "removed"}
        if path == "/reset":
            answer = self._call("reset", Reset.Request(camera=self._camera))
            return {"ok": answer.success, "message": answer.message or f"epoch {answer.epoch}"}
        raise BadRequest(f"nothing at {path}")

    def objects(self) -> dict[str, Any]:
        """The live objects, for the list beside the image."""
        answer = self._call("list_objects", ListObjects.Request(camera=self._camera))
        live = [
            {"id": o.track_id, "name": o.name or o.class_name, "state": TrackState(o.state).name.lower()}
            for o in answer.objects
        ]
        return {"ok": answer.success, "message": answer.message, "objects": live}


def make_server(page: ClickPage, bind: str, port: int) -> ThreadingHTTPServer:
    """A server of the page; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        def _send(self, status: HTTPStatus, kind: str, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def _answer(self, make: Callable[[], dict[str, Any]]) -> None:
            try:
                status, data = HTTPStatus.OK, make()
            except BadRequest as error:
                status, data = HTTPStatus.BAD_REQUEST, {"ok": False, "message": str(error)}
            except (TimeoutError, ValueError) as error:
                status, data = HTTPStatus.BAD_GATEWAY, {"ok": False, "message": str(error)}
            self._send(status, "application/json", json.dumps(data).encode())

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/":
                self._send(HTTPStatus.OK, "text/html; charset=utf-8", PAGE.encode())
            elif path == "/frame.jpg":
                stamp, jpeg = page.frame()
                status = HTTPStatus.OK if jpeg else HTTPStatus.NO_CONTENT
                self._send(status, "image/jpeg", jpeg, X_Stamp=str(stamp), Cache_Control="no-store")
            elif path == "/objects":
                self._answer(page.objects)
            else:
                self._send(HTTPStatus.NOT_FOUND, "text/plain", b"nothing here")

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if self.headers.get("X-Ausm") != "1":  # another page in the same browser cannot set it
                self._send(HTTPStatus.FORBIDDEN, "text/plain", b"not from this page")
            elif length > MAX_BODY:
                self._send(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "text/plain", b"too long")
            else:
                self._answer(lambda: page.post(self.path, self._body(length)))

        def _body(self, length: int) -> dict[str, Any]:
            try:
                data = json.loads(self.rfile.read(length) or b"{}")
            except ValueError as error:
                raise BadRequest(f"not JSON: {error}") from error
            if not isinstance(data, dict):
                raise BadRequest("not a JSON object")
            return data

        def log_message(self, format: str, *args: object) -> None:
            """Silent: a line for every frame would bury the operator's own output."""

    return ThreadingHTTPServer((bind, port), Handler)


def serve(node: Node, target: str, camera: str, bind: str, port: int) -> int:
    """Serves the page until it is interrupted; the exit status."""
    page = ClickPage(node, target, camera)
    server = make_server(page, bind, port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://{bind}:{server.server_address[1]}/   (Ctrl-C ends)", flush=True)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        with until_shutdown():  # its usual end
            executor.spin()
    finally:
        server.shutdown()
    return 0

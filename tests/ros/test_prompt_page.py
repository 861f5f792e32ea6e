"""The page an operator clicks on: it shows the overlay of a running node, and its requests become prompts."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import rclpy
from browser import PROGRAM, chromium
from harness import SECOND, SIZE, Robot, image_message, perception, robot, wait_until
from rclpy.executors import SingleThreadedExecutor

from ausm_ros.prompt_page import BadRequest, ClickPage, make_prompt, make_server


class Browser:
    """What a browser sends, without one."""

    def __init__(self, port: int) -> None:
        self.root = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> tuple[int, bytes, Any]:
        with urllib.request.urlopen(self.root + path, timeout=60) as answer:
            return answer.status, answer.read(), answer.headers

    def post(self, path: str, data: Any, header: str = "1") -> tuple[int, dict[str, Any]]:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        request = urllib.request.Request(self.root + path, body, {"X-Ausm": header}, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            text = error.read()
            return error.code, json.loads(text) if text.startswith(b"{") else {}


@pytest.fixture(scope="module")
def open_page() -> Iterator[tuple[Browser, Robot]]:
    with perception("discovery:=false") as _, robot() as friend:
        friend.wait_for_state("active")
        node, executor = rclpy.create_node("clicks"), SingleThreadedExecutor()
        page = ClickPage(node, "/perception", "camera")
        server = make_server(page, "127.0.0.1", 0)
        executor.add_node(node)
        threads = [threading.Thread(target=run, daemon=True) for run in (executor.spin, server.serve_forever)]
        for thread in threads:
            thread.start()
        friend.settle()
        browser = Browser(server.server_address[1])
        wait_until(lambda: friend.show() and page.frame()[0], "an overlay on the page")
        yield browser, friend
        server.shutdown()
        executor.shutdown()


def test_page_and_frame(open_page: tuple[Browser, Robot]) -> None:
    browser, _ = open_page
    assert b"<canvas" in browser.get("/")[1]
    status, jpeg, headers = browser.get("/frame.jpg?1")
    assert status == 200 and int(headers["X-Stamp"]) > 0 and headers["Cache-Control"] == "no-store"
    assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (*SIZE, 3)
    with pytest.raises(urllib.error.HTTPError) as missing:
        browser.get("/etc/passwd")
    assert missing.value.code == 404


def test_clicks_become_objects(open_page: tuple[Browser, Robot]) -> None:
    browser, friend = open_page
    stamp = browser.get("/frame.jpg")[2]["X-Stamp"]
    status, answer = browser.post("/prompt", {"points": [[40, 30, 1], [5, 5, 0]], "name": "cup", "stamp": stamp})
    assert status == 200 and answer["ok"], answer
    listed = json.loads(browser.get("/objects")[1])
    assert [o["name"] for o in listed["objects"]] == ["cup"]
    again = browser.post("/prompt", {"box": [10, 10, 30, 30], "track_id": answer["track_id"], "stamp": stamp})[1]
    assert again["ok"] and again["track_id"] == answer["track_id"]
    wrong = browser.post("/prompt", {"box": [90, 10, 30, 30], "stamp": stamp})[1]
    assert not wrong["ok"] and wrong["message"].startswith("INVALID_MASK")
    assert browser.post("/remove", {"track_ids": [answer["track_id"]]})[1]["ok"]
    assert browser.post("/reset", {})[1]["message"].startswith("epoch")
    friend.show()


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
def test_drag_correct_remove_and_reset_in_a_browser(open_page: tuple[Browser, Robot]) -> None:
    """Real mouse events on the page itself."""
    browser, friend = open_page
    assert friend.reset().success
    friend.show()
    with chromium() as page:
        page.call("Page.navigate", url=browser.root)
        page.wait_for('document.readyState === "complete" && shown !== "0"')
        left, top, width, height = page.evaluate(
            '(() => { const r = $("canvas").getBoundingClientRect(); return [r.x, r.y, r.width, r.height] })()'
        )

        def at(x: int, y: int) -> tuple[float, float]:
            """The middle of a pixel of the image, in the window."""
            return left + (x + 0.5) * width / SIZE[1], top + (y + 0.5) * height / SIZE[0]

        page.drag(at(70, 50), at(30, 20))  # from below
        assert page.evaluate("box") == [30, 20, 40, 30] and page.evaluate("points.length") == 0
        page.evaluate('$("name").value = "cup"')
        page.press('$("send")')
        page.wait_for('$("message").textContent.startsWith("OK")')
        page.wait_for('$("objects").innerText.includes("cup")')
        [cup] = friend.objects().objects
        assert cup.name == "cup" and page.evaluate("box === null && $('name').value === ''")

        page.click(*at(40, 30))
        page.click(*at(5, 60), button="right")
        assert page.evaluate("points") == [[40, 30, 1], [5, 60, 0]]
        page.press('$("clear")')
        assert page.evaluate("points.length") == 0
        page.press('$("send")')
        assert page.evaluate('$("message").className') == "bad"  # nothing to show
        correct = 'document.querySelectorAll("li button")[0]'
        page.press(correct, until=f'{correct}?.textContent === "correcting"')
        page.click(*at(50, 35))
        page.press('$("send")')
        page.wait_for('$("message").textContent.startsWith("OK") && points.length === 0')
        assert [o.track_id for o in friend.objects().objects] == [cup.track_id]

        removed = '$("message").textContent === "removed" && !document.querySelector("li")'
        page.press('document.querySelectorAll("li button")[1]', until=removed)
        assert not friend.objects().objects
        page.press('$("reset")')
        page.wait_for('$("message").textContent.startsWith("epoch")')
    friend.show()


def test_slow_clicks_go_to_the_next_image_and_say_so(open_page: tuple[Browser, Robot]) -> None:
    """People take longer than the node keeps a stamp for."""
    browser, friend = open_page
    drawn_on = int(browser.get("/frame.jpg")[2]["X-Stamp"])
    friend.show(stamp=drawn_on + 9 * SECOND)
    stop = threading.Event()

    def images() -> None:
        stamp = drawn_on + 9 * SECOND
        while not stop.wait(0.2):
            friend.publish(image_message(stamp := stamp + SECOND // 5))

    thread = threading.Thread(target=images)
    thread.start()
    try:
        answer = browser.post("/prompt", {"points": [[40, 30, 1]], "stamp": str(drawn_on)})[1]
    finally:
        stop.set()
        thread.join()
    # what follows says whether the model had an outline for the point
    assert answer["ok"] and answer["message"].startswith("OK on a newer image than the one clicked on"), answer
    assert friend.reset().success


def test_what_is_not_a_prompt_is_refused(open_page: tuple[Browser, Robot]) -> None:
    browser, _ = open_page
    for data in (b"{", b"[1]", {"points": []}, {"points": [[1]]}, {"box": "abc"}, {"points": [[-1, 2, 1]]}, {}):
        status, answer = browser.post("/prompt", data)
        assert status == 400 and not answer["ok"], data
    for path, data, words in (
        ("/remove", {"track_ids": [-1]}, "-1 is negative"),
        ("/remove", {"track_ids": "a"}, "'a' is not a number"),
        ("/prompt", {"box": [1, 1, 20, 20], "stamp": "x"}, "'x' is not a number"),
    ):
        status, answer = browser.post(path, data)
        assert status == 400 and words in answer["message"], (data, answer)
    assert browser.post("/elsewhere", {})[0] == 400
    assert browser.post("/reset", {}, header="0")[0] == 403  # another site in the same browser
    assert browser.post("/prompt", b" " * 200_000)[0] == 413


def test_prompts_of_the_page() -> None:
    prompt = make_prompt({"points": [[1, 2, 1], [3, 4, 0]], "name": "x" * 300, "track_id": 7})
    assert list(prompt.point_x) == [1, 3] and list(prompt.point_labels) == [1, 0]
    assert len(prompt.name) == 256 and prompt.track_id == 7
    with pytest.raises(BadRequest, match="-1 is negative"):
        make_prompt({"box": [1, 2, 3, 4], "track_id": -1})
    with pytest.raises(BadRequest):
        make_prompt({"box": [1, 2, 3]})

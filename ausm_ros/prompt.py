"""The operator's command line: show the node an object, list, remove, reset.

    prompt --mask cup.png --name cup          a mask of the camera image's size; several values are several objects
    prompt --camera front --box 310,200,64,80 --name cup
    prompt --point 340,240 --not-point 340,300 --track-id 3
    prompt list | prompt remove 3 7 | prompt remove --all | prompt reset
    prompt click --camera front               a page for the browser: click on the live image

Prints what became of each object. The exit status is 0, or the number of the first result code that is not OK (its name
is printed), 64 for a wrong command line, 69 when the node does not answer, 130 when it is interrupted (0 for `click`,
which ends in no other way).
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import rclpy
from builtin_interfaces.msg import Duration
from rclpy.node import Node
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import RegionOfInterest

from ausm.errors import AusmError
from ausm.masks import read_prompt_png
from ausm.tracks import Source, TrackState
from ausm_ros.ask import Question
from ausm_ros.messages import to_duration, to_ns, to_png
from ausm_ros.msg import Prompt
from ausm_ros.prompt_page import cameras_of, serve
from ausm_ros.prompts import Code
from ausm_ros.run_node import until_shutdown
from ausm_ros.srv import AddObjects, ListObjects, RemoveObjects, Reset
from ausm_ros.start import WRONG_ARGUMENTS, reason_of
from ausm_ros.transport import use_large_shared_memory

ASK_AGAIN = 1.0  # s until a question without an answer is put again
USAGE, UNAVAILABLE = 64, 69  # sysexits.h: EX_USAGE, EX_UNAVAILABLE
INTERRUPTED = 130  # as a shell says of Ctrl-C
COMMANDS = ("add", "list", "remove", "reset", "click")
MAX_ID = 2**32 - 1
WHOLE = 0.995  # IoU from which two masks are said to be one


class _Parser(argparse.ArgumentParser):
    """Leaves with 64: 2 is the result code UNKNOWN_CAMERA."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


class NoAnswer(RuntimeError):
    """The node is not there, or did not answer in time."""


def _words(*parts: str) -> str:
    """What there is of the parts, after one another."""
    return ": ".join(part for part in parts if part)


def _taken(prompt: Prompt, iou: float) -> str:
    """What `iou_with_prompt` of an accepted prompt says, for people; "" where it says nothing."""
    if math.isnan(iou):
        return ""
    if prompt.track_id:
        return f", the mask it had agreed to {100 * iou:.0f} %"
    if prompt.type in (Prompt.BOX, Prompt.POINTS):
        return "" if iou > WHOLE else ", in the outline that the model sees there"
    return f", {100 * iou:.0f} % of the mask: another one of this request has the rest" if iou < WHOLE else ""


def _numbers(count: int) -> Callable[[str], tuple[int, ...]]:
    def parse(text: str) -> tuple[int, ...]:
        values = tuple(int(v) for v in text.split(","))
        if len(values) != count or min(values) < 0:
            raise argparse.ArgumentTypeError(f"{count} whole numbers from 0, separated by commas, not {text!r}")
        return values

    parse.__name__ = f"{count} numbers"
    return parse


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= MAX_ID


def _track_id(text: str) -> int:
    if not _is_id(text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a track id")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = _Parser("prompt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="*", default=["add"], help="add (default), list, remove ID..., reset, click")
    parser.add_argument("--node", default="/perception", help="full name of the node (default %(default)s)")
    parser.add_argument("--camera", default="", help="needed when the node has several cameras")
    parser.add_argument("--name", default="", help="a name to carry with the object")
    parser.add_argument("--track-id", type=_track_id, default=0, help="prompt this live object again, keeping its id")
    parser.add_argument("--wait", type=float, default=5.0, help="seconds to wait until it is applied (default 5)")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds to wait for each answer of the node")
    parser.add_argument("--all", action="store_true", help="with remove: every object of the camera")
    shapes = parser.add_argument_group("what to show (one of)")
    shapes.add_argument("--mask", type=Path, help="PNG of the camera image's size, palette or grey; 0 = background")
    shapes.add_argument("--box", type=_numbers(4), metavar="X,Y,W,H", help="rectangle in pixels of the camera image")
    shapes.add_argument("--point", type=_numbers(2), metavar="X,Y", action="append", default=[], help="on the object")
    shapes.add_argument("--not-point", type=_numbers(2), metavar="X,Y", action="append", default=[], help="not on it")
    page = parser.add_argument_group("with click")
    page.add_argument("--bind", default="127.0.0.1", help="address to serve the page on (default %(default)s)")
    page.add_argument("--port", type=int, default=8765, help="0 takes a free one (default %(default)s)")
    return parser


def make_prompts(options: argparse.Namespace) -> list[Prompt]:
    """The prompts of a command line. Raises AusmError for a mask file that cannot be read or is empty."""
    common = {"name": options.name, "track_id": options.track_id}
    if options.mask is not None:
        masks, values = read_prompt_png(options.mask)
        if len(masks) > 1 and options.track_id:
            raise AusmError(f"{options.mask} holds {len(masks)} objects, --track-id names one")
        several = options.name and len(masks) > 1
        names = [f"{options.name}{v}" for v in values] if several else [options.name] * len(masks)
        return [
            Prompt(type=Prompt.MASK_PNG, png=to_png(mask), name=name, track_id=options.track_id)
            for mask, name in zip(masks, names, strict=True)
        ]
    if options.box is not None:
        x, y, width, height = options.box
        box = RegionOfInterest(x_offset=x, y_offset=y, width=width, height=height)
        return [Prompt(type=Prompt.BOX, box=box, **common)]
    points = [*options.point, *options.not_point]
    labels = [1] * len(options.point) + [0] * len(options.not_point)
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    return [Prompt(type=Prompt.POINTS, point_x=xs, point_y=ys, point_labels=labels, **common)]


class Operator:
    """Calls the services of one node. Methods print what happened and return the exit status."""

    def __init__(self, node: Node, target: str, timeout: float) -> None:
        self._node, self._target, self._timeout = node, target.rstrip("/"), timeout

    def _client(self, kind: Any, name: str) -> Any:
        client = self._node.create_client(kind, f"{self._target}/{name}")
        if not client.wait_for_service(timeout_sec=self._timeout):
            raise NoAnswer(f"no service {client.srv_name} after {self._timeout:g} s: is the node running?")
        return client

    def _list(self, camera: str) -> Any:
        """What list_objects answers; as it changes nothing it is asked again until it does."""
        client = self._client(ListObjects, "list_objects")
        question = Question(client, ListObjects.Request(camera=camera), ASK_AGAIN)
        end = time.monotonic() + self._timeout
        while (answer := question.poll()) is None:
            if time.monotonic() >= end:
                raise NoAnswer(f"{client.srv_name} gave no answer in {self._timeout:g} s")
            rclpy.spin_once(self._node, timeout_sec=0.05)
        return answer

    def _call(self, kind: Any, name: str, request: Any, wait: float = 0.0) -> Any:
        """One request that is not repeated.

        Its answer would be lost if the node had not discovered this client yet (`ausm_ros.ask`). What a process makes
        is announced in order, so the answer to a client that is made after this one says that the node knows this one
        too.
        """
        client = self._client(kind, name)
        self._list("")
        future = client.call_async(request)
        rclpy.spin_until_future_complete(self._node, future, timeout_sec=self._timeout + wait)
        if not future.done():
            waited = f"{self._timeout + wait:g} s"
            raise NoAnswer(f"{client.srv_name} gave no answer in {waited}; it may still have done what was asked")
        return future.result()

    def add(self, camera: str, prompts: Sequence[Prompt], wait: float) -> int:
        duration: Duration = to_duration(max(0.0, wait))
        request = AddObjects.Request(camera=camera, prompts=prompts, all_or_nothing=True, wait=duration)
        answer = self._call(AddObjects, "add_objects", request, wait)
        refused: dict[tuple[int, str], list[str]] = {}  # (code, message) -> names: what is common is said once
        for prompt, result in zip(prompts, answer.results, strict=False):
            name = prompt.name or "object"
            if result.code != Code.OK:
                refused.setdefault((result.code, result.message), []).append(name)
                continue
            stamp = to_ns(answer.applied_stamp)
            at = f", applied at {stamp / 1e9:.3f} s, epoch {answer.epoch}" if stamp else ""
            what = f"track {result.track_id}{at}{_taken(prompt, result.iou_with_prompt)}" if result.track_id else ""
            print(_words(name, "OK", what, result.message))
        for (code, message), names in refused.items():
            print(_words(names[0] if len(names) == 1 else f"{len(names)} objects", Code(code).name, message))
        return self._status(answer)

    def remove(self, camera: str, track_ids: Sequence[int], everything: bool) -> int:
        request = RemoveObjects.Request(camera=camera, track_ids=track_ids, all=everything)
        answer = self._call(RemoveObjects, "remove_objects", request)
        for result in answer.results:
            print(_words(f"track {result.track_id}", Code(result.code).name, result.message or "removed"))
        return self._status(answer)

    def reset(self, camera: str) -> int:
        answer = self._call(Reset, "reset", Reset.Request(camera=camera))
        of = f"camera {camera}" if camera else "every camera of the node"
        print(f"{of} begins anew, epoch {answer.epoch}" if answer.success else answer.message)
        return self._status(answer)

    def list(self, camera: str) -> int:
        answer = self._list(camera)
        if answer.success:
            print(f"{answer.in_use} of {answer.capacity} places in use")
        for i in answer.objects:
            at = f"x={i.box.x_offset} y={i.box.y_offset} width={i.box.width} height={i.box.height}"
            box = at if i.area else "not in sight"
            state, source = TrackState(i.state).name.lower(), Source(i.source).name.lower()
            what = ", ".join(filter(None, (i.name, f"{i.class_name} ({i.class_score:.2f})" if i.class_name else "")))
            score = "last score" if i.state == TrackState.LOST else "score"
            print(f"{i.track_id:5d}  {state:9s} {source:10s} {score} {i.score:.2f}  {box}  {what}".rstrip())
        return self._status(answer)

    @staticmethod
    def _status(answer: Any) -> int:
        """0, or the first result code that is not OK; a refusal without results names its code in the message."""
        if answer.success:
            return 0
        codes = [r.code for r in getattr(answer, "results", ()) if r.code != Code.OK]
        if not codes:  # else it is told with the results
            print(answer.message, file=sys.stderr)
        named = [code for code in Code if answer.message.startswith(f"{code.name}:")]
        return int(codes[0] if codes else named[0] if named else Code.INTERNAL_ERROR)


def _only(cameras: Sequence[str], target: str, timeout: float, parser: argparse.ArgumentParser) -> str:
    """The camera of a node that has one only. Raises NoAnswer where none is found, leaves where there are several."""
    if not cameras:
        raise NoAnswer(f"no topic {target}/*/overlay after {timeout:g} s: is the node running and configured?")
    if len(cameras) > 1:
        parser.error(f"click: {target} has {len(cameras)} cameras, give --camera: {', '.join(cameras)}")
    return cameras[0]


def run(options: argparse.Namespace, parser: argparse.ArgumentParser, node: Node) -> int:
    operator = Operator(node, options.node, options.timeout)
    command, arguments = options.command[0], options.command[1:]
    if command == "remove":
        wrong = [a for a in arguments if not _is_id(a)]
        if wrong:
            parser.error(f"remove: '{wrong[0]}' is not a track id")
        if not options.all and not arguments:
            parser.error("remove: give the track ids, or --all")
        return operator.remove(options.camera, [int(a) for a in arguments], options.all)
    if command not in COMMANDS:
        parser.error(f"no command '{command}', there are: {', '.join(COMMANDS)}")
    if arguments:
        parser.error(f"{command} takes no words: '{' '.join(arguments)}'")
    if command == "click":
        target = options.node.rstrip("/")
        camera = options.camera or _only(cameras_of(node, target, options.timeout), target, options.timeout, parser)
        return serve(node, target, camera, options.bind, options.port)
    if command == "list":
        return operator.list(options.camera)
    if command == "reset":
        return operator.reset(options.camera)
    if sum((options.mask is not None, options.box is not None, bool(options.point))) != 1:
        parser.error("give one of --mask, --box and --point")
    return operator.add(options.camera, make_prompts(options), options.wait)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    try:
        options = parser.parse_args(remove_ros_args(args=sys.argv if argv is None else ["prompt", *argv])[1:])
        use_large_shared_memory()
        rclpy.init(args=argv)
        node = Node("ausm_prompt", enable_rosout=False, start_parameter_services=False)
    except WRONG_ARGUMENTS as error:
        print(f"prompt: {reason_of(error)}", file=sys.stderr)
        rclpy.try_shutdown()
        return USAGE
    try:
        with until_shutdown():
            return run(options, parser, node)
    except NoAnswer as error:
        print(error, file=sys.stderr)
        return UNAVAILABLE
    except (AusmError, OSError) as error:  # the latter of the page: no such address, or its port is taken
        print(error, file=sys.stderr)
        return USAGE
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    print("prompt: interrupted", file=sys.stderr)
    return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())

"""Publisher, node, subscriber and service client, each in a process of its own; the commands of the operator."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import rclpy
from ausm_ros.msg import Instance
from harness import PATIENCE, SIZE, Process, camera_process, perception, robot, square, wait_until

from ausm_ros.messages import to_mask
from ausm_ros.prompt import make_parser, run
from ausm_ros.prompts import Code

TARGET = ["--node", "/robot/perception", "--timeout", "60", "--wait", "60"]


def in_a_process(*arguments: str) -> tuple[int, str]:
    """Exit status and output of the operator's command line."""
    process = Process("ausm_ros.prompt", [*TARGET, *arguments])
    return process.finish(PATIENCE), process.output


class Here:
    """The same command line in this process, which saves a start for each command."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys, self._node = capsys, rclpy.create_node("operator")

    def __call__(self, *arguments: str) -> tuple[int, str]:
        parser = make_parser()
        status = run(parser.parse_args([*TARGET, *arguments]), parser, self._node)
        captured = self._capsys.readouterr()
        return status, captured.out + captured.err


@pytest.mark.timeout(600)  # processes that start one after the other
def test_four_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This process is the subscriber; camera, node and prompt command line are started."""
    mask = square()
    cv2.imwrite(str(tmp_path / "cup.png"), mask.astype(np.uint8) * 255)
    cv2.imwrite(str(tmp_path / "small.png"), np.ones((5, 5), np.uint8))
    remap = ("__ns:=/robot", "camera/image:=/camera/image_raw")
    node, camera = perception("discovery:=false", remap=remap), camera_process("/camera/image_raw")
    with node, camera, robot(target="/robot/perception") as friend:
        received = friend.received["camera"]
        wait_until(lambda: len(received) > 2, "instances of a camera in another process")
        assert (received[0].height, received[0].width) == SIZE and received[0].header.frame_id == "lens"

        status, output = in_a_process("--mask", str(tmp_path / "cup.png"), "--name", "cup")
        assert status == 0 and "cup: OK: track 1" in output, output
        message = wait_until(lambda: next((m for m in received if m.instances), None), "the prompted object")
        [instance] = message.instances
        assert instance.name == "cup" and instance.source == Instance.SOURCE_PROMPT
        assert (to_mask(instance.mask, *SIZE) == mask).all()  # on the very image it was applied to
        status, output = in_a_process("--mask", str(tmp_path / "small.png"))
        assert status == Code.WRONG_SIZE and "WRONG_SIZE" in output and "5x5" in output, output

        prompt = Here(capsys)
        status, output = prompt("list")
        assert status == 0 and "1 of 100 places in use" in output and "cup" in output, output
        status, output = prompt("--camera", "rear", "--box", "1,2,30,20")
        assert status == Code.UNKNOWN_CAMERA and "UNKNOWN_CAMERA" in output, output
        status, output = prompt("--point", "40,30", "--not-point", "40,50", "--name", "dot")
        assert status == 0 and "dot: OK: track 2, applied at " in output, output
        status, output = prompt("--box", "1,2,30,20", "--track-id", "2")
        assert status == 0 and "OK: track 2" in output, output
        status, output = prompt("remove", "1", "44")
        assert status == Code.UNKNOWN_ID and "track 1: OK" in output and "track 44: UNKNOWN_ID" in output, output
        status, output = prompt("remove", "--all")
        assert status == 0 and "track 2: OK" in output, output
        status, output = prompt("reset")
        assert status == 0 and "every camera of the node begins anew, epoch " in output, output
        for wrong in (["dance"], ["remove", "x"], ["list", "more"], ["--box", "1,2,3"], []):
            with pytest.raises(SystemExit) as left:
                prompt(*wrong)
            assert left.value.code == 64, wrong
        number = len(received)
        wait_until(lambda: len(received) > number + 2, "the stream to go on")


def test_command_line_without_a_node_says_so() -> None:
    process = Process("ausm_ros.prompt", ["--node", "/nobody", "--timeout", "0.5", "list"])
    assert process.finish(PATIENCE) == 69
    assert "/nobody/list_objects" in process.output and "Traceback" not in process.output

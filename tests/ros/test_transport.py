"""The DDS profile: found wherever the package lies, never forced on the user, and whole images arrive with it."""

import os
import shutil
import signal
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Process

from ausm_ros import transport

NAMESPACE = "{http://www.eprosima.com}"


@pytest.fixture
def no_profile(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An environment in which nobody has chosen a profile; what the test sets is undone."""
    for variable in transport.VARIABLES:
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    yield


def test_both_variables_name_the_profile(no_profile: None) -> None:
    profile = transport.use_large_shared_memory()
    assert profile is not None
    assert profile.is_file()
    assert {os.environ[v] for v in transport.VARIABLES} == {str(profile)}


@pytest.mark.parametrize("variable", transport.VARIABLES)
def test_the_users_profile_stays(no_profile: None, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "/home/me/profile.xml")
    assert transport.use_large_shared_memory() is None
    assert [os.environ.get(v) for v in transport.VARIABLES].count(None) == 1
    assert os.environ[variable] == "/home/me/profile.xml"


def test_without_room_nothing_is_set_and_the_figures_are_told(
    no_profile: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transport, "shared_memory_free", lambda: 64 * 2**20)
    assert transport.use_large_shared_memory() is None
    assert not any(v in os.environ for v in transport.VARIABLES)
    assert "64 MiB free, 256 MiB" in capsys.readouterr().err


def test_no_shared_memory_at_all_is_no_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(transport, "SHARED_MEMORY", tmp_path / "none")
    assert transport.shared_memory_free() == 0


@pytest.mark.parametrize("python", ["lib/python3.11/site-packages", "lib/python3/dist-packages"])
def test_the_file_is_found_in_an_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str) -> None:
    module = tmp_path / python / "ausm_ros" / "transport.py"
    config = tmp_path / "share/ausm_ros/config/fastdds_shm.xml"
    for path, source in ((module, transport.__file__), (config, transport.package_file(transport.PROFILE))):
        path.parent.mkdir(parents=True)
        shutil.copy(source, path)
    monkeypatch.setattr(transport, "__file__", str(module))
    assert transport.package_file(transport.PROFILE) == config


def test_a_missing_file_names_the_places() -> None:
    with pytest.raises(FileNotFoundError, match=r"config/none\.xml is not in any of: .*share/ausm_ros"):
        transport.package_file("config/none.xml")


def test_the_segment_is_what_the_check_counts_on() -> None:
    tree = ElementTree.parse(transport.package_file(transport.PROFILE))
    sizes = [int(e.text or 0) for e in tree.iter(f"{NAMESPACE}segment_size")]
    assert sizes == [transport.SEGMENT_BYTES]
    largest = [int(e.text or 0) for e in tree.iter(f"{NAMESPACE}maxMessageSize")]
    assert largest[0] > 1920 * 1080 * 3  # one image in one piece


def test_best_effort_images_of_1080p_arrive_in_another_process() -> None:
    """With Fast DDS's default transports one in ten does, or fewer, however slowly they come."""
    receiver, sender = Process("image_receiver.py"), Process("image_sender.py", ["40"])
    try:
        sender.wait_for("all sent")
        assert sender.finish() == 0
    finally:
        sender.stop()
        receiver.stop(signal.SIGINT)
    count = int(receiver.wait_for("received").split()[1])
    assert count >= 30, receiver.output
    assert "(1920, 1080)" in receiver.output

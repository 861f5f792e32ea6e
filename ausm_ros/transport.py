"""What must be in the environment before `rclpy.init`: raw images arrive whole, ROS tools find the package."""

import os
import sys
from pathlib import Path

PROFILE = "config/fastdds_shm.xml"
VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")  # Fast DDS 3 (Kilted), 2 (Jazzy)
SHARED_MEMORY = Path("/dev/shm")
SEGMENT_BYTES = 64 * 2**20  # of each process, as in the profile
PROCESSES = 4  # camera, node, one viewer, one to spare


def package_file(name: str) -> Path:
    """A file of `share/ausm_ros` or of the source tree. Raises FileNotFoundError with the places tried."""
    here = Path(__file__).absolute()  # not resolved: a colcon symlink install leads back to the source tree
    tried = [parent / "share" / "ausm_ros" / name for parent in here.parents[2:6]]
    tried.insert(0, here.parents[1] / name)
    for path in tried:
        if path.is_file():
            return path
    raise FileNotFoundError(f"{name} is not in any of: {', '.join(map(str, tried))}")


def shared_memory_free() -> int:
    """Bytes free for shared memory; 0 where there is none."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def use_large_shared_memory() -> Path | None:
    """Let this process and its children send whole images through shared memory. Call before `rclpy.init`.

    Returns the profile in use. A profile chosen by the user stays; then, and where /dev/shm is too small for the
    segments (Docker gives 64 MiB), nothing is changed and None is returned: images then need a reliable connection.
    Also lets ROS tools find the installed package (AMENT_PREFIX_PATH) where no ROS set-up file was sourced.
    """
    os.environ.setdefault("AMENT_PREFIX_PATH", sys.prefix)
    if any(os.environ.get(variable) for variable in VARIABLES):
        return None
    if shared_memory_free() < PROCESSES * SEGMENT_BYTES:
        free, needed = shared_memory_free() // 2**20, PROCESSES * SEGMENT_BYTES // 2**20
        print(f"ausm_ros: {SHARED_MEMORY} has {free} MiB free, {needed} MiB are needed for images", file=sys.stderr)
        return None
    profile = package_file(PROFILE)
    for variable in VARIABLES:
        os.environ[variable] = str(profile)
    return profile

"""What `pip install .` runs: CMake compiles the messages and services, and its install tree becomes the wheel.

`CMakeLists.txt` is the one list of what is installed, for pip and for `colcon build`. Here its tree is laid out for
pip: Python packages into site-packages, `lib/`, `share/` and `include/` into the root of the environment, where the
ROS 2 wheels put theirs. The environment variable AUSM_ROS_DISTRO chooses the wheels: jazzy (default) or kilted.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, ClassVar

from setuptools import Command, Distribution, setup
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
DISTRO = os.environ.get("AUSM_ROS_DISTRO", "jazzy")
NOT_SHIPPED = ("*.egg-info", "*.c", "__pycache__")  # by-products of the generators


def requirements(name: str) -> list[str]:
    """The lines of requirements/NAME.txt without comments."""
    path = ROOT / "requirements" / f"{name}.txt"
    if not path.exists():
        raise SystemExit(f"AUSM_ROS_DISTRO is {DISTRO!r}, but there is no {path}: use jazzy or kilted")
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def wheels_prefix() -> Path:
    """Root of the environment that holds the ROS 2 build wheels: pip's isolated build environment, or the venv."""
    found = importlib.util.find_spec("ament_package")
    if found is None or found.origin is None:
        raise SystemExit("ament_package is not importable: build with pip, which installs it, or use colcon")
    return Path(found.origin).parents[4]  # PREFIX/lib/pythonX.Y/site-packages/ament_package/__init__.py


class BuildTree(Command):
    """CMake: configure, compile, install into a staging folder; then hand the files to the wheel."""

    description = "compile the ROS 2 interfaces and collect the package with CMake"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = []
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.build_temp: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_platlib", "build_lib"), ("build_temp", "build_temp"))

    def run(self) -> None:
        if self.editable_mode:
            raise SystemExit(
                "editable installs are not supported: install once, the modules of this folder come first anyway"
            )
        if self.build_lib is None or self.build_temp is None:
            raise SystemExit("build_tree needs the folders that the build command sets")
        prefix = wheels_prefix()
        tree, stage = (Path(self.build_temp).resolve() / name for name in ("cmake", "stage"))
        for folder in (tree, stage, self.build_lib):  # of an older state, perhaps of another interpreter
            shutil.rmtree(folder, ignore_errors=True)
        environment = os.environ | {"AMENT_PREFIX_PATH": str(prefix)}
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_PREFIX_PATH": prefix,
            "CMAKE_INSTALL_PREFIX": stage,
            "CMAKE_INSTALL_RPATH": "$ORIGIN;$ORIGIN/../../..",  # lib/ from itself and from site-packages/ausm_ros
            "Python3_EXECUTABLE": sys.executable,
            "BUILD_TESTING": "OFF",
        }
        configure = ["cmake", "-S", ROOT, "-B", tree, "-G", "Ninja"]
        configure += [f"-D{name}={value}" for name, value in options.items()]
        for command in (configure, ["cmake", "--build", tree], ["cmake", "--install", tree]):
            subprocess.run(list(map(str, command)), check=True, env=environment)

        marker = next(stage.rglob("ausm_ros/__init__.py"))
        packages = marker.parents[1]
        ignore = shutil.ignore_patterns(*NOT_SHIPPED)
        shutil.copytree(packages, self.build_lib, ignore=ignore, dirs_exist_ok=True)
        shutil.rmtree(packages)
        folders: dict[str, list[str]] = {}
        for path in sorted(stage.rglob("*")):
            inside = path.relative_to(stage)
            build_path = "parent_prefix_path" in inside.parts or path.name.startswith("local_setup.")  # for sourcing
            if path.is_file() and not build_path:
                folders.setdefault(str(inside.parent), []).append(os.path.relpath(path, ROOT))
        self.distribution.data_files = sorted(folders.items())

    def get_source_files(self) -> list[str]:
        return []

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Build(build):
    """The standard build, plus the tree above."""

    sub_commands: ClassVar[list[tuple[str, Any]]] = [*build.sub_commands, ("build_tree", None)]


class BinaryDistribution(Distribution):
    """Compiled code comes from CMake, so setuptools must be told that the wheel is not a pure one."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    version=ElementTree.parse(ROOT / "package.xml").getroot().findtext("version"),
    install_requires=[*requirements("runtime"), *requirements(f"ros_{DISTRO}")],
    setup_requires=[*requirements(f"build_{DISTRO}"), *requirements(f"ros_{DISTRO}")],  # pip's build environment
    packages=[],
    distclass=BinaryDistribution,
    cmdclass={"build": Build, "build_tree": BuildTree},
)

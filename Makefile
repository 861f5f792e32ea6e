# Two commands from a clean clone: `make demo`, `make test`. Needs Python 3.11 or newer, a C++ compiler, x86-64 Linux.
# The first of them downloads about 1 GB of packages into .venv (CPU build of PyTorch), takes minutes, leaves 2 GB on disk.
#
#   make demo INPUT=clip.mp4 PROMPT=mask.png     your own video, image folder or rosbag2; see `ausm-demo --help`
#   make demo DEMO_ARGS="--speed 0.1"            at a tenth of the clip's rate, for a machine that cannot keep up
#   make venv PIP_ARGS="--extra-index-url URL"   another PyTorch build (README)
#   make test AUSM_ROS_DISTRO=kilted             ROS 2 Kilted instead of Jazzy, in a virtual environment of its own
#   make types                                   mypy of every package, settings in pyproject.toml

export AUSM_ROS_DISTRO ?= jazzy
PYTHON ?= python3
VENV ?= .venv$(if $(filter-out jazzy,$(AUSM_ROS_DISTRO)),-$(AUSM_ROS_DISTRO))
PIP_ARGS ?=
OUT ?= out/demo
INPUT ?=
PROMPT ?=
DEMO_ARGS ?=
TEST_ARGS ?=

INSTALLED := $(VENV)/installed
SOURCES := pyproject.toml setup.py package.xml CMakeLists.txt \
  $(shell find requirements cmake msg srv launch config ausm ausm_ros training bench -type f -not -name '*.pyc')

.PHONY: demo test types venv clean

demo: venv
	$(VENV)/bin/ausm-demo --out "$(OUT)" $(if $(INPUT),--input "$(INPUT)") $(if $(PROMPT),--prompt "$(PROMPT)") $(DEMO_ARGS)

test: venv
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest $(TEST_ARGS)

types: venv
	$(VENV)/bin/python -m mypy ausm ausm_ros training bench

venv: $(INSTALLED)

# The second call: packages whose dependencies would bring a second OpenCV (requirements/no_deps.txt).
$(INSTALLED): $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version if sys.version_info < (3, 11) else 0)'
	[ -x $(VENV)/bin/python ] || { echo 'making $(VENV): 1 GB or more to download, takes minutes'; $(PYTHON) -m venv $(VENV); }
	$(VENV)/bin/python -m pip install -q $(PIP_ARGS) ".[demo,sim,train,test]"
	$(VENV)/bin/python -m pip install -q --no-deps $(PIP_ARGS) -r requirements/no_deps.txt
	touch $@

clean:
	rm -rf .venv .venv-kilted build install log out

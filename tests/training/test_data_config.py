"""The TOML file of data sources: what its tables set, and what is wrong with one that is refused."""

from pathlib import Path

import pytest
from layouts import write_coco, write_sequence
from tiny_training import Squares

from training import data_config
from training.clips import ClipConfig, ClipDataError
from training.data_config import SourceConfig, load_data_config, make_source, parse_data_config


def test_data_config_opens_sources_with_overrides(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco")
    write_sequence(tmp_path / "mose" / "train" / "JPEGImages", tmp_path / "mose" / "train" / "Annotations", "a")
    (tmp_path / "data.toml").write_text(
        '[[source]]\nkind = "coco"\nroot = "coco"\nannotations = "instances.json"\nweight = 0.25\nhead = ""\n'
        "exhaustive = false\npaste = 0.1\nframes = 3\nsize = [64, 96]\nwhole = 0.5\n"
        '[[source]]\nkind = "mose"\nname = "m"\nroot = "mose"\nexhaustive = true\n'
    )
    first, second = load_data_config(tmp_path / "data.toml")
    assert (first.weight, first.paste, first.reader.head, first.reader.exhaustive) == (0.25, 0.1, "", False)
    assert (first.frames, first.size, first.whole) == (3, (64, 96), 0.5)
    assert (second.frames, second.size, second.whole) == (None, None, None)
    assert (second.weight, second.paste, second.reader.name, second.reader.exhaustive) == (1.0, None, "m", True)
    assert len(first.reader) == 1  # image 9 is held out here too


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs one or more"),
        ("[[source]]\nkind = 'coco'\n", r"\[\[source\]\] 1.*missing keys \['root'\]"),
        ("[[source]]\nkind = 'coco'\nroot = 'x'\nwieght = 1\n", r"unknown keys \['wieght'\]"),
        ("[[source]]\nkind = 'coco'\nroot = 'x'\nweight = 'much'\n", "weight = 'much'"),
        ("[[source]]\nkind = 'coco'\nroot = 'x'\nweight = -1\n", "weight -1"),
        ("[[source]]\nkind = 'coco'\nroot = 'x'\nframes = 0\n", r"\]\] 1: frames 0 must be >= 1"),
        ("[[source]]\nkind = 'coco'\nroot = 'x'\nframes = '3'\n", r"\]\] 1: frames = '3' is not a whole number"),
        ("[[source]]\nkind = 'coco'\nroot = 'x'\nframes = true\n", r"\]\] 1: frames = True"),
        ("[[source]]\nkind = 'coco'\nroot = 'x'\nwhole = 1.5\n", "whole 1.5 must be in 0..1"),
        ("[[source]]\nkind = 'sim'\nroot = 'x'\nlinger = -1\n", "linger -1 must be in 0..1"),
        ("[[source]]\nkind = 'coco'\nroot = 'x'\nalone = true\n", "alone is for simulated clips, kind is 'coco'"),
        ("[[source]]\nkind = 'coco'\nroot = 'x'\nlinger = 0.5\n", "linger is for simulated clips, kind is 'coco'"),
        ("[[source]]\nkind = 'sim'\nroot = 'x'\ncrowded = true\n", "crowded is for COCO images, kind is 'sim'"),
        ("[[source]]\nkind = 'sim'\nroot = 'x'\nalone = true\nexhaustive = true\n", "so it is not exhaustive"),
        ("[[source]]\nkind = 'sim'\nroot = 'x'\nalone = 1\n", "alone = 1 is not true or false"),
        ("[[source]]\nkind = 'coco'\nroot = 'x'\nsize = [320, 450]\n", r"size \[320, 450\] must be .* multiples of 32"),
        ("[[source]]\nkind = 'coco'\nroot = 'x'\nsize = 320\n", r"size = 320 is not \[height, width\]"),
        ("[[source]]\nkind = 'imagenet'\nroot = 'x'\n", "kind 'imagenet': known are"),
        ("[[source]\n", r"data\.toml"),
    ],
)
def test_data_config_errors_say_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "data.toml").write_text(text)
    with pytest.raises(ClipDataError, match=message):
        load_data_config(tmp_path / "data.toml")


def test_the_example_configuration_is_valid() -> None:
    configs = parse_data_config(Path(__file__).parents[2] / "config" / "data_example.toml")
    assert [config.kind for config in configs] == ["coco", "coco", "davis2016", "sim"]


def test_the_data_of_the_papers_stages() -> None:
    folder = Path(__file__).parents[2] / "config"
    stages = [parse_data_config(folder / f"paper_stage{n}.toml") for n in (1, 2, 3)]
    for configs in stages:
        assert sum(config.weight for config in configs) == pytest.approx(1)
        assert {config.kind for config in configs} <= set(data_config.KINDS)
    one, two, three = ({config.kind for config in configs} for configs in stages)
    assert one == {"coco"} and three - two == {"davis2017"} and two < three and len(two) == 6


def test_nothing_gets_a_label_on_clips_of_a_source_with_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data_config.KINDS, "sim", lambda config, root: Squares())
    for alone, unlabelled in ((True, 1.0), (False, ClipConfig().unlabelled)):
        source = make_source(SourceConfig(kind="sim", root="x", alone=alone), Path())
        assert source.configure(ClipConfig()).unlabelled == unlabelled

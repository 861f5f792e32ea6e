"""What all readers share: bit maps of overlapping objects, label files, the cache, what is never trained on."""

from pathlib import Path

import numpy as np
import pytest
from layouts import SIZE, box, image_of
from PIL import Image

from training.clips import ClipDataError
from training.readers import HELD_OUT, ByteCache, bits_of_labels, channels, get_object, read_labels, set_object


def test_bit_maps_keep_overlapping_objects_across_channels() -> None:
    bits = np.zeros((*SIZE, channels(40)), np.int32)
    assert bits.shape[2] == 2
    for index in range(40):
        set_object(bits, index, box(0, index % 20, 24, index % 20 + 5))
    for index in range(40):
        assert np.array_equal(get_object(bits, index), box(0, index % 20, 24, index % 20 + 5))
    labels = np.zeros(SIZE, np.uint8)
    labels[3:5], labels[7:9] = 4, 200
    assert np.array_equal(get_object(bits_of_labels(labels, [4, 200]), 1), labels == 200)


def test_colour_label_maps_are_refused(tmp_path: Path) -> None:
    Image.fromarray(image_of(1)).save(tmp_path / "map.png")
    with pytest.raises(ClipDataError, match=r"map\.png.*palette"):
        read_labels(tmp_path / "map.png")


def test_cache_stays_below_its_limit(tmp_path: Path) -> None:
    cache = ByteCache(limit=250)
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() * 100)
    for name in "abcab":
        assert cache.read(tmp_path / name) == name.encode() * 100
        assert cache.used <= 250
    (tmp_path / "b").unlink()
    assert cache.read(tmp_path / "b")[:1] == b"b"  # still in memory
    with pytest.raises(ClipDataError, match="d"):
        cache.read(tmp_path / "d")


def test_held_out_names() -> None:
    davis = {"car-turn", "mallard-water", "lucia", "rhino", "horsejump-low", "soccerball", "mallard-fly"}
    assert HELD_OUT["davis"] == davis
    assert len(HELD_OUT["coco"]) == 50
    assert {"000000000009", "000000000338"} <= HELD_OUT["coco"] and "000000000357" not in HELD_OUT["coco"]

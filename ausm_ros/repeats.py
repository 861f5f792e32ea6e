"""How often a line that comes with every image may be logged."""

import time

REPEAT, REPEAT_OTHER = 60.0, 5.0  # seconds before the same line of one kind is logged again; before another line of it


class Repeats:
    """Remembers the last words of each camera and kind; lines that alternate between two texts wait REPEAT_OTHER s.

    Several threads may ask; at worst a line is logged twice.
    """

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], tuple[float, str]] = {}  # when, and which words

    def take_turn(self, camera: str, kind: str, words: str, repeat: float = REPEAT) -> bool:
        """Whether to log it now, which is noted: `repeat` s lie between the same words, REPEAT_OTHER between others."""
        now = time.monotonic()
        said = self._said.get((camera, kind))
        due = said is None or now - said[0] >= (repeat if words == said[1] else REPEAT_OTHER)
        if due:
            self._said[camera, kind] = now, words
        return due

"""What of a long run is finished: a JSON file in its folder, replaced atomically after every video."""

import json
from pathlib import Path
from typing import Any

from ausm import weights
from ausm.errors import AusmError


def data_settings(file: Path | None = None, **folders: Path | None) -> dict[str, Any]:
    """The data of a run, as settings: absolute paths of folders and the digest of the file that lists the videos.

    Videos of two data sets or splits often share their names, so the names in a manifest do not tell them apart.
    """
    found = {name: None if path is None else str(path.resolve()) for name, path in folders.items()}
    return found if file is None else found | {"list": str(file.resolve()), "list_sha256": weights.sha256(file)}


class Manifest:
    """Finished entries by row ("" = the run itself, or the name of a control) and video, and their settings."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Makes the folder. Raises AusmError when the file is of other settings: results of two models must not mix."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._data: dict[str, Any] = {"settings": settings, "rows": {}}
        if path.exists():
            try:
                data = json.loads(path.read_text())
                found = data["settings"]
                data["rows"].items()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise AusmError(f"{path} is not a readable manifest ({error}): choose another --out") from error
            differing = [f"{k} {found.get(k)} there, {v} now" for k, v in settings.items() if found.get(k) != v]
            if differing:
                raise AusmError(f"{path.parent} holds results of another run: {'; '.join(differing)}")
            self._data = data

    def get(self, row: str, name: str) -> Any:
        """The entry of a finished video, None if it is not finished."""
        return self._data["rows"].get(row, {}).get(name)

    def put(self, row: str, name: str, entry: Any) -> None:
        """Records a finished video; `entry` must be JSON."""
        self._data["rows"].setdefault(row, {})[name] = entry
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._data))
        partial.replace(self._path)

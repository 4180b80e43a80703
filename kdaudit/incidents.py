"""What a model has done to its process: kept in the run's state as well, so that a killed run forgets nothing."""

import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from kdaudit.digest import write_bytes
from kdaudit.errors import RunDirectoryError


@dataclass(frozen=True, slots=True)
class Incident:
    """What a model did to its process, or to our trust in its answers.

    Attributes:
        how: died, blocked, confused (an answer of the wrong form) or differs (another answer to the same input).
        detail: a few words.
        what: SHA-256 of the input that it happened on; the same input counts once.
    """

    how: Literal["died", "blocked", "confused", "differs"]
    detail: str
    what: str = ""


class Incidents:
    """The incidents of one loaded model. Thread-safe.

    Attributes:
        seen: in the order of their happening.
    """

    seen: list[Incident]

    def __init__(self) -> None:
        self.seen = []
        self._lock = threading.Lock()
        self._kept: tuple[Path, str] | None = None

    def add(self, incident: Incident) -> None:
        """Note an incident, unless it is one already seen: an image that is looked at twice is one image.

        Raises:
            OSError: the file that keeps them cannot be written.
        """
        with self._lock:
            if all((one.how, one.what) != (incident.how, incident.what) for one in self.seen):
                self.seen.append(incident)
                self._write()

    def keep(self, file: Path, recipe: str) -> None:
        """Take over what an interrupted pass has kept in a file, and keep there what comes from now on.

        Args:
            file: where; written only once there is something to keep.
            recipe: names model and images; what was seen under another one is left behind.

        Raises:
            RunDirectoryError: the file is damaged.
        """
        with self._lock:
            earlier = _read(file, recipe)
            known = {(one.how, one.what) for one in earlier}
            self.seen[:] = [*earlier, *(one for one in self.seen if (one.how, one.what) not in known)]
            self._kept = (file, recipe)
            if self.seen:
                self._write()
            else:
                file.unlink(missing_ok=True)  # of another recipe

    def _write(self) -> None:
        if self._kept is not None:
            file, recipe = self._kept
            content = {"recipe": recipe, "incidents": [asdict(one) for one in self.seen]}
            write_bytes(file, (json.dumps(content, indent=1) + "\n").encode())


def _read(file: Path, recipe: str) -> list[Incident]:
    if not file.is_file():
        return []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return [Incident(**one) for one in content["incidents"]] if content["recipe"] == recipe else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(f"{file} is damaged: begin a new run with another -o") from error

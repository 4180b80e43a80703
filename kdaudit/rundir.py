"""The run directory: everything a run leaves behind, and the note that says how far it came.

A run belongs to one model. Its `report.json` says "unfinished" from the first second to the last, so that a killed
run can never be mistaken for a passed one. The same command on the same directory goes on where it stopped.
"""

import fcntl
import json
from pathlib import Path
from typing import Any

from kdaudit.digest import UNFINISHED, remove_unfinished, write_bytes
from kdaudit.errors import RunDirectoryError
from kdaudit.version import __version__

FORMAT = 1
"""Version of the run directory's own files."""


class RunDirectory:
    """An open run directory; one process at a time.

    Attributes:
        path: the directory.
    """

    def __init__(self, path: Path, model_digest: str, model: str, command: str, *, keep_report: bool = False) -> None:
        """Create the directory, or take it up again.

        Args:
            path: where.
            model_digest: SHA-256 of the model file.
            model: the model's path, for people.
            command: the kdaudit command.
            keep_report: leave the report of a finished run as it is, and the run finished.

        Raises:
            RunDirectoryError: not writable, in use, not a run directory, or the run of another model.
        """
        self.path = path
        self._keep_report = keep_report
        self._note = {
            "format": FORMAT,
            "kdaudit": __version__,
            "command": command,
            "model": model,
            "model_digest": model_digest,
            "directory": str(Path.cwd()),
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._check_owner(model_digest)
            self.state.mkdir(exist_ok=True)
            self._lock = (self.state / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._check_owner(model_digest)  # once more: another process may have begun here in between
            remove_unfinished(path)
        except BlockingIOError as error:
            self._lock.close()
            raise RunDirectoryError(
                f"{path} is in use by another kdaudit: wait for it, or choose another -o"
            ) from error
        except OSError as error:
            raise RunDirectoryError(
                f"the run directory {path} cannot be written ({error.strerror}): choose another one with -o"
            ) from error
        self.mark("begun")

    @property
    def state(self) -> Path:
        """Where the run keeps what it needs to go on."""
        return self.path / "state"

    def file(self, name: str) -> Path:
        """A file of the run."""
        return self.path / name

    def mark(self, stage: str) -> None:
        """Note the stage that is beginning: what an interrupted run is found in."""
        if self._keep_report:
            return
        document = {"kind": "kdaudit-report", "version": FORMAT, "status": "unfinished", "stage": stage}
        document |= {
            "verdict": None,
            "model": self._note["model"],
            "model_digest": self._note["model_digest"],
        }
        self._write("state/run.json", self._note | {"status": "unfinished", "stage": stage})
        self._write("report.json", document)

    def finish(self, report: dict[str, Any]) -> None:
        """Write the report, and only then the note that the run is finished."""
        self._write("report.json", report)
        self._write("state/run.json", self._note | {"status": "finished", "stage": "done"})

    def stop(self, why: str) -> None:
        """Note why the run ends here, for whoever asks for its report."""
        if not self._keep_report:
            note = read_note(self.path) or self._note
            self._write("state/run.json", note | {"status": "unfinished", "why": why})

    def close(self) -> None:
        """Let another process have the directory."""
        self._lock.close()

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_bytes(self.path / name, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())

    def _check_owner(self, model_digest: str) -> None:
        note = read_note(self.path)
        if note is None:
            if not _is_bare(self.path):
                raise RunDirectoryError(
                    f"{self.path} is not empty and not a run of kdaudit: choose an empty or a new directory with -o"
                )
            return
        if note["model_digest"] != model_digest:
            raise RunDirectoryError(
                f"{self.path} is the run of another model ({note['model']}): choose another directory with -o"
            )


def _is_bare(path: Path) -> bool:
    """Whether a directory is empty, or holds what a run killed in its first moment leaves: a lock and no note."""
    own = {path / "state", path / "state/lock"}
    return all(entry in own or entry.name.endswith(UNFINISHED) for entry in path.rglob("*"))


def read_note(path: Path) -> dict[str, Any] | None:
    """The run's note; None where there is no run.

    Raises:
        RunDirectoryError: there is a note, and it is not one of ours.
    """
    file = path / "state" / "run.json"
    if not file.is_file():
        return None
    try:
        note = json.loads(file.read_text())
        if note["format"] == FORMAT and {"model", "model_digest", "status", "stage", "command"} <= note.keys():
            return dict(note)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise RunDirectoryError(f"{file} cannot be read: it is damaged or of another version of kdaudit") from error
    raise RunDirectoryError(f"{file} is of another version of kdaudit: use that version, or begin a new run")


def as_typed(run: Path, typed: str) -> Path:
    """A path that a report holds as it was typed: taken from here, or else from where that run was started."""
    here, note = Path(typed), read_note(run) or {}
    there = Path(str(note.get("directory", ""))) / here
    return there if not here.exists() and there.exists() else here


def read_report(path: Path) -> dict[str, Any]:
    """The report of a finished run.

    Raises:
        RunDirectoryError: no run there, an unfinished one, or one whose report is damaged.
    """
    note = read_note(path)
    if note is None:
        raise RunDirectoryError(f"{path} is not a run of kdaudit: give the directory that `kdaudit scan -o` wrote")
    if note["status"] != "finished":
        if note.get("why"):
            raise RunDirectoryError(f'{path} ended at "{note["stage"]}" without a report: {note["why"]}')
        raise RunDirectoryError(
            f"{path} is unfinished (stopped at: {note['stage']}): run the same `kdaudit {note['command']}` again with "
            f"-o {path} to go on"
        )
    file = path / "report.json"
    try:
        report: dict[str, Any] = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise RunDirectoryError(f"{file} is damaged or gone: run the same `kdaudit {note['command']}` again") from error
    return report

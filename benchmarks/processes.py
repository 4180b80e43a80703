"""What a process and all processes below it have used: seconds of computing, memory."""

import os
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def below(pid: int) -> list[int]:
    """A process and its living descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields:
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found.extend(parents.get(one, []))
    return found


def computed() -> float:
    """Seconds of computing so far of this process, its living descendants, and those that have ended.

    A child that has ended counts with whoever waited for it, so the sum never falls while all are waited for.
    Resolution: a tick of the kernel, 10 ms as a rule, for each process.
    """
    total = 0.0
    for pid in below(os.getpid()):
        fields = _stat(pid)
        if fields:
            total += sum(map(int, fields[11:15])) / _TICK  # own user and system time, and that of ended children
    return total


def memory(pid: int) -> int:
    """Bytes that a process and all below it hold, whatever else runs on the machine.

    Their own pages and shared memory count once (PSS: who else maps them is below the same process). Pages of files,
    nearly all of them libraries, count as the process has them that has the most: those of workers are among these.
    """
    total = files = 0
    for one in below(pid):
        try:
            sums, status = (_kilobytes(Path(f"/proc/{one}/{name}")) for name in ("smaps_rollup", "status"))
        except OSError:  # it has ended
            continue
        total += sums.get("Pss_Anon", 0) + sums.get("Pss_Shmem", 0)
        files = max(files, status.get("RssFile", 0))
    return total + files


def _kilobytes(path: Path) -> dict[str, int]:
    """The sizes that a file of /proc tells, bytes."""
    lines = (line.split() for line in path.read_text().splitlines() if line.endswith(" kB"))
    return {fields[0].removesuffix(":"): int(fields[1]) << 10 for fields in lines}


def peak_memory(pid: int) -> int:
    """The largest resident size of a process so far, bytes; 0 when it is gone."""
    try:
        return _kilobytes(Path(f"/proc/{pid}/status")).get("VmHWM", 0)
    except OSError:
        return 0


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []

"""Putting the present process behind walls that it cannot take down: Landlock, seccomp, resource limits.

Through ctypes: the libraries for it need a system library that is not on every machine
(docs/design/dependencies.md). Each wall that the kernel does not offer is left out, and the level says so.
"""

import ctypes
import os
import resource
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdaudit.sandbox import syscalls

NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER_MODE, SET_NAME, SET_DUMPABLE = 38, 22, 2, 15, 4
RET_ALLOW, RET_KILL, RET_ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, EACCES, ENOSYS = 1, 13, 38
LOAD, EQUAL, AT_LEAST, BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER_AT, ARCH_AT, ARGUMENTS_AT = 0, 4, 16
DUPLICATE = 1030  # F_DUPFD_CLOEXEC
CLONE_THREAD, PROT_EXEC, X32_BIT = 0x00010000, 4, 0x40000000

FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Landlock's file rights by ABI version: all that there are."""

MAX_ENGINE_BYTES = 8 << 30
"""Bytes of a file in the writable folder."""

READ_RIGHTS = 0b1101  # execute, read a file, list a folder


@dataclass(frozen=True, slots=True)
class Walls:
    """What a worker is to be confined by.

    Attributes:
        memory: address space in bytes, on top of what the process has mapped already; None: no cap (CUDA reserves
            more than any machine has; its own memory limit is set instead).
        cpu_s: seconds of computing; None: no cap.
        readable: folders that stay readable; none on a CPU.
        filter: whether seccomp's list of calls applies; CUDA's driver needs calls that it does not hold.
        writable: the one folder in which files may be written, for TensorRT's engines; empty: none.
    """

    memory: int | None
    cpu_s: int | None
    readable: tuple[str, ...] = ()
    filter: bool = True
    writable: str = ""


def confine(walls: Walls) -> str:
    """Confine this process for good.

    Returns:
        The level reached, such as "landlock+seccomp+limits".
    """
    names = []
    _set_limits(walls)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(SET_DUMPABLE, 0, 0, 0, 0)
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0:
        if _landlock(libc, walls.readable, walls.writable):
            names.append("landlock")
        if walls.filter and _seccomp(libc):
            names.append("seccomp")
    return "+".join([*names, "limits"])


def _set_limits(walls: Walls) -> None:
    if walls.memory is not None:
        _lower(resource.RLIMIT_AS, mapped_bytes() + walls.memory)
    if walls.cpu_s is not None:
        _lower(resource.RLIMIT_CPU, walls.cpu_s)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, MAX_ENGINE_BYTES if walls.writable else 0)


def _lower(limit: int, value: int) -> None:
    """Lower the soft limit: the parent may lift it again, the worker cannot (the filter denies it)."""
    _, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def mapped_bytes() -> int:
    """Address space of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _landlock(libc: ctypes.CDLL, readable: Sequence[str], writable: str) -> bool:
    """No file beyond the descriptors at hand, no TCP, no signal or abstract socket out of here."""
    create, add, restrict = syscalls.LANDLOCK
    version = libc.syscall(create, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    rights = FILE_RIGHTS[max(known for known in FILE_RIGHTS if known <= version)]
    fields = struct.pack("QQQ", rights, 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = libc.syscall(create, fields[:size], ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    try:
        for folder in (*readable, *([writable] if writable else [])):
            if not Path(folder).exists():
                continue
            held = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            # Device files must stay writable for a GPU's driver; nothing else is among the readable folders.
            allowed = rights if folder == writable or folder.startswith("/dev") else READ_RIGHTS
            libc.syscall(add, ruleset, 1, struct.pack("=Qi", allowed, held), 0)
            os.close(held)
        return bool(libc.syscall(restrict, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


class _Fprog(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def _seccomp(libc: ctypes.CDLL) -> bool:
    """Only the calls of `syscalls.ALLOWED`, and the guarded ones within bounds."""
    column = syscalls.column()
    if column is None:
        return False
    code = b"".join(_program(column, os.getpid()))
    program = _Fprog(len(code) // 8, code)
    return bool(libc.prctl(SET_SECCOMP, FILTER_MODE, ctypes.byref(program), 0, 0) == 0)


def _program(column: int, pid: int) -> Iterator[bytes]:
    """The filter in classic BPF, one statement of 8 bytes each."""
    arch = list(syscalls.AUDIT_ARCH.values())[column]
    guarded = {name: numbers[column] for name, numbers in syscalls.GUARDED.items()}
    plain = [numbers[column] for numbers in syscalls.ALLOWED.values()]
    plain += syscalls.ONLY_X86.values() if column == 0 else []
    yield from (_load(ARCH_AT), _jump(EQUAL, arch, 1, 0), _return(RET_KILL), _load(NUMBER_AT))
    yield from (_jump(AT_LEAST, X32_BIT, 0, 1), _return(RET_ERRNO | EPERM))
    for number in plain:
        yield from (_jump(EQUAL, number, 0, 1), _return(RET_ALLOW))
    for number in (numbers[column] for numbers in syscalls.OPENS.values()):
        yield from (_jump(EQUAL, number, 0, 1), _return(RET_ERRNO | EACCES))
    yield from (_jump(EQUAL, guarded[syscalls.CLONE3], 0, 1), _return(RET_ERRNO | ENOSYS))
    # A thread shares this process and its walls; a process of its own would outlive the parent's kill.
    yield from _guard(guarded[syscalls.CLONE], 0, BITS, CLONE_THREAD, allow_if=True)
    yield from _guard(guarded[syscalls.MMAP], 2, BITS, PROT_EXEC, allow_if=False)
    yield from _guard(guarded[syscalls.MPROTECT], 2, BITS, PROT_EXEC, allow_if=False)
    yield from _guard(guarded[syscalls.TGKILL], 0, EQUAL, pid, allow_if=True)
    yield from _guard(guarded[syscalls.PRCTL], 0, EQUAL, SET_NAME, allow_if=True)
    yield from _guard(guarded[syscalls.FCNTL], 1, EQUAL, DUPLICATE, allow_if=True)
    yield _return(RET_ERRNO | EPERM)


def _guard(number: int, argument: int, test: int, value: int, *, allow_if: bool) -> Iterator[bytes]:
    """Allow a call if the lower half of an argument passes the test, or if it does not; other calls go on."""
    yield _jump(EQUAL, number, 0, 4)
    yield _load(ARGUMENTS_AT + 8 * argument)
    yield _jump(test, value, *((0, 1) if allow_if else (1, 0)))
    yield _return(RET_ALLOW)
    yield _return(RET_ERRNO | EPERM)


def _load(offset: int) -> bytes:
    return struct.pack("HBBI", LOAD, 0, 0, offset)


def _jump(test: int, value: int, yes: int, no: int) -> bytes:
    return struct.pack("HBBI", test, yes, no, value)


def _return(action: int) -> bytes:
    return struct.pack("HBBI", RETURN, 0, 0, action)

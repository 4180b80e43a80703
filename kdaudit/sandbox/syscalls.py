"""The system calls that a confined worker keeps: computing, threads, memory, and the descriptors it was given.

No call that names a file, a socket, another process or a program is among them.
"""

import platform

ALLOWED: dict[str, tuple[int, int]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62),
    "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66),
    "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216), "madvise": (28, 233), "mincore": (27, 232),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "sched_setaffinity": (203, 122), "getcpu": (309, 168),
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "times": (100, 153), "getrusage": (98, 165), "sysinfo": (99, 179), "uname": (63, 160),
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "futex": (202, 98), "set_robust_list": (273, 99),
    "set_tid_address": (218, 96), "rseq": (334, 293), "membarrier": (324, 283), "restart_syscall": (219, 128),
    "exit": (60, 93), "exit_group": (231, 94), "getrandom": (318, 278), "ppoll": (271, 73), "pselect6": (270, 72),
    "recvmsg": (47, 212), "sendmsg": (46, 211), "recvfrom": (45, 207), "sendto": (44, 206),
}  # fmt: skip
"""Number on x86-64 and on aarch64 by name. The message calls reach only the sockets that the parent gave, which are
connected pairs: such a socket takes no other address."""

ONLY_X86: dict[str, int] = {"poll": 7, "select": 23, "arch_prctl": 158, "time": 201}
"""Calls that aarch64 does without."""

CLONE, CLONE3, MMAP, MPROTECT, TGKILL, PRCTL = "clone", "clone3", "mmap", "mprotect", "tgkill", "prctl"
FCNTL = "fcntl"
GUARDED: dict[str, tuple[int, int]] = {
    CLONE: (56, 220),
    CLONE3: (435, 435),
    MMAP: (9, 222),
    MPROTECT: (10, 226),
    TGKILL: (234, 131),
    PRCTL: (157, 167),
    FCNTL: (72, 25),
}
"""Calls whose arguments decide: a thread but no process, memory but no new code, signals to itself alone,
a second number for a descriptor at hand (Python's mmap takes one)."""

OPENS: dict[str, tuple[int, int]] = {"openat": (257, 56), "openat2": (437, 437), "readlinkat": (267, 78)}
"""Denied as a file without permission is (EACCES), which libraries expect; all else is denied with EPERM."""

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
LANDLOCK = (444, 445, 446)
"""create_ruleset, add_rule, restrict_self: the same numbers everywhere."""


def column() -> int | None:
    """Which column of the tables is this machine's; None where there is none."""
    return {"x86_64": 0, "aarch64": 1}.get(platform.machine())

"""The command that starts a sandbox: bubblewrap's options, the interpreter, the syscall filter."""

import atexit
import os
import platform
import shutil
import struct
import sys
import tempfile
from functools import cache
from pathlib import Path

NOBODY = 65534
REMEDY = (
    "programs run only in bubblewrap 0.8 or newer (apt-get install bubblewrap util-linux), with "
    "user namespaces open to unprivileged users (sysctl kernel.unprivileged_userns_clone=1, "
    "kernel.apparmor_restrict_unprivileged_userns=0; docker: --security-opt seccomp=unconfined)"
)

_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_REFUSED = {  # keeps memory that no rlimit counts (System V), or opens much of the kernel
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "ptrace": (101, 117),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "perf_event_open": (298, 241),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
}
_X32 = 0x40000000  # x86_64's second table of the same calls
_LOAD, _JUMP_EQUAL, _JUMP_FROM, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _EPERM, _KILL = 0x7FFF0000, 0x00050001, 0x80000000


class SandboxError(RuntimeError):
    """The sandbox, not the program, failed: no score follows from it."""


def syscall_filter() -> int:
    """A file with the seccomp program that bubblewrap installs.

    Returns:
        Its descriptor, to be closed by the caller.

    Raises:
        SandboxError: on a processor whose numbers are not known here.
    """
    machine = platform.machine()
    if machine not in _AUDIT:
        raise SandboxError(f"no syscall filter for {machine}; use x86_64 or aarch64")
    numbers = [pair[list(_AUDIT).index(machine)] for pair in _REFUSED.values()]
    last = len(numbers) + 1  # jumps count the instructions in between
    program = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 1, 0, _AUDIT[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_JUMP_FROM, last, 0, _X32),
        *((_JUMP_EQUAL, last - 1 - i, 0, number) for i, number in enumerate(numbers)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _EPERM),
    ]
    descriptor = os.memfd_create("filter")
    os.write(descriptor, b"".join(struct.pack("HBBI", *line) for line in program))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def command(tmp_mb: int, filter_file: int, info: int) -> list[str]:
    """The command line up to the interpreter's own arguments.

    Args:
        tmp_mb: size of ``/tmp``.
        filter_file: of `syscall_filter`.
        info: descriptor that gets the process id of the first process inside, as JSON.

    Returns:
        The words.

    Raises:
        SandboxError: if a program that it needs is missing.
    """
    start, inside = _parts()
    files = ("--seccomp", str(filter_file), "--info-fd", str(info))
    return [*start, *files, "--size", str(tmp_mb << 20), *inside]


@cache
def _parts() -> tuple[list[str], list[str]]:
    """What stands before and after the options of `command`."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxError(f"bwrap was not found; {REMEDY}")
    source, prefix = _interpreter()
    start = [
        *(*_step_down(), bwrap, "--die-with-parent", "--new-session", "--clearenv"),
        *("--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"),
        *("--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox"),
        *("--setenv", "PYTHONHASHSEED", "0", "--ro-bind", "/usr", "/usr"),
    ]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            start += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            start += ["--ro-bind", str(path), str(path)]
    start += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    if not prefix.is_relative_to("/usr"):
        start += ["--ro-bind", str(source), str(prefix)]
    start += ["--proc", "/proc", "--dev", "/dev"]
    inside = [
        *("--tmpfs", "/tmp", "--chdir", "/tmp"),
        *("--remount-ro", "/dev", "--remount-ro", "/"),  # /dev/shm would hold half the memory
        *(str(prefix / "bin" / _python()), "-s", "-S", "-P", "-B"),
    ]
    return start, inside


def _python() -> str:
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def _step_down() -> list[str]:
    """Root becomes nobody before bubblewrap starts: the kernel exempts root from RLIMIT_NPROC."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise SandboxError(f"setpriv was not found; {REMEDY}")
    return [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]


@cache
def _interpreter() -> tuple[Path, Path]:
    """Where the running interpreter's installation can be read, and where it belongs.

    Root's own installation may be closed to others, whose copy of the standard library is then
    made once for the life of this process (about a second and 70 MB).
    """
    prefix = Path(sys.base_prefix).resolve()
    if os.geteuid() != 0 or all(path.stat().st_mode & 0o005 == 5 for path in _upwards(prefix)):
        return prefix, prefix
    name = _python()
    folder = Path(tempfile.mkdtemp(prefix="orthora-python-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    unused = shutil.ignore_patterns("site-packages", "test", "idlelib", "config-*", "ensurepip")
    shutil.copytree(prefix / "lib" / name, folder / "lib" / name, ignore=unused)
    (folder / "bin").mkdir()
    shutil.copy2(prefix / "bin" / name, folder / "bin")
    for library in (prefix / "lib").glob("libpython*.so*"):
        shutil.copy2(library, folder / "lib", follow_symlinks=False)
    folder.chmod(0o755)
    return folder, prefix


def _upwards(path: Path) -> list[Path]:
    return [path, *path.parents]

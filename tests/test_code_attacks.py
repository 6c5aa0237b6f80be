"""Hostile programs: none passes, none reaches the host, none outlives its verdict.

Each attack is held to a test that only its success could pass. After each, the processes of its
sandbox are counted, and an honest program is judged.
"""

import os
import socket
import time
from pathlib import Path

import pytest
from test_code import INC, need_sandbox

from orthora.rewards.code import CodeJob, code_verdict, code_verdicts
from orthora.rewards.sandbox import Limits, Sandbox

SECRET = "918273645" + "546372819"
"""An expected value that no program can compute; in two parts, so that no source holds it whole."""
TEST = f"assert f(1) == {SECRET}"


@pytest.fixture(autouse=True, scope="module")
def _sandbox():
    need_sandbox()


def status(field: str) -> dict[int, str]:
    """One field of /proc/*/status, by process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = path.read_text().splitlines()
        except OSError:  # it ended meanwhile
            continue
        found |= {int(path.parent.name): s.split(":")[1] for s in lines if s.startswith(field)}
    return found


def descendants(root: int) -> set[int]:
    parents = {pid: int(text) for pid, text in status("PPid:").items()}
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def namespace(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return ""


@pytest.fixture(autouse=True)
def _nothing_is_left(monkeypatch):
    """No process of a sandbox's namespace is left, zombie or not; then honest work passes."""
    close, seen, left, roots = Sandbox.close, [], [], []

    def watched(sandbox):
        own = namespace(os.getpid())
        inside = {namespace(pid) for pid in descendants(sandbox._process.pid)} - {own, ""}
        seen.extend(inside)
        uids = status("Uid:")
        family = descendants(sandbox._process.pid)
        roots.extend(pid for pid in family if "\t0\t" in uids.get(pid, ""))
        close(sandbox)
        for _ in range(50):  # the kernel takes its time to bury what it has killed
            alive = [pid for pid in status("PPid:") if namespace(pid) in inside]
            if not alive:
                break
            time.sleep(0.1)
        left.extend(alive)

    monkeypatch.setattr(Sandbox, "close", watched)
    yield
    assert left == []
    assert code_verdict(INC, ["assert inc(1) == 2"], timeout=20).reason == "passed"
    assert roots == []
    assert seen  # of the honest program at least: it was alive when it was closed
    assert left == []


def judged(program: str, test: str = TEST, timeout: float = 20.0, **kwargs) -> str:
    """The reason, after a check that the program did not pass."""
    verdict = code_verdict(program, [test], timeout=timeout, **kwargs)
    assert not verdict.correct
    assert verdict.reason != "passed"
    return verdict.reason


EQUAL = """
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    def __hash__(self): return 0
    def __len__(self): return 1
    def __iter__(self): return iter([])
    def __contains__(self, item): return True
    def __getattr__(self, name): return self
    def __call__(self, *args): return self
"""
LIARS = {
    "object": f"class E:{EQUAL}\ndef f(x): return E()",
    "class attribute": f"class E:{EQUAL}\n    __class__ = int\ndef f(x): return E()",
    "metaclass": (
        f"class M(type):{EQUAL}\n    def __instancecheck__(c, o): return True\n"
        f"    def __subclasscheck__(c, o): return True\n"
        f"class E(metaclass=M):{EQUAL}\ndef f(x): return E"
    ),
    "int": f"class E(int):{EQUAL}\n    def __index__(self): return {SECRET[:9]}\n"
    "def f(x): return E(7)",
    "float": f"class E(float):{EQUAL}\ndef f(x): return E(7)",
    "str": f"class E(str):{EQUAL}\ndef f(x): return E('7')",
    "list": f"class E(list):{EQUAL}\ndef f(x): return E([7])",
    "tuple": f"class E(tuple):{EQUAL}\ndef f(x): return E((7,))",
    "dict": f"class E(dict):{EQUAL}\n    def items(self): return []\ndef f(x): return E(a=1)",
    "set": f"class E(set):{EQUAL}\ndef f(x): return E([7])",
    "inside": f"class E:{EQUAL}\ndef f(x): return [E(), E()]",
    "itself": f"class E:{EQUAL}\nf = E()",
}


@pytest.mark.parametrize("name", LIARS)
def test_objects_that_equal_everything_do_not_pass(name):
    for right in (SECRET, f"[{SECRET}]", f"({SECRET},)", f"'{SECRET}'", f"{{{SECRET}}}"):
        judged(LIARS[name], f"assert f(1) == {right}")
    judged(LIARS[name], f"assert set(f(1)) == set([{SECRET}])")
    judged(LIARS[name], f"assert math.isclose(f(1), {SECRET}, rel_tol=0.001)")


FORGERS = {
    "builtin names": """
def set(x): return 1
def int(x): return 1
def sorted(x): return 1
def f(x): return 1
""",
    "every descriptor": """
import os
LINES = [b"passed", b"True", b"0 ready", b'1 v ["bool",1]', b'2 v ["bool",1]', b'3 v ["bool",1]']
def f(x):
    for fd in range(32):
        for line in LINES:
            try: os.write(fd, line + b"\\n")
            except OSError: pass
    os._exit(0)
""",
    "one answer for two": """
import os
def f(x):
    for fd in range(3, 32):
        try: os.write(fd, b'2 v ["int","1"]\\n')
        except OSError: pass
    return 1
""",
    "garbage": """
import os
def f(x):
    for fd in range(3, 32):
        try: os.write(fd, b'\\xff\\x00' * 100 + b'\\n')
        except OSError: pass
""",
    "nested": """
import os
def f(x):
    for fd in range(3, 32):
        try: os.write(fd, b'2 v ' + b'[' * 30000 + b'\\n')
        except OSError: pass
    os._exit(0)
""",
    "exit at once": "import os\nf = 1\nos._exit(0)",
    "exit in the call": "import os\ndef f(x): os._exit(0)",
    "exit politely": "import sys\ndef f(x): sys.exit(0)",
    "exit by exception": "def f(x): raise SystemExit(0)",
    "interrupt": "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGINT)",
    "crash": "import ctypes\ndef f(x): return ctypes.string_at(0)",
    "assertions off": "__debug__ = False\nf = 1",
    "changed child": """
import __main__
__main__.pack = lambda value: '["bool",1]'
__main__.answer = lambda *_: 'v ["bool",1]'
def f(x): return 1
""",
    "changed builtins": """
import builtins, json, sys, os, io
def f(x): return 1
for name in "isinstance issubclass type hasattr eval compile exec len bool set int".split():
    setattr(builtins, name, lambda *_, **__: True)
json.dumps = json.loads = lambda *_: True
sys.stdout = sys.stderr = io.StringIO()
os.write = lambda fd, data: len(data)
""",
    "late thread": """
import os, threading, time
def spam():
    while True:
        for fd in range(3, 32):
            try: os.write(fd, b'3 v ["bool",1]\\n')
            except OSError: pass
def f(x):
    threading.Thread(target=spam, daemon=True).start()
    return 1
""",
    "closed descriptors": "import os\ndef f(x): os.closerange(0, 256)",
    "name of the exception": 'E = type("passed", (Exception,), {})\ndef f(x): raise E',
    "name with a line break": 'E = type("E\\n3 v [1]", (BaseException,), {})\ndef f(x): raise E',
}


@pytest.mark.parametrize("name", FORGERS)
def test_forged_success_does_not_pass(name):
    judged(FORGERS[name], timeout=3.0)
    judged(FORGERS[name], f"assert set(f(1)) == set([{SECRET}])", timeout=3.0)


SEARCH = """
import gc, os, re, sys
WANTED = re.compile("918273645" + "(546372819)")
def texts():
    frame = sys._getframe()
    while frame:
        yield repr((frame.f_locals, frame.f_globals, frame.f_code.co_consts))
        frame = frame.f_back
    for thing in gc.get_objects():
        try: yield repr(thing)
        except BaseException: pass
    for folder in ("/proc/self", "/proc/1", "/proc/2", "/tmp", "/dev/shm", "/run"):
        for name in ("cmdline", "environ", "maps", "fd/0", "fd/3", "fd/4", "fd/5", "comm"):
            try:
                fd = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_NONBLOCK)
                yield os.read(fd, 1 << 16).decode("latin-1")
            except OSError: pass
    for fd in range(32):
        try:
            os.set_blocking(fd, False)
            yield os.read(fd, 1 << 16).decode("latin-1")
        except OSError: pass
    yield repr((sys.argv, sys.orig_argv, dict(os.environ)))
def f(x):
    for text in texts():
        found = WANTED.search(text)
        if found: return int(found[0])
    return 0
"""


def test_the_expected_value_is_nowhere_in_the_programs_reach():
    assert judged(SEARCH) in ("failed test 1", "forged answer", "exited")
    leak = [f"assert f({SECRET}) == {SECRET}"]  # given as an argument, the search does find it
    assert code_verdict(SEARCH, leak, timeout=20).reason == "passed"


READ = "def f(path):\n    with open(path) as file: return len(file.read(1)) >= 0\n"
LIST = "import os\ndef f(path): return len(os.listdir(path)) > 0\n"


@pytest.mark.parametrize("path", ["/etc/shadow", "/etc/passwd", "/proc/sys/kernel/core_pattern_x"])
def test_files_of_the_host_are_not_there(path):
    assert judged(READ, f"assert f({path!r})") == "error: FileNotFoundError"


def test_folders_of_the_host_are_not_there(tmp_path):
    (tmp_path / "secret").write_text("here")
    for path in (tmp_path, Path(__file__).parent, Path("/var"), Path("/opt"), Path("/sys")):
        assert judged(LIST, f"assert f({str(path)!r})") == "error: FileNotFoundError"
    more = LIST.replace("> 0", "> 1")  # Python may lie below, and nothing else
    judged(more, f"assert f({str(Path.home())!r})")
    judged(LIST, "assert f('/dev/shm')")
    judged(LIST, "assert f('/tmp')")


WRITE = "def f(path):\n    with open(path, 'w') as file: return file.write('x')\n"


@pytest.mark.parametrize("path", ["/x", "/usr/x", "/usr/lib/x", "/etc/x", "/dev/x", "/dev/shm/x"])
def test_only_tmp_can_be_written(path):
    assert judged(WRITE, f"assert f({path!r}) == 1").startswith("error: ")


def test_tmp_is_small_and_does_not_outlive_the_program():
    assert code_verdict(WRITE, ["assert f('/tmp/x') == 1"], timeout=20).correct
    judged("import os\ndef f(x): return os.path.exists('/tmp/x')\n", "assert f(1)")
    fill = (
        "def f(x):\n    for i in range(100):\n"
        "        with open(f'/tmp/{i}', 'wb') as file: file.write(bytes(1000000))\n    return 1\n"
    )
    assert judged(fill, "assert f(1) == 1") == "error: OSError"


def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    judged("import os\ndef f(x): return os.environ.get('HF_TOKEN')\n", f"assert f(1) == '{SECRET}'")
    program = "import os\ndef f(x): return sorted(os.environ)\n"
    test = "assert f(1) == ['LC_CTYPE', 'PWD', 'PYTHONHASHSEED']"
    assert code_verdict(program, [test], timeout=20).reason == "passed"


def test_there_is_no_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect = (
            "import socket\ndef f(port):\n"
            "    return bool(socket.create_connection(('127.0.0.1', port), 1))\n"
        )
        reason = judged(connect, f"assert f({server.getsockname()[1]})")
        assert reason in ("error: ConnectionRefusedError", "error: OSError")
    name = f"\0orthora-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        unix = "import socket\ndef f(n): return socket.socket(socket.AF_UNIX).connect(n) is None\n"
        assert judged(unix, f"assert f({name!r})") == "error: ConnectionRefusedError"


NATIVE = "import ctypes, os\nC = ctypes.CDLL(None, use_errno=True)\n"
POWERS = {
    "nested user namespace": f"{NATIVE}def f(x): return C.unshare(0x10000000) == 0",
    "mount namespace": f"{NATIVE}def f(x): return C.unshare(0x00020000) == 0",
    "mount": f"{NATIVE}def f(x): return C.mount(b'/', b'/tmp', None, 4096, None) == 0",
    "root": "import os\ndef f(x):\n    os.setuid(0)\n    return os.getuid() == 0",
    "shared memory": f"{NATIVE}def f(x): return C.shmget(0, 4096, 0o1600) >= 0",
    "ptrace": f"{NATIVE}def f(x): return C.ptrace(16, 1, 0, 0) == 0",
    "io_uring": f"{NATIVE}def f(x): return C.syscall(425, 1, bytes(120)) >= 0",
    "higher limits": (
        "import resource as r\ndef f(x):\n"
        "    r.setrlimit(r.RLIMIT_NPROC, (999, 999))\n    return True"
    ),
    "other processes": (
        "import os\ndef f(x): return len([n for n in os.listdir('/proc') if n.isdigit()]) > 3"
    ),
    "kill the reaper": (
        "import os, time\ndef f(x):\n"
        "    os.kill(1, 9)\n    time.sleep(0.2)\n    return not os.path.exists('/proc/1')"
    ),
    "kill the parent": "import os\ndef f(x):\n    os.kill(os.getppid(), 9)\n    return False",
    "kill all": "import os\ndef f(x):\n    os.kill(-1, 9)\n    return False",
    "kill the group": "import os\ndef f(x):\n    os.killpg(0, 9)\n    return False",
}


@pytest.mark.parametrize("name", POWERS)
def test_powers_that_it_lacks(name):
    judged(POWERS[name], "assert f(1)")


HOLDERS = {
    "loop": "def f(x):\n    while True: pass",
    "loop that catches": (
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "def f(x):\n    while True:\n        try:\n            while True: pass\n"
        "        except BaseException: pass"
    ),
    "loop in C": "def f(x): return sum(range(10**12))",
    "regular expression": "import re\ndef f(x): return re.match('(a+)+b', 'a' * 99)",
    "sleep": "import time\ndef f(x): time.sleep(999)",
    "load": "while True: pass\nf = 1",
    "read requests": "import os\ndef f(x):\n    while True: os.read(3, 100)",
    "stop": "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGSTOP)",
    "answer without end": (
        "import os\ndef f(x):\n    while True:\n        try: os.write(4, b'.')\n"
        "        except OSError: pass"
    ),
    "endless answer": "import itertools\ndef f(x): return (i for i in iter(lambda: f, 1))",
    "equality that hangs": (
        "class E:\n    def __bool__(self):\n        while True: pass\ndef f(x): return E()"
    ),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_programs_that_do_not_end_are_ended(name):
    test = "assert f(1)" if name.startswith("equality") else TEST
    reason = judged(HOLDERS[name], test, timeout=1.0)
    assert reason in ("timeout", "exited", "unsupported value", "answer too large")


DAEMON = """
import os, time
def f(x):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 32)
            time.sleep(999)
        os._exit(0)
    return 1
"""


def test_a_daemon_dies_with_its_program():
    assert judged(DAEMON) == "failed test 1"
    assert code_verdict(DAEMON, ["assert f(1) == 1"], timeout=20).correct


@pytest.mark.slow
def test_memory_of_one_process_is_bounded():
    grow = "def f(x):\n    kept = []\n    while True: kept.append(bytearray(10**7))\n"
    assert judged(grow) == "memory"
    assert judged("def f(x): return 'a' * 10**10") == "memory"
    assert judged("def f(x): return 10**10**8", timeout=3.0) in ("memory", "timeout")
    assert judged("def f(x): return 1 << 10**6") == "answer too large"


def test_hashes_that_collide_do_not_hold_the_judge():
    collide = "def f(x): return [i * (2**61 - 1) for i in range(9000)]\n"
    assert judged(collide, "assert set(f(1)) == {1}") == "failed test 1"


MANY = """
import os, time
def f(x):
    made = 0
    while True:
        try:
            if os.fork() == 0:
                time.sleep(999)
            made += 1
        except OSError:
            return made
"""


def test_the_number_of_processes_is_bounded():
    verdict = code_verdict(MANY, ["assert f(1) <= 8"], timeout=20, limits=Limits(processes=8))
    assert verdict.reason == "passed"


BOMBS = {
    "fork": "import os\ndef f(x):\n    while True:\n        try: os.fork()\n"
    "        except OSError: pass",
    "threads": (
        "import threading, time\ndef f(x):\n    while True:\n"
        "        try: threading.Thread(target=time.sleep, args=(99,)).start()\n"
        "        except RuntimeError: pass"
    ),
    "memory of many": (
        "import os\ndef f(x):\n    for _ in range(9):\n        try: os.fork()\n"
        "        except OSError: pass\n    kept = []\n    while True:\n"
        "        try: kept.append(bytearray(10**6))\n        except MemoryError: pass"
    ),
    "standard output": "def f(x):\n    for _ in range(100): print('x' * 10**6)\n    return 1",
    "standard error": (
        "import sys\ndef f(x):\n    for _ in range(100): sys.stderr.write('x' * 10**6)\n"
        "    return 1"
    ),
    "answers": (
        "import os\ndef f(x):\n    for fd in range(3, 9):\n        try:\n"
        "            for _ in range(100): os.write(fd, b'x' * 10**6)\n"
        "        except OSError: pass"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.slow
def test_bombs_go_off_inside(name):
    judged(BOMBS[name], timeout=3.0)


@pytest.mark.slow
def test_attackers_beside_honest_programs_change_nothing_for_them():
    bad = [*FORGERS.values(), *HOLDERS.values(), *BOMBS.values(), DAEMON]
    jobs = [
        job
        for program in bad
        for job in (CodeJob(program, [TEST]), CodeJob(INC, ["assert inc(1) == 2"]))
    ]
    verdicts = code_verdicts(jobs, timeout=4.0, workers=2)
    assert [v.correct for v in verdicts] == [False, True] * len(bad)

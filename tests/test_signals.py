"""SIGTERM: told of once, and never in the way of telling."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from orthora.signals import FOLLOW, terminable


def send() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_it_interrupts_once_and_the_handler_is_put_back():
    def twice():
        with terminable("go on"):
            try:
                send()
            finally:
                send()  # while it is handled: nothing

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match=r"^terminated \(SIGTERM\); go on$"):
        twice()
    assert signal.getsignal(signal.SIGTERM) is before


def test_launchers_are_named_under_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(KeyboardInterrupt, match="as launchers do where another"), terminable():
        send()


def test_what_is_known_already_is_written_down_undisturbed():
    written = []

    def failing():
        with terminable() as settle:
            try:
                raise ValueError("the cause")
            except ValueError as error:
                settle()
                send()
                written.append(str(error))
                raise

    with pytest.raises(ValueError, match="the cause"):
        failing()
    assert written == ["the cause"]


def test_blocks_nest():
    def nested():
        with terminable("outer"):
            with terminable("inner") as settle:
                settle()
                send()
            send()

    with pytest.raises(KeyboardInterrupt, match="outer"):
        nested()


def test_forked_processes_end_as_usual():
    with terminable():
        child = os.fork()
        if child == 0:
            try:
                send()
            finally:
                os._exit(7)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM


def test_other_threads_may_use_it():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def inside():
        with terminable() as settle:
            settle()
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_command_that_is_terminated_says_so_in_one_line():
    program = (
        "import os, signal, sys\n"
        "from orthora import cli\n"
        "cli.COMMANDS['init'] = lambda _: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.exit(cli.main(['init']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "orthora init: terminated (SIGTERM); the same command goes on\n"


def test_a_process_ends_with_the_one_that_it_follows():
    leader = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    code = "import time; from orthora.signals import follow; follow(); time.sleep(60)"
    follower = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {FOLLOW: str(leader.pid)},
        start_new_session=True,
    )
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            follower.wait(timeout=3)
        leader.kill()
        leader.wait()
        assert follower.wait(timeout=20) == -signal.SIGKILL
    finally:
        follower.kill()

"""What runs inside the sandbox, beside the program: it loads the program and answers calls.

The judge sends this file's text to the sandbox's interpreter, so it imports the standard library
only. A request is a line ``<number> exec|eval <source in hex>``, its answer ``<number> v <value>``
or ``<number> e <name of the exception>``. The program shares this process and can forge answers:
all it gains is a say in the values, which it has anyway, because the judge alone knows the tests.

Values are JSON: a tag, then hex text, hex floats, or items. Of subclasses only what the builtin
base holds is read, by the base's own methods.
"""

from __future__ import annotations

import os
import resource
import sys
import types

TYPE_CHECKING = False  # importing typing would double the start
if TYPE_CHECKING:
    from typing import Any

MAX_ITEMS = 10_000
"""Values in one answer, counting the nested ones: bounds the judge's work on hostile hashes."""
MAX_DEPTH = 50
MAX_BITS = 100_000


class UnsupportedValue(Exception):
    """The answer holds something other than plain values."""


class AnswerTooLarge(Exception):
    """The answer passes ``MAX_ITEMS``, ``MAX_DEPTH`` or ``MAX_BITS``."""


def pack(value: Any) -> str:
    """The value as text for `orthora.rewards.asserts.unpack`.

    Raises:
        UnsupportedValue: if anything in it is no plain value.
        AnswerTooLarge: if it passes a limit.
    """
    left = MAX_ITEMS

    def many(tag: str, values: Any, depth: int) -> str:
        return f'["{tag}",[{",".join(one(item, depth + 1) for item in values)}]]'

    def one(value: Any, depth: int) -> str:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise AnswerTooLarge
        if value is None:
            return '["none"]'
        if value is True or value is False:
            return f'["bool",{int(value)}]'
        kind = type(value)
        if issubclass(kind, int):
            number = int.__index__(value)
            if number.bit_length() > MAX_BITS:
                raise AnswerTooLarge
            return f'["int","{number:x}"]'
        if issubclass(kind, float):
            return f'["float","{float.hex(value)}"]'
        if issubclass(kind, complex):
            parts = (vars(complex)[name].__get__(value).hex() for name in ("real", "imag"))
            return '["complex","{}","{}"]'.format(*parts)
        if issubclass(kind, str):
            return f'["str","{str.encode(value, "utf-8", "surrogatepass").hex()}"]'
        if issubclass(kind, bytes):
            return f'["bytes","{bytes.hex(value)}"]'
        for base in (list, tuple, set, frozenset):
            if issubclass(kind, base):
                return many(base.__name__, base.__iter__(value), depth)
        if issubclass(kind, dict):
            return many("dict", dict.items(value), depth)
        if hasattr(kind, "__next__"):  # equal to nothing, but set(...) or sorted(...) may take it
            return many("iterator", value, depth)
        raise UnsupportedValue

    return one(value, 0)


def limit(name: str, value: int) -> None:
    """Lower a resource limit for good, as far as it is not lower already."""
    key = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(key)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(key, (value, value))


def answer(kind: str, source: str, namespace: dict[str, object]) -> str:
    """Run one request; what goes wrong in it becomes the answer."""
    try:
        code = compile(source, "program", kind, dont_inherit=True)
        if kind == "exec":
            exec(code, namespace)
            return "v " + pack(None)
        return "v " + pack(eval(code, namespace))
    except BaseException as error:  # SystemExit and all: the program is the suspect here
        return f"e {type(error).__name__}"


def main() -> None:
    """Take limits from the arguments, NAME=VALUE each; then answer until the input ends."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.dup(1)
    sink = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(sink, descriptor)
    for argument in sys.argv[1:]:
        name, value = argument.split("=")
        limit(name, int(value))
    del sys.argv[1:]
    module = types.ModuleType("program")  # not __main__: demonstrations at the end do not run
    sys.modules["program"] = module
    line = "0 ready"
    while True:
        data = memoryview(f"{line}\n".encode())
        while data:
            data = data[os.write(answers, data) :]
        request = requests.readline().decode().split()
        if not request:
            return
        source = bytes.fromhex(request[2]).decode("utf-8", "surrogatepass")
        line = f"{request[0]} {answer(request[1], source, module.__dict__)}"


if __name__ == "__main__":
    main()

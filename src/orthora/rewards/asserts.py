"""Tests in the form of asserts, split in two: calls for the sandbox, and the rest for the judge.

``assert set(f(1, 2)) == {3}`` becomes the call ``f(1, 2)``, all that the program's process ever
sees, and the expression ``set(answer) == {3}``, which the judge evaluates on the answer. The text
is the data set's own; the answers are hostile. So answers are decoded to plain values of bounded
size, and the expression may use only what stays cheap on every such value.
"""

import ast
import builtins
import json
import math
import operator
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from orthora.rewards.child import MAX_BITS, MAX_DEPTH, MAX_ITEMS

_PLAIN = (bool, complex, dict, float, frozenset, int, list, set, str, tuple)
_CHEAP = (abs, all, any, enumerate, isinstance, len, max, min, reversed, round, sorted, sum, zip)
_MATHS = (
    *(math.ceil, math.cos, math.exp, math.fabs, math.floor, math.fsum, math.hypot, math.isclose),
    *(math.isfinite, math.isinf, math.isnan, math.log, math.log10, math.log2, math.sin, math.sqrt),
    *(math.tan, math.trunc),
)
FUNCTIONS: dict[str, Any] = {function.__name__: function for function in (*_PLAIN, *_CHEAP)}
"""Builtins that the judge's part of a test may name."""
MODULES: dict[str, dict[str, Any]] = {
    "math": {
        **{function.__name__: function for function in _MATHS},
        **{"e": math.e, "inf": math.inf, "nan": math.nan, "pi": math.pi, "tau": math.tau},
    },
    "sys": {"getsizeof": sys.getsizeof, "maxsize": sys.maxsize},
    "collections": {"Counter": Counter, "OrderedDict": OrderedDict},
}
"""Attributes of modules that it may name."""

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_NUMBERS = (int, float, complex)


class Check(NamedTuple):
    """One assert.

    Attributes:
        calls: source of the calls that the program must answer, in order.
        condition: the rest, in which the names ``answer0``, ``answer1``, ... stand for them.
    """

    calls: tuple[str, ...]
    condition: ast.expr

    def holds(self, answers: Sequence[Any]) -> bool:
        """Whether the condition is true of these answers.

        Args:
            answers: plain values, one for each call.

        Returns:
            Its truth; False as well where Python would raise, as ``len(None)`` does.
        """
        names = {f"answer{i}": value for i, value in enumerate(answers)}
        try:
            return bool(_evaluate(self.condition, names))
        except (TypeError, ValueError, ArithmeticError, LookupError, RecursionError):
            return False


def parse_tests(tests: Sequence[str], entry: str | None = None) -> list[Check]:
    """Split asserts into the program's part and the judge's.

    The program's part are the outermost calls of names that are no builtins; where the tests have
    none, as the program itself is named like a builtin (``assert sum(10, 15) == 6``), the call that
    stands first in each. What the program defines does not matter: it could name a function
    ``set``, and be asked for both sides of a comparison.

    Args:
        tests: source of asserts; imports between them are allowed, and ignored.
        entry: the name of the function under test, where calls of others are the judge's.

    Returns:
        One check for each assert, in order.

    Raises:
        ValueError: if there is no assert, or one calls no function under test, or its rest needs
            more than `FUNCTIONS`, `MODULES` and operators.
    """
    asserts = [node for test in tests for node in _asserts(test)]
    if not asserts:
        raise ValueError("no assert among the tests; give at least one")
    if entry is not None:
        wanted: Collection[str] = {entry}
    else:
        wanted = {name for node in asserts for name in _called(node)} - set(dir(builtins))
    return [_check(node, wanted or _called(node)[:1]) for node in asserts]


def _asserts(test: str) -> list[ast.expr]:
    try:
        body = ast.parse(test.strip()).body
    except SyntaxError as error:
        raise ValueError(f"the test {test!r} is no Python: {error}") from error
    for node in body:
        if not isinstance(node, ast.Assert | ast.Import | ast.ImportFrom):
            raise ValueError(f"the test {test!r} holds more than asserts and imports; rewrite it")
    return [node.test for node in body if isinstance(node, ast.Assert)]


def _called(node: ast.expr) -> list[str]:
    """Names that are called, in the order of the text."""
    calls = [n for n in ast.walk(node) if isinstance(n, ast.Call)]
    calls.sort(key=lambda call: (call.lineno, call.col_offset))
    return [call.func.id for call in calls if isinstance(call.func, ast.Name)]


def _check(node: ast.expr, wanted: Collection[str]) -> Check:
    text = ast.unparse(node)
    split = _Split(wanted)
    condition = split.truth(node)
    if not split.calls:
        raise ValueError(f"the test {text!r} calls no function under test; name it as entry")
    _refuse_unknown(condition, text)
    return Check(tuple(split.calls), condition)


class _Split(ast.NodeTransformer):
    """Takes out the outermost calls of some names."""

    def __init__(self, wanted: Collection[str]) -> None:
        self.wanted = wanted
        self.calls: list[str] = []

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """A name for a wanted call's answer."""
        return self._answer(ast.unparse(node)) if self._takes(node) else self.generic_visit(node)

    def truth(self, node: ast.expr) -> ast.expr:
        """As ``visit``, of an expression of which only the truth counts: it may be a match object.

        So the program's process is asked for ``not not f(1)``, and answers with a bool.
        """
        if self._takes(node):
            return self._answer(f"not not {ast.unparse(node)}")
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ast.UnaryOp(node.op, self.truth(node.operand))
        if isinstance(node, ast.BoolOp):
            return ast.BoolOp(node.op, [self.truth(value) for value in node.values])
        return self.visit(node)

    def _takes(self, node: ast.expr) -> bool:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            return False
        return node.func.id in self.wanted

    def _answer(self, call: str) -> ast.Name:
        self.calls.append(call)
        return ast.Name(f"answer{len(self.calls) - 1}", ast.Load())


_STRUCTURE = (
    *(ast.Constant, ast.Tuple, ast.List, ast.Set, ast.Dict, ast.UnaryOp, ast.BinOp, ast.BoolOp),
    *(ast.Compare, ast.IfExp, ast.Call, ast.keyword, ast.Load, ast.And, ast.Or, *_OPERATORS),
)


def _refuse_unknown(condition: ast.expr, text: str) -> None:
    """Say now, not in the middle of a run, what `_evaluate` cannot do."""
    functions = {id(n.func) for n in ast.walk(condition) if isinstance(n, ast.Call)}
    bases = {id(n.value) for n in ast.walk(condition) if isinstance(n, ast.Attribute)}
    for node in ast.walk(condition):
        if isinstance(node, ast.Name):
            fine = id(node) in bases or node.id in FUNCTIONS or node.id.startswith("answer")
        elif isinstance(node, ast.Attribute):
            module = node.value.id if isinstance(node.value, ast.Name) else ""
            fine = node.attr in MODULES.get(module, {})
        elif isinstance(node, ast.Dict | ast.Call):
            keys = node.keys if isinstance(node, ast.Dict) else [k.arg for k in node.keywords]
            fine = None not in keys
        else:
            fine = isinstance(node, _STRUCTURE)
        if id(node) in functions and not isinstance(node, ast.Name | ast.Attribute):
            fine = False
        if not fine:
            raise ValueError(
                f"the test {text!r} needs {ast.unparse(node) or type(node).__name__!r} outside the "
                f"call under test; the judge knows {', '.join(FUNCTIONS)}, and of modules "
                f"{', '.join(f'{m}.{n}' for m, names in MODULES.items() for n in names)}"
            )


def _evaluate(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """The value of a checked expression."""

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return names[node.id] if node.id in names else FUNCTIONS[node.id]
            case ast.Attribute(value=ast.Name(id=module)):
                return MODULES[module][node.attr]
            case ast.Tuple() | ast.List() | ast.Set():
                kind = {ast.Tuple: tuple, ast.List: list, ast.Set: set}[type(node)]
                return kind([value(item) for item in node.elts])
            case ast.Dict():
                return {
                    value(k): value(v) for k, v in zip(node.keys, node.values, strict=True) if k
                }
            case ast.UnaryOp():
                return _OPERATORS[type(node.op)](value(node.operand))
            case ast.BinOp():
                return _arithmetic(type(node.op), value(node.left), value(node.right))
            case ast.BoolOp():
                parts = (value(item) for item in node.values)
                return (all if isinstance(node.op, ast.And) else any)(parts)
            case ast.IfExp():
                return value(node.body if value(node.test) else node.orelse)
            case ast.Compare():
                return _compare(node)
            case ast.Call():
                keywords = {k.arg: value(k.value) for k in node.keywords if k.arg}
                return value(node.func)(*map(value, node.args), **keywords)
        raise ValueError(f"{type(node).__name__} in a test")

    def _compare(node: ast.Compare) -> Any:
        left, result = value(node.left), True
        for op, right in zip(node.ops, map(value, node.comparators), strict=False):
            result = _OPERATORS[type(op)](left, right)
            if not result:
                break
            left = right
        return result

    return value(node)


def _arithmetic(kind: type[ast.operator], left: Any, right: Any) -> Any:
    """An operator on numbers; on anything else only addition, so that nothing grows."""
    if not (isinstance(left, _NUMBERS) and isinstance(right, _NUMBERS)) and kind is not ast.Add:
        raise TypeError(f"{kind.__name__} of {type(left).__name__} and {type(right).__name__}")
    if kind is ast.Pow and isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right)
        if bits > MAX_BITS:
            raise OverflowError(f"a power of {bits} bits")
    return _OPERATORS[kind](left, right)


def unpack(text: str) -> Any:
    """The value in an answer of the sandbox: builtin types only, whatever the text says.

    Args:
        text: of `orthora.rewards.child.pack`, or a forgery.

    Returns:
        The value, of exactly one of the plain types at every level.

    Raises:
        ValueError: if the text is no packed value.
    """
    left = MAX_ITEMS

    def one(item: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise ValueError("too many values")
        tag, *rest = item
        if tag in _KINDS:
            return _KINDS[tag]([one(part, depth + 1) for part in rest[0]])
        return _ATOMS[tag](*rest)

    try:
        return one(json.loads(text), 0)
    except (TypeError, LookupError, RecursionError, OverflowError) as error:
        raise ValueError(f"no packed value: {error}") from error


def _integer(text: str) -> int:
    if len(text) > MAX_BITS // 4 + 2:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text, 16)


_KINDS: dict[str, Callable[[list[Any]], Any]] = {
    **{kind.__name__: kind for kind in (list, tuple, set, frozenset, dict)},
    "iterator": iter,
}
_ATOMS: dict[str, Callable[..., Any]] = {
    "none": lambda: None,
    "bool": bool,
    "int": _integer,
    "float": float.fromhex,
    "complex": lambda real, imag: complex(float.fromhex(real), float.fromhex(imag)),
    "str": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
    "bytes": bytes.fromhex,
}

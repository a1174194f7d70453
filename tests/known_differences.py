"""Where the default engine, pydantic-monty, is not CPython: the table of the README, each row with blocks that show it.

``test_faithful`` runs every block of both lists in both, so a row goes when the sandbox learns what it lacked.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shown:
    """A block and what the agent sees of it, output and then the error, in CPython and in the sandbox."""

    block: str
    cpython: str
    sandbox: str


@dataclass(frozen=True)
class Difference:
    construct: str
    sandbox: str  # what it does instead, for the README
    shown: tuple[Shown, ...]
    corpus: tuple[str, ...] = ()  # the blocks of the corpus that differ for this reason


REFUSED = "NotImplementedError: The monty syntax parser does not yet support "
MODULE = "ModuleNotFoundError: No module named"
NAME = "ImportError: cannot import name"
SUSPEND = "NotImplementedError: external function 'inspect' cannot suspend in this synchronous context"

DIFFERENCES = (
    Difference(
        "`yield`",
        "refused before the block runs (`NotImplementedError`)",
        (
            Shown(
                "def numbers():\n    yield 1\nprint(list(numbers()))",
                "[1]\n",
                REFUSED + "yield expressions",
            ),
        ),
        ("agent: generator function over items", "language: generator function"),
    ),
    Difference(
        "`del`",
        "refused before the block runs",
        (Shown("d = {'a': 1}\ndel d['a']\nprint(d)", "{}\n", REFUSED + "the 'del' statement"),),
        ("agent: deleting keys", "language: deleting a name", "language: deleting items of a list"),
    ),
    Difference(
        "class inheritance, so own exceptions, `Enum`, `ABC`",
        "refused before the block runs",
        (
            Shown(
                "class TooHeavy(Exception):\n    pass\nprint('defined')",
                "defined\n",
                REFUSED + "class inheritance and metaclasses",
            ),
        ),
        (
            "agent: inheritance",
            "agent: custom exception",
            "language: inheritance with super",
            "language: enumeration class",
            "library: abstract classes",
        ),
    ),
    Difference(
        "`@property`, `@classmethod`, `@staticmethod`",
        "refused before the block runs",
        (
            Shown(
                "class Sack:\n    @property\n    def weight(self):\n        return 5\nprint(Sack().weight)",
                "5\n",
                REFUSED + "method decorators (classmethod/staticmethod/property)",
            ),
        ),
        (
            "agent: dataclass records",
            "agent: plain class that keeps state",
            "language: static and class methods",
            "language: properties with a setter",
        ),
    ),
    Difference(
        "`__len__`, `__bool__`, `__lt__` of a class",
        "not called: `TypeError`, or always true",
        (
            Shown(
                "class Sack:\n    def __len__(self):\n        return 3\nprint(len(Sack()))",
                "3\n",
                "TypeError: object of type 'Sack' has no len()",
            ),
            Shown(
                "class Sack:\n    def __bool__(self):\n        return False\nprint(bool(Sack()))",
                "False\n",
                "True\n",
            ),
            Shown(
                "class Sack:\n    def __lt__(self, other):\n        return True\nprint(Sack() < Sack())",
                "True\n",
                "TypeError: '<' not supported between instances of 'Sack' and 'Sack'",
            ),
        ),
        ("language: class with iteration and length", "language: ordering methods and sorted"),
    ),
    Difference(
        "a tool called within `map`, `filter` or a `key=`",
        "`NotImplementedError`; a loop or comprehension works",
        (
            Shown("print(len(list(map(inspect, ['item_08aea97ece91']))))", "1\n", SUSPEND),
            Shown("print(len(list(filter(lambda i: inspect(i), ['item_08aea97ece91']))))", "1\n", SUSPEND),
            Shown("print(len(sorted(['item_08aea97ece91'], key=lambda i: inspect(i))))", "1\n", SUSPEND),
        ),
        (
            "agent: tools through map",
            "agent: key function that calls a tool",
            "agent: lambda over a tool in map",
            "agent: filter with a tool",
        ),
    ),
    Difference(
        "generator expressions, `map`, `filter`, `zip`",
        "evaluated at once, as lists: `any(inspect(i) for …)` calls the tool for every item, and a second use sees "
        "the items again",
        (
            Shown(
                "squares = (n * n for n in range(3))\nprint(list(squares), list(squares))",
                "[0, 1, 4] []\n",
                "[0, 1, 4] [0, 1, 4]\n",
            ),
            Shown(
                "def look(n):\n    print('look', n)\n    return n\nprint(any(look(n) for n in (1, 2)))",
                "look 1\nTrue\n",
                "look 1\nlook 2\nTrue\n",
            ),
            Shown("print(zip('a', 'b') == [('a', 'b')])", "False\n", "True\n"),
        ),
        (
            "agent: first match with next",
            "agent: any over inspected items",
            "language: generator expression is consumed once",
        ),
    ),
    Difference(
        "methods taken from a type: `key=str.lower`, `map(str.strip, …)`",
        "`AttributeError`; a lambda works",
        (
            Shown(
                "print(sorted(['b', 'A'], key=str.lower))",
                "['A', 'b']\n",
                "AttributeError: type object 'str' has no attribute 'lower'",
            ),
        ),
        (
            "agent: texts through map and a method",
            "language: sorting is stable",
            "language: functions are values",
        ),
    ),
    Difference(
        "`callable`, `dir`, `vars`, `globals`, `ascii`, `input`, `exit`",
        "`NameError`",
        (
            Shown("print(callable(len))", "True\n", "NameError: name 'callable' is not defined"),
            Shown("print('x' in dir())", "False\n", "NameError: name 'dir' is not defined"),
            Shown("print('x' in vars())", "False\n", "NameError: name 'vars' is not defined"),
            Shown("print('x' in globals())", "False\n", "NameError: name 'globals' is not defined"),
            Shown("print(ascii('x'))", "'x'\n", "NameError: name 'ascii' is not defined"),
            Shown("input()", "EOFError: EOF when reading a line", "NameError: name 'input' is not defined"),
            Shown("exit()", "SystemExit: None", "NameError: name 'exit' is not defined"),
        ),
        (
            "errors: exit function",
            "language: ascii and unicode",
            "language: calling an object",
            "language: globals and locals",
            "language: vars of an object",
            "language: dir and id",
            "language: input",
        ),
    ),
    Difference(
        "`heapq`, `statistics`, `operator`, `string`, `fractions`, `contextlib`, `pprint`, … (modules)",
        "`ModuleNotFoundError`; there are `math`, `json`, `re`, `random`, `itertools`, `functools`, `collections`, "
        "`bisect`, `dataclasses`, `datetime`, `decimal`, `copy`, `typing` and a few more",
        tuple(
            Shown(f"import {name}\nprint('there')", "there\n", f"{MODULE} {name!r}")
            for name in "heapq statistics operator string fractions contextlib textwrap pprint enum io types".split()
        ),
        (
            "agent: heap of ratios",
            "library: heap",
            "library: statistics",
            "library: operator",
            "library: string constants",
            "library: pretty print",
            "library: text wrapping",
            "library: fractions",
            "library: contextlib",
        ),
    ),
    Difference(
        "`numpy` and other packages",
        "`ModuleNotFoundError` (under engine \"cpython\" too)",
        (Shown("import numpy", "", f"{MODULE} 'numpy'"),),
        ("library: numpy", "language: conditional import"),
    ),
    Difference(
        "`OrderedDict`, `functools.wraps`, `cmp_to_key`, `dataclasses.asdict`, `typing.NamedTuple`, `collections.abc`",
        "`ImportError`",
        (
            *(
                Shown(f"from {module} import {name}", "", f"{NAME} {name!r} from {module!r} (unknown location)")
                for module, name in (
                    ("collections", "OrderedDict"),
                    ("functools", "wraps"),
                    ("functools", "cmp_to_key"),
                    ("dataclasses", "asdict"),
                    ("typing", "NamedTuple"),
                )
            ),
            Shown("import collections.abc", "", f"{MODULE} 'collections.abc'; 'collections' is not a package"),
        ),
        (
            "library: ordered dict",
            "library: comparison key",
            "library: wraps",
            "library: asdict and replace",
            "library: typing module",
            "library: submodule under another name",
        ),
    ),
    Difference(
        "`json.dumps(default=…)`, a function in `re.sub`, `@dataclass(order=True)`",
        "`TypeError` or `NotImplementedError`",
        (
            Shown(
                "import json\nprint(json.dumps({3}, default=list))",
                "[3]\n",
                "TypeError: JSONEncoder.__init__() got an unexpected keyword argument 'default'",
            ),
            Shown(
                "import re\nprint(re.sub('a', lambda match: 'b', 'a'))",
                "b\n",
                "TypeError: callable replacement is not yet supported in re.sub()",
            ),
            Shown(
                "from dataclasses import dataclass\n@dataclass(order=True)\nclass Item:\n    weight: int\n"
                "print(Item(1) < Item(2))",
                "True\n",
                "NotImplementedError: dataclass() does not yet support the order option",
            ),
        ),
        ("library: json with default", "library: regular expressions with flags", "library: ordered dataclass"),
    ),
    Difference(
        "`int.bit_length`, `str.maketrans`, `bytes([…])`, `set.union` of several",
        "`AttributeError` or `TypeError`",
        (
            Shown("print((5).bit_length())", "3\n", "AttributeError: 'int' object has no attribute 'bit_length'"),
            Shown(
                "print('a'.translate(str.maketrans('a', 'b')))",
                "b\n",
                "AttributeError: type object 'str' has no attribute 'maketrans'",
            ),
            Shown("print(bytes([65]))", "b'A'\n", "TypeError: cannot convert 'list' object to bytes"),
            Shown(
                "print({1}.union([2], [3]))",
                "{1, 2, 3}\n",
                "TypeError: set.union() takes exactly one argument (2 given)",
            ),
            Shown(
                "print({1} in {2})",
                "False\n",
                "TypeError: cannot use 'set' as a set element (unhashable type: 'set')",
            ),
        ),
        (
            "language: big integers",
            "language: bit operations",
            "language: translate",
            "language: bytes",
            "language: sets",
            "operator: in",
        ),
    ),
    Difference(
        "`__name__` of a function, `__cause__` of an exception",
        "`AttributeError`",
        (
            Shown(
                "def helper():\n    pass\nprint(helper.__name__)",
                "helper\n",
                "AttributeError: 'function' object has no attribute '__name__'",
            ),
            Shown(
                "try:\n    raise ValueError('a') from KeyError('b')\nexcept ValueError as error:\n"
                "    print(repr(error.__cause__))",
                "KeyError('b')\n",
                "AttributeError: 'ValueError' object has no attribute '__cause__'",
            ),
        ),
        (
            "language: types of functions and tools",
            "language: exception chaining",
            "language: context manager of one's own",
        ),
    ),
    Difference(
        "an exception with several arguments, or with one that is no text",
        "`RuntimeError`; the key in a `KeyError` is always a text",
        (
            Shown(
                "raise ValueError('weight', 3)",
                "ValueError: ('weight', 3)",
                "RuntimeError: Internal error in monty: exceptions can only be called with zero or one string argument",
            ),
            Shown("try:\n    {}[3]\nexcept KeyError as error:\n    print(error.args)", "(3,)\n", "('3',)\n"),
        ),
        (
            "errors: raise with several arguments",
            "language: exception attributes",
            "errors: key error with a tuple and a number",
        ),
    ),
    Difference(
        "a failed `assert`",
        "its text says the compared values as well",
        (
            Shown(
                "try:\n    assert 2 + 2 == 5, 'wrong'\nexcept AssertionError as error:\n    print(error)",
                "wrong\n",
                "wrong\nassert 4 == 5\n",
            ),
        ),
    ),
    Difference(
        "wrong indentation",
        "`SyntaxError` instead of its subclasses `IndentationError` and `TabError`; syntax errors have texts of their "
        "own",
        (
            Shown(
                "x = 1\n  y = 2",
                "IndentationError: unexpected indent",
                "SyntaxError: Unexpected indentation",
            ),
        ),
        (
            "agent: unexpected indent",
            "agent: missing block",
            "errors: wrong indentation",
            "errors: dedent to nowhere",
            "errors: tab and spaces",
        ),
    ),
    Difference(
        "`return` or `await` outside a function",
        "allowed: `return` ends the block",
        (
            Shown("print('before')\nreturn\n1 / 0", "SyntaxError: 'return' outside function", "before\n"),
            Shown(
                "await missing",
                "SyntaxError: 'await' outside function",
                "NameError: name 'missing' is not defined",
            ),
        ),
        (
            "language: return at top level",
            "errors: return outside a function",
            "errors: await outside a function",
        ),
    ),
    Difference(
        "`round` to digits",
        "scales, rounds and scales back, so a few values end a digit off; formats such as `:.2f` agree",
        (Shown("print(round(2.675, 2), f'{2.675:.2f}')", "2.67 2.67\n", "2.68 2.67\n"),),
        ("language: rounding half to even",),
    ),
    Difference(
        "sets",
        "keep the order of insertion",
        (Shown("print({3, 1, 2})", "{1, 2, 3}\n", "{3, 1, 2}\n"),),
    ),
    Difference(
        "equal keys of unlike type",
        "the newer key stays",
        (Shown("print({1: 'a', True: 'b'})", "{1: 'b'}\n", "{True: 'b'}\n"),),
        ("library: json of numbers and keys",),
    ),
    Difference(
        "recursion",
        "500 calls deep, CPython 1,000",
        (
            Shown(
                "def down(n):\n    return 0 if n == 0 else 1 + down(n - 1)\nprint(down(600))",
                "600\n",
                "RecursionError: maximum recursion depth exceeded",
            ),
        ),
    ),
    Difference(
        "clock, unseeded random numbers, `hash` of a text",
        "the same in every run",
        (Shown("import time\nprint(time.time() == 1767225600)", "False\n", "True\n"),),
    ),
    Difference(
        "files",
        "`PermissionError`, as for everything beyond the interpreter",
        (
            Shown(
                "print(open('/proc/self/status').readline()[:4])",
                "Name\n",
                "PermissionError: Permission denied: '/proc/self/status'",
            ),
        ),
        ("language: opening a file",),
    ),
)

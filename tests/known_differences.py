"""Where the default engine, pydantic-monty, is not CPython: constructs, and blocks that show each.

What the sandbox does instead stands in the table of ``knapsack/sandbox/README.md``. ``test_faithful`` runs every block
in both, so a row goes when the sandbox learns what it lacked. A block is followed by what the agent sees of it, output
and then the error, in CPython and in the sandbox.
"""

REFUSED = "NotImplementedError: The monty syntax parser does not yet support "
MODULE = "ModuleNotFoundError: No module named"
SUSPEND = "NotImplementedError: external function 'inspect' cannot suspend in this synchronous context"

DIFFERENCES: dict[str, list[tuple[str, str, str]]] = {
    "`yield`": [
        ("def numbers():\n    yield 1\nprint(list(numbers()))", "[1]\n", REFUSED + "yield expressions"),
    ],
    "`del`": [
        ("d = {'a': 1}\ndel d['a']\nprint(d)", "{}\n", REFUSED + "the 'del' statement"),
    ],
    "class inheritance, so own exceptions, `Enum`, `ABC`": [
        (
            "class TooHeavy(Exception):\n    pass\nprint('defined')",
            "defined\n",
            REFUSED + "class inheritance and metaclasses",
        ),
    ],
    "`@property`, `@classmethod`, `@staticmethod`": [
        (
            "class Sack:\n    @property\n    def weight(self):\n        return 5\nprint(Sack().weight)",
            "5\n",
            REFUSED + "method decorators (classmethod/staticmethod/property)",
        ),
    ],
    "`__len__`, `__bool__`, `__lt__` of a class": [
        (
            "class Sack:\n    def __len__(self):\n        return 3\nprint(len(Sack()))",
            "3\n",
            "TypeError: object of type 'Sack' has no len()",
        ),
        ("class Sack:\n    def __bool__(self):\n        return False\nprint(bool(Sack()))", "False\n", "True\n"),
        (
            "class Sack:\n    def __lt__(self, other):\n        return True\nprint(Sack() < Sack())",
            "True\n",
            "TypeError: '<' not supported between instances of 'Sack' and 'Sack'",
        ),
    ],
    "a tool called within `map`, `filter` or a `key=`": [
        ("print(len(list(map(inspect, ['item_08aea97ece91']))))", "1\n", SUSPEND),
        ("print(len(list(filter(lambda i: inspect(i), ['item_08aea97ece91']))))", "1\n", SUSPEND),
        ("print(len(sorted(['item_08aea97ece91'], key=lambda i: inspect(i))))", "1\n", SUSPEND),
    ],
    "generator expressions, `map`, `filter`, `zip`": [
        (
            "squares = (n * n for n in range(3))\nprint(list(squares), list(squares))",
            "[0, 1, 4] []\n",
            "[0, 1, 4] [0, 1, 4]\n",
        ),
        (
            "def look(n):\n    print('look', n)\n    return n\nprint(any(look(n) for n in (1, 2)))",
            "look 1\nTrue\n",
            "look 1\nlook 2\nTrue\n",
        ),
        ("print(zip('a', 'b') == [('a', 'b')])", "False\n", "True\n"),
    ],
    "methods taken from a type: `key=str.lower`, `map(str.strip, …)`": [
        (
            "print(sorted(['b', 'A'], key=str.lower))",
            "['A', 'b']\n",
            "AttributeError: type object 'str' has no attribute 'lower'",
        ),
    ],
    "`callable`, `dir`, `vars`, `globals`, `ascii`, `input`, `exit`": [
        ("print(callable(len))", "True\n", "NameError: name 'callable' is not defined"),
        ("print('x' in dir())", "False\n", "NameError: name 'dir' is not defined"),
        ("print('x' in vars())", "False\n", "NameError: name 'vars' is not defined"),
        ("print('x' in globals())", "False\n", "NameError: name 'globals' is not defined"),
        ("print(ascii('x'))", "'x'\n", "NameError: name 'ascii' is not defined"),
        ("input()", "EOFError: EOF when reading a line", "NameError: name 'input' is not defined"),
        ("exit()", "SystemExit: None", "NameError: name 'exit' is not defined"),
    ],
    "`heapq`, `statistics`, `operator`, `string`, `fractions`, `contextlib`, `pprint`, … (modules)": [
        (f"import {name}\nprint('there')", "there\n", f"{MODULE} {name!r}")
        for name in "heapq statistics operator string fractions contextlib textwrap pprint enum io types".split()
    ],
    "`numpy` and other packages": [
        ("import numpy", "", f"{MODULE} 'numpy'"),
    ],
    "`OrderedDict`, `functools.wraps`, `cmp_to_key`, `dataclasses.asdict`, `typing.NamedTuple`, `collections.abc`": [
        (
            "from collections import OrderedDict",
            "",
            "ImportError: cannot import name 'OrderedDict' from 'collections' (unknown location)",
        ),
        (
            "from functools import wraps",
            "",
            "ImportError: cannot import name 'wraps' from 'functools' (unknown location)",
        ),
        (
            "from functools import cmp_to_key",
            "",
            "ImportError: cannot import name 'cmp_to_key' from 'functools' (unknown location)",
        ),
        (
            "from dataclasses import asdict",
            "",
            "ImportError: cannot import name 'asdict' from 'dataclasses' (unknown location)",
        ),
        (
            "from typing import NamedTuple",
            "",
            "ImportError: cannot import name 'NamedTuple' from 'typing' (unknown location)",
        ),
        (
            "import collections.abc",
            "",
            "ModuleNotFoundError: No module named 'collections.abc'; 'collections' is not a package",
        ),
    ],
    "`json.dumps(default=…)`, a function in `re.sub`, `@dataclass(order=True)`": [
        (
            "import json\nprint(json.dumps({3}, default=list))",
            "[3]\n",
            "TypeError: JSONEncoder.__init__() got an unexpected keyword argument 'default'",
        ),
        (
            "import re\nprint(re.sub('a', lambda match: 'b', 'a'))",
            "b\n",
            "TypeError: callable replacement is not yet supported in re.sub()",
        ),
        (
            "from dataclasses import dataclass\n@dataclass(order=True)\nclass Item:\n    weight: int\n"
            "print(Item(1) < Item(2))",
            "True\n",
            "NotImplementedError: dataclass() does not yet support the order option",
        ),
    ],
    "`int.bit_length`, `str.maketrans`, `bytes([…])`, `set.union` of several": [
        ("print((5).bit_length())", "3\n", "AttributeError: 'int' object has no attribute 'bit_length'"),
        (
            "print('a'.translate(str.maketrans('a', 'b')))",
            "b\n",
            "AttributeError: type object 'str' has no attribute 'maketrans'",
        ),
        ("print(bytes([65]))", "b'A'\n", "TypeError: cannot convert 'list' object to bytes"),
        ("print({1}.union([2], [3]))", "{1, 2, 3}\n", "TypeError: set.union() takes exactly one argument (2 given)"),
        ("print({1} in {2})", "False\n", "TypeError: cannot use 'set' as a set element (unhashable type: 'set')"),
    ],
    "`__name__` of a function, `__cause__` of an exception": [
        (
            "def helper():\n    pass\nprint(helper.__name__)",
            "helper\n",
            "AttributeError: 'function' object has no attribute '__name__'",
        ),
        (
            "try:\n    raise ValueError('a') from KeyError('b')\nexcept ValueError as error:\n"
            "    print(repr(error.__cause__))",
            "KeyError('b')\n",
            "AttributeError: 'ValueError' object has no attribute '__cause__'",
        ),
    ],
    "an exception with several arguments, or with one that is no text": [
        (
            "raise ValueError('weight', 3)",
            "ValueError: ('weight', 3)",
            "RuntimeError: Internal error in monty: exceptions can only be called with zero or one string argument",
        ),
        ("try:\n    {}[3]\nexcept KeyError as error:\n    print(error.args)", "(3,)\n", "('3',)\n"),
    ],
    "a failed `assert`": [
        (
            "try:\n    assert 2 + 2 == 5, 'wrong'\nexcept AssertionError as error:\n    print(error)",
            "wrong\n",
            "wrong\nassert 4 == 5\n",
        ),
    ],
    "wrong indentation": [
        ("x = 1\n  y = 2", "IndentationError: unexpected indent", "SyntaxError: Unexpected indentation"),
    ],
    "`return` or `await` outside a function": [
        ("print('before')\nreturn\n1 / 0", "SyntaxError: 'return' outside function", "before\n"),
        ("await missing", "SyntaxError: 'await' outside function", "NameError: name 'missing' is not defined"),
    ],
    "`round` to digits": [
        ("print(round(2.675, 2), f'{2.675:.2f}')", "2.67 2.67\n", "2.68 2.67\n"),
    ],
    "sets": [
        ("print({3, 1, 2})", "{1, 2, 3}\n", "{3, 1, 2}\n"),
    ],
    "equal keys of unlike type": [
        ("print({1: 'a', True: 'b'})", "{1: 'b'}\n", "{True: 'b'}\n"),
    ],
    "recursion": [
        (
            "def down(n):\n    return 0 if n == 0 else 1 + down(n - 1)\nprint(down(600))",
            "600\n",
            "RecursionError: maximum recursion depth exceeded",
        ),
    ],
    "clock, unseeded random numbers, `hash` of a text": [
        ("import time\nprint(time.time() == 1767225600)", "False\n", "True\n"),
    ],
    "files": [
        (
            "print(open('/proc/self/status').readline()[:4])",
            "Name\n",
            "PermissionError: Permission denied: '/proc/self/status'",
        ),
    ],
}

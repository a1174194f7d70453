"""Names of code blocks: worked examples, and blocks executed in a namespace that records what is used."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from knapsack.names import block_names, bound_names

EARLIER = frozenset(("x", "y", "ids", "seen", "left", "f", "json", "e", "i"))


@pytest.mark.parametrize(
    ("code", "needed"),
    [
        ("x = {}\nx[1] = 2", ""),
        ("x = x + 1", "x"),
        ("x: int = 1\nprint(x)", ""),
        ("x: int\nprint(x)", "x"),
        ("for i in ids: y = i\nprint(y, i)", "ids"),
        ("print([i for i in ids if i not in seen])", "ids seen"),
        ("print([y := i for i in ids], y)", "ids"),
        ("print(y + (y := 1))", "y"),
        ("def f(i):\n    seen[i] = 1\n    x = 2\n    return x\nf(1)", "seen"),
        ("def f():\n    return seen\nseen = 1\nf()", ""),
        ("def f():\n    global left\n    left -= 1\nf()", "left"),
        ("left = 1\ndef f():\n    global left\n    left -= 1\nf()\nprint(left)", ""),
        ("def f():\n    global x\n    x = 1\ndef g(): return x\nf()\nprint(g(), x)", ""),
        ("class C:\n    x = y\n    def m(self): return x", "x y"),
        ("try:\n    seen\nexcept NameError:\n    seen = {}", "seen"),
        ("try:\n    x = f()\nexcept ValueError as e:\n    print(e, y)\nprint(x)", "f y"),
        ("del x", "x"),
        ("x = 1\ndel x\ndef f(): return x\nprint(f(), x)", ""),  # fails in any runtime
        ("if not seen: x = 1\nprint(x)", "seen"),  # branches count as run
        ("lambda: " * 60 + "x", "x"),
    ],
)
def test_needed_are_the_names_read_before_they_are_bound(code, needed):
    assert (block_names(code).free & EARLIER) == frozenset(needed.split())


@pytest.mark.parametrize(
    ("code", "bound"),
    [
        ("a = b = 1\nc, (d, *e) = a", "a b c d e"),
        ("import a.b, c as d\nfrom m import f, g as h\nfrom m import *", "a d f h"),
        ("try:\n    a = 1\nexcept E as b:\n    c = 1\nfinally:\n    d = 1", "a c d"),  # b is unbound again
        ("[a for a in b]\nif (c := 1): d += 1", "c d"),
        ("a: int = 1\nb: int", "a"),
        ("a = 1\ndel a", ""),
        ("def f():\n    global a\n    a = 1", "a f"),
        ("match a:\n    case [b, *c] as d: e = 1", "b c d e"),
    ],
)
def test_bound_are_the_names_that_the_block_leaves(code, bound):
    assert bound_names(code) == frozenset(bound.split())


@pytest.mark.parametrize("code", ["x = (", "x\0", "-" * 100_000 + "x", "(" * 1000])
def test_what_is_no_code_has_no_names(code):
    assert block_names(code) is None and bound_names(code) == frozenset()


class Anything:
    """Stands for every value: can be called, added, indexed, entered, and iterated over once."""

    def __call__(self, *_, **__):
        return self

    __add__ = __iadd__ = __getitem__ = __getattr__ = __enter__ = __call__

    def __setitem__(self, *_):
        pass

    def __exit__(self, *_):
        return False

    def __iter__(self):
        return iter([self])


class Kept(dict):
    """A namespace in which the names of earlier turns are there, and every use of one is recorded."""

    def __init__(self, earlier, value):
        super().__init__(v=value)
        self.earlier, self.value, self.used, self.deleted = earlier, value, set(), set()

    def __missing__(self, name):
        if name not in self.earlier:
            raise KeyError(name)
        self.used |= {name} - self.deleted
        return self.value

    def __delitem__(self, name):
        self[name]
        self.deleted.add(name)
        self.pop(name, None)


NAMES = ("a", "b", "c", "d")
STATEMENTS = [
    "{0} = {1}; {2} += {3}",
    "{0}[{1}] = {2}; v.k = {3}",
    "{0}: {1} = {2}; {3}",
    "import json as {0}; {1} = v",
    "del {0}",
    "({0} := {1} + ({2} := {3}))",
    "{0} = [{1} for {2} in {3} if {1}]",
    "{{{0}: {1} for {1} in {2} for {3} in {0}}}",
    "(lambda {0}, q={1}: {0} + q)(v)",
    "class C({0}.__class__): {1} = {2}; {3} = {1}",
    "for {0} in {1}:\n    {2} = {0}\n    with {2} as {3}: {0}",
    "try:\n    {0} = {1}\n    while True:\n        {2} = {3}\n        break\nexcept Never:\n    pass",
]
LAST = ["", "def f(z=v):\n    {0} = v\n    print({1}, {2})\nf()", "def f(z=v):\n    global {0}\n    {1} = {2} = v\nf()"]


def lines(templates: list[str]):
    filled = st.lists(st.sampled_from(NAMES), min_size=4, max_size=4)
    return st.builds(lambda text, names: text.format(*names), st.sampled_from(templates), filled)


@settings(max_examples=150, deadline=None)
@given(st.lists(lines(STATEMENTS), min_size=1, max_size=6), lines(LAST))
def test_without_branches_the_compiler_tells_what_running_uses(block, last):
    """The code, this test's own, is run in a namespace that holds the names of earlier turns."""
    code = "\n".join([*block, last])
    assume(not ("global" in code and "del" in code))  # such a del does not pass through the namespace's own method
    kept = Kept(NAMES, Anything())
    kept |= {"print": lambda *_: None, "Never": ArithmeticError}
    try:
        exec(compile(code, "block", "exec"), kept)
    except (NameError, TypeError, SyntaxError):  # a local name used too early, a class or module as a value
        assume(False)
    assert (block_names(code).free & frozenset(NAMES)) == kept.used

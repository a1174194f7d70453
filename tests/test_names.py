"""Names of code blocks: worked examples, and blocks executed in a namespace that records what is missing."""

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
        ("x += 1", "x"),
        ("x.update()", "x"),
        ("x[1] = 2", "x"),
        ("x: int = 1\nprint(x)", ""),
        ("x: int\nprint(x)", "x"),
        ("for i in ids: f(i)", "ids f"),
        ("for i in ids: y = i\nprint(y, i)", "ids"),
        ("while x: y = 1\nprint(y)", "x"),
        ("print([i for i in ids if i not in seen])", "ids seen"),
        ("print({x: y for x in ids for y in x})", "ids"),
        ("print([i for i in i])", "i"),
        ("print([y := i for i in ids], y)", "ids"),
        ("print((y := 1) + y)", ""),
        ("print(y + (y := 1))", "y"),
        ("print(sorted(ids, key=lambda i: seen[i]))", "ids seen"),
        ("def f(i):\n    seen[i] = 1\n    x = 2\n    return x\nf(1)", "seen"),
        ("def f():\n    return seen\nseen = 1\nf()", ""),
        ("def f(x=y): return x", "y"),
        ("def f():\n    global left\n    left -= 1\nf()", "left"),
        ("left = 1\ndef f():\n    global left\n    left -= 1\nf()\nprint(left)", ""),
        ("def f():\n    global x\n    x = 1\ndef g(): return x\nf()\nprint(g(), x)", ""),
        ("def g():\n    x = 1\n    def h():\n        nonlocal x\n        x += y\n    h()", "y"),
        ("class C:\n    x = y\n    def m(self): return x", "x y"),
        ("class C(f):\n    x = 1\n    y = x", "f"),
        ("import json\njson.dumps(seen)", "seen"),
        ("import os.path as json\njson.join()", ""),
        ("from json import loads as f\nf(x)", "x"),
        ("try:\n    seen\nexcept NameError:\n    seen = {}", "seen"),
        ("try:\n    x = f()\nexcept ValueError as e:\n    print(e, y)\nprint(x)", "f y"),
        ("if x:\n    y = 1\nprint(y)", "x y"),
        ("if x:\n    y = 1\nelse:\n    y = 2\nprint(y)", "x"),
        ("for i in ids:\n    if i:\n        y = 1\n    else:\n        continue\n    print(y)", "ids"),
        ("with f() as x:\n    print(x)", "f"),
        ("del x", "x"),
        ("x = 1\ndel x\nprint(x)", ""),  # fails in any runtime
        ("match x:\n    case {'a': y, **left}: print(y, left)\n    case [i, *seen]: print(i, seen)", "x"),
        ("match x:\n    case 1: y = 1\n    case _: y = 2\nprint(y)", "x"),
        ("match x:\n    case 1: y = 1\nprint(y)", "x y"),
        ("print(f'{x!r:>{y}}')", "x y"),
        ("finish()", ""),
    ],
)
def test_needed_are_the_names_read_before_they_are_bound(code, needed):
    assert (block_names(code).free & EARLIER) == frozenset(needed.split())


@pytest.mark.parametrize(
    ("code", "bound"),
    [
        ("a = b = 1\nc, (d, *e) = a", "a b c d e"),
        ("a[0] = 1\na.b = 2", ""),
        ("import a.b, c as d\nfrom m import f, g as h\nfrom m import *", "a d f h"),
        ("def f(a):\n    b = a\nclass C:\n    c = 1", "f C"),
        ("for a in b:\n    with c as d: e = 1", "a d e"),
        ("try:\n    a = 1\nexcept E as b:\n    c = 1\nfinally:\n    d = 1", "a c d"),  # b is unbound again
        ("[a for a in b]\nif (c := 1): d += 1", "c d"),
        ("a: int = 1\nb: int", "a"),
        ("a = 1\ndel a", ""),
        ("def f():\n    global a\n    a = 1", "a f"),
        ("match a:\n    case [b, *c] as d: e = 1", "b c d e"),
        ("lambda a: (b := a)", ""),
        ("a = (", ""),
    ],
)
def test_bound_are_the_names_that_the_block_leaves(code, bound):
    assert bound_names(code) == frozenset(bound.split())


@pytest.mark.parametrize("code", ["x = (", "x\0", "-" * 100_000 + "x", "(" * 1000])
def test_what_is_no_code_has_no_names(code):
    assert block_names(code) is None and bound_names(code) == frozenset()


def test_nested_functions_take_no_exponential_time():
    assert (block_names("lambda: " * 60 + "x").free & EARLIER) == {"x"}


class Anything:
    """Stands for every value: can be called, added, indexed, entered, and iterated over once."""

    def __init__(self, choices):
        self.choices = choices

    def __call__(self, *_, **__):
        return self

    __add__ = __iadd__ = __getitem__ = __getattr__ = __enter__ = __call__

    def __setitem__(self, *_):
        pass

    def __exit__(self, *_):
        return False

    def __iter__(self):
        return iter([self])

    def __bool__(self):
        return next(self.choices, True)


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
name = st.sampled_from(NAMES)
value = st.one_of(
    name,
    st.builds("({} + {})".format, name, name),
    st.builds("[{0} for {1} in {2} if {0}]".format, name, name, name),
    st.builds("{{{0}: {1} for {1} in {2} for {3} in {0}}}".format, *[name] * 4),
    st.builds("({} := {})".format, name, name),
    st.builds("(lambda {0}, q={1}: {0} + q)(v)".format, name, name),
)
simple = st.one_of(
    st.builds("{} = {}".format, name, value),
    st.builds("{} += {}".format, name, value),
    st.builds("{}[{}] = {}".format, name, name, value),
    st.builds("{}.k = {}".format, st.just("v"), value),
    st.builds("import json as {}; {} = v".format, name, name),
    st.builds("{}: {} = {}".format, name, name, value),
    st.builds("del {}".format, name),
    st.builds("class {}({}.__class__): {} = {}; {} = {}".format, st.just("C"), *[name] * 5),
    value,
)


def inside(head: str, body: list[str]) -> str:
    return "\n".join([f"{head}:", *(f"    {line}" for text in body for line in text.splitlines())])


def compound(lines, branches: bool):
    body = st.lists(lines, min_size=1, max_size=3)
    kinds = [
        st.builds(inside, st.builds("for {} in {}".format, name, name), body),
        st.builds(inside, st.builds("with {} as {}".format, name, name), body),
        st.builds(lambda text: f"{inside('try', text)}\nexcept Never:\n    pass", body),
        st.builds(lambda text: inside("while True", [*text, "break"]), body),
    ]
    if branches:
        kinds += [
            st.builds(lambda test, a, b: f"{inside(f'if {test}', a)}\n{inside('else', b)}", name, body, body),
            st.builds(inside, st.builds("if {}".format, name), body),
        ]
    return st.one_of(*kinds)


def blocks(branches: bool):
    """Blocks of statements, and at most one function, which is called at the end."""
    lines = simple | compound(simple | compound(simple, branches), branches)
    plain = st.lists(lines, min_size=1, max_size=5).map("\n".join)
    body = st.lists(st.builds("{} = v".format, name) | st.builds("print({})".format, name), min_size=1, max_size=3)
    headed = st.builds(lambda own, text: [f"global {own}", *text], name, body) | body
    function = st.builds(inside, st.builds("def f({}=v)".format, st.just("z")), headed)
    return plain | st.builds("{}\n{}\nf()".format, plain, function)


def used(code: str, choices: list[bool]) -> set[str]:
    """Names of earlier turns that the block uses when it runs; the code is this test's own."""
    assume(not ("global" in code and "del" in code))  # such a del does not pass through the namespace's own method
    kept = Kept(NAMES, Anything(iter(choices)))
    kept |= {"print": lambda *_: None, "Never": ArithmeticError}
    try:
        exec(compile(code, "block", "exec"), kept)
    except (NameError, TypeError, SyntaxError):  # a local name used too early, a class or module as a value
        assume(False)
    return kept.used


@settings(max_examples=100, deadline=None)
@given(blocks(False))
def test_without_branches_the_syntax_tells_what_running_uses(code):
    assert (block_names(code).free & frozenset(NAMES)) == used(code, [])


@settings(max_examples=100, deadline=None)
@given(blocks(True), st.lists(st.booleans(), max_size=20))
def test_with_branches_nothing_that_running_uses_is_missed(code, choices):
    assert used(code, choices) <= (block_names(code).free & frozenset(NAMES))

"""Which names a block of code binds, and which it needs from earlier turns: by its syntax, without running it.

The question is whether the block leans on an interpreter that kept what earlier turns bound, so a name that the block
reads before it binds it itself is *free*. Where that depends on the run: a loop's body and a ``try`` body count as
run, of the branches of ``if`` and ``match`` only what all of them bind counts as bound, and a function's body counts
as run once the block has ended, whether or not it is called.
"""

import ast
from dataclasses import dataclass
from functools import lru_cache

FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
LEAVES = ast.Return | ast.Raise | ast.Continue | ast.Break


@dataclass(frozen=True)
class BlockNames:
    """``bound``: module-level names that running the block leaves bound; ``free``: those read before being bound.

    Free names include builtins and tools. A name that an ``except`` clause or ``del`` unbinds again is not bound.
    """

    bound: frozenset[str]
    free: frozenset[str]


@lru_cache(maxsize=1024)  # short blocks such as finish() come again and again
def block_names(code: str) -> BlockNames | None:
    """The names of a block; None if it cannot be parsed."""
    reader = _Reader(frozenset())
    try:
        reader.visit(ast.parse(code))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return BlockNames(frozenset(reader.stored), frozenset(reader.read | (reader.deferred - reader.bound)))


def bound_names(code: str) -> frozenset[str]:
    """Module-level names that running the block leaves bound; none if it cannot be parsed."""
    names = block_names(code)
    return frozenset() if names is None else names.bound


class _Reader(ast.NodeVisitor):
    """Walks one scope in the order of execution.

    ``hidden``: names that belong to a function or comprehension; ``bound``: names of the block bound on the way here;
    ``stored``: all names that it leaves bound; ``read``: names read while unbound; ``deferred``: in function bodies.
    """

    def __init__(self, hidden: frozenset[str], bound: set[str] = frozenset()):
        self.hidden = hidden
        self.bound, self.stored = set(bound), set()
        self.read, self.deferred = set(), set()

    def _visit_all(self, nodes) -> None:
        for node in nodes:
            self.visit(node)

    def _load(self, name: str) -> None:
        if name not in self.hidden and name not in self.bound:
            self.read.add(name)

    def _store(self, node: ast.AST) -> None:
        for name in _names_bound_by(node):
            if name not in self.hidden:
                self.bound.add(name)
                self.stored.add(name)

    def generic_visit(self, node: ast.AST) -> None:
        super().generic_visit(node)
        self._store(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        pass

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self._store(node)
            return
        self._load(node.id)
        if isinstance(node.ctx, ast.Del) and node.id not in self.hidden:
            self.bound.add(node.id)  # a later read fails however many names were kept
            self.stored.discard(node.id)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        self._visit_all(node.targets)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._load(node.target.id)
        self.visit(node.value)
        self.visit(node.target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
            self.visit(node.target)
        self.visit(node.annotation)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self.visit(node.target)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self._visit_all([node.iter, node.target, *node.body, *node.orelse])

    visit_AsyncFor = visit_For

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self._branches([node.body, node.orelse])

    def visit_Match(self, node: ast.Match) -> None:
        self.visit(node.subject)
        branches = [[case.pattern, *([case.guard] if case.guard else []), *case.body] for case in node.cases]
        last = node.cases[-1]
        wildcard = isinstance(last.pattern, ast.MatchAs) and last.pattern.pattern is None and last.guard is None
        self._branches(branches if wildcard else [*branches, []])

    def _branches(self, branches: list[list[ast.AST]]) -> None:
        """One of ``branches`` runs; one that leaves the block or the loop says nothing of what follows."""
        before, ends = self.bound, []
        for nodes in branches:
            self.bound = set(before)
            self._visit_all(nodes)
            if not (nodes and isinstance(nodes[-1], LEAVES)):
                ends.append(self.bound)
        self.bound = set.intersection(*ends) if ends else before

    def visit_Try(self, node: ast.Try) -> None:
        self._visit_all(node.body)
        after = set(self.bound)
        for handler in node.handlers:
            self.bound = set(after)
            self._visit_all([handler.type] if handler.type else [])
            self.bound |= {handler.name} if handler.name else set()  # Python unbinds it when the handler ends
            self._visit_all(handler.body)
        self.bound = after
        self._visit_all([*node.orelse, *node.finalbody])

    visit_TryStar = visit_Try

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> None:
        self._comprehension(node.generators, [node.elt])

    visit_SetComp = visit_GeneratorExp = visit_ListComp

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self._comprehension(node.generators, [node.key, node.value])

    def _comprehension(self, generators: list[ast.comprehension], results: list[ast.AST]) -> None:
        outside = self.hidden
        self.visit(generators[0].iter)
        targets = (part for one in generators for part in ast.walk(one.target))
        self.hidden = outside | {name for part in targets for name in _names_bound_by(part)}
        for index, one in enumerate(generators):
            self._visit_all([*([one.iter] if index else []), *one.ifs])
        self._visit_all(results)
        self.hidden = outside

    def visit_FunctionDef(self, node: FUNCTIONS) -> None:
        arguments = node.args
        plain = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        every = [*plain, *(one for one in (arguments.vararg, arguments.kwarg) if one)]
        self._visit_all(getattr(node, "decorator_list", ()))
        self._visit_all([one for one in (*arguments.defaults, *arguments.kw_defaults) if one])
        self._visit_all([one.annotation for one in every if one.annotation])
        self._visit_all([node.returns] if getattr(node, "returns", None) else [])
        body = [node.body] if isinstance(node, ast.Lambda) else node.body
        own, declared = _scope_names(body)
        body_reader = _Reader((self.hidden | own | {one.arg for one in every}) - declared)
        body_reader._visit_all(body)
        self.deferred |= body_reader.read | body_reader.deferred
        made = body_reader.stored - body_reader.read  # declared global there, and set before it is read
        self.bound |= made
        self.stored |= made
        self._store(node)

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_all([*node.decorator_list, *node.bases, *node.keywords])
        body_reader = _Reader(self.hidden, self.bound)  # runs at once, and keeps its names to itself
        body_reader._visit_all(node.body)
        self.read |= body_reader.read
        self.deferred |= body_reader.deferred
        self._store(node)


def _names_bound_by(node: ast.AST) -> tuple[str, ...]:
    """Names that this node itself binds in its scope, those of its children apart."""
    if isinstance(node, ast.Name):
        return (node.id,) if isinstance(node.ctx, ast.Store) else ()
    if isinstance(node, ast.alias):
        return () if node.name == "*" else ((node.asname or node.name).partition(".")[0],)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return (node.name,)
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
        return (node.name,) if node.name else ()
    if isinstance(node, ast.MatchMapping):
        return (node.rest,) if node.rest else ()
    return ()


def _scope_names(body: list[ast.AST]) -> tuple[set[str], set[str]]:
    """Names that are local to a function with this body, and names that it declares global."""
    local, declared, elsewhere = set(), set(), set()
    waiting = list(body)
    while waiting:
        node = waiting.pop()
        local.update(_names_bound_by(node))
        if isinstance(node, ast.Global):
            declared.update(node.names)
        elif isinstance(node, ast.Nonlocal):
            elsewhere.update(node.names)
        elif isinstance(node, ast.comprehension):  # its targets are its own
            waiting += [node.iter, *node.ifs]
        elif not isinstance(node, FUNCTIONS | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)
    return local - declared - elsewhere, declared

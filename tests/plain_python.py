"""What CPython itself does with the blocks of plays: a program for a child process, which ends after it.

Reads from standard input a JSON list of [task, kind, blocks] and writes, for each block, [output, type of the error
or null, text of the error, number of tool calls]. Nothing is limited or sealed here: for blocks of our own only.
"""

import ast
import contextlib
import io
import json
import os
import sys
import warnings

from knapsack.environment import KnapsackEnvironment
from knapsack.runtime import MAX_TOOL_CALLS
from knapsack.tasks import Task


def play(task: dict, kind: str, blocks: list[str]) -> list[list]:
    calls = [0]

    def counted(tool):
        def call(*arguments, **keywords):
            if calls[0] == MAX_TOOL_CALLS:
                raise RuntimeError(f"tool call limit exceeded: at most {MAX_TOOL_CALLS} tool calls per turn")
            calls[0] += 1
            return tool(*arguments, **keywords)

        return call

    tools = {name: counted(tool) for name, tool in KnapsackEnvironment(Task.from_json(task)).tools.items()}
    sys.stdin = open(os.devnull)  # for every play: exit() closes it
    names, outcomes = {}, []
    for code in blocks:
        calls[0] = 0
        if kind == "stateless" or not names:
            names = {"__name__": "__main__", **tools}
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            error = run(code, names)
        outcomes.append([printed.getvalue(), *error, calls[0]])
    return outcomes


def run(code: str, names: dict) -> tuple[str | None, str | None]:
    """Execute and show the value of a last expression, as the interactive interpreter does."""
    try:
        tree = ast.parse(code)
        last = [tree.body.pop()] if tree.body and isinstance(tree.body[-1], ast.Expr) else []
        parts = [compile(tree, "block", "exec"), compile(ast.Interactive(last), "block", "single")]  # before any runs
        for part in parts:
            exec(part, names)
        return None, None
    except BaseException as error:
        return type(error).__name__, (error.msg if isinstance(error, SyntaxError) else str(error)) or None


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of the compiler, about code that fails anyway
    json.dump([play(*one) for one in json.load(sys.stdin)], sys.stdout)

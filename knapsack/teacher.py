"""The rule-based teacher: one plan per task, written down in two styles that differ in how state is carried.

The *persistent* style defines records and helpers once and calls them again. The *stateless* style prints what
it knows at the end of each block and binds it again from that observation at the start of the next. Both follow
the same plan (batch size, order, wording, mistakes), so their traces on a task are matched pairs.

The policy: inspect up to the budget, then try items by value per weight and learn from refusals which classes
are not allowed. It sees only what the tools show.
"""

import json
import random
import re
from dataclasses import dataclass
from textwrap import indent

from knapsack.agent import Reply
from knapsack.prompts import Message, render
from knapsack.runtime import KINDS, Kind, undefined_name
from knapsack.tasks import Task

ORDERS = {"listed": "", "backwards": "[::-1]", "alternating": "\nids = ids[::2] + ids[1::2]"}  # of the ids, as code
MISTYPED = {"look": ("look_more", "lok", "inspect_more"), "fill": ("fil", "fill_up", "take_more")}

OPENING = (
    "I inspect the first items and keep their records.",
    "First I look at some items.",
    "I start with a batch of items.",
    "I list the items and inspect a first batch.",
)
MORE = ("I inspect more.", "I go on inspecting.", "Next batch.", "There is budget left, so I look at more items.")
TAKE = (
    "Now I take the items with the best value per weight.",
    "I fill the knapsack by value per weight.",
    "The budget is spent, so I take the best items.",
)
AGAIN = ("Not everything was tried yet, so I go on taking.", "The calls ran out. I go on taking.")
DONE = ("Everything that fits was tried. I finish.", "Nothing more fits. Done.", "The knapsack is full. I finish.")
CAPPED = (
    "Too many calls in one turn. I use smaller batches.",
    "That was over the call limit, so I take a smaller batch.",
)
RESTORED = ("I bind the records again.", "I restore the records first.", "The names are gone, so I write them again.")
UNDEFINED = ("{name} is not defined. I correct that.", "I used {name}, which does not exist. Once more.")


@dataclass(frozen=True)
class Plan:
    """The decisions of one episode, the same for both styles."""

    order: str
    batch: int
    tries: int
    overreach: bool  # the first batch asks for more calls than the cap allows
    slip_turn: int | None  # the turn with a wrong or forgotten name
    wording: random.Random

    @classmethod
    def draw(cls, seed: int, max_tool_calls: int) -> "Plan":
        source = random.Random(f"plan {seed}")
        return cls(
            order=source.choices(list(ORDERS), (3, 1, 1))[0],
            batch=source.randint(max(1, max_tool_calls // 2), max(1, max_tool_calls - 3)),
            tries=source.randint(max(1, max_tool_calls - 5), max_tool_calls),
            overreach=source.random() < 0.12,
            slip_turn=source.choice((1, 2, 3)) if source.random() < 0.08 else None,
            wording=random.Random(f"wording {seed}"),
        )


class RuleTeacher:
    """Replies to a conversation as the policy would; drive it with ``agent.run_alone``.

    ``kind`` is the style, which a study also runs in the runtime of that kind. With a ``tokenizer`` the replies
    carry token counts of the rendered conversation; without, zeros. Raises ValueError for an unknown kind.
    """

    def __init__(self, task: Task, kind: Kind, seed: int, tokenizer=None, max_tool_calls: int = 25):
        if kind not in KINDS:
            raise ValueError(f"teacher style {kind!r}: needs one of {KINDS}")
        self.task = task
        self.kind = kind
        self.tokenizer = tokenizer
        self.cap = max_tool_calls
        self.plan = Plan.draw(seed, max_tool_calls)
        self.phase = "look"  # "look" → "take" → "finish"
        self.carried = ""  # stateless: the lines to bind again
        self.set_up = False  # persistent: the helpers exist
        self.filling = False  # persistent: fill() exists; stateless: left and denied are carried
        self.turn = 0

    def __call__(self, messages: list[Message]) -> Reply:
        thought = self._read(messages[-1]["content"]) if self.turn else self._word(OPENING)
        code = self._look() if self.phase == "look" else self._take() if self.phase == "take" else "finish()\n"
        if self.turn == self.plan.slip_turn and self.phase != "finish":
            code = self._slip(code)
        self.turn += 1
        text = f"{thought}\n```python\n{code}```"
        if self.tokenizer is None:
            return Reply(text, 0, 0)
        prompt = len(render(messages, self.tokenizer, reply_follows=True).input_ids)
        reply = render([{"role": "assistant", "content": text}], self.tokenizer).labels
        return Reply(text, prompt, sum(label != -100 for label in reply))

    def _word(self, choices: tuple[str, ...]) -> str:
        return self.plan.wording.choice(choices)

    def _read(self, content: str) -> str:
        """Take in the last observation; returns the thought that opens the next reply."""
        observation = json.loads(content)
        output, error = observation["output"], observation["error"]
        if error:
            if name := undefined_name(error):
                return self._word(UNDEFINED).format(name=name)
            return self._word(CAPPED)
        if self.kind == "stateless":
            kept = [line for line in output.splitlines() if " = " in line]
            self.carried = "\n".join(kept) + "\n"
        if self.phase == "look":
            inspected, left = map(int, re.search(r"inspected (\d+) to go (\d+)", output).groups())
            said = f"Inspected {inspected}, to go {left}. "
            if left == 0:
                self.phase = "take"
            return said + self._restoring() + self._word(MORE if left else TAKE)
        calls = int(re.search(r"calls left (\d+)", output).group(1))
        if calls:
            self.phase = "finish"
            return f"Calls left {calls}. " + self._word(DONE)
        self.filling = True
        return "Calls left 0. " + self._restoring() + self._word(AGAIN)

    def _restoring(self) -> str:
        return self._word(RESTORED) + " " if self.kind == "stateless" else ""

    def _slip(self, code: str) -> str:
        """The same block with a natural mistake: a misremembered helper, or records not bound again."""
        if self.kind == "persistent":
            name = "look" if self.phase == "look" else "fill"
            return re.sub(rf"^{name}\(", f"{self._word(MISTYPED[name])}(", code, flags=re.MULTILINE)
        return "".join(line for line in code.splitlines(keepends=True) if not line.startswith("seen = "))

    def _ids(self) -> str:
        return f"ids = json.loads(list_items()){ORDERS[self.plan.order]}\n"

    def _look(self) -> str:
        loop = (
            "for i in [i for i in ids if i not in seen][:{count}]:\n"
            "    if len(seen) == budget:\n"
            "        break\n"
            "    d = json.loads(inspect(i))\n"
            "    seen[i] = (d['weight'], d['value'], d['class'])\n"
        )
        report = "print('inspected', len(seen), 'to go', min(budget, len(ids)) - len(seen))\n"
        constants = f"capacity = {self.task.capacity}\nbudget = {self.task.inspect_budget}\n"
        batch = self.cap if self.plan.overreach and self.turn == 0 else self.plan.batch
        if self.kind == "persistent":
            if self.set_up:
                return f"look({batch})\n"
            self.set_up = True
            body = indent(loop.format(count="count") + report, "    ")
            helper = f"def look(count):\n{body}look({batch})\n"
            return f"import json\n{constants}{self._ids()}seen = {{}}\n{helper}"
        state = self.carried or f"{constants}seen = {{}}\n"
        prints = "print('capacity =', capacity)\nprint('budget =', budget)\nprint('seen =', seen)\n"
        return f"import json\n{state}{self._ids()}{loop.format(count=batch)}{report}{prints}"

    def _take(self) -> str:
        loop = (
            "for i in sorted(seen, key=lambda i: seen[i][1] / seen[i][0], reverse=True):\n"
            "    if count == 0:\n"
            "        break\n"
            "    weight, value, kind = seen[i]\n"
            "    if kind in denied or weight > left:\n"
            "        continue\n"
            "    count -= 1\n"
            "    try:\n"
            "        take_item(i)\n"
            "        left -= weight\n"
            "        seen.pop(i)\n"
            "    except PermissionError:\n"
            "        denied.append(kind)\n"
        )
        report = "print('calls left', count)\nprint('left =', left)\nprint('denied =', denied)\n"
        fresh = "left = capacity\ndenied = []\n"
        if self.kind == "persistent":
            call = f"fill({self.plan.tries})\n"
            if self.filling:
                return call
            self.filling = True
            return f"{fresh}def fill(count):\n    global left\n{indent(loop + report, '    ')}{call}"
        state = self.carried if self.filling else self.carried + fresh
        return f"{state}count = {self.plan.tries}\n{loop}{report}if count == 0:\n    print('seen =', seen)\n"

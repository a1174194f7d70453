"""Who writes CodeAct by rule: one policy, written down in two styles that differ in how state is carried.

The *persistent* style binds records and defines helpers in its first block and only calls them after that. The
*stateless* style prints what it knows at the end of each block and binds it again from that observation at the start of
the next. Blocks after the first open with a comment, the line of the observation that they follow. Both styles take the
same decisions, so their traces on a task are matched pairs. ``Writer`` writes for any ``World`` of things that are
read, then acted on; ``RuleTeacher`` is the writer of Opaque Knapsack, and ``nano.curriculum`` has the scale model's
base practise on many other worlds with the same writer.

The policy: read up to the limit, then act in the world's order and learn from refusals which kinds are refused. It
sees only what the tools show. A block that the cap cut short is written again with a smaller batch. A persistent
writer who finds its names gone runs all of its code so far again, word for word, in one block that ends with the
step that failed: so do the paper's agents (v3, restarts).
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from textwrap import indent

from knapsack.agent import Reply
from knapsack.prompts import Message, render
from knapsack.runs import stream
from knapsack.runtime import KINDS, MAX_TOOL_CALLS, Kind, undefined_name
from knapsack.tasks import Task

# that a writer binds
NAMES = ("ids", "seen", "unread", "tried", "d", "i", "look", "fill", "start", "order", "left", "denied", "error")
ORDERS = ("", "[::-1]", "[::2] + ids[1::2]")  # of the ids, as code
REPORTS = (
    ("inspected", "remaining"),
    ("read", "open"),
    ("known", "missing"),
)  # counts of things read and still to read
BATCH = "BATCH"  # stands for a number in code
SMALLER = (20, 12, 6, 3, 1)  # batches after one that the cap cut short
ALIASES = {"class": "kind"}  # a variable for a field whose name is Python's

OPENING = ("I start with a batch.", "First I read some.", "I list all and read a batch.")
MORE = ("I read more.", "I go on reading.", "Next batch.", "There is more to read.")
ACT = ("Now I choose.", "All is read, so I act.", "I have what I need.")
AGAIN = ("Not everything was tried yet. I go on.", "Some are left to try. I go on.")
DONE = ("All done. I finish.", "Nothing is left to do. I finish.", "Everything was tried. I finish.")
CAPPED = ("Too many calls in one turn. I use a smaller batch.", "That was over the limit, so I take a smaller batch.")
RESTORED = ("I bind the records again.", "I restore the records first.", "I write the records again.")
LOST = tuple(f"NameError: name '{{name}}' is not defined. I run {all} again." for all in ("all my code", "all of it"))
WRONG = ("That was wrong. I correct it.", "A mistake. I write it again.")
SENTENCES = OPENING + MORE + ACT + AGAIN + DONE + CAPPED + RESTORED + LOST + WRONG


@dataclass(frozen=True)
class World:
    """What a writer is told of a task: the words of its tools, and what is to be done.

    ``fields``: of a record, in the order in which they are kept. ``constants``: what the task message states.
    ``limit`` names the constant that bounds the readings; ``order`` is a sort key and ``only`` a condition, as code
    over the record's values {0}, {1}, … and the constants; ``room`` is a constant and the place of the field that
    uses it up (None: one each). With ``refuses``, ``acting`` raises "… not allowed" for kinds, the last field.
    """

    listing: str
    reading: str
    acting: str
    fields: tuple[str, ...]
    constants: dict[str, int | str]
    limit: str
    order: str = ""
    only: str = ""
    room: tuple[str, int | None] | None = None
    refuses: bool = False


@dataclass(frozen=True)
class Plan:
    """The free decisions of one episode, the same for both styles."""

    order: str
    report: tuple[str, str]
    batch: int
    tries: int
    descending: str  # of two ways to sort by the highest number; what is computed is sorted in one way
    overreach: bool  # the first batch asks for more calls than the cap allows
    slip: int | None  # the turn with a mistake
    wording: random.Random

    @classmethod
    def draw(cls, source: random.Random, max_tool_calls: int) -> "Plan":
        return cls(
            order=source.choices(ORDERS, (3, 1, 1))[0],
            report=source.choice(REPORTS),
            batch=max(1, source.choice((22, 24, 24)) * max_tool_calls // 25),
            tries=max(1, source.choice((22, 24)) * max_tool_calls // 25),
            descending=source.choice(("{key}, reverse=True", "-({key})")),
            overreach=source.random() < 0.15,
            slip=source.choice((1, 2, 3)) if source.random() < 0.08 else None,
            wording=random.Random(source.random()),
        )


@dataclass
class Writer:
    """Writes the replies of one episode. ``names``: what it calls its variables, by those of NAMES. Stateless replies
    begin alike whatever they are for, so that a model's slip there does not lead its code astray."""

    world: World
    style: Kind
    plan: Plan
    cap: int = 25
    names: dict[str, str] = field(default_factory=lambda: dict(zip(NAMES, NAMES, strict=True)))

    def __post_init__(self):
        self.phase = "look"  # → "act" → "finish"
        self.counts = {"look": self.plan.batch, "act": self.plan.tries, "finish": 0}  # batches
        if self.plan.overreach:
            self.counts["look"] = self.cap
        self.report = ""  # the last line that tells how far it is; persistent: with the last call and the next
        self.carried = ""  # stateless: the lines to bind again
        self.ran = ""  # persistent: the last block that ran, all a lost name needs
        self.block: Callable[[int], str] = str  # the last block, by its batch
        self.slipped = False
        self.turn = 0

    def reply(self, observation: dict | None) -> str:
        """The next reply, after an observation (None at the start)."""
        error = observation and observation["error"]
        if error:
            thought = self._recover(error)
            code = self.block(self.counts[self.phase])
        else:
            self.ran = self.block(self.counts[self.phase]) if observation else ""
            thought = self._understand(observation["output"]) if observation else self._say(OPENING)
            self.block = self._next()
            code = self.block(self.counts[self.phase])
            written = self._slip(code) if self.turn == self.plan.slip and self.phase != "finish" else code
            self.slipped, code = written != code, written
        self.turn += 1
        return f"{thought}\n```python\n{code}```"

    def _say(self, choices: tuple[str, ...], **more) -> str:
        return self.plan.wording.choice(choices).format(**more)

    def _recover(self, error: str) -> str:
        """Make ``block`` what is to be run after an error; returns the thought."""
        slipped, self.slipped = self.slipped, False
        if slipped:
            return self._say(WRONG)
        name = undefined_name(error)
        if name and self.style == "persistent":
            ran, block = self.ran.rstrip(), self.block
            self.block = lambda count: f"{ran}; {re.sub('^#.*', '', block(count)).lstrip()}"
            return self._say(LOST, name=name)
        for phase, count in self.counts.items():
            self.counts[phase] = next((smaller for smaller in SMALLER if smaller < count), 1)
        if self.style == "persistent":  # batches stand in the helpers: all begins anew
            self.phase = "look"
            self.block = self._helpers()
        return self._say(CAPPED)

    def _understand(self, output: str) -> str:
        """Take in what a block printed; returns the thought that opens the next reply."""
        lines = output.splitlines()
        self.carried = "".join(f"{line}\n" for line in lines if " = " in line)
        self.report = [line for line in lines if " = " not in line][-1]
        said = self.report.split(";")[0]
        restoring = self._say(RESTORED) if self.style == "stateless" else ""
        if self.phase == "look":
            left = int(said.split()[-1])
            self.phase = "look" if left else "act"
            purpose = self._say(MORE if left else ACT)
            return f"Result: {said}. {restoring or purpose}"
        if said == "untried 0":
            self.phase = "finish"
            return f"Result: {said}. {self._say(DONE)}"
        return f"Result: {said}. {restoring or self._say(AGAIN)}"

    def _slip(self, code: str) -> str:
        """The same block with a natural mistake: records that were not bound again, a parenthesis left open, or text
        taken for a record."""
        seen, i, reading = self.names["seen"], self.names["i"], self.world.reading
        mistakes = [re.sub(rf"^{seen} = {{'.*\n", "", code, flags=re.MULTILINE)]
        mistakes += [code.replace(f"json.loads({reading}({i}))", f"{reading}({i})"), code.replace("))\n", ")\n", 1)]
        return self.plan.wording.choice([mistake for mistake in mistakes if mistake != code] or [code])

    def _bound(self) -> str:
        """Code that binds all state for the first time."""
        world, n = self.world, self.names
        code = "".join(f"{name} = {value!r}\n" for name, value in world.constants.items())
        code += f"{n['left']} = {world.room[0]}\n" if world.room else ""
        code += f"{n['denied']} = []\n" if world.refuses else ""
        code += f"{n['seen']} = {{}}\n"
        return code if self.style == "persistent" else f"{code}{n['tried']} = 0\n{n['unread']} = {world.limit}\n"

    def _printed(self) -> str:
        """Code that prints all state so that it can be bound again."""
        world, n = self.world, self.names
        kept = [name for name in world.constants if re.search(rf"\b{name}\b", world.only)]
        kept += [n["left"]] * bool(world.room) + [n["denied"]] * world.refuses + [n["seen"], n["tried"], n["unread"]]
        texts = {name for name, value in world.constants.items() if isinstance(value, str)}
        return "".join(f"print('{name} =', {f'repr({name})' if name in texts else name})\n" for name in kept)

    def _listing(self) -> str:
        ids, order = self.names["ids"], self.plan.order
        listing = f"import json\n{ids} = json.loads({self.world.listing}())"
        return f"{listing}\n{ids} = {ids}{order.replace('ids', ids)}\n" if "+" in order else f"{listing}{order}\n"

    def _reading(self) -> str:
        """Code that reads the next things."""
        n, (have, rest), limit = self.names, self.plan.report, self.world.limit
        ids, seen, unread, d, i = (n[name] for name in ("ids", "seen", "unread", "d", "i"))
        record = ", ".join(f"{d}['{name}']" for name in self.world.fields)
        code = f"    {d} = json.loads({self.world.reading}({i}))\n    {seen}[{i}] = ({record})\n"
        if self.style == "persistent":
            code = f"for {i} in {ids}[{n['start']}:{limit}][:{BATCH}]:\n{code}"
            code += f"print('{have}', len({seen}), '{rest}', {limit} - len({seen}), end='; ')\n"
            more = f"f'{n['look']}({{len({seen})}})' if len({seen}) < {limit} else '{n['fill']}(0)'"
            return f"{code}print(f'{n['look']}({{{n['start']}}});', {more})\n"
        code = f"for {i} in {ids}[len({seen}):][:min({BATCH}, {unread})]:\n{code}    {unread} -= 1\n"
        return f"{code}print('{have}', len({seen}), '{rest}', {unread})\n"

    def _acting(self) -> str:
        """Code that tries the best of the things that were read and not tried yet."""
        world, n = self.world, self.names
        seen, i, order, left, denied, tried = (n[x] for x in ("seen", "i", "order", "left", "denied", "tried"))
        values = [ALIASES.get(name, name) for name in world.fields]
        room, at = world.room or ("", None)
        need = "1" if at is None else values[at]
        best = f"list({seen})"
        if world.order:
            key = world.order.format(*(f"{seen}[{i}][{place}]" for place in range(len(values))))
            descending = "{key}, reverse=True" if " " in world.order else self.plan.descending
            best = f"sorted({seen}, key=lambda {i}: {descending.format(key=key)})"
        if self.style == "persistent":
            code = f"{order} = {best}\nfor {i} in {order}[{n['start']}:][:{BATCH}]:\n"
        else:
            code = f"for {i} in {best}[{tried}:][:{BATCH}]:\n"
        code += f"    {', '.join(values)} = {seen}[{i}]\n"
        skips = [f"not {world.only}".format(*values)] if world.only else []
        skips += [f"{values[-1]} in {denied}"] if world.refuses else []
        skips += [f"{need} > {left}"] if room else []
        code += f"    if {' or '.join(skips)}:\n        continue\n" if skips else ""
        if world.refuses:
            code += f"    try:\n        {world.acting}({i})\n    except Exception as {n['error']}:\n"
            code += f"        if 'not allowed' in str({n['error']}):\n            {denied}.append({values[-1]})\n"
            code += "        continue\n" if room else ""
        else:
            code += f"    {world.acting}({i})\n"
        code += f"    {left} -= {need}\n" if room else ""
        if self.style == "persistent":
            code += f"print('untried', len({order}[{n['start']} + {BATCH}:]), end='; ')\n"
            return f"{code}print(f'{n['fill']}({{{n['start']}}}); {n['fill']}({{{n['start']} + {BATCH}}})')\n"
        return f"{code}{tried} += {BATCH}\nprint('untried', len(list({seen})[{tried}:]))\n"

    def _next(self) -> Callable[[int], str]:
        """The block of the phase, by its batch."""
        if self.phase == "finish":
            return lambda count: "finish()\n"
        looking, bound = self.phase == "look", self.carried or self._bound()
        if self.style == "persistent":
            return self._call() if self.turn else self._helpers()
        head = f"# {self.report}\n" * bool(self.carried) + bound + self._listing() * looking
        code, printed = self._reading() if looking else self._acting(), self._printed()
        return lambda count: head + code.replace(BATCH, str(count)) + printed

    def _helpers(self) -> Callable[[int], str]:
        """The block that binds all state, defines both helpers, and calls the first."""
        n, head = self.names, self._bound() + self._listing()
        acting = (f"global {n['left']}\n" if self.world.room else "") + self._acting()
        acting = acting.replace(BATCH, str(self.counts["act"]))
        for helper, code in (("look", self._reading()), ("fill", acting)):
            head += f"def {n[helper]}({n['start']}):\n{indent(code, '    ')}"
        return lambda count: head.replace(BATCH, str(count)) + f"{n['look']}(0)\n"

    def _call(self) -> Callable[[int], str]:
        """The next call of a helper; who has to run all calls again finds in the comment after which it comes."""
        text = f"# {self.report}\n{self.report.rpartition('; ')[2]}\n"
        return lambda count: text


class RuleTeacher:
    """Replies to a conversation as the policy would; drive it with ``agent.run_alone``.

    ``kind`` is the style, which a study also runs in the runtime of that kind. Best value per weight comes first.
    With a ``tokenizer`` the replies carry token counts of the rendered conversation; without, zeros. The plan is that
    of ``seed`` and the task; batches fit ``max_tool_calls``, and the paper's cap where that is tighter, so that a slack
    cap changes no decision. Raises ValueError for an unknown kind.
    """

    def __init__(self, task: Task, kind: Kind, seed: int, tokenizer=None, max_tool_calls: int = 25):
        if kind not in KINDS:
            raise ValueError(f"teacher style {kind!r}: needs one of {KINDS}")
        world = World(
            *("list_items", "inspect", "take_item", ("weight", "value", "class")),
            constants={"capacity": task.capacity, "budget": task.inspect_budget},
            limit="budget",
            order="{1} / {0}",
            room=("capacity", 0),
            refuses=True,
        )
        max_tool_calls = min(max_tool_calls, MAX_TOOL_CALLS)
        plan = Plan.draw(stream(seed, "teacher", task.seed), max_tool_calls)
        self.writer = Writer(world, kind, plan, max_tool_calls)
        self.tokenizer = tokenizer

    def __call__(self, messages: list[Message]) -> Reply:
        first = len(messages) <= 2
        text = self.writer.reply(None if first else json.loads(messages[-1]["content"]))
        if self.tokenizer is None:
            return Reply(text, 0, 0)
        prompt = len(render(messages, self.tokenizer, reply_follows=True).input_ids)
        reply = render([{"role": "assistant", "content": text}], self.tokenizer).labels
        return Reply(text, prompt, sum(label != -100 for label in reply))

"""Who writes CodeAct by rule: one policy, written down in two styles that differ in how state is carried.

The *persistent* style defines records and helpers once and calls them again. The *stateless* style prints what it
knows at the end of each block and binds it again from that observation at the start of the next. Both take the same
decisions, so their traces on a task are matched pairs. ``Writer`` writes for any ``World`` of things that are read,
then acted on; ``RuleTeacher`` is the writer of Opaque Knapsack, and ``nano.curriculum`` has the scale model's base
practise on many other worlds with the same writer.

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
from knapsack.runtime import KINDS, Kind, undefined_name
from knapsack.tasks import Task

NAMES = ("ids", "seen", "d", "i", "look", "fill", "start", "count", "left", "denied", "error")  # that a writer binds
ORDERS = ("", "[::-1]", "[::2] + ids[1::2]")  # of the ids, as code
REPORTS = (("inspected", "to go"), ("read", "open"), ("known", "missing"))  # counts of things read and still to read
SLICES = ("{ids}[{start}:{limit}][:{count}]", "{ids}[{start}:min({start} + {count}, {limit})]")
SMALLER = (12, 6, 3, 1)  # batches after one that the cap cut short
ALIASES = {"class": "kind"}  # a variable for a field whose name is Python's

OPENING = ("I start with a batch of {things}.", "First I read some {things}.", "I list the {things} and read a batch.")
MORE = ("I read more {things}.", "I go on reading.", "Next batch.", "There is more to read.")
ACT = ("Now I choose the {things}.", "All is read, so I act.", "I have what I need.")
AGAIN = ("Not everything was tried yet. I go on.", "The calls ran out. I go on.")
DONE = ("All done. I finish.", "Nothing is left to do. I finish.", "Everything was tried. I finish.")
CAPPED = ("Too many calls in one turn. I use a smaller batch.", "That was over the limit, so I take a smaller batch.")
RESTORED = ("I bind the records again.", "I restore the records first.", "I write the records again.")
LOST = ("{name} is gone. I run all my code again.", "{name} is not defined here. I run all of it again.")
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

    things: str
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
    part: str  # which of the ids make a batch, as code
    batch: int
    tries: int
    descending: str  # of two ways to sort by the highest
    overreach: bool  # the first batch asks for more calls than the cap allows
    slip: int | None  # the turn with a mistake
    wording: random.Random

    @classmethod
    def draw(cls, source: random.Random, max_tool_calls: int) -> "Plan":
        return cls(
            order=source.choices(ORDERS, (3, 1, 1))[0],
            report=source.choice(REPORTS),
            part=source.choice(SLICES),
            batch=source.randint(max(1, max_tool_calls // 2), max(1, max_tool_calls - 3)),
            tries=source.randint(max(1, max_tool_calls - 5), max_tool_calls),
            descending=source.choice(("{key}, reverse=True", "-({key})")),
            overreach=source.random() < 0.12,
            slip=source.choice((1, 2, 3)) if source.random() < 0.08 else None,
            wording=random.Random(source.random()),
        )


@dataclass
class Writer:
    """Writes the replies of one episode. ``names``: what it calls its variables, by those of NAMES."""

    world: World
    style: Kind
    plan: Plan
    cap: int = 25
    names: dict[str, str] = field(default_factory=lambda: dict(zip(NAMES, NAMES, strict=True)))

    def __post_init__(self):
        self.phase = "look"  # → "act" → "finish"
        self.carried = ""  # stateless: the lines to bind again
        self.helpers: set[str] = set()  # persistent: those that are defined
        self.acted = False  # what acting keeps (room left, refused kinds) exists
        self.known = 0  # things read
        self.ran = ""  # persistent: the last block that ran, all a lost name needs
        self.block: Callable[[int], str] = str  # the last block, by its batch
        self.count = 0  # its batch
        self.slipped = False
        self.turn = 0

    def reply(self, observation: dict | None) -> str:
        """The next reply, after an observation (None at the start)."""
        error = observation and observation["error"]
        if error:
            thought = self._recover(error)
            code = self.block(self.count)
        else:
            self.ran = self.block(self.count) if observation else ""
            thought = self._understand(observation["output"]) if observation else self._say(OPENING)
            steps = {"look": self._look, "act": self._act, "finish": lambda: (lambda count: "finish()\n", 0)}
            self.block, self.count = steps[self.phase]()
            code = self.block(self.count)
            written = self._slip(code) if self.turn == self.plan.slip and self.phase != "finish" else code
            self.slipped, code = written != code, written
        self.turn += 1
        return f"{thought}\n```python\n{code}```"

    def _say(self, choices: tuple[str, ...], **more) -> str:
        return self.plan.wording.choice(choices).format(things=self.world.things, **more)

    def _recover(self, error: str) -> str:
        """Make ``block`` what is to be run after an error; returns the thought."""
        slipped, self.slipped = self.slipped, False
        if slipped:
            return self._say(WRONG)
        name = undefined_name(error)
        if name and self.style == "persistent":
            ran, block = self.ran, self.block
            self.block = lambda count: ran + block(count)
            return self._say(LOST, name=name)
        self.count = next((smaller for smaller in SMALLER if smaller < self.count), 1)
        return self._say(CAPPED)

    def _understand(self, output: str) -> str:
        """Take in what a block printed; returns the thought that opens the next reply."""
        if self.style == "stateless":
            self.carried = "".join(f"{line}\n" for line in output.splitlines() if " = " in line)
        restoring = self._say(RESTORED) + " " if self.style == "stateless" else ""
        if self.phase == "look":
            have, rest = self.plan.report
            found = re.findall(rf"^({have} (\d+) {rest} (\d+))$", output, re.MULTILINE)
            said, self.known, left = found[-1][0], int(found[-1][1]), int(found[-1][2])
            self.phase = "look" if left else "act"
            return f"Result: {said}. " + restoring + self._say(MORE if left else ACT)
        self.acted = True
        calls = int(re.findall(r"^calls left (\d+)$", output, re.MULTILINE)[-1])
        if calls:
            self.phase = "finish"
            return f"Result: calls left {calls}. " + self._say(DONE)
        return "Result: calls left 0. " + restoring + self._say(AGAIN)

    def _slip(self, code: str) -> str:
        """The same block with a natural mistake: records that were not bound again, a parenthesis left open, text
        taken for a record, or a misremembered helper."""
        seen, i, reading = self.names["seen"], self.names["i"], self.world.reading
        mistakes = [re.sub(rf"^{seen} = {{'.*\n", "", code, flags=re.MULTILINE)]
        mistakes += [code.replace(f"json.loads({reading}({i}))", f"{reading}({i})"), code.replace("))\n", ")\n", 1)]
        mistakes += [re.sub(rf"^({self.names['look']}|{self.names['fill']})\(", r"\1_more(", code, flags=re.MULTILINE)]
        return self.plan.wording.choice([mistake for mistake in mistakes if mistake != code] or [code])

    def _constants(self) -> str:
        return "".join(f"{name} = {value!r}\n" for name, value in self.world.constants.items())

    def _printed(self, names: list[str]) -> str:
        """Code that prints the values of ``names`` so that they can be bound again."""
        texts = {name for name, value in self.world.constants.items() if isinstance(value, str)}
        return "".join(f"print('{name} =', {f'repr({name})' if name in texts else name})\n" for name in names)

    def _look(self) -> tuple[Callable[[int], str], int]:
        world, plan, n = self.world, self.plan, self.names
        ids, seen, d, i, limit = n["ids"], n["seen"], n["d"], n["i"], world.limit
        record = ", ".join(f"{d}['{name}']" for name in world.fields)
        listing = f"{ids} = json.loads({world.listing}()){plan.order.replace('ids', ids)}\n"
        if "+" in plan.order:
            listing = f"{ids} = json.loads({world.listing}())\n{ids} = {ids}{plan.order.replace('ids', ids)}\n"

        def loop(start: str, count: str) -> str:
            return (
                f"for {i} in {plan.part.format(ids=ids, start=start, count=count, limit=limit)}:\n"
                f"    {d} = json.loads({world.reading}({i}))\n"
                f"    {seen}[{i}] = ({record})\n"
                f"print('{plan.report[0]}', len({seen}), '{plan.report[1]}', {limit} - len({seen}))\n"
            )

        batch = self.cap if plan.overreach and self.turn == 0 else plan.batch
        if self.style == "stateless":
            state = self.carried or f"{self._constants()}{seen} = {{}}\n"
            prints = self._printed([*world.constants, seen])
            return lambda count: f"import json\n{state}{listing}{loop(f'len({seen})', str(count))}{prints}", batch
        call = f"{n['look']}({self.known}, "
        if "look" in self.helpers:
            return lambda count: f"{call}{count})\n", batch
        self.helpers.add("look")
        helper = f"def {n['look']}({n['start']}, {n['count']}):\n" + indent(loop(n["start"], n["count"]), "    ")
        return lambda count: f"import json\n{self._constants()}{listing}{seen} = {{}}\n{helper}{call}{count})\n", batch

    def _act(self) -> tuple[Callable[[int], str], int]:
        world, n = self.world, self.names
        seen, i, count, left, denied = n["seen"], n["i"], n["count"], n["left"], n["denied"]
        values = [ALIASES.get(name, name) for name in world.fields]
        room, at = world.room or ("", None)
        need = "1" if at is None else values[at]
        order = f"list({seen})"
        if world.order:
            key = world.order.format(*(f"{seen}[{i}][{place}]" for place in range(len(values))))
            order = f"sorted({seen}, key=lambda {i}: {self.plan.descending.format(key=key)})"
        skips = [f"not {world.only}".format(*values)] if world.only else []
        skips += [f"{values[-1]} in {denied}"] if world.refuses else []
        skips += [f"{need} > {left}"] if room else []
        loop = f"for {i} in {order}:\n    if {count} == 0:\n        break\n    {', '.join(values)} = {seen}[{i}]\n"
        loop += f"    if {' or '.join(skips)}:\n        continue\n" if skips else ""
        loop += f"    {count} -= 1\n"
        if world.refuses:
            error = n["error"]
            loop += f"    try:\n        {world.acting}({i})\n    except Exception as {error}:\n"
            loop += f"        if 'not allowed' in str({error}):\n            {denied}.append({values[-1]})\n"
            loop += "            continue\n"
        else:
            loop += f"    {world.acting}({i})\n"
        loop += f"    {left} -= {need}\n" if room else ""
        loop += f"    {seen}.pop({i})\n"
        fresh = (f"{left} = {room}\n" if room else "") + (f"{denied} = []\n" if world.refuses else "")
        report = f"print('calls left', {count})\n"
        report += self._printed([left] * bool(room) + [denied] * world.refuses)
        if self.style == "stateless":
            kept = [name for name in world.constants if re.search(rf"\b{name}\b", world.only)]
            report += self._printed(kept) + f"if {count} == 0:\n    print('{seen} =', {seen})\n"
            state = self.carried + ("" if self.acted else fresh)
            return lambda number: f"{state}{count} = {number}\n{loop}{report}", self.plan.tries
        call = f"{n['fill']}("
        if "fill" in self.helpers:
            return lambda number: f"{call}{number})\n", self.plan.tries
        self.helpers.add("fill")
        outer = f"    global {left}\n" if room else ""
        helper = f"def {n['fill']}({count}):\n{outer}" + indent(loop + report, "    ")
        return lambda number: f"{fresh}{helper}{call}{number})\n", self.plan.tries


class RuleTeacher:
    """Replies to a conversation as the policy would; drive it with ``agent.run_alone``.

    ``kind`` is the style, which a study also runs in the runtime of that kind. Best value per weight comes first.
    With a ``tokenizer`` the replies carry token counts of the rendered conversation; without, zeros. The plan is that
    of ``seed`` and the task; batches fit ``max_tool_calls``. Raises ValueError for an unknown kind.
    """

    def __init__(self, task: Task, kind: Kind, seed: int, tokenizer=None, max_tool_calls: int = 25):
        if kind not in KINDS:
            raise ValueError(f"teacher style {kind!r}: needs one of {KINDS}")
        world = World(
            *("items", "list_items", "inspect", "take_item", ("weight", "value", "class")),
            constants={"capacity": task.capacity, "budget": task.inspect_budget},
            limit="budget",
            order="{1} / {0}",
            room=("capacity", 0),
            refuses=True,
        )
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

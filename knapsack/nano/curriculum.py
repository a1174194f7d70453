"""What the scale model's base practises: copying, and CodeAct on toy tasks that are not Opaque Knapsack.

A toy task has things with two numbers and a letter behind a reading tool, a limit on readings, and a simple goal
(act on those of a letter, on the largest, on those above a threshold). Each episode is really executed, in either
runtime and in either style, style and runtime drawn independently: so the base learns both ways of carrying
state, and recovery after a missing name, without learning which way goes with which runtime. No toy task uses
the knapsack tools ``inspect`` and ``take_item`` or has a capacity.
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from knapsack.prompts import Message, observation_message
from knapsack.runtime import KINDS, Runtime, undefined_name
from knapsack.tasks import pool_id


@dataclass(frozen=True)
class Theme:
    """The names of a toy world."""

    things: str
    listing: str
    reading: str
    acting: str
    first: str
    second: str
    letter: str


THEMES = (
    Theme("boxes", "list_boxes", "open_box", "ship_box", "depth", "pieces", "shelf"),
    Theme("plants", "list_plants", "measure", "water_plant", "height", "age", "bed"),
    Theme("books", "list_books", "look_up", "lend_book", "copies", "pages", "room"),
    Theme("sensors", "list_sensors", "read_sensor", "reset_sensor", "level", "charge", "zone"),
    Theme("letters", "list_letters", "weigh", "post_letter", "grams", "cents", "district"),
    Theme("stones", "list_stones", "examine", "pick_stone", "size", "hardness", "mine"),
    Theme("rooms", "list_rooms", "visit", "book_room", "floor", "seats", "wing"),
    Theme("players", "list_players", "scout", "sign_player", "goals", "games", "team"),
)
GOALS = ("letter", "largest", "above")
THOUGHTS = {
    "start": ("I read the first {things}.", "I start with a batch of {things}.", "First I list the {things}."),
    "more": ("I read more {things}.", "I go on.", "Next batch.", "There is more to read."),
    "act": ("Now I choose the {things}.", "All is read, so I act.", "I have what I need."),
    "done": ("All done.", "I finish.", "Nothing is left to do."),
    "restore": ("I bind the records again.", "I restore the records.", "I write down what I know."),
    "recover": ("{name} is not defined. I define it again.", "{name} is gone, so I write everything again."),
}


class ToyWorld:
    """One toy task and its tools."""

    def __init__(self, source: random.Random, largest: int = 48):
        self.theme = source.choice(THEMES)
        count = max(3, round(3 * (largest / 3) ** source.random()))
        letters = [chr(65 + k) for k in range(source.choice((6, 15, 26)))]
        low, high = source.choice(((20, 100), (50, 500), (20, 500)))
        ids = sorted(pool_id(k) for k in source.sample(range(1024), count))
        self.things = {i: (source.randint(1, low), source.randint(1, high), source.choice(letters)) for i in ids}
        self.limit = source.randint(max(1, count * 2 // 3), count)
        self.goal = source.choice(GOALS)
        self.target = {
            "letter": source.choice([record[2] for record in self.things.values()]),
            "largest": source.randint(1, 9),
            "above": source.randint(1, high),
        }[self.goal]
        self.read: set[str] = set()
        self.acted: list[str] = []
        self.finished = False

    @property
    def tools(self) -> dict:
        return {
            self.theme.listing: lambda: json.dumps(list(self.things)),
            self.theme.reading: self._read,
            self.theme.acting: self._act,
            "finish": self._finish,
        }

    def _read(self, thing: str) -> str:
        if thing not in self.read and len(self.read) >= self.limit:
            raise RuntimeError("nothing more may be read")
        self.read.add(thing)
        first, second, letter = self.things[thing]
        return json.dumps({self.theme.first: first, self.theme.second: second, self.theme.letter: letter})

    def _act(self, thing: str) -> None:
        self.acted.append(thing)

    def _finish(self) -> None:
        self.finished = True

    def opening(self, kind: str) -> list[Message]:
        stay = "Names stay bound between turns." if kind == "persistent" else "Names are gone after each turn."
        theme = self.theme
        goal = {
            "letter": f"{theme.acting} those of {theme.letter} {self.target}",
            "largest": f"{theme.acting} the {self.target} of most {theme.second}",
            "above": f"{theme.acting} those with {theme.second} above {self.target}",
        }[self.goal]
        system = (
            f"Runtime: {kind}. {stay}\nTools: {theme.listing}() {theme.reading}(id) {theme.acting}(id) finish(). "
            "At most 25 calls per turn."
        )
        user = f"{theme.things}: limit {self.limit}, number {len(self.things)}, {goal}."
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]


class ToyStudent:
    """Writes the replies of one toy episode; ``style`` as in ``teachers``, with names drawn per episode."""

    def __init__(self, world: ToyWorld, style: str, source: random.Random):
        self.world, self.style, self.source = world, style, source
        self.known = source.choice(("seen", "known", "notes", "records", "log"))
        self.helper = source.choice(("look", "scan", "step", "go_on", "collect"))
        self.one = source.choice(("i", "x", "key", "name"))
        self.data = source.choice(("d", "r", "data", "found"))
        self.size = source.randint(8, 22)
        self.order = source.choice(("", "", "[::-1]"))
        self.report = source.choice((("read", "to go"), ("done", "left"), ("have", "missing")))
        self.carried = ""
        self.set_up = False
        self.phase = "look"

    def reply(self, last: str | None) -> str:
        thought = self._understand(last)
        code = {"look": self._look, "act": self._act, "done": lambda: "finish()\n"}[self.phase]()
        return f"{thought}\n```python\n{code}```"

    def _say(self, key: str, **names) -> str:
        return self.source.choice(THOUGHTS[key]).format(things=self.world.theme.things, **names)

    def _understand(self, last: str | None) -> str:
        if last is None:
            return self._say("start")
        observation = json.loads(last)
        output = observation["output"]
        if observation["error"]:
            name = undefined_name(observation["error"])
            self.style, self.phase, self.carried = "stateless", "look", ""  # one self-contained block from now on
            return self._say("recover", name=name)
        if self.style == "stateless" and " = " in output:
            self.carried = "".join(f"{line}\n" for line in output.splitlines() if " = " in line)
        if self.phase == "act":
            self.phase = "done"
            return f"{output.splitlines()[0].capitalize()}. {self._say('done')}"
        have, left = map(int, re.search(rf"{self.report[0]} (\d+) {self.report[1]} (\d+)", output).groups())
        self.phase = "look" if left else "act"
        said = f"{self.report[0].capitalize()} {have}, {self.report[1]} {left}. "
        restore = self._say("restore") + " " if self.style == "stateless" else ""
        return said + restore + self._say("more" if left else "act")

    def _constants(self) -> str:
        extra = f"target = {self.world.target!r}\n"
        return f"limit = {self.world.limit}\n{extra}"

    def _look(self) -> str:
        world, known, one, data = self.world, self.known, self.one, self.data
        theme = world.theme
        listing = f"ids = json.loads({theme.listing}()){self.order}\n"
        loop = (
            f"for {one} in [{one} for {one} in ids if {one} not in {known}][:COUNT]:\n"
            f"    if len({known}) == limit:\n        break\n"
            f"    {data} = json.loads({theme.reading}({one}))\n"
            f"    {known}[{one}] = ({data}['{theme.first}'], {data}['{theme.second}'], {data}['{theme.letter}'])\n"
        )
        report = f"print('{self.report[0]}', len({known}), '{self.report[1]}', limit - len({known}))\n"
        if self.style == "persistent":
            if self.set_up:
                return f"{self.helper}({self.size})\n"
            self.set_up = True
            body = "".join(f"    {line}\n" for line in (loop.replace("COUNT", "count") + report).splitlines())
            definition = f"def {self.helper}(count):\n{body}{self.helper}({self.size})\n"
            return f"import json\n{self._constants()}{listing}{known} = {{}}\n{definition}"
        state = self.carried or f"{self._constants()}{known} = {{}}\n"
        target = "repr(target)" if world.goal == "letter" else "target"
        prints = f"print('limit =', limit)\nprint('target =', {target})\n"
        prints += f"print('{known} =', {known})\n"
        return f"import json\n{state}{listing}{loop.replace('COUNT', str(self.size))}{report}{prints}"

    def _act(self) -> str:
        known, one, acting = self.known, self.one, self.world.theme.acting
        chosen = {
            "letter": f"chosen = [{one} for {one} in {known} if {known}[{one}][2] == target]\n",
            "largest": f"chosen = sorted({known}, key=lambda {one}: {known}[{one}][1], reverse=True)[:target]\n",
            "above": f"chosen = [{one} for {one} in {known} if {known}[{one}][1] > target]\n",
        }[self.world.goal]
        loop = f"for {one} in chosen[:24]:\n    {acting}({one})\n"
        state = self.carried if self.style == "stateless" else ""
        return f"{state}{chosen}{loop}print('chosen', len(chosen))\n"


def toy_episode(seed: int, pool, largest: int = 48) -> tuple[list[Message], str, str]:
    """One executed toy episode as (conversation, style, runtime), all drawn from ``seed``."""
    source = random.Random(f"toy {seed}")
    world = ToyWorld(source, largest)
    style, kind = source.choice(KINDS), source.choice(KINDS)
    student = ToyStudent(world, style, source)
    messages = world.opening(kind)
    with Runtime(kind, world.tools, pool=pool) as runtime:
        last = None
        for _ in range(12):
            text = student.reply(last)
            messages.append({"role": "assistant", "content": text})
            observation = runtime.run(re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1))
            if world.finished:
                return messages, style, kind
            messages.append(observation_message(observation, kind))
            last = messages[-1]["content"]
    raise RuntimeError(f"toy episode {seed} did not finish; last observation: {last}")


def copy_exercise(seed: int, words: list[str], longest: int = 60) -> list[Message]:
    """Carry a growing record from observation to code: always the latest one, to the last entry.

    ``words`` are the tokenizer's plain words; some exercises copy a random string of them, and some read numbers
    that a sentence names, so that every word of the vocabulary is known before it is met in a task.
    """
    source = random.Random(f"copy {seed}")
    form = source.random()
    if form < 0.25:
        text = "".join(source.choice(words) for _ in range(source.randint(4, 120)))
        return [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    if form < 0.4:
        return _named_numbers(source, [word.strip() for word in words if word.strip().isidentifier()])
    high, top = source.choice(((20, 100), (50, 500))), source.choice((6, 15, 26))
    count = round(longest ** source.uniform(0.2, 1.0))
    name = source.choice(("seen", "known", "notes", "records", "log"))
    constants = source.sample(("limit", "target", "rest", "total", "size", "quota", "floor"), source.randint(0, 3))
    values = {constant: source.randint(0, 500) for constant in constants}
    records = {
        pool_id(k): (source.randint(1, high[0]), source.randint(1, high[1]), chr(65 + source.randrange(top)))
        for k in source.sample(range(1024), count)
    }
    stages = [*sorted(source.sample(range(1, count), min(count - 1, source.randint(0, 2)))), count]
    messages: list[Message] = []
    for stage in stages:
        shown = dict(list(records.items())[:stage])
        lines = [f"{constant} = {value}" for constant, value in values.items()] + [f"{name} = {shown}"]
        output = f"have {stage}\n" + "\n".join(lines) + "\n"
        messages.append({"role": "user", "content": json.dumps({"output": output, "error": None})})
        code = "\n".join(lines)
        messages.append({"role": "assistant", "content": f"Have {stage}. I restore all.\n```python\n{code}\n```"})
    return messages


def _named_numbers(source: random.Random, names: list[str]) -> list[Message]:
    """Read numbers out of a sentence into assignments, in another order, and repeat them later."""
    values = {name: source.randint(0, 500) for name in source.sample(names, source.randint(2, 6))}
    said = ", ".join(f"{name} {value}" for name, value in values.items())
    messages: list[Message] = []
    for turn in range(source.randint(1, 3)):
        asked = source.sample(list(values), source.randint(1, len(values)))
        told = f"{source.choice(names)}: {said}. " if turn == 0 else ""
        messages.append({"role": "user", "content": told + " ".join(asked)})
        code = "".join(f"{name} = {values[name]}\n" for name in asked)
        messages.append({"role": "assistant", "content": f"{source.choice(names)}.\n```python\n{code}```"})
    return messages


def conversations(first_seed: int, count: int, words: list[str], pool, toys: float) -> Iterator[list[Message]]:
    """``count`` exercises, a share ``toys`` of them toy episodes."""
    for seed in range(first_seed, first_seed + count):
        if random.Random(f"which {seed}").random() < toys:
            yield toy_episode(seed, pool)[0]
        else:
            yield copy_exercise(seed, words)

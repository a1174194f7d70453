"""What the scale model's base practises: CodeAct in toy worlds that are not Opaque Knapsack, and copying.

A toy world has things with numbers and a letter behind a reading tool, a limit on readings, and a goal. All words in
it are drawn anew for each episode from WORDS: tools, fields, constants, and the variables and helpers that the writer
binds; so that whatever is specific has to be copied from the context. ``teacher.Writer`` writes the code,
style and runtime are drawn independently, and each episode is really executed: so the base learns both ways of
carrying state, and the way on from errors, without learning which way goes with which runtime.

No toy world sorts by a ratio: Opaque Knapsack, whose words may occur here in any role, remains one more unseen world.
"""

import json
import keyword
import random
import re
from collections.abc import Generator, Iterator
from dataclasses import replace

from knapsack.agent import Reply, code_block, run_alone
from knapsack.prompts import (
    COMPACT,
    RUNTIME_COMPACT,
    TASK_COMPACT,
    Message,
    message,
    observation_message,
    protocol_error_message,
)
from knapsack.runs import stream
from knapsack.runtime import KINDS, Kind, Observation, Runtime
from knapsack.tasks import pool_id
from knapsack.teacher import LOST, NAMES, Plan, World, Writer

_NOUNS = """
apple arrow badge barrel basket beacon bell bench blade block board bolt book bottle box brick bridge bucket cabin
cable card cart case cell chair chart chest clip coin cup desk door drawer drum engine fabric farm fence field file
flag flask flower folder frame garden gate glass grain guest hall harbor hat helmet hook island jar jewel kite
knife lamp leaf letter lock log mask medal meter mirror mushroom nail needle nest notebook orbit paint panel
parcel path pearl pen photo pillar pipe planet plant plate player pocket pond poster pump rack radio ring river robe
rocket room rope sail scarf sensor shell ship shop signal song spoon stamp star station stone tank tent ticket tool
torch tower train tree tunnel vase vessel wagon wheel window
"""
_VERBS = """
accept adopt answer arrange assign attach board bring buy call carry catch check choose claim clean collect deliver
dig draw drop empty enter examine fetch fill fix fold gather grab guide handle hold invite join keep launch
lend lift load look mark measure mend move note offer order pack pick place plan pour press probe pull push
rent repair reserve rescue reset sample save scan scout sell send serve ship sign sort stack store study survey take
teach test trade treat visit wash water weigh wrap
"""
_FIELDS = """
age area balance budget capacity charge class color cost count degree demand density depth distance duration effort
energy fare floor force goal grade grams group growth hardness heat height impact index length level limit load mass
mine number output pages pieces power pressure price profit quality quota rank rate rating reach region reward
risk room row score seats section shade share size speed strength supply target team tempo total usage value
volume wage ward weight width wing worth zone
"""
_OTHER = """
bag base batch book chosen data dd denied done entry facts found go had have hits item items known last left
list_items look memo next_one notes one part pool qq record records rest result rows seen skipped slot step
stock tally taken tried used v w walk x y z k i d e b u ids fill start error item_id inspect take_item
"""
_VERB, _NOUN = _VERBS.split(), _NOUNS.split()
_PAIRS = random.Random("pairs")
_TALE = sorted({*_NOUN, *_VERB, *(f"{_PAIRS.choice(_VERB)}_{_PAIRS.choice(_NOUN)}" for _ in range(220))})
UNSEEN = tuple(_TALE[::8])  # words that only the probe's worlds use
WORDS = tuple(dict.fromkeys([*_TALE, *_FIELDS.split(), *_OTHER.split()]))
PRACTISED = tuple(word for word in WORDS if word not in UNSEEN)
ORDERS = ("", "{0}", "{1}", "{0} + {1}", "{0} - {1}", "{1} - {0}", "{1} + {0}")  # keys to sort by
CAPS = (25, 25, 25, 40, 60, 80, 100)
RANGES = ((20, 100), (50, 500), (20, 500))  # of numbers


class ToyWorld:
    """One toy task and its tools. ``all_at_once``: with a condition, a room to fill and refused kinds, as in no
    exercise."""

    def __init__(self, source: random.Random, words: tuple[str, ...], largest: int, all_at_once: bool):
        count = round(3 * (largest / 3) ** source.random() ** 0.6)
        letters = [chr(65 + k) for k in range(source.choice((4, 6, 15, 26)))]
        low, high = source.choice(RANGES)
        ids = sorted(pool_id(k) for k in source.sample(range(1024), count))
        self.things = {i: (source.randint(1, low), source.randint(1, high), source.choice(letters)) for i in ids}
        numbers = source.choice((1, 2, 2, 2))
        drawn = iter(source.sample([word for word in words if not keyword.iskeyword(word)], 7 + numbers + len(NAMES)))
        tools = [next(drawn) for _ in range(3)]
        fields = [next(drawn) for _ in range(numbers + 1)]
        if source.random() < 0.2 and words is PRACTISED:
            fields[-1] = "class"  # a name that no variable can have
        limit, room, wanted = (next(drawn) for _ in range(3))
        constants: dict[str, int | str] = {limit: source.randint(max(1, count * 2 // 3), count)}
        order = source.choice([order for order in ORDERS if numbers == 2 or "{1}" not in order])
        fits = source.choice((None, None, *range(numbers))) if source.random() < 0.5 or all_at_once else ""
        said = [f"highest {order.format(*fields)} first"] if order else []
        if fits != "":
            sizes = sum(record[fits or 0] if fits is not None else 1 for record in self.things.values())
            constants[room] = max(1, min(500, round(sizes * source.uniform(0.1, 0.6))))
            said.append(f"up to {room} {fields[fits] if fits is not None else 'of them'}")
        only = ""
        if source.random() < 0.4 or all_at_once:
            if source.random() < 0.5:
                constants[wanted] = source.choice([record[2] for record in self.things.values()])
                only = f"{{{numbers}}} == {wanted}"
            else:
                constants[wanted] = source.randint(1, low // 2)
                only = f"{{0}} > {wanted}"
            said.append(f"only {only.format(*fields)}")
        refuses = all_at_once or (source.random() < 0.5 and not (fits != "" and only))
        self.refused = set(source.sample(letters, source.randint(1, len(letters) - 1))) if refuses else set()
        said += [f"some {fields[-1]} are refused"] if refuses else []
        names = list(constants)
        source.shuffle(names)
        usual = source.random() < 0.3 and not set(NAMES) & {*tools, *fields, limit, room, wanted}
        self.names = dict(zip(NAMES, NAMES if usual else drawn, strict=False))
        self.world = World(
            *(*tools, tuple(fields), {name: constants[name] for name in names}, limit),
            order=order,
            only=only,
            room=(room, fits) if fits != "" else None,
            refuses=refuses,
        )
        self.goal = "; ".join(said) or "all"
        self.letters = f"{letters[0]} to {letters[-1]}"
        self.cap = source.choice(CAPS)
        self.read: set[str] = set()
        self.acted: list[str] = []
        self.finished = False

    @property
    def tools(self) -> dict:
        world = self.world
        tools = {world.listing: self._list, world.reading: self._read, world.acting: self._act}
        return tools | {"finish": self._finish}

    def _list(self) -> str:
        return json.dumps(list(self.things))

    def _read(self, thing: str) -> str:
        if thing not in self.read and len(self.read) >= self.world.constants[self.world.limit]:
            raise RuntimeError(f"limit exceeded: {len(self.read)} are known")
        self.read.add(thing)
        *numbers, letter = self.things[thing]
        return json.dumps(dict(zip(self.world.fields, [*numbers[: len(self.world.fields) - 1], letter], strict=True)))

    def _act(self, thing: str) -> None:
        if self.things[thing][2] in self.refused:
            raise PermissionError(f"{self.things[thing][2]!r} is not allowed")
        if thing in self.acted and self.world.refuses and not self.world.room:
            raise ValueError(f"done already: {thing}")
        if thing not in self.acted:
            self.acted.append(thing)

    def _finish(self) -> None:
        self.finished = True

    def opening(self, kind: Kind) -> list[Message]:
        world = self.world
        tools = {"listing": world.listing, "reading": world.reading, "acting": world.acting}
        system = COMPACT.format(
            runtime=f"{RUNTIME_COMPACT[kind]}\n", fields=", ".join(world.fields), cap=self.cap, **tools
        )
        user = TASK_COMPACT.format(
            what="Toy",
            kinds=f"{world.fields[-1]} {self.letters}",
            limit=world.limit,
            goal=self.goal,
            facts="\n".join(f"{name} = {value!r}" for name, value in world.constants.items()),
            **tools,
        )
        return [message("system", system), message("user", user)]


def toy(seed: int, words: tuple[str, ...] = PRACTISED, largest: int = 44, all_at_once: bool = False):
    """A toy world and a plan for its writer, all drawn from ``seed``."""
    source = stream(seed, "toy")
    world = ToyWorld(source, words, largest, all_at_once)
    plan = Plan.draw(source, 25)
    batch, tries = source.sample(range(3, 25), 2)
    plan = replace(plan, batch=batch, tries=tries)
    if plan.overreach:
        world.cap = source.randint(8, 25)
    plan = replace(plan, slip=source.choice((0, 1, 2, 3)) if source.random() < 0.2 else None)
    if source.random() < 0.5:
        plan = replace(plan, report=tuple(source.sample(words, 2)))
    return world, plan


def play(world: ToyWorld, kind: Kind, pool, most_turns: int = 10) -> Generator[list[Message], Reply, list[Message]]:
    """One episode in a toy world, to be driven as ``agent.episode`` is; returns the conversation."""
    messages = world.opening(kind)
    with Runtime(kind, world.tools, world.cap, pool=pool) as runtime:
        for _ in range(most_turns):
            reply = yield list(messages)
            messages.append(message("assistant", reply.text))
            code, problem = code_block(reply.text)
            if code is None:
                runtime.skip_turn()
                messages.append(protocol_error_message(problem, kind, ()))
            else:
                messages.append(observation_message(runtime.run(code), kind))
            if world.finished:
                break
    return messages


def answer(writer: Writer, messages: list[Message]) -> Reply:
    """The writer's reply to a conversation."""
    return Reply(writer.reply(None if len(messages) == 2 else json.loads(messages[-1]["content"])), 0, 0)


def toy_episode(seed: int, pool) -> tuple[list[Message], str, str]:
    """One executed toy episode as (conversation, style, runtime), all drawn from ``seed``.

    A message with "slip" holds a mistake: to be read, not to be imitated.
    """
    world, plan = toy(seed)
    source = stream(seed, "regime")
    style, kind = source.choice(KINDS), source.choices(KINDS, (2, 3))[0]
    writer, slips = Writer(world.world, style, plan, min(world.cap, 25), world.names), []

    def reply(messages: list[Message]) -> Reply:
        written = answer(writer, messages)
        slips.extend([len(messages)] * writer.slipped)
        return written

    messages = run_alone(play(world, kind, pool), reply)
    for place in slips:
        messages[place]["slip"] = "yes"
    return messages[:-1], style, kind


LINES = (
    "{a} = {n}", "{a} = {b}", "{a} = [{b}, {c}]", "{a} = {b}[{n}]", "{a} += {b} * {n}", "{a}.append({b})",
    "{a} = [{b} for {b} in {c} if {b} not in {d}]", "for {a} in {b}[:{n}]:\n    {c}[{a}] = {d}({a})",
    "for {a} in {b}:\n    if {a} == {n}:\n        break\n    {c}({a})", "def {a}({b}, {c}):\n    return {b} + {c}",
    "def {a}({b}):\n    global {c}\n    {c} -= {b}\n    print('{d} =', {c})", "print('{a}', len({b}), '{c}', {d})",
    "if {a} > {n} or {b} in {c}:\n    {d} = {a}", "{a} = sorted({b}, key=lambda {c}: {d}[{c}][{m}])",
    "{a}, {b} = {c}[{d}]", "try:\n    {a}({b})\nexcept Exception as {c}:\n    {d}.append({b})",
    "while {a} < {n}:\n    {a} += {m}", "{a} = {b}['{c}'] - {d}['{c}']", "{a}.pop({b})", "{a} = json.loads({b}({c}))",
    "{a}[{b}] = ({c}['{d}'], {c}['{e}'])", "{a}({b}, {n})", "{a}({n}, {m})", "import {a}", "{a} = {{}}\n{b} = []",
    "{a} = {b} / {c} - {n} * {d}",
)  # fmt: skip


def random_code(source: random.Random, words: tuple[str, ...], lines: int) -> str:
    """Code that says nothing: to be copied, never run. Few words, so that lines resemble each other."""
    few = source.sample(words, source.randint(6, 24))
    code = []
    for _ in range(lines):
        a, b, c, d, e = source.sample(few, 5)
        line = source.choice(LINES).format(a=a, b=b, c=c, d=d, e=e, n=source.randint(0, 60), m=source.randint(0, 30))
        code.append(indented(line) if source.random() < 0.25 else line)
    return "\n".join(code) + "\n"


def indented(text: str) -> str:
    return "    " + text.replace("\n", "\n    ")


def replay_exercise(seed: int) -> list[Message]:
    """Blocks of random code: after a lost name, all that ran and the block that failed are written again, in one."""
    source = stream(seed, "replay")
    kind, words = "stateless", PRACTISED
    messages = [message("system", RUNTIME_COMPACT[kind]), message("user", " ".join(source.sample(words, 3)))]
    longest = source.choice((1, 2, 4, 8, 16, 24))
    ran = ""

    def write(thought: str, code: str, error: str | None = None, output: str = "") -> None:
        messages.append(message("assistant", f"{thought}\n```python\n{code}```"))
        bound = tuple(sorted(source.sample(words, source.randint(0, 6))))
        seen = Observation(output, *(error.split(": ", 1) if error else (None, None)), last_step_globals=bound)
        messages.append(observation_message(seen, kind))

    for number in range(source.randint(2, 8)):
        code = random_code(source, words, source.randint(1, longest))
        words_in = re.findall(r"\b[a-z_]{3,}\b", code) or ["x"]
        lost, shown = source.choice(words_in), " ".join(source.sample(words, 2)) + f" {source.randint(0, 60)}\n"
        if number == 0:
            write(f"I write {code.split()[0]}.", code, output=shown)
        else:
            comment = f"# {ran.splitlines()[-1].strip()}; {code.splitlines()[0].strip()}\n"  # what follows what
            write("I go on.", comment + code, f"NameError: name '{lost}' is not defined")
            messages[-2]["slip"] = "yes"  # random: nothing to be learned from it
            code = f"{ran.rstrip()}; {code.lstrip()}"
            write(source.choice(LOST).format(name=lost), code, output=shown)
            if sum(len(m["content"]) for m in messages) > 9000:
                break
        ran = code
    messages[2]["slip"] = "yes"
    return messages[:-1]


def copy_exercise(seed: int, longest: int = 60) -> list[Message]:
    """Carry a growing record from observation to code, always the latest one, to its last entry; or words."""
    source = stream(seed, "copy")
    if source.random() < 0.15:
        text = " ".join(source.choice(PRACTISED) for _ in range(source.randint(4, 100)))
        return [message("user", text), message("assistant", text)]
    high, letters = source.choice(RANGES), source.choice((3, 15, 26))
    count = max(3, round(longest ** source.uniform(0.3, 1.0)))
    name, *constants = source.sample(PRACTISED, source.randint(1, 4))
    have, rest = source.sample(PRACTISED, 2)
    values = {constant: source.randint(0, 500) for constant in constants if constant != "class"}
    records = {
        pool_id(k): (source.randint(1, high[0]), source.randint(1, high[1]), chr(65 + source.randrange(letters)))
        for k in sorted(source.sample(range(1024), count), key=pool_id)
    }
    stages = [*sorted(source.sample(range(1, count), min(count - 1, source.randint(0, 3)))), count]
    kept = source.choice((1.0, 1.0, 0.8))  # share of entries that a stage has: what followed what last is what counts
    code = "import json\n" * (source.random() < 0.5) + random_code(source, PRACTISED, source.randint(0, 5))

    def lines(shown: dict, share: float = 0.6) -> str:
        bound = "".join(f"{constant} = {value}\n" for constant, value in values.items() if source.random() < share)
        return f"{bound}{name} = {shown}\n"

    first = message("assistant", f"```python\n{lines({}, 1)}{code}```") | {"slip": "yes"}
    messages = [message("user", f"{name} {have} {rest}"), first]
    for stage in stages:
        bound = lines({i: r for i, r in list(records.items())[:stage] if source.random() < kept})
        result = f"{have} {stage} {rest} {count - stage}"
        messages.append(observation_message(Observation(f"{result}\n{bound}"), source.choice(KINDS)))
        reply = f"Result: {result}. I restore the records first.\n```python\n# {result}\n{bound}{code}```"
        messages.append(message("assistant", reply))
    return messages


def conversations(first_seed: int, count: int, pool, shares: tuple[float, float]) -> Iterator[list[Message]]:
    """``count`` exercises: ``shares`` of them toy episodes and replays of code, the rest copying of records."""
    toys, replays = shares
    for seed in range(first_seed, first_seed + count):
        which = stream(seed, "which").random()
        if which < toys:
            yield toy_episode(seed, pool)[0]
        elif which < toys + replays:
            yield replay_exercise(seed)
        else:
            yield copy_exercise(seed)

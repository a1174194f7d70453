"""Every text that an agent reads, and the one function that renders a conversation for training and inference.

Both runtimes get the same texts except for the paragraph that states the runtime and the worked example that
fits it. Two lengths exist: "full" for language models, "compact" for the scale model, whose context is short.
"""

import json
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from knapsack.chat_template import as_text, template_of
from knapsack.runtime import Kind, Observation, told
from knapsack.tasks import Task

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
Detail = Literal["full", "compact"]
DETAILS: tuple[Detail, ...] = ("full", "compact")

NO_CODE = "ProtocolError: the reply holds no python code block; write exactly one"
MANY_CODE = "ProtocolError: the reply holds {count} code blocks; write exactly one"
# What begins a control token of some model. Behind "<": "|" (ChatML, Llama 3, Phi), its wide form (DeepSeek), a name up
# to ">" (<s>, </s>, <end_of_turn>). Behind "[": Mistral's and GLM's names.
NAMES = "INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_[A-Z]+|ARGS|CALL_ID|IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|THINK"
NAMES += "|PREFIX|MIDDLE|SUFFIX|BOS|EOS|PAD|UNK|CLS|SEP|g?MASK|sMASK"
CONTROL = re.compile(rf"<(?=[|｜]|/?[\w.-]+>)|\[(?=/?(?:{NAMES})\])")
CONTROL_IN_REPLY = re.compile(rf"(?!</?think>)(?:{CONTROL.pattern})")  # chat templates of servers cut old thoughts out
CARRIED = "the tool call limit cut this turn short: its names stay bound for the next turn, and only for it"

_RUNTIME_FULL = {
    "persistent": """Runtime: persistent.
Names that a code block binds (variables, functions, imports) stay bound in all later turns. Define helpers and
records once, then call and update them; do not write them again.""",
    "stateless": """Runtime: stateless.
Each code block starts with an empty namespace: names from earlier turns are gone. Print what a later turn needs,
and bind it again from the last observation at the start of each block.""",
}
RUNTIME_COMPACT = {
    "persistent": "Runtime: persistent. Names stay bound between turns.",
    "stateless": "Runtime: stateless. Names are gone after each turn.",
}
SEEN = "the output, the error if there was one, and the state of the runtime"
SEEN_UNTOLD = "the output, and the error if there was one"

_EXAMPLE = {
    "persistent": """Example (another task: add up the readings of meters, two a turn)
Assistant: I keep the readings in a dict and define a helper that reads the next two.
```python
readings = {}
def read_next(meters):
    for meter in [m for m in meters if m not in readings][:2]:
        readings[meter] = read(meter)
    print(len(readings), sum(readings.values()))
read_next(["m1", "m2", "m3"])
```
Observation: {"output": "2 17\\n", "error": null, ...}
Assistant: The helper and the readings are still bound, so I call it again.
```python
read_next(["m1", "m2", "m3"])
```""",
    "stateless": """Example (another task: add up the readings of meters, two a turn)
Assistant: I read two meters and print the readings, because the next block starts empty.
```python
readings = {}
for meter in [m for m in ["m1", "m2", "m3"] if m not in readings][:2]:
    readings[meter] = read(meter)
print("readings =", readings)
```
Observation: {"output": "readings = {'m1': 8, 'm2': 9}\\n", "error": null, ...}
Assistant: I bind the readings again from the observation and read on.
```python
readings = {'m1': 8, 'm2': 9}
for meter in [m for m in ["m1", "m2", "m3"] if m not in readings][:2]:
    readings[meter] = read(meter)
print("readings =", readings)
```""",
}

_SYSTEM_FULL = """You solve a task by writing Python. In each turn, say in one or two sentences what you do next, then
write exactly one fenced code block (```python ... ```). It is executed, and what it prints comes back to you as a
JSON observation with {seen}. Only printed output is
visible. Tools are plain functions that exist only inside code blocks. When the task is done, call finish() in a
code block.

{runtime}Tools (at most {cap} calls per turn; one more raises an error that ends the block):
def list_items() -> str
    JSON list of all item ids.
def inspect(item_id: str) -> str
    JSON object with exactly the keys "class" (str), "value" (int) and "weight" (int); parse it with json.loads.
    A new item past the inspection budget raises RuntimeError; looking again at an inspected item is free.
def take_item(item_id: str) -> None
    Puts the item into the knapsack for good. Raises PermissionError if its class is not allowed, RuntimeError if
    the capacity would be exceeded, ValueError if the id is unknown or the item is taken already; nothing changes then.
def finish() -> None
    Ends the episode.{example}"""

COMPACT = (
    "{runtime}Tools: {listing}() {reading}(id) {acting}(id) finish(). {reading} shows {fields}. "
    "At most {cap} calls per turn."
)
_TOOLS_COMPACT = {
    "listing": "list_items",
    "reading": "inspect",
    "acting": "take_item",
    "fields": "weight, value, class",
}

_TASK_FULL = """Opaque Knapsack: choose items so that their total value is as large as possible and their total weight
stays within the capacity. Weights, values and classes are hidden until you inspect an item.

- capacity: {capacity}
- inspection budget (distinct items): {budget}
- classes that occur: {classes}. Only some of them are allowed; a refused take_item tells that a class is not.

Inspect before you take, use the budget well, fill the capacity with the best allowed items, then call finish()."""

TASK_COMPACT = """{what}, {kinds}: {reading} up to {limit}, {acting} {goal}.
{facts}"""


def message(role: str, content: str) -> Message:
    """A message of a conversation, in which nothing acts as a control token of whatever model reads it.

    A space is put into what a chat template or tokenizer could take for one: ``<|im_end|>`` becomes ``< |im_end|>``,
    ``[INST]`` becomes ``[ INST]``. Only ``<think>`` may stay, in replies.
    """
    return {"role": role, "content": (CONTROL_IN_REPLY if role == "assistant" else CONTROL).sub(r"\g<0> ", content)}


def opening(task: Task, kind: Kind, max_tool_calls: int, detail: Detail = "full") -> list[Message]:
    """The system and task messages that start an episode, with the runtime that is ``told``. Untold, they lack all that
    tells a runtime, the worked example too."""
    said = told(kind)
    if detail not in DETAILS:
        raise ValueError(f"prompt detail {detail!r}: needs one of {DETAILS}")
    facts = {"capacity": task.capacity, "budget": task.inspect_budget}
    if detail == "full":
        parts = {"runtime": "", "example": "", "seen": SEEN_UNTOLD}
        if said:
            parts = {"runtime": f"{_RUNTIME_FULL[said]}\n\n", "example": f"\n\n{_EXAMPLE[said]}", "seen": SEEN}
        system = _SYSTEM_FULL.format(cap=max_tool_calls, **parts)
        user = _TASK_FULL.format(classes=", ".join(task.class_names), **facts)
    else:
        runtime = f"{RUNTIME_COMPACT[said]}\n" if said else ""
        system = COMPACT.format(runtime=runtime, cap=max_tool_calls, **_TOOLS_COMPACT)
        user = TASK_COMPACT.format(
            what="Knapsack of most value",
            kinds=f"class {task.class_names[0]} to {task.class_names[-1]}",
            limit="budget",
            goal="up to capacity weight; some class are refused",
            facts="\n".join(f"{name} = {value}" for name, value in facts.items()),
            **_TOOLS_COMPACT,
        )
    return [message("system", system), message("user", user)]


def observation_message(observation: Observation, kind: Kind) -> Message:
    """What the agent sees after a turn: output, error, and the runtime's state (paper, section 3).

    The two carry-over kinds look stateless; the announced one says which names the cap left for one more turn. A false
    state has the names that the runtime told would keep; untold, there is no state.
    """
    said, active = told(kind), observation.active_globals
    announced = kind == "carry-over-announced" and active
    if kind == "stateless-false":
        active = observation.last_step_globals
    elif kind in ("carry-over", "persistent-false"):
        active = ()
    content = {"output": observation.output, "error": observation.error}
    if said:
        content["runtime_state"] = {
            "runtime": said,
            "active_globals": list(active),
            "last_step_globals": list(observation.last_step_globals),
        }
    if announced:
        content["runtime_state"]["note"] = CARRIED
    return message("user", json.dumps(content, ensure_ascii=False))


def protocol_error_message(text: str, kind: Kind, active_globals: tuple[str, ...]) -> Message:
    """What the agent sees after a reply without exactly one code block: an observation with the error ``text``."""
    return observation_message(Observation(output="", error_type=text, active_globals=active_globals), kind)


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens. ``labels[i]`` is ``input_ids[i]`` where the assistant wrote it, else -100."""

    input_ids: list[int]
    labels: list[int]


def render(messages: list[Message], tokenizer, reply_follows: bool = False) -> Rendered:
    """Tokens of a conversation as ``tokenizer``'s model reads it (see ``chat_template``).

    Used for training rows (every reply with its end token is labelled) and, with ``reply_follows=True``, for
    inference, where the text ends right before the reply. A training row begins with exactly the tokens of each of
    its inference prompts: the text is cut before and after each reply, and each part is split into tokens by itself.
    Nothing inside a message acts as a control token, wherever the conversation comes from.

    Raises ValueError if no supported template fits, jinja2.TemplateError for a system message that stands alone where
    the model has no system role.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    safe = [{part: as_text(text, tokenizer) for part, text in message.items()} for message in messages]
    options = {"chat_template": template_of(tokenizer).jinja, "add_generation_prompt": reply_follows}
    (text,), (replies,) = render_jinja_template([safe], return_assistant_tokens_mask=True, **options)
    input_ids: list[int] = []
    labels: list[int] = []
    places = [0, *(place for reply in replies for place in reply), len(text)]
    for number, (start, end) in enumerate(pairwise(places)):
        part = tokenizer(text[start:end], add_special_tokens=False, verbose=False)["input_ids"]
        input_ids += part
        labels += part if number % 2 else [-100] * len(part)
    return Rendered(input_ids, labels)

"""How a conversation is written for each supported family of chat models, as tokens and as a chat template.

The text is the same in training and at every inference turn, which the templates shipped with models do not promise.
Ours differs from theirs in this:

* qwen3, the hybrid models with thinking off: the empty think block stands before EVERY reply. Theirs prompts it at
  every turn, but writes it into the history only for the last reply, or for none.
* llama-3: no lines about dates and tools in front of the system text, and contents keep their outer white space.
* mistral: the text of version 3 of its tokenizer. There is no system role; theirs puts the system text in front of
  the LAST user message, so that it moves with every turn; here it stays in front of the first.
* chatml: no system message is made up where there is none (Qwen2.5 does), and thoughts that a reply holds stay in it.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise

_PROBE = [{"role": "user", "content": "a"}]
_GAP = "\n\n"  # between system and user text that share a message
_ALONE = "this model has no system role: a system message must stand before a user message"


@dataclass(frozen=True)
class Template:
    """What stands around the contents of a conversation; in these texts, each of ``controls`` is one token, set by id.

    A user or system message is ``header`` (with the role for "{role}"), content, ``closing``. An assistant message is
    ``reply`` (where an inference prompt ends), content, ``end`` (the token by which the model ends its reply),
    ``after``. ``lead`` is written together with each content: a space where words begin with one. Without a
    ``system_role``, system text and an empty line go in front of the user message that follows.
    """

    name: str
    controls: tuple[str, ...]
    opening: str
    header: str
    closing: str
    reply: str
    end: str
    after: str = ""
    lead: str = ""
    system_role: bool = True

    def arrange(self, messages: list[dict]) -> list[dict]:
        """``messages`` in roles that the template has.

        Raises ValueError if it has no system role and a system message does not stand before a user message.
        """
        if self.system_role:
            return messages
        arranged, held = [], None
        for message in messages:
            if held is not None:
                if message["role"] != "user":
                    break
                message = {"role": "user", "content": held + _GAP + message["content"]}
                held = None
            if message["role"] == "system":
                held = message["content"]
            else:
                arranged.append(message)
        if held is not None:
            raise ValueError(_ALONE)
        return arranged

    def jinja(self) -> str:
        """A chat template for servers (``vllm serve --chat-template``) and transformers that writes this text.

        It ignores ``enable_thinking``. A server splits the whole text into tokens, so control tokens inside contents
        act there, and white space that begins a content may be joined to a line break before it.
        """
        role, content, quoted = "message['role']", "message['content']", json.dumps

        def put(*expressions: str) -> str:
            return "{{ " + " ~ ".join(expressions) + " }}"

        header = f" ~ {role} ~ ".join(quoted(part) for part in self.header.split("{role}"))
        held = [] if self.system_role else ["held.text"]
        message = f"{{% if {role} == 'assistant' %}}"
        message += put(quoted(self.reply + self.lead), content, quoted(self.end + self.after)) + "{% else %}"
        message += put(header, quoted(self.lead), *held, content, quoted(self.closing)) + "{% endif %}"
        start = put(quoted(self.opening))
        if not self.system_role:
            start += "{% set held = namespace(text='') %}"
            refuse = put(f"raise_exception({quoted(_ALONE)})")
            message = (
                f"{{% if {role} == 'system' %}}"
                f"{{% if loop.last or loop.nextitem['role'] != 'user' %}}{refuse}{{% endif %}}"
                f"{{% set held.text = {content} ~ {quoted(_GAP)} %}}"
                f"{{% else %}}{message}{{% set held.text = '' %}}{{% endif %}}"
            )
        reply = f"{{% if add_generation_prompt %}}{put(quoted(self.reply))}{{% endif %}}"
        return f"{start}{{% for message in messages %}}{message}{{% endfor %}}{reply}"


_CHATML = {
    "opening": "",
    "header": "<|im_start|>{role}\n",
    "closing": "<|im_end|>\n",
    "end": "<|im_end|>",
    "after": "\n",
}
# In the order in which a tokenizer without a chat template is tried.
TEMPLATES = {
    template.name: template
    for template in (
        Template("chatml", ("<|im_start|>", "<|im_end|>"), reply="<|im_start|>assistant\n", **_CHATML),
        Template(
            "qwen3",
            ("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
            reply="<|im_start|>assistant\n<think>\n\n</think>\n\n",
            **_CHATML,
        ),
        Template(
            "llama-3",
            ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            opening="<|begin_of_text|>",
            header="<|start_header_id|>{role}<|end_header_id|>\n\n",
            closing="<|eot_id|>",
            reply="<|start_header_id|>assistant<|end_header_id|>\n\n",
            end="<|eot_id|>",
        ),
        Template(
            "mistral",
            ("<s>", "[INST]", "[/INST]", "</s>"),
            opening="<s>",
            header="[INST]",
            closing="[/INST]",
            reply="",
            end="</s>",
            lead=" ",
            system_role=False,
        ),
    )
}


@dataclass(frozen=True)
class Encoder:
    """``template`` in the tokens of one tokenizer.

    ``plain``: the tokens of a text, none of which is a control token. ``marks``: those of a text of the template,
    its control tokens by id. ``read``: the reply that the model's tokens are, without special tokens.
    """

    template: Template
    plain: Callable[[str], list[int]]
    marks: Callable[[str], list[int]]
    read: Callable[[list[int]], str]


def encoder_of(tokenizer) -> Encoder:
    """The Encoder for ``tokenizer``, made once. Raises ValueError, listing the supported templates, if none fits."""
    return _encoder(tokenizer, len(tokenizer), str(tokenizer.chat_template))  # both may change later


def template_of(tokenizer) -> Template:
    """The Template by which ``tokenizer``'s model talks.

    It is told from the control tokens in the vocabulary and, where there is a chat template, from what that writes
    around a user message and before a reply with thinking off. Raises ValueError, listing the supported ones.
    """
    return encoder_of(tokenizer).template


@lru_cache(maxsize=8)
def _encoder(tokenizer, size: int, chat_template: str) -> Encoder:
    template = _find_template(tokenizer)
    plain = _plain_encoder(tokenizer, template)
    ids = dict(zip(template.controls, tokenizer.convert_tokens_to_ids(list(template.controls)), strict=True))
    control = re.compile(f"({'|'.join(map(re.escape, template.controls))})")

    @lru_cache(maxsize=64)
    def marks(text: str) -> list[int]:
        parts = [part for part in control.split(text) if part]
        return [i for part in parts for i in ([ids[part]] if part in ids else plain(part))]

    lead = template.lead
    if not tokenizer.decode(plain(f"{lead}a")).startswith(lead):  # decoding drops the space before the first word
        lead = ""

    def read(tokens: list[int]) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=True).removeprefix(lead)

    return Encoder(template, plain, marks, read)


def _find_template(tokenizer) -> Template:
    vocabulary = tokenizer.get_added_vocab()
    found = [template for template in TEMPLATES.values() if vocabulary.keys() >= set(template.controls)]
    if not found:
        raise _refusal("the tokenizer has the control tokens of none")
    if not tokenizer.chat_template:
        return found[0]
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    try:
        text = tokenizer.apply_chat_template(_PROBE, **options)
    except Exception as error:  # the template is a foreign program, which may raise anything
        raise _refusal(f"the tokenizer's own fails on one user message ({error})") from error
    for template in found:
        user = template.header.format(role="user") + template.lead + _PROBE[0]["content"] + template.closing
        if text.endswith(user + template.reply):
            return template
    raise _refusal(f"for the user message 'a', the tokenizer's own writes {text[-200:]!r}")


def _refusal(problem: str) -> ValueError:
    listed = "; ".join(f"{template.name} ({' '.join(template.controls)})" for template in TEMPLATES.values())
    return ValueError(f"no supported chat template fits: {problem}. Supported: {listed}")


def _plain_encoder(tokenizer, template: Template) -> Callable[[str], list[int]]:
    split = partial(tokenizer, add_special_tokens=False, split_special_tokens=True, verbose=False)
    spaced = not tokenizer.tokenize("a", add_special_tokens=False)[0].startswith("a")
    if spaced and not template.lead:
        raise _refusal(f"the tokenizer puts a space before every text, which {template.name} does not have")

    # Tokens such as <think> are added to a vocabulary without being called special: they are cut after a character.
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    rest: dict[str, list[str]] = {}
    for text in added.values():
        if len(text) > 1:
            rest.setdefault(re.escape(text[0]), []).append(re.escape(text[1:]))
    cut = re.compile("|".join(f"{first}(?={'|'.join(after)})" for first, after in rest.items()) or r"(?!)")

    def plain(text: str) -> list[int]:
        # Such a tokenizer would also put a space where the text is cut: only texts that need it are.
        if spaced and added.keys().isdisjoint(ids := split(text)["input_ids"]):
            return ids
        places = [0, *(match.end() for match in cut.finditer(text)), len(text)]
        return [i for place, end in pairwise(places) for i in split(text[place:end])["input_ids"]]

    return plain

"""How a conversation is written for each family of chat models: one Jinja text for training, inference and servers.

The text is the same in training and at every inference turn, which the templates shipped with models do not promise.
Ours differ from theirs in this:

* qwen3, the hybrid models with thinking off: the empty think block stands before EVERY reply. Theirs prompts it at
  every turn, but writes it into the history only for the last reply, or for none.
* llama-3: no lines about dates and tools in front of the system text, and contents keep their outer white space.
* mistral: the text of version 3 of its tokenizer. There is no system role; theirs puts the system text in front of
  the LAST user message, so that it moves with every turn; here it stays in front of the first.
* chatml: no system message is made up where there is none (Qwen2.5 does), and thoughts that a reply holds stay in it.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

_PROBE = [{"role": "user", "content": "a"}]


@dataclass(frozen=True)
class Template:
    """``jinja``: the chat template; what it marks as generation, a reply with its ``end`` token, is learned.

    A vocabulary that holds all ``controls`` may be meant for it; the first may open a conversation. ``lead`` stands
    between the end of a prompt and the reply: a space where words begin with one.
    """

    name: str
    controls: tuple[str, ...]
    end: str
    jinja: str
    lead: str = ""


# Line breaks behind a tag are written as {{ '\n' }}: whether Jinja keeps others depends on how a server has set it up.
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}THINK"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nTHINK{% endif %}"
)
_THINK = "<think>\n\n</think>\n\n"
_LLAMA_3 = (
    "<|begin_of_text|>{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|eot_id|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_MISTRAL = (
    "<s>{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{% generation %} {{ message['content'] }}</s>{% endgeneration %}"
    "{% elif message['role'] == 'system' %}{% if loop.last or loop.nextitem['role'] != 'user' %}"
    "{{ raise_exception('this model has no system role: a system message must stand before a user message') }}"
    "{% endif %}{% else %}[INST] {% if loop.previtem is defined and loop.previtem['role'] == 'system' %}"
    "{{ loop.previtem['content'] }}\n\n{% endif %}{{ message['content'] }}[/INST]{% endif %}{% endfor %}"
)
_IM = ("<|im_start|>", "<|im_end|>")
_HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
# In the order in which a tokenizer without a chat template is tried.
_ALL = (
    Template("chatml", _IM, "<|im_end|>", _CHATML.replace("THINK", "")),
    Template("qwen3", (*_IM, "<think>", "</think>"), "<|im_end|>", _CHATML.replace("THINK", _THINK)),
    Template("llama-3", _HEADERS, "<|eot_id|>", _LLAMA_3),
    Template("mistral", ("<s>", "[INST]", "[/INST]", "</s>"), "</s>", _MISTRAL, lead=" "),
)
TEMPLATES = {template.name: template for template in _ALL}


def template_of(tokenizer) -> Template:
    """The Template by which ``tokenizer``'s model talks.

    It is told from the control tokens in the vocabulary and, where there is a chat template, from what that writes
    around a user message and before a reply with thinking off. Raises ValueError, listing the supported ones.
    """
    return _looked_at(tokenizer, len(tokenizer), str(tokenizer.chat_template))[0]  # both may change later


def as_text(text: str, tokenizer) -> str:
    """``text`` with a space put into whatever would be a token of its own for ``tokenizer``, special or not
    (``<think>`` is not): ``<|im_end|>`` becomes ``< |im_end|>``. Raises what ``template_of`` raises."""
    return _looked_at(tokenizer, len(tokenizer), str(tokenizer.chat_template))[1].sub(r"\g<0> ", text)


@lru_cache(maxsize=8)
def _looked_at(tokenizer, size: int, chat_template: str) -> tuple[Template, re.Pattern]:
    """The tokenizer's template, and what finds the first character of each of its added tokens in a text."""
    template = _find_template(tokenizer)
    if not (template.lead or tokenizer.tokenize("a", add_special_tokens=False)[0].startswith("a")):
        raise _refusal(f"the tokenizer puts a space before every text, which {template.name} does not have")
    added = [token for token in tokenizer.get_added_vocab() if len(token) > 1 and not token.isspace()]
    return template, re.compile("|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in added))


def _find_template(tokenizer) -> Template:
    found = [t for t in TEMPLATES.values() if tokenizer.get_added_vocab().keys() >= set(t.controls)]
    if not found:
        raise _refusal("the tokenizer has the control tokens of none")
    if not tokenizer.chat_template:
        return found[0]

    def probe(**options) -> str:
        return tokenizer.apply_chat_template(_PROBE, tokenize=False, add_generation_prompt=True, **options)

    try:
        text = probe(enable_thinking=False)
    except Exception as error:  # the template is a foreign program, which may raise anything
        raise _refusal(f"the tokenizer's own fails on one user message ({error})") from error
    for template in found:
        if text.endswith(probe(chat_template=template.jinja).removeprefix(template.controls[0])):
            return template
    raise _refusal(f"for the user message 'a', the tokenizer's own writes {text[-200:]!r}")


def _refusal(problem: str) -> ValueError:
    listed = "; ".join(f"{template.name} ({' '.join(template.controls)})" for template in TEMPLATES.values())
    return ValueError(f"no supported chat template fits: {problem}. Supported: {listed}")

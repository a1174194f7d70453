"""Texts made safe for a chat endpoint, which renders the conversation itself."""

import re

# Behind "<": "|" (ChatML, Llama 3, Phi), its wide form (DeepSeek), a name up to ">" (<s>, </s>, <end_of_turn>). Behind
# "[": Mistral's and GLM's names. <think> may stay in replies: chat templates cut old thoughts out by it.
NAMES = "INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_[A-Z]+|ARGS|CALL_ID|IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|THINK"
NAMES += "|PREFIX|MIDDLE|SUFFIX|BOS|EOS|PAD|UNK|CLS|SEP|g?MASK|sMASK"
CONTROL = re.compile(rf"(?<=<)(?=[|｜]|/?[\w.-]+>)|(?<=\[)(?=/?(?:{NAMES})\])")
CONTROL_IN_REPLY = re.compile(rf"(?!/?think>)(?:{CONTROL.pattern})")


def without_control_tokens(text: str, role: str = "user") -> str:
    """``text`` with a space put into what a chat template or tokenizer could take for a control token.

    ``<|im_end|>`` becomes ``< |im_end|>``, ``[INST]`` becomes ``[ INST]``. A server renders the conversation itself,
    so unlike ``prompts.render`` we cannot set control tokens by id; the recorded conversation keeps the original text.
    """
    return (CONTROL_IN_REPLY if role == "assistant" else CONTROL).sub(" ", text)

"""Models: the same logits as transformers itself, the same replies whatever else is in the batch."""

import random
from copy import deepcopy

import pytest
import torch
from chat_tokenizers import TOKENIZERS
from peft import LoraConfig, get_peft_model
from tiny import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, MistralConfig, Qwen3Config

from knapsack import agent, models, prompts
from knapsack.agent import ContextFull, Episode
from knapsack.chat_template import as_text
from knapsack.models import LocalModel, choose, load_model
from knapsack.runs import stream

SETTINGS = {"slots": 4, "context_length": 512, "max_new_tokens": 12, "temperature": 1.0, "seed": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models"))


def conversation(number: int) -> list[dict]:
    words = random.Random(number).choices(["item", "value", "weight", "capacity", "print", "json"], k=3 + 7 * number)
    return [{"role": "system", "content": "Answer."}, {"role": "user", "content": " ".join(words)}]


def chat(number: int, turns: int = 3):
    """A stand-in for an episode: the user repeats what was said. Returns the replies."""
    messages, replies = conversation(number), []
    for _ in range(turns):
        reply = yield list(messages)
        replies.append(reply)
        messages += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": reply.text[::-1]}]
    return replies


def play(model, numbers) -> dict[str, list]:
    found: dict[str, Episode] = {}
    agent.run_batched([(str(number), chat(number)) for number in numbers], model, found.__setitem__)
    return found


def ask(model, slot: int, key: str, messages: list[dict]) -> agent.Reply:
    """The reply, while no other conversation is queued."""
    model.submit(slot, key, messages)
    while not (finished := model.step()):
        pass
    assert [place for place, _ in finished] == [slot]
    return finished[0][1]


def record(model) -> dict[tuple[int, int], torch.Tensor]:
    """The logits after the token in each slot and position, as the last step that read it gave them."""
    seen, forward = {}, model.model.forward

    def recording(*arguments, **keywords):
        output = forward(*arguments, **keywords)
        for slot, start, block in zip(model._cache.slots, model._cache.starts, output.logits, strict=False):
            seen.update({(slot, start + number): logits.clone() for number, logits in enumerate(block)})
        return output

    model.model.forward = recording
    return seen


def of_reply(seen, slot: int, reply: agent.Reply) -> torch.Tensor:
    """The recorded logits [tokens, vocabulary] of a reply."""
    first = reply.prompt_tokens - 1
    return torch.stack([seen[slot, first + number] for number in range(reply.completion_tokens)])


def dictate(monkeypatch, model, tokens: list[int]) -> None:
    """Let the only queued conversation be answered with ``tokens``."""

    def chosen(*_):
        (state,), (start,) = [state for state in model._slots if state.noise], model._cache.starts
        places = range(start + 1 - state.prompt, start + 1 - state.prompt + models.BLOCK)
        return [tokens[place] if 0 <= place < len(tokens) else 0 for place in places]

    monkeypatch.setattr(models, "choose", chosen)


def written_plainly(plain, prompt: list[int], temperature: float, key: str, count: int) -> list[int]:
    """``count`` tokens chosen one by one from what transformers itself computes, without a cache."""
    noise, tokens = stream(0, key, len(prompt)), list(prompt)
    for _ in range(count):
        with torch.inference_mode():
            logits = plain(torch.tensor([tokens])).logits[:, -1]
        tokens += choose(logits, temperature, [noise.random()])
    return tokens[len(prompt) :]


@pytest.mark.parametrize(("kv_heads", "read_at_once"), [(2, 2048), (1, 2048), (2, 40)])
def test_logits_are_those_of_transformers(tmp_path, kv_heads, read_at_once, monkeypatch):
    monkeypatch.setattr("knapsack.models.PREFILL_MOST", read_at_once)
    folder = tiny_model(tmp_path, kv_heads=kv_heads)
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model = load_model(folder, device="cpu", **SETTINGS | {"temperature": 0})
    model.submit(0, "other", conversation(9))
    seen = record(model)
    messages = conversation(4)
    for _ in range(3):
        done = {}
        model.submit(2, "one", messages)
        while 2 not in done:  # slot 0 is answering too
            done |= dict(model.step())
        reply = done[2]
        prompt = prompts.render(messages, tokenizer, reply_follows=True).input_ids
        found = of_reply(seen, 2, reply)
        new = found.argmax(-1).tolist()
        with torch.inference_mode():
            expected = plain(torch.tensor([prompt + new])).logits[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert reply.prompt_tokens == len(prompt) and reply.completion_tokens == len(new) == len(expected)
        messages = [*messages, {"role": "assistant", "content": reply.text}, {"role": "user", "content": "go on"}]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_tokens_are_chosen_as_if_one_by_one(folder, temperature):
    plain = AutoModelForCausalLM.from_pretrained(folder)
    model = load_model(folder, device="cpu", **SETTINGS | {"temperature": temperature, "max_new_tokens": 60})
    for number in range(4):
        reply = ask(model, number, "x", conversation(number))
        prompt = prompts.render(conversation(number), model.tokenizer, reply_follows=True).input_ids
        written = model._slots[number].text[reply.prompt_tokens :]
        assert written == written_plainly(plain, prompt, temperature, "x", reply.completion_tokens)


def test_guesses_change_nothing_to_the_last_bit(folder, monkeypatch):
    settings, found = SETTINGS | {"temperature": 0.3, "max_new_tokens": 100}, []
    for looked_up in (models.LOOKED_UP, ()):
        monkeypatch.setattr(models, "LOOKED_UP", looked_up)
        model = load_model(folder, device="cpu", **settings)
        seen = record(model)
        replies = [ask(model, 1, "x", conversation(number)) for number in range(4)]
        found.append((replies, [logits.tolist() for reply in replies[-1:] for logits in of_reply(seen, 1, reply)]))
    assert found[0] == found[1]


def test_text_that_repeats_takes_few_steps(folder, monkeypatch):
    model = load_model(folder, device="cpu", **SETTINGS | {"max_new_tokens": 80})
    dictate(monkeypatch, model, list(range(100, 120)) * 4)
    steps, step = [], model.step
    monkeypatch.setattr(model, "step", lambda: (steps.append(1), step())[1])
    assert ask(model, 0, "a", conversation(1)).completion_tokens == 80
    assert 20 + 60 / models.BLOCK - 3 < len(steps) < 20 + 60 / models.BLOCK + 3


def test_replies_do_not_depend_on_the_batch(folder):
    model = load_model(folder, device="cpu", **SETTINGS)
    together = play(model, range(9))
    assert len({reply.text for replies in together.values() for reply in replies}) == 27  # no two alike
    backwards = play(load_model(folder, device="cpu", **SETTINGS), reversed(range(9)))
    assert backwards == together
    for number in range(0, 9, 4):
        assert play(model, [number])[str(number)] == together[str(number)]  # alone, in slots that were used before


def test_logits_do_not_depend_on_slot_or_neighbours_to_the_last_bit(folder):
    alone = load_model(folder, device="cpu", **SETTINGS)
    seen_alone = record(alone)
    alone.submit(3, "x", conversation(5))
    crowded = load_model(folder, device="cpu", **SETTINGS)
    for slot, number in ((0, 8), (2, 3), (3, 1)):
        crowded.submit(slot, f"{slot}", conversation(number))
    for _ in range(3):
        crowded.step()
    seen_crowded = record(crowded)
    crowded.submit(1, "x", conversation(5))
    for _ in range(5):
        alone.step(), crowded.step()
    texts = [alone._slots[3].text, crowded._slots[1].text]
    common = range(alone._slots[3].prompt - 1, min(map(len, texts)) - 1)
    assert len(common) >= 5
    for place in common:
        assert texts[0][place] == texts[1][place] and torch.equal(seen_alone[3, place], seen_crowded[1, place])


def test_seed_and_key_choose_the_noise(folder):
    first = play(load_model(folder, device="cpu", **SETTINGS), [1, 2])
    assert play(load_model(folder, device="cpu", **SETTINGS | {"seed": 1}), [1, 2]) != first
    model = load_model(folder, device="cpu", **SETTINGS)
    for slot, key in enumerate(("a", "b")):
        model.submit(slot, key, conversation(3))
    texts = {}
    while len(texts) < 2:
        texts |= dict(model.step())
    assert texts[0] != texts[1]
    assert stream(0, "a", 7).random() == random.Random("0|a|7").random() != stream(0, "a", 8).random()


def test_a_turn_computes_only_its_new_tokens(folder, monkeypatch):
    model = load_model(folder, device="cpu", **SETTINGS)
    filled = []
    original = model._prefill
    monkeypatch.setattr(model, "_prefill", lambda s, start, new: (filled.append(len(new)), original(s, start, new)))
    play(model, [3])
    first = len(prompts.render(conversation(3), model.tokenizer, reply_follows=True).input_ids)
    assert filled[0] == first - 1
    assert all(0 < count < first for count in filled[1:])
    play(model, [3])
    assert filled[3] == first - 1  # a released slot keeps nothing


def test_replies_end_at_their_token_or_at_the_limits(folder, monkeypatch):
    model = load_model(folder, device="cpu", **SETTINGS)
    dictate(monkeypatch, model, model.tokenizer("Hé!\n", add_special_tokens=False)["input_ids"] + [2])
    reply = ask(model, 0, "a", conversation(1))
    assert reply.text == "Hé!\n" and reply.stopped
    dictate(monkeypatch, model, [70] * 99)
    reply = ask(model, 1, "b", conversation(1))
    assert (reply.completion_tokens, reply.stopped) == (12, False)
    small = load_model(folder, device="cpu", **SETTINGS | {"context_length": reply.prompt_tokens + 3})
    dictate(monkeypatch, small, [70] * 99)
    cut = ask(small, 0, "c", conversation(1))
    assert (cut.completion_tokens, cut.stopped) == (3, False)
    smaller = load_model(folder, device="cpu", **SETTINGS | {"context_length": reply.prompt_tokens})
    with pytest.raises(ContextFull, match=f"has {reply.prompt_tokens} tokens"):
        smaller.submit(0, "d", conversation(1))


def test_choose_draws_from_the_softmax():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    draws = [(index + 0.5) / 10_000 for index in range(10_000)]
    counts = torch.bincount(torch.tensor(choose(logits.expand(10_000, 4), 0.5, draws)), minlength=4) / 10_000
    torch.testing.assert_close(counts, (logits[0] / 0.5).softmax(-1), atol=2e-4, rtol=0)
    assert choose(logits, 0, [0.99]) == [2]
    certain = torch.tensor([[-1e4, 5.0, -1e4]])
    assert choose(certain, 0.2, [0.0]) == choose(certain, 0.2, [1 - 2**-53]) == [1]


def test_adapter_is_applied(folder, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    tuned = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False))
    tuned.eval().save_pretrained(tmp_path / "adapter")
    model = load_model(folder, tmp_path / "adapter", device="cpu", **SETTINGS)
    seen = record(model)
    model.submit(0, "x", conversation(2))
    model.step()
    ids = prompts.render(conversation(2), model.tokenizer, reply_follows=True).input_ids
    with torch.inference_mode():
        expected = tuned(torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(seen[0, len(ids) - 1], expected, rtol=1e-4, atol=1e-4)


def test_a_cpu_computes_in_float32(folder, tmp_path):
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu", **SETTINGS).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_bad_input_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="notebook 03"):
        load_model(folder, tmp_path, device="cpu", **SETTINGS)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_model(tmp_path / "nowhere", device="cpu", **SETTINGS)
    for wrong in ({"slots": 0}, {"max_new_tokens": 0}, {"temperature": -1}, {"context_length": 4096}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            load_model(folder, device="cpu", **SETTINGS | wrong)
    model = load_model(folder, device="cpu", **SETTINGS)
    model.submit(0, "a", conversation(1))
    with pytest.raises(RuntimeError, match="still answering a"):
        model.submit(0, "b", conversation(1))


def family(name: str, **settings) -> LocalModel:
    """A tiny random model of the architecture that goes with a chat template, as ``load_model`` would hold it."""
    kind, tokenizer = {"qwen3": Qwen3Config, "llama-3": LlamaConfig, "mistral": MistralConfig}[name], TOKENIZERS[name]
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048}
    config = kind(vocab_size=len(tokenizer), **sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="knapsack_by_row")
    return LocalModel(model.eval(), tokenizer, **SETTINGS | settings)


@pytest.mark.parametrize("name", ["qwen3", "llama-3", "mistral"])
@pytest.mark.parametrize("text", ["ab\n user", "<think>\na\n</think>\n\nb", " </s>", ""])
def test_a_reply_is_read_as_it_will_be_rendered(name, text, monkeypatch):
    model, messages = family(name, max_new_tokens=100), conversation(1)
    row = [*messages, {"role": "assistant", "content": text}]
    learned = [label for label in prompts.render(row, model.tokenizer).labels if label != -100]
    dictate(monkeypatch, model, learned)
    reply = ask(model, 0, "a", messages)
    written = as_text(text, model.tokenizer)
    assert (reply.text, reply.completion_tokens, reply.stopped) == (written, len(learned), True)


@pytest.mark.parametrize("name", ["qwen3", "llama-3", "mistral"])
def test_logits_of_other_architectures_are_those_of_transformers(name):
    model = family(name, temperature=0, max_new_tokens=4)
    plain = AutoModelForCausalLM.from_config(deepcopy(model.model.config), attn_implementation="sdpa").eval()
    plain.load_state_dict(model.model.state_dict())
    seen, messages = record(model), conversation(3)
    reply = ask(model, 1, "a", messages)
    prompt = prompts.render(messages, model.tokenizer, reply_follows=True).input_ids
    found = of_reply(seen, 1, reply)
    with torch.inference_mode():
        expected = plain(torch.tensor([prompt + found.argmax(-1).tolist()])).logits[0, len(prompt) - 1 : -1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

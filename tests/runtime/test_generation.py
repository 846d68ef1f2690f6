"""Generation over numpy functions: chunks, batches, ends, interruption, and every refusal by its words."""

import threading
from typing import Any

import numpy as np
import pytest

from planish.errors import GenerationError, InputError
from tests.runtime.generation_fake import VOCABULARY, byte_tokenizer, continued, generator, saying, successor


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 40])
@pytest.mark.parametrize("donates", [True, False])
def test_a_prompt_of_any_length_is_read_in_chunks_and_continued(length: int, donates: bool) -> None:
    prompt = [(7 * i + 3) % VOCABULARY for i in range(length)]
    made, prefill, decode = generator(donates=donates)
    assert list(made.generate(prompt, max_new_tokens=12)) == continued(prompt, 12)
    assert [sum(c) for c in prefill.calls] == [8] * (length // 8) + [length % 8] * (length % 8 > 0)
    assert len(decode.calls) == 11, "the last token is not read"


def test_rows_of_a_batch_are_as_if_alone() -> None:
    prompts = [[5] * 20, [1, 2, 3], list(range(9))]
    made, *_ = generator()
    steps = list(made.generate(prompts, max_new_tokens=6))
    assert [[step[row] for step in steps] for row in range(3)] == [continued(p, 6) for p in prompts]


def test_ended_rows_give_none_and_the_others_go_on() -> None:
    first = continued([5], 3)
    made, *_ = generator(end=(first[2],))
    stream = made.generate([[5], [9, 9]], max_new_tokens=5)
    steps = list(stream)
    assert [step[0] for step in steps] == [*first, None, None]
    assert [step[1] for step in steps] == continued([9, 9], 5)
    assert stream.finish_reasons == ["end", "length"]


def test_fewer_prompts_than_the_batch_and_more_again_use_the_same_caches() -> None:
    made, *_ = generator()
    for prompts in ([[4, 5]], [[1], [2], [3]], [[6, 6]]):
        steps = list(made.generate(prompts, max_new_tokens=4))
        assert [[s[i] for s in steps] for i in range(len(prompts))] == [continued(p, 4) for p in prompts]


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_prompts_are_lists_tuples_or_arrays(kind: Any) -> None:
    made, *_ = generator()
    assert list(made.generate(kind([3, 4]), max_new_tokens=3)) == continued([3, 4], 3)


def test_it_stops_at_the_end_of_the_context_and_says_so() -> None:
    made, *_ = generator(context=10)
    stream = made.generate([1] * 8, max_new_tokens=50)
    assert list(stream) == continued([1] * 8, 3), "positions 8 and 9 are free, and the last token needs none"
    assert stream.finish_reason == "context"
    assert list(made.generate([1] * 10, max_new_tokens=50)) == continued([1] * 10, 1)


def test_stop_tokens_and_end_tokens_come_last() -> None:
    wanted = continued([2], 4)
    made, *_ = generator(end=(wanted[3],))
    stream = made.generate([2], stop=[wanted[1]])
    assert (list(stream), stream.finish_reason) == (wanted[:2], "stop")
    stream = made.generate([2])
    assert (list(stream), stream.finish_reason, stream.ids) == (wanted, "end", wanted)


def test_a_closed_or_dropped_generation_leaves_the_object_usable() -> None:
    made, *_ = generator()
    with made.generate([1, 2], max_new_tokens=20) as stream:
        next(stream)
    assert stream.finish_reason is None
    with pytest.raises(StopIteration):
        next(stream)
    del stream
    next(made.generate([7], max_new_tokens=9))
    assert list(made.generate([1, 2], max_new_tokens=5)) == continued([1, 2], 5)


def test_an_interrupt_in_the_middle_leaves_the_object_usable() -> None:
    interrupts = iter([False] * 3 + [True])

    def follow(ids: Any) -> int:
        if next(interrupts, False):
            raise KeyboardInterrupt
        return successor(ids)

    made, *_ = generator(follow)
    with pytest.raises(KeyboardInterrupt):
        list(made.generate([1, 2], max_new_tokens=9))
    assert list(made.generate([1, 2], max_new_tokens=9)) == continued([1, 2], 9)


def test_generations_at_the_same_time_have_their_own_caches() -> None:
    made, *_ = generator()
    one, two = made.generate([1], max_new_tokens=6), made.generate([2], max_new_tokens=6)
    pairs = list(zip(one, two, strict=True))
    assert [a for a, _ in pairs] == continued([1], 6)
    assert [b for _, b in pairs] == continued([2], 6)


def test_threads_generate_side_by_side() -> None:
    made, *_ = generator()
    found: dict[int, list[int]] = {}

    def work(seed: int) -> None:
        found[seed] = [list(made.generate([seed], max_new_tokens=10)) for _ in range(5)][-1]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: continued([i], 10) for i in range(4)}


def test_caches_are_kept_between_generations() -> None:
    made, *_ = generator()
    first = made.session()
    made.give_back(first)
    list(made.generate([1], max_new_tokens=2))
    assert made.session() is first


def test_undefined_numbers_are_reported_with_their_layer_and_not_sampled() -> None:
    made, *_ = generator(undefined_after=4)
    stream = made.generate([1, 2], max_new_tokens=9, temperature=1.0)
    words = "logits after 5 tokens of row 0 hold nan: they begin in the keys of layer 1 .of 2, from 0."
    with pytest.raises(GenerationError, match=words):
        list(stream)
    assert len(stream.ids) == 3
    assert list(made.generate([5], max_new_tokens=2)) == continued([5], 2)


def test_infinite_logits_without_undefined_caches_are_of_the_end_of_the_model() -> None:
    made, prefill, _ = generator()
    prefill.run = lambda leaves: [np.full((1, VOCABULARY), -np.inf, np.float32), *leaves[3:]]  # type: ignore[method-assign]
    with pytest.raises(GenerationError, match="hold -inf: the keys and values of all 2 layers are finite"):
        list(made.generate([1]))


def test_text_comes_in_whole_characters() -> None:
    text = "naïve — 日本語 🙂!"
    made, *_ = generator(saying(text, 2), tokenizer=byte_tokenizer())
    stream = made.generate("ab", max_new_tokens=len(text.encode()))
    pieces = [token.text for token in stream]
    assert "".join(pieces) == text == stream.text
    assert "�" not in "".join(pieces)
    assert pieces[2] == "", "half of ï"


def test_a_character_that_never_ends_is_released() -> None:
    made, *_ = generator(lambda ids: 0xF0, tokenizer=byte_tokenizer())
    stream = made.generate("ab", max_new_tokens=9)
    list(stream)
    assert set(stream.text) == {"�"}


@pytest.mark.parametrize(
    ("stop", "text"),
    [("world", "hello "), (["o w", "hello w"], "hell"), ("dh", "hello worl"), (["zzz", "lo"], "hel"), ("h", "")],
)
def test_stop_texts_end_the_answer_and_are_not_part_of_it(stop: Any, text: str) -> None:
    made, *_ = generator(saying("hello world", 2), tokenizer=byte_tokenizer())
    stream = made.generate("ab", max_new_tokens=30, stop=stop)
    shown = "".join(token.text for token in stream)
    # the earliest occurrence ends it; of two that end at the same token, the one that begins first
    expected = "" if stop == ["o w", "hello w"] else text
    assert (shown, stream.finish_reason) == (expected, "stop")


def test_what_may_begin_a_stop_text_is_held_back_until_it_cannot() -> None:
    made, *_ = generator(saying("abcabd", 1), tokenizer=byte_tokenizer())
    stream = made.generate("x", max_new_tokens=6, stop=["abd!"])
    assert [token.text for token in stream] == ["", "", "abc", "", "", "abd"]
    assert stream.finish_reason == "length"


def test_prompts_of_ids_give_no_text_and_stop_texts_do() -> None:
    made, *_ = generator(saying("hello", 1), tokenizer=byte_tokenizer())
    assert made.generate([3], max_new_tokens=5).text == ""
    stream = made.generate([3], max_new_tokens=9, stop="lo")
    assert [int(token) for token in stream] == list(b"hello")
    assert stream.text == "hel"


def test_texts_of_a_batch() -> None:
    made, *_ = generator(saying("hello", 2), tokenizer=byte_tokenizer())
    stream = made.generate(["ab", "cd"], max_new_tokens=5)
    list(stream)
    assert stream.texts == ["hello", "hello"]


_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if messages[0].role == 'nobody' %}{{ raise_exception('who is nobody?') }}{% endif %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_chat_renders_the_template() -> None:
    made, *_ = generator(tokenizer=byte_tokenizer(_TEMPLATE))
    stream = made.chat([{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}], max_new_tokens=2)
    assert bytes(stream.prompt) == b"<s>[system]be[user]hi[assistant]"
    assert bytes(made.chat("hi").prompt) == b"<s>[user]hi[assistant]"
    assert list(stream) == continued(stream.prompt, 2)


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        ("", "hi", "chat: the artifact has no chat template"),
        (_TEMPLATE, [{"role": "nobody", "content": "x"}], "the template refuses these messages: who is nobody?"),
        (_TEMPLATE, [{"content": "x"}], "a message is .'role': 'user', 'content': '...'., not "),
        (_TEMPLATE, None, "messages are a list of .'role': 'user', 'content': '...'., or one text, not None"),
        ("{{ messages.append(1) }}", "hi", "the template refuses these messages: access to attribute 'append'"),
    ],
)
def test_chat_refusals(template: str, messages: Any, words: str) -> None:
    made, *_ = generator(tokenizer=byte_tokenizer(template))
    with pytest.raises(InputError, match=words):
        made.chat(messages)


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ([], {}, "the prompt is empty; give at least one token"),
        ([[1], []], {}, "the prompt of row 1 is empty"),
        ([[1], [3, 256]], {}, "token 256 at place 1 of the prompt of row 1 is outside"),
        ([1] * 65, {}, "prompt has 65 tokens, the model was compiled for a context of 64; .*context=65"),
        ([1, 256], {}, r"token 256 at place 1 of the prompt is outside the vocabulary of 256 \(0..255\)"),
        ([-1], {}, "token -1 at place 0 of the prompt is outside"),
        ([1.5], {}, "a token id is an integer, not 1.5"),
        ([True], {}, "a token id is an integer, not True"),
        ([[1], 2], {}, "every prompt of a batch is text or a list of token ids, not 2"),
        ([[1]] * 4, {}, r"4 prompts were given, the model was compiled for a batch of 3; .*Generation\(batch=4\)"),
        (7, {}, "a prompt is text, token ids or a list of either, not a int"),
        ("text", {}, r"generate: the artifact has no tokenizer, so give token ids; .*Generation\(tokenizer=...\)"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens is an integer of at least 1, not 0"),
        ([1], {"max_new_tokens": 2.0}, "max_new_tokens is an integer of at least 1, not 2.0"),
        ([1], {"max_new_tokens": True}, "max_new_tokens is an integer of at least 1, not True"),
        ([1], {"stop": True}, "stop is text, a token id or a list of those, none empty, not True"),
        ([1], {"stop": "x"}, "stop: the artifact has no tokenizer"),
        ([1], {"stop": [256]}, r"the stop token 256 is outside 0..255"),
        ([1], {"stop": [""]}, "stop is text, a token id or a list of those, none empty"),
        ([1], {"stop": 5.5}, "stop is text, a token id or a list of those, none empty, not 5.5"),
        ([1], {"stop": [None]}, "stop is text, a token id or a list of those, none empty"),
        ([1], {"top_p": 7}, "top_p is above 0 and at most 1, not 7"),
    ],
)
def test_refuses_with_words(prompt: Any, options: dict[str, Any], words: str) -> None:
    made, *_ = generator()
    with pytest.raises(InputError, match=words):
        made.generate(prompt, **options)


def test_draws_repeat_with_a_seed() -> None:
    made, *_ = generator()
    first, second, other = (
        list(made.generate([1], max_new_tokens=30, temperature=5.0, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == second != other


def test_a_seeded_row_of_a_batch_draws_apart_from_the_others() -> None:
    made, *_ = generator()
    steps = list(made.generate([[1], [1]], max_new_tokens=20, temperature=5.0, seed=1))
    assert [s[0] for s in steps] != [s[1] for s in steps]
    assert [s[0] for s in steps] == list(made.generate([1], max_new_tokens=20, temperature=5.0, seed=1))

"""OpenAI's own client against the server, over a real socket: what it gets is what `generate` writes."""

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch

from live_server import MESSAGES, autoregressive, client_of, diffusion, serving
from opdlm.models.tokens import encode_prompt, encode_text
from opdlm.sampling.api import DiffusionLM, GenerationOutput
from opdlm.serve.loop import Snapshot
from opdlm.serve.replies import TokenTexts


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(batch_size=64) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with client_of(url) as made:
        yield made


def generated(lm: DiffusionLM, messages: Any = MESSAGES, **settings: Any) -> GenerationOutput:
    return lm.generate([encode_prompt(lm.tokenizer, messages)], **settings)


CHOICES: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 7},
    {"temperature": 0.8, "top_p": 0.9, "seed": 3},
    {"temperature": 1.0, "seed": 5, "extra_body": {"top_k": 9, "min_p": 0.02}},
    {"presence_penalty": 1.5, "frequency_penalty": 0.5},
    {"logit_bias": {"7": 3, "20": -100}, "extra_body": {"repetition_penalty": 1.3}},
    {"max_tokens": 5},
    {"max_completion_tokens": 50, "temperature": 1.0, "seed": 11, "extra_body": {"hold_end": True}},
    {"extra_body": {"decoding": "static:2"}},
    {"extra_body": {"decoding": {"kind": "entropy", "bound": 2.0}}, "seed": 2, "temperature": 1.0},
    {"extra_body": {"decoding": "checked"}, "temperature": 1.0, "seed": 4},
]


def as_settings(choice: dict[str, Any]) -> dict[str, Any]:
    """The same for `generate`."""
    flat = {**choice, **choice.get("extra_body", {})}
    flat.pop("extra_body", None)
    limit = flat.pop("max_completion_tokens", None) or flat.pop("max_tokens", None)
    return {**flat, **({"max_new_tokens": limit} if limit else {})}


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_chat_is_what_generate_writes(choice: dict[str, Any], client: Any) -> None:
    """Else a parameter would get lost on the way, or mean something else than in Python."""
    expected = generated(diffusion(), **as_settings(choice))
    answer = client.chat.completions.create(model="diffusion", messages=MESSAGES, **choice)
    rollout = expected.rollout
    assert answer.choices[0].message.content == diffusion().decode(expected)[0]
    assert answer.choices[0].finish_reason == ("stop" if rollout.stopped else "length")
    read = int(rollout.prompt_length)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (read, int(rollout.length) - read)
    assert answer.usage.forwards == int(rollout.forwards)
    assert answer.usage.tokens_per_forward == pytest.approx(expected.tokens_per_forward, abs=1e-4)


@pytest.mark.parametrize("choice", [CHOICES[0], CHOICES[2], CHOICES[7], CHOICES[10]], ids=str)
@pytest.mark.parametrize("diffusing", [False, True])
def test_a_stream_adds_up_to_the_whole(choice: dict[str, Any], diffusing: bool, client: Any) -> None:
    """Else whoever appends, as every client does, would get another text than whoever waits."""
    choice = {**choice, "extra_body": {**choice.get("extra_body", {}), "diffusing": diffusing}}
    plain = {name: value for name, value in as_settings(choice).items() if name != "diffusing"}
    expected = generated(diffusion(), **plain)
    stream = client.chat.completions.create(
        model="diffusion", messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **choice
    )
    *chunks, last = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == diffusion().decode(expected)[0]
    assert [chunk.choices[0].finish_reason for chunk in chunks][:-1] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == ("stop" if expected.rollout.stopped else "length")
    assert (last.choices, last.usage.forwards) == ([], int(expected.rollout.forwards))
    drafts = [draft for chunk in chunks if (draft := getattr(chunk.choices[0].delta, "draft", None))]
    assert bool(drafts) == diffusing
    if drafts:
        assert_drafts_end_as(expected, drafts)


def assert_drafts_end_as(expected: GenerationOutput, drafts: list[dict[str, Any]]) -> None:
    """A client that replaces its tokens from `start` on has the response in the end."""
    tokens: list[Any] = []
    for draft in drafts:
        assert draft["start"] <= len(tokens)
        assert draft["position"] - draft["start"] == int(expected.rollout.prompt_length)
        tokens[draft["start"] :] = draft["tokens"]
    begin, end = int(expected.rollout.prompt_length), int(expected.rollout.length)
    ids = expected.rollout.input_ids[0, begin:end].tolist()
    assert [token["id"] for token in tokens] == ids
    assert [token["token"] for token in tokens] == [diffusion().tokenizer.decode([one]) for one in ids]
    torch.testing.assert_close(
        torch.tensor([token["probability"] for token in tokens]),
        expected.confidences[0, begin:end],
        atol=1e-4,
        rtol=0,
    )
    assert [draft["forwards"] for draft in drafts] == sorted({draft["forwards"] for draft in drafts})


def test_many_clients_at_once_get_what_each_gets_alone(url: str) -> None:
    """Else a text would depend on the traffic: 64 at the same time, each with settings of its own."""
    rows = [(f"number {i}", CHOICES[i % len(CHOICES)], i % 3 == 0) for i in range(64)]

    async def ask(client: Any, text: str, choice: dict[str, Any], streamed: bool) -> str:
        messages = [{"role": "user", "content": text}]
        if not streamed:
            answer = await client.chat.completions.create(model="diffusion", messages=messages, **choice)
            return answer.choices[0].message.content
        stream = await client.chat.completions.create(model="diffusion", messages=messages, stream=True, **choice)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, *row) for row in rows))

    for (text, choice, _), found in zip(rows, asyncio.run(all_of_them()), strict=True):
        expected = generated(diffusion(), [{"role": "user", "content": text}], **as_settings(choice))
        assert found == diffusion().decode(expected)[0]


def test_choices_are_the_rows_of_a_batch(client: Any) -> None:
    """Else `n` answers would be one answer n times, or not those of `generate` with the same seed."""
    lm = diffusion()
    ids = encode_prompt(lm.tokenizer, MESSAGES)
    expected = lm.decode(lm.generate([ids] * 3, temperature=1.0, seed=9))
    asked: dict[str, Any] = {"model": "diffusion", "messages": MESSAGES, "temperature": 1.0, "seed": 9, "n": 3}
    answer = client.chat.completions.create(**asked)
    assert [choice.message.content for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.prompt_tokens == len(ids)
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == expected


def test_without_a_seed_samples_differ_and_greedy_text_does_not(client: Any) -> None:
    """Else everybody who samples would get the same text, or nobody could repeat a greedy one."""
    asked: dict[str, Any] = {"model": "diffusion", "messages": MESSAGES}
    sampled = {client.chat.completions.create(**asked, temperature=1.5).choices[0].message.content for _ in range(4)}
    assert len(sampled) > 1
    assert len({client.chat.completions.create(**asked).choices[0].message.content for _ in range(3)}) == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_text_ends_before_a_stop_string(streamed: bool, client: Any) -> None:
    """Else a client would see the string that it asked to stop at, or half of it in a stream."""
    lm = diffusion()
    free = lm.decode(generated(lm, decoding="static"))[0]
    stop = free[6:9]
    asked = {"model": "diffusion", "messages": MESSAGES, "stop": ["never", stop], "extra_body": {"decoding": "static"}}
    if streamed:
        chunks = list(client.chat.completions.create(**asked, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        choice = client.chat.completions.create(**asked).choices[0]
        text, reason = choice.message.content, choice.finish_reason
    assert text == free[: free.index(stop)]
    assert reason == "stop"


@pytest.mark.parametrize("decoding", ["dynamic:0.3", "checked"])
def test_log_probabilities_are_those_of_the_record(decoding: str, client: Any) -> None:
    """Else a client would weigh answers by numbers that are not the model's."""
    lm = diffusion()
    expected = generated(lm, decoding=decoding)
    begin, end = int(expected.rollout.prompt_length), int(expected.rollout.length)
    written = end - begin - int(expected.rollout.stopped)  # a stop token has no text
    logs = expected.confidences[0, begin : begin + written].log().tolist()
    asked: dict[str, Any] = {"model": "diffusion", "messages": MESSAGES, "extra_body": {"decoding": decoding}}
    answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3).choices[0]
    content = answer.logprobs.content
    assert "".join(one.token for one in content).replace("<pad>", "") == answer.message.content
    assert [one.logprob for one in content] == pytest.approx(logs, abs=1e-4)
    for one in content:
        assert bytes(one.bytes).decode() == one.token
        tops = [top.logprob for top in one.top_logprobs]
        assert len(tops) == 3
        assert tops == sorted(tops, reverse=True)
        assert sum(map(math.exp, tops)) <= 1 + 1e-5
        same = [top.logprob for top in one.top_logprobs if top.token == one.token]
        assert same == pytest.approx([one.logprob] * len(same), abs=1e-4)
    streamed = list(client.chat.completions.create(**asked, logprobs=True, stream=True))
    parts = [chunk.choices[0].logprobs for chunk in streamed if chunk.choices[0].logprobs]
    assert [one.logprob for part in parts for one in part.content] == pytest.approx(logs, abs=1e-4)


def test_what_is_impossible_has_a_number_and_a_text_comes_once() -> None:
    """Else minus infinity, which is no JSON, would be a 500; or a rare token would hide a probable one."""
    texts = TokenTexts(diffusion().tokenizer, diffusion().tokens)
    never = float("-inf")
    top = [[], [(5, -0.1), (0, -3.0), (6, never)], [(6, -0.2), (0, -1.0), (0, -9.0)]]
    snapshot = Snapshot([5, 5, 6], 1, 3, [0.0, 0.9, 0.0], top, 1)
    found = texts.completion_logprobs(snapshot, 1)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["top_logprobs"][0][texts(6)] == found["token_logprobs"][1] == -9999.0
    assert found["top_logprobs"][1][texts(0)] == -1.0
    assert found["text_offset"] == [0, 1]
    content = texts.chat_logprobs(snapshot, 1)["content"]
    assert [one["logprob"] for one in content[0]["top_logprobs"]] == [-0.1, -3.0, -9999.0]


def test_text_completions(client: Any) -> None:
    """Else the older endpoint would apply a chat template, mix up its prompts, or lose log-probabilities."""
    lm = diffusion()
    prompts = ["abc", "what was it"]
    rows = [encode_text(lm.tokenizer, prompt) for prompt in prompts for _ in range(2)]
    plain = {0: -100.0, 1: -100.0}  # no special tokens, which have no text
    expected = lm.generate(rows, temperature=1.0, seed=3, max_new_tokens=9, logit_bias=plain)
    texts = lm.decode(expected)
    asked: dict[str, Any] = {"model": "diffusion", "temperature": 1.0, "seed": 3, "max_tokens": 9, "n": 2}
    asked["logit_bias"] = {str(token): bias for token, bias in plain.items()}
    for given in (prompts, rows[::2]):
        answer = client.completions.create(prompt=given, logprobs=2, **asked)
        assert [choice.text for choice in answer.choices] == texts
        first = answer.choices[0]
        assert "".join(first.logprobs.tokens) == first.text
        assert first.logprobs.text_offset == list(range(len(first.text)))
        assert all(len(top) == 2 for top in first.logprobs.top_logprobs)
    streamed = ["", "", "", ""]
    for chunk in client.completions.create(prompt=prompts, stream=True, **asked):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts
    assert client.completions.create(model="diffusion", prompt=rows[0], seed=1).choices[0].text


def test_gaps_are_filled_as_infill_fills_them(client: Any) -> None:
    """Else /v1/infill would write another text than Python, or change what is given."""
    text = "what [[MASK:5]] that [[MASK:2]]!"
    expected = diffusion().infill(text, temperature=1.0, seed=6)
    asked: dict[str, Any] = {"model": "diffusion", "text": text, "temperature": 1.0, "seed": 6}
    answer = client.post("/infill", body=asked, cast_to=object)
    assert answer["choices"][0]["text"] == expected
    assert answer["usage"]["completion_tokens"] == 7
    stream = client.post(
        "/infill",
        body=asked | {"stream": True, "diffusing": True},
        cast_to=object,
        stream=True,
        stream_cls=openai.Stream[object],
    )
    chunks: list[Any] = list(stream)
    assert chunks[-1]["choices"][0]["text"] == expected
    assert all(chunk["choices"][0]["draft"]["start"] == 0 for chunk in chunks)
    assert None in chunks[0]["choices"][0]["draft"]["tokens"]


def test_an_ar_model_is_served_beside_it(client: Any) -> None:
    """Else the two could not be compared on the same server."""
    assert [model.id for model in client.models.list().data] == ["diffusion", "autoregressive"]
    assert client.models.retrieve("autoregressive").block_size == 1
    cards = {card.id: card.to_dict() for card in client.models.list().data}
    assert (cards["autoregressive"]["decodings"], cards["autoregressive"]["infill"]) == (["sequential"], False)
    assert {"prefix", "checked"} < set(cards["diffusion"]["decodings"])
    assert "verified" not in cards["diffusion"]["decodings"]
    assert cards["diffusion"]["defaults"] == {"decoding": "dynamic:0.3", "temperature": 0.0, "max_tokens": 24}
    expected = generated(autoregressive())
    answer = client.chat.completions.create(model="autoregressive", messages=MESSAGES)
    assert answer.choices[0].message.content == autoregressive().decode(expected)[0]
    assert answer.usage.forwards == answer.usage.completion_tokens
    with pytest.raises(openai.BadRequestError, match="sequential alone"):
        client.chat.completions.create(
            model="autoregressive", messages=MESSAGES, extra_body={"decoding": "dynamic:0.9"}
        )


def test_a_long_default_gives_way_to_the_context(client: Any) -> None:
    """Else a prompt near the end of the context would be refused for tokens that nobody asked for."""
    prompt = "a" * 240
    answer = client.completions.create(model="diffusion", prompt=prompt, logit_bias={"2": -100})
    assert answer.usage.completion_tokens == 256 - 240
    with pytest.raises(openai.BadRequestError, match="context of 256") as refused:
        client.completions.create(model="diffusion", prompt=prompt, max_tokens=24)
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.filterwarnings("ignore")  # those of others
def test_langchain_works_unchanged(url: str) -> None:
    """Else the most common framework could not use it."""
    langchain = pytest.importorskip("langchain_openai", reason="needs langchain-openai, too heavy for every install")
    chat = langchain.ChatOpenAI(base_url=url, api_key="any", model="diffusion", temperature=0, max_retries=0)
    expected = diffusion().decode(generated(diffusion()))[0]
    assert chat.invoke("what is it").content == expected
    assert "".join(chunk.content for chunk in chat.stream("what is it")) == expected
    assert chat.batch(["what is it"] * 3)[2].content == expected

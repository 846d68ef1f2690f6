"""Language models from `compile` to text, against transformers, and what is refused on the way."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import planish
from planish.cli import app
from planish.compilation_generation import context_notes, with_sizes, with_split
from planish.errors import ArtifactError, GenerationError, InputError, PassError
from planish.generation import Generation, end_tokens, tokenizer_of
from planish.passes import EXACT, FoldConstants, FuseNorms, QuantizeWeights
from planish.passes.split_generation import SplitGeneration
from planish.runtime import inspect
from planish.runtime.intake import hash_file
from planish.runtime.loading import load as load_executable
from planish.runtime.manifest import Manifest
from tests.generation import architectures
from tests.runtime.generation_fake import byte_tokenizer

_TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
_PROMPTS = [[5, 9, 11], [3], list(range(10, 40))]


def fast_tokenizer() -> transformers.PreTrainedTokenizerFast:
    from tokenizers import Tokenizer

    parsed = Tokenizer.from_str(byte_tokenizer().definition)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=parsed, eos_token="!")
    wrapped.chat_template = _TEMPLATE
    return wrapped


def small_llama() -> nn.Module:
    sizes = {**architectures._GATED, "vocab_size": 256}
    return architectures.build(transformers.LlamaForCausalLM, transformers.LlamaConfig(**sizes))


@pytest.fixture(scope="module")
def compiled() -> tuple[nn.Module, planish.LanguageModel]:
    model = small_llama()
    generation = Generation(context=60, batch=3, chunk=8, tokenizer=fast_tokenizer(), end=(2,))
    ids = torch.arange(3, 21).reshape(1, 18)
    return model, planish.compile(model, inputs=(ids,), generate=generation)


@pytest.fixture(scope="module")
def saved(compiled: tuple[nn.Module, planish.LanguageModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "llama.planish"
    compiled[1].save(path)
    return path


def greedy(model: nn.Module, prompt: list[int], count: int) -> list[int]:
    """What transformers generates."""
    ids = torch.tensor([prompt])
    made = model.generate(ids, max_new_tokens=count, do_sample=False, eos_token_id=2, pad_token_id=0)  # type: ignore[operator]
    return [int(token) for token in made[0, len(prompt) :]]


@pytest.mark.parametrize("prompt", _PROMPTS, ids=len)
def test_greedy_tokens_are_those_of_transformers(compiled: Any, prompt: list[int]) -> None:
    model, lm = compiled
    assert isinstance(lm, planish.LanguageModel)
    assert list(lm.generate(prompt, max_new_tokens=25)) == greedy(model, prompt, 25)


def test_rows_of_different_lengths_are_those_of_transformers_alone(compiled: Any) -> None:
    model, lm = compiled
    stream = lm.generate(_PROMPTS, max_new_tokens=20)
    list(stream)
    assert stream.ids == [greedy(model, prompt, 20) for prompt in _PROMPTS]


def test_a_saved_artifact_generates_the_same_without_the_compiler(compiled: Any, saved: Path) -> None:
    _, lm = compiled
    wanted = list(lm.generate([7, 8], max_new_tokens=12))
    again = planish.load(saved)
    assert isinstance(again, planish.LanguageModel)
    assert list(again.generate([7, 8], max_new_tokens=12)) == wanted
    assert list(load_executable(saved).generate([7, 8], max_new_tokens=12)) == wanted  # type: ignore[attr-defined]
    assert again.settings.end == (2,)
    assert again.settings.vocabulary == 256


def test_generating_imports_neither_torch_nor_the_compiler(saved: Path) -> None:
    code = (
        f"import planish, sys; list(planish.load({str(saved)!r}).generate([5, 6], max_new_tokens=3)); "
        "print([m for m in ('torch', 'sympy', 'tvm', 'tokenizers', 'jinja2', 'planish.compiler') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def test_undefined_logits_name_the_layer_where_they_begin() -> None:
    model = small_llama()
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[3, 3] = float("nan")  # type: ignore[index, union-attr]
    lm = planish.compile(model, inputs=(torch.arange(3, 9)[None],), generate=Generation(context=16, chunk=8))
    with pytest.raises(GenerationError, match="hold nan: they begin in the values of layer 1"):
        list(lm.generate([5, 6, 7]))


def test_the_tokenizer_and_the_chat_template_travel(saved: Path) -> None:
    lm = planish.load(saved)
    assert lm.generate("hi").prompt == tuple(fast_tokenizer()("hi").input_ids)
    rendered = fast_tokenizer().apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert bytes(lm.chat("hi").prompt).decode() == rendered
    stream = lm.generate("hi", max_new_tokens=8)
    shown = "".join(token.text for token in stream)
    assert shown == fast_tokenizer().decode([i for i in stream.ids if i != 2])


def test_load_refuses_code_that_gives_other_logits(saved: Path, tmp_path: Path) -> None:
    lm = planish.load(saved)
    lm.save(tmp_path / "other")
    recorded = load_file(tmp_path / "other" / "golden.safetensors")
    recorded["generation.logits"][3] += 1.0
    save_file(recorded, tmp_path / "other" / "golden.safetensors")
    _resign(tmp_path / "other", "golden.safetensors")
    with pytest.raises(ArtifactError, match=r"golden check: the logits of decode is .* at \[3\]"):
        planish.load(tmp_path / "other")


def test_the_record_is_the_models_own(compiled: Any, saved: Path) -> None:
    model, _ = compiled
    recorded = load_file(saved / "golden.safetensors")
    with torch.no_grad():
        wanted = model(torch.tensor(recorded["generation.prompt"])[None]).logits[0, -1]
    assert np.array_equal(recorded["generation.logits"], wanted.numpy())


def _resign(folder: Path, name: str) -> None:
    """Writes the manifest anew for a changed file."""
    import dataclasses

    from planish.runtime.manifest import FileEntry

    manifest = Manifest.from_bytes((folder / "manifest.json").read_bytes())
    file = folder / name
    files = {**manifest.files, name: FileEntry(hash_file(file), file.stat().st_size)}
    (folder / "manifest.json").write_bytes(dataclasses.replace(manifest, files=files).to_bytes())


def test_inspect_report_profile_and_roofline_know_the_functions(compiled: Any, saved: Path) -> None:
    _, lm = compiled
    assert "generates: context 60, batch 3, prefill by 8, cache f32, vocabulary 256, end tokens 2" in str(
        inspect(saved)
    )
    assert "split-generation" in str(lm.report)
    assert any(row.scope for row in lm.profile("decode", past=30, repeat=1).rows)
    assert lm.profile("prefill", tokens=8, rows=2, repeat=1).function == "prefill"
    assert repr(lm) == "LanguageModel(context=60, batch=3, chunk=8, cache='f32', vocabulary=256)"
    with pytest.raises(InputError, match="past 60, tokens 1 and rows 1 do not fit a context of 60"):
        lm.profile(past=60)


def test_calling_a_language_model_says_what_to_call(compiled: Any) -> None:
    with pytest.raises(InputError, match=r"call .generate\(prompt\) or .chat\(messages\)"):
        compiled[1](torch.ones(1, 4))


def test_the_command_streams_text_and_tells_the_speed(saved: Path) -> None:
    lm = planish.load(saved)
    wanted = lm.generate("hi", max_new_tokens=6)
    list(wanted)
    shown = CliRunner().invoke(app, ["generate", str(saved), "hi", "--max-new-tokens", "6"])
    assert shown.exit_code == 0
    assert shown.stdout == wanted.text + "\n"
    assert "2 + 6 tokens, first after" in shown.stderr
    told = CliRunner().invoke(app, ["generate", str(saved), "104 105", "--ids", "--json", "--max-new-tokens", "6"])
    assert json.loads(told.stdout)["ids"] == wanted.ids
    words = ["generate", str(saved), "-", "--json", "--max-new-tokens", "6"]
    assert json.loads(CliRunner().invoke(app, words, input="hi\n").stdout)["ids"] == wanted.ids


def test_bench_measures_prefill_and_decode(saved: Path) -> None:
    words = [
        "bench",
        str(saved),
        "--prompt",
        "20",
        "--tokens",
        "5",
        "--batch",
        "2",
        "--seconds",
        "0.1",
        "--threads",
        "1",
    ]
    row = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert (row["batch"], row["prompt"], row["tokens"], row["threads"]) == (2, 20, 5, 1)
    assert row["prefill_tokens_per_second"] == pytest.approx(2 * 20 / row["seconds_to_first"])
    assert row["decode_tokens_per_second"] == pytest.approx(2 * 1e3 / row["token_median_ms"])
    weights = sum(4 * value.numel() for name, value in small_llama().named_parameters() if "embed" not in name)
    cache = 2 * 22 * 2 * 4 * sum(n.shape[0] for name, n in small_llama().named_parameters() if "k_proj" in name)
    assert row["token_megabytes"] == pytest.approx(1e-6 * (weights + cache), rel=0.05)
    assert "profile" not in row
    assert "rms_norm" in CliRunner().invoke(app, [*words, "--profile"]).stdout


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["bench", "--size", "B=2"], "--size is for other models; a language model takes --prompt, --tokens and"),
        (["bench", "--prompt", "59", "--tokens", "3"], r"59 \+ 3 tokens do not fit a context of 60"),
        (["bench", "--batch", "4"], "--batch 4: the model was compiled for 3"),
        (["run"], "is a language model; run it with: planish generate"),
    ],
)
def test_commands_refuse_what_a_language_model_does_not_take(saved: Path, words: list[str], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        CliRunner().invoke(app, [words[0], str(saved), *words[1:]], catch_exceptions=False)


def test_an_unknown_option_is_refused_with_the_nearest(compiled: Any) -> None:
    with pytest.raises(InputError, match="generate has no option 'tempurature'; did you mean 'temperature'"):
        compiled[1].generate([1, 2], tempurature=1.0)


def test_weights_are_quantized_after_the_exact_passes() -> None:
    lossy = QuantizeWeights(bits=8)
    generation = Generation(context=32, batch=2, chunk=4, cache="i8")
    split = SplitGeneration(32, 4, 2, "i8")
    assert with_split((), generation) == (*EXACT, split)
    assert with_split((lossy,), generation) == (*EXACT, split, lossy)
    assert with_split((FuseNorms(), FoldConstants(), lossy), generation) == (FuseNorms(), FoldConstants(), split, lossy)
    assert with_split((lossy, split), generation) == (lossy, split)


def test_a_quantized_model_is_checked_against_its_own_codes(tmp_path: Path) -> None:
    model = small_llama()
    lm = planish.compile(
        model,
        inputs={"input_ids": torch.arange(3, 12)[None]},
        generate=Generation(context=32, chunk=8, cache="i8"),
        passes=["quantize-weights{bits=8}"],
    )
    lm.save(tmp_path / "lm")
    recorded = load_file(tmp_path / "lm" / "golden.safetensors")
    with torch.no_grad():
        exact = model(torch.tensor(recorded["generation.prompt"])[None]).logits[0, -1].numpy()
    error = np.abs(recorded["generation.logits"] - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.05
    assert lm.settings.end == (2,), "of the model's configuration"
    assert len(list(lm.generate([4, 5], max_new_tokens=4))) == 4


def test_caches_of_four_bits_are_for_gpus() -> None:
    with pytest.raises(
        InputError, match=r"caches of 'i4' have kernels for GPUs alone; on .* use cache='f32', 'f16' or"
    ):
        planish.compile(
            small_llama(), inputs={"input_ids": torch.arange(3, 12)[None]}, generate=Generation(context=32, cache="i4")
        )


def test_batch_and_tokens_are_dynamic_without_being_declared() -> None:
    model, ids = small_llama(), torch.ones(1, 6, dtype=torch.int64)
    mask = torch.ones_like(ids)
    assert with_sizes(model, (ids, mask), {}, None, Generation()) == (
        {"use_cache": False},
        {"input_ids": {1: "sequence"}, "attention_mask": {1: "sequence"}},
    )
    assert with_sizes(model, (), {"input_ids": ids}, None, Generation(batch=2))[1] == {
        "input_ids": {1: "sequence", 0: "batch"}
    }
    assert with_sizes(model, (ids,), {}, {"input_ids": {1: "n"}}, Generation())[1] == {"input_ids": {1: "n"}}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"context": 0}, "Generation: context is an integer of at least 1, not 0"),
        ({"batch": 1.5}, "Generation: batch is an integer of at least 1, not 1.5"),
        ({"chunk": True}, "Generation: chunk is an integer of at least 1, not True"),
        ({"cache": "f64"}, "Generation: cache is 'f32', 'f16', 'i8' or 'i4', not 'f64'"),
        ({"end": ("x",)}, "Generation: end holds token ids, not 'x'"),
        ({"end": 2.5}, "Generation: end is a token id or a list of them, not 2.5"),
    ],
)
def test_generation_refuses_values_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Generation(**options)


def test_tokenizers_are_taken_from_transformers_from_tokenizers_and_from_files(tmp_path: Path) -> None:
    fast = fast_tokenizer()
    fast.save_pretrained(tmp_path)
    for given in (fast, tmp_path, str(tmp_path / "tokenizer.json")):
        stored = tokenizer_of(given)
        assert stored is not None
        assert stored.encode("hé") == fast("hé").input_ids
        assert stored.template == _TEMPLATE
        assert stored.special["eos_token"] == "!"
    alone = tokenizer_of(fast.backend_tokenizer)
    assert alone is not None
    assert (alone.template, alone.encode("a")) == ("", fast("a").input_ids)
    assert tokenizer_of(None) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [(3, "a int has no tokenizer.json; give a fast tokenizer"), ("nowhere", "there is no tokenizer at 'nowhere'")],
)
def test_refuses_what_is_no_tokenizer(given: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        tokenizer_of(given)


def test_a_context_beyond_the_models_positions_is_noted() -> None:
    assert context_notes(small_llama(), Generation(context=64)) == ()
    (note,) = context_notes(small_llama(), Generation(context=65))
    assert note.startswith("65 tokens are more than the 64 of the model's max_position_embeddings")


def test_end_tokens_are_those_of_the_configurations() -> None:
    model = small_llama()
    model.generation_config.eos_token_id = [4, 5]
    assert end_tokens(Generation(), model, None) == (4, 5, 2)
    assert end_tokens(Generation(), nn.Linear(1, 1), tokenizer_of(fast_tokenizer())) == (ord("!"),)
    assert end_tokens(Generation(end=(9,)), model, None) == (9,)
    assert end_tokens(Generation(end=9), model, None) == (9,)


@pytest.mark.parametrize(
    ("options", "words", "stage"),
    [
        ({"tokenizer": "nowhere"}, "there is no tokenizer at 'nowhere'", None),
        ({"end": [2, 300]}, "end holds token 300, outside the vocabulary of 256 of the model", "running passes"),
    ],
)
def test_what_cannot_be_is_said_before_code_is_generated(options: dict[str, Any], words: str, stage: str) -> None:
    stages: list[str] = []
    with pytest.raises(InputError, match=words):
        planish.compile(
            small_llama(),
            inputs=(torch.arange(3, 9)[None],),
            generate=Generation(context=16, **options),
            progress=stages.append,
        )
    assert (stages[-1] if stages else None) == stage


def test_refuses_a_model_that_is_not_causal() -> None:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = transformers.BertForMaskedLM(config).eval()
    with pytest.raises(PassError, match="split-generation: "):
        planish.compile(model, inputs=(torch.ones(1, 5, dtype=torch.int64),), generate=Generation(context=8))


def test_refuses_a_generation_that_is_none() -> None:
    with pytest.raises(InputError, match=r"generate is a planish.Generation\(...\), not True"):
        planish.compile(nn.Linear(4, 4).eval(), inputs=(torch.ones(1, 4),), generate=True)  # type: ignore[arg-type]


def test_refuses_examples_without_token_ids() -> None:
    with pytest.raises(InputError, match="compile with generate= needs example token ids"):
        planish.compile(nn.Linear(4, 4).eval(), inputs=(torch.ones(1, 4),), generate=Generation())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--context", "64"], "--context is for language models; add --generate"), (["--batch", "2"], "--batch is for")],
)
def test_the_command_refuses_options_without_generate(arguments: list[str], words: str, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["compile", "x:y", "-o", str(tmp_path / "a"), *arguments])
    assert words in str(shown.exception)


def test_what_is_no_language_model_says_so(tmp_path: Path) -> None:
    linear = planish.compile(nn.Linear(4, 4).eval(), inputs=(torch.ones(1, 4),))
    with pytest.raises(InputError, match=r"this model was not compiled to generate; give planish.compile a causal"):
        linear.generate([1])
    with pytest.raises(InputError, match="this model was not compiled to chat"):
        linear.chat("hi")
    linear.save(tmp_path / "linear")
    shown = CliRunner().invoke(app, ["generate", str(tmp_path / "linear"), "x"])
    assert "is no language model; compile one with --generate" in str(shown.exception)

"""The zoo's models are the trained models they claim to be, and their metrics measure what they say."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.zoo import ZOO, DataError, ZooModel, data, tensors
from benchmarks.zoo.efficientnet_lite0 import EFFICIENTNET_LITE0
from benchmarks.zoo.glassllm import GLASSLLM
from benchmarks.zoo.minilm import MINILM, paraphrases
from benchmarks.zoo.packages import folder
from benchmarks.zoo.perplexity import perplexity
from benchmarks.zoo.vit_s14 import VIT_S14, checkpoint
from benchmarks.zoo.whisper_tiny_encoder import WHISPER_TINY_ENCODER, word_errors

MODEL = pytest.mark.parametrize("model", ZOO, ids=lambda model: model.name)
FAST = pytest.mark.parametrize("model", [MINILM, EFFICIENTNET_LITE0, GLASSLLM], ids=lambda model: model.name)


@MODEL
def test_names_the_dynamic_axes_of_every_input(model: ZooModel) -> None:
    assert all(0 in axes and axes[0] == "batch" for axes in model.dynamic.values())
    assert (model.length is not None) == ("length" in model.sizes)


@FAST
def test_exports_with_dynamic_sizes_and_keeps_its_numbers(model: ZooModel) -> None:
    module = model.load()
    exported = torch.export.export(
        module, (), model.inputs(2, None), dynamic_shapes=model.dynamic_shapes(), strict=False
    )
    other = model.inputs(3, 40 if model.length else None)
    with torch.inference_mode():
        pairs = zip(tensors(module(**other)), tensors(exported.module()(**other)), strict=True)
        assert max((ours - theirs).abs().max().item() for ours, theirs in pairs) < 1e-5


@FAST
def test_takes_its_inputs_by_position_as_by_name(model: ZooModel) -> None:
    module, inputs = model.load(), model.inputs(1, None)
    with torch.inference_mode():
        assert torch.equal(tensors(module(**inputs))[0], tensors(module(*inputs.values()))[0])


def test_glassllm_agrees_with_the_numpy_forward_of_its_package() -> None:
    from glassllm import load_pretrained  # type: ignore[import-untyped]

    source, _ = load_pretrained("en")
    ids = GLASSLLM.inputs(1, 96)["input_ids"]
    with torch.inference_mode():
        ours = tensors(GLASSLLM.load()(ids))[0][0].numpy()
    assert np.abs(ours - np.asarray(source.forward(ids[0].tolist()).data)[0]).max() < 1e-4


def test_vit_agrees_with_onnx_runtime_on_the_file_it_was_read_from() -> None:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    stored = onnx.load(checkpoint())
    norm = [node for node in stored.graph.node if node.name.startswith("/backbone/layernorm")][-1].output[0]
    stored.graph.output.append(onnx.helper.make_tensor_value_info(norm, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(stored.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = VIT_S14.inputs(1, None)["pixel_values"]
    expected = session.run([norm], {session.get_inputs()[0].name: pixels.numpy()})[0]
    with torch.inference_mode():
        assert np.abs(tensors(VIT_S14.load()(pixels))[0].numpy() - expected).max() < 1e-3


def test_efficientnet_sees_a_tiger_cat_in_chelsea_and_an_espresso_in_coffee() -> None:
    with torch.inference_mode():
        labels = EFFICIENTNET_LITE0.load()(EFFICIENTNET_LITE0.inputs(2, None)["inputs"]).argmax(1)
    assert labels.tolist() == [282, 967]


def test_minilm_finds_paraphrases_and_noise_does_not() -> None:
    noise = torch.Generator().manual_seed(1)

    def random_call(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.randn(*ids.shape, 384, generator=noise)

    assert paraphrases(MINILM.load()).value == 1.0
    assert paraphrases(random_call).value < 1.0


def test_minilm_ignores_padding() -> None:
    inputs = MINILM.inputs(2, 32)
    length = int(inputs["attention_mask"][1].sum())
    assert length < 32
    module = MINILM.load()
    with torch.inference_mode():
        padded = tensors(module(**inputs))[0][1, :length]
        alone = tensors(module(*(value[1:, :length] for value in inputs.values())))[0][0]
    torch.testing.assert_close(padded, alone, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_whisper_hears_what_was_read_aloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # tests read the cache and fetch nothing
    try:
        quality = WHISPER_TINY_ENCODER.quality(WHISPER_TINY_ENCODER.load())
    except DataError as error:
        pytest.skip(f"speech is fetched by benchmarks alone: {error}")
    assert quality.value < 0.1
    assert not quality.higher_is_better


def test_perplexity_of_uniform_logits_is_the_size_of_the_vocabulary() -> None:
    assert perplexity(lambda ids: torch.zeros(*ids.shape, 50), torch.zeros(2, 8, dtype=torch.int64)) == pytest.approx(
        50
    )


def test_word_errors_are_the_edit_distance() -> None:
    assert word_errors(list("abcd"), list("axc")) == 2
    assert word_errors(list("ab"), []) == 2
    assert word_errors(list("same"), list("same")) == 0


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(DataError, match="pip install --no-deps no-such-package==1"):
        folder("no_such_package", "no-such-package==1")


def test_data_without_apt_says_where_to_put_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"apt-get is not on this machine, so wordnet-base cannot be fetched.*unpack"):
        data.unpack("wordnet-base", tmp_path / "cache")


def test_data_that_is_there_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "wordnet-base").mkdir()
    assert data.unpack("wordnet-base", tmp_path) == tmp_path / "wordnet-base"


def test_a_model_whose_dynamic_names_lack_ranges_is_refused() -> None:
    with pytest.raises(ValueError, match="dynamic names"):
        ZooModel("x", "x", MINILM.load, MINILM.inputs, {"a": {0: "batch"}}, {}, MINILM.quality)

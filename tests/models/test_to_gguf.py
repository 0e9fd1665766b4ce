"""GGUF files: the same logits after a round trip, the same tokens, and the chat template in Ollama's language."""

import importlib.util
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AddedToken, Gemma3ForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from postrain.errors import ConfigError
from postrain.models.loading import load_tokenizer
from postrain.models.sources import ASSETS
from postrain.models.to_gguf.architectures import architecture_of
from postrain.models.to_gguf.modelfile import conversation, modelfile, prompt_of, turn_template
from postrain.models.to_gguf.quantize import check_type
from postrain.models.to_gguf.tokenizer import adds_bos, portable_template
from postrain.models.to_gguf.write import read_gguf, write_gguf
from tests.models.conftest import CONFIGS, TURN, byte_tokenizer, source, tiny_model
from tests.models.test_adapters import logits


def exportable(architecture: str) -> Any:
    """A tiny model whose settings llama.cpp can express."""
    if architecture == "llama3":
        config: Any = deepcopy(CONFIGS["llama"])
        scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        config.rope_parameters = {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 8,
            **scaling,
        }
        return LlamaForCausalLM(config).eval()
    if architecture != "gemma3":
        return tiny_model(architecture)
    config = deepcopy(CONFIGS["gemma3"])
    config.num_hidden_layers, config.layer_types = 6, ["sliding_attention"] * 5 + ["full_attention"]
    return Gemma3ForCausalLM(config).eval()


def fields(path: Path) -> dict[str, Any]:
    """The metadata of a file."""
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
@pytest.mark.parametrize("architecture", ["llama", "llama3", "qwen2", "qwen3", "gemma3", "gpt2"])
def test_file_read_by_transformers_gives_the_same_logits(tmp_path: Path, architecture: str, kind: str) -> None:
    model = exportable(architecture)
    write_gguf(model, byte_tokenizer(), tmp_path / "tiny.gguf", kind, name="tiny", end_ids=[TURN])
    expected = logits(model)
    found = logits(read_gguf(tmp_path / "tiny.gguf", model.config))
    # 11 bits of float16, 8 bits of the largest value of a block.
    tolerance = (2e-3 if kind == "f16" else 1e-2) * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("architecture", "problem"), [("cohere", "cohere models are not supported"), ("gemma3", "6")])
def test_architecture_that_llama_cpp_cannot_express_is_refused(architecture: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        architecture_of(CONFIGS[architecture])


def test_setting_that_llama_cpp_cannot_express_is_refused() -> None:
    config: Any = deepcopy(CONFIGS["qwen2"])
    config.rope_parameters = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(ConfigError, match=r"llama.cpp has no qwen2 model with yarn rotary scaling"):
        architecture_of(config)


def test_tokenizer_of_nano_is_written_with_types_and_end_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(source(ASSETS / "nano").resolve())
    model = tiny_model("gpt2")
    model.resize_token_embeddings(len(tokenizer) + 3, mean_resizing=False)
    end = tokenizer.get_vocab()["<|end|>"]
    write_gguf(model, tokenizer, tmp_path / "nano.gguf", "f16", name="nano", end_ids=[0, end])
    found = fields(tmp_path / "nano.gguf")
    assert found["tokenizer.ggml.tokens"][-4:-2] == [tokenizer.convert_ids_to_tokens(1023), "[PAD1024]"]
    assert found["tokenizer.ggml.token_type"][:7] == [3, 3, 3, 3, 3, 3, 1]
    assert found["tokenizer.ggml.token_type"][-1] == 5
    ids = [found[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot", "padding")]
    assert ids == [0, 0, end, 1]
    assert (found["tokenizer.ggml.pre"], found["tokenizer.ggml.add_bos_token"]) == ("smollm", False)
    assert "generation" not in found["tokenizer.chat_template"].replace("add_generation_prompt", "")


def sentencepiece_like() -> Any:
    """A BPE with byte fallback and ▁ for spaces that adds a begin token, as Gemma's."""
    tokens = ["<bos>", "<unk>", "<0x41>", "▁", "a", "b", "ab", "▁ab"]
    merges = [("a", "b"), ("▁", "ab")]
    inner = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=merges,
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.Replace("▁", " ")
    found = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<bos>", unk_token="<unk>")
    found.add_tokens([AddedToken("▁▁", normalized=False)])
    return found


def test_sentencepiece_scores_are_the_ranks_of_merges(tmp_path: Path) -> None:
    model = tiny_model("llama")
    write_gguf(model, sentencepiece_like(), tmp_path / "spm.gguf", "f16", name="spm")
    found = fields(tmp_path / "spm.gguf")
    assert found["tokenizer.ggml.model"] == "llama"
    assert found["tokenizer.ggml.scores"][:8] == [0, 0, 0, 0, 0, 0, -1, -2]
    # Control, unknown, byte, normal ..., and an added token as it appears in a text.
    assert found["tokenizer.ggml.token_type"][:5] == [3, 2, 6, 1, 1]
    assert (found["tokenizer.ggml.tokens"][8], found["tokenizer.ggml.token_type"][8]) == ("  ", 4)
    assert found["tokenizer.ggml.add_space_prefix"] is False


def test_unknown_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    tokenizer: Any = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ConfigError, match="other tokens than this tokenizer, whose pre-tokenizer is not one of gpt-2"):
        write_gguf(tiny_model("gpt2"), tokenizer, tmp_path / "x.gguf", "f16", name="x")


CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM_IN_USER = (
    "{% set first = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' %}"
    "{% for m in messages if m['role'] != 'system' %}"
    "[{{ 'model' if m['role'] == 'assistant' else 'user' }}]{{ first if loop.first else '' }}{{ m['content'] }}[end]\n"
    "{% endfor %}{% if add_generation_prompt %}[model]{% endif %}"
)
NUMBERED = "{% for m in messages %}{{ loop.index }}. {{ m['content'] }}\n{% endfor %}"


@pytest.mark.parametrize("template", [CHATML, SYSTEM_IN_USER, "nano"])
def test_translated_template_renders_the_same_prompt(template: str) -> None:
    tokenizer = load_tokenizer(source(ASSETS / "nano").resolve())
    tokenizer.chat_template = tokenizer.chat_template if template == "nano" else template
    found = turn_template(tokenizer)
    assert found
    chat = conversation(("system", "user", "assistant", "user"))
    assert found.render(chat) == prompt_of(tokenizer, chat)
    text, note = modelfile(tokenizer, "x.gguf", end_ids=[5])
    assert note is None
    assert text.startswith('FROM ./x.gguf\nTEMPLATE """{{- $first := true }}')
    assert text.endswith('PARAMETER stop "<|endoftext|>"\nPARAMETER stop "<|end|>"\n')


def test_line_breaks_of_a_translated_template_are_trimmed() -> None:
    # Nothing is written before an answer. Go trims the line break before an action that begins with {{-.
    tokenizer = load_tokenizer(source(ASSETS / "nano").resolve())
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    found = turn_template(tokenizer)
    assert found
    assert found.answer[0] == ""
    assert all(line.startswith("{{-") for line in found.to_go().splitlines())


def test_template_that_cannot_be_translated_gets_a_note_and_no_template() -> None:
    tokenizer: Any = byte_tokenizer()
    tokenizer.chat_template = NUMBERED
    text, note = modelfile(tokenizer, "x.gguf")
    assert note
    assert "TEMPLATE" not in text
    assert note in text


def test_base_model_without_chat_template_continues_the_prompt() -> None:
    tokenizer: Any = byte_tokenizer()
    tokenizer.chat_template = None
    assert 'TEMPLATE """{{ .Prompt }}"""' in modelfile(tokenizer, "x.gguf")[0]


def test_portable_template_keeps_whitespace_control() -> None:
    tokenizer: Any = byte_tokenizer()
    tokenizer.chat_template = "a\n{%- generation -%}\n b{% endgeneration %}"
    assert portable_template(tokenizer) == "a\n{%- if true -%}\n b{% endif %}"
    assert not adds_bos(tokenizer)


def test_template_that_changes_without_its_generation_tags_is_refused() -> None:
    tokenizer: Any = byte_tokenizer()
    # A variable of the block `generation` ends with it; one of `if` does not.
    tokenizer.chat_template = "{% generation %}{% set x = 1 %}{% endgeneration %}{{ x }}"
    with pytest.raises(ConfigError, match=r"--gguf: llama\.cpp does not know the tag generation"):
        portable_template(tokenizer)


def test_type_that_does_not_exist_or_cannot_be_written_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--gguf q5: no such type; expected one of f16, q8_0, q4_k_m"):
        check_type("q5")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llama_cpp" else found(name))
    with pytest.raises(ConfigError, match=r"pip install llama-cpp-python\), or write q8_0"):
        check_type("q4_k_m")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="needs the package gguf: pip install gguf"):
        check_type("f16")


def test_llama_cpp_gives_the_same_tokens_and_the_same_greedy_answer(saved: Callable[..., Path], tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    resolved = source(ASSETS / "nano").resolve()
    from postrain.models.loading import load_causal  # noqa: PLC0415 - only if llama.cpp is installed

    model: Any = load_causal(resolved, dtype=torch.float32)
    tokenizer = load_tokenizer(resolved)
    write_gguf(model, tokenizer, tmp_path / "nano.gguf", "f16", name="nano")
    engine = llama_cpp.Llama(str(tmp_path / "nano.gguf"), n_ctx=256, verbose=False, n_threads=1)
    for text in ("Tom found a ball, 12 + 30 = ", "Don't   do that!\n\n<|user|>\nnaïve 😀"):
        ids = tokenizer(text).input_ids
        assert engine.tokenize(text.encode(), add_bos=True, special=True) == ids
        answer = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0, len(ids) :]
        stream = engine.generate(ids, temp=0.0)
        assert [next(stream) for _ in range(len(answer))] == answer.tolist()
    engine.close()

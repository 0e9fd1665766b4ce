"""Python API for models: load a model, score completions, sample completions.

    model, tokenizer = load_model("nano")
    completions = generate(model, ["2 + 2 ="], max_new_tokens=8, num_generations=4, seed=0)
    logps = score(model, completions)

Methods, losses, DataModule and the rest of the public names are in postrain/__init__.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from annotated_types import Interval
from torch import Tensor, nn

from postrain.config.check import check_arguments, check_objects
from postrain.config.keywords import refuse_unknown_keywords
from postrain.data.chat import Template
from postrain.data.conversation import Message, Messages, with_prefill
from postrain.data.layouts import Malformed, Unusable
from postrain.data.messages import messages
from postrain.data.tool_calls import declare
from postrain.errors import ConfigError
from postrain.models.adapters import Adapter, NoAdapter
from postrain.models.by_name import source_of
from postrain.models.checks import check_device, check_rows
from postrain.models.end_tokens import record_end_ids
from postrain.models.loading import load_causal, load_scalar, load_tokenizer
from postrain.models.micro_batches import in_micro_batches
from postrain.models.provenance import Provenance, provenance_of, record_provenance
from postrain.models.scoring import EntropyMode
from postrain.models.scoring import score as scores_of
from postrain.rewards.tool_calls import find_calls
from postrain.rollout.local import LocalEngine
from postrain.seeds import derive_seed
from postrain.types import Count, CountOrZero, Fraction, NonNegative, Positive, Rows, Seed, Size, Stop

Text = str | Sequence[Mapping[str, Any]] | Sequence[int] | Tensor
"""A text, the messages of a conversation ({"role": ..., "content": ...}), or token ids."""


@refuse_unknown_keywords
def load_model(
    name: str | Path = "nano",
    *,
    head: Literal["causal", "scalar"] = "causal",
    adapter: Adapter | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    resize: bool = False,
) -> tuple[Any, Any]:
    """Loads a model, in eval mode, and its tokenizer.

    `name` is an option of conf/model (nano, gpt2, smollm2, ...), a directory, a run folder, a .gguf file or a Hub name;
    `head` is causal for a language model or scalar for a reward model; `adapter` is added to it (LoRA(r=8)); `resize`
    adds embeddings for tokens that only the tokenizer has. Reads safetensors only and runs no repository code.
    Raises ConfigError if the model is not available.

        >>> import postrain as pt
        >>> model, tokenizer = pt.load_model("nano")
        >>> tokenizer.decode(tokenizer("Tom found a ball.").input_ids)
        'Tom found a ball.'
    """
    check_arguments(load_model, name=str(name) if isinstance(name, Path) else name, head=head, resize=resize)
    if not isinstance(adapter, Adapter | None):
        raise ConfigError(f"adapter: expected an adapter, such as LoRA(r=8), got {adapter!r:.60}")
    check_objects(adapter=adapter)
    check_device(device)
    source = source_of(str(name), resize=resize)
    resolved, adapter = source.resolve(), adapter or NoAdapter()
    tokenizer = load_tokenizer(resolved)
    load = load_causal if head == "causal" else load_scalar
    base, saved = adapter.split(resolved)
    loaded = cast("nn.Module", load(base, dtype=dtype, quantization=adapter.quantization()))
    loaded = loaded if adapter.quantization() else loaded.to(device)
    model = adapter.wrap(loaded, head=head, saved=saved)
    record_provenance(model, Provenance(source, tokenizer, adapter))
    return model, tokenizer


@dataclass(frozen=True)
class Generated:
    """A completion."""

    text: str
    """Without special tokens."""
    token_ids: list[int]
    """T tokens, including the end token if it was sampled."""
    logps: list[float]
    """Log-probability of each token under the distribution it was sampled from, T numbers."""
    finished: bool
    """True if it ended with an end token or stop text, False if it was truncated at max_new_tokens."""
    prompt_ids: list[int]
    """Token ids of the prompt."""

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The calls in the text, {"name": ..., "arguments": {...}} each; [] without any."""
        return [dict(call) for call in find_calls(self.text).calls]


@contextmanager
def _python_names() -> Iterator[None]:
    """Errors name the arguments instead of the config keys: `template`, not `data.template`."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(re.sub(r"(?m)^(?:rollout|data)\.", "", str(error))) from None


@refuse_unknown_keywords
@_python_names()
def generate(
    model: nn.Module,
    prompts: Sequence[Text],
    *,
    tokenizer: Any = None,
    max_new_tokens: Size = 256,
    num_generations: Count = 1,
    seed: Seed = 0,
    temperature: NonNegative = 1.0,
    top_k: CountOrZero = 0,
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0,
    min_p: Fraction = 0.0,
    stop: str | Sequence[str] = (),
    template: str = "auto",
    tools: Sequence[Mapping[str, Any] | Callable[..., Any]] = (),
) -> list[Generated]:
    """Samples completions of prompts, prompt-major: completion g of prompt p is `found[p * num_generations + g]`.

    A completion depends on the index of its prompt, on g and on `seed`, not on the batch. Temperature 0 is greedy.
    `template` converts texts to tokens (see data.template); a tokenizer is required unless the model comes from
    `load_model`. `tools` are JSON schemas or functions, as in `apply_chat_template`; they are written as text
    (template="tools") if the tokenizer's template has none. Raises ConfigError for a prompt that fills the model's
    context.

        >>> import postrain as pt
        >>> model, tokenizer = pt.load_model("nano")
        >>> found = pt.generate(model, ["Tom found", "2 + 2 ="], max_new_tokens=4, num_generations=3, seed=0)
        >>> len(found), len(found[0].token_ids) == len(found[0].logps)
        (6, True)
    """
    sampling = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p
    }  # fmt: skip
    check_arguments(generate, **sampling, num_generations=num_generations, seed=seed, stop=stop, template=template)
    engine = LocalEngine(**sampling, stop=(stop,) if isinstance(stop, str) else tuple(stop))
    if isinstance(prompts, str):
        raise ConfigError(f"prompts: expected a list, got {prompts!r:.60}")
    mode = "tools" if tools and template == "auto" else template
    chat, declared = Template(_tokenizer(model, tokenizer), mode=mode, install=False), declare(tools)
    ids = [_prompt_ids(prompt, chat, declared) for prompt in prompts]
    check_rows(model, ids)
    indices = [(prompt, number) for prompt in range(len(ids)) for number in range(num_generations)]
    found = engine.generate(
        model,
        [ids[prompt] for prompt, _ in indices],
        seeds=[derive_seed(seed, "generate", prompt, number) for prompt, number in indices],
        stop=Stop(chat.stop_ids, engine.sampling.stop, chat.decode_all),
    )
    return [
        Generated(chat.decode(one.ids), one.ids.tolist(), one.logps.tolist(), one.finished, ids[prompt].tolist())
        for one, (prompt, _) in zip(found, indices, strict=True)
    ]


class TokenLogps(Tensor):
    """Log-probabilities of completion tokens, float32 [B, T], 0 outside `mask`. Operations return plain tensors."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    mask: Tensor
    """True at the tokens of each completion, left-aligned, bool [B, T]."""
    entropy: Tensor | None
    """Entropy of each token's distribution in nats, [B, T]; None unless requested."""


@refuse_unknown_keywords
@_python_names()
def score(
    model: nn.Module,
    rows: Sequence[Generated | tuple[Text, Text] | Mapping[str, Any]] | Rows,
    *,
    tokenizer: Any = None,
    temperature: Positive = 1.0,
    entropy: bool = False,
    micro_batch_tokens: Count = 8192,
    template: str = "auto",
) -> TokenLogps:
    """Log-probabilities of completions given their prompts: float32 [B, T] with `.mask`, bool [B, T].

    A row is a `Generated`, a pair (prompt, completion) of texts or of token ids, or a mapping with these two keys.
    B rows, T tokens of the longest completion including its end token. Differentiable, in one forward pass, if
    gradients are enabled and a parameter requires them; otherwise in micro-batches of at most `micro_batch_tokens`
    tokens. `temperature` divides the logits, as in sampling. A tokenizer is required for texts, unless the model comes
    from `load_model`.

        >>> import postrain as pt
        >>> model, tokenizer = pt.load_model("nano")
        >>> logps = pt.score(model, [("Tom found", " a red ball."), ("2 + 2 =", " 4")])
        >>> logps.shape == logps.mask.shape, bool((logps <= 0).all())
        (True, True)
    """
    check_arguments(
        score, temperature=temperature, entropy=entropy, micro_batch_tokens=micro_batch_tokens, template=template
    )
    batch = rows if isinstance(rows, Rows) else _rows(model, rows, tokenizer, template)
    check_rows(model, batch.ids)
    mode: EntropyMode = "differentiable" if entropy else "off"
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in model.parameters()):
        found = scores_of(model, batch, temperature=temperature, entropy=mode)
    else:
        found = in_micro_batches(
            lambda part: scores_of(model, part, temperature=temperature, entropy=mode), batch, micro_batch_tokens
        )
    logps = found.logps_BT.as_subclass(TokenLogps)
    logps.mask, logps.entropy = found.mask_BT, found.entropy_BT
    return logps


def _rows(model: nn.Module, rows: Sequence[Any], tokenizer: Any, template: str) -> Rows:
    pairs = [_pair(row) for row in rows]
    if not pairs:
        raise ConfigError("rows: expected at least one (prompt, completion)")
    chat = None
    if any(isinstance(completion, str) for _, completion in pairs):
        chat = Template(_tokenizer(model, tokenizer), mode=template, install=False)
    tokens = [_pair_ids(*pair, chat) for pair in pairs]
    return Rows(
        ids=tuple(torch.cat(pair) for pair in tokens),
        supervised=tuple(torch.arange(len(p) + len(c)) >= len(p) for p, c in tokens),
        row_ids=tuple(range(len(tokens))),
    )


def _pair(row: Any) -> tuple[Any, Any]:
    if isinstance(row, Generated):
        return row.prompt_ids, row.token_ids
    if isinstance(row, Mapping) and {"prompt", "completion"} <= row.keys():
        return row["prompt"], row["completion"]
    if isinstance(row, Sequence) and not isinstance(row, str) and len(row) == 2:
        return row[0], row[1]
    raise ConfigError(f"rows: expected (prompt, completion), a mapping with both, or a completion, got {row!r:.60}")


def _pair_ids(prompt: Any, completion: Any, template: Template | None) -> tuple[Tensor, Tensor]:
    """Token ids of a prompt and of its completion."""
    if isinstance(completion, str):
        assert template is not None
        return template.encode_completion(_messages(prompt), completion)
    pair = _ids(prompt), _ids(completion)
    if not all(map(len, pair)):
        raise ConfigError("rows: expected at least one token of the prompt and one of the completion")
    return pair


def _prompt_ids(prompt: Any, template: Template, declared: Messages = ()) -> Tensor:
    is_text = isinstance(prompt, str) or (isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping))
    return template.encode_prompt(declared + _messages(prompt)) if is_text else _ids(prompt)


def _messages(prompt: Any) -> Messages:
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    try:
        return with_prefill(messages(set(), prompt, "prompt", or_text="a text or ", is_prompt=True))
    except Malformed as error:
        raise ConfigError(str(error)) from None
    except Unusable as error:
        raise ConfigError(f"prompt: {error}") from None


def _ids(tokens: Any) -> Tensor:
    wrong = ConfigError(f"prompt: expected a text, messages or token ids, got {tokens!r:.60}")
    try:
        found = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError):
        raise wrong from None
    if not found.ndim or found.is_floating_point() or found.is_complex() or found.dtype is torch.bool:
        # An empty list is a tensor of floats.
        raise wrong if not found.ndim or found.numel() else ConfigError("prompt: expected at least one token")
    return found.long().flatten().cpu()


def _tokenizer(model: nn.Module, tokenizer: Any) -> Any:
    found = tokenizer or getattr(provenance_of(model), "tokenizer", None)
    if found is None:
        raise ConfigError("tokenizer: pass tokenizer=...; only models from load_model have one")
    record_end_ids(found, model)
    return found

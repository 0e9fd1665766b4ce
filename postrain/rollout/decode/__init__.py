"""Samples completions of a batch of prompts from a Hugging Face causal LM with a KV cache.

`LocalEngine.generate` (rollout/local.py) makes a `CacheSpec` from the prompts and limits, picks a backend for the model
and runs a `DecodeLoop`:

1. **Prompt groups.** Equal prompts are merged: a group of `num_generations` completions costs one prefill. Rows
   are sorted by length, so that padding is short and groups stay together.
2. **Admit.** Waiting rows are admitted to free slots of the cache. Their prompts are prefilled in blocks of at most
   `PREFILL_TOKENS`, in a separate cache, and copied into the slots so that all of them end at the same position.
   The first token of a row is drawn from the logits of its prompt.
3. **Step.** The backend runs the last token of every slot in use and returns the logits of the next one.
   `sampling.draw` samples a token by inverse transform and records its log-probability, so that old log-probs need no
   second pass. The uniform numbers of a row depend on the row's seed only: neither batch size nor neighbours change a
   sample.
4. **Stop.** A row ends at an end token, at a stop text (`StopTexts`, which decodes only a tail, and only where the
   new token could complete one) or at the row's limit. It stays in its slot until the next refill; its further tokens
   are discarded. On a GPU the host looks for ended rows every few steps (`loop.STEPS_PER_CHECK`): in between it reads
   nothing from the device, so that both work at the same time.
5. **Evict and compact** (continuous batching). Once `REFILL_FRACTION` of the slots are free, waiting rows are
   admitted to the slots of ended rows. If no rows wait, the last rows move into the free slots, so that the slots in
   use are contiguous.

The files:

- `loop.py`: queue, slots, tokens, stop texts. Independent of the model.
- `sampling.py`: temperature, top-k, top-p, min-p, and drawing a token. Independent of the loop.
- `backend.py`: next-token logits of rows in slots. `FastBackend` decodes with the forward pass of `fast.py`,
  `SlotBackend` with the model's forward pass over the slot cache, `PaddedBackend` with left-padded rows for every
  model, without continuous batching. `MixtureBackend` mixes the logits of two backends (Nash-MD). `backend_for`
  chooses the fastest backend that reproduces the model's logits on two short rows, checked once per model.
- `cache.py`: the slot cache, and attention that reads the keys and values of a shared prompt once per group.
- `fast.py`: forward pass of one token per row for the GPT-2 and Llama families and Gemma 3, in few operations.
- `weights.py`: linear layers for `fast.py`: layers with the same input concatenated, LoRA merged, packed for oneDNN on
  a CPU, copied to bf16 with `rollout.dtype=bf16` and under autocast, to int8 with `rollout.dtype=int8`. Prompts run
  as the model's forward pass does.
"""

"""From a batch of prompts to completions, with a Hugging Face causal LM and a KV cache.

`LocalEngine.generate` (rollout/local.py) makes a `CacheSpec` from the prompts and limits, picks a backend for the model
and runs a `DecodeLoop`:

1. **Prompt groups.** Equal prompts are merged: a group of `num_generations` completions costs one prefill. Rows
   are sorted by length, so that padding is short and groups stay together.
2. **Admit.** Waiting rows are admitted to free slots of the cache. Their prompts are prefilled in blocks of at most
   `PREFILL_TOKENS`, in a cache of their own, and copied into the slots so that all of them end at the same position.
   The first token of a row is drawn from the logits of its prompt.
3. **Step.** The backend gives every slot in use its last token and returns the logits of the next one;
   `sampling.draw` takes a token by inverse transform and records its log-probability as it is drawn, so that old
   log-probs need no second pass. The uniform numbers of a row come from the row's seed alone: neither batch size nor
   neighbours change a sample.
4. **Stop.** A row ends at an end token, at a stop text (`StopTexts`, which decodes only a tail, and only where the
   new token could complete one) or at its own limit. It stays in its slot until the next refill;
   its further tokens are discarded.
5. **Evict and compact** (continuous batching). Once `REFILL_FRACTION` of the slots are free, waiting rows are
   admitted to the slots of ended rows. If no rows wait, the last rows move into the free slots, so that the slots in
   use are contiguous.

The files:

- `loop.py`: the queue, the slots, the tokens, stop texts. Knows no model.
- `sampling.py`: temperature, top-k, top-p, min-p, and drawing a token. Knows no loop.
- `backend.py`: next-token logits of rows in slots. `FastBackend` runs single tokens through our own forward,
  `SlotBackend` through the model's own forward over the slot cache, `PaddedBackend` works for every model,
  left-padded and without continuous batching; `MixtureBackend` runs two side by side (Nash-MD). `backend_for` takes
  the fastest whose logits agree with the model's own on two short rows, which is tried once a model.
- `cache.py`: the slot cache, and attention that reads the keys and values of a shared prompt once for its whole
  group.
- `fast.py`: the forward of one token a row for GPT-2's family and Llama's, in few operations.
- `weights.py`: linear layers as it reads them: side by side where several read the same input, LoRA merged in, packed
  for oneDNN on a CPU, and as bf16 copies where `rollout.dtype=bf16` asks for them. Prompts always run in the weights'
  own type.
"""

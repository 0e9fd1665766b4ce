"""Writes a language model as a GGUF file for llama.cpp and Ollama.

`architectures` maps configs and weights, `tokenizer` the vocabulary and the chat template, `write` the file, `quantize`
its types, and `modelfile` the chat template in Ollama's language. Models of other architectures are refused.
"""

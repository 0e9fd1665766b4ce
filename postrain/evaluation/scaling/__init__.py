"""Test-time scaling: what a model gains when more tokens are spent on a question, one way a file."""

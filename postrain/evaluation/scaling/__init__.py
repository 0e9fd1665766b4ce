"""Test-time scaling: accuracy against the tokens spent on a question; one file per method."""

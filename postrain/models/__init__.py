"""Models: resolving, loading, adapters, scoring and export."""

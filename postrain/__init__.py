"""An experiment system for LLM post-training: every method one LightningModule, every choice a Hydra config group."""

__version__ = "0.2.0"

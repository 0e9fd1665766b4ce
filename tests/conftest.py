"""What all tests share: quiet cores, no network, no colours."""

import os

# Before torch is imported: OpenMP threads that spin make two processes on two cores ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("COLUMNS", "120")

import torch

torch.set_num_threads(1)

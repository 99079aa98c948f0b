"""Peak memory is that of this process, and of what runs now."""

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="elsewhere the peak of a single trial is not known"
)
def test_a_new_measurement_of_peak_memory_holds_nothing_that_was_freed_before():
    """glibc keeps freed memory for the next tensors (`prepare_host`): it was counted as every later trial's.

    Nor is the memory of the process that started this one, here pytest, its own: `ru_maxrss` begins with it.
    """
    code = (
        "import torch; from rxtone.model.host import prepare_host\n"
        "from rxtone.model.memory import peak_memory, reset_peak_memory\n"
        "prepare_host(); model = torch.nn.Linear(1, 1)\n"
        "assert reset_peak_memory(); before = peak_memory(model)\n"
        "earlier = [torch.ones(1 << 20) for _ in range(100)]; assert peak_memory(model) > before + (350 << 20)\n"
        "del earlier; assert reset_peak_memory(); print((peak_memory(model) - before) >> 20)"
    )
    own = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # there the device's memory would be meant
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=own).stdout
    assert int(grown) < 40

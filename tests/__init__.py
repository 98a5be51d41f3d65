"""The tests, and the one setting of tests/portable.py that no library reads from its environment.

It stands here for the processes that tests spawn: they import a test, but no conftest.
"""

import os

if os.environ.get("TEST_WITHOUT_ONEDNN"):
    import torch

    torch.backends.mkldnn.enabled = False

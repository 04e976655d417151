"Settings that every test shares"
import os
os.environ.setdefault('MPLBACKEND', 'Agg')      # no window, whatever the machine has
import pytest

def pytest_collection_modifyitems(items):
    "Tests that need a GPU say so, and say why they did not run"
    if not any('cuda' in o.keywords for o in items): return
    import torch
    if torch.cuda.is_available(): return
    for o in items:
        if 'cuda' in o.keywords: o.add_marker(pytest.mark.skip(reason='needs an NVIDIA GPU; torch finds none'))

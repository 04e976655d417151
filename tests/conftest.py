"Settings that every test shares"
import os
os.environ.setdefault('MPLBACKEND', 'Agg')      # no window, whatever the machine has
import pytest

# Files stay in the system's memory: whether they were on the disk would show where the machine itself goes down, which no test
# can bring about. That they are flushed before they take their place, `test_traps_keeping.py` sees
os.fsync = lambda fd: None

# The files that take longest, by seconds: two processes that take a file at a time begin with them, and end together
longest = ('crash sweeps_engines site ddp sweeps search gpu golden company bench cli deploy shrink '
           'contrast frames where gradients laws hostile traps_company actions arms learners identity').split()

def pytest_configure(config):
    config.option.loadscopereorder = False    # pytest-xdist would begin with the files of most tests

def _place(item):
    n = item.path.stem.removeprefix('test_')
    return longest.index(n) if n in longest else len(longest)

def pytest_collection_modifyitems(items):
    "Long files first; tests that need a GPU say so, and say why they did not run"
    items.sort(key=_place)
    if not any('cuda' in o.keywords for o in items): return
    import torch
    if torch.cuda.is_available(): return
    for o in items:
        if 'cuda' in o.keywords: o.add_marker(pytest.mark.skip(reason='needs an NVIDIA GPU; torch finds none'))

"The most memory that a lottery takes, in bytes a weight: `python peak_run.py WEIGHTS FOLDER` (or no folder) prints it"
import contextlib,io,sys
from functools import partial
from pathlib import Path
import torch
from torch import nn
from fastai.basics import DataLoaders,Learner,MSELossFlat,OptimWrapper
from fastai_lottery.rounds import LotteryCallback

def highest():
    "The most that this process ever had in memory, in bytes"
    return next(int(l.split()[1])*1024 for l in open('/proc/self/status') if l.startswith('VmHWM'))

def learner(n, cbs):
    "A net of about `n` weights in two layers, and two batches of two"
    w = int((n/2)**.5)
    m = nn.Sequential(nn.Linear(w, w), nn.ReLU(), nn.Linear(w, w))
    items = [(torch.randn(w),torch.randn(w)) for _ in range(4)]
    dls = DataLoaders.from_dsets(items, items[:2], bs=2, num_workers=0, device='cpu')
    return Learner(dls, m, loss_func=MSELossFlat(), opt_func=partial(OptimWrapper, opt=torch.optim.AdamW), lr=1e-4, cbs=cbs)

def lottery(n, path):
    "Two epochs of each of two rounds; bytes a weight"
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        learner(200, LotteryCallback()).fit_lottery(1, rounds=1, fit=Learner.fit)    # what the first call loads
        Path('/proc/self/clear_refs').write_text('5')
        was = highest()
        learn = learner(n, LotteryCallback())
        learn.fit_lottery(2, rounds=1, fit=Learner.fit, seed=0, path=path)
    return (highest()-was)/sum(p.numel() for p in learn.model.parameters())

if __name__=='__main__': print(lottery(int(sys.argv[1]), sys.argv[2] if len(sys.argv)>2 else None))

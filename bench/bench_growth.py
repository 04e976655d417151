"""Cost that grows as the work grows: times over several sizes, ratios to a named peer from the same run, and the exponent.
Each benchmark prints a table and a line that says whether it grows as it should"""
import contextlib,io,math,os,tempfile,time
from pathlib import Path
import numpy as np,pandas as pd
import torch
from torch import nn
from fastai.basics import Learner,accuracy
from fastai_lottery.all import lenet_300_100,LotteryCallback
from fastai_lottery.packing import least_bytes
from fastai_lottery.resets import state
from fastai_lottery.tables import append_rows
from common import data,images,interleave,learner,sized,tiny

def exponent(sizes, secs):
    "Slope of log(seconds) over log(size), by least squares"
    return np.polyfit(np.log(sizes), np.log(secs), 1)[0] if len(sizes)>1 else math.nan

def growth(title, sizes, arms, most, slope=1.05, repeats=5, unit='items', of='ms'):
    """Time `arms(size)`, `{name: function}` of ours and then of the peer, A B A B, at each of `sizes`; a function
    may return its own seconds, or thousands of something else, `of`. As it should: the exponent of ours is at most
    `slope`, its ratio to the peer at the largest size at most `most`"""
    def ms(f):
        t = time.perf_counter()
        own = f()
        return 1000*(own if isinstance(own, float) else time.perf_counter()-t)
    rows = [interleave({k:lambda f=f: ms(f) for k,f in arms(n).items()}, repeats) for n in sizes]
    ours,peer = rows[0]
    print(f'\n{title}\n  {unit:>14} {ours:>22} {peer:>22}      ratio')
    for n,r in zip(sizes,rows):
        print(f'  {n:14,} {r[ours]:19.2f} {of} {r[peer]:19.2f} {of}   × {r[ours]/r[peer]:6.2f}')
    e,ratio = exponent(sizes, [r[ours] for r in rows]),rows[-1][ours]/rows[-1][peer]
    good = 'grows as it should' if e<=slope and ratio<=most else 'does NOT grow as it should'
    says = 'a rehearsal' if tiny else good
    print(f'  exponent {e:.2f} (at most {slope:g}), ratio at the end {ratio:.2f} (at most {most:g}): {says}')
    assert len(rows)==len(sizes)

# ---- masks and scopes

# ---- folders of runs

def two_batches(n, path):
    "A function that trains `n` epochs of two batches, with checkpoints where there is a `path`"
    def f():
        dls = images(sized(128, 16), (8,), bs=sized(64, 8), valid=8)
        l = learner(dls, nn.Linear(8, 10), metrics=accuracy, cbs=LotteryCallback())
        with tempfile.TemporaryDirectory() as d, contextlib.redirect_stdout(io.StringIO()):
            l.fit_lottery(n, rounds=0, fit=Learner.fit_one_cycle, lr_max=1e-2, seed=0, path=d if path else None)
    return f

def bench_checkpoints():
    sizes = sized([100,200,400,800,1600], [2,3])
    growth('a checkpoint an epoch, of a tiny net and epochs of two batches', sizes, repeats=3, unit='epochs', most=4,
           arms=lambda n: {'with path':two_batches(n, True), 'without path':two_batches(n, False)})

def lenet_epochs(n, path):
    "A function that trains LeNet for `n` epochs of 917 batches"
    dls,_ = data()
    def f():
        l = learner(dls, lenet_300_100(), metrics=accuracy, cbs=LotteryCallback())
        with tempfile.TemporaryDirectory() as d, contextlib.redirect_stdout(io.StringIO()):
            l.fit_lottery(n, rounds=0, fit=Learner.fit, lr=1.2e-3, seed=0, path=d if path else None)
    return f

def bench_checkpoints_lenet():
    growth('a checkpoint an epoch, LeNet-300-100 on MNIST', sized([1,2,4,8], [1]), repeats=3, unit='epochs', most=1.02,
           arms=lambda n: {'with path':lenet_epochs(n, True), 'without path':lenet_epochs(n, False)})

def run_of(d, rounds):
    "A function that plays, or takes up, a run of tiny rounds in the folder `d`"
    dls = images(sized(64, 16), (8,), bs=sized(64, 8), valid=8)
    def f():
        torch.manual_seed(0)
        l = learner(dls, nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 10)), cbs=LotteryCallback())
        with contextlib.redirect_stdout(io.StringIO()):
            l.fit_lottery(1, rounds=rounds, amount=.001, fit=Learner.fit, lr=1e-2, seed=0, path=d)
    return f

def bench_going_on():
    with tempfile.TemporaryDirectory() as d:
        def arms(n):
            ours,one = run_of(f'{d}/{n}', n),run_of(f'{d}/one', 1)
            ours()
            return {'taken up':ours, 'a run of one round':one}
        growth('a run of so many rounds is taken up', sized([50,100,200,400,800], [2,3]), arms, most=2, unit='rounds')

def bench_folder_bytes():
    "Starts once, and each round's packed masks and survivors: what lies on the disk, and the least that could"
    def arms(n):
        l = learner(images(600, (1,28,28)), lenet_300_100(), cbs=LotteryCallback())
        with tempfile.TemporaryDirectory() as d, contextlib.redirect_stdout(io.StringIO()):
            rs = l.fit_lottery(1, rounds=n, path=d, seed=0)
            has = sum(f.stat().st_size for f in Path(d).rglob('*.safetensors'))
            once = (Path(d)/'init.safetensors').stat().st_size
        rest = sum(v.numel()*v.element_size() for k,v in state(l.model).items() if k not in rs[0].masks)
        least = once+sum(least_bytes(r.masks)+rest for r in rs)
        return {'on the disk':lambda: has/1e6, 'the least':lambda: least/1e6}
    growth("a run's folder, LeNet-300-100", sized([1,2,4,8,16], [1,2]), arms, most=1.1, repeats=1, unit='rounds', of='kB')

def bench_rows():
    row = dict(arm='random', accuracy=.97531, test_accuracy=.96531, seconds=12.3, mask_hash='0123456789abcdef')
    def ours(n):
        def f():
            rows = []
            with tempfile.TemporaryDirectory() as d:
                for k in range(n): append_rows(Path(d)/'controls.csv', rows, [dict(row, round=k)])
        return f
    def plain(n):
        def f():
            with tempfile.TemporaryDirectory() as d:
                for k in range(n):
                    with open(f'{d}/c.csv', 'a') as o:
                        pd.DataFrame([dict(row, round=k)]).to_csv(o, header=not k, index=False)
                        o.flush()
                        os.fsync(o.fileno())
        return f
    growth('rows are added one by one', sized([50,100,200,400], [2,3]), unit='rows', most=4,
           arms=lambda n: {'with digest and count':ours(n), 'pandas, at the end':plain(n)})

# ---- sweeps and commands

# ---- steps, overlaps, loaders

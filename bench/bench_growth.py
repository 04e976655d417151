"""Cost that grows as the work grows: times over several sizes, ratios to a named peer from the same run, and the exponent.
Each benchmark prints a table and a line that says whether it grows as it should"""
import functools,math,os,shutil,tempfile,time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
import pandas as pd
import torch
from fastai.basics import DataLoaders,Learner
from common import interleave,sized,tiny
from fastai_lottery import sweeps
from fastai_lottery.all import Preset,TensorDL,TensorDS,play_seed,results,shuffle_mask

def exponent(sizes, secs):
    "Slope of log(seconds) over log(size), by least squares"
    return np.polyfit(np.log(sizes), np.log(secs), 1)[0] if len(sizes)>1 else math.nan

def growth(title, sizes, arms, most, slope=1.05, repeats=5, unit='items'):
    """Time `arms(size)`, `{name: function}` of ours and then of the peer, A B A B, at each of `sizes`; a function
    may return its own seconds. As it should: the exponent of ours is at most `slope`, its ratio to the peer at the
    largest size at most `most`"""
    def ms(f):
        t = time.perf_counter()
        own = f()
        return 1000*(own if isinstance(own, float) else time.perf_counter()-t)
    rows = [interleave({k:lambda f=f: ms(f) for k,f in arms(n).items()}, repeats) for n in sizes]
    ours,peer = rows[0]
    print(f'\n{title}\n  {unit:>14} {ours:>22} {peer:>22}      ratio')
    for n,r in zip(sizes,rows):
        print(f'  {n:14,} {r[ours]:19.2f} ms {r[peer]:19.2f} ms   × {r[ours]/r[peer]:6.2f}')
    e,ratio = exponent(sizes, [r[ours] for r in rows]),rows[-1][ours]/rows[-1][peer]
    good = 'grows as it should' if e<=slope and ratio<=most else 'does NOT grow as it should'
    says = 'a rehearsal' if tiny else good
    print(f'  exponent {e:.2f} (at most {slope:g}), ratio at the end {ratio:.2f} (at most {most:g}): {says}')
    assert len(rows)==len(sizes)

# ---- masks and scopes

# ---- folders of runs

# ---- sweeps and commands

def _net(): return torch.nn.Sequential(torch.nn.Linear(8,12), torch.nn.ReLU(), torch.nn.Linear(12,4))

def _few(path=None, seed=0, device=None):
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(7))
    a,b = [TensorDS(o, o[:,:4].argmax(1)) for o in (x[:64], x[64:])]
    return DataLoaders(TensorDL(a, bs=16, shuffle=True, seed=seed), TensorDL(b, bs=32), TensorDL(b, bs=32),
                       device='cpu')

def _preset(rounds, levels, seeds):
    controls = dict(reinit=dict(reset='random_reinit'), random=dict(mask=shuffle_mask))
    return Preset('few', 'a net of some weights', 'none', 'seconds', _few, _net, levels=levels, controls=controls,
                  replicates=seeds,
                  settings=dict(n_epoch=1, rounds=rounds, amount=.1, fit=Learner.fit, lr=.02, eval_every=4))

@functools.cache
def _sweep(seeds, rounds):
    "A folder of so many seeds that are over, all of them copies of the first, and its preset"
    d,p = Path(tempfile.mkdtemp()),_preset(rounds, (rounds,), seeds)
    play_seed(p, 0, d/'seed_00')
    for i in range(1, seeds): shutil.copytree(d/'seed_00', d/f'seed_{i:02d}')
    for f in d.rglob('*'): os.utime(f, ns=(10**18,)*2)
    time.sleep(sized(2.1, 0))    # until no file is so young that it is read again
    return d,p

rounds_each = sized(16, 1)

def _cpu(f, n=1):
    "A function that calls `f` so many times and gives the seconds of the processor: waiting for the disk or others counts for nothing"
    def timed():
        t = time.process_time()
        for _ in range(n): f()
        return time.process_time()-t
    return timed

def _ms(f, n=20): return 1000*_cpu(f, n)()/n

def bench_results_again():
    "`results` where nothing has changed, to pandas reading the table of each seed"
    def arms(n):
        d,_ = _sweep(n, rounds_each)
        results(d)
        fs = sorted(d.glob('seed_*/rounds.csv'))
        return dict(results=_cpu(lambda: results(d)), pandas=_cpu(lambda: [pd.read_csv(f) for f in fs]))
    growth('results() of seeds of 17 rounds where nothing has changed, to pd.read_csv of rounds.csv',
           sized((5,10,20,40), (1,2)), arms,
                  most=1, unit='seeds')
    d,n = _sweep(sized(40, 2), rounds_each)[0],sized(40, 2)
    print(f'  {_ms(lambda: results(d))/n:.2f} ms a seed (at most 1)')

def _driver(n, work=None):
    "The driver of a sweep of which `n` seeds are over and one plays"
    d,p = _sweep(n, rounds_each)
    seeds = [sweeps.Seed(p, i, d/f'seed_{i:02d}') for i in range(n)]
    drv = sweeps.Driver(seeds, None, math.inf, None, dict.fromkeys(()), n)
    for s in seeds: s.begin(())
    drv.running[None] = seeds[0].left[0]
    return drv,d

def bench_driver_looks():
    "A look of the driver while one seed plays and the others are over, to a stat of the file that may have grown"
    def arms(n):
        drv,d = _driver(n)
        f = d/'seed_00'/'rounds.csv'
        return {'look':_cpu(drv.look, 1000), 'os.stat':_cpu(lambda: os.stat(f), 1000)}
    growth('1,000 looks of the driver, one seed at work, the others over', sized((5,10,20,40), (1,2)), arms, most=20,
           slope=.1, unit='seeds over')

def bench_driver_watches():
    "A look of the driver at seeds that all play: as many as there are, and no file is read"
    def arms(n):
        drv,d = _driver(n)
        for i,s in enumerate(drv.seeds): drv.running[i] = s.left[0]
        fs = [d/f'seed_{i:02d}'/'rounds.csv' for i in range(n)]
        return {'look':_cpu(drv.look, 100), 'os.stat':_cpu(lambda: [os.stat(f) for f in fs], 100)}
    growth('100 looks of the driver at seeds that all play, 17 rounds each', sized((5,10,20,40), (1,2)), arms, most=20,
           unit='seeds at work')
    n = sized(40, 2)
    drv,_ = _driver(n)
    for i,s in enumerate(drv.seeds): drv.running[i] = s.left[0]
    each = _ms(drv.look)/n
    print(f'  {1000*each:.1f} µs a seed at work; a look may take 25 of each 500 ms, so {25/each:,.0f} lotteries')

def _sleeps(secs, job):
    "What a worker gives that only sleeps"
    time.sleep(secs)
    o = job['o']
    rows = [dict(arm=o.name, round=o.k, density=.5, kept=1, valid_loss=.5, mask_hash='x', seconds=secs)]
    return dict(ok=rounds_each+1 if o.kind=='lottery' else rows)

def bench_pieces_that_sleep():
    "Pieces that only sleep: what the driver takes for each, and so for how many workers it is no limit"
    secs,n = sized(.02, .001),sized(40, 2)
    def play_with(workers, levels):
        with tempfile.TemporaryDirectory() as d, ThreadPoolExecutor(workers) as ex:
            p = _preset(rounds_each, tuple(range(1, levels+1)), n)
            for i in range(n):
                shutil.copytree(_sweep(n, rounds_each)[0]/f'seed_{i:02d}', Path(d)/f'seed_{i:02d}',
                                ignore=lambda *a: ['controls.csv','tables.json'])
            old,sweeps.work = sweeps.work,functools.partial(_sleeps, secs)
            t,cpu = time.perf_counter(),time.process_time()
            try: list(sweeps.play(p, d, executor=ex))
            finally: sweeps.work = old
            return time.perf_counter()-t,time.process_time()-cpu
    print(f'\npieces that sleep {1000*secs:.0f} ms, {n} seeds of {rounds_each+1} rounds')
    print('   workers    pieces   wall s   sleep s   driver ms a piece')
    for workers in (1,2,4):
        for levels in sized((1,4), (1,)):
            pieces = n*(1+2*levels)
            wall,cpu = play_with(workers, levels)
            print(f'  {workers:8} {pieces:9,} {wall:8.2f} {pieces*secs/workers:9.2f} {1000*cpu/pieces:12.2f}')
    print(f'  {60/(cpu/pieces):,.0f} workers are no limit for it where a piece takes a minute, {600/(cpu/pieces):,.0f} where it takes ten')

# ---- steps, overlaps, loaders

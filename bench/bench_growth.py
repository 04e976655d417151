"""Cost that grows as the work grows: times over several sizes, ratios to a named peer from the same run, and the exponent.
Each benchmark prints a table and a line that says whether it grows as it should"""
import math,os,subprocess,sys,time
import numpy as np
import torch
from fastai.basics import DataLoaders,Learner
from fastai_lottery.all import large_final,LotteryCallback,make_masks,Masks
from fastai_lottery.arms import amount_for
from fastai_lottery.model import one_more
from common import interleave,sized,tiny

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

layers = [sized(625*2**i, 5*(i+1)) for i in range(4)]
def many(n, density=.6):
    "Scores and masks of `n` layers of 200 weights"
    g = torch.Generator().manual_seed(0)
    s = {f'l{i}':torch.randn(10, 20, generator=g).abs() for i in range(n)}
    return s,Masks({k:torch.rand(v.shape, generator=g)<density for k,v in s.items()})

def prunes_of_many(title, scope, peer, name):
    def arms(n):
        s,m = many(n)
        return {title:lambda: make_masks(s, m, .2, scope), name:lambda: peer(s)}
    growth(f'{title}, layers of 200 weights', layers, arms, most=2, unit='layers')

def bench_each_layer_by_itself():
    def loop(s): return [v.view(-1).kthvalue(40) for v in s.values()]
    for name,scope in {'local':'local', 'rates':{'l1*':.5}, 'erk':'erk'}.items(): prunes_of_many(name, scope, loop, 'a loop of kthvalue')

def bench_many_small_layers():
    def one(s): return torch.cat([v.view(-1) for v in s.values()]).kthvalue(40*len(s))
    for scope in ('global','erk'): prunes_of_many(scope, scope, one, 'kthvalue of all')

def bench_groups_of_many_small_layers():
    "`1:8`, which leaves every layer enough to take from, to torch's own choice of the best of each eight"
    def best(s): return [v.view(-1, 8).topk(1).indices for v in s.values()]
    prunes_of_many('1:8', '1:8', best, 'a loop of topk')

def peak(n, parts, scope):
    "Bytes that a prune of `n` weights in `parts` takes beside scores and masks, at most, in a process of its own"
    code = f"""if True:
        import torch
        from pathlib import Path
        from fastai_lottery.masks import Masks
        from fastai_lottery.scopes import make_masks
        def inputs(shape, parts):
            s = {{f'l{{i}}':torch.rand(shape) for i in range(parts)}}
            return s,Masks.ones(s)
        make_masks(*inputs((20,20), 3), .2, {scope!r})
        s,m = inputs(({n//parts//1000},1000), {parts})
        def at_most(): return next(int(o.split()[1]) for o in Path('/proc/self/status').read_text().splitlines() if o.startswith('VmHWM'))
        Path('/proc/self/clear_refs').write_text('5')    # the peak is from here on
        had = at_most()
        make_masks(s, m, .2, {scope!r})
        print(1024*(at_most()-had))"""
    cmd = [sys.executable,'-W','ignore','-c',code]
    out = subprocess.run(cmd, capture_output=True, text=True, check=True, env={**os.environ, 'OMP_NUM_THREADS':'1'})
    return int(out.stdout)

def bench_peak_of_a_prune():
    "In bytes a weight; what a process takes once, some megabytes, is in it and counts for less the more weights there are"
    sizes,most = [sized(k*10**6, 10**4*k) for k in (5,10,30,100)],2
    print('\npeak of a prune beside scores and masks, bytes a weight')
    for scope in sized(('global','2:4'), ('2:4',)):
        for parts in (1,10):
            b = [peak(n, parts, scope) for n in sizes]
            line = '  '.join(f'{n:,}: {o/n:.2f}' for n,o in zip(sizes, b))
            slope = np.polyfit(sizes, b, 1)[0]
            says = 'a rehearsal' if tiny else 'as it should' if b[-1]<=most*sizes[-1] else 'NOT as it should'
            print(f'  {scope:<7} {parts:2} tensors  {line}  each more {slope:.2f} (at most {most}): {says}')

def bench_last_prune():
    "Under `to=`, which leaves just so many weights, to a prune by an amount"
    def arms(n):
        width = math.isqrt(n//4)
        net = torch.nn.Sequential(*[torch.nn.Linear(width, width) for _ in range(4)])
        lot = Learner(DataLoaders([], []), net, loss_func=torch.nn.MSELoss(), cbs=LotteryCallback()).lottery
        lot.remember()
        lot.set_masks(lot.all_kept(), None)
        def prune(least): return one_more(lot, large_final, .3, {'0':.5}, None, least)
        return {'last prune':lambda: prune(round(.83*lot.masks.n_kept)), 'a prune':lambda: prune(0)}
    sizes = [sized(10**k, 400*k) for k in (4,5,6,7)]
    growth('the last prune under `to=`, layers at rates of their own', sizes, arms, most=1.5, unit='weights')

def bench_rate_of_a_search():
    "The rate that leads to a density in five prunes, to one prune"
    def arms(n):
        s = {f'l{i}':torch.rand(10, n//50) for i in range(5)}
        m = Masks.ones(s)
        return {'its rate':lambda: [amount_for(m, 5, .2, {'l0':.5})], 'a prune':lambda: make_masks(s, m, .2, {'l0':.5})}
    growth('a rate for five prunes', [sized(10**k, 500*k) for k in (4,5,6,7)], arms, most=1, unit='weights')

# ---- folders of runs

# ---- sweeps and commands

# ---- steps, overlaps, loaders

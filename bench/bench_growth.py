"""Cost that grows as the work grows: times over several sizes, ratios to a named peer from the same run, and the exponent.
Each benchmark prints a table and a line that says whether it grows as it should"""
import math,time
import numpy as np
import torch
from fastai_lottery.all import Hold,Masks,TensorDL,TensorDS,overlap,overlap_table
from common import interleave,sized,tiny

def exponent(sizes, secs):
    "Slope of log(seconds) over log(size), by least squares"
    return np.polyfit(np.log(sizes), np.log(secs), 1)[0] if len(sizes)>1 else math.nan

def growth(title, sizes, arms, most, slope=1.05, repeats=5, unit='items'):
    """Time `arms(size)`, `{name: function}` of ours and then of the peer, A B A B, at each of `sizes`; a function may return its own seconds.
    As it should: the exponent of ours is at most `slope`, its ratio to the peer at the largest size at most `most`"""
    def ms(f):
        t = time.perf_counter()
        own = f()
        return 1000*(own if isinstance(own, float) else time.perf_counter()-t)
    rows = [interleave({k:lambda f=f: ms(f) for k,f in arms(n).items()}, repeats) for n in sizes]
    ours,peer = rows[0]
    print(f'\n{title}\n  {unit:>14} {ours:>22} {peer:>22}      ratio')
    for n,r in zip(sizes,rows): print(f'  {n:14,} {r[ours]:19.2f} ms {r[peer]:19.2f} ms   × {r[ours]/r[peer]:6.2f}')
    e,ratio = exponent(sizes, [r[ours] for r in rows]),rows[-1][ours]/rows[-1][peer]
    good = 'grows as it should' if e<=slope and ratio<=most else 'does NOT grow as it should'
    print(f'  exponent {e:.2f} (at most {slope:g}), ratio at the end {ratio:.2f} (at most {most:g}): {"a rehearsal" if tiny else good}')
    return rows

# ---- masks and scopes

# ---- folders of runs

# ---- sweeps and commands

# ---- steps, overlaps, loaders

def masks_of(*shape, n=2):
    "So many random masks of one weight, a third of it kept"
    g = torch.Generator().manual_seed(0)
    return [Masks({'w':torch.rand(*shape, generator=g)<.3}) for _ in range(n)]

def bench_overlap_of_two():
    "One pair of masks, which are bools; the peer packs both and counts ones, and has all bits in memory at once"
    def arms(n):
        a,b = masks_of(n)
        def packed():
            x,y = (np.packbits(m['w'].numpy()).view(np.uint64) for m in (a,b))
            return [np.bitwise_count(o).sum(dtype=np.int64) for o in (x&y,x|y)]
        return {'overlap':lambda: overlap(a, b), 'packed bits':packed}
    assert growth('Overlap of two masks', sized([64*1600,64*16_000,64*160_000,64*1_600_000], [640,6400]), arms,
                  most=2, slope=1.2, unit='weights')    # from within a cache to far outside, as the peer

def bench_overlap_table():
    "Forty masks, 780 pairs; the peer is one product of them as floats, made beforehand, and in memory at once"
    def arms(n):
        ms = masks_of(n, n=40)
        x = torch.stack([m['w'] for m in ms]).float()
        return {'overlap_table':lambda: overlap_table(ms), 'one product':lambda: x@x.T}
    assert growth('overlap_table of 40 masks', sized([10**4,10**5,10**6,4*10**6], [640,6400]), arms, most=2, unit='weights')

def small_weights(n, size=200):
    "So many weights and masks, and the masks as floats"
    g = torch.Generator().manual_seed(0)
    ws = [torch.nn.Parameter(torch.randn(size//8, 8, generator=g)) for _ in range(n)]
    ms = [torch.rand(w.shape, generator=g)<.5 for w in ws]
    return ws,ms,[m.float() for m in ms]

def own_seconds(f):
    "A function that calls `f` ten times, and gives the processor's seconds of one"
    def timed():
        t = time.thread_time()
        for _ in range(10): f()
        return (time.thread_time()-t)/10
    return timed

def bench_hold_of_many():
    "A step's hold of small weights; the peer multiplies, which leaves `inf` and `nan` where they are"
    def arms(n):
        ws,ms,floats = small_weights(n)
        @torch.no_grad()
        def peer(): torch._foreach_mul_(ws, floats)
        return {'hold':own_seconds(Hold(ws, ms)), '_foreach_mul_':own_seconds(peer)}
    assert growth('A hold of weights of 200', sized([50,500,1600,5000], [20,40]), arms, most=1.1, slope=1.2, repeats=25, unit='tensors')

def bench_hold_of_many_elsewhere():
    "As before, held at other values than 0"
    def arms(n):
        ws,ms,floats = small_weights(n)
        vs = [torch.randn(w.shape) for w in ws]
        @torch.no_grad()
        def peer():
            torch._foreach_mul_(ws, floats)
            torch._foreach_add_(ws, vs)
        return {'hold':own_seconds(Hold(ws, ms, vs)), '_foreach_mul_, _foreach_add_':own_seconds(peer)}
    assert growth('A hold of weights of 200 at values', sized([50,500,1600,5000], [20,40]), arms, most=1.1, slope=1.2, repeats=25,
                  unit='tensors')

def bench_first_batch():
    "The first batch of an epoch in a new order; the peer draws the permutation"
    def arms(n):
        dl = TensorDL(TensorDS(torch.zeros(n, 1)), bs=64, shuffle=True, seed=0)
        return {'first batch':lambda: next(iter(dl)), 'randperm':lambda: torch.randperm(n)}
    assert growth('First batch of an epoch', sized([10**4,10**5,10**6,10**7], [640,6400]), arms, most=1.2, slope=2,
                  unit='items')    # a permutation misses the cache more often the longer it is

def bench_first_batch_in_order():
    "As before, without shuffling: the number of items does not matter; the peer copies one batch"
    def arms(n):
        x = torch.zeros(n, 1)
        dl = TensorDL(TensorDS(x), bs=64)
        def peer():
            for _ in range(1000): x[:64].clone()
        def first():
            for _ in range(1000): next(iter(dl))
        return {'1,000 first batches':first, '1,000 copies':peer}
    assert growth('First batch in order', sized([10**4,10**5,10**6,10**7], [640,6400]), arms, most=100, slope=.1, unit='items')

"Memory that the callback holds, and a global prune of 100 million weights"
import threading,time
import numpy as np,psutil,torch
from collections.abc import Mapping
from fastai_lottery.all import lenet_300_100,LotteryCallback,make_masks,Masks,scores
from common import images,interleave,learner,show,sized,timed

def held(o, seen=None):
    "Bytes of the tensors within `o`, shared ones once"
    seen = set() if seen is None else seen
    if isinstance(o, torch.Tensor): return counted(o.untyped_storage().data_ptr(), o.untyped_storage().nbytes(), seen)
    if isinstance(o, np.ndarray): return counted(id(o), o.nbytes, seen)
    if isinstance(o, Mapping): o = list(o.values())
    return sum(held(v, seen) for v in o) if isinstance(o, (list,tuple)) else 0
def counted(key, n, seen):
    if key in seen: return 0
    seen.add(key)
    return n

def bench_held():
    l = learner(images(600, (1,28,28)), lenet_300_100(), cbs=LotteryCallback())
    l.fit(1)
    l.prune(.2)
    l.fit(1)
    n,b = l.lottery.masks.numel,held([l.lottery.masks, l.lottery.w_i, l.lottery.w_k])
    print(f'\nmasks and snapshot of LeNet-300-100: {b/n:.3f} bytes a prunable weight (its biases included)')
    rs = l.fit_lottery(1, rounds=sized(10, 1))
    masks = [list(r.masks_.values()) for r in rs]
    print(f'history of {len(rs)-1} rounds: {held([m for ms in masks for _,m in ms])/n/len(rs):.3f} bytes a weight and round')

class Peak(threading.Thread):
    "Most memory of this process while it runs"
    def __enter__(self):
        self.on,self.rss = True,psutil.Process().memory_info
        self.base = self.peak = self.rss().rss
        self.start()
        return self
    def run(self):
        while self.on:
            self.peak = max(self.peak, self.rss().rss)
            time.sleep(.002)
    def __exit__(self, *a):
        self.on = False
        self.join()

def ms_of(f):
    "A function that returns the ms of `f`"
    def g():
        ms = []
        with timed(ms): f()
        return ms[0]
    return g

def prune(w, masks): return make_masks(scores('large_final', list(w), w_f=w), masks, .2)
def prunes(w, dense, half):
    "ms of a global prune, beside what torch needs to find the threshold alone"
    flat = torch.cat([o.abs() for o in w.values()])
    k = len(flat)//5
    arms = {'torch.kthvalue':lambda: flat.kthvalue(k), 'torch.topk (a fifth)':lambda: flat.topk(k),
            'make_masks, dense':lambda: prune(w, dense), 'make_masks, half pruned':lambda: prune(w, half)}
    return interleave({k:ms_of(f) for k,f in arms.items()}, 2)

def bench_global_prune():
    n,g = sized(100_000_000, 100_000),torch.Generator().manual_seed(0)
    w = {f'{i}':torch.randn(n//10, generator=g) for i in range(10)}
    dense = Masks.ones(w)
    half = Masks({n:torch.rand(m.shape, generator=g)<.5 for n,m in dense.items()})
    show(f'global prune of {n/1e6:g} M weights', prunes(w, dense, half), 'torch.kthvalue')
    for what,m in (('dense',dense),('half pruned',half)):
        with Peak() as p: new = prune(w, m)
        print(f'  peak memory, {what}: {(p.peak-p.base)/(4*n):.2f} × the bytes of the weights')
    assert new.n_kept==half.n_kept-round(.2*half.n_kept)

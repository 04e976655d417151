"Memory that the callback holds, and a global prune of 100 million weights"
import psutil,threading
from common import *

def held(o, seen):
    "Bytes of the tensors within `o`"
    if isinstance(o, torch.Tensor):
        p = o.untyped_storage().data_ptr()
        if p in seen: return 0
        seen.add(p)
        return o.untyped_storage().nbytes()
    if isinstance(o, np.ndarray): return 0 if id(o) in seen else (seen.add(id(o)) or o.nbytes)
    if isinstance(o, Mapping): o = list(o.values())
    return sum(held(v, seen) for v in o) if isinstance(o, (list,tuple,L)) else 0
from collections.abc import Mapping

def bench_held():
    l = learner(images(600, (1,28,28)), lenet_300_100(), cbs=LotteryCallback())
    l.fit(1)
    l.prune(.2)
    l.fit(1)
    lot,n = l.lottery,l.lottery.masks.numel
    b = held([lot.masks, lot.w_i, lot.w_k], set())
    h = sum(s.numel()*s.element_size() for s in {id(s):s for _,_,s,_ in lot._hold.plan}.values() if s is not None)
    print(f'\nmasks and snapshot of LeNet-300-100: {b/n:.3f} bytes a prunable weight (its biases included), and a scratch buffer of {h/2**20:.2f} MiB')
    rs = l.fit_lottery(1, rounds=10)
    print(f'history of 10 rounds: {sum(held([m for _,m in r.masks_.values()], set()) for r in rs)/n/len(rs):.3f} bytes a weight and round')

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

def bench_global_prune(n=100_000_000):
    g = torch.Generator().manual_seed(0)
    w = {f'{i}':torch.randn(n//10, generator=g) for i in range(10)}
    ms,k = Masks.ones(w),n//5
    def timed(f):
        t = time.perf_counter()
        f()
        return 1000*(time.perf_counter()-t)
    flat = torch.cat([o.abs() for o in w.values()])
    half = Masks({n:torch.rand(m.shape, generator=g)<.5 for n,m in ms.items()})
    res = interleave({'torch.kthvalue':lambda: timed(lambda: flat.kthvalue(k)), 'torch.topk (a fifth)':lambda: timed(lambda: flat.topk(k)),
        'make_masks, dense':lambda: timed(lambda: make_masks(scores('large_final', list(w), w_f=w), ms, .2)),
        'make_masks, half pruned':lambda: timed(lambda: make_masks(scores('large_final', list(w), w_f=w), half, .2))}, 2)
    show('global prune of 100 M weights', res, 'torch.kthvalue')
    flat = None
    for what,m in (('dense',ms),('half pruned',half)):
        with Peak() as p: new = make_masks(scores('large_final', list(w), w_f=w), m, .2)
        print(f'  peak memory, {what}: {(p.peak-p.base)/(4*n):.2f} × the bytes of the weights')
    assert new.n_kept==half.n_kept-round(.2*half.n_kept)

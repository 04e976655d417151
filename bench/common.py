"Interleaved timing: A B A B ..., medians, ratios from one run"
import contextlib,io,statistics as st,time,warnings
warnings.filterwarnings('ignore')
from fastai.basics import *
from fastai.callback.all import *
from fastai_lottery.all import *

def interleave(arms, repeats=9):
    "`{name: function that returns ms}`, called in turn; median by name"
    res = {k:[] for k in arms}
    for f in arms.values(): f()
    for _ in range(repeats):
        for k,f in arms.items(): res[k].append(f())
    return {k:st.median(v) for k,v in res.items()}

def show(title, ms, base, unit='ms'):
    print(f'\n{title}')
    for k,v in ms.items(): print(f'  {k:<34} {v:9.3f} {unit}   × {v/ms[base]:.3f}')

def images(n, shape, classes=10, bs=60, valid=500):
    "Random images in memory: as fast, or slow, as real ones"
    g = torch.Generator().manual_seed(0)
    mk = lambda n: TensorDS(torch.randn(n, *shape, generator=g), torch.randint(0, classes, (n,), generator=g), vocab=list(range(classes)))
    return DataLoaders(TensorDL(mk(n), bs=bs, shuffle=True, drop_last=True, seed=0), TensorDL(mk(valid), bs=500), TensorDL(mk(valid), bs=500), device='cpu')

def learner(dls, model, opt_func=fused_adam, cbs=None, **kwargs):
    l = Learner(dls, model, opt_func=opt_func, cbs=cbs, **kwargs)
    l.remove_cb(ProgressCallback)
    l.logger = noop
    return l

def per_step(learn, lr=1e-4):
    "ms a training step of one epoch, validation left out"
    class Clock(Callback):
        order = 100
        def before_train(self): self.learn.t0 = time.perf_counter()
        def after_train(self): self.learn.dt = time.perf_counter()-self.learn.t0
    def f():
        with contextlib.redirect_stdout(io.StringIO()), learn.added_cbs(Clock()): learn.fit(1, lr)
        return 1000*learn.dt/len(learn.dls.train)
    return f

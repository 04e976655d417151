"""Interleaved timing: A B A B ..., medians, ratios from one run.
With LOTTERY_BENCH=tiny in the environment each benchmark runs once on a few items: that it runs is then all that one learns."""
import contextlib,io,os,statistics,time,warnings
warnings.filterwarnings('ignore')
import torch
from fastai.basics import Learner,Callback,DataLoaders,noop
from fastai.callback.progress import ProgressCallback
from fastai_lottery.all import fused_adam,mnist,TensorDL,TensorDS

tiny = os.environ.get('LOTTERY_BENCH')=='tiny'
def sized(full, small):
    "A size of the benchmark, or of its rehearsal"
    return small if tiny else full

def interleave(arms, repeats=9):
    "`{name: function that returns ms}`, called in turn; the first call of each is not counted. Median by name"
    res = {k:[] for k in arms}
    for f in () if tiny else arms.values(): f()
    for _ in range(sized(repeats, 1)):
        for k,f in arms.items(): res[k].append(f())
    return {k:statistics.median(v) for k,v in res.items()}

def show(title, ms, base, unit='ms'):
    "Medians of one run, and what each is to `base`"
    print(f'\n{title}')
    for k,v in ms.items(): print(f'  {k:<34} {v:9.3f} {unit}   × {v/ms[base]:.3f}')

@contextlib.contextmanager
def timed(res):
    "Append the milliseconds that the block takes to `res`"
    t = time.perf_counter()
    yield
    res.append(1000*(time.perf_counter()-t))

def images(n, shape, classes=10, bs=60, valid=500):
    "Random images in memory: as fast, or slow, as real ones"
    bs = sized(bs, min(bs,8))
    n,valid = sized(n, 2*bs),sized(valid, bs)
    g = torch.Generator().manual_seed(0)
    def mk(n):
        x,y = torch.randn(n, *shape, generator=g),torch.randint(0, classes, (n,), generator=g)
        return TensorDS(x, y, vocab=list(range(classes)))
    train = TensorDL(mk(n), bs=bs, shuffle=True, drop_last=True, seed=0)
    return DataLoaders(train, TensorDL(mk(valid), bs=500), TensorDL(mk(valid), bs=500), device='cpu')

def data():
    "MNIST where it can be found, else random images of its size; and which of them"
    if tiny: return images(0, (1,28,28)),'a few random images'
    try: return mnist(seed=0, download=False),'MNIST'
    except FileNotFoundError: return images(55000, (1,28,28), valid=5000),'random images of the size of MNIST'

def learner(dls, model, opt_func=fused_adam, cbs=None, **kwargs):
    "A Learner that prints nothing"
    l = Learner(dls, model, opt_func=opt_func, cbs=cbs, **kwargs)
    l.remove_cb(ProgressCallback)
    l.logger = noop
    return l

class Clock(Callback):
    "Seconds of an epoch's training, validation left out"
    order = 100
    def before_train(self): self.t0 = time.perf_counter()
    def after_train(self): self.seconds = time.perf_counter()-self.t0

def per_step(learn, lr=1e-4):
    "A function that trains an epoch and returns ms a step"
    def f():
        clock = Clock()
        with contextlib.redirect_stdout(io.StringIO()), learn.added_cbs(clock): learn.fit(1, lr)
        return 1000*clock.seconds/len(learn.dls.train)
    return f

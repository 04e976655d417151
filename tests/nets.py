"Small nets, data and probes that the tests share"
import hashlib,random,re
from functools import partial
import numpy as np,torch
from torch import nn
from fastai.basics import *
from fastai.callback.all import *
from fastai.text.models.awdlstm import AWD_LSTM
import fastai_lottery.rounds            # `fit_lottery` and its company, patched on `Learner`
from fastai_lottery.core import *
from fastai_lottery.hold import *
from fastai_lottery.masks import *
from fastai_lottery.criteria import *
from fastai_lottery.scopes import *
from fastai_lottery.resets import *
from fastai_lottery.files import *
from fastai_lottery.tickets import *
from fastai_lottery.callback import *
from fastai_lottery.resets import rewind
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]     # fastcore's, which pytest would collect

# --- data

def dls_of(x, y, bs=16, valid=32, **kwargs):
    "In-memory loaders over rows of `x` and `y`; the last `valid` rows are for validation"
    rows = list(zip(x, y))
    train = DataLoader(rows[:-valid], bs=bs, shuffle=True, drop_last=True, **kwargs)
    return DataLoaders(train, DataLoader(rows[-valid:], bs=valid, **kwargs), device='cpu')

def data(shape=(8,), n=64, bs=16, classes=4, ints=None, **kwargs):
    "`n` rows for training and 32 for validation, with something to learn in them"
    g = torch.Generator().manual_seed(7)
    x = torch.randint(0, ints, (n+32, *shape), generator=g) if ints else torch.randn(n+32, *shape, generator=g)
    f = x.float().reshape(n+32, -1)
    return dls_of(x, (f@torch.randn(f.shape[1], classes, generator=g)).argmax(1), bs=bs, **kwargs)

# --- nets

class Ends(nn.Module):
    "`body`, of which the first output's mean over positions goes to a Linear"
    def __init__(self, body, width, call=None, classes=4):
        super().__init__()
        self.body,self.call,self.head = body,call or (lambda b,x: b(x)),nn.Linear(width, classes)
    def forward(self, x):
        o = self.call(self.body, x)
        o = o[0] if isinstance(o, tuple) else o
        return self.head(o.mean(1) if o.ndim==3 else o)

class Bare(nn.Module):
    "Bare parameters: a matrix and a gain"
    def __init__(self):
        super().__init__()
        self.w,self.gain,self.head = nn.Parameter(torch.randn(8,6)/3),nn.Parameter(torch.ones(6)),nn.Linear(6,4)
    def forward(self, x): return self.head((x@self.w).relu()*self.gain)

class Tied(nn.Module):
    "An autoencoder's body with one matrix under two names"
    def __init__(self):
        super().__init__()
        self.enc,self.dec,self.head = nn.Linear(8,8),nn.Linear(8,8),nn.Linear(8,4)
        self.dec.weight = self.enc.weight
    def forward(self, x): return self.head(self.dec(self.enc(x).relu()).relu())

class RMS(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
    def forward(self, x): return x*(x.pow(2).mean(-1,keepdim=True)+1e-6).rsqrt()*self.weight
rms = getattr(nn, 'RMSNorm', lambda n: RMS())

class AWD(nn.Module):
    "fastai's AWD_LSTM, whose LSTMs live in `WeightDropout`"
    def __init__(self):
        super().__init__()
        self.body,self.head = AWD_LSTM(20, 8, 10, 2, hidden_p=.1, embed_p=.1, input_p=.1, weight_p=.4),nn.Linear(8,4)
    def reset(self): self.body.reset()
    def forward(self, x): return self.head(self.body(x).mean(1))

def mlp(h=12): return nn.Sequential(nn.Linear(8,h), nn.ReLU(), nn.Linear(h,h), nn.ReLU(), nn.Linear(h,4))
def drop_bn():
    def block(n): return nn.Linear(n,12),nn.BatchNorm1d(12),nn.ReLU(),nn.Dropout(.3)
    return nn.Sequential(*block(8), *block(12), nn.Linear(12,4))
def conv_bn():
    def block(a, b): return nn.Conv2d(a,b,3),nn.BatchNorm2d(b),nn.ReLU()
    return nn.Sequential(*block(1,6), *block(6,8), nn.Flatten(), nn.Linear(32,4))
def lstm(): return Ends(nn.LSTM(8,6,batch_first=True), 6)
def gru(): return Ends(nn.GRU(8,6,num_layers=2,batch_first=True,bidirectional=True), 12)
def attention(): return Ends(nn.MultiheadAttention(8,2,batch_first=True), 8, lambda b,x: b(x,x,x,need_weights=False))
def rmsnorm(): return nn.Sequential(nn.Linear(8,8), rms(8), nn.ReLU(), nn.Linear(8,4))
def bias_free(): return nn.Sequential(nn.Linear(8,12,bias=False), nn.ReLU(), nn.Linear(12,4,bias=False))

# by name: net, keywords of `data`, `include`, and weights that must be prunable with it
zoo = dict(
    batchnorm =(conv_bn, dict(shape=(1,6,6)), None, ['0.weight','3.weight','7.weight']),
    bare      =(Bare, {}, '*', ['w','head.weight']),
    lstm      =(lstm, dict(shape=(5,8)), None, ['body.weight_ih_l0','body.weight_hh_l0','head.weight']),
    gru       =(gru, dict(shape=(5,8)), None, ['body.weight_hh_l1_reverse','body.weight_ih_l0']),
    awd_lstm  =(AWD, dict(shape=(6,), ints=20), None,
                ['body.encoder.weight','body.rnns.0.weight_hh_l0_raw','body.rnns.1.module.weight_ih_l0','head.weight']),
    attention =(attention, dict(shape=(5,8)), None, ['body.in_proj_weight','body.out_proj.weight','head.weight']),
    embedding =(lambda: Ends(nn.Embedding(20,8), 8), dict(shape=(6,), ints=20), None, ['body.weight','head.weight']),
    rmsnorm   =(rmsnorm, {}, None, ['0.weight','3.weight']),
    bias_free =(bias_free, {}, None, ['0.weight','2.weight']),
    tied      =(Tied, {}, None, ['enc.weight','head.weight']))

# --- learners

def learner(model=mlp, dls=None, cbs=LotteryCallback, seed=0, path='.', loss=None, **kwargs):
    "A silent Learner whose initial weights follow from `seed`; `cbs=None` goes without the lottery"
    torch.manual_seed(seed)
    cbs = L(cbs).map(lambda o: o() if isinstance(o, type) else o)
    if not isinstance(model, nn.Module): model = model()
    kwargs = {'lr':.01, 'metrics':accuracy, **kwargs}
    l = Learner(dls or data(), model, loss_func=loss or CrossEntropyLossFlat(), cbs=cbs, path=path, **kwargs)
    l.logger = noop
    return l.remove_cbs(L(o for o in l.cbs if isinstance(o, ProgressCallback)))

def from_zoo(name, **kwargs):
    model,kw,inc,_ = zoo[name]
    return learner(model, data(**kw), cbs=LotteryCallback(include=inc), **kwargs)

def seed_all(learn, seed=3):
    set_seed(seed)
    for i,dl in enumerate(learn.dls.loaders): dl.rng.seed(seed+i)

# --- probes

def bits(o):
    "A model or its state as `{name: bytes}`: equal only where every bit is"
    o = state(o) if isinstance(o, nn.Module) else o
    def of(v): return str(v.dtype), tuple(v.shape), v.detach().cpu().contiguous().numpy().tobytes()
    return {k:of(v) if torch.is_tensor(v) else v for k,v in o.items()}

def digest(o): return hashlib.sha256(repr(sorted(bits(o).items())).encode()).hexdigest()

def leaks(learn):
    "Number of pruned weights that are not 0"
    ws = named_weights(learn.model)
    return sum(int((ws[n].data[~m]!=0).sum()) for n,m in learn.lottery.masks.items())

def under(state, masks):
    "`state` with its pruned weights at 0, made by torch alone"
    return {k: torch.where(masks[k].cpu(), v, torch.zeros_like(v)) if k in masks else v for k,v in state.items()}

class Probe(Callback):
    "Look after each step, each batch and before each validation; `bad` are the moments when a pruned weight was not 0"
    order = 90
    def __init__(self): self.steps,self.batches,self.bad = 0,0,[]
    def look(self, when):
        if n := leaks(self.learn): self.bad.append((when, self.steps, n))
    def after_step(self):
        self.steps += 1
        self.look('step')
    def after_batch(self):
        self.look('batch')
        if self.training: self.batches += 1
    def before_validate(self): self.look('validate')

class Lrs(Callback):
    "Learning rates, data order and losses of each fit, step by step"
    order,run_valid = 85,False
    def __init__(self): self.fits = []
    def before_fit(self): self.fits.append(dict(lr=[], mom=[], x=[], loss=[], groups=[], iter=[]))
    def before_batch(self):
        self.fits[-1]['x'].append(float(self.xb[0].double().sum()))
        self.fits[-1]['iter'].append(self.train_iter)
    def after_batch(self):
        f = self.fits[-1]
        f['lr'].append(float(self.opt.hypers[-1]['lr']))
        f['mom'].append(float(self.opt.hypers[-1].get('mom', 0)))
        f['groups'].append([float(h['lr']) for h in self.opt.hypers])
        f['loss'].append(float(self.learn.loss))

class At(Callback):
    "Do `f(learn)` at one or some iterations of the training, on an event"
    run_valid = False
    def __init__(self, its, f, event='after_batch', order=0):
        self.its,self.f,self.done = set(L(its)),f,0
        self.order = order
        setattr(self, event, self._go)
    def _go(self):
        if self.learn.train_iter in self.its:
            self.done += 1
            self.f(self.learn)

def raiser(e):
    def _f(learn): raise e
    return _f

def rng_states(): return random.getstate(),repr(np.random.get_state()),torch.get_rng_state().numpy().tobytes()

def said(o):
    "A case's name, the same in each process: no address of a function"
    return re.sub(r' at 0x[0-9a-f]+', '', str(o))

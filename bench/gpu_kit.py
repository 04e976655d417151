"""What the checks of `gpu.py` share: a list of them, the place where they run, and trainings that are watched.
A check is a function of the place that gives a `Found`; its docstring is its name in the table"""
import contextlib,time
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple
from common import learner
import psutil,torch
from fastai.basics import Callback,DataLoaders,L
from fastai.callback.fp16 import AMPMode,MixedPrecision
from fastai_lottery.all import fused_adam,LotteryCallback,Masks,named_weights,TensorDL,TensorDS
from bench_memory import Peak

class Found(NamedTuple):
    "What a check found"
    ok:bool # As it should be?
    figure:str # What was counted or measured
    bound:str='' # What it should be

class Lacks(Exception):
    "What a check needs and this device has not: the row is left out, and says so"

class Check(NamedTuple):
    "A row of the table to be: its name, and a function of the place that gives a `Found`"
    name:str
    f:object

checks = []
def check(*cases):
    "List a function as a check, or as one for each of `cases`, which it is handed and whose name stands in its own"
    def _inner(f):
        checks.extend(Check(f.__doc__.format(c), partial(f, case=c)) for c in cases)
        if not cases: checks.append(Check(f.__doc__, f))
        return f
    return _inner

@dataclass(frozen=True)
class Place:
    "Where checks run"
    device:str='cuda' # Or 'cpu'
    broken:bool=False # Break one mask on purpose, which checks of masks have to see?
    @property
    def cuda(self): return torch.device(self.device).type=='cuda'
    def wait(self):
        "Until all that was begun is done; what went wrong on the card is raised here"
        if self.cuda: torch.cuda.synchronize()

    def mark(self):
        "A moment there: an event on a card, which works on while Python is ahead"
        if not self.cuda: return time.perf_counter()
        e = torch.cuda.Event(enable_timing=True)
        e.record()
        return e
    def between(self, a, b):
        "Milliseconds between two moments"
        if not self.cuda: return 1000*(b-a)
        b.synchronize()
        return a.elapsed_time(b)
    def ms(self, f):
        "Milliseconds that `f()` takes there"
        self.wait()
        a = self.mark()
        f()
        return self.between(a, self.mark())

    def free(self):
        "Bytes of memory that nobody has"
        if not self.cuda: return psutil.virtual_memory().available
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    def peak(self, f):
        "Bytes that `f()` needs at most beside what was there before"
        if not self.cuda:
            with Peak() as p: f()
            return p.peak-p.base
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        f()
        self.wait()
        return torch.cuda.max_memory_allocated()-base

    def stream(self):
        "Work in a stream of its own, which waits for what was begun, and is waited for"
        return own_stream() if self.cuda else contextlib.nullcontext()

@contextlib.contextmanager
def own_stream():
    here,own = torch.cuda.current_stream(),torch.cuda.Stream()
    own.wait_stream(here)
    with torch.cuda.stream(own): yield
    here.wait_stream(own)

# ---- data and nets

def rows(n, shape, classes=10, seed=0):
    "`n` random items with classes that follow from them"
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=g)
    y = (x.flatten(1)@torch.randn(x[0].numel(), classes, generator=g)).argmax(1)
    return TensorDS(x, y, vocab=list(range(classes)))

def batches(place, shape, bs=16, steps=4):
    "Loaders of `steps` random batches an epoch, and one for validation, all on the device"
    train = TensorDL(rows(bs*steps, shape), bs=bs, shuffle=True, drop_last=True, seed=0)
    return DataLoaders(train, TensorDL(rows(bs, shape, seed=1), bs=bs)).to(torch.device(place.device))

def seeded(make, place, seed=0):
    "The net that `make()` gives for a seed, drawn on the CPU, so that it is the same everywhere"
    torch.manual_seed(seed)
    return make().to(place.device)

# ---- mixed precision, and steps that overflow

class HalfOnCpu(MixedPrecision):
    "fastai's mixed precision with an autocast and a scaler that work on the CPU"
    def before_fit(self):
        dt = torch.bfloat16 if self.amp_mode==AMPMode.BF16 else torch.float16
        self.autocast,self.scales = torch.autocast('cpu', dtype=dt),L()
        self.learn.scaler = torch.amp.GradScaler('cpu', enabled=dt==torch.float16, **self.kwargs)

def half(place, mode):
    "fastai's mixed precision, by a scale that no step is skipped at unless we make it overflow"
    if mode=='bf16' and place.cuda and not torch.cuda.is_bf16_supported(): raise Lacks('this GPU has no bf16')
    kwargs = dict(init_scale=1024.) if mode=='fp16' else {}
    return (MixedPrecision if place.cuda else HalfOnCpu)(mode, **kwargs)

class Overflow(Callback):
    "A gradient overflows at the iterations `its`; `skipped` are those that the scaler then skipped"
    order,run_valid = 5,False
    def __init__(self, its, amp): self.its,self.amp,self.skipped = set(its),amp,set()
    def before_step(self):
        if self.learn.train_iter in self.its: next(self.learn.model.parameters()).grad.view(-1)[0] = float('inf')
    def after_cancel_step(self):
        if self.amp.skipped: self.skipped.add(self.learn.train_iter)

# ---- trainings that are watched

def leaks(ws, masks):
    "How many weights that `masks` prune are not 0"
    return sum(int((ws[n].detach()[~m]!=0).sum()) for n,m in masks.items())

class Probe(Callback):
    "Look after each step, by masks of its own"
    order,run_valid = 90,False
    def __init__(self, masks): self.masks,self.leaks,self.steps = masks,0,0
    def after_step(self):
        self.steps += 1
        self.leaks += leaks(named_weights(self.learn.model), self.masks)

def by_hand(ws, amount):
    "Masks of a global prune by magnitude, by torch's stable sort on the CPU"
    flat = torch.cat([w.detach().cpu().flatten().abs() for w in ws.values()])
    kept = torch.ones(len(flat), dtype=torch.bool)
    kept[flat.sort(stable=True).indices[:round(amount*len(flat))]] = False
    parts = kept.split([w.numel() for w in ws.values()])
    return {n:p.view(w.shape).to(w.device) for (n,w),p in zip(ws.items(), parts)}

def broken(masks):
    "`masks` of which one has one wrong bit: a weight of the last layer that is pruned and is kept here"
    n,m = list(masks.items())[-1]
    m = m.clone()
    m[tuple((~m).nonzero()[0])] = True
    return Masks({**masks, n:m})

class Seen(NamedTuple):
    "What a training under masks showed"
    wrong:int # Masks' bits that are not as they should be, at its end
    leaks:int # Pruned weights that were not 0 after a step, over all steps
    steps:int
    moved:bool # Has any weight that is kept moved?
    def found(self, more=True, says=''):
        figure = f'{self.wrong} wrong bits, {self.leaks} not 0, {self.steps} steps{says}'
        ok = self.wrong==self.leaks==0 and self.steps==8 and self.moved and more
        return Found(ok, figure if self.moved else f'{figure}, nothing moved', '0 and 0')

def watched(place, model, dls, opt_func=fused_adam, cbs=(), last=(), amount=.5):
    "Train a net for an epoch, prune it, train it for two more (with `last`, too) and look after each step"
    learn = learner(dls, model, opt_func=opt_func, cbs=[LotteryCallback(), *cbs])
    learn.fit(1, 1e-2)
    ws = {n:w for n,w in named_weights(learn.model).items() if n in learn.lottery.masks}
    own = by_hand(ws, amount)
    got = learn.prune(amount)
    if place.broken: learn.lottery.set_masks(broken(got))
    was,probe = {n:w.detach().clone() for n,w in ws.items()},Probe(own)
    learn.fit(2, 1e-2, cbs=[probe, *last])
    ws,masks = named_weights(learn.model),learn.lottery.masks
    wrong = sum(int((m!=own[n]).sum()) for n,m in masks.items())
    moved = any(bool((ws[n]!=was[n])[own[n]].any()) for n in own)
    return Seen(wrong, probe.leaks, probe.steps, moved)

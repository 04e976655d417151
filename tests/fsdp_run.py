"""What each of the two processes of test_fsdp.py does: `main` plays cases, each in a process group of its own.
What a case gives is written to FOLDER/CASE.RANK.json, for the tests to compare between the processes."""
import json,traceback
from datetime import timedelta
from functools import partial
from pathlib import Path
import torch,torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor,Shard,distribute_tensor
from fastai.basics import Adam,DataLoaders,Learner,OptimWrapper,SGD
from fastai.callback.training import GradientClip
import ddp_run
from ddp_run import N,WAIT,attempt,begin,digest
from fastai_lottery.callback import LotteryCallback
from fastai_lottery.core import named_weights,prunable
from fastai_lottery.criteria import criteria_menu
from fastai_lottery.masks import Masks
from fastai_lottery.scopes import erk,global_,make_masks
from fastai_lottery.sharded import ShardedLottery,Shards
from fastai_lottery.saved import load_shards
from fastai_lottery.spread import here
from fastai_lottery.tickets import Ticket

cases = {}                  # Name → function of a folder
def case(f):
    cases[f.__name__] = f
    return f

def net(seed=0):
    "Rows that do not halve: 17, 5, and one that the second process has nothing of"
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8,17), nn.BatchNorm1d(17), nn.ReLU(), nn.Linear(17,5), nn.Linear(5,1))

def data(seed, n=32):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=g)
    return x,x.sum(1, keepdim=True).sin()

def whole(d): return {n:(t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for n,t in d.items()}
def zeros(lot): return sum(int((w.full_tensor()==0).sum()) for w in lot.ws.values())
def now(model): return digest(whole(model.state_dict()))

# --- masks

def spread(ts):
    "Tensors by name, spread over the rows"
    mesh = torch.distributed.init_device_mesh('cpu', (N,))
    return {n:distribute_tensor(t, mesh, [Shard(0)]) for n,t in ts.items()}

def weights(kind):
    g = torch.Generator().manual_seed(5)
    shapes = dict(a=(301,440), b=(7,3,3,3), c=(1,50), d=(64,), e=(2,9))
    ts = {n:torch.randn(s, generator=g) for n,s in shapes.items()}
    if kind=='ties': ts = {n:(t*2).round()/2 for n,t in ts.items()}      # 132,440 weights of a dozen values
    if kind=='zeros': ts = {n:torch.zeros_like(t) for n,t in ts.items()}
    if kind=='signed': ts = {n:t-.3 for n,t in ts.items()}
    return {n:t.to(dict(double=torch.float64, half=torch.bfloat16).get(kind, torch.float32)) for n,t in ts.items()}

scopes = dict(globally=global_, local='local', rates={'a':1.,'b':.5}, erk=erk, floor=partial(global_, floor=40))

def as_whole(kind, scope):
    "Three prunes: exact counts, masks and their hashes, beside those of whole tensors in this process"
    ts = weights(kind)
    mine,res = spread(ts),[]
    m,w = Masks.ones(mine),Masks.ones(ts)
    assert {n:here(t).shape for n,t in mine.items()}!={n:t.shape for n,t in ts.items()}
    def score(o): return {n:t if kind=='signed' else t.abs() for n,t in o.items()}
    for a in (.2,.5,.37):
        m,w = make_masks(score(mine), m, a, scopes[scope]),make_masks(score(ts), w, a, scopes[scope])
        same = all(torch.equal(m[n].full_tensor(), w[n]) for n in ts)
        res.append(dict(kept=m.n_kept, want=w.n_kept, same=same, hash=m.hash(), whole=w.hash()))
    return res
kinds = [('plain',s) for s in scopes]+[(k,'globally') for k in 'ties zeros signed double half'.split()]+[('ties','local')]

@case
def masks(d): return {f'{k}_{s}':as_whole(k, s) for k,s in kinds}

@case
def not_finite(d):
    "Of one process alone"
    ts = spread(weights('plain'))
    if dist.get_rank()==1: here(ts['a'])[0,0] = float('nan')
    return attempt(lambda: make_masks({n:t.abs() for n,t in ts.items()}, Masks.ones(ts), .2))

# --- a lottery, beside that of a whole net: both processes see the same data, so gradients are equal to the last bit

def net_on_shards(*args):
    s = net(*args)
    fully_shard(s)
    return s,Shards(s)

def steps(model, opt, n=4, seen=None):
    x,y = data(1)
    for _ in range(n):
        nn.functional.mse_loss(model(x), y).backward()
        if seen: seen()
        opt.step()
        opt.zero_grad()

def plain_lottery():
    m = net()
    learn = Learner(DataLoaders([], []), m, loss_func=nn.functional.mse_loss, cbs=LotteryCallback())
    learn.lottery.remember()
    return m,learn

def both(lot, learn, **more):
    hashes = [lot.masks.hash(),learn.lottery.masks.hash()]
    return dict(sharded=now(lot.model), plain=digest(learn.model.state_dict()), masks=hashes, **more)
def clean_in(lot, f): return not any(bool(here(f(w))[~here(lot.masks[n])].any()) for n,w in lot.ws.items())

@case
def lottery(d):
    m,learn = plain_lottery()
    s,lot = net_on_shards()
    lot.follow(opt := torch.optim.AdamW(s.parameters(), lr=.05))
    res = [both(lot, learn, clean=True)]
    for r in range(3):
        other = torch.optim.AdamW(m.parameters(), lr=.05)
        other.register_step_post_hook(lambda *_: learn.lottery.hold())
        clean = []
        steps(s, opt, seen=lambda: clean.append(clean_in(lot, lambda w: w.grad)))
        steps(m, other)
        clean.append(clean_in(lot, lambda w: w))
        for o in (lot,learn): o.prune(.3)
        trained = now(s)==digest(m.state_dict())
        for o in (lot,learn): o.rewind()
        kept = [lot.kept,learn.lottery.masks.n_kept]
        res.append(both(lot, learn, clean=all(clean), trained=trained, moments=len(opt.state), kept=kept))
    return res

@case
def clipped(d):
    "Zeros stay zeros under clipping, momentum, weight decay and gradients that add up without a reduction"
    res = {}
    for name,f in dict(sgd=torch.optim.SGD, adamw=torch.optim.AdamW).items():
        s = net()
        fully_shard(s)
        opt = f(s.parameters(), lr=.05, weight_decay=.1, **(dict(momentum=.9) if name=='sgd' else {}))
        lot = Shards(s, opt=opt)
        steps(s, opt)
        lot.prune(.6)
        x,y = data(2+dist.get_rank())
        for _ in range(3):
            for last in (False,True):
                s.set_requires_gradient_sync(last)
                nn.functional.mse_loss(s(x), y).backward()
            nn.utils.clip_grad_norm_(s.parameters(), .1)
            opt.step()
            opt.zero_grad()
        res[name] = dict(zeros=zeros(lot), gone=lot.masks.numel-lot.kept, at=now(s)['0.weight'])
    return res

@case
def loaded(d):
    "A state that is loaded is pruned, and the lottery goes on"
    s = net()
    fully_shard(s)
    lot = Shards(s)
    old = {k:v.clone() for k,v in s.state_dict().items()}
    lot.prune(.5)
    s.load_state_dict(old)
    return [zeros(lot), lot.masks.numel-lot.kept]

# --- a Learner

opts = dict(fastai=Adam, sgd=partial(SGD, mom=.9), torch=partial(OptimWrapper, opt=torch.optim.AdamW))

def on_learner(name, to, d):
    r,s = dist.get_rank(),net()
    items = list(zip(*data(10+r,
                           30)))                              # each process has its own data, and a last batch that is smaller
    dls = DataLoaders.from_dsets(items, items[:8], bs=8, drop_last=False, num_workers=0, device='cpu')
    cbs = [ShardedLottery(to), GradientClip(.5)]
    learn = Learner(dls, s, loss_func=nn.functional.mse_loss, opt_func=opts[name], lr=.05, cbs=cbs)
    fully_shard(learn.model)
    res,lot = [],learn.sharded_lottery
    start = whole(s.state_dict()) if to=='init' else None
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(2)
        for k in range(2):
            lot.prune(.4)
            lot.rewind()
            at = whole({n:w.detach() for n,w in lot.shards.ws.items()})
            w_k = whole(lot.shards.w_k)
            back = all(torch.equal(at[n], w_k[n]*lot.shards.masks[n].full_tensor()) for n in at)
            first = start is None or all(torch.equal(w_k[n], start[n]) for n in at)
            learn.fit_one_cycle(2)
            res.append(dict(back=back, first=first, zeros=zeros(lot.shards),
                            gone=lot.shards.masks.numel-lot.shards.kept,
                            hash=lot.shards.masks.hash(), at=now(s)['0.weight'], w_k=digest(w_k)['0.weight']))
    return res
for k in opts: cases[f'learner_{k}'] = partial(on_learner, k, 'init')
cases['learner_late'] = partial(on_learner, 'fastai', '3it')

def held(opt, w):
    "What an optimizer of fastai, or torch's inside one, holds of each element of `w`, this process's rows"
    inner = opt.opt if isinstance(opt, OptimWrapper) else opt
    return [here(v) for v in inner.state[w].values() if torch.is_tensor(v) and v.shape==w.shape]

@case
def forgotten(d):
    "After a prune without a rewind, how many weights' moments are not 0, over all processes: of those that are gone, and of the others"
    res = {}
    for name,f in opts.items():
        s = net()
        dl = list(zip(*data(10+dist.get_rank(), 30)))
        dls = DataLoaders.from_dsets(dl, dl[:8], bs=8, num_workers=0, device='cpu')
        learn = Learner(dls, s, loss_func=nn.functional.mse_loss, opt_func=f, lr=.05, cbs=ShardedLottery())
        fully_shard(s)
        with learn.no_bar(), learn.no_logging():
            learn.fit(1)
            learn.sharded_lottery.prune(.5)
            learn.fit(1)
        lot,n = learn.sharded_lottery.shards,[0,0]
        for w,m in zip(lot.ws.values(), lot.masks.values()):
            for v in held(learn.opt, w):
                for k in (0,1): n[k] += int((v[here(m)==bool(k)]!=0).sum())
        dist.all_reduce(n := torch.tensor(n))
        res[name] = n.tolist()
    return res

# --- what is drawn, and what is refused

resets = 'rewind keep permute reshuffle constant reshuffle_keep_sign constant_keep_sign noisy rewind_or_zero'.split()

@case
def drawn(d):
    "Beside the callback's on a whole net, from the same seeds; the processes' own random numbers differ"
    res = {}
    for what in ['random',*resets]:
        m,learn = plain_lottery()
        s = net()
        fully_shard(s)
        lot = Shards(s)
        with torch.no_grad():                                       # trained, in a way that all can repeat
            for p in m.parameters(): p.mul_(1.5).add_(.01)
            for p in s.parameters(): here(p).mul_(1.5).add_(.01)
        torch.manual_seed(dist.get_rank())
        criterion,reset = ('random','rewind') if what=='random' else ('large_final',what)
        for o in (lot,learn):
            o.prune(.4, criterion=criterion, seed=3)
            o.rewind(reset, seed=4)
        ws = named_weights(m, lot.ws)
        res[what] = [lot.masks.hash(), learn.lottery.masks.hash(), digest(whole(lot.ws)), digest(ws)]
    lot.prune(.2, criterion='random')                               # without a seed: rank 0's
    return res,lot.masks.hash()

@case
def refused(d):
    s = net()
    fully_shard(s)
    lot = Shards(s)
    def part():
        m = net()
        fully_shard(m[0])
        Shards(m)
    def columns():
        m = nn.Sequential(nn.Linear(8,16), nn.Linear(16,4))
        fully_shard(m, shard_placement_fn=lambda p: Shard(1) if p.ndim>1 else Shard(0))
        Shards(m)
    def callback():
        m = net()
        fully_shard(m)
        Learner(DataLoaders([], []), m, loss_func=nn.functional.mse_loss, cbs=LotteryCallback()).prune(.2)
    bad = {c:(lambda c=c: lot.prune(.2, criterion=c)) for c,f in criteria_menu().items() if c in ('snip','taylor','grasp','synflow')}
    bad.update({r:(lambda r=r: lot.rewind(r)) for r in ('random_reinit','reinit_keep_sign')})
    bad.update(part=part, columns=columns, callback=callback, wrong=lambda: lot.prune(1.5))
    return {k:attempt(f) for k,f in bad.items()}

@case
def copies(d):
    "Two processes that hold the same rows (HSDP)"
    mesh = torch.distributed.init_device_mesh('cpu', (N,1), mesh_dim_names=('copies','rows'))
    s,m = net(),net()
    fully_shard(s, mesh=mesh)
    lot = Shards(s)
    lot.prune(.3)
    ws = named_weights(m, lot.ws)
    want = make_masks({n:w.detach().abs() for n,w in ws.items()}, Masks.ones(ws), .3)
    lot.save(d/'ticket')
    return [lot.masks.hash(), want.hash(), load_shards(d/'ticket').masks.hash(), len(list((d/'ticket').glob('rank_*')))]

# --- tickets

@case
def ticket(d):
    s,lot = net_on_shards()
    for note in ('first','second'):
        lot.prune(.3)
        lot.save(d/'ticket', note=note)
    t = load_shards(d/'ticket')
    dist.barrier()
    if dist.get_rank()==0: t.save(d/'whole', dense=True)
    dist.barrier()
    res = dict(hash=lot.masks.hash(), state=digest(whole(lot.w_k)), files=len(list((d/'ticket').iterdir())), back=[])
    for o in (d/'ticket', t, Ticket.load(d/'whole')):
        other,new = net_on_shards(7)
        new.load(o)
        new.prune(.1)
        new.load(o)
        res['back'].append([new.masks.hash(), digest(whole(new.w_k)), now(other)])
    return res

@case
def ticket_errors(d):
    s = net()
    fully_shard(s)
    lot = Shards(s)
    lot.save(d/'ticket')
    dist.barrier()
    f = next((d/'ticket').glob('rank_01*'))
    if dist.get_rank()==0: f.write_bytes(f.read_bytes()[:-5])
    dist.barrier()
    damaged = attempt(lambda: lot.load(d/'ticket'))
    other = nn.Sequential(nn.Linear(8,4))
    fully_shard(other)
    wrong = attempt(lambda: Shards(other).load(d/'ticket'))
    if dist.get_rank()==0: (d/'file').write_text('')
    dist.barrier()
    nowhere = attempt(lambda: lot.save(d/'file'/'ticket'))
    return [damaged, wrong, nowhere]

# --- memory

def highest():
    "The most that this process ever had in memory, in bytes"
    return next(int(l.split()[1])*1024 for l in open('/proc/self/status') if l.startswith('VmHWM'))

@case
def peak(d):
    "What a prune and a hash add to the most that a process has, and the bytes of its share: scores and new masks"
    if not Path('/proc/self/clear_refs').exists(): return None
    mesh = torch.distributed.init_device_mesh('cpu', (N,))
    rows = 2500
    ws = {f'w{i}':DTensor.from_local(torch.randn(rows//N, 2400), mesh, [Shard(0)], run_check=False) for i in range(4)}
    m = Masks.ones(ws)
    small = {n:w for n,w in spread(weights('plain')).items()}
    make_masks({n:w.abs() for n,w in small.items()}, Masks.ones(small), .2).hash()    # what the first call loads
    Path('/proc/self/clear_refs').write_text('5')
    was = highest()
    new = make_masks({n:w.abs() for n,w in ws.items()}, m, .2)
    new.hash()
    n = sum(here(w).numel() for w in ws.values())
    return dict(grew=highest()-was, share=5*n, n=n, kept=new.n_kept)

# --- the program

def run(name, d):
    (d/name).mkdir(exist_ok=True)
    try:
        dist.init_process_group('gloo', f'file://{d}/{name}.store', timedelta(seconds=WAIT), N, ddp_run.rank)
        out = cases[name](d/name)
        dist.barrier()
        return out
    except Exception: return {'error':traceback.format_exc()}
    finally:
        if dist.is_initialized(): dist.destroy_process_group()

def main(n, d, only):
    begin(n, d/f'log.{n}', 890)
    for name in only or cases: (d/f'{name}.{n}.json').write_text(json.dumps(run(name, d)))

"""What each of the two processes of test_ddp.py does: `main` plays cases, each in a folder of its own.
What a case gives is written to FOLDER/CASE.RANK.json, for the tests to compare between the processes."""
import contextlib,faulthandler,hashlib,io,json,os,signal,sys,time,traceback,types,warnings
from datetime import timedelta
from functools import partial
import torch,torch.distributed as dist
from torch import nn
from fastai.basics import Learner,Callback,DataLoader,DataLoaders,CrossEntropyLossFlat,Metric,accuracy
from fastai.callback.training import GradientAccumulation
import fastai_lottery.rounds
from fastai_lottery.callback import LotteryCallback
from fastai_lottery.core import unwrap
from fastai_lottery.scopes import random_mask,shuffle_mask

N = 2                       # processes
LIMIT = 300                 # seconds after which they are stopped, whatever they do
WAIT = 60                   # seconds that one waits for the other
DDP = nn.parallel.DistributedDataParallel
rank = 0                    # Which process this is; `main` sets it
cases = {}                  # Name → function of a folder of its own
def case(f):
    cases[f.__name__] = f
    return f

# --- fastai's own context needs two things of accelerate and of a GPU

class Accelerator:
    "accelerate's part in `distrib_ctx`, on the CPU: it need not be installed, and keeps one process group for good"
    def __init__(self, **kwargs): pass
    def prepare(self, model): return DDP(model)
    def backward(self, loss): loss.backward()

def broadcast(self, t, rank):
    "fastai's wants a GPU"
    dist.broadcast(t := torch.tensor(t), rank)
    return t.tolist()

def stand_in():
    sys.modules['accelerate'] = types.ModuleType('accelerate')
    sys.modules['accelerate'].Accelerator = Accelerator
    from fastai.distributed import DistributedDL
    DistributedDL._broadcast = broadcast

# --- what is trained, and what is noted of it

def net(): return nn.Sequential(nn.Linear(8,16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16,4))

def short_hash(t):
    b = t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(b).hexdigest()[:12]
def digest(d): return {k:short_hash(v) for k,v in d.items()}

class Stop(Callback):
    "Stops a training, in all processes, when it comes to epoch number `at`"
    at = n = None
    def before_epoch(self):
        Stop.n = 1 if Stop.n is None else Stop.n+1
        if Stop.n==Stop.at: raise RuntimeError('stopped')

class Slow(Callback):
    "Long enough to be killed between epochs"
    def before_epoch(self): time.sleep(.2)

class NoSync(Callback):
    "Reduces gradients with the step that they add up to, and not before"
    order,run_valid = GradientAccumulation.order-1,False
    def __init__(self, n): self.n,self._on = n,None
    def before_batch(self):
        self._on = contextlib.nullcontext() if (self.iter+1)%self.n==0 else self.learn.model.no_sync()
        self._on.__enter__()
    def after_batch(self):
        if self._on is not None: self._on.__exit__(None, None, None)
        self._on = None
    def after_cancel_batch(self): self.after_batch()

class Odd(Metric):
    "A metric that each process sees otherwise"
    name,at = 'odd',0
    def reset(self): pass
    def accumulate(self, learn): type(self).at += 1
    @property
    def value(self): return -float(type(self).at) if rank else 1.

def loaders(spoil=None, bs=8, split=True, uneven=False):
    "Each process has its own half of the data; `uneven`: a last batch that is smaller, and not equally in both"
    g = torch.Generator().manual_seed(7)
    x,w = torch.randn(96, 8, generator=g),torch.randn(8, 4, generator=g)
    y = (x@w).argmax(1)
    if spoil==rank: x[:] = float('inf')
    mine = list(zip(x,y))[rank::N] if split else list(zip(x,y))
    n = len(mine)*2//3
    if uneven: n -= 1+5*rank
    train = DataLoader(mine[:n], bs=bs, shuffle=True, drop_last=not uneven)
    return DataLoaders(train, DataLoader(mine[n:], bs=16), device='cpu')

def learner(buffers=True, rewind_to='init', wrap=True, metrics=accuracy, seed=100, cbs=(), **kwargs):
    torch.manual_seed(seed+rank)                                    # each process draws its own numbers
    dls,m = loaders(split=wrap, **kwargs),net()
    if wrap: m = DDP(m, broadcast_buffers=buffers)
    cbs = [LotteryCallback(rewind_to=rewind_to), *cbs]
    return Learner(dls, m, loss_func=CrossEntropyLossFlat(), lr=.02, metrics=metrics, cbs=cbs)

def now(learn):
    "Masks and the whole state, as they are"
    return dict(mask=learn.lottery.masks.hash(), state=digest(unwrap(learn.model).state_dict()))

def figures(r): return {k:v for k,v in r.row.items() if k!='seconds'}
def noted(rs):
    "What a lottery wrote down"
    curves = [None if r.curve is None else r.curve.to_dict('list') for r in rs]
    return dict(rows=[figures(r) for r in rs], hashes=[r.masks.hash() for r in rs], curves=curves,
                starts=[digest(r.start) for r in rs], keys=list(rs[-1].start))

def play(learn, rounds=2, n_epoch=1, fit=Learner.fit_one_cycle, **kwargs):
    "A lottery; what it began each round from, came to, and wrote down"
    seen = []
    def watched(learn, n_epoch, **kw):
        seen.append(now(learn))
        fit(learn, n_epoch, **kw)
        seen.append(dict(weights=digest(dict(unwrap(learn.model).named_parameters()))))
    rs = learn.fit_lottery(n_epoch, rounds=rounds, fit=watched, **kwargs)
    return dict(seen=seen, **noted(rs), **now(learn))

def play_ctx(rounds=1, seed=None, rewind_to='init', at=100, **kwargs):
    "fastai's own way: it wraps the model and splits the data for the length of each fit"
    learn = learner(wrap=False, rewind_to=rewind_to, seed=at)
    with learn.distrib_ctx(sync_bn=False): return play(learn, rounds, seed=seed, **kwargs)

def attempt(f):
    try:
        f()
        return 'no error'
    except Exception as e: return f'{type(e).__name__}: {e}'

# --- the same lottery in both

kinds = dict(late={}, random=dict(criterion='random'), reinit=dict(reset='random_reinit'), snip=dict(criterion='snip'))
kinds['global'] = {}
def one_of(name, buffers, d): return play(learner(buffers, '2it' if name=='late' else 'init'), **kinds[name])
for b in (True,False):
    for k in kinds: cases[f'{k}_{b}'] = partial(one_of, k, b)

def in_context(rewind_to, n_epoch, d):
    return play_ctx(rewind_to=rewind_to, n_epoch=n_epoch, criterion='magnitude_increase', eval_every=2)
for k,n in (('init',1),('1it',1),('1ep',2)): cases[f'ctx_{k}'] = partial(in_context, k, n)

def weights_now(learn):
    "As `now`, less the statistics of batch norm: after a plain fit those are each process's own"
    return dict(now(learn), state=digest(dict(unwrap(learn.model).named_parameters())))
def draw(w_f, gen): return torch.randn(w_f.shape, generator=gen)

@case
def by_hand(d):
    learn,res = learner(False, rewind_to='1it'),[]
    learn.fit(1, 1e-2)
    for criterion in ('random','snip'):
        learn.prune(.3, criterion=criterion)
        res.append(weights_now(learn))
    for reset in ('rewind','noisy'):
        learn.rewind(reset)
        res.append(now(learn))
    learn.fit(1, 1e-2)
    learn.prune(.3)
    res.append(weights_now(learn))
    learn.rewind('random_reinit', seed=3)
    res.append(now(learn))
    learn.prune(.3, hold=draw)
    res.append(now(learn))
    return res

@case
def controls(d):
    learn,res = learner(),[]
    learn.fit_lottery(1, rounds=1)
    for kw in (dict(), dict(mask=shuffle_mask), dict(mask=random_mask), dict(reset='random_reinit')):
        r = learn.fit_ticket(learn.lottery.ticket(), 1, **kw)
        res.append(dict(now(learn), start=digest(r.start), row=figures(r)))
    return res

@case
def own_figures(d):
    "What each process sees otherwise must not part them"
    rs = learner(metrics=[Odd()]).fit_lottery(1, rounds=3, tol=.5, monitor='odd', lower=False)
    return [r['odd'] for r in rs]

@case
def no_variables(d):
    "Without WORLD_SIZE and RANK in the environment fastai gathers no figures: each process has its own"
    old = {k:os.environ.pop(k) for k in ('WORLD_SIZE','RANK')}
    try: return play(learner(), 1, eval_every=1, test_dl=loaders().valid, seed=3, path=d/'run')
    finally: os.environ.update(old)

def added_up(n=2, **kwargs): return dict(cbs=[NoSync(n), GradientAccumulation(8*n), *kwargs.pop('cbs', ())], **kwargs)

def held(learn):
    "Pruned weights that are not 0, and those that are pruned"
    ws = {n:w for n,w in unwrap(learn.model).named_parameters() if n in learn.lottery.masks}
    return [sum(int((w[~learn.lottery.masks[n]]!=0).sum()) for n,w in ws.items()), learn.lottery.masks.numel-learn.lottery.masks.n_kept]

@case
def uneven(d):
    learn = learner(uneven=True)
    return dict(play(learn, n_epoch=2, eval_every=2), held=held(learn))

@case
def apart(d):
    "In one group, but unwrapped, and with more batches an epoch in one than in the other: nobody waits within an epoch"
    old = {k:os.environ.pop(k) for k in ('WORLD_SIZE','RANK')}    # with them fastai gathers figures after each batch
    try:
        learn = learner(wrap=False)
        learn.dls = DataLoaders(learn.dls.train.new(bs=8+8*rank), learn.dls.valid, device='cpu')
        rs = learn.fit_lottery(2, rounds=1, seed=3, path=d/'run')
    finally: os.environ.update(old)
    return dict(batches=len(learn.dls.train), hashes=[r.masks.hash() for r in rs])

@case
def accumulated(d):
    learn = learner(**added_up())
    return dict(play(learn, n_epoch=2), held=held(learn))

@case
def not_finite(d): return attempt(lambda: learner(spoil=1, bs=32).fit_lottery(1, rounds=1))

# --- on disk

def writes(mode, flags):
    "Does an `open` with these arguments write?"
    if isinstance(flags,int): return flags&(os.O_WRONLY|os.O_RDWR|os.O_CREAT) or set(str(mode))&set('wax+')
    return set(str(mode))&set('wax+')

def watch_files(d):
    "A list that grows by what this process does to files within `d`"
    did = []
    def hook(ev, args):
        if ev=='open' and str(d) in str(args[0]) and writes(*args[1:]): did.append([ev, str(args[0])])
        elif ev in ('os.rename','os.mkdir','os.remove') and str(d) in str(args[0]):
            did.append([ev, str(args[1 if ev=='os.rename' else 0])])
    sys.addaudithook(hook)
    return did

def three_epochs(d, seed, at=None, **kwargs):
    Stop.n,Stop.at = None,at
    cbs = [Stop(), *kwargs.pop('cbs', ())]
    return play(learner(False, seed=seed, cbs=cbs, **kwargs), rounds=1, n_epoch=3, seed=3, eval_every=2, path=d)

@case
def folder(d):
    did = watch_files(d)
    whole = play(learner(False), rounds=2, seed=3, path=d/'whole')
    first = play(learner(False), rounds=1, seed=3, path=d/'parts')
    again = play(learner(False, seed=500), rounds=2, seed=3, path=d/'parts')    # another net, until it reads the folder's
    third = play(learner(False, seed=900), rounds=2, seed=3, path=d/'parts')    # nothing is left to do
    return dict(whole=whole, first=first, again=again, third=third, did=list(did))

@case
def stopped(d):
    "Stopped in round 0, and in round 1"
    unbroken = three_epochs(d/'unbroken', 100)
    errors = [attempt(lambda: three_epochs(d/'broken', seed, 3)) for seed in (100,500)]
    return dict(unbroken=unbroken, stopped=errors, broken=three_epochs(d/'broken', 900), played=Stop.n)

@case
def stopped_added_up(d):
    "As `stopped`, of a training that adds gradients up without a reduction"
    def go(d, seed, at=None): return three_epochs(d, seed, at, **added_up())
    unbroken = go(d/'unbroken', 100)
    errors = [attempt(lambda: go(d/'broken', seed, 3)) for seed in (100,500)]
    return dict(unbroken=unbroken, stopped=errors, broken=go(d/'broken', 900), played=Stop.n)

@case
def ctx_folder(d):
    kw = dict(seed=3, criterion='random')
    whole = play_ctx(1, path=d/'whole', **kw)
    play_ctx(0, path=d/'parts', **kw)
    return dict(whole=whole, again=play_ctx(1, path=d/'parts', at=500, **kw))

@case
def killed(d):
    Stop.n,Stop.at = 0,None
    seed = 500 if (d/'run').exists() else 100    # another net, until it reads the folder's
    out = play(learner(False, seed=seed, cbs=[Stop(), Slow()]), rounds=2, n_epoch=3, seed=3, eval_every=2, path=d/'run')
    return dict(out, played=Stop.n)

class Term(Callback):
    "SIGTERM in process `who` within iteration number `at` of this process; how many were trained"
    order,run_valid = LotteryCallback.order+10,False
    at = who = n = None
    def before_batch(self):
        Term.n += 1
        if Term.n==Term.at and rank==Term.who: signal.raise_signal(signal.SIGTERM)

def until_term(d, seed, at=None, who=None, cbs=(), **kwargs):
    "How a lottery ended, and after how many iterations"
    Term.at,Term.who,Term.n = at,who,0
    learn = learner(seed=seed, cbs=[Term(), *cbs], **kwargs)
    try: return dict(play(learn, rounds=1, n_epoch=3, seed=3, eval_every=2, path=d), n=Term.n)
    except SystemExit as e: return dict(code=e.code, n=Term.n)

def ended_by_term(cbs, d):
    "SIGTERM to the one process, and to the other, in mid-epoch, in both rounds; each time another net takes it up"
    signal.signal(signal.SIGTERM, lambda *_: None)
    def go(sub, *args): return until_term(d/sub, *args, cbs=cbs())
    whole = go('whole', 100)
    parts = [go('parts', 100+i, at, i%2) for i,at in enumerate((5,1,9))]
    return dict(whole=whole, parts=parts, last=go('parts', 900))
cases['ended'] = partial(ended_by_term, list)
cases['ended_added_up'] = partial(ended_by_term, lambda: added_up()['cbs'])

@case
def screen(d):
    with contextlib.redirect_stdout(io.StringIO()) as o: learner().fit_lottery(1, rounds=1)
    return o.getvalue()

@case
def folder_errors(d):
    p = d/'run'
    play(learner(), rounds=1, seed=3, path=p)
    other = attempt(lambda: play(learner(), rounds=1, seed=4, path=p))
    if rank==0: (d/'file').write_text('')
    nowhere = attempt(lambda: play(learner(), rounds=1, path=d/'file'/'run'))
    f = p/'round_01'/'weights.safetensors'
    if rank==0: f.write_bytes(f.read_bytes()[:-40])
    dist.barrier()
    return [other, nowhere, attempt(lambda: play(learner(), rounds=1, seed=3, path=p))]

# --- the program

def run(name, d):
    "In a process group of its own: an error here does not reach the next case"
    (d/name).mkdir(exist_ok=True)
    try:
        dist.init_process_group('gloo', f'file://{d/name}.store', timedelta(seconds=WAIT), N, rank)
        out = cases[name](d/name)
        dist.barrier()
        return out
    except Exception: return {'error':traceback.format_exc()}
    finally:
        if dist.is_initialized(): dist.destroy_process_group()

def begin(n, log, limit=LIMIT-5):
    "This process is number `n`; what it prints goes to `log`; it ends after `limit` seconds"
    global rank
    rank = n
    for fd in (1,2): os.dup2(os.open(log, os.O_WRONLY|os.O_CREAT|os.O_APPEND), fd)
    os.environ.update(WORLD_SIZE=str(N), RANK=str(n), LOCAL_RANK=str(n))
    warnings.simplefilter('ignore')
    faulthandler.dump_traceback_later(limit, exit=True)
    torch.set_num_threads(1)
    stand_in()

def main(n, d, only):
    begin(n, d/f'log.{n}')
    for name in only or cases: (d/f'{name}.{n}.json').write_text(json.dumps(run(name, d)))

"""Files that are whole, and whose content is wrong: a run's folder in which one thing of one file is another, its digest made anew.
`test_hostile.py` tries some of them, `bench_hostile.py` many."""
import copy,json,math,random,shutil
from pathlib import Path
import pandas as pd
from nets import *
from fastai_lottery.checkpoints import read_checkpoint,write_checkpoint
from fastai_lottery.data import TensorDS,TensorDL
from fastai_lottery.experiments import Preset,measured,play_seed,read_replicate
from fastai_lottery.files import load_tensors,save_tensors
from fastai_lottery.tables import append_rows
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]

# --- a run that was stopped, with files of all kinds

class Halt(Callback):
    "Ends as Ctrl-C does, in the last epoch of round `at`, if that is a number"
    order,at = 1000,None
    def after_epoch(self):
        if len(self.lottery.rounds)==Halt.at and self.epoch==2: raise KeyboardInterrupt

class Count(Callback):
    "Carries a count over rounds"
    def __init__(self): self.n,self.seen,self.gen = 0,{'a':[1.]},random.Random(1)
    def before_batch(self): self.n += self.training

def loaders():
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(3))
    y = x[:,:4].argmax(1)
    dss = TensorDS(x[:64], y[:64]),TensorDS(x[64:], y[64:])
    return DataLoaders(TensorDL(dss[0], bs=16, shuffle=True, seed=0), *[TensorDL(dss[1], bs=32) for _ in range(2)],
                       device='cpu')

def model(): return nn.Sequential(nn.Linear(8,6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6,4))

def go_on(d, halt=None, **kwargs):
    "Play the run in the folder `d`, or the rest of it"
    Halt.at = halt
    torch.manual_seed(0)
    cbs = [LotteryCallback(rewind_to='6it'), Count(), Halt()]
    learn = Learner(loaders(), model(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=cbs, opt_func=Adam)
    kw = dict(amount=.3, fit=Learner.fit, lr=.01, seed=0, eval_every=4, hold='hold_init')
    with learn.no_bar(), learn.no_logging(): learn.fit_lottery(3, 2, path=d, **{**kw, **kwargs})
    return learn

def train(d):
    "Train the ticket of round 1 in the folder `d`"
    learn = Learner(loaders(), model(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=LotteryCallback())
    Halt.at,f = None,d/'round_01'/'ticket'
    t = Ticket.load(f)
    with learn.no_bar(), learn.no_logging():
        try: learn.fit_ticket(t, 3, fit=Learner.fit, lr=.01, seed=0)
        except (ValueError,FloatingPointError) as e: raise ValueError(f'{f}: {e}') from e    # it was in memory

def stopped(d):
    try: go_on(d, halt=2)
    except KeyboardInterrupt: return d
    raise AssertionError('it was not stopped')

def data(seed=0, device=None): return loaders()
def kept(run, k): return dict(kept=run.ticket(k).masks.n_kept)

lab = Preset('lab', 'a net of some weights', 'none', 'seconds', data, model,
             dict(n_epoch=1, rounds=1, fit=Learner.fit, lr=.02, eval_every=4), levels=(1,),
             controls=dict(reinit=dict(reset='random_reinit')), lotteries=dict(chance=dict(criterion='random')),
             measures=dict(kept=kept))

def replicate(d):
    play_seed(lab, 0, d/'seed_00')
    (d/'play.json').write_text(json.dumps(dict(preset='digits', epochs=1, replicates=1)))
    return d

# --- wrong content

def deep(n=1000):
    o = 1
    for _ in range(n): o = [o]
    return o

odd = [None, True, False, -1, 0, 3, 10**30, 1.5, -.5, math.nan, math.inf, '', 'init', 'a\x1b[2Jb', '../x', [], {}, [1],
       {'a':1},
       [[1,2],[3]], ['a','a'], {'a':{'b':[None]}}]

def odd_tensors(t):
    "What may stand for the tensor `t`"
    n = t.float().nan_to_num().flatten()
    yield from (n.long(), n.to(torch.complex64), n.double().reshape(t.shape), t.bool(), t[None])
    yield from (torch.empty(0), torch.zeros(3,3), torch.tensor(1))
    yield from (torch.zeros_like(t), n.new_full(t.shape, math.nan), torch.zeros(0, *t.shape), t.flatten().float())

def places(o, at=()):
    "All places in plain data: keys and indices that lead there"
    yield at
    if isinstance(o, dict): items = list(o.items())
    else: items = list(enumerate(o)) if isinstance(o, (list,tuple)) else []
    for k,v in items[:40]: yield from places(v, (*at,k))

def put_at(o, at, v, r):
    "A copy of `o` with `v` at the place `at`, or without that place"
    if not at: return v
    if isinstance(o, dict):
        new = dict(o)
        if len(at)==1 and v is Gone: new.pop(at[0])
        else: new[at[0]] = put_at(o[at[0]], at[1:], v, r)
        return new
    new = list(o)
    if len(at)==1 and v is Gone: new.pop(at[0])
    else: new[at[0]] = put_at(o[at[0]], at[1:], v, r)
    return type(o)(new)

class Gone: "Stands for what is left out"

def at_place(o, at):
    for k in at: o = o[k]
    return o

def wrong(o, r):
    "A copy of the plain data `o` in which one thing is another; and what that is"
    at = r.choice(list(places(o)) or [()])
    old = at_place(o, at)
    choices = [*odd, Gone, Gone, deep(), deep(60)]
    if torch.is_tensor(old): choices = [*choices, *odd_tensors(old)]*2
    v = r.choice(choices) if at else r.choice([[], {}, None, 1, deep()])
    return put_at(o, at, v, r),f'{at}: {str(v)[:60]!r}'

# --- one way for each kind of file

def tensors(f, r):
    ts,meta = load_tensors(f)
    new,says = wrong(dict(ts=ts, meta=meta), r)
    ts,meta = (new.get('ts'),new.get('meta')) if isinstance(new, dict) else ({},new)
    ts = {str(k):v for k,v in ts.items() if torch.is_tensor(v)} if isinstance(ts, dict) else {}
    return lambda: save_tensors(f, ts, meta),says

def checkpoint(f, r):
    new,says = wrong(read_checkpoint(f), r)
    return lambda: write_checkpoint(f, new),says

def settings(f, r):
    new,says = wrong(json.loads(f.read_text(encoding='utf-8')), r)
    return lambda: f.write_text(json.dumps(new), encoding='utf-8'),says

def table(f, r):
    rows = pd.read_csv(f).to_dict('records')
    new,says = wrong(rows, r)
    new = [o for o in new if isinstance(o, dict)] if isinstance(new, list) else []
    def write():
        if f.name not in ('controls.csv','measures.csv'): return pd.DataFrame(new).to_csv(f, index=False)
        append_rows(f, [], new)
    return write,says

kinds = {'.safetensors':tensors, '.ckpt':checkpoint, '.json':settings, '.csv':table}

def files_of(d): return [f for f in sorted(d.rglob('*')) if f.suffix in kinds]

def spoilt(src, to, n):
    "A copy of the folder `src` with the `n`-th wrong file; that file and what is wrong in it"
    r = random.Random(n)
    shutil.copytree(src, to)
    f = r.choice(files_of(to))
    while True:
        try:
            write,says = kinds[f.suffix](f, r)
            write()
            return f,says
        except (TypeError,ValueError,OverflowError,RecursionError,RuntimeError,AttributeError,
                KeyError): pass    # JSON has no such thing

def tried(use, d, f, says):
    "Nothing, where `use` ends well or in an error that names something in the folder `d`; else what is wrong with that"
    try: use(d)
    except (ValueError,FileNotFoundError,OSError) as e:
        if str(d) not in str(e): return f'{f.relative_to(d)} {says}: names no file: {type(e).__name__}: {str(e)[:300]}'
        if '\x1b' in str(e): return f'{f.relative_to(d)} {says}: shows control characters'
    except Exception as e: return f'{f.relative_to(d)} {says}: {type(e).__name__}: {str(e)[:300]}'
    return None

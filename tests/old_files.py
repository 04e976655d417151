"""Tickets and folders that earlier versions wrote, in fixtures, and how each of them goes on: old.zip is of version
0.0.1, dense.zip of the last one whose tickets and weights were not packed. `python old_files.py --write fixtures/old.zip`
made the first, with `--only stopped late held tickets` the other; made anew they would no longer be old."""
import argparse,json,shutil,subprocess,sys,tempfile,warnings,zipfile
from functools import partial
from pathlib import Path
import torch
from torch import nn
from fastai.basics import *
from fastai_lottery.all import *
import golden
from golden import *

fixtures = golden.here/'fixtures'/'old.zip'

# --- nets, settings

class Bare(nn.Module):
    "A matrix and a gain that are parameters of its own, and a head"
    def __init__(self):
        super().__init__()
        self.w,self.gain,self.head = nn.Parameter(torch.randn(8,12)/3),nn.Parameter(torch.ones(12)),nn.Linear(12,4)
    def forward(self, x): return self.head((x@self.w).relu()*self.gain)

class Mixed(nn.Module):
    "A linear layer between a bare tensor of three dimensions and a bare matrix"
    def __init__(self):
        super().__init__()
        self.scale,self.fc,self.out = nn.Parameter(torch.rand(1,8,1)),nn.Linear(8,12),nn.Parameter(torch.randn(12,4)/3)
    def forward(self, x): return self.fc((x[...,None]*self.scale)[...,0]).relu()@self.out

# what is different in each lottery, and at which training batch its process is killed; others stop after round 1 of 3
stops = dict(
    stopped = dict(**images, lot=dict(rewind_to='2it'), eval_every=3),
    killed  = dict(**images, hold='hold_init', eval_every=3, kill=18),
    late    = dict(model=drop_bn, lot=dict(rewind_to='3it'), kill=6),
    held    = dict(hold='hold_init_or_zero', reset='rewind_or_zero', scope='local'),
    biased  = dict(lot=dict(bias=True, exclude='4.weight'), criterion='movement', fit=Learner.fit_flat_cos, lr=.02),
    chance  = dict(criterion='random', reset='random_reinit', opt_func=sgd, fit=Learner.fit, lr=.05),
    bare    = dict(model=Bare),
    begun   = dict(model=Bare, kill=6),
    mixed   = dict(model=Mixed, hold='hold_init', kill=18),
    text    = dict(model=Awd, **texts))

def lottery_of(name, d, at=None, seed=0, rounds=3):
    "The lottery `name` in the folder `d`, and its training batches; another `seed` gives weights that those in the folder replace"
    kw = {k:v for k,v in stops[name].items() if k!='kill'}
    learn = learner(**{k:kw.pop(k) for k in asks if k in kw}, cbs=[Halt], seed=seed)
    Halt.n,Halt.at,Halt.kill = 0,at,True
    rs = lottery(learn, **{'n_epoch':3, **kw}, rounds=rounds, path=d)
    return dict(figures(learn, rs), batches=Halt.n)

small = Preset('small', 'a net of 296 weights on some digits', 'none', 'seconds', few_digits, partial(LeNet, 64, 4, 10),
               dict(n_epoch=2, rounds=2, amount=.4, scope={'out':.5}, fit=Learner.fit, lr=.02, eval_every=4), levels=(1,2), opt_func=sgd,
               controls=dict(reinit=dict(reset=random_reinit), shuffle=dict(mask=shuffle_mask)),
               lotteries=dict(chance=dict(criterion='random')), measures=dict(stability=ticket_stability))

def seconds(d):
    "How long each finished round took, as written in the tables of rounds in the folder `d`"
    return {f.parent.relative_to(d).as_posix():list(map(float,
                                                        pd.read_csv(f, dtype=str).seconds)) for f in sorted(d.rglob('rounds.csv'))}

# --- written by the old version

def write_stop(name, d):
    "The folder of a lottery that stopped after round 1, or was killed"
    if 'kill' not in stops[name]: return lottery_of(name, d, rounds=1)
    p = subprocess.run([sys.executable, __file__, '--halt', name, str(d)], capture_output=True, text=True)
    if p.returncode==-signal.SIGKILL and (d/'epoch.ckpt').exists(): return
    raise RuntimeError(f'{name!r} was not killed, or left no checkpoint:\n{p.stderr[-3000:]}')

def write_tickets(d):
    for n,kw in dict(plain=dict(lot=dict(rewind_to='3it')), held=dict(hold='hold_init')).items():
        learn = learner(**images, lot=kw.pop('lot', None))
        lottery(learn, **kw)
        learn.lottery.ticket().save(d/n)

def write_all(d, names):
    for n in names:
        if n in stops: write_stop(n, d/n)
    if 'tickets' in names: write_tickets(d/'tickets')
    if 'replicate' in names: play_seed(small, 0, d/'replicate'/'seed_00', device='cpu', rounds=1)
    for f in [*d.rglob('.*'), *d.rglob('models')]:
        shutil.rmtree(f) if f.is_dir() else f.unlink()    # locks, and what callbacks saved

# --- read, and gone on

def read(name, d):
    "What is in the fixture `name` in the folder `d`, as it is read: nothing is computed"
    if name!='tickets': return of_folder(d)
    ts = {f.stem:Ticket.load(f) for f in sorted(d.glob('*.safetensors'))}
    return plain({n:dict(of_ticket(t), meta=t.meta) for n,t in ts.items()})

def go_on(name, d):
    "How it ends"
    if name in stops: return lottery_of(name, d, seed=7)
    if name=='replicate':
        df = play_seed(small, 0, d/'seed_00', device='cpu')
        return dict(trainings=of_table(df), measures=of_table(measured(d)), folder=of_folder(d))
    return {f'{n}_{k}':trained(d/n, **kw) for n in ('plain','held') for k,kw in dict(same=dict(), shuffled=dict(mask=shuffle_mask)).items()}

def trained(f, **kwargs):
    "A training of the ticket in the file `f`, in a net of other weights"
    learn = learner(**images, seed=7)
    with quiet(learn): r = learn.fit_ticket(Ticket.load(f), 2, seed=5, **kwargs)
    return dict(of_round(r), end=of_learner(learn))

names = [*stops, 'tickets', 'replicate']

def unpack_zip(d, name, f=fixtures):
    "The fixture `name` in the folder `d`"
    with zipfile.ZipFile(f) as z: z.extractall(d, [o for o in z.namelist() if o.startswith(f'{name}/')])
    return Path(d)/name

def one_thread(f, *args):
    "`f(*args)` on one thread, as plain data and without warnings"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    set_seed(11)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return json.loads(json.dumps(plain(f(*args))))
    finally: torch.set_num_threads(n)

# --- the program

def put_zip(f, d, more):
    "All files of `d`, and `more` texts by name, with no dates of ours"
    f.parent.mkdir(parents=True, exist_ok=True)
    files = {o.relative_to(d).as_posix():o.read_bytes() for o in sorted(d.rglob('*')) if o.is_file()}
    with zipfile.ZipFile(f, 'w') as z:
        for n,b in {**more, **files}.items(): z.writestr(zipfile.ZipInfo(n), b, zipfile.ZIP_DEFLATED, 9)

def expected(f, names):
    "How each of the fixtures `names` in the zip `f` is read, and how it ends"
    res = {}
    for n in names:
        with tempfile.TemporaryDirectory() as d:
            at = unpack_zip(d, n, f)
            res[n] = dict(read=one_thread(read, n, at), seconds=seconds(at), end=one_thread(go_on, n, at))
            print(n, flush=True)
    return res

def write(f, names):
    with tempfile.TemporaryDirectory() as d:
        one_thread(write_all, Path(d), names)
        put_zip(f, Path(d), {})
        a,b = expected(f, names),expected(f, names)
        if diff := difference(a, b): raise RuntimeError(f'it does not end twice the same: {diff}')
        put_zip(f, Path(d), {'expected.json':json.dumps(dict(about=about(), fixtures=a), indent=1)})
    print(f'{f}: {f.stat().st_size} bytes, by fastai_lottery of {golden.package_at()}')

if __name__=='__main__':
    torch.set_num_threads(1)
    if sys.argv[1:2]==['--halt']: one_thread(lambda: lottery_of(sys.argv[2], Path(sys.argv[3]), stops[sys.argv[2]]['kill']))
    else:
        p = argparse.ArgumentParser(description=__doc__)
        p.add_argument('--write', type=Path, required=True, help='where to')
        p.add_argument('--only', nargs='+', default=names, choices=names, help='fixtures')
        args = p.parse_args()
        write(args.write, args.only)

"""Files of one run are bound to each other: every file of a run's folder is exchanged with each other one of its kind, of another seed,
another start, other settings, another round. The run then ends in the right bits, or in one `ValueError` that names the file."""
import json,shutil
from pathlib import Path
import pytest
from nets import *
from fastai_lottery.fits import *
from fastai_lottery.rounds import *
from fastai_lottery.data import TensorDS,TensorDL
from fastai_lottery.experiments import Preset,measured,play_seed,read_replicate
from fastai_lottery.resets import random_reinit
from fastai_lottery.scopes import shuffle_mask
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]

class Count(Callback):
    "Carries a count over rounds, and moves the loss by it"
    def __init__(self): self.n = 0
    def before_batch(self): self.n += self.training
    def after_loss(self): self.learn.loss_grad = self.loss_grad*(1+self.n/1000)

class Halt(Callback):
    "Ends as Ctrl-C does, in the last epoch of round `at`, if that is a number"
    order,at = 1000,None
    def after_epoch(self):
        if len(self.lottery.rounds)==Halt.at and self.epoch==2: raise KeyboardInterrupt

def loaders(order=0):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(96, 8, generator=g)
    y = (x@torch.randn(8, 4, generator=g)).argmax(1)
    return DataLoaders(TensorDL(TensorDS(x[:64], y[:64]), bs=16, shuffle=True, seed=order),
                       TensorDL(TensorDS(x[64:], y[64:]), bs=32),
                       device='cpu')

kinds = dict(late='6it', early='init')

def play(d, to, init=0, halt=None, seed=0, amount=.3, lr=.01, order=0):
    torch.manual_seed(init)
    net = nn.Sequential(nn.Linear(8,12), nn.ReLU(), nn.Linear(12,4))
    cbs = [LotteryCallback(rewind_to=to), Count(), Halt()]
    learn = Learner(loaders(order), net, loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=cbs)
    Halt.at = halt
    try:
        with learn.no_bar(), learn.no_logging():
            learn.fit_lottery(3, 2, amount=amount, fit=Learner.fit, lr=lr, seed=seed, eval_every=4, path=d)
    except KeyboardInterrupt: pass
    return end_of(learn)

def end_of(learn):
    "What a lottery ended in, but for the time that it took"
    rows = [{k:v for k,v in r.row.items() if k!='seconds'} for r in learn.lottery.rounds]
    return rows,{k:v.clone() for k,v in learn.model.state_dict().items()}

def same(a, b): return a[0]==b[0] and a[1].keys()==b[1].keys() and all(torch.equal(v, b[1][k]) for k,v in a[1].items())

donors = dict(seed=dict(seed=1), start=dict(init=1), amount=dict(amount=.4), lr=dict(lr=.02), unseeded=dict(seed=None))

@pytest.fixture(scope='module', params=kinds)
def runs(request, tmp_path_factory):
    "A run that was stopped in its last round, how it ends, and others that were stopped there"
    d,to = tmp_path_factory.mktemp('runs'),kinds[request.param]
    whole = play(d/'whole', to)
    for k,kw in dict(own={}, again=dict(seed=None, order=1), **donors).items(): play(d/k, to, halt=2, **kw)
    return d,to,whole

def files_of(d): return sorted(str(f.relative_to(d)) for f in d.rglob('*') if f.is_file() and f.suffix!='.lock')

def put(src, f, to, g):
    "A copy of the run `src` in `to`, its file `f` in the place of the other's `g`"
    shutil.copytree(src, to)
    shutil.copy(f, to/g)
    return to

def test_a_run_that_was_stopped_ends_as_a_whole_one(runs, tmp_path):
    d,to,whole = runs
    assert same(play(shutil.copytree(d/'own', tmp_path/'run'), to), whole)
    want = {'init.safetensors','run.json','rounds.csv','epoch.ckpt','round_00/callbacks.ckpt',
            'round_01/ticket.safetensors',
            'round_01/curve.csv','round_01/weights.safetensors'}|({'round_00/place.ckpt'} if to!='init' else set())
    assert want<=set(files_of(d/'own'))

def tried(own, f, g, to, whole, tmp_path, **kw):
    "Does a run with the file `f` in place of its `g` end well, or in an error that names a file of the run?"
    d = put(own, f, tmp_path/'run', g)
    try: end = play(d, to, **kw)
    except ValueError as e:
        assert str(d) in str(e) and '\n' not in str(e).replace('\n    ',''), e
        return 'refused'
    assert same(end, whole), f'{g}: the run went on and ended in other figures'
    return 'right'

@pytest.mark.parametrize('donor', donors)
def test_files_of_another_run(donor, runs, tmp_path):
    d,to,whole = runs
    told = {}
    for g in files_of(d/'own'):
        if not (f := d/donor/g).exists() or f.read_bytes()==(d/'own'/g).read_bytes(): continue
        told[g] = tried(d/'own', f, g, to, whole, tmp_path/g.replace('/','_'))
    must = 'epoch.ckpt round_01/ticket.safetensors round_01/weights.safetensors round_01/callbacks.ckpt round_01/curve.csv rounds.csv'
    assert {told[k] for k in must.split()}=={'refused'} and (donor=='start' or told['run.json']=='refused'), told
    if donor!='amount':
        assert told['init.safetensors']==told['round_00/weights.safetensors']=='refused'    # the dense round is the same

def test_files_of_another_round(runs, tmp_path):
    d,to,whole = runs
    own = d/'own'
    for g in [o for o in files_of(own) if o[:6]=='round_']:
        other = g.replace('round_00','round_xx').replace('round_01','round_00').replace('round_xx','round_01')
        if not (own/other).exists(): continue
        told = tried(own, own/other, g, to, whole, tmp_path/g.replace('/','_'))
        assert told=='refused' or g=='round_00/callbacks.ckpt', f'{g}: {told}'    # which the last round has after it

def test_a_stop_in_another_round(runs, tmp_path):
    "The checkpoint of a round that is over is nothing"
    d,to,whole = runs
    play(tmp_path/'early', to, halt=1)
    assert tried(d/'own', tmp_path/'early'/'epoch.ckpt', 'epoch.ckpt', to, whole, tmp_path)=='right'

def test_without_its_settings(runs, tmp_path):
    "Who removes `run.json` goes on with the same settings only"
    d,to,whole = runs
    for k,kw in dict(same={}, **{k:v for k,v in donors.items() if k!='start'}).items():
        shutil.copytree(d/'own', tmp_path/k)
        (tmp_path/k/'run.json').unlink()
        if k=='same': assert same(play(tmp_path/k, to), whole)
        else:
            with pytest.raises(ValueError, match='belongs to|was .* and is now'): play(tmp_path/k, to, **kw)

def test_unseeded_runs_are_told_apart(runs, tmp_path):
    "The same settings and the same start, and yet another course"
    d,to,_ = runs
    for g in files_of(d/'again'):
        if not g.startswith(('epoch.ckpt','round_0')) or g=='round_00/callbacks.ckpt': continue
        if (f := d/'unseeded'/g).read_bytes()==(d/'again'/g).read_bytes(): continue
        with pytest.raises(ValueError) as e: play(put(d/'again', f, tmp_path/g.replace('/','_'), g), to, seed=None)
        assert g in str(e.value) or 'rounds.csv' in str(e.value)

def test_weights_in_memory_know_their_round(runs, tmp_path):
    "`learn.lottery.load` reads weights long after the run"
    d,to,_ = runs
    net = nn.Sequential(nn.Linear(8,12), nn.ReLU(), nn.Linear(12,4))
    learn = Learner(loaders(), net, loss_func=CrossEntropyLossFlat(), cbs=LotteryCallback())
    with learn.no_bar(), learn.no_logging(): learn.fit_lottery(1, 2, seed=0, path=tmp_path/'run')
    a,b = (tmp_path/'run'/f'round_0{i}'/'weights.safetensors' for i in (0,1))
    shutil.copy(b, a)
    learn.lottery.trained.clear()
    learn.lottery.load(1)
    with pytest.raises(ValueError, match='round_00.*belongs to a round that showed something else'):
        learn.lottery.load(0)

# --- tables of a replicate

def few_digits(seed=0, device=None): return loaders_with_test()

def loaders_with_test():
    dls = loaders()
    return DataLoaders(dls.train, dls.valid, TensorDL(dls.valid.dataset, bs=32), device='cpu')

def kept(run, k): return dict(kept=run.ticket(k).masks.n_kept)

def few(): return nn.Sequential(nn.Linear(8,12), nn.ReLU(), nn.Linear(12,4))

lab = Preset('lab', 'a net of some weights', 'none', 'seconds', few_digits, few,
             dict(n_epoch=2, rounds=2, amount=.4, fit=Learner.fit, lr=.02, eval_every=4), levels=(1,2),
             controls=dict(reinit=dict(reset=random_reinit), shuffle=dict(mask=shuffle_mask)),
             lotteries=dict(chance=dict(criterion='random')), measures=dict(kept=kept))

@pytest.fixture(scope='module')
def seeds(tmp_path_factory):
    d = tmp_path_factory.mktemp('lab')
    return d,[play_seed(lab, i, d/f'seed_0{i}') for i in range(2)]

def test_the_dense_round_is_shared_by_lotteries(seeds, tmp_path):
    d,(df,_) = seeds
    again = play_seed(lab, 0, shutil.copytree(d/'seed_00', tmp_path/'seed_00'))
    assert again.equals(df) and set(df.arm)=={'dense','ticket','reinit','shuffle','chance'}

@pytest.mark.parametrize('f', ['controls.csv','measures.csv'])
def test_tables_of_another_seed(f, seeds, tmp_path):
    d,_ = seeds
    to = shutil.copytree(d, tmp_path/'lab')
    shutil.copy(d/'seed_01'/f, to/'seed_00'/f)
    with pytest.raises(ValueError, match=f'seed_00.{f}.* belongs to another run'): play_seed(lab, 0, to/'seed_00')
    with pytest.raises(ValueError, match=f'seed_00.{f}.* belongs to another run'):
        read_replicate(to/'seed_00') if f=='controls.csv' else measured(to)

def test_another_lotterys_files_in_a_replicate(seeds, tmp_path):
    d,(df,_) = seeds
    for i,g in enumerate(o for o in files_of(d/'seed_00'/'chance') if o!='tables.json'):
        to = shutil.copytree(d/'seed_00', tmp_path/f'seed_{i:02d}')
        if (d/'seed_00'/g).read_bytes()==(to/'chance'/g).read_bytes(): continue    # the dense round is the same
        shutil.copy(d/'seed_00'/g, to/'chance'/g)
        try: res = play_seed(lab, 0, to)
        except ValueError as e: assert str(to) in str(e)
        else: assert res.equals(df), g

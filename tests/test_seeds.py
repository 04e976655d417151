"Many starts, few kept: each goes on where it stood, whoever plays it; prunes at rungs; what stops, what is lost, what is refused"
import threading
from concurrent.futures import Future
from functools import partial
import pandas as pd,pytest,torch
from torch import nn
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback,SaveModelCallback
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import SGD,ranger
from fastai_lottery.callback import LotteryCallback
from fastai_lottery.data import TensorDL,TensorDS
from fastai_lottery.own import learner_of
from fastai_lottery.rounds import *
from fastai_lottery.seeds import seeds_lottery
from fastai_lottery.slots import Here

def loaders(tests=True):
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(7))
    y = x[:,:4].argmax(1)
    a,b = TensorDS(x[:64], y[:64]),TensorDS(x[64:], y[64:])
    return DataLoaders(TensorDL(a, bs=16, shuffle=True), *[TensorDL(b, bs=32)]*(2 if tests else 1), device='cpu')

def net(): return nn.Sequential(nn.Linear(8,12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(.1), nn.Linear(12,4))
def make(seed): return Learner(loaders(), net(), metrics=accuracy)

how = dict(n=4, keep=2, n_epoch=4, rungs=(1,2), lr_max=.02)
def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])
def same(a, b):
    assert a.seeds==b.seeds
    pd.testing.assert_frame_equal(a.table, b.table, check_exact=True)
    for l,m in zip(a.learners, b.learners): assert torch.equal(weights(l), weights(m))
    for t,u in zip(a.tickets, b.tickets): assert t.masks==u.masks

@pytest.fixture(scope='module')
def plain(): return seeds_lottery(make, **how)

@pytest.fixture(scope='module')
def pruned(): return seeds_lottery(make, **how, prune=.5)

class Counts(Here):
    "Says what it was given; may stop as Ctrl-C does, and lose a worker"
    def __init__(self, left=None, hurt=None): self.left,self.hurt,self.seen = left,hurt,[]
    def submit(self, fn, job):
        if len(self.seen)==self.left: raise KeyboardInterrupt
        self.seen.append((job['i'],job['stop']))
        if self.hurt is None or not (e := self.hurt(len(self.seen))): return super().submit(fn, job)
        f = Future()
        f.set_exception(e)
        return f

# --- what comes of it

def test_the_worst_stay_behind_at_each_rung(plain):
    t = plain.table
    came = t.groupby('seed').epoch.max()
    assert sorted(came)==[1,2,4,4]
    first = t[t.epoch==1].set_index('seed').valid_loss
    assert (came>1).sum()==3 and first[came[came>1].index].max()<=first[came[came==1].index].min()
    second = t[t.epoch==2].set_index('seed').valid_loss
    assert set(plain.seeds)==set(second.nsmallest(2).index)==set(t[t.kept].seed)
    last = t[t.epoch==4].set_index('seed').valid_loss
    assert plain.seeds==list(last.sort_values().index)

@pytest.mark.parametrize('prune', [None,.5], ids=str)
def test_a_survivor_ends_where_the_same_seed_ends_alone(plain, pruned, prune):
    starts = plain if prune is None else pruned
    alone = seeds_lottery(make, n=4, keep=4, n_epoch=4, rungs=() if prune is None else (1,2), prune=prune, lr_max=.02)
    for s,l in zip(starts.seeds, starts.learners):
        assert torch.equal(weights(l), weights(alone.learners[alone.seeds.index(s)]))

def test_without_rungs_and_prunes_it_is_a_plain_training(plain):
    s = plain.seeds[0]
    learn = learner_of(make, s)
    with learn.no_bar(), learn.no_logging(): learn.fit_lottery(4, rounds=0, lr_max=.02, seed=s, test_dl=learn.dls[2])
    assert torch.equal(weights(learn), weights(plain.learners[0]))
    assert learn.lottery.rounds[0]['valid_loss']==plain.report().valid_loss[0]
    assert learn.lottery.rounds[0]['test_accuracy']==plain.report().test_accuracy[0]

def test_rungs_prune_and_their_figures_are_of_what_is_left(pruned):
    for s,l,t in zip(pruned.seeds, pruned.learners, pruned.tickets):
        own = pruned.table[pruned.table.seed==s]
        assert list(own.density)==[.5,.25,.25,.25] and t.masks.density==.25
        w = torch.cat([p.detach().flatten() for n,p in l.model.named_parameters() if n in t.masks])
        assert int((w!=0).sum())<=t.masks.n_kept==36
        assert l.lottery.rounds[0].row['density']==.25
        learn = learner_of(make, s)    # the ticket holds the start
        assert all(torch.equal(v, t.weights[n]) for n,v in learn.model.state_dict().items())

def test_tickets_train_again_and_learners_stay_usable(pruned):
    l,t = pruned.learners[0],pruned.tickets[0]
    v = l.validate()[0]
    assert v==pytest.approx(pruned.report().valid_loss[0], abs=1e-6)
    l.lottery.load(0)
    assert l.validate()[0]==v
    learn = learner_of(make, 9)
    with learn.no_bar(), learn.no_logging(): learn.fit_ticket(t, 1)
    assert learn.lottery.density==.25

def test_what_is_seen(plain):
    assert repr(plain).startswith('2 of 4 starts, seeds ') and 'valid_loss' in repr(plain) and '<table' in plain._repr_html_()
    assert plain.monitor=='valid_loss' and len(plain.report())==2

@pytest.mark.parametrize('monitor,best', [('accuracy','max'),('train_loss','min')])
def test_another_figure_decides(monitor, best):
    s = seeds_lottery(make, n=3, keep=1, n_epoch=2, rungs=(1,), lr_max=.02, monitor=monitor)
    first = s.table[s.table.epoch==1].set_index('seed')[monitor]
    assert first[s.seeds[0]]==getattr(first, best)()

def linear(seed): return Learner(loaders(), nn.Sequential(nn.Linear(8,4)), metrics=accuracy, cbs=GradientClip(.5), opt_func=ranger)
def lstm(seed):
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn,self.fc = nn.LSTM(2, 6, batch_first=True),nn.Linear(6,4)
        def forward(self, x): return self.fc(self.rnn(x.view(len(x), 4, 2))[0][:,-1])
    return Learner(loaders(), Reads(), opt_func=partial(SGD, mom=.9), cbs=LotteryCallback(exclude='fc'))

def own(learn, n_epoch, **kwargs): learn.fit_one_cycle(n_epoch, **kwargs)

@pytest.mark.parametrize('m,fit,kw', [(linear,Learner.fit_flat_cos,{}), (lstm,Learner.fit,dict(lr=.01)), (make,own,{})],
                         ids='ranger lstm own'.split())
def test_other_nets_optimizers_and_schedules(m, fit, kw):
    a = seeds_lottery(m, n=3, keep=1, n_epoch=3, rungs=(1,2), prune=dict(amount=.3, criterion='random'), fit=fit, **kw)
    b = seeds_lottery(m, n=3, keep=3, n_epoch=3, rungs=(1,2), prune=dict(amount=.3, criterion='random'), fit=fit, **kw)
    assert torch.equal(weights(a.learners[0]), weights(b.learners[b.seeds.index(a.seeds[0])]))

def test_a_start_that_diverges_stays_behind():
    def some(seed):
        learn = make(seed)
        if seed in (0,2): next(learn.model.parameters()).data.fill_(1e38)
        return learn
    s = seeds_lottery(some, n=4, keep=2, n_epoch=2, rungs=(1,), lr_max=.02)
    assert sorted(s.seeds)==[1,3]
    def all_(seed):
        learn = make(seed)
        next(learn.model.parameters()).data.fill_(1e38)
        return learn
    with pytest.raises(ValueError, match='no start has a finite valid_loss'): seeds_lottery(all_, n=2, keep=1, n_epoch=2, rungs=(1,))

def test_a_rung_is_an_epoch_s_end_and_no_epoch_is_trained_for_nothing(plain):
    "4 starts to epoch 1, 3 of them to epoch 2, 2 to epoch 4"
    trained = []
    class Count(Callback):
        run_valid = False
        def after_train(self): trained.append(self.epoch+1)
    same(seeds_lottery(lambda s: Learner(loaders(), net(), metrics=accuracy, cbs=Count()), **how), plain)
    assert sorted(trained)==[1]*4+[2]*3+[3]*2+[4]*2

# --- where it is played

def test_a_lambda_that_cannot_travel_is_played_here():
    lock = threading.Lock()
    def held(seed):
        with lock: return make(seed)
    assert len(seeds_lottery(lambda s: held(s), n=2, keep=1, n_epoch=1, rungs=()).learners)==1

def test_processes_play_the_same(pruned): same(seeds_lottery(lambda s: make(s), **how, prune=.5, jobs=1), pruned)

def test_a_stopped_call_goes_on(plain, tmp_path):
    with pytest.raises(KeyboardInterrupt): seeds_lottery(make, **how, path=tmp_path, executor=Counts(6))
    same(seeds_lottery(make, **how, path=tmp_path, executor=Counts()), plain)
    same(seeds_lottery(make, **how, path=tmp_path), plain)

def test_a_start_that_stops_within_a_rung_goes_on_from_its_last_epoch(plain, tmp_path):
    n = []
    class Kill(Callback):
        order = 90
        def before_epoch(self):
            if self.epoch==3 and not n: raise KeyboardInterrupt
    def kills(seed):
        learn = Learner(loaders(), net(), metrics=accuracy, cbs=Kill())
        return learn
    with pytest.raises(KeyboardInterrupt): seeds_lottery(kills, **how, path=tmp_path)
    n.append(1)
    got = seeds_lottery(kills, **how, path=tmp_path)
    assert got.seeds==plain.seeds and torch.equal(weights(got.learners[0]), weights(plain.learners[0]))
    pd.testing.assert_frame_equal(got.table, plain.table, check_exact=True)

def test_more_starts_and_more_to_keep_in_the_same_folder(plain, tmp_path):
    seeds_lottery(make, **how, path=tmp_path)
    more = seeds_lottery(make, **{**how, 'n':5, 'keep':4}, path=tmp_path, executor=(ex := Counts()))
    assert len(more.seeds)==4 and more.table.seed.nunique()==5
    was = plain.table.merge(more.table, on=['seed','epoch'], suffixes=('','_more'))
    assert len(was)==len(plain.table) and (was.valid_loss==was.valid_loss_more).all()

def test_another_experiment_in_the_folder_is_refused(tmp_path):
    seeds_lottery(make, n=2, keep=1, n_epoch=2, rungs=(1,), path=tmp_path)
    with pytest.raises(ValueError, match='holds other starts: rungs was'):
        seeds_lottery(make, n=2, keep=1, n_epoch=2, rungs=(), path=tmp_path)
    with pytest.raises(ValueError, match='holds other starts: experiment was'):
        seeds_lottery(lstm, n=2, keep=1, n_epoch=2, rungs=(1,), path=tmp_path)

def test_a_lost_worker_costs_nothing_and_three_end_it(plain):
    once = Counts(hurt=lambda n: RuntimeError('gone') if n in (2,6) else None)
    same(seeds_lottery(make, **how, executor=once), plain)
    with pytest.raises(RuntimeError, match='start 0: its worker was lost 3 times'):
        seeds_lottery(make, **how, executor=Counts(hurt=lambda n: OSError('gone')))

def test_an_error_of_the_users_comes_with_its_trace():
    def bad(seed):
        if seed==2: raise ZeroDivisionError('no')
        return make(seed)
    with pytest.raises(ZeroDivisionError) as e: seeds_lottery(bad, **how)
    assert 'start 2' in str(e.value.__cause__)

# --- what is refused

@pytest.mark.parametrize('kw,says', [
    (dict(keep=5), '`keep` should be at most'),
    (dict(rungs=(1,4)), '`rungs` should be epochs that rise'),
    (dict(rungs=(2,1)), '`rungs` should be epochs that rise'),
    (dict(prune=1.5), '`prune` should be the fraction'),
    (dict(monitor='acuracy'), 'should be one of valid_loss, accuracy'),
    (dict(fit=Learner.fine_tune), 'rungs are epochs of one fit'),
    (dict(jobs=0), '`jobs` should be'),
    (dict(executor=3), '`executor` should be one of'),
], ids=lambda o: o if isinstance(o, str) else 'case')
def test_what_is_wrong_is_said(kw, says):
    args = {**{k:v for k,v in how.items() if k!='lr_max'}, **kw}
    with pytest.raises(ValueError, match=says): seeds_lottery(make, **args)

def test_a_fit_that_ends_early_is_told():
    "Starts are compared at the same epochs"
    def early(seed):
        learn = make(seed)
        learn.add_cb(EarlyStoppingCallback(min_delta=10, patience=1))
        return learn
    with pytest.raises(ValueError, match='start 0 ended after 2 of 3 epochs.*EarlyStoppingCallback'):
        seeds_lottery(early, n=2, keep=1, n_epoch=4, rungs=(3,))

def test_a_kill_between_the_end_of_a_start_and_its_note(tmp_path):
    "What that start showed is played again, to the same bits"
    want = seeds_lottery(make, **how, path=tmp_path/'a')
    for f in (tmp_path/'a').rglob('epoch_004.json'): f.unlink()
    same(seeds_lottery(make, **how, path=tmp_path/'a'), want)

def test_settings_of_the_prune_and_the_rungs_are_told_before_any_training():
    def never(seed): raise AssertionError('a Learner was made')
    with pytest.raises(ValueError, match="`prune` holds 'amout'.*amount, criterion, scope"):
        seeds_lottery(never, n=2, keep=1, n_epoch=2, rungs=(1,), prune=dict(amout=.5))
    assert seeds_lottery(make, n=2, keep=1, n_epoch=2, rungs=1, prune=dict(amount=.5, pool='sum')).tickets[0].masks.density<.6

def test_what_cannot_travel_and_an_executors_class_are_told():
    lock = threading.Lock()
    with pytest.raises(TypeError, match="'seeds_lottery' holds something that cannot travel.*lock"):
        seeds_lottery(lambda seed: lock and make(seed), **how, executor=Travels())
    with pytest.raises(ValueError, match='one of concurrent.futures'): seeds_lottery(make, **how, executor=Counts)

class Travels:
    def submit(self, *args): raise AssertionError('a job was sent')

# --- what the Learners of many starts share, and what their Recorders note

def hard(seed, d=None, **cb):
    "Labels by chance, so that the best epoch is an early one; the best net of each start is put back"
    x,y = torch.randn(96, 8, generator=torch.Generator().manual_seed(7)),torch.arange(96)%4
    a,b = TensorDS(x[:64], y[:64]),TensorDS(x[64:], y[64:])
    dls = DataLoaders(TensorDL(a, bs=16, shuffle=True), TensorDL(b, bs=32), device='cpu')
    return Learner(dls, net(), metrics=accuracy, path=d, cbs=SaveModelCallback(**cb))

@pytest.mark.parametrize('jobs', [None,2])
def test_each_start_has_its_own_best_net(jobs, tmp_path):
    won = seeds_lottery(partial(hard, d=tmp_path), n=4, keep=3, n_epoch=6, rungs=(2,), lr_max=.1, jobs=jobs)
    best = won.table.groupby('seed').valid_loss.min()
    assert not list(tmp_path.iterdir()) and all(l.model_dir=='models' for l in won.learners)
    assert (won.table.groupby('seed').valid_loss.idxmin().diff().dropna()>1).any()
    for i,l in zip(won.seeds, won.learners): assert l.evaluate()['valid_loss']==pytest.approx(best[i], abs=1e-5)

def told(seed, **flags):
    learn = make(seed)
    vars(learn.recorder).update(flags)
    return learn

def test_training_metrics_are_columns_of_their_own():
    a,b = seeds_lottery(make, **how),seeds_lottery(partial(told, train_metrics=True), **how)
    assert b.table.columns[:6].tolist()==['seed','epoch','train_loss','train_accuracy','valid_loss','accuracy']
    assert b.table.train_accuracy.between(0, 1).all() and a.seeds==b.seeds
    pd.testing.assert_frame_equal(a.table[['valid_loss','accuracy']], b.table[['valid_loss','accuracy']])

def test_a_recorder_without_validation_figures_is_refused():
    with pytest.raises(ValueError, match='valid_metrics=False'): seeds_lottery(partial(told, valid_metrics=False), **how)

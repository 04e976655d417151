"A function of the seed that gives a Learner, and all that is compared with its tickets: here, in processes, resumed"
import shutil,threading,warnings
from functools import partial
import matplotlib.pyplot as plt
import pandas as pd,pytest,torch
from torch import nn
from fastai.callback.core import Callback
from fastai.callback.tracker import SaveModelCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import SGD
from fastai_lottery.arms import one_shot
from fastai_lottery.callback import LotteryCallback
from fastai_lottery.claims import Figures,SearchWarning,compare_arms,show_arms
from fastai_lottery.compare import compare
from fastai_lottery.data import TensorDL,TensorDS
from fastai_lottery.experiments import Preset,play_seed,results
from fastai_lottery.own import learner_of,own_experiment
from fastai_lottery.plots import plot_arms
from fastai_lottery.resets import random_reinit
from fastai_lottery.rounds import *
from fastai_lottery.scopes import random_mask,shuffle_mask
from fastai_lottery.searches import shorter
from fastai_lottery.slots import Here
from fastai_lottery.sweeps import play

def loaders(tests=True):
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(7))
    y = x[:,:4].argmax(1)
    a,b = TensorDS(x[:64], y[:64]),TensorDS(x[64:], y[64:])
    return DataLoaders(TensorDL(a, bs=16, shuffle=True), *[TensorDL(b, bs=32)]*(2 if tests else 1), device='cpu')

def net(): return nn.Sequential(nn.Linear(8,12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(.1), nn.Linear(12,4))
def make(seed): return Learner(loaders(), net(), metrics=accuracy)
def once(run, k): return run.fit(one_shot(run, k))

how = dict(n_epoch=2, seeds=2, levels=(1,2), amount=.4, lr_max=.02)
cols = 'arm seed round density kept accuracy test_accuracy valid_loss iterations'.split()
def figures(df): return df[cols].sort_values(['seed','arm','round']).reset_index(drop=True)
def same(a, b): pd.testing.assert_frame_equal(figures(a), figures(b), check_exact=True)

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('plain')

@pytest.fixture(scope='module')
def plain(folder): return compare(make, **how, path=folder)

# --- what is played

def test_one_call_plays_the_lotteries_and_the_usual_controls(plain):
    n = plain.groupby(['arm','round']).seed.nunique()
    assert n.to_dict()=={(a,k):2 for a,k in [('dense',0)]+[(a,k) for a in ('ticket','reinit','shuffle') for k in (1,2)]}
    at = plain[plain['round']==2].groupby('seed').kept.nunique()
    assert (at==1).all()    # all arms of a seed have as many weights

def test_it_is_what_fit_lottery_and_fit_ticket_give(plain):
    learn = learner_of(make, 1)
    with learn.no_bar(), learn.no_logging():
        rs = learn.fit_lottery(2, rounds=2, amount=.4, lr_max=.02, seed=1, test_dl=learn.dls[2])
        r = learn.fit_ticket(rs[2].ticket, 2, lr_max=.02, reset=random_reinit, seed=1, test_dl=learn.dls[2])
    mine = plain[plain.seed==1].set_index(['arm','round'])
    assert [mine.loc['ticket',k].valid_loss for k in (1,2)]==[o['valid_loss'] for o in rs[1:]]
    assert mine.loc['reinit',2].test_accuracy==r['test_accuracy'] and mine.loc['reinit',2].valid_loss==r['valid_loss']

def test_tables_and_pictures_take_it(plain):
    assert len(show_arms(plain, 'test_accuracy'))
    assert {'vs_dense','vs_reinit','vs_shuffle'}<=set(compare_arms(plain, 'test_accuracy'))
    plot_arms(plain, 'test_accuracy').figure.clear()

def test_the_order_of_the_seeds_is_the_seeds(plain):
    "A range of seeds, whose second is 1 of the others, gives that seed again"
    got = compare(make, **{**how, 'seeds':range(1,2)})
    assert set(got.seed)=={1}
    same(got, plain[plain.seed==1])

def test_own_criterion_reset_metric_schedule_and_rewind_point():
    def last(w_f): return torch.arange(w_f.numel(), dtype=w_f.dtype).view_as(w_f)
    def right(p, t): return (p.argmax(1)==t).float().mean()
    def mine(seed): return Learner(loaders(), net(), metrics=right, opt_func=partial(SGD, mom=.9))
    df = compare(mine, 2, seeds=1, levels=(1,), criterion=last, reset='random_reinit', fit=Learner.fit_flat_cos,
                 rewind_to='3it', exclude='4', lr=.05, controls={})
    assert list(df.arm)==['dense','ticket'] and 'test_right' in df
    assert df.prunable.iloc[0]==96    # the head is left out

def test_controls_of_all_kinds():
    asked = dict(anywhere=dict(mask=random_mask), once=once, more=dict(n_epoch=3), random=dict(mask=shuffle_mask))
    df = compare(make, **{**how, 'seeds':1}, controls=asked)
    assert set(df.arm)=={'dense','ticket',*asked}
    assert (df[df.arm=='more'].iterations==12).all() and (df[df.arm=='once'].iterations==8).all()

def test_a_learner_without_test_data():
    df = compare(lambda seed: Learner(loaders(False), net(), metrics=accuracy), 1, seeds=1, levels=(1,))
    assert 'test_accuracy' not in df and df.accuracy.notna().all()

def test_an_lstm_and_a_conv_net_with_batch_norm():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn,self.fc = nn.LSTM(2, 6, batch_first=True),nn.Linear(6,4)
        def forward(self, x): return self.fc(self.rnn(x.view(len(x), 4, 2))[0][:,-1])
    class Sees(nn.Sequential):
        def forward(self, x): return super().forward(x[:,None])
    conv = lambda: Sees(nn.Conv1d(1,4,3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(24,4))
    for m in (Reads,conv):
        df = compare(lambda seed: Learner(loaders(), m(), metrics=accuracy).to_fp32(), 1, seeds=1, levels=(1,))
        assert set(df.arm)=={'dense','ticket','reinit','shuffle'}

# --- where it is played

def test_processes_play_the_same_and_functions_travel(plain):
    "What a notebook defines goes to the processes by value"
    m = lambda seed: make(seed)
    same(compare(m, **how, jobs=1), plain)

def test_here_nothing_has_to_travel():
    "A lambda that holds a lock cannot be pickled"
    lock = threading.Lock()
    def held(seed):
        with lock: return make(seed)
    assert len(compare(held, 1, seeds=1, levels=(1,)))==4

class Counts(Here):
    "Says what it was given; may stop as Ctrl-C does"
    def __init__(self, left=None): self.left,self.seen = left,[]
    def submit(self, fn, job):
        if len(self.seen)==self.left: raise KeyboardInterrupt
        self.seen.append(str(job['o']))
        return super().submit(fn, job)

def test_a_stopped_call_goes_on(plain, tmp_path):
    with pytest.raises(KeyboardInterrupt): compare(make, **how, path=tmp_path, executor=Counts(3))
    same(compare(make, **how, path=tmp_path, executor=(ex := Counts())), plain)
    assert len(ex.seen)==2*5-3+1    # seed 0 says once more that its lottery is whole
    same(compare(make, **how, path=tmp_path, executor=(ex := Counts())), plain)
    assert all(o.endswith('lottery') for o in ex.seen)    # each seed says once that it is whole

def test_more_seeds_and_levels_play_only_what_is_new(plain, folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    more = compare(make, **{**how, 'seeds':3, 'levels':(1,2,3)}, path=tmp_path, executor=(ex := Counts()))
    assert len(ex.seen)==2*3+7 and set(more.seed)=={0,1,2}    # the lottery and two controls of round 3; all of seed 2
    same(more[(more.seed<2)&(more['round']<3)], plain)
    same(compare(make, **how, path=tmp_path), plain)    # what was not asked for stays in the folder

def test_callbacks_are_each_trainings_own():
    class Counts(Callback):
        def __init__(self): self.n = 0
        def before_fit(self): self.n += 1
    cb = Counts()
    compare(make, 1, seeds=2, levels=(1,), cbs=cb, controls={})
    assert cb.n==0

def test_random_numbers_are_put_back_by_making():
    was = torch.get_rng_state()
    a,b = learner_of(make, 3),learner_of(make, 3)
    assert torch.equal(torch.get_rng_state(), was)
    assert all(torch.equal(p, q) for p,q in zip(a.model.parameters(), b.model.parameters()))

def test_an_error_of_a_control_comes_when_the_rest_is_over(tmp_path):
    def bad(run, k): raise ZeroDivisionError('no')
    with pytest.raises(ZeroDivisionError): compare(make, **{**how, 'seeds':1}, controls=dict(bad=bad, reinit={}), path=tmp_path)
    assert set(results(tmp_path).arm)=={'dense','ticket','reinit'}

def test_a_comparison_within_a_control():
    def inner(run, k):
        compare(make, 1, seeds=1, levels=(1,), controls={})
        return run.fit(run.ticket(k))
    assert 'inner' in set(compare(make, 1, seeds=1, levels=(1,), controls=dict(inner=inner)).arm)

# --- what is refused

def has_callback(seed): return Learner(loaders(), net(), cbs=LotteryCallback())

@pytest.mark.parametrize('m,kw,says', [
    (make, dict(levels=(1,5), rounds=2), 'reach the highest of the `levels`, 5'),
    (make, dict(levels=(0,)), '`levels` should be'),
    (make, dict(n_epoch=0), '`n_epoch` should be'),
    (make, dict(seeds=0), '`seeds` should be'),
    (make, dict(seeds=range(0,4,2)), '`seeds` should be'),
    (make, dict(seed=3), '`seed` follows from the experiment'),
    (make, dict(test_dl=1), 'third loader'),
    (make, dict(criterion='nothing'), 'nothing'),
    (make, dict(jobs=2, executor=Here()), '`jobs` is for processes'),
    (has_callback, dict(rewind_to='2it'), 'has a LotteryCallback'),
], ids=lambda o: None if callable(o) else 'case' if isinstance(o, dict) else o)
def test_what_is_wrong_is_said(m, kw, says):
    with pytest.raises(ValueError, match=says): compare(m, **{'n_epoch':1, 'seeds':1, 'levels':(1,), **kw})

def test_what_is_no_learner_is_said():
    with pytest.raises(TypeError, match='should give a Learner'): compare(lambda seed: seed, 1)

# --- `play` takes the same

def test_play_takes_an_own_experiment(plain, tmp_path):
    p = own_experiment(lambda seed: make(seed), 2, (1,2), seeds=1, amount=.4, lr_max=.02)
    list(play(p, tmp_path/'a', executor=Here()))
    play_seed(p, 0, tmp_path/'b'/'seed_00')
    for d in 'ab': same(results(tmp_path/d), plain[plain.seed==0])
    assert len(list(play(p, tmp_path/'a', executor=Here())))==1    # nothing is left

def test_play_takes_a_preset_of_a_notebook_and_goes_on(tmp_path):
    "Functions that no module holds: a process gets them by value, and so does the one that goes on"
    def data(path=None, seed=0, device=None): return loaders()
    p = Preset('mine', 'of a notebook', 'none', 'seconds', data, lambda: net(), dict(n_epoch=1, rounds=1, amount=.4, lr_max=.02),
               levels=(1,), replicates=2, controls=dict(own=lambda run, k: run.fit(run.ticket(k))))
    steps = play(p, tmp_path/'a', jobs=1)
    while next(steps)[0]<2: pass
    steps.close()    # as Ctrl-C does
    list(play(p, tmp_path/'a', jobs=1))
    list(play(p, tmp_path/'b', executor=Here()))
    same(results(tmp_path/'a'), results(tmp_path/'b'))
    df = results(tmp_path/'a').set_index(['seed','arm'])
    assert (df.valid_loss[:,'own']==df.valid_loss[:,'ticket']).all()

def test_a_search_and_a_density_that_ends_it():
    "Controls of a lottery that searches; a level beyond its end is left out with a word"
    with pytest.warns(UserWarning, match='ended before round 4, by `to`'):
        df = compare(make, 2, seeds=1, levels=(1,4), to=.5, amount=.4, search=.5)
    assert [*zip(df.arm, df['round'])].count(('reinit',1))==1 and df['round'].max()==2
    assert df[df.arm=='ticket'].whole.tolist()==[False,True]

# --- trainings of a search are no results

@pytest.fixture(scope='module')
def searched(tmp_path_factory):
    "Two seeds of a lottery whose first three trainings are of half the length; by `kw`"
    done = {}
    def play(**kw):
        k = repr(sorted(kw.items()))
        if k not in done:
            search = shorter(.5, dense=kw.pop('dense', False))
            done[k] = compare(make, 2, seeds=2, levels=(1,3), rounds=3, amount=.4, search=search, lr_max=.02, **kw)
        return done[k]
    return play

def quiet_table(f, *args):
    with warnings.catch_warnings():
        warnings.simplefilter('error', SearchWarning)
        return f(*args)

def test_a_training_of_a_search_is_no_result(searched):
    "Neither as the dense net nor as the ticket of a level; tables, pictures and claims say so"
    df = searched()
    assert not df[df.arm=='dense'].whole.any() and sorted(df[df.arm=='ticket'].whole)==[False]*4+[True]*2
    says = r"of the dense net .*`dense=True`.* and of the ticket of round 1 \(sides=\(1,\) trains"
    for f in (show_arms,compare_arms):
        with pytest.warns(SearchWarning, match=says): t = f(df, 'accuracy')
        assert len(t)==1 and 'dense' not in t
    with pytest.warns(SearchWarning, match=says): ax = plot_arms(df, 'accuracy')
    lines = {o.get_label():len(o.get_xdata()) for o in ax.lines}
    assert 'dense' not in lines and 'dense' not in [o.get_text() for o in ax.get_legend().get_texts()]
    plt.close('all')
    with pytest.warns(SearchWarning, match=says): f = Figures(df)
    assert not len(f.of('dense', 0, 'accuracy')) and not len(f.of('ticket', 1, 'accuracy')) and len(f.of('ticket', 3, 'accuracy'))==2

def test_what_is_trained_whole_beside_a_search_is_one(searched):
    df = searched(dense=True, sides=(1,))
    t = quiet_table(compare_arms, df, 'accuracy')
    assert list(t['round'])==[1,3] and t.dense.notna().all()
    of = df[df.arm.isin(['dense','ticket'])&(df.seed==0)].set_index('round')
    assert list(of.iterations)==[8,8,4,8] and list(of.spent)==[8,16,16,24] and list(of.whole)==[True,True,False,True]
    alone = learner_of(make, 0)    # the same ticket, trained by itself
    with alone.no_bar(), alone.no_logging():
        r = alone.fit_lottery(2, rounds=3, amount=.4, search=shorter(.5, dense=True), lr_max=.02, seed=0)[1]
        want = alone.fit_ticket(r.ticket, 2, lr_max=.02, seed=0)
    assert of.valid_loss[1]==want['valid_loss']!=r['valid_loss'] and of.mask_hash[1]==r['mask_hash']
    assert t.ticket[0]==pytest.approx(df[(df.arm=='ticket')&(df['round']==1)].accuracy.mean())

def test_tables_of_searches_put_together(searched):
    "Labels of rows may come twice; and a table without arms is told as ever"
    df = searched()
    both = pd.concat([df, df.assign(seed=df.seed+2)])
    with pytest.warns(SearchWarning, match='of round 1 '): t = compare_arms(both, 'accuracy')
    assert list(t['round'])==[3] and t.n[0]==4
    with pytest.raises(ValueError, match="no column 'arm'"): compare_arms(df.drop(columns='arm'), 'accuracy')

def test_tables_without_a_search_are_as_they_were(plain):
    df = plain[0] if isinstance(plain, tuple) else plain
    assert 'whole' not in df
    assert quiet_table(compare_arms, df, 'accuracy').equals(quiet_table(compare_arms, df.assign(whole=None), 'accuracy'))

def keeping(d, seed): return Learner(loaders(), net(), metrics=accuracy, path=d, cbs=SaveModelCallback(monitor='accuracy'))

def test_pieces_that_play_side_by_side_keep_their_models_apart(tmp_path):
    "Each piece puts back the best net of its own training"
    a,b = [compare(partial(keeping, tmp_path), **how, jobs=n) for n in (None,2)]
    same(a, b)
    assert not list(tmp_path.iterdir())

"How trainings of a search go: their iterations and rates, what is whole, what is written, and what stays when a process is killed"
import math,shutil
from functools import partial
from types import SimpleNamespace
import numpy as np,pandas as pd,pytest
from test_crash import server,whole,same,batches,other,needs_fork
from test_gradual import same_place
from nets import *
from fastai_lottery.checkpoints import read_checkpoint
from fastai_lottery.gradual import *
from fastai_lottery.means import RunningMean
from fastai_lottery.searches import *
from fastai_lottery.searches import whole_rows
from fastai_lottery.callback import new_masks
from fastai_lottery.units import PerUnit

for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]

T,n_rounds = 12,3    # 3 epochs of 4 batches
def play(rewind_to='init', path=None, learn=None, cbs=(), cb={}, **kw):
    "A lottery of three prunes; the Learner and its rounds"
    learn = learn or learner(drop_bn, cbs=[LotteryCallback(rewind_to=rewind_to, **cb), *cbs])
    asked = {**dict(rounds=n_rounds, amount=.4, seed=1), **kw}
    return learn,learn.fit_lottery(3, path=path, **asked)
def col(rs, k): return [r[k] for r in rs]
def hashes(rs): return col(rs, 'mask_hash')

class Rates(Callback):
    "Learning rate and fastai's own progress at each batch, a list a fit"
    order,run_valid = 99,False
    def __init__(self): self.fits = []
    def before_fit(self): self.fits.append([])
    def after_batch(self): self.fits[-1].append((float(self.learn.opt.hypers[-1]['lr']), self.learn.train_iter, self.learn.pct_train))

# --- lengths

@pytest.mark.parametrize('length,n', [(.25,3),(.5,6),(1/3,4),(.01,1),(1.,12),(1.5,18),(2.1,25),(1,1),(7,7),(20,20)])
@pytest.mark.parametrize('fit', [Learner.fit, Learner.fit_one_cycle, Learner.fit_flat_cos])
def test_lengths_are_iterations(length, n, fit):
    learn,rs = play(rounds=1, search=shorter(length), fit=fit)
    assert col(rs, 'iterations')==[n,T]

def test_fine_tune_is_shortened_in_each_fit():
    learn,rs = play(rounds=1, search=.5, fit=Learner.fine_tune)
    assert col(rs, 'iterations')==[2+6,4+12]

def test_a_squeezed_schedule_is_the_whole_one_seen_faster():
    learn,_ = play(rounds=1, search=.5, fit=Learner.fit_one_cycle, cbs=[seen := Rates()])
    short,long = [np.array(o) for o in seen.fits]
    assert len(short)==6 and np.allclose(short[:,0], long[::2,0]), 'rate i of the half is rate 2 i of the whole'
    assert np.allclose(short[:,1:], long[:6,1:]), "fastai's own counts are as they were"

def test_a_constant_rate_of_the_search():
    learn,_ = play(search=going_on(.5, .25, lr=.02), fit=Learner.fit_one_cycle, cbs=[seen := Rates()])
    assert [{r for r,*_ in o} for o in seen.fits[:3]]==[{.02}]*3 and len({r for r,*_ in seen.fits[3]})==T

def test_a_start_epoch_is_squeezed_from_there():
    learn,rs = play(rounds=1, search=.5, start_epoch=1)
    assert col(rs, 'iterations')==[4,8]

# --- what is whole

searches = dict(short=.25, going=going_on(), mean=going_on(.5, .25), bird=early_bird(.5, 2, 2), own=lambda r: 4 if r else .5,
                tight=gradual())

@pytest.mark.parametrize('name', searches)
def test_the_last_training_is_whole_and_no_other(name):
    to = dict(rounds=None, to=.2) if name=='tight' else {}
    learn,rs = play(search=searches[name], **to)
    assert col(rs, 'whole')==[False]*(len(rs)-1)+[True] and rs[-1]['iterations']==T
    assert col(rs, 'spent')==list(np.cumsum(col(rs, 'iterations')))
    t = rs[-1].ticket
    assert all(torch.equal(t.weights[k], v) for k,v in learn.lottery.w_i.items()), 'rewound'
    assert 'search' in t.meta and name_of_search(name) in t.meta['search']
    r = learn.fit_ticket(t, 3, seed=1)
    assert r['valid_loss']==rs[-1]['valid_loss'] if len(rs)==n_rounds+1 else True
def name_of_search(n): return dict(short='shorter(each=0.25', going='going_on(', mean='each=0.25', bird='early_bird(', own='function(',
                                   tight='gradual(')[n]

def test_without_a_search_nothing_changes():
    learn,rs = play()
    assert not {'whole','spent'} & {*rs[0].row} and 'search' not in rs[0].meta

def test_a_search_of_whole_trainings_is_the_lottery():
    a,b = play()[1],play(search=1.)[1]
    assert hashes(a)==hashes(b) and col(a, 'valid_loss')==col(b, 'valid_loss') and all(col(b, 'whole'))

def test_going_on_is_reset_keep_but_for_the_last():
    a,b = play(reset='keep')[1],play(search=going_on(1., 1.))[1]
    assert hashes(a)==hashes(b) and col(a, 'valid_loss')[:-1]==col(b, 'valid_loss')[:-1]
    assert a[-1]['valid_loss']!=b[-1]['valid_loss'] and col(b, 'whole')==[True,False,False,True]

@pytest.mark.parametrize('search', [shorter(.25, dense=True), early_bird(.5, 2, 2, dense=True), going_on(first=1.)])
def test_a_dense_round_that_counts(search):
    learn,rs = play(search=search)
    assert col(rs, 'whole')==[True,False,False,True] and rs[0]['valid_loss']==play()[1][0]['valid_loss']
    assert learn.lottery.best(tol=9.).meta['round']==n_rounds

def test_best_asks_for_a_dense_one():
    learn,rs = play(search=.25)
    with pytest.raises(ValueError, match='trained for a search only'): learn.lottery.best()

def test_best_never_takes_a_round_of_the_search():
    learn,rs = play(search=shorter(.25, dense=True))
    for r in rs[1:3]: r.row['accuracy'] = 1.
    rs[3].row['accuracy'] = 0.
    assert learn.lottery.best(tol=.01).density==1

def test_reports_draw_whole_rows():
    learn,rs = play(search=shorter(.25, dense=True))
    assert len(learn.lottery.plot().lines[0].get_xdata())==2
    assert whole_rows(pd.DataFrame([r.row for r in rs]))['round'].tolist()==[0,3]
    learn,rs = play(search=.25)
    ax = learn.lottery.plot()
    assert len(ax.lines[0].get_xdata())==1 and len(ax.lines)==1, 'no line of a dense net that was not trained'

@pytest.mark.parametrize('kw', [dict(stop=lambda rs: True), dict(tol=.1)])
def test_rules_that_cannot_know_the_last_round_are_refused(kw):
    with pytest.raises(ValueError, match='do not go together'): play(rounds=None, search=.25, **kw)

def test_to_alone_knows_the_last_round():
    learn,rs = play(rounds=None, to=.3, search=going_on())
    assert col(rs, 'whole')==[False]*(len(rs)-1)+[True] and rs[-1]['kept']==round(.3*rs[0]['prunable'])

@pytest.mark.filterwarnings('ignore')
def test_a_search_that_can_go_no_further_plays_its_last_masks_whole(tmp_path):
    learn,rs = play(scope='2:4', amount=.3, rounds=5, search=.5, path=tmp_path)
    assert rs[-1]['whole'] and rs[-1]['iterations']==T and rs[-1]['mask_hash']==rs[-2]['mask_hash'] and len(rs)<6
    again = play(scope='2:4', amount=.3, rounds=5, search=.5, path=tmp_path)[1]
    assert col(again, 'valid_loss')==col(rs, 'valid_loss')

# --- late rewinding

def test_a_search_goes_on_from_a_late_point():
    learn,rs = play('3it', search=.5)
    assert col(rs, 'iterations')==[6,3,3,T-3]
    learn,rs = play('3it', search=going_on(.5, .25))
    assert col(rs, 'iterations')==[6,3,3,T-3]

def test_a_rewind_point_beyond_the_search_is_told_first():
    with pytest.raises(ValueError, match="'5it' is iteration 5, and the search has trainings of 3"): play('5it', search=.25)
    assert col(play('5it', search=going_on(.5, .1))[1], 'iterations')==[6,1,1,7]

def test_early_bird_waits_for_the_rewind_point():
    learn,rs = play('9it', search=early_bird(1., 2, 1))
    assert rs[0]['iterations']>=9 and rs[-1]['iterations']==3

# --- when a mask has settled

@pytest.mark.parametrize('cb', [{}, dict(units='rows', exclude='5')])
def test_early_bird_stops_by_the_papers_distance(cb):
    "A mask of its own, drawn again after each batch as the next prune would have it"
    masks = []
    class Draw(Callback):
        order,run_valid = 90,False
        def after_batch(self):
            if self.learn.lottery.n_pruned: return
            new = new_masks(self.learn, .4, large_final, global_, derive(1, 'prune', 1), per=PerUnit())
            masks.append(torch.cat([m.flatten() for m in new.counted.values()]))
    learn,rs = play(cb=cb, cbs=[Draw()], search=early_bird(below=.05, last=3, every=1), rounds=1, lr_max=.05)
    far = [max(float((a!=b).float().mean()) for a in masks[i-2:i+1] for b in [masks[i]]) for i in range(2, len(masks))]
    stop = next((i+3 for i,d in enumerate(far) if d<.05), T)
    assert rs[0]['iterations']==len(masks)==stop

def test_gradual_as_a_search_is_fit_gradual():
    a = learner(drop_bn, cbs=LotteryCallback())
    r = a.fit_gradual(3, to=.3, seed=1, start=.2, end=.7)
    learn,rs = play(rounds=None, to=.3, search=gradual(start=.2, end=.7))
    assert rs[0]['mask_hash']==rs[1]['mask_hash']==r['mask_hash'] and rs[0]['valid_loss']==r['valid_loss']

@pytest.mark.parametrize('kw,says', [(dict(rounds=2), 'needs the density'), (dict(rounds=None, to='50% params'), "`to`=.* units")])
def test_gradual_says_what_it_needs(kw, says):
    with pytest.raises(ValueError, match=says): play(search=gradual(), **kw)

@pytest.mark.parametrize('kw,says', [
    (dict(rounds=3, search=lambda r: .5 if r<2 else None), 'by None that round 2 is its last training, and rounds=3 asks for round 3'),
    (dict(rounds=None, to=.2, search=lambda r: .5 if r<1 else None), 'round 1 is its last training, and to=0.2 asks for round 4'),
    (dict(rounds=2, to=.3, search=gradual()), 'round 1 is the last; got rounds=2'),
    (dict(rounds=0, to=.3, search=gradual()), 'round 1 is the last; got rounds=0'),
    (dict(rounds=1, to=.3, search=gradual(dense=True)), 'round 2 is the last; got rounds=1')])
def test_a_search_that_ends_elsewhere_than_asked_is_told(kw, says):
    with pytest.raises(ValueError, match=says): play(**kw)

@pytest.mark.parametrize('n,kw', [
    (3, dict(rounds=None, search=lambda r: .5 if r<2 else None)),    # nothing else says when
    (3, dict(rounds=2, search=lambda r: .5 if r<2 else None)),
    (3, dict(rounds=2, search=lambda r: [.5,.5][r])),                # asked for no round beyond
    (2, dict(rounds=1, to=.3, search=gradual())),
    (3, dict(rounds=2, to=.3, search=gradual(dense=True)))])
def test_a_search_that_ends_where_asked(n, kw):
    assert len(play(**kw)[1])==n

# --- the running mean

def test_the_mean_by_hand():
    ws = []
    class Keep(Callback):
        order,run_valid = 95,False
        def after_batch(self): ws.append(self.learn.model[0].weight.detach().abs().clone())
    learn = learner(drop_bn, cbs=[LotteryCallback(), cb := RunningMean(.1), Keep()])
    learn.fit(2)
    want = ws[0]
    for w in ws[1:]: want = want+.1*(w-want)
    assert torch.allclose(cb.means[0], want, atol=1e-6)
    learn.prune(.5, criterion='large_mean', scope='local')
    kept = learn.lottery.masks['0.weight']
    assert cb.means[0][kept].min()>=cb.means[0][~kept].max()

def test_the_mean_is_of_one_training():
    learn = learner(drop_bn, cbs=[LotteryCallback(), cb := RunningMean()])
    learn.fit(1)
    learn.rewind('keep')
    assert cb.means
    learn.rewind()
    assert not cb.means
    with pytest.raises(ValueError, match="'w_m', the running mean of magnitudes, and there is none"): learn.prune(criterion='large_mean')

def test_a_lottery_keeps_the_mean_only_where_it_is_asked_for():
    for c,n in (('large_mean',1),('large_final',0)):
        cbs = []
        class Look(Callback):
            def before_train(self): cbs.append(len(self.learn._grab_cbs(RunningMean)))
        learn,_ = play(criterion=c, rounds=1, cbs=[Look()])
        assert set(cbs)=={n} and not learn._grab_cbs(RunningMean)

def test_the_mean_goes_on_where_the_weights_do():
    seen = []
    class Look(Callback):
        order = 1
        def before_train(self): seen.append(len(self.learn._grab_cbs(RunningMean)[0].means)>0)
    play(criterion='large_mean', search=going_on(.5, .25), cbs=[Look()])
    by_round = [seen[0], seen[2], seen[3], seen[4]]
    assert by_round==[False,True,True,False]

# --- sides

def test_sides_are_no_part_of_the_search(tmp_path):
    a,rs = play(search=going_on(.5, .25), path=tmp_path/'a')
    b,both = play(search=going_on(.5, .25), sides=(1,2,3), path=tmp_path/'b')
    assert hashes(rs)==hashes(both) and col(rs, 'spent')==col(both, 'spent') and rs[-1]['valid_loss']==both[-1]['valid_loss']
    sides = list(b.lottery.fitted)
    assert [o['round'] for o in sides]==[1,2] and all(o['iterations']==T and o['whole'] for o in sides)
    assert [o['spent'] for o in sides]==[6+T,6+3+T] and [o['mask_hash'] for o in sides]==hashes(both)[1:3]
    assert bits(a.model)==bits(b.model) and a.lottery.masks==b.lottery.masks, 'the Learner ends with the last round'
    c,_ = play(search=going_on(.5, .25), sides=(1,2), path=tmp_path/'b')
    assert [o['valid_loss'] for o in c.lottery.fitted]==[o['valid_loss'] for o in sides]

def test_sides_without_a_search():
    with pytest.raises(ValueError, match='`sides` are of a search'): play(sides=(1,))

# --- in a folder

def test_another_search_or_another_end_is_another_run(tmp_path):
    play(search=going_on(), path=tmp_path)
    for kw in (dict(search=going_on(.5, .25)), dict(search=.5), dict(), dict(search=going_on(), rounds=4)):
        with pytest.raises(ValueError, match='holds a run with other settings: (search|rounds)'): play(path=tmp_path, **kw)

cases = [('short','plain'),('going','plain'),('bird','plain'),('tight','plain'),('going','late_it'),('short','finetune')]

@needs_fork
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind,name', cases, ids=str)
def test_killed_at_any_moment_it_ends_the_same(kind, name, server, whole, tmp_path):
    "Killed at batches all over the search, the last training and what stands beside it, and taken up with other initial weights"
    kw = dict(what='searching', kind=kind, name=name)
    d,end,_ = whole(**kw)
    total = len(batches(d)[0])
    for i,n in enumerate(range(3, total, max(1, total//5))):
        at = tmp_path/f'{i}'
        assert (res := server.run(folder=at, n=n, **kw)) is None, res
        res = server.good(folder=at, init=other(at, 9), **kw)
        if name=='late_it': same_place(d, at)
        same(d, at, end, res)

@needs_fork
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind,name', cases, ids=str)
def test_ended_by_sigterm_it_goes_on_at_the_next_iteration(kind, name, server, whole, tmp_path):
    "In each training of the search, the last one and those beside it: each iteration is trained once"
    kw = dict(what='searching', kind=kind, name=name)
    d,end,_ = whole(**kw)
    done,at = batches(d)[0],0
    for t in range(1, len(done), max(2, len(done)//6)):
        assert server.run(folder=tmp_path, n=t-at+1, hurt=dict(term=True), **kw) is None
        at = t+1
    same(d, tmp_path, end, server.good(folder=tmp_path, **kw))
    assert [o for p in batches(tmp_path) for o in p]==done

# --- what is told before anything trains

@pytest.mark.parametrize('bad', [-1., 0., 0, True, 'x', None, math.nan, math.inf])
def test_a_length_that_is_none(bad):
    with pytest.raises(ValueError, match='`length` should be a length'): Leg(bad)
@pytest.mark.parametrize('bad', [-1., 0., True, 'x', math.nan, math.inf])
def test_a_rate_that_is_none(bad):
    with pytest.raises(ValueError, match='`lr` should be a rate above 0'): Leg(.3, lr=bad)
    with pytest.raises(ValueError, match='`lr` should be a rate above 0'): going_on(lr=bad)
@pytest.mark.parametrize('bad', ['x', None, True, 0., 1.5])
def test_a_share_that_is_none(bad):
    with pytest.raises(ValueError, match='`below`'): early_bird(below=bad)
def test_what_a_function_gives_is_told_with_its_round():
    with pytest.raises(ValueError, match="`search=<lambda> of round 0` should be a length.*'a'"): play(search=lambda r: 'a')

@pytest.mark.parametrize('search', [.1, early_bird(.9, 2, every=2), going_on(1., .1), gradual(.2)], ids=str)
def test_a_best_model_of_which_nothing_is_validated_is_refused(search):
    "fastai's callback would load the model of another training, or fail in the midst"
    learn = learner(drop_bn, cbs=[LotteryCallback(), SaveModelCallback(fname='short')])
    with pytest.raises(ValueError, match='SaveModelCallback puts back the best model.*4 iterations'):
        learn.fit_lottery(3, search=search, to=.5)
    assert not learn.lottery.rounds
def test_a_search_of_whole_epochs_goes_with_it(tmp_path):
    learn = learner(drop_bn, cbs=[LotteryCallback(), SaveModelCallback(fname='long')], path=tmp_path)
    assert col(play(learn=learn, search=.5)[1], 'iterations')==[6,6,6,12]

@pytest.mark.parametrize('length,n', [(1.5,24),(2.,32),(1.25,20),(.5,8),(40,40)])
def test_frozen_epochs_are_lengthened_too(length, n):
    "`fine_tune` of three epochs has a frozen one before them: 16 iterations"
    rs = play(fit=Learner.fine_tune, search=length, rounds=1)[1]
    assert col(rs, 'iterations')==[n,16]

"Masks that tighten within one fit: laws of the pace, of the masks, and of what stays when a process is killed"
import math,shutil
import pytest
from test_crash import server,whole,same,batches,other,needs_fork
from nets import *
from fastai_lottery.criteria import criteria_menu
from fastai_lottery.checkpoints import read_checkpoint,same_plain
from fastai_lottery.gradual import *
from fastai_lottery.gradual import EarlyEndWarning,pace_of
from fastai_lottery.rounds import DroppedWarning

for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]
pytestmark = pytest.mark.filterwarnings('ignore::fastai_lottery.scopes.EmptyLayerWarning')

class Trace(Callback):
    "Masks and the number of the iteration, of each batch when it was trained"
    order,run_valid = 95,False
    def __init__(self): self.seen = []
    def after_batch(self):
        if not hasattr(self.learn, 'lr_finder'): self.seen.append(self.learn.lottery.masks)

def played(model=drop_bn, cb={}, dls=None, lkw={}, more=(), **kw):
    "A gradual fit of 3 epochs of 4 batches; the Learner, its round, and its masks by iteration"
    learn = learner(model, dls, cbs=[LotteryCallback(**cb), Probe, Trace, *more], **lkw)
    r = learn.fit_gradual(**{**dict(n_epoch=3, to=.3, seed=1), **kw})
    return learn,r,learn.trace.seen

def is_monotone(ms): return all(not (b[n]&~a[n]).any() for a,b in zip(ms, ms[1:]) for n in a)

# --- schedules

def test_schedules_are_those_of_fasterai():
    fa = pytest.importorskip('fasterai.core.schedule')
    for ours,theirs in ((cubic,fa.sched_agp), (one_cycle,fa.sched_onecycle)):
        for x in (0, .1, .25, .5, .77, 1): assert math.isclose(ours(x), theirs(0, 1, x), abs_tol=1e-12)

def test_the_cubic_schedule_is_the_papers():
    "s_t = s_f + (s_i-s_f)(1-(t-t0)/(n dt))^3, with s_i = 0"
    for s_f in (.5,.9):
        for t in range(0, 101, 20): assert math.isclose(s_f*cubic(t/100), s_f-s_f*(1-t/100)**3)

paces = [(.1,.8,None,1000),(0,1,1,12),(0,1,5,12),(.5,.50001,None,40),(.1,.8,None,1),(0,.3,7,2)]
@pytest.mark.parametrize('start,end,every,n', paces)
def test_moments(start, end, every, n):
    p = pace_of(cubic, start, end, every, n)
    at = [i for i in range(n) if p.share(i) is not None]
    assert at[0]>=min(start*n, n-1) and at[-1]==p.last<=n-1 and p.share(p.last)==1 and at[-1]<=math.ceil(end*n)
    assert len(at)<=102 and p.share(p.last+1) is None and p.share(p.first-1) is None
    if every: assert at==sorted({*range(p.first, p.last, every), p.last})

# --- masks

scopes = ['global','local','erk',partial(global_, floor=5)]
@pytest.mark.parametrize('scope', scopes, ids=said)
@pytest.mark.parametrize('criterion', [*criteria_menu()])
def test_laws(criterion, scope):
    "Masks only tighten, what is pruned is 0 at each step, the end is exact, nothing happens before `start` nor after `end`"
    if criterion=='synflow' and scope!='global': return    # a hundred scores a step
    learn,r,ms = played(criterion=criterion, scope=scope, start=.3, end=.7, every=1)
    n = ms[0].numel
    assert is_monotone(ms) and not learn.probe.bad and leaks(learn)==0
    assert ms[3].n_kept==n and ms[5].n_kept<n, 'iteration 4 is the first at .3 of 12, with share 0'
    assert ms[9].hash()==ms[-1].hash()==r['mask_hash'] and ms[8].n_kept>ms[9].n_kept, 'iteration 9 is the first at .7'
    assert r['kept']==ms[-1].n_kept==round(.3*n)
    assert len({m.n_kept for m in ms[4:10]})>=5

@pytest.mark.parametrize('to', [.9,.5,.123,.02])
@pytest.mark.parametrize('every', [None,3])
def test_exact_end(to, every):
    learn,r,ms = played(to=to, every=every)
    assert r['kept']==learn.lottery.masks.n_kept==round(to*r['prunable'])

@pytest.mark.parametrize('name', list(zoo))
def test_nets(name):
    model,kw,inc,_ = zoo[name]
    learn,r,ms = played(model, dict(include=inc), data(**kw), to=.4)
    assert r['kept']==round(.4*r['prunable']) and is_monotone(ms) and leaks(learn)==0

def test_density_follows_the_schedule():
    for f in (cubic, one_cycle, lambda x: x, math.sqrt):
        learn,r,ms = played(schedule=f, start=0, end=.99, every=1, to=.2)
        n = ms[0].numel
        assert [m.n_kept for m in ms]==[round(n*(1-.8*(1 if i==11 else f(i/11)))) for i in range(12)]

def test_same_seed_same_bits():
    def go(seed, **kw): return bits(played(seed=seed, criterion='random', **kw)[0].model)
    assert go(1)==go(1)!=go(2)

def test_the_tightening_draws_nothing():
    "With nothing to remove in sight, the training is the one without"
    learn,_,_ = played(start=.95, end=1, to=.9999)
    base = learner(drop_bn, cbs=[LotteryCallback, Probe, Trace])
    base.fit_lottery(3, rounds=0, seed=1)
    assert bits(learn.model)==bits(base.model)

@pytest.mark.parametrize('criterion', ['snip','grasp','taylor','synflow'])
def test_gradients_in_mid_fit_leave_no_trace(criterion):
    "The weights that stay, up to the last step, are those of a fit whose masks were put on by hand at the same moments"
    learn,_,ms = played(criterion=criterion, every=4)
    class ByHand(Callback):
        order,run_valid = 80.8,False
        def before_batch(self): self.learn.lottery.set_masks(ms[self.learn.train_iter])
    hand = learner(drop_bn, cbs=[LotteryCallback, Probe, Trace])
    hand.fit_lottery(3, rounds=0, seed=1, cbs=ByHand())
    assert bits(hand.model)==bits(learn.model)

# --- where it begins

def test_it_begins_with_the_weights_as_they_are():
    learn = learner(drop_bn, cbs=[LotteryCallback, Probe, Trace])
    learn.fit_one_cycle(2, .05)
    was = bits(learn.model)
    r = learn.fit_gradual(2, to=.3, seed=1)
    assert bits(r.ticket.weights)==was and len(learn.lottery.rounds)==len(learn.lottery.report())==1
    t = learn.lottery.ticket()
    assert t.masks==learn.lottery.masks and bits(learn.lottery.ticket(trained=True).trained)==bits(learn.model)
    again = learner(drop_bn)
    assert again.fit_ticket(t, 1)['kept']==r['kept']

def test_a_pruned_net_goes_on_from_its_masks():
    learn = learner(drop_bn, cbs=[LotteryCallback, Probe, Trace])
    learn.prune(.5)
    first = learn.lottery.masks
    r = learn.fit_gradual(3, to=.2, seed=1)
    assert is_monotone([first,*learn.trace.seen]) and r['kept']==round(.2*first.numel)
    with pytest.raises(ValueError, match='below the density of the net as it is, 0.2'): learn.fit_gradual(1, to=.4)

def test_rounds_in_memory_are_not_dropped_in_silence():
    learn = learner(drop_bn)
    learn.fit_lottery(1, rounds=1, amount=.1)
    with pytest.warns(DroppedWarning, match='drops 2 rounds'): learn.fit_gradual(1, to=.3)

def test_late_rewind_point():
    "The ticket starts where the callback says, as in a lottery"
    learn,r,ms = played(cb=dict(rewind_to='5it'), every=1)
    assert bits(r.ticket.weights)!=bits(learn.lottery.w_i) and r['kept']==round(.3*ms[0].numel)
    zeros = sum(int((r.ticket.weights[n]==0).sum()) for n in ms[0])
    assert zeros==ms[0].numel-ms[4].n_kept>0, 'as it was before the step of iteration 5'
    for kw in ({}, dict(fit=Learner.fine_tune)):
        with pytest.raises(ValueError, match="'w_k', which is not known before the rewind point '5it'"):
            played(cb=dict(rewind_to='5it'), criterion=lambda w_k, w_f: (w_f-w_k).abs(), **kw)

# --- fits, and what is in them

def halves(m): return L(m[:4], m[4:]).map(params)

@pytest.mark.parametrize('wrap', [None,'eager','aot_eager'])
def test_discriminative_fine_tune(wrap):
    "The body is frozen at first; the head keeps its share meanwhile, and all are at `to` in the end"
    def model(): return drop_bn() if wrap is None else torch.compile(drop_bn(), backend=wrap)
    def split(m): return halves(unwrap(m))
    how = dict(fit=Learner.fine_tune, base_lr=.01, freeze_epochs=2)
    learn,r,ms = played(model, lkw=dict(splitter=split), start=0, end=.9, every=1, **how)
    assert len(ms)==20 and is_monotone(ms) and not learn.probe.bad and leaks(learn)==0
    assert r['kept']==round(.3*r['prunable'])
    frozen = ms[7]
    assert frozen['0.weight'].all()
    assert .2<frozen['8.weight'].float().mean()<1, 'the head is not emptied while the body is frozen'

def test_compiled_net_gives_the_same_bits():
    a = played()[0]
    b = played(lambda: torch.compile(drop_bn(), backend='eager'))[0]
    assert bits(a.model)==bits(unwrap(b.model))

def test_frozen_layers_stay_and_the_rest_makes_up_for_them():
    learn = learner(drop_bn, cbs=[LotteryCallback, Probe, Trace], splitter=halves)
    learn.freeze()
    n = sum(w.numel() for w in named_weights(learn.model, learn.lottery.names()).values())
    r = learn.fit_gradual(3, to=.6, seed=1)
    assert learn.lottery.masks['0.weight'].all() and r['kept']==round(.6*n)
    learn.unprune()
    with pytest.raises(ValueError, match='as far down as this goes, above to=0.1'): learn.fit_gradual(3, to=.1)

def test_two_fits_of_ones_own():
    def twice(learn, n_epoch, **kw):
        learn.fit(1, .01, **kw)
        learn.fit_one_cycle(n_epoch-1, .02, **kw)
    learn,r,ms = played(fit=twice, every=1)
    assert len({m.n_kept for m in ms})>=8 and r['kept']==round(.3*r['prunable'])

def test_trackers_begin_afresh_with_each_step(tmp_path):
    "A net that learns no more gets worse with each step: no early stop before the end, and no best model from before it"
    learn = learner(mlp, cbs=[LotteryCallback, Trace], path=tmp_path)
    learn.fit(8, .02)
    learn.trace.seen.clear()
    cbs = [EarlyStoppingCallback(patience=1), SaveModelCallback()]
    r = learn.fit_gradual(6, to=.1, seed=1, end=.6, every=1, lr_max=1e-12, cbs=cbs)
    assert learn.trace.seen[13].n_kept>r['kept']
    assert len(learn.trace.seen)==20, 'the epoch of the last step has the best model, the next one ends the training'
    assert r['kept']==round(.1*r['prunable']) and leaks(learn)==0

class Stops(Callback):
    run_valid = False
    def after_batch(self):
        if self.learn.train_iter==5: raise CancelFitException
def test_a_training_that_ends_early_says_so():
    says = 'ended after 5 iterations, and masks were to tighten until 10'
    with pytest.warns(EarlyEndWarning, match=says): learn,r,ms = played(more=[Stops])
    assert r['kept']==round(.3*r['prunable']) and leaks(learn)==0

def test_later_first_epoch():
    learn,r,ms = played(n_epoch=4, start_epoch=2, every=1, end=.7)
    assert len(ms)==8 and len({m.n_kept for m in ms})>5 and ms[-2].n_kept==r['kept']==round(.3*r['prunable'])

def test_lr_find_within_a_fit_tightens_nothing():
    def found(learn, n_epoch, **kw):
        with learn.no_bar(): learn.lr_find(num_it=8, show_plot=False, suggest_funcs=())
        assert learn.lottery.masks.n_kept==learn.lottery.masks.numel
        learn.fit_one_cycle(n_epoch, .02, **kw)
    learn,r,ms = played(fit=found)
    assert r['kept']==round(.3*r['prunable'])

@pytest.mark.parametrize('cb', [GradientAccumulation(40),MixUp(),GradientClip(.1)], ids=lambda o: type(o).__name__)
def test_company(cb):
    learn,r,ms = played(model=mlp, criterion='snip', cbs=[cb], every=2)
    assert is_monotone(ms) and not learn.probe.bad and r['kept']==round(.3*r['prunable'])

# --- units

@pytest.mark.parametrize('kw', [{}, dict(pool='max'), dict(comparable=False), dict(floor=.4), dict(criterion='snip'),
                                dict(to='50% units'), dict(round_to=4)], ids=str)
def test_rows_are_units(kw):
    learn,r,ms = played(cb=dict(units='rows', exclude='8'), **{**dict(to=.5, every=1), **kw})
    alive = [m.units.alive(m) for m in ms]
    assert is_monotone(ms) and leaks(learn)==0 and not learn.probe.bad
    assert r['units']==12 and r['units_dense']==24 and alive[-1].n_kept==12
    if 'floor' in kw: assert all(int(m.sum())>=5 for m in alive[-1].values())
    if 'round_to' in kw: assert all(int(m.sum())%4==0 for m in alive[-1].values())

@pytest.mark.extra
@pytest.mark.parametrize('criterion', ['large_final','filter_l1','bn_scale','snip'])
def test_channels(criterion):
    learn,r,ms = played(conv_bn, dict(units='channels'), data(shape=(1,6,6)), criterion=criterion, to=.5, every=1)
    assert is_monotone(ms) and leaks(learn)==0
    assert r['units']==round(.5*r['units_dense']) and r['params']<r['params_dense']
    import fastai_lottery.shrink
    learn.shrink()
    assert sum(p.numel() for p in learn.model.parameters())==r['params']

# --- wrong values

def same_as_before(learn, f, says):
    was,lot = bits(learn.model),{k:vars(learn.lottery)[k] for k in ('w_i','w_k','masks','rounds','n_pruned')}
    rng,cbs = torch.get_rng_state(),list(learn.cbs)
    with pytest.raises((ValueError,TypeError), match=says): f()
    assert bits(learn.model)==was and torch.equal(torch.get_rng_state(), rng) and list(learn.cbs)==cbs
    assert {k:vars(learn.lottery)[k] for k in lot}==lot

wrong = [(dict(to=0), '`to` should be between 0 and 1'), (dict(to=1.), '`to`'), (dict(to='50% units'), 'is for units'),
    (dict(to='50 %x'), '`to` should be a fraction'), (dict(schedule='qubic'), "did you mean 'cubic'.* or a function"),
    (dict(schedule=lambda x: x/2), 'should come to 1'), (dict(schedule=lambda x: 4*x*(1-x)), 'should not fall'),
    (dict(schedule=lambda x: 2*x), r'stay in \[0, 1\]'), (dict(schedule=lambda: 1), 'take one number'),
    (dict(schedule=lambda x: float('nan')), r'stay in \[0, 1\]'),
    (dict(start=.8, end=.1), '`start` should be before `end`'), (dict(start=-.1), r'`start` should be a fraction'),
    (dict(end=1.1), '`end` should be a fraction'), (dict(end=True), '`end` should be a fraction'),
    (dict(every=0), '`every` should be a whole'), (dict(every=1.5), '`every`'),
    (dict(criterion='larg_final'), 'did you mean'), (dict(criterion=lambda w_q: w_q), 'w_q'),
    (dict(criterion='filter_l1'), 'one number a unit'), (dict(scope='lokal'), 'did you mean'),
    (dict(scope={'conv*':1}), 'matches no'), (dict(n_epoch=0), '`n_epoch`'), (dict(fit=3), '`fit` should be'),
    (dict(lr_min=3), 'lr_min'), (dict(floor=.3), 'are for units'),
    (dict(scope='2:4', to=.3), 'as far down as this goes'), (dict(monitor='f2'), '`monitor`')]
@pytest.mark.parametrize('kw,says', wrong, ids=said)
def test_wrong_values_change_nothing(kw, says):
    learn = learner(drop_bn)
    same_as_before(learn, lambda: learn.fit_gradual(**{**dict(n_epoch=2), **kw}), says)

def test_parameters_as_a_goal_are_refused_for_units():
    learn = learner(drop_bn, cbs=LotteryCallback(units='rows'))
    same_as_before(learn, lambda: learn.fit_gradual(2, to='50% params'), 'params|parameters')

# --- folders and kills

def same_place(a, b):
    "The place of a late rewind point by content: its bytes depend on which texts are one object. Then `b` has that of `a`"
    fs = [d/'run/round_00/place.ckpt' for d in (a,b)]
    assert same_plain(*map(read_checkpoint, fs))
    shutil.copy(*fs)

kills = dict(plain=dict(), late=dict(name='late_it'), finetune=dict(name='finetune', n_epoch=2),
             snip=dict(criterion='snip', every=2), random=dict(criterion='random'),
             trackers=dict(name='trackers', n_epoch=5), pruned=dict(pruned=True),
             rows=dict(units='rows', to=.5), noise=dict(name='noise', criterion='taylor', every=2))

@needs_fork
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('k', kills)
def test_killed_fit_ends_the_same(k, server, whole, tmp_path):
    "Killed in the middle of each epoch but the first: it goes on from the epoch's start, and ends in the same bits"
    kw = dict(what='tightened', **{**dict(name='plain'), **kills[k]})
    d,end,_ = whole(**kw)
    done = batches(d)[0]
    starts = [i for i,o in enumerate(done) if not i or o[1]!=done[i-1][1]][1:]
    at = 0
    for i,t in enumerate(starts):
        init = 0 if k=='pruned' else i
        assert (res := server.run(folder=tmp_path, init=init, n=t-at+2, **kw)) is None, res
        at = t
    res = server.good(folder=tmp_path, init=0 if k=='pruned' else 9, **kw)
    if k=='late': same_place(d, tmp_path)
    same(d, tmp_path, end, res)
    assert len(batches(tmp_path))==len(starts)+1

@needs_fork
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('k', kills)
def test_ended_by_sigterm_it_goes_on_at_the_next_iteration(k, server, whole, tmp_path):
    "Masks that tighten within an epoch are those of the iteration; each is trained once, and the end is the same"
    kw = dict(what='tightened', **{**dict(name='plain'), **kills[k]})
    d,end,_ = whole(**kw)
    done,at = batches(d)[0],0
    for t in (1, 5, 7, len(done)-1):
        assert server.run(folder=tmp_path, n=t-at+1, hurt=dict(term=True), **kw) is None
        at = t+1
    same(d, tmp_path, end, server.good(folder=tmp_path, **kw))
    assert [o for p in batches(tmp_path) for o in p]==done

@needs_fork
@pytest.mark.filterwarnings('ignore')
def test_killed_at_random_moments(server, whole, tmp_path):
    kw = dict(what='tightened', name='plain')
    d,end,secs = whole(**kw)
    rng,n,i = random.Random(5),0,0
    while n<8:
        at,i,mine = tmp_path/f'{i}',i+1,0
        def after(): return rng.uniform(0,.9)*secs if mine<6 else None
        def go(): return server.run(folder=at, init=other(at, n), kill_after=after(), **kw)
        while (r := go()) is None: n,mine = n+1,mine+1
        same(d, at, end, r)

def test_a_folder_of_another_pace_is_named(tmp_path):
    def go(**kw): return learner(drop_bn).fit_gradual(2, seed=1, path=tmp_path/'run', **{**dict(to=.3), **kw})
    a,b = go(),go()
    assert a['mask_hash']==b['mask_hash'] and a['accuracy']==b['accuracy']
    changes = dict(to=.4, start=.2, end=.7, every=3),dict(schedule='one_cycle'),dict(schedule=lambda x: x)
    for kw in ({k:v} for d in changes for k,v in d.items()):
        with pytest.raises(ValueError, match='other settings: (gradual|to) was .* and is now'): go(**kw)
    with pytest.raises(ValueError, match='other settings'):
        learner(drop_bn).fit_lottery(2, rounds=0, seed=1, path=tmp_path/'run')

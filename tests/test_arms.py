"Laws of 32_arms: figures equal those by hand, follow from the seed, and leave no trace in what is played after them"
import math,shutil,tempfile
from dataclasses import replace
from itertools import combinations
from pathlib import Path
import numpy as np,pandas as pd,pytest
from nets import *
from fastai_lottery.arms import *
from fastai_lottery.arms import another
from fastai_lottery.labels import weights_in
from fastai_lottery.sizes import *
from fastai_lottery.statistics import *
from fastai_lottery.presets import *
from fastai_lottery.found import found
from fastai_lottery.gradual import gradual
from fastai_lottery.lenets import lenet_prunes
from fastai_lottery.experiments import *
from fastai_lottery.supermask import *

small = replace(preset('digits'), settings={**preset('digits').settings, 'n_epoch':2, 'rounds':3}, levels=(3,), controls={})

def play(path, seed, p):
    "Play a lottery, or load what is played; its Learner and rounds"
    l = p.learner(seed, device='cpu')
    l.logger = noop
    l.remove_cbs(l._grab_cbs(ProgressCallback))
    return l,l.fit_lottery(**p.settings, seed=seed, test_dl=l.dls[2], path=path)

kept,folders = tempfile.TemporaryDirectory(),{}
def played(path, seed=0, p=small):
    "A `Run`, as `play_seed` makes it. A lottery is trained once, and then loaded from a copy of its folder"
    key = repr((p.settings, p.cb, seed))
    if key not in folders:
        folders[key] = Path(kept.name)/str(len(folders))
        play(folders[key], seed, p)
    shutil.copytree(folders[key], path, dirs_exist_ok=True)
    l,rs = play(path, seed, p)
    s = {k:v for k,v in p.settings.items() if k not in ('rounds','amount','scope','criterion')}
    return Run(l, rs, s, lambda r: weights_in(path/f'round_{r:02d}')[0], seed)

@pytest.fixture
def run(tmp_path): return played(tmp_path)

tiny = replace(small, settings={**small.settings, 'n_epoch':1})
quick = dict(
    stability=lambda run: ticket_stability(run, 3, orders=2),
    instability=lambda run: ticket_instability(run, 2, alphas=4, random=True),
    heuristic=lambda run: heuristic_supermasks(run, 3),
    learned=lambda run: learned_supermasks(run, n_epoch=1, samples=2))
each = pytest.mark.parametrize('measure', quick.values(), ids=quick)

def flat(s, names): return np.concatenate([s[n].numpy().astype(float).reshape(-1) for n in names])
def weights(run, *args, **kwargs):
    run.fit(*args, **kwargs)
    return state(run.learn.model)
def acc_of(run, ws, dl=2):
    "Accuracy of LeNet with these weights, by hand"
    ds = run.learn.dls[dl].dataset
    x = ds.x.flatten(1)
    for n in ('fc1','fc2','out'):
        x = x@ws[f'{n}.weight'].T+ws[f'{n}.bias']
        if n!='out': x = x.relu()
    return float((x.argmax(1)==ds.y).float().mean())

# --- data orders

def test_own_order_repeats_the_lottery(run):
    for o in (None,2):
        ws = weights(run, run.ticket(2), order=o)
        assert all(torch.equal(v, ws[k]) for k,v in run.trained(2).items())

def test_order_of_a_round_is_that_of_the_round(run):
    "The dense net under the name of round 3 in the order of round 0 is the lottery's dense net, to the bit; in that of round 1 it is not"
    t = Ticket(run.rounds[0].masks, run.rounds[0].start, run.ticket(3).meta)
    same,other = weights(run, t, order=0),weights(run, t, order=1)
    assert all(torch.equal(v, same[k]) for k,v in run.trained(0).items())
    assert not any(torch.equal(v, other[k]) for k,v in run.trained(0).items())
    r = run.fit(t, order=1)
    assert (r['round'],r.meta['round'],t.meta['round'])==(3,3,3)

# --- stability, instability

def l2(a, b): return math.sqrt(sum((a-b)**2))
def angle(a, b): return math.degrees(math.acos(a@b/math.sqrt((a@a)*(b@b))))

def check_stability(run, t, apart, pruning):
    "Figures of the ticket `t` by hand: in three data orders, and against the dense net"
    m = flat(t.masks, t.masks)>0
    rs = [(run.fit(t, order=o), flat(state(run.learn.model), t.masks)[m]) for o in (3,0,1)]
    pairs = list(combinations([w for _,w in rs], 2))
    dense = flat(run.trained(0), t.masks)[m]
    assert apart['pairs']==3 and pruning['pairs']==1
    for k,f in (('l2',l2),('angle',angle)):
        assert apart[k]==pytest.approx(np.mean([f(*p) for p in pairs]), rel=1e-5)
        assert pruning[k]==pytest.approx(f(rs[1][1], dense), rel=1e-5)
    for k in ('test_accuracy','es_test_accuracy'):
        assert apart[k]==pytest.approx(np.mean([r[k] for r,_ in rs])) and pruning[k]==rs[1][0][k]

def test_stability_by_hand(run):
    t,start = run.ticket(3),run.rounds[0].start
    rand = Ticket(shuffle_mask(t.masks, generator(0, 'mask', 3, 0)), start, t.meta)
    got = {(o['what'],o['mask']):o for o in ticket_stability(run, 3, orders=3)}
    assert len(got)==4
    for name,t in (('ticket',t),('shuffle',rand)): check_stability(run, t, got['data order',name], got['pruning',name])
    assert got['data order','shuffle']['l2']!=got['data order','ticket']['l2']

def test_random_mask_is_that_of_the_control(run):
    ticket_stability(run, 3, orders=2)
    r = run.fit(run.ticket(3), mask=shuffle_mask)
    mine = run.more[3,r.masks.hash(),3]
    assert mine[0]['test_accuracy']==r['test_accuracy'] and all(torch.equal(v, mine[1][k]) for k,v in state(run.learn.model).items())

def test_instability_by_hand(run):
    for k,mask in ((0,'dense'),(3,'ticket')):
        (got,) = ticket_instability(run, k, alphas=[0,.3,.5,.8,1])
        a,b = run.trained(k),weights(run, run.ticket(k), order=1 if k==0 else 0)
        e = [1-acc_of(run, {n:al*a[n]+(1-al)*b[n] for n in a}) for al in (0,.3,.5,.8,1)]
        assert got['mask']==mask and (got['order_1'],got['order_2'])==((0,1) if k==0 else (3,0))
        assert [got['error_2'],got['error_1'],got['error_max']]==pytest.approx([e[0],e[-1],max(e)], abs=1e-6)
        assert got['barrier_pp']==pytest.approx(100*(max(e)-(e[0]+e[-1])/2), abs=1e-4)

def test_pairs_and_thirty_alphas(run, monkeypatch):
    from fastai_lottery import arms
    seen,real = [],arms.instability
    monkeypatch.setattr(arms, 'instability', lambda *a, **kw: seen.append(r := real(*a, **kw)) or r)
    got = ticket_instability(run, 2, orders=3)
    assert [(o['order_1'],o['order_2']) for o in got]==[(2,0),(2,1),(0,1)] and [len(r.path) for r in seen]==[30]*3
    assert [o['mask'] for o in ticket_instability(run, 2, alphas=2, random=True)]==['ticket','shuffle']
    assert [o['mask'] for o in ticket_instability(run, 0, alphas=2, random=True)]==['dense']

def test_shared_trainings_are_trained_once_and_change_nothing(tmp_path):
    def fresh(i): return played(tmp_path/i)
    a,b = fresh('a'),fresh('b')
    ticket_stability(a, 3, orders=2)
    n = len(a.more)
    assert n==3 and ticket_instability(a, 3, alphas=3, random=True)==ticket_instability(b, 3, alphas=3, random=True) and len(a.more)==n

def test_wrong_arguments(run):
    with pytest.raises(ValueError, match='`k`'): ticket_stability(run, 0)
    for f in (ticket_stability, ticket_instability):
        with pytest.raises(ValueError, match='`orders`'): f(run, 3, orders=1)

# --- supermasks

def top(s, m):
    "The highest of `s`, as many as `m` keeps; of equals the first go"
    keep = np.ones(m.numel(), bool)
    keep[np.argsort(s.reshape(-1).numpy(), kind='stable')[:int((~m).sum())]] = False
    return tensor(keep).view(m.shape)

def masks_by_hand(t, w_i, w_f):
    "Masks like those of the ticket `t`, by criterion"
    same = {n:(w_i[n].sign()==w_f[n].sign()) for n in t.masks}
    score = dict(large_final=lambda n: w_f[n].abs(), magnitude_increase=lambda n: w_f[n].abs()-w_i[n].abs())
    res = dict(ticket=dict(t.masks), shuffle=dict(shuffle_mask(t.masks, generator(0, 'mask', 3, 0))))
    for c,f in score.items():
        res[c] = {n:top(f(n), m) for n,m in t.masks.items()}
        res[f'{c}_same_sign'] = {n:top(torch.where(same[n], f(n), -99.), m) for n,m in t.masks.items()}
        assert all(same[n][m].all() for n,m in res[f'{c}_same_sign'].items())
    return res

def test_heuristics_by_hand(run):
    t,w_i,w_f = run.ticket(3),run.rounds[0].start,run.trained(0)
    got = {(o['mask'],o['base']):o for o in heuristic_supermasks(run, 3)}
    masks = masks_by_hand(t, w_i, w_f)
    assert {m for m,_ in got}==set(masks) and len(got)==12
    bases = {'init':lambda w: w, 'signed constant':lambda w: w.sign()*(w-w.mean()).pow(2).mean().sqrt()}
    for (c,b),o in got.items():
        ws = {n:bases[b](w)*masks[c][n] if n in masks[c] else w for n,w in w_i.items()}
        assert (o['accuracy'],o['test_accuracy'])==pytest.approx((acc_of(run, ws, 1),acc_of(run, ws)), abs=1e-6), (c,b)
        assert o['density']==t.density and o['prunes']==3

def test_densities_without_a_lottery(run):
    "As many weights in each layer as rounds of the same rate leave"
    from fastai_lottery.arms import _levels
    def sizes(masks): return {n:int(o.sum()) for n,o in masks.items()}
    ms = _levels(run.rounds[0].masks, run.trained(0), 3, small.settings['amount'], small.settings['scope'])
    assert [*map(sizes, ms)]==[sizes(r.masks) for r in run.rounds[1:]]
    rows = heuristic_supermasks(run, 0, prunes=3, amount=.2, scope={'out':.5})
    like_2 = [o for o in heuristic_supermasks(run, 2) if o['mask'] not in ('ticket','shuffle')]
    assert len(rows)==3*10 and [o for o in rows if o['prunes']==2 and o['mask']!='shuffle']==like_2

def test_validation_chooses():
    df = pd.DataFrame(dict(seed=[0]*4+[1]*4, mask=['a','a','b','b']*2, base='init', density=[.8,.6]*4,
        accuracy=[.5,.6,.4,.4,.7,.6,.1,.2], test_accuracy=[.9,.1,.2,.3,.4,.5,.6,.7]))
    got = best_by_valid(df)[['seed','mask','density','test_accuracy']].values.tolist()
    assert got==[[0,'a',.6,.1],[0,'b',.8,.2],[1,'a',.8,.4],[1,'b',.6,.7]]

def learned_by_hand(run, base, rescale, bs, n_epoch=2):
    "Supermasks from torch alone: a plain loop"
    m = load_(small.model(), run.learn.lottery.w_i)
    add_supermask(m, base=signed_constant if 'signed' in base else None, rescale=rescale)
    dl = run.learn.dls.train.new(bs=bs or 60)
    dl.rng.seed(derive(derive(0, 'supermask'), 'loader', 0))
    opt = torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=100., momentum=.9)
    m.train()
    for x,y in (b for _ in range(n_epoch) for b in dl):
        nn.functional.cross_entropy(m(x), y).backward()
        opt.step()
        opt.zero_grad()
    return m

@pytest.mark.parametrize('bs', [None,100])
def test_learned_by_a_plain_loop(run, bs):
    got = learned_supermasks(run, n_epoch=2, bs=bs, samples=3)
    assert [(o['base'],o['rescale']) for o in got]==[(b,r) for b in ('init','signed constant') for r in (False,True)]
    for o in (got[0],got[3]):
        m = learned_by_hand(run, o['base'], o['rescale'], bs)
        *ts,rounded = [supermask_ticket(m, sample=i) for i in (0,1,2,None)]
        def acc(t): return acc_of(run, state(t.apply_(small.model())))
        assert o['test_accuracy']==pytest.approx(np.mean([*map(acc, ts)]), abs=2e-3)
        assert o['test_accuracy_rounded']==pytest.approx(acc(rounded), abs=2e-3)
        assert o['density']==pytest.approx(np.mean([t.density for t in ts]), abs=1e-4)
        assert o['density_rounded']==pytest.approx(rounded.density, abs=1e-4)

def test_learned_masks_learn(tmp_path):
    "And the weights below them are those of the start"
    from fastai_lottery.arms import _learn_masks
    run = played(tmp_path)
    assert min(o['test_accuracy'] for o in learned_supermasks(run, n_epoch=6, samples=3))>.85
    m = remove_supermask(_learn_masks(run, 1, 100., None))
    assert all(torch.equal(v, run.learn.lottery.w_i[k]) for k,v in state(m).items())

# --- no trace

def equal(a, b): return all(torch.equal(v, b[k]) for k,v in a.items())
def numbers(learn): return [random.random(), np.random.rand(), float(torch.rand(1))]+[dl.rng.random() for dl in learn.dls.loaders]

@each
def test_no_trace(run, measure):
    l,lot = run.learn,run.learn.lottery
    weights(run, run.ticket(1))
    l.model.train()
    set_seed(3)
    was,w_k,cbs = state(l.model),lot.w_k,list(l.cbs)
    with beside(l): want = numbers(l)
    measure(run)
    assert equal(state(l.model), was) and lot.masks==run.ticket(1).masks and lot.w_k is w_k and list(l.cbs)==cbs
    assert numbers(l)==want and len(lot.rounds)==4 and list(l.model.state_dict())==list(was)
    assert not hasattr(unwrap(l.model), '_supermask') and all(p.requires_grad for p in l.model.parameters())

def test_no_trace_in_held_weights(tmp_path):
    "Also where pruned weights are held at their initial values"
    run = played(tmp_path, p=replace(tiny, settings={**tiny.settings, 'hold':'hold_init'}))
    l = run.learn
    was,held = state(l.model),l.lottery.held
    run.settings.pop('hold')
    out = ~run.ticket(3).masks['fc1.weight']
    assert torch.equal(was['fc1.weight'][out], l.lottery.w_i['fc1.weight'][out])
    ticket_stability(run, 3, orders=2)
    heuristic_supermasks(run, 1)
    assert equal(state(l.model), was) and equal(l.lottery.held, held)
    learned_supermasks(run, n_epoch=1, samples=1)
    l.fit(1)
    assert torch.equal(l.model.fc1.weight[out], was['fc1.weight'][out])

def test_no_trace_of_a_measure_that_fails(run):
    weights(run, run.ticket(1))
    was = state(run.learn.model)
    with pytest.raises(ZeroDivisionError):
        with beside(run.learn):
            run.fit(run.ticket(3))
            1/0
    assert equal(state(run.learn.model), was) and run.learn.lottery.masks==run.ticket(1).masks

@each
def test_a_later_control_is_the_same(tmp_path, measure):
    "Also one that goes by the weights as they are"
    def control(path, before):
        run = played(path, p=tiny)
        before(run)
        kws = dict(reset=keep),dict(mask=shuffle_mask),dict(reset='reshuffle')
        return [{**run.fit(run.ticket(2), **kw).row, 'seconds':0} for kw in kws]
    assert control(tmp_path/'a', noop)==control(tmp_path/'b', measure)

@each
def test_follows_from_the_seed(tmp_path, measure):
    a,b,c = (measure(played(tmp_path/str(i), seed, tiny)) for i,seed in enumerate((0,0,1)))
    assert a==b!=c

# --- as measures of a preset

def no_seconds(f): return pd.read_csv(f).drop(columns=['seconds','digest','made','of'], errors='ignore')

def by_row(df): return df.sort_values(['arm','round','mask','base','what'], ignore_index=True)

def test_in_a_preset(tmp_path):
    few = dict(stability=lambda run,k: ticket_stability(run, k, orders=2),
               instability=lambda run,k: ticket_instability(run, k, alphas=3), heuristic=heuristic_supermasks)
    p = replace(tiny, controls=dict(keep=dict(reset='keep'), shuffle=dict(mask=shuffle_mask)), measures=few,
                at=dict(instability=(0,3), heuristic=(1,2)))
    a,b = tmp_path/'a'/'seed_00',tmp_path/'b'/'seed_00'
    play_seed(p, 0, a)
    play_seed(replace(p, measures={}), 0, b)
    assert no_seconds(a/'controls.csv').equals(no_seconds(b/'controls.csv'))
    df = measured(tmp_path/'a')
    sizes = df.groupby(['arm','round']).size().to_dict()
    assert sizes=={('heuristic',1):12,('heuristic',2):12,('instability',0):1,('instability',3):1,('stability',3):4}
    f = a/'measures.csv'
    f.write_text(''.join(f.read_text().splitlines(True)[:5]))
    play_seed(p, 0, a)    # only stability is left
    assert by_row(measured(tmp_path/'a')).equals(by_row(df))

def test_without_rounds(tmp_path):
    few = dict(heuristic=lambda run,k: heuristic_supermasks(run, k, prunes=2, **lenet_prunes),
               learned=lambda run,k: learned_supermasks(run, k, n_epoch=1, samples=2))
    p = replace(small, settings={**tiny.settings, 'rounds':0}, levels=(0,), at={}, measures=few)
    assert play_seed(p, 0, tmp_path/'seed_00').arm.tolist()==['dense']
    df = measured(tmp_path)
    assert df.groupby('arm').size().to_dict()=={'heuristic':20,'learned':4}
    assert len(best_by_valid(df[df.arm=='heuristic']))==10

def test_a_search_of_a_late_lottery_finds_its_own_ticket(tmp_path):
    "In as many prunes, from the same initial weights to the same rewind point"
    p = replace(small, cb=dict(rewind_to='3it'))
    run = played(tmp_path, p=p)
    t = searched(run, 2, 2, scope=p.settings['scope'])
    assert t.masks==run.ticket(2).masks and all(torch.equal(v, run.ticket(2).weights[k]) for k,v in t.weights.items())
    assert searched(run, 2, 1, scope=p.settings['scope']).masks!=t.masks

def test_a_search_of_a_lottery_of_units_finds_its_own_ticket(tmp_path):
    "The other lottery prunes the same units, and its masks know them"
    p = replace(tiny, settings={**tiny.settings, 'scope':'global', 'amount':.3}, cb=dict(units='rows', exclude='out'))
    run = played(tmp_path, p=p)
    t = searched(run, 1, 1)
    assert t.masks==run.ticket(1).masks and t.masks.units.kind=='rows'

def test_one_shot_of_a_lottery_of_units_goes_by_units(tmp_path):
    "As many units in each layer as the ticket has, those of the largest mean magnitude in the dense net"
    p = replace(tiny, settings={**tiny.settings, 'scope':'global', 'amount':.3}, cb=dict(units='rows', exclude='out'))
    run = played(tmp_path, p=p)
    own,t = run.ticket(1).masks,one_shot(run, 1)
    assert t.masks.units.kind=='rows' and t.masks.n_kept==own.n_kept
    assert {g:int(m.sum()) for g,m in t.masks.counted.items()}=={g:int(m.sum()) for g,m in own.counted.items()}
    w = run.trained(0)
    for n,m in t.masks.items():
        rows,mean = m.flatten(1).any(1),w[n].abs().flatten(1).mean(1)
        assert torch.equal(rows, m.flatten(1).all(1))    # whole units
        if not rows.all(): assert mean[rows].min()>=mean[~rows].max()
    with pytest.raises(ValueError, match='units compete here'): heuristic_supermasks(run, 1, prunes=2)
    by = {r['mask']:r['density'] for r in heuristic_supermasks(run, 1, criteria=['large_final'])}
    assert by['large_final']==by['ticket']==by['shuffle']

@pytest.mark.parametrize('dense', [False,True])
def test_a_search_that_knows_its_last_round_is_found_whatever_its_name(dense, tmp_path):
    "Not `gradual` alone comes to the density within rounds of its own"
    run = played(tmp_path, p=tiny)
    to,own = run.rounds[3]['density'],gradual(.5, dense=dense)
    want,got = (found(run, 3, search=o, to=to, amount=.5) for o in (own, replace(own, name='mine')))
    assert (got['round'],got['whole'],got['mask_hash'])==(3,True,want['mask_hash']) and got['density']==pytest.approx(to, abs=1e-3)

def test_another_net_trains_where_the_optimizer_was_made_beforehand():
    "It has the parameters of the first, and another like it is made"
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8,12), nn.ReLU(), nn.Linear(12,4))
    learn = learner(net, data(), opt_func=OptimWrapper(net.parameters(), partial(torch.optim.AdamW, weight_decay=.03)))
    rs = learn.fit_lottery(1, rounds=1, seed=0)
    other = another(Run(learn, rs, dict(n_epoch=1, rounds=1), None, 0))
    was,mine = digest(other.model),digest(learn.model)
    with other.no_bar(), other.no_logging(): other.fit(1)
    assert digest(other.model)!=was and digest(learn.model)==mine
    assert type(other.opt.opt) is torch.optim.AdamW and other.opt.opt.param_groups[0]['weight_decay']==.03

"""Network slimming adds what it says, whatever is done to gradients beside it; the small nets' arms are the small nets'
trainings; the papers' presets have the papers' sizes. What needs Torch-Pruning is marked `extra`"""
import math,sys
from dataclasses import replace
import pytest
from nets import *
from torch.amp import GradScaler
from fastai_lottery.cli import main
from fastai_lottery.experiments import *
from fastai_lottery.presets import preset,presets
from fastai_lottery.regularise import *
from fastai_lottery.retrained import *
from fastai_lottery.rethinking import rethinking,small_conv

pytestmark = pytest.mark.filterwarnings('ignore')
extra = pytest.mark.extra

# --- network slimming

def normed():
    torch.manual_seed(3)
    def block(i): return nn.Linear(i,12),nn.BatchNorm1d(12),nn.ReLU()
    m = nn.Sequential(*block(8), *block(12), nn.Linear(12,4))
    with torch.no_grad():
        for i in (1,4): m[i].weight.copy_(torch.randn(12))    # of both signs
    return m

class Penalty:
    "Cross entropy and the penalty, as 1708.06519 writes the loss"
    def __init__(self, model, l1): self.model,self.l1 = model,l1
    def __call__(self, pred, y):
        return F.cross_entropy(pred, y)+self.l1*sum(p.abs().sum() for p in norm_scales(self.model))

def fitted(l1, cbs=(), explicit=False, opt=None, n=2, model=None):
    m = normed() if model is None else model
    set_seed(5)
    loss = Penalty(m, l1) if explicit else CrossEntropyLossFlat()
    learn = Learner(data(), m, loss_func=loss, opt_func=opt or partial(SGD, mom=.9))
    learn.add_cbs([*cbs, *([] if explicit or l1 is None else [SlimmingCallback(l1)])])
    with learn.no_bar(), learn.no_logging(): learn.fit(n, .05)
    return learn

def scales(learn): return torch.cat([p.detach() for p in norm_scales(learn.model)])

@pytest.mark.parametrize('opt', [partial(SGD, mom=.9), Adam], ids=['sgd','adam'])
def test_slimming_is_the_penalty(opt):
    "The same training as with the penalty in the loss; another one than without"
    a,b,no = (fitted(l1, explicit=e, opt=opt) for l1,e in ((.03,False),(.03,True),(None,False)))
    for n,p in a.model.state_dict().items(): assert torch.allclose(p, b.model.state_dict()[n], atol=1e-5), n
    assert not torch.allclose(scales(a), scales(no), atol=1e-3)

class Seen(Callback):
    "Gradients of the scales as a step finds them"
    order = math.inf
    def __init__(self): self.at = []
    def before_step(self): self.at.append([p.grad.clone() for p in norm_scales(self.learn.model)])

def first(l1, *cbs):
    seen = Seen()
    fitted(l1, [*cbs, seen], n=1)
    return seen.at

def assert_penalty(a, b, l1):
    "At the first step gradients `b` have the penalty and `a` have not"
    for g,h,p in zip(a[0], b[0], norm_scales(normed())): assert torch.allclose(h-g, l1*p.sign(), atol=1e-5)

def test_under_accumulation_it_is_added_once_a_step():
    "Of two batches each step has one penalty, not two"
    a,b = first(None, GradientAccumulation(32)),first(.5, GradientAccumulation(32))
    assert len(a)==len(b)==2, 'two steps of two batches each'
    assert_penalty(a, b, .5)

class HalfOnCPU(MixedPrecision):
    "fastai's mixed precision with torch's own scaler, on a CPU"
    def before_fit(self):
        self.autocast = torch.autocast('cpu', torch.bfloat16)
        self.learn.scaler,self.scales = GradScaler('cpu', init_scale=2.**12),L()

def test_scaled_gradients_get_the_same_penalty():
    a,b = first(None, HalfOnCPU()),first(.5, HalfOnCPU())
    assert len(a)==len(b)==4
    assert_penalty(a, b, .5)

class Overflows(Callback):
    "The second batch's gradients overflow"
    order = 9
    def after_backward(self):
        if self.learn.train_iter==1: norm_scales(self.learn.model)[0].grad[0] = math.inf

def test_a_skipped_step_has_no_penalty():
    "Where half precision overflows nothing moves"
    b = first(.5, HalfOnCPU(), Overflows())
    assert len(b)==3

def test_what_is_clipped_has_the_penalty():
    "The penalty is a part of the loss, so of the norm as well"
    b = first(50., GradientClip(.1))
    for gs in b: assert torch.cat(gs).norm()<=.1+1e-6

def test_frozen_scales_stay():
    m = normed()
    m[1].weight.requires_grad_(False)
    at,other = m[1].weight.clone(),m[4].weight.detach().clone()
    learn = fitted(.5, model=m)
    assert torch.equal(learn.model[1].weight, at) and not torch.equal(learn.model[4].weight, other)

def test_frozen_groups_of_a_learner():
    "fastai's `freeze` lets norms train, unless `train_bn=False`"
    m = normed()
    def halves(m): return [params(m[:3]),params(m[3:])]
    learn = Learner(data(), m, loss_func=CrossEntropyLossFlat(), train_bn=False, splitter=halves, opt_func=SGD)
    learn.add_cb(SlimmingCallback(.5))
    learn.freeze()
    at = m[1].weight.detach().clone()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .05)
    assert torch.equal(m[1].weight, at)

def test_a_norm_used_twice_counts_once():
    bn = nn.BatchNorm1d(8)
    assert len(norm_scales(nn.Sequential(nn.Linear(8,8), bn, nn.Linear(8,8), bn)))==1
    tied = nn.Sequential(nn.BatchNorm1d(8), nn.BatchNorm1d(8))
    tied[1].weight = tied[0].weight
    assert len(norm_scales(tied))==1
    assert not norm_scales(nn.BatchNorm1d(8, affine=False)) and not norm_scales(nn.LayerNorm(8))

def test_a_scale_of_zero_stays_without_a_gradient():
    "The subgradient at 0 is 0"
    m = normed()
    with torch.no_grad():
        m[1].weight[:4] = 0
        m[3].weight[:,:4] = 0    # nobody hears of them
        m[1].bias[:4] = -1
    learn = fitted(.5, model=m, n=1, opt=SGD)
    assert (learn.model[1].weight[:4]==0).all()

def test_dense_only():
    "Not after a prune, where asked; a Learner without a lottery is dense"
    for lot,pruned in ((False,False), (True,False), (True,True)):
        seen = Seen()
        learn = Learner(data(), normed(), loss_func=CrossEntropyLossFlat(), opt_func=SGD, cbs=seen)
        learn.add_cb(SlimmingCallback(10., dense_only=True))
        if lot: learn.add_cb(LotteryCallback())
        if pruned: learn.prune(.5)
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-6)
        assert (seen.at[0][0].abs().min()>5)==(not pruned)

@pytest.mark.parametrize('l1', [-1e-4, True, 'a', None, math.nan, math.inf])
def test_l1_is_checked(l1):
    with pytest.raises(ValueError, match='`l1`'): SlimmingCallback(l1)

def test_a_model_without_norms_is_refused():
    learn = Learner(data(), nn.Linear(8,4), loss_func=CrossEntropyLossFlat(), cbs=SlimmingCallback())
    with learn.no_bar(), learn.no_logging(), pytest.raises(ValueError, match='none: leave it out'): learn.fit(1)

def test_its_weight_is_a_setting_of_a_run(tmp_path):
    def play(l1):
        set_seed(0)
        learn = Learner(data(), normed(), loss_func=CrossEntropyLossFlat(), opt_func=SGD, cbs=LotteryCallback())
        kw = dict(seed=0, path=tmp_path, cbs=SlimmingCallback(l1))
        with learn.no_bar(), learn.no_logging(): return learn.fit_lottery(1, 1, **kw)
    a,b = play(1e-3),play(1e-3)
    assert a[1]['mask_hash']==b[1]['mask_hash']
    with pytest.raises(ValueError, match='SlimmingCallback'): play(1e-2)

# --- presets

ours = [p for p in rethinking if p.cost!='seconds']

@pytest.mark.parametrize('p', ours, ids=lambda p: p.name)
def test_a_preset_says_what_it_needs(p, tmp_path, monkeypatch, capsys):
    "Without Torch-Pruning: an error that says how to get it, before anything is written or looked for"
    assert p.cb==dict(units='channels') and 'needs the extra `deploy`' in p.cost
    monkeypatch.setitem(sys.modules, 'torch_pruning', None)
    assert main(['run', p.name, '--out', str(tmp_path/'o')])==1
    out,err = capsys.readouterr()
    assert "pip install 'fastai_lottery[deploy]'" in err and p.name in err and 'Traceback' not in out+err
    assert not (tmp_path/'o').exists()

def test_all_are_presets(): assert all(presets[p.name].model is p.model for p in rethinking)

# What the papers say is left of parameters and multiply-adds (1608.08710, table 1). Of ResNet-56 the counts round otherwise
# here, and shortcuts have weights
papers = {'l1-vgg-16':(5.4e6/1.5e7, 2.06e8/3.13e8), 'l1-resnet-56-a':(1-.094, 1-.104), 'l1-resnet-56-b':(1-.137, 1-.276)}

@extra
@pytest.mark.parametrize('name', papers)
def test_sizes_of_the_papers(name):
    from fastai_lottery.coupled import channel_units
    from fastai_lottery.structured import sizes_after
    from fastai_lottery.units import PerUnit
    from fastai_lottery.scopes import as_scope
    p,xb = preset(name),(torch.randn(1,3,32,32),)
    m,s = p.model(),p.settings
    units = channel_units(m, xb)
    w = {n:t.detach() for n,t in m.named_parameters()}
    scores = units.scores_of(filter_l1_of(), PerUnit(), dict(w_f={n:w[n] for n in units.scored}))
    alive = units.prune(scores, units.ones(), s['amount'], as_scope(s['scope'], units.sizes))
    dense,left = sizes_after(m, units, units.ones(), xb),sizes_after(m, units, alive, xb)
    for k,share in zip(('params','macs'), papers[name]): assert abs(left[k]/dense[k]-share)<.02, k

def filter_l1_of():
    from fastai_lottery.units import filter_l1
    return filter_l1

# --- arms

tiny = replace(preset('rethinking-digits'), settings={**preset('rethinking-digits').settings, 'n_epoch':2})

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    from fastai_lottery.experiments import play_main
    pytest.importorskip('torch_pruning')
    learn = tiny.learner(0, device='cpu')
    learn.remove_cbs(learn._grab_cbs(ProgressCallback))
    learn.logger = noop
    return play_main(tiny, learn, 0, tmp_path_factory.mktemp('run'), None)

def alive_of(run, masks): return run.learn.lottery.own_units().alive(masks)
def counts(alive): return {g:int(m.sum()) for g,m in alive.items()}
def of(run, f, k, **kwargs):
    "What an arm showed, and the trained net"
    r = f(run, k, **kwargs)
    return r,state(run.learn.model)

@extra
def test_thirty_fifty_seventy_percent_of_each_layer(run):
    "Whatever rounding does: the levels are what their names say"
    for k,share in zip((1,2,3), (.7,.5,.3)):
        n = counts(alive_of(run, run.ticket(k).masks))
        assert n=={g:round(share*c) for g,c in run.learn.lottery.own_units().sizes.items()}

@extra
@pytest.mark.parametrize('k', (1,2,3))
def test_one_shot_units_are_the_largest_of_the_dense_net(run, k):
    t = one_shot_units(run, k)
    alive,w = alive_of(run, t.masks),run.trained(0)
    assert counts(alive)==counts(alive_of(run, run.ticket(k).masks))
    for g,m in alive.items():
        norms = w[f'{g}.weight'].abs().flatten(1).sum(1)
        assert norms[m].min()>=norms[~m].max(), g
    if k==1: assert t.masks==run.ticket(1).masks, 'the first prune of the lottery is one from the dense net'
    start = run.rounds[0].start
    assert all(torch.equal(v, start[n]) for n,v in t.weights.items())

@extra
def test_inherited_weights_are_the_dense_nets(run):
    t,w = inherited(run, 2),run.trained(0)
    assert all(torch.equal(v.cpu(), w[n].cpu()) for n,v in t.weights.items())
    assert any(not torch.equal(v, run.rounds[0].start[n]) for n,v in t.weights.items() if 'running_mean' in n)

class Rates(Callback):
    def __init__(self): self.lrs = []
    def after_step(self): self.lrs.append(self.learn.opt.hypers[0]['lr'])

def rates(run, f, *args):
    cb = Rates()
    with run.learn.added_cbs(cb): f(run, *args)
    return cb.lrs

@extra
def test_rates_of_the_arms(run):
    "Fine-tuning stays at the last rate; going on, rewinding and Scratch go through the whole schedule"
    whole = rates(run, rewound, 2)
    assert max(whole)==pytest.approx(.05) and min(whole)==pytest.approx(.005)
    assert rates(run, fine_tuned, 2)==pytest.approx([.005]*len(whole))
    for f in (relr, scratch_e): assert rates(run, f, 2)==pytest.approx(whole)
    long = rates(run, scratch_b, 2)
    assert len(long)==len(whole)//2*epochs_for(run, 2) and long[0]==pytest.approx(.05) and long[-1]==pytest.approx(.005)
    assert sum(r>.01 for r in long)==pytest.approx(len(long)*2/3, abs=2), 'the schedule is stretched'

@extra
@pytest.mark.parametrize('k', (1,2,3))
def test_as_much_compute(run, k):
    "So many epochs that one more would cost more than the dense net's training"
    row,n = run.rounds[k].row,epochs_for(run, k)
    dense = run.settings['n_epoch']*row['macs_dense']
    assert n*row['macs']<=dense<(n+1)*row['macs']
    assert one_shot_units(run, k) and n>=(run.settings['n_epoch'])

def small_of(run, t):
    "The small net with the ticket's weights in it"
    from fastai_lottery.removal import without
    units = run.learn.lottery.own_units()
    m = load_(deepcopy(run.learn.model), t.weights)
    t.masks.apply_(m)
    return without(m, units, units.alive(t.masks))

@extra
def test_scratch_is_the_small_nets_own_draw(run):
    "As wide as the small net's initialiser draws; the same each time, and nothing global moves"
    rng = torch.get_rng_state()
    a,b = (from_scratch(run, one_shot_units(run, 3)) for _ in range(2))
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, b.weights[n]) for n,v in a.weights.items())
    other = from_scratch(run, one_shot_units(run, 2))
    m = small_of(run, a)
    for n,o in m.named_modules():
        if isinstance(o, nn.Conv2d):
            assert float(o.weight.detach().std())==pytest.approx(math.sqrt(2/(9*o.out_channels)), rel=.25), n
        if isinstance(o, nn.BatchNorm2d):
            assert (o.weight==1).all() and (o.bias==0).all() and (o.running_mean==0).all() and (o.running_var==1).all()
    assert not torch.equal(a.weights['fc.weight'], other.weights['fc.weight'])
    assert not torch.equal(m.conv2.weight, small_of(run, one_shot_units(run, 3)).conv2.weight)

@extra
def test_masked_training_is_the_small_nets(run):
    "Scratch-E under masks ends where the small net, cut out and trained by itself, ends"
    t = from_scratch(run, one_shot_units(run, 2))
    small = small_of(run, t)
    r,after = of(run, scratch_e, 2)
    masked = small_of(run, replace(t, weights=after))
    p = replace(tiny, model=lambda: small)
    learn = Learner(run.learn.dls, small, opt_func=p.opt_func, metrics=accuracy)
    from fastai_lottery.fits import seed_all
    seed_all(learn, derive(0, 'train', 2))
    s = {k:v for k,v in run.settings.items() if k not in ('fit','eval_every')}
    with learn.no_bar(), learn.no_logging(): learn.fit_drops(**s)
    x = run.learn.dls.valid.one_batch()[0]
    with torch.no_grad(): a,b = masked.eval()(x),small.eval()(x)
    assert torch.allclose(a, b, atol=1e-3*float(a.abs().max()))
    assert r['units']==30 and r['density']==.5

@extra
def test_arms_are_as_small_as_the_ticket(run):
    ticket = run.rounds[2].row
    for f in (rewound, fine_tuned, relr, scratch_e):
        r = f(run, 2)
        assert [r[k] for k in ('units','params','macs')]==[ticket[k] for k in ('units','params','macs')], f.__name__
        assert r['round']==2

@extra
def test_arms_follow_from_the_seed(run):
    "Whatever was trained before them"
    a = scratch_e(run, 2)['test_loss'],fine_tuned(run, 2)['test_loss']
    relr(run, 3)
    assert a==(scratch_e(run, 2)['test_loss'],fine_tuned(run, 2)['test_loss'])

@extra
def test_criteria_of_arms(run):
    "By norms' scales; by what only the trained weights do not tell: refused"
    t = one_shot_units(run, 2, 'bn_scale')
    w = run.trained(0)
    for g,m in alive_of(run, t.masks).items():
        s = w[g.replace('conv','bn')+'.weight'].abs()
        assert s[m].min()>=s[~m].max()
    for c in ('large_init','snip'):
        with pytest.raises(ValueError, match="`criterion` should go by trained weights"): one_shot_units(run, 2, c)

@pytest.mark.parametrize('arm', [rewound, fine_tuned, relr, scratch_e, scratch_b, epochs_for], ids=lambda f: f.__name__)
def test_arms_are_for_channels(arm, tmp_path):
    "A lottery of single weights has no small net"
    digits = preset('digits')
    p = replace(digits, settings={**digits.settings, 'n_epoch':1, 'rounds':1}, controls=dict(arm=arm), levels=(1,))
    with pytest.raises(ValueError, match="units='channels'"): play_seed(p, 0, tmp_path, device='cpu')

@extra
def test_the_small_preset_plays(tmp_path):
    "All arms in seconds, and again from the folder"
    p = preset('rethinking-tiny')
    a = play_seed(p, 0, tmp_path, device='cpu')
    want = {'dense','ticket',*p.controls}
    assert {*a.arm}==want and a[['units','params','macs','test_accuracy']].notna().all().all()
    pd.testing.assert_frame_equal(a, play_seed(p, 0, tmp_path, device='cpu'))
    (tmp_path/'controls.csv').unlink()
    b = play_seed(p, 0, tmp_path, device='cpu')    # as after a kill: rounds are read, not trained
    pd.testing.assert_frame_equal(a.drop(columns='seconds'), b.drop(columns='seconds'))

@extra
def test_slimming_plays(tmp_path):
    "The settings of network slimming on the small net: the dense net is penalised, what comes after is not"
    p = preset('slimming-vgg-19')
    few = {k:p.controls[k] for k in ('shuffle','scratch_e')}
    q = replace(preset('rethinking-tiny'), model=partial(small_conv, 10, 10), controls=few, levels=(1,),
                settings={**p.settings, 'n_epoch':1, 'eval_every':20, 'amount':.4})
    df = play_seed(q, 0, tmp_path, device='cpu')
    assert {*df.arm}=={'dense','ticket','shuffle','scratch_e'} and (df[df['round']==1].units==12).all()

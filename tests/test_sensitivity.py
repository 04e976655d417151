"Laws of `sensitivity`: figures equal those of a net pruned by hand, one layer at a time, and the Learner is as it was"
import math,random
import pytest
import matplotlib.pyplot as plt
from nets import *
from fastai_lottery.analysis import *
from fastai_lottery.pictures import plot_sensitivity
from fastai_lottery.units import bn_scale,filter_l1

for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]
pytestmark = pytest.mark.filterwarnings('ignore::fastai_lottery.scopes.EmptyLayerWarning')
cols = ['layer','amount','kept','of','valid_loss','accuracy']

def trained(model=drop_bn, cb=LotteryCallback, dls=None, n=2, **kw):
    learn = learner(model, dls, cbs=cb, **kw)
    if n: learn.fit(n, .02)
    return learn

def hooks_of(learn):
    m = unwrap(learn.model)
    of_mods = [(n,k,d) for n,o in m.named_modules() for k,d in vars(o).items() if k.endswith('hooks')]
    of_weights = [(n,len(p._post_accumulate_grad_hooks or ())) for n,p in m.named_parameters()]
    return [(n,k,len(d)) for n,k,d in of_mods if isinstance(d, dict)],of_weights

def opt_of(learn):
    if learn.opt is None: return None
    return [(h,{k:v.sum().item() if torch.is_tensor(v) else v for k,v in s.items()})
            for h,(_,_,s,_) in zip(learn.opt.hypers, learn.opt.all_params())],learn.opt.frozen_idx

def all_of(learn):
    "What a look could change"
    m,lot = learn.model,getattr(learn, 'lottery', None) if learn._grab_cbs(LotteryCallback) else None
    modes = [(o.training,getattr(o, 'momentum', None)) for o in m.modules()],[p.requires_grad for p in m.parameters()]
    grads = [None if p.grad is None else p.grad.tolist() for p in m.parameters()]
    rng = random.getstate(),learn.dls.train.rng.getstate(),torch.get_rng_state().tolist(),np.random.get_state()[1].tolist()
    mine = lot and (None if lot.masks is None else lot.masks.hash(), len(lot.rounds), lot.n_pruned,
                    lot.held and bits(lot.held), None if lot.w_i is None else bits(lot.w_i), lot.looked, lot.passed)
    rec = {k:list(vars(learn.recorder).get(k) or ()) for k in ('values','losses','lrs','iters')}
    names = sorted(k for k in vars(learn) if k!='_knows')
    return bits(m),modes,grads,rng,mine,hooks_of(learn),opt_of(learn),list(learn.cbs),rec,names

def by_hand(learn, n, amount):
    "Kept weights and figures, with torch alone"
    m = deepcopy(unwrap(learn.model)).eval()
    w = named_weights(m)[n]
    v,alive = w.data.abs().flatten(),learn.lottery.masks[n].flatten()
    gone = min(round(amount*int(alive.sum())), int(alive.sum())-1)
    order = v.masked_fill(~alive, math.inf).argsort(stable=True)
    w.data.view(-1)[order[:gone]] = 0
    xs,ys = zip(*learn.dls.valid.dataset)
    with torch.no_grad(): out = m(torch.stack(xs))
    y = torch.stack(ys)
    return int(alive.sum())-gone,float(F.cross_entropy(out, y)),float((out.argmax(1)==y).float().mean())

@pytest.mark.parametrize('pruned', [None,{},dict(hold='hold_init')], ids=['dense','pruned','held'])
@pytest.mark.parametrize('model', [mlp,drop_bn])
def test_figures_by_hand(model, pruned):
    learn = trained(model)
    if pruned is not None: learn.prune(.4, **pruned)
    t = sensitivity(learn, (.25,.9))
    assert list(t.columns)==cols and list(dict.fromkeys(t.layer))==list(learn.lottery.names())
    assert set(t.amount)=={0,.25,.9}
    for r in t.itertuples():
        kept,loss,acc = by_hand(learn, r.layer, r.amount)
        assert (r.kept,r.accuracy)==(kept,pytest.approx(acc)) and r.valid_loss==pytest.approx(loss, rel=1e-5)

looks = dict(layer={}, bn=dict(bn=True), **{k:dict(criterion=k) for k in ('snip','random','movement')})
@pytest.mark.parametrize('how', looks)
@pytest.mark.parametrize('state_', ['fresh','trained','pruned','held','alone','frozen'])
def test_nothing_changes(how, state_):
    learn = trained(cb=None if state_=='alone' else LotteryCallback, n=0 if state_=='fresh' else 2)
    if state_=='pruned': learn.fit_lottery(1, rounds=1)
    if state_=='held': learn.prune(.3, hold='hold_init')
    if state_=='frozen': learn.model[0].weight.requires_grad_(False)
    learn.model.train()
    was = all_of(learn)
    t = sensitivity(learn, (.5,), **looks[how])
    now = all_of(learn)
    for a,b in zip(was, now): assert a==b
    assert t.equals(sensitivity(learn, (.5,), **looks[how])), 'and the same again'

def test_training_goes_on_to_the_same_bits():
    def go(look):
        learn = trained()
        if look: sensitivity(learn, bn=True, criterion='taylor')
        learn.fit_lottery(2, rounds=1, seed=1)
        learn.fit(1)
        return bits(learn.model)
    assert go(True)==go(False)

def test_in_the_midst_of_a_training():
    class Looks(Callback):
        run_valid = False
        def after_epoch(self): sensitivity(self.learn, (.5,))
    def go(*cbs):
        learn = learner(drop_bn)
        learn.fit_lottery(2, rounds=1, seed=1, cbs=cbs)
        return bits(learn.model)
    assert go(Looks())==go()

def test_new_statistics():
    "With `bn` a net is judged with statistics of its own"
    learn = trained(dls=data(n=256), n=5)
    a,b = sensitivity(learn, (.7,)),sensitivity(learn, (.7,), bn=True)
    assert not a.valid_loss.equals(b.valid_loss)
    m = deepcopy(learn.model)
    for o in m.modules():
        if isinstance(o, nn.BatchNorm1d):
            o.reset_running_stats()
            o.momentum = None
            o.train()
    with torch.no_grad():
        for xb,_ in learn.dls.train.new(shuffle=False): m(xb)
    ours = b[b.amount==0].valid_loss
    xs,ys = zip(*learn.dls.valid.dataset)
    with torch.no_grad(): want = float(F.cross_entropy(m.eval()(torch.stack(xs)), torch.stack(ys)))
    assert ours.nunique()==1 and ours.iloc[0]==pytest.approx(want, rel=1e-4)
    learn = trained(mlp)
    assert sensitivity(learn, (.7,), bn=True).equals(sensitivity(learn, (.7,))), 'no batch norm, nothing to renew'

def test_a_net_that_was_never_trained():
    "Its weights are the initial ones, and no mask is on"
    learn = learner(drop_bn)
    a,b = (sensitivity(learn, (.5,), criterion=f) for f in (lambda w_i, m: w_i.abs()*m, 'large_final'))
    assert a.equals(b) and learn.lottery.w_i is None and learn.lottery.masks is None

def test_a_layer_keeps_one_weight():
    t = sensitivity(learner(lambda: nn.Sequential(nn.Linear(8,1,bias=False), nn.Linear(1,4))), .95)
    assert t[t.amount>0].kept.min()==1 and t.notna().all().all()

def test_measured_on_other_data():
    learn = trained()
    a,b = sensitivity(learn, (.5,)),sensitivity(learn, (.5,), dl=learn.dls.train)
    assert not a.valid_loss.equals(b.valid_loss)
    with pytest.raises(ValueError, match='has none: give `dl`'):
        sensitivity(learner(dls=DataLoaders(data().train, device='cpu')))

@pytest.mark.parametrize('name', list(zoo))
def test_nets(name):
    learn = from_zoo(name)
    was = bits(learn.model)
    t = sensitivity(learn, (.5,))
    assert list(dict.fromkeys(t.layer))==list(learn.lottery.names())
    assert bits(learn.model)==was and t.notna().all().all()

wraps = dict(parallel=nn.DataParallel, compiled=lambda m: torch.compile(m, backend='eager'))
@pytest.mark.parametrize('wrap', wraps.values(), ids=wraps)
def test_wrapped(wrap):
    learn = trained()
    want = sensitivity(learn, (.5,))
    learn.model = wrap(learn.model)
    pd.testing.assert_frame_equal(sensitivity(learn, (.5,)), want)

# --- groups of units

def test_rows():
    learn = trained(cb=LotteryCallback(units='rows', exclude='8'))
    was = all_of(learn)
    t = sensitivity(learn, (.5,.99), by='group', criterion=filter_l1)
    assert t.kept.tolist()==[12,6,1]*2 and (t.of==12).all() and t.attrs['by']=='group'
    assert all_of(learn)[:7]==was[:7]
    m = deepcopy(learn.model).eval()
    rows = m[0].weight.data.abs().sum(1).argsort()[:6]
    m[0].weight.data[rows] = 0
    xs,ys = zip(*learn.dls.valid.dataset)
    with torch.no_grad(): loss = float(F.cross_entropy(m(torch.stack(xs)), torch.stack(ys)))
    assert t.valid_loss[1]==pytest.approx(loss, rel=1e-5)

lots = dict(none=None, weights=LotteryCallback, channels=lambda: LotteryCallback(units='channels'))
@pytest.mark.extra
@pytest.mark.parametrize('cb', lots.values(), ids=lots)
@pytest.mark.parametrize('criterion', ['large_final',bn_scale,'snip'])
def test_channels(cb, criterion):
    learn = trained(conv_bn, cb=cb and cb(), dls=data(shape=(1,6,6)))
    was = all_of(learn)
    t = sensitivity(learn, (.5,), by='group', criterion=criterion, bn=True)
    assert dict(zip(t.layer, t.of))=={'0':6, '3':8} and t.kept.tolist()==[6,3,8,4]
    for a,b in zip(was, all_of(learn)): assert a==b

# --- wrong values, and the picture

wrong = [(dict(amounts=(1.,)), '`amount` should be in'), (dict(amounts=('a',)), '`amount`'),
    (dict(by='net'), "`by` should be 'layer' or 'group'"),
    (dict(criterion='larg_final'), 'did you mean'), (dict(criterion=filter_l1), "one number a unit: by='group'")]
@pytest.mark.parametrize('kw,says', wrong, ids=said)
def test_wrong_values(kw, says):
    learn = trained()
    was = all_of(learn)
    with pytest.raises(ValueError, match=says): sensitivity(learn, **kw)
    for a,b in zip(was, all_of(learn)): assert a==b

def test_picture():
    t = sensitivity(trained(), (.3,.6))
    ax = plot_sensitivity(t)
    assert [l.get_label() for l in ax.lines]==[f"layer {n.removesuffix('.weight')}" for n in t.layer.unique()]
    assert ax.get_ylabel()=='accuracy (%)'
    of_digits = {o:f'{i}.0' for i,o in enumerate(t.layer.unique())}
    assert plot_sensitivity(t.assign(layer=t.layer.map(of_digits))).lines[1].get_label()=='layer 1.0', 'and not a figure'
    xs,ys = ax.lines[0].get_data()
    assert xs.tolist()==[0,30,60] and ys.tolist()==(100*t.accuracy[:3]).tolist()
    assert plot_sensitivity(t, 'valid_loss', ax) is ax
    with pytest.raises(ValueError, match="no column 'f1'; it has layer"): plot_sensitivity(t, 'f1')
    plt.close('all')

"What optimizers hold of a weight that is pruned in the middle of a training: nothing, and the others never notice"
import pytest
from test_growing import moments,opts
from nets import *
from fastai_lottery.gradual import *
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]
pytestmark = pytest.mark.filterwarnings('ignore::fastai_lottery.scopes.EmptyLayerWarning')

class At(Callback):
    "Calls `f` after the batch `n`, and keeps what optimizers hold after each"
    order = 96
    def __init__(self, n, f): self.n,self.f,self.seen = n,f,[]
    def after_batch(self):
        if not self.training: return
        def copied(ms): return [(k,v.clone()) for k,v in ms]
        self.seen.append({n:copied(ms) for n,ms in moments(self.learn).items()})
        if len(self.seen)==self.n: self.f(self.learn)

def fit(opt, f=lambda l: l.prune(.5, scope='local'), n=3, model=mlp, epochs=2, **kw):
    "A fit in the midst of which `f` is done"
    learn = learner(model, cbs=[LotteryCallback(), at := At(n, f)], opt_func=opt, **kw)
    seed_all(learn)
    with learn.no_bar(): learn.fit(epochs, .01)
    return learn,at.seen

def new(k, w, lr):
    "What an optimizer would hold under the name `k` of a weight that was never trained"
    if k in ('ax','z'): return w
    return torch.full_like(w, dict(step_size=lr, sum=.1).get(k, 0.))

@pytest.mark.parametrize('name', opts)
def test_nothing_is_held_of_what_was_pruned(name):
    "From the first step on; of the others something is"
    kw = dict(lr=.01) if name=='rprop' else {}
    learn,seen = fit(opts[name], **kw)
    ws = named_weights(learn.model, learn.lottery.masks)
    assert len(seen)==8 and .4<learn.lottery.masks.density<.6
    kept = 0
    for o in seen[3:]:
        for n,m in learn.lottery.masks.items():
            for k,v in o[n]:
                kept += int((v[m]!=0).sum())
                want = torch.zeros_like(ws[n]) if k in ('ax','z') else new(k, ws[n], .01)    # a pruned weight is 0
                assert torch.equal(v[~m], want[~m].to(v)), (n,k)
    assert kept or name=='sgd' and not seen[-1]['0.weight']

by_layer = 'lamb','larc'
@pytest.mark.parametrize('name', [o for o in opts if o not in by_layer])
def test_weights_that_stay_go_on_to_the_same_bits(name, monkeypatch):
    "An optimizer that looks at each weight by itself does not notice that others were forgotten"
    kw = dict(lr=.01) if name=='rprop' else {}
    want = bits(fit(opts[name], **kw)[0].model)
    monkeypatch.setattr('fastai_lottery.callback.forget_pruned_', noop)
    assert bits(fit(opts[name], **kw)[0].model)==want

@pytest.mark.parametrize('name', ['sgd','adam','fused','ranger','asgd'])
def test_masks_for_a_look_forget_nothing(name):
    "Pruned, looked at, and put back between two steps: the training is that without the look"
    def look(learn):
        was = state(learn.model)
        learn.prune(.5)
        learn.unprune()
        load_(learn.model, was)
    a,one = fit(opts[name], look)
    b,two = fit(opts[name], lambda l: None)
    assert bits(a.model)==bits(b.model)
    for x,y in zip(one[4:], two[4:]):
        assert x.keys()==y.keys() and all(torch.equal(v, w) for n in x for (_,v),(_,w) in zip(x[n], y[n]))

tiniest = torch.finfo(torch.float).smallest_normal
def subnormal(learn): return sum(int(((v!=0)&(v.abs()<tiniest)).sum()) for ms in moments(learn).values() for _,v in ms)

@pytest.mark.parametrize('opt', ['adam','nesterov'])
def test_no_mean_ends_as_a_subnormal_number(opt, monkeypatch):
    "Half of the weights are pruned early: without forgetting, most of theirs do"
    def long():
        learn,_ = fit(opts[opt], lambda l: l.prune(.5), epochs=230)
        return subnormal(learn),learn.lottery.masks
    got,masks = long()
    gone = masks.numel-masks.n_kept
    monkeypatch.setattr('fastai_lottery.callback.forget_pruned_', noop)
    assert got<gone/10 and long()[0]>.6*gone

def test_gradual_and_a_later_fit():
    "Masks that tighten within a fit, and a fit after a prune"
    learn = learner(mlp, opt_func=opts['fused'])
    with learn.no_bar():
        learn.fit_gradual(4, to=.2, lr_max=.01)
        learn.prune(.5)
        learn.fit(1, .01)
    for n,m in learn.lottery.masks.items():
        for k,v in moments(learn)[n]: assert not v[~m].any() and v[m].any(), (n,k)

def test_what_is_held_at_a_value_and_units():
    "Weights held at their start, and whole channels that went"
    learn,seen = fit(opts['adamw'], lambda l: l.prune(.5, hold=hold_init))
    for n,m in learn.lottery.masks.items():
        for _,v in seen[-1][n]: assert not v[~m].any()
    w,m = learn.model[0].weight.detach(),learn.lottery.masks['0.weight']
    assert torch.equal(w[~m], learn.lottery.w_i['0.weight'][~m]) and w[~m].any()
    learn = learner(conv_bn, data((1,6,6)), cbs=[LotteryCallback(units='channels'), at := At(3, lambda l: l.prune(.3))],
                    opt_func=Adam)
    seed_all(learn)
    with learn.no_bar(): learn.fit(2, .01)
    for n,m in learn.lottery.masks.items():
        for _,v in at.seen[-1][n]: assert not v[~m].any()

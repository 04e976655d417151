"Targeted dropout and a decay that grows: what drops out, what is written, what stays"
import pickle
import pytest,torch
from torch import nn
from functools import partial
from fastcore.foundation import L
from fastai.callback.core import Callback,CancelStepException
from fastai.callback.fp16 import MixedPrecision
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import AvgMetric
from fastai.optimizer import SGD,Adam,RAdam
from fastai.torch_core import set_seed
from fastai.callback.training import GradientAccumulation
from fastai_lottery.all import *
from fastai_lottery.means import RunningSaliency
from fastai_lottery.targeted import DecayToPrune,TargetedDropout

g = torch.Generator().manual_seed(0)
x,y = torch.randn(96, 12, generator=g),torch.randint(0, 3, (96,), generator=g)

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn,self.out = nn.LSTM(4, 6, batch_first=True),nn.Linear(6, 3)
    def forward(self, x): return self.out(self.rnn(x.view(-1, 3, 4))[0][:,-1])

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.att,self.out = nn.MultiheadAttention(4, 2, batch_first=True),nn.Linear(4, 3)
    def forward(self, x):
        x = x.view(-1, 3, 4)
        return self.out(self.att(x, x, x)[0].mean(1))

class Twins(nn.Module):
    "One weight under two names"
    def __init__(self):
        super().__init__()
        self.a,self.b,self.out = nn.Linear(12, 12),nn.Linear(12, 12),nn.Linear(12, 3)
        self.b.weight = self.a.weight
    def forward(self, x): return self.out(self.b(self.a(x).relu()).relu())

def mlp(): return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
def norms(): return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
nets = [mlp, norms, Recurrent, Attention, Twins]

def learner(net=mlp, *cbs, lot=None, **kw):
    set_seed(0)
    ds = list(zip(x, y))
    dls = DataLoaders(DataLoader(ds[:64], bs=16), DataLoader(ds[64:], bs=32), device='cpu')
    return Learner(dls, net(), loss_func=CrossEntropyLossFlat(), cbs=[LotteryCallback(**(lot or {})), *cbs], **kw)

def bits(m): return {k:v.clone() for k,v in m.state_dict().items()}
def same(a, b): return list(a)==list(b) and all(torch.equal(a[k], b[k]) for k in a)

class SeesAll(Callback):
    "Gradients and weights once a step is made, and what the model holds"
    order = 99
    def __init__(self): self.grads,self.kinds,self.was = [],set(),None
    def before_batch(self): self.was = bits(self.model)
    def after_backward(self):
        ps = dict(self.model.named_parameters())
        self.grads.append({n:p.grad.clone() for n,p in ps.items()})
        self.kinds |= {type(p) for p in ps.values()}
        bufs = dict(self.model.named_buffers())
        self.held = all(torch.equal(v, self.was[k]) for k,v in bits(self.model).items() if k not in bufs)

@pytest.mark.parametrize('net', nets, ids=lambda o: o.__name__)
def test_the_lowest_have_no_gradient_and_nothing_is_written(net):
    learn = learner(net, look := SeesAll())
    names = learn.lottery.names()
    w = {n:p.detach().clone() for n,p in named_weights(learn.model, names).items()}
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0., cbs=TargetedDropout(p=1., amount=.5, scope='local'))
    low = {n:v.abs()<=v.abs().flatten().kthvalue(round(.5*v.numel())).values for n,v in w.items()}
    assert all((g[n][low[n]]==0).all() and (g[n][~low[n]]!=0).any() for g in look.grads for n in names)
    assert look.held and look.kinds=={nn.Parameter}
    assert '_do_one_batch' not in vars(learn)

def test_the_forward_pass_is_without_them():
    learn,seen = learner(),[]
    class Pred(Callback):
        def after_pred(self): seen.append((self.xb[0],self.pred.detach().clone()))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0., cbs=[TargetedDropout(p=1., amount=.5), Pred()])
        twin = learner()
        twin.prune(.5)
    train = seen[:4]
    assert all(torch.allclose(twin.model(a), b, atol=1e-6) for a,b in train)
    a,b = seen[-1]
    assert torch.allclose(learn.model(a), b), 'validation is of the whole net'

def test_a_share_drops_out():
    learn = learner(mlp, look := SeesAll())
    with learn.no_bar(), learn.no_logging(): learn.fit(5, 0., cbs=TargetedDropout(p=.3, amount=.8, scope='local'))
    none = torch.stack([g['0.weight']==0 for g in look.grads]).float()
    assert .18<none.mean()<.32 and none.std(0).max()>0

def test_units_drop_out_whole():
    learn = learner(norms, look := SeesAll(), lot=dict(units='channels'))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0., cbs=TargetedDropout(p=1., amount=.5, criterion='filter_l1', floor=0))
    gone = look.grads[0]['0.weight'].flatten(1).eq(0).all(1)
    assert gone.sum()==8 and (look.grads[0]['1.weight'][gone]==0).all() and (look.grads[0]['3.weight'][:,gone]==0).all()

@pytest.mark.parametrize('opt', [SGD, partial(SGD, mom=.9), Adam, RAdam], ids=['sgd','momentum','adam','radam'])
def test_no_trace_in_state_and_pickle(opt):
    learn = learner(opt_func=opt)
    keys = list(learn.model.state_dict())
    with learn.no_bar(), learn.no_logging(): learn.fit(2, .01, cbs=[TargetedDropout(.5, .5), DecayToPrune(1., .5)])
    assert list(learn.model.state_dict())==keys and not any(m._forward_hooks for m in learn.model.modules())
    back = pickle.loads(pickle.dumps(learn.model))
    assert same(bits(back), bits(learn.model)) and same(bits(learn.model), bits(learn.model))

@pytest.mark.parametrize('err', [KeyboardInterrupt, RuntimeError, ValueError], ids=lambda o: o.__name__)
def test_a_step_that_is_broken_off_leaves_parameters_in_place(err):
    learn = learner()
    was = bits(learn.model)
    class Stops(nn.Module):
        def forward(self, x): raise err('in the forward pass')
    learn.model.append(Stops())
    with pytest.raises(err), learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=TargetedDropout(.9, .5))
    assert all(isinstance(p, nn.Parameter) for p in learn.model.parameters()) and same(bits(learn.model), was)
    del learn.model[-1]
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.)
    assert same(bits(learn.model), was)

def test_pruned_weights_stay_at_zero():
    learn = learner(mlp, GradientAccumulation(32))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, .05)
        learn.prune(.5)
        learn.fit(2, .05, cbs=[TargetedDropout(.5, .5), DecayToPrune(2., .5, norm='l1')])
    ws = named_weights(learn.model, list(learn.lottery.masks))
    assert all((ws[n][~m]==0).all() for n,m in learn.lottery.masks.items())

def test_lr_find_and_trials_see_the_whole_net():
    learn = learner(mlp, TargetedDropout(1., .9))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .01)
    plain = learner()
    plain.model.load_state_dict(learn.model.state_dict())
    names = ['0.weight']
    a,b = loss_grads(learn, names)['0.weight'],loss_grads(plain, names)['0.weight']
    assert torch.equal(a, b)

@pytest.mark.parametrize('criterion', ['snip','random','movement'])
def test_any_criterion_ranks(criterion):
    learn = learner(mlp, look := SeesAll())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .01, cbs=TargetedDropout(1., .5, criterion, scope='local', every=3))
    assert (look.grads[-1]['0.weight']==0).float().mean()>=.5

# --- mixed precision

class Amp(MixedPrecision):
    "fastai's, on the CPU, with a scaler that scales"
    def __init__(self, dtype): self.dtype = dtype
    def before_fit(self):
        self.autocast,self.scales = torch.autocast('cpu', dtype=self.dtype),L()
        self.learn.scaler = torch.amp.GradScaler('cpu', init_scale=64., enabled=self.dtype==torch.float16)
amps = pytest.mark.parametrize('dtype', [torch.bfloat16,torch.float16], ids=['bf16','fp16'])

@amps
def test_what_drops_out_is_away_in_mixed_precision(dtype):
    "The forward pass is that of the net without the lowest, bit for bit; these have no gradient, and nothing is written"
    learn,twin,seen = learner(mlp, look := SeesAll(), Amp(dtype)),learner(),[]
    class Pred(Callback):
        order = 9
        def after_pred(self): seen.append((self.training,self.xb[0],self.pred.detach()))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0., cbs=[TargetedDropout(p=1., amount=.5), Pred()])
    twin.prune(.5)
    low = {n:~m for n,m in twin.lottery.masks.items()}
    with torch.no_grad(), torch.autocast('cpu', dtype=dtype):
        for training,a,b in seen:
            want = (twin if training else learn).model(a)
            assert b.dtype==dtype and torch.equal(b, want)
    assert {o[0] for o in seen}=={True,False}
    assert all((g[n][low[n]]==0).all() and (g[n][~low[n]]!=0).any() for g in look.grads for n in low)
    assert look.held and all(p.dtype==torch.float32 for p in learn.model.parameters())

@amps
def test_the_pull_and_the_penalty_are_not_scaled(dtype):
    "Both are as large as in single precision: the loss, and so its gradient, is 0"
    def play(cb, *more):
        learn = learner(norms, *more, opt_func=partial(SGD, mom=0., wd=0.))
        learn.loss_func = lambda pred,y: 0.*pred.sum()
        w = {n:p.detach().clone() for n,p in learn.model.named_parameters()}
        with learn.no_bar(), learn.no_logging(): learn.fit(1, .1, cbs=cb)
        return w,{n:p.detach() for n,p in learn.model.named_parameters()}
    for cb in (lambda: SlimmingCallback(.01), lambda: DecayToPrune(lambda t: .5, .5)):
        (was,plain),(_,half) = play(cb()),play(cb(), Amp(dtype))
        moved = [n for n in was if not torch.equal(was[n], plain[n])]
        assert moved==(['1.weight'] if isinstance(cb(), SlimmingCallback) else ['0.weight','3.weight'])
        assert all(torch.equal(half[n], plain[n]) for n in was)

@amps
def test_a_lottery_with_all_of_them_in_mixed_precision_keeps_zeros(dtype):
    learn = learner(norms, Amp(dtype))
    how = dict(rounds=1, amount=.4, seed=0, cbs=[TargetedDropout(.5, .5), DecayToPrune(1., .5), SlimmingCallback(1e-3)])
    with learn.no_bar(), learn.no_logging(): rs = learn.fit_lottery(2, lr_max=.02, **how)
    ws = named_weights(learn.model, list(learn.lottery.masks))
    assert all((ws[n][~m]==0).all() for n,m in learn.lottery.masks.items()) and rs[1].masks.density==pytest.approx(.6, abs=.01)
    assert all(p.isfinite().all() for p in learn.model.parameters())

# --- memory

def test_saliency_is_the_mean_of_weight_times_gradient():
    want = {}
    class Own(Callback):
        order = 11
        def before_step(self):
            now = {n:(p*p.grad).abs().detach().clone() for n,p in self.model.named_parameters()}
            for n,v in now.items(): want[n] = v if n not in want else want[n]+.1*(v-want[n])
    learn = learner(mlp, RunningSaliency(.1), Own())
    with learn.no_bar(), learn.no_logging(): learn.fit(2, .01)
    got = learn.lottery.known(['0.weight'], ['wg_m'], None)['wg_m']['0.weight']
    assert torch.allclose(got, want['0.weight'], atol=1e-7)
    masks = learn.prune(.5, 'snip_mean', 'local')
    assert (got[masks['0.weight']].min()>=got[~masks['0.weight']].max())

def test_who_goes_by_a_mean_says_who_keeps_it():
    cb = TargetedDropout(1., .5, 'snip_mean', scope='local')
    with pytest.raises(ValueError, match=r"add RunningSaliency\(\)"), (l := learner()).no_bar(), l.no_logging(): l.fit(1, cbs=cb)
    learn = learner(mlp, RunningSaliency(), look := SeesAll())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .01, cbs=cb)
    share = [(g['0.weight']==0).float().mean() for g in look.grads]
    assert share[0]<.5<=share[-1], 'nothing is known at the first step'

# --- the decay

@pytest.mark.parametrize('norm', ['l1','l2'])
def test_the_lowest_are_pulled_and_no_others(norm):
    learn = learner(opt_func=partial(SGD, mom=0.))
    class Still(Callback):
        order = 20
        def before_step(self):
            for p in self.model.parameters(): p.grad.zero_()
    w = learn.model[0].weight.detach().clone()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, .1, wd=0., cbs=[Still(), DecayToPrune(lambda t: .5, .5, norm=norm, scope='local')])
    low = w.abs()<=w.abs().flatten().kthvalue(96).values
    now = learn.model[0].weight.detach()
    want = w*.95**4 if norm=='l2' else w.sign()*(w.abs()-.2).clamp(min=0)
    assert torch.equal(now[~low], w[~low]) and torch.allclose(now[low], want[low], atol=1e-6)

def test_it_grows_from_nothing():
    learn,seen = learner(),[]
    class Size(Callback):
        order = 99
        def after_batch(self):
            if self.training: seen.append(float(self.model[0].weight.detach().abs().median()))
    with learn.no_bar(), learn.no_logging(): learn.fit(4, 1e-2, wd=0., cbs=[DecayToPrune(50., .8), Size()])
    assert seen[0]-seen[1]<seen[-3]-seen[-2]+.05 and seen[-1]<.5*seen[0]

# --- runs

def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    class Stop(Callback):
        on = False
        def after_epoch(self):
            if Stop.on and self.epoch==1 and len(self.learn.lottery.rounds)==1: raise KeyboardInterrupt
    def play(path):
        learn = learner(mlp, Stop())
        how = dict(rounds=2, amount=.3, seed=3, path=path, cbs=[TargetedDropout(.5, .5, every=3), DecayToPrune(1., .5)])
        with learn.no_bar(), learn.no_logging(): return learn.fit_lottery(3, **how)
    whole = play(tmp_path/'a')
    Stop.on = True
    with pytest.raises(KeyboardInterrupt): play(tmp_path/'b')
    Stop.on = False
    again = play(tmp_path/'b')
    assert [r.masks.hash() for r in whole]==[r.masks.hash() for r in again]
    assert whole[-1].row['valid_loss']==again[-1].row['valid_loss']

@pytest.mark.parametrize('make,says', [
    (lambda: TargetedDropout(p=2), '`p` should be a probability'), (lambda: TargetedDropout(amount=1.), '`amount` should be'),
    (lambda: DecayToPrune(wd=-1), '`wd` should be'), (lambda: DecayToPrune(norm='l3'), '`norm` should be'),
    (lambda: TargetedDropout(criterion='larg_final'), 'large_final'), (lambda: TargetedDropout(every=0), '`every` should be')],
    ids=['p','amount','wd','norm','criterion','every'])
def test_what_is_wrong_is_said(make, says):
    with pytest.raises(ValueError, match=says): make()

class Boom(Callback):
    order = 99
    def after_batch(self): boom()

def boom(*args): raise KeyError('boom')

@pytest.mark.parametrize('cb', [TargetedDropout, DecayToPrune])
@pytest.mark.parametrize('where', ['metric','callback'])
def test_nothing_is_left_after_an_error_elsewhere(cb, where):
    "A metric, or another callback in the midst of training, ends the fit with an error; then the callback is taken off"
    learn,more = learner(),[Boom()] if where=='callback' else []
    if where=='metric': learn.metrics = [AvgMetric(boom)]
    learn.add_cbs([one := cb(), *more])
    with pytest.raises(KeyError), learn.no_bar(): learn.fit(1)
    learn.remove_cbs([one, *more])
    assert '_do_one_batch' not in vars(learn)
    learn.metrics = []
    with learn.no_bar(): learn.fit(1)
    assert '_do_one_batch' not in vars(learn)

class Listed(nn.Module):
    "Parameters that stand in a list, a dict and a tuple as well, from which the forward pass takes them"
    def __init__(self, kind):
        super().__init__()
        self.a,self.b = nn.Parameter(torch.randn(12, 16)/3),nn.Parameter(torch.randn(16, 3)/4)
        self.ws = {'list':[self.a,self.b], 'dict':{0:self.a, 1:self.b}, 'tuple':(self.a,self.b)}[kind]
    def forward(self, x): return (x@self.ws[0]).relu()@self.ws[1]

@pytest.mark.parametrize('kind', ['list','dict','tuple'])
def test_dropout_reaches_parameters_wherever_a_module_keeps_them(kind):
    learn = learner(partial(Listed, kind), TargetedDropout(1., .5))
    seen = []
    class See(Callback):
        order = 99
        def after_pred(self):
            ws = {n:p.detach().clone() for n,p in self.model.named_parameters()}
            seen.append((self.xb[0], self.pred.detach().clone(), ws))
    learn.add_cb(See())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .01)
    x,pred,ws = seen[0]
    every = torch.cat([ws['a'].flatten(), ws['b'].flatten()]).abs()
    cut = every.kthvalue(len(every)//2).values
    a,b = [w*(w.abs()>cut) for w in (ws['a'],ws['b'])]
    torch.testing.assert_close(pred, (x@a).relu()@b)
    assert learn.model.ws[0] is learn.model.a and type(learn.model.ws).__name__==kind

class Skips(Callback):
    def before_step(self): raise CancelStepException()

def test_no_pull_where_a_step_is_skipped():
    learn = learner(mlp, DecayToPrune(5., .5), Skips())
    was = learn.model[0].weight.detach().clone()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .1)
    assert torch.equal(learn.model[0].weight, was)
    learn.remove_cb(Skips)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .1)
    assert not torch.equal(learn.model[0].weight, was)

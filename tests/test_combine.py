"Averages of trained nets, greedy pools and ensembles"
from copy import deepcopy
from dataclasses import replace
import warnings,pytest
from fastai.losses import FocalLoss,LabelSmoothingCrossEntropy,LabelSmoothingCrossEntropyFlat
from nets import *
from fastai_lottery.analysis import instability
from fastai_lottery.searches import going_on
from fastai_lottery.combine import *
from fastai_lottery.combine import predictions_of
from fastai_lottery.shrink import shrink
from fastai_lottery import combining
from fastai_lottery.experiments import play_main
from fastai_lottery.presets import preset
import fastai_lottery.deploy
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]
pytestmark = pytest.mark.filterwarnings('ignore')

def soup(name='batchnorm', n=3, amount=.5, **kwargs):
    "Trainings of one ticket in `n` data orders"
    model,kw,inc,_ = zoo[name]
    d = data(**kw)
    ls = [learner(model, d, cbs=LotteryCallback(include=inc), **kwargs) for _ in range(n)]
    t = ls[0].fit_lottery(1, rounds=1, amount=amount, seed=0)[-1].ticket
    for i,l in enumerate(ls): l.fit_ticket(t, 1, seed=i)
    return ls,t,d.valid.one_batch()[0]

def bits(learn): return {k:v.clone() for k,v in state(learn.model).items()}
def same(a, b): return a.keys()==b.keys() and all(torch.equal(v, b[k]) for k,v in a.items())

# --- averages

@pytest.mark.parametrize('name', zoo)
def test_average_of_one_mask(name):
    ls,t,x = soup(name)
    was,rng = [bits(l) for l in ls],torch.get_rng_state()
    m = average(ls)
    assert all(same(w, bits(l)) for w,l in zip(was, ls)) and torch.equal(rng, torch.get_rng_state())
    assert list(m.state_dict())==list(ls[0].model.state_dict()) and not m.training and type(m) is type(ls[0].model)
    for n,w in named_weights(m, t.masks).items():
        assert torch.equal(w==0, ~t.masks[n]) or not (w.detach()[~t.masks[n]]!=0).any()
        mean = torch.stack([named_weights(l.model)[n].detach().double() for l in ls]).mean(0).float()
        torch.testing.assert_close(w.detach(), mean)
    assert m.made_of=={f'net {i}':1/3 for i in range(3)} and all(p.grad is None for p in m.parameters())
    m.reset() if hasattr(m, 'reset') else None
    assert m(x).shape==(32,4)

def test_nets_of_a_search_are_told_apart_from_trained_ones():
    l = learner(mlp)
    with l.no_bar(), l.no_logging(): l.fit_lottery(4, rounds=2, search=going_on(), seed=0, keep='all')
    short,last = l.lottery.rounds[1:]
    for nets in ([short,last], [l.lottery.ticket(1, trained=True), last]):
        for make in (lambda: average(nets, learn=l, tol=None), lambda: Ensemble(nets, learn=l)):
            with pytest.warns(UserWarning, match='one of a search.* trained for 2 iterations and not to the end'): make()
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*one of a search')
        average([last, last], learn=l, tol=None)
        ls,*_ = soup('batchnorm')
        Ensemble(ls)

def test_the_average_of_equal_nets_is_that_net():
    ls,*_ = soup('lstm')
    m = average([ls[0]]*3, tol=None)
    assert same(bits(ls[0]), state(m))

def test_batch_norm_has_statistics_of_its_own():
    ls,*_ = soup('batchnorm')
    m,mixed = average(ls),average(ls, norm_dl=False)
    x = torch.stack([o[0] for o in ls[0].dls.train.dataset])
    out = m[0](x)
    torch.testing.assert_close(m[1].running_mean, out.mean((0,2,3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mixed[1].running_mean, torch.stack([l.model[1].running_mean for l in ls]).mean(0))
    assert not torch.equal(m[1].running_mean, mixed[1].running_mean)

def test_rounds_are_pruned_to_the_smallest_mask():
    learn = learner(mlp)
    rs = learn.fit_lottery(1, rounds=3, amount=.4, seed=0, keep='all')
    m = average(rs[1:], learn=learn)
    small = rs[3].masks
    assert all(not (w.detach()[~small[n]]!=0).any() for n,w in named_weights(m, small).items())
    other = average([rs[3],rs[1]], learn=learn)    # in any order
    assert Masks({n:w.detach()!=0 for n,w in named_weights(other, small).items()})==small
    with pytest.raises(ValueError, match='say which by `learn=`'): average(rs[1:])
    ts = [learn.lottery.ticket(k, trained=True) for k in (2,3)]
    assert same(state(average(ts, learn=learn)), state(average(rs[2:], learn=learn)))

def test_greedy_is_never_worse_on_validation():
    learn = learner(drop_bn, metrics=accuracy)
    rs = learn.fit_lottery(2, rounds=3, amount=.4, seed=0, keep='all')
    for mon in ('valid_loss','accuracy'):
        m = average(rs[1:], how='greedy', learn=learn, monitor=mon)
        a,b = (learner(o, learn.dls, cbs=None).evaluate()[mon] for o in (m,average([rs[3]], learn=learn)))
        assert a<=b if mon=='valid_loss' else a>=b
        assert list(m.made_of)[0]=='round 3' and abs(sum(m.made_of.values())-1)<1e-9
    assert len(average(rs[1:], how='greedy', learn=learn, monitor='valid_loss').made_of)>1

def test_held_values_are_kept():
    learn = learner(mlp)
    rs = learn.fit_lottery(1, rounds=1, amount=.4, seed=0, hold='hold_init')
    for i,l in enumerate(ls := [learner(mlp) for _ in range(2)]): l.fit_ticket(rs[1].ticket, 1, seed=i)
    m,t = average(ls),rs[1].ticket
    for n,w in named_weights(m, t.masks).items(): assert torch.equal(w.detach()[~t.masks[n]], t.held[n][~t.masks[n]])

# --- refusals and warnings

def test_a_ticket_of_starting_weights_is_refused():
    ls,t,_ = soup('lstm', 2)
    for f in (average, Ensemble):
        with pytest.raises(ValueError, match='a ticket holds starting weights, not trained ones'):
            f([t,t], learn=ls[0])

def refused(says, f, *args, **kwargs):
    with pytest.raises((ValueError,TypeError), match=says): f(*args, **kwargs)

def test_other_starts_masks_and_nets_cannot_be_averaged():
    a,b = (learner(mlp, seed=i) for i in (0,1))
    for l in (a,b): l.fit(1)
    refused('began at different weights', average, [a,b])
    for l in (a,b): l.prune(.5)
    refused('cross: the first keeps', average, [a,b])
    refused("another architecture: its '0.weight'", average, [a, learner(mlp(16))])
    refused('another architecture: it lacks', average, [a, learner(bias_free)])

def test_wrong_arguments():
    a = learner(mlp)
    for args,says in [((a,), 'list of Learners'), (([a.model],), 'net 0 should be one of Learners'),
                      (([],), 'at least one')]:
        refused(says, average, *args, learn=a)
    refused("'mean' or 'greedy'", average, [a], how='median')
    refused('`tol` should be', average, [a], tol=-1)
    refused('`of` should be', Ensemble, [a], of='mean')
    refused('this is one module', Ensemble, a.model)
    nowhere = learner(mlp, DataLoaders(a.dls.train, device='cpu'))
    refused('tol=None', average, [nowhere,nowhere])
    assert average([nowhere,nowhere], tol=None) is not nowhere.model

@pytest.mark.filterwarnings('default')
def test_a_barrier_is_told():
    ls,t,_ = soup('bias_free', 2, amount=.2)
    for i,l in enumerate(ls):
        l.fit_ticket(t, 20, seed=i, trial=i, reset='random_reinit', lr_max=.05)    # from starts of their own
    far = instability(ls[0], state(ls[0].model), state(ls[1].model), 3, by='loss').path.loss
    assert far[1]>1.2*(far[0]+far[2])/2
    with pytest.warns(BarrierWarning, match=f'the loss is {far[1]:.4g} in the middle'): average(ls)
    with warnings.catch_warnings():
        warnings.simplefilter('error', BarrierWarning)
        average(ls, tol=None)
        average(ls, tol=1e9)

# --- ensembles

def test_predictions_are_averaged_as_the_loss_says():
    ls,_,x = soup('batchnorm')
    outs = torch.stack([l.model.eval()(x) for l in ls])
    e = Ensemble(ls)
    torch.testing.assert_close(e(x).exp(), outs.softmax(-1).mean(0))
    torch.testing.assert_close(Ensemble(ls, of='outputs')(x), outs.mean(0))
    torch.testing.assert_close(Ensemble(ls, of='sigmoid')(x).sigmoid(), outs.sigmoid().mean(0))
    torch.testing.assert_close(Ensemble([l.model for l in ls])(x), outs.mean(0))
    l = learner(e, ls[0].dls, cbs=None)
    torch.testing.assert_close(l.get_preds()[0], outs.softmax(-1).mean(0))
    assert Ensemble([ls[0]], of='outputs')(x).equal(outs[0]) and (e.nets[0] is not ls[0].model)

losses = dict(
    flat=(CrossEntropyLossFlat(), 'softmax',-1), axis=(CrossEntropyLossFlat(axis=1), 'softmax',1),
    torchs=(nn.CrossEntropyLoss(), 'softmax',1), function=(F.cross_entropy, 'softmax',1),
    smooth=(LabelSmoothingCrossEntropyFlat(), 'softmax',-1), focal=(FocalLossFlat(), 'softmax',-1),
    smooth_map=(LabelSmoothingCrossEntropy(), 'softmax',1), focal_map=(FocalLoss(), 'softmax',1),
    partly=(partial(F.cross_entropy, label_smoothing=.1), 'softmax',1),
    binary=(BCEWithLogitsLossFlat(), 'sigmoid',-1), torch_binary=(nn.BCEWithLogitsLoss(), 'sigmoid',-1),
    mse=(MSELossFlat(), 'outputs',-1), own=(lambda a,b: (a-b).abs().mean(), 'outputs',-1))

@pytest.mark.parametrize('name', losses)
def test_what_a_loss_says(name):
    f,*want = losses[name]
    assert list(predictions_of(f))==want

def test_small_probabilities_do_not_vanish():
    a = nn.Linear(1,2)
    with torch.no_grad():
        a.weight.zero_()
        a.bias.copy_(torch.tensor([300.,0.]))
    e = Ensemble([a,a], of='softmax')
    assert torch.allclose(e(torch.zeros(1,1)), torch.tensor([[0.,-300.]]))
    e = Ensemble([a,a], of='sigmoid')
    assert torch.allclose(e(torch.zeros(1,1)), a.bias)

def test_nets_of_several_architectures_outputs_and_inputs():
    class Two(nn.Module):
        def __init__(self, k):
            super().__init__()
            self.l = nn.Linear(8,k)
        def forward(self, x, y=None): return dict(out=self.l(x)[:,:3], more=(self.l(x).sum(), len(x)))
    x,ms = torch.randn(5,8),[Two(4),Two(6)]
    e = Ensemble(ms, of='softmax')
    got,want = e(x, y=3),[m(x) for m in ms]
    torch.testing.assert_close(got['out'].exp(), (want[0]['out'].softmax(-1)+want[1]['out'].softmax(-1))/2)
    torch.testing.assert_close(got['more'][0], (want[0]['more'][0]+want[1]['more'][0])/2)
    assert got['more'][1]==5

def test_an_ensemble_holds_copies():
    "What becomes of a module or of a Learner's net afterwards does not reach it, and they keep mode and gradients"
    m,l,x = drop_bn(),learner(drop_bn, cbs=None),torch.randn(4, 8)
    m(x).sum().backward()
    e = Ensemble([m,l])
    was = e(x)
    assert m[0].weight.grad is not None and m.training
    assert not e.training and all(p.grad is None and not o.training for o in e.nets for p in o.parameters())
    with torch.no_grad():
        for p in [*m.parameters(),*l.model.parameters()]: p.zero_()
    assert torch.equal(e(x), was)

def test_rounds_tickets_and_recurrent_nets():
    l = from_zoo('awd_lstm')
    rs = l.fit_lottery(1, rounds=2, amount=.4, seed=0, keep='all')
    e,f = Ensemble(rs[1:], learn=l),Ensemble([l.lottery.ticket(k, trained=True) for k in (1,2)], learn=l)
    x = l.dls.valid.one_batch()[0]
    def out(m):
        m.reset()
        return m(x)
    assert torch.equal(out(e), out(f)) and torch.equal(out(e), out(e)) and e.of=='softmax'
    assert same(state(e.nets[1]), {k:v for k,v in bits(l).items()})

def test_an_ensemble_shrinks_and_is_written(tmp_path):
    pytest.importorskip('torch_pruning')
    pytest.importorskip('onnxruntime')
    ls,_,x = soup('batchnorm', 2, amount=.9)
    e = Ensemble(ls)
    small = shrink(e, None, x[:2])
    assert sum(p.numel() for p in small.parameters())<sum(p.numel() for p in e.parameters())
    torch.testing.assert_close(small.eval()(x), e(x), rtol=1e-4, atol=1e-5)
    assert learner(small, ls[0].dls,
                   cbs=None).to_onnx(tmp_path/'e').exists()    # compared with the net by `to_onnx` itself

def test_an_average_is_a_net_like_any_other(tmp_path):
    ls,t,x = soup('batchnorm', 2)
    m = average(ls)
    torch.save(m, tmp_path/'m.pth')
    assert torch.equal(torch.load(tmp_path/'m.pth', weights_only=False)(x), m(x))
    assert same(state(deepcopy(m)), state(m))
    l = learner(m, ls[0].dls)
    l.keep_zeros()
    assert l.lottery.masks==t.masks
    l.fit(1)
    assert l.lottery.masks==t.masks

# --- the experiment

class Steps(Callback):
    n = 0
    def after_batch(self): Steps.n += self.training

def test_arms_have_as_many_weights_and_iterations(tmp_path, monkeypatch):
    p = preset('combining-tiny')
    learn = p.learner(0)
    with learn.no_bar(), learn.no_logging(): run = play_main(p, learn, 0, tmp_path, None)
    was = combining._member
    def member(*args):
        l = was(*args)
        l.add_cb(Steps())
        return l
    monkeypatch.setattr(combining, '_member', member)
    dense = run.rounds[0]
    for a,f in p.controls.items():
        Steps.n = 0
        row = f(run, 1).row
        assert Steps.n==row['iterations']==dense['iterations'], a
        assert row['kept']==dense['kept']//(4 if a in ('one','soup') else 1), a
    assert preset('combining-mnist').replicates>=8 and preset('combining-mnist').claims

# --- what of a state has no mean

def spectral(how): return nn.Sequential(how(nn.Linear(8,12)), nn.ReLU(), how(nn.Linear(12,4)))
hows = dict(parametrized=nn.utils.parametrizations.spectral_norm, hook=nn.utils.spectral_norm)

@pytest.mark.parametrize('how', hows)
@pytest.mark.parametrize('way', ['mean','greedy'])
def test_spectral_norms_of_an_average(how, way):
    "The largest singular value of each weight in use is 1; directions of the opposite sign are the same directions"
    net = spectral(hows[how])
    ls = [learner(lambda: deepcopy(net), data(), cbs=None, lr=.01) for _ in range(3)]
    for i,l in enumerate(ls):
        seed_all(l, i)
        l.fit(2)
    other = state(ls[1].model)
    turned = {k:-v if k[-2:] in ('_u','_v') else v for k,v in other.items()}
    load_(ls[1].model, turned)
    m = average(ls, how=way)
    x = ls[0].dls.valid.one_batch()[0]
    m(x)
    for l in (m[0],m[2]): assert float(torch.linalg.matrix_norm(l.weight, 2))==pytest.approx(1, abs=2e-3)
    loss = CrossEntropyLossFlat()(m(x), ls[0].dls.valid.one_batch()[1]).item()
    assert loss<1.2*max(l.evaluate()['valid_loss'] for l in ls)
    p = instability(ls[0], other, turned, alphas=3, by='loss').path.loss
    assert p.notna().all() and p.max()-p.min()<.01, 'one net, whose directions are turned'

def test_a_loss_that_is_nan_is_a_barrier():
    ls,_,_ = soup('batchnorm', 2)
    class Odd(Callback):
        order = 60
        def after_loss(self):
            end = any(torch.equal(self.model[0].weight, w) for w in ws)
            if not (self.training or end): self.learn.loss = self.loss*float('nan')
    ws = [l.model[0].weight.detach().clone() for l in ls]
    ls[0].add_cb(Odd())
    with pytest.warns(UserWarning, match='loss barrier.*nan in the middle'): average(ls)

class Still(Callback):
    "As `BnFreeze`, whatever its norms are"
    def before_train(self):
        for m in self.model.modules():
            if isinstance(m, nn.BatchNorm1d): m.eval()

@pytest.mark.parametrize('again', [False,True], ids=['means','of their own'])
def test_statistics_that_were_held_stay(again):
    "Norms that nobody moved have the statistics that the nets trained with; others get new ones"
    net = nn.Sequential(nn.Linear(8,12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12,4))
    net[1].running_mean.fill_(.3)
    ls = [learner(lambda: deepcopy(net), data(), cbs=[Still()]*(not again), lr=.01) for _ in range(2)]
    for i,l in enumerate(ls):
        seed_all(l, i)
        l.fit(1)
    m = average(ls, tol=None)
    assert (m[1].running_mean==.3).all().item() is not again
    same = average([ls[0],deepcopy(ls[0])])
    assert all(torch.equal(v, same.state_dict()[k]) for k,v in ls[0].model.state_dict().items())

def test_shares_of_a_net_that_is_given_twice():
    ls,_,_ = soup('batchnorm', 1)
    rs = ls[0].lottery.rounds
    m = average([rs[0],rs[0],rs[1]], learn=ls[0], tol=None)
    assert m.made_of=={'round 0':pytest.approx(2/3), 'round 1':pytest.approx(1/3)}

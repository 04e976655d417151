"Tickets carried to another task (1905.07785)"
from dataclasses import replace
import pytest,torch
from torch import nn
from fastai_lottery.arms import transferred
from fastai_lottery.core import named_weights
from fastai_lottery.masks import Masks
from fastai_lottery.nets import resnet_20
from fastai_lottery.experiments import measured,play_seed
from fastai_lottery.presets import preset
from fastai_lottery.resets import state
from fastai_lottery.tickets import Ticket
from fastai_lottery.transfer import transfer

def net(n=4, k=8):
    torch.manual_seed(n)
    return nn.Sequential(nn.Linear(6,k), nn.BatchNorm1d(k), nn.ReLU(), nn.Linear(k,n))
def ticket(m, **kw):
    ws = named_weights(m, ['0.weight','3.weight'])
    return Ticket(Masks({n:torch.rand_like(w)<.5 for n,w in ws.items()}), state(m), {'round':3,'rewind_to':'7it'}, **kw)

@pytest.mark.parametrize('trained', [False,True])
def test_what_is_carried_and_what_stays(trained):
    a,b = net(4),net(2)
    t = ticket(a)
    old = {k:v.clone() for k,v in t.weights.items()}
    late = {k:v+1 for k,v in state(net(4)).items()}
    src = late if trained else t.weights
    was = state(b)
    c = transfer(t, b, late if trained else None, exclude='3')
    assert list(c.masks)==['0.weight'] and torch.equal(c.masks['0.weight'], t.masks['0.weight'])
    for k,v in c.weights.items(): assert torch.equal(v, was[k] if k[0]=='3' else src[k]), k
    assert c.meta['rewind_to']=='init' and c.meta['round']==3, 'a whole training on the target'
    def same(a, b): return all(torch.equal(a[k], v) for k,v in b.items())
    assert same(t.weights, old) and same(was, state(b)), 'nothing is changed in place'
    c.weights['0.weight'].zero_()
    assert t.weights['0.weight'].any() and b[0].weight.any(), 'and nothing is shared'
    c.check(b)

def test_held_values_are_carried_with_their_layer():
    a = net(4)
    t = ticket(a)
    t = replace(t, held={n:torch.full_like(m, .5, dtype=torch.float) for n,m in t.masks.items()})
    c = transfer(t, net(2), exclude='3')
    assert list(c.held)==['0.weight'] and torch.equal(c.held['0.weight'], t.held['0.weight'])

@pytest.mark.parametrize('model,exclude,match', [
    (lambda: net(2), (), r"'3.weight' has shape \(4, 8\), the target \(2, 8\); '3.bias' has shape"),
    (lambda: net(4, 9), '3', r"'0.weight' has shape \(8, 6\), the target \(9, 6\)"),
    (lambda: nn.Sequential(nn.Linear(6,8)), (), "'3.weight' is not in the target"),
    (lambda: nn.Sequential(*net(4), nn.Linear(4,4)), (), "'4.weight' is missing"),
    (lambda: net(2), ['3','head*'], r"'head\*' in `exclude` matches no parameter"),
    (lambda: net(2), '*', "should leave a pruned layer to carry")])
def test_errors_name_what_does_not_fit(model, exclude, match):
    with pytest.raises(ValueError, match=match): transfer(ticket(net(4)), model(), exclude=exclude)

def said(*args, **kwargs):
    with pytest.raises(ValueError) as e: transfer(*args, **kwargs)
    return str(e.value)

def test_errors_name_each_thing_once():
    "A weight of another size has a mask of another size, which is no second fault; a mask alone is one"
    a,b = ticket(net(4)),net(2, 9)
    e = said(a, b)
    names = [n for n in state(b) if n!='1.num_batches_tracked']
    assert [e.count(repr(n)) for n in names]==[1]*len(names) and 'the mask of' not in e
    e = said(a, net(4, 9), state(net(4, 9)))
    assert "model: the mask of '0.weight' has shape (8, 6), the target (9, 6); the mask of '3.weight' has" in e
    e = said(a, net(4, 9), state(net(4, 9)), exclude='3')
    assert "model: the mask of '0.weight' has shape" in e and "'3.weight'" not in e
    e = said(a, nn.Linear(6, 8))
    assert all(e.count(repr(n))==1 for n in ('weight','0.weight','3.weight'))

def test_preset_plays_all_starts_on_the_target(tmp_path):
    p = preset('transfer-digits')
    p = replace(p, settings={**p.settings, 'n_epoch':1, 'rounds':2}, levels=(2,))
    df = play_seed(p, 0, tmp_path/'seed_00')
    ms = measured(tmp_path)
    assert df.arm.tolist()==['dense','ticket','ticket'] and ms['mask'].tolist()==['ticket']*3+['none']
    assert ms.start.tolist()==['trained','initial','fresh','fresh']
    assert ms.density.iloc[:3].nunique()==1 and ms.density.iloc[0]<.7 and ms.density.iloc[3]==1
    assert ms.test_accuracy.between(0,1).all() and ms.test_accuracy.nunique()>1
    again = play_seed(p, 0, tmp_path/'seed_00')
    assert again.equals(df) and measured(tmp_path).equals(ms)

def test_a_net_of_cifar_takes_the_grey_images_of_its_preset(monkeypatch):
    "Images of (1,28,28) come as (3,32,32), with the ground that was around them"
    import fastai_lottery.presets as P
    from fastai_lottery.data import digits
    def grey(bs, **kw):
        dls = digits(bs=bs, n_train=200, **kw)
        for dl in dls.loaders: dl.dataset.x = nn.functional.interpolate(dl.dataset.x, (28,28))
        return dls
    monkeypatch.setattr(P, 'fashion_mnist', grey)
    x,_ = P._fashion_32(seed=0).one_batch()
    assert x.shape[1:]==(3,32,32) and torch.equal(x[:,0], x[:,2]) and (x[:,:,:2]==x[:,:,:1,:1]).all()
    assert resnet_20()(x[:4]).shape==(4,10)

def test_unknown_start():
    with pytest.raises(ValueError, match="`start` should be one of trained, initial, fresh; got 'late'"):
        transferred(None, 0, None, None, 'late')

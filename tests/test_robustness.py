"Corruptions, calibration, data held out; masks found on halves of the data"
import pytest,torch
from torch import nn
from fastcore.foundation import L
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat,MSELossFlat
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastai_lottery.all import *
from fastai_lottery.presets import preset
from fastai_lottery.robust import half_of
from fastai_lottery.robustness import ECE,corruptions,falls,robustness

def learner(n_in=1, cb=True, **kw):
    set_seed(0)
    x,y = torch.rand(160, n_in, 8, 8),torch.randint(0, 3, (160,))
    x[:,:,:4] += y[:,None,None,None]
    ds = list(zip(x.mul(5).sub(2), y))
    dls = DataLoaders(*(DataLoader(ds[i:i+n], bs=32) for i,n in ((0,64),(64,32),(96,64))), device='cpu')
    net = nn.Sequential(nn.Conv2d(n_in, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    return Learner(dls, net, loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=[LotteryCallback()]*cb, **kw)

@pytest.mark.parametrize('name', corruptions)
@pytest.mark.parametrize('shape', [(5,1,8,8), (5,3,8,12), (5,2,9,8)], ids=['grey','colour','two'])
def test_corruptions_keep_shape_and_grow(name, shape):
    torch.manual_seed(0)
    x = torch.rand(shape)
    far = []
    for s in range(1, 6):
        torch.manual_seed(1)
        new = corruptions[name](x, s)
        assert new.shape==x.shape and new.min()>=0 and new.max()<=1+1e-6
        far.append(float((new-x).pow(2).mean()))
    assert far[0]>0 and all(a<b for a,b in zip(far, far[1:])) or name=='shift' and far[0]<far[-1]

def test_all_as_before_and_the_same_again():
    learn = learner()
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    was,rng,metrics = {k:v.clone() for k,v in learn.model.state_dict().items()},torch.get_rng_state(),list(learn.metrics)
    a,b = robustness(learn, strengths=(1,5)),robustness(learn, strengths=(1,5))
    assert a.equals(b) and torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, was[k]) for k,v in learn.model.state_dict().items())
    assert list(learn.metrics)==metrics and a.groupby('data').size().to_dict()=={'valid':9,'test':9}

def test_seeds_differ_in_what_is_drawn():
    learn = learner()
    a,b = [robustness(learn, corruptions='noise', strengths=(5,), seed=s).loss.iloc[1] for s in (0,1)]
    assert a!=b

def test_own_corruption_sees_pixels_from_0_to_1():
    seen = []
    def f(x, s):
        seen.append((float(x.min()),float(x.max()),s))
        return x
    learn = learner()
    df = robustness(learn, corruptions=dict(mine=f), strengths=(7,))
    assert min(o[0] for o in seen)==0 and max(o[1] for o in seen)==1 and {o[2] for o in seen}=={7}
    assert df[df.corruption=='mine'].loss.to_numpy()==pytest.approx(df[df.corruption=='none'].loss.to_numpy(), rel=1e-4)

def test_rounds_are_looked_at_and_put_back():
    learn = learner()
    with learn.no_bar(), learn.no_logging(): rounds = learn.fit_lottery(2, rounds=2, amount=.5, seed=0, keep='all')
    was,masks = {k:v.clone() for k,v in learn.model.state_dict().items()},learn.lottery.masks
    df = robustness(learn, rounds=[0,2], corruptions='contrast')
    assert all(torch.equal(v, was[k]) for k,v in learn.model.state_dict().items()) and learn.lottery.masks==masks
    clean = df[(df.corruption=='none')&(df.data=='valid')].set_index('round').loss
    assert clean[2]==pytest.approx(rounds[2].row['valid_loss'], rel=1e-5)
    assert clean[0]==pytest.approx(rounds[0].row['valid_loss'], rel=1e-5)
    t = falls(df)
    assert list(t.columns)==['valid','to test','to contrast'] and list(t.index)==[0,2]

class Amp(MixedPrecision):
    "fastai's, on the CPU"
    def before_fit(self):
        self.autocast,self.scales = torch.autocast('cpu', dtype=torch.bfloat16),L()
        self.learn.scaler = torch.amp.GradScaler('cpu', enabled=False)
    before_validate = before_fit

def test_in_mixed_precision_images_are_corrupted_in_single_precision():
    "What the corruption sees and what the model says; figures are near those of single precision, and all is as before"
    seen,kinds = [],set()
    def mine(x, s):
        seen.append((x.dtype,torch.is_autocast_enabled('cpu')))
        return corruptions['noise'](x, s)
    class Kind(Callback):
        order = 9
        def after_pred(self): kinds.add(self.pred.dtype)
    learn = learner()
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    was,plain = {k:v.clone() for k,v in learn.model.state_dict().items()},robustness(learn, corruptions=dict(mine=mine), strengths=(3,))
    seen.clear()
    learn.add_cbs([Amp(), Kind()])
    half = robustness(learn, corruptions=dict(mine=mine), strengths=(3,))
    assert set(seen)=={(torch.float32,False)} and kinds=={torch.bfloat16} and list(half.columns)==list(plain.columns)
    assert not half.loss.equals(plain.loss) and half.loss.to_numpy()==pytest.approx(plain.loss.to_numpy(), rel=.05)
    assert half.ece.notna().all() and all(torch.equal(v, was[k]) for k,v in learn.model.state_dict().items())
    assert not torch.is_autocast_enabled('cpu')

def test_ece_by_hand():
    p = torch.tensor([[.9,.1],[.9,.1],[.4,.6],[.4,.6]])
    y = torch.tensor([0,1,1,1])
    m = ECE(10)
    m.add(p, (y,))
    assert m.value==pytest.approx(.5*abs(.9-.5)+.5*abs(.6-1), abs=1e-6)    # two bins of two
    m.reset()
    assert m.value!=m.value

@pytest.mark.parametrize('how,says', [(dict(corruptions='nois'), 'noise'), (dict(corruptions=dict(a=3)), '`corruptions` should be')],
                         ids=['name','function'])
def test_what_is_wrong_is_said(how, says):
    with pytest.raises(ValueError, match=says): robustness(learner(), **how)

def test_no_images():
    dl = DataLoader(list(zip(torch.randn(8, 5), torch.zeros(8).long())), bs=4)
    learn = Learner(DataLoaders(dl, dl, device='cpu'), nn.Linear(5, 2), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    with pytest.raises(ValueError, match='corruptions are for images'): robustness(learn)
    assert len(robustness(learn, corruptions=()))==1

def test_halves_have_nothing_in_common():
    dls = digits(seed=0, device='cpu')
    a,b = half_of(dls, 0, 3).train.dataset,half_of(dls, 1, 3).train.dataset
    assert len(a)==len(b)==len(dls.train.dataset)//2
    one = {o.numpy().tobytes() for o in a.x}&{o.numpy().tobytes() for o in b.x}
    assert len(one)<=1 and (a.y.bincount()-b.y.bincount()).abs().max()<=1    # two images of the set may be equal

def test_a_mask_of_each_half(tmp_path):
    play_seed(preset('halves-tiny'), 0, tmp_path/'seed_0', device='cpu')
    df = measured(tmp_path)
    assert list(df['mask'])==['own half','other half','random'] and df.density.nunique()==1

@pytest.mark.parametrize('strengths', [(0,1),(6,),6,(1.5,),(True,),'3'])
def test_a_strength_that_there_is_not(strengths):
    with pytest.raises(ValueError, match='`strengths` of .* from 1 to 5'):
        robustness(learner(), corruptions=['contrast'], strengths=strengths)

def test_one_strength_and_those_of_a_function_of_ones_own():
    learn = learner()
    df = robustness(learn, corruptions='contrast', strengths=3)
    assert df.strength.tolist().count(3)==len(df)/2
    seen = []
    def dim(x, s):
        seen.append(s)
        return x*s
    robustness(learn, corruptions=dict(dim=dim), strengths=(0,.5))
    assert {*seen}=={0,.5}

def in_images(kind):
    "A Learner whose targets lie in the images"
    from fastai.vision.core import TensorBBox,TensorImage,TensorMask,TensorPoint
    set_seed(0)
    x = torch.rand(48, 1, 8, 8)
    points = lambda n: torch.rand(48, n, 2)*2-1
    y = dict(masks=TensorMask((x[:,0]>.5).long()), plain=(x[:,0]>.5).long(), images=TensorImage(1-x), points=TensorPoint(points(3)),
             boxes=TensorBBox(torch.rand(48, 2, 4)))[kind]
    ds = list(zip(x, y))
    dls = DataLoaders.from_dsets(ds[:32], ds[32:], bs=8, device='cpu')
    out = dict(masks=2, plain=2, images=1).get(kind)
    net = nn.Conv2d(1, out, 1) if out else nn.Sequential(nn.Flatten(), nn.Linear(64, y[0].numel()), nn.Unflatten(1, tuple(y[0].shape)))
    loss = CrossEntropyLossFlat(axis=1) if out==2 else MSELossFlat()
    return Learner(dls, net, loss_func=loss, metrics=[])

@pytest.mark.parametrize('kind', ['masks','plain','images','points','boxes'])
def test_targets_that_lie_in_images_are_not_left_behind(kind):
    learn = in_images(kind)
    with pytest.warns(UserWarning, match="'shift' would move images away from their targets"): df = robustness(learn, strengths=(5,))
    assert df.corruption.tolist()==['none','noise','blur','contrast']
    for asked in ('shift', dict(mine=corruptions['shift'])):
        with pytest.raises(ValueError, match='would move images away from their targets'): robustness(learn, corruptions=asked)
    assert len(robustness(learn, corruptions=dict(own=lambda x, s: x), strengths=(1,)))==2

class Scaled(Callback):
    "Makes the images that the net is given, as augmentation on a batch does"
    order = 0
    def before_batch(self): self.learn.xb = ((self.xb[0]+2)*3-7,)

def test_images_that_a_callback_makes_are_measured_as_the_net_sees_them():
    learn = learner()
    learn.add_cb(Scaled())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    df = robustness(learn, corruptions={'identity':lambda x,s: x}, strengths=(1,)).set_index(['data','corruption'])
    for o in ('valid','test'):
        a,b = df.loc[(o,'none')],df.loc[(o,'identity')]
        assert a.loss==pytest.approx(b.loss, abs=1e-5) and a.accuracy==b.accuracy

def test_the_optimizer_keeps_its_moments():
    learn = learner()
    with learn.no_bar(), learn.no_logging():
        learn.fit_lottery(1, rounds=1, seed=0, keep='all')
        p = learn.model[0].weight
        was = {k:torch.as_tensor(v).clone() for k,v in learn.opt.state[p].items()}
        hypers = [dict(h) for h in learn.opt.hypers]
        robustness(learn, rounds=[0,1], corruptions='contrast', strengths=(1,))
    now = learn.opt.state[p]
    assert 'sqr_avg' in was and all(torch.equal(torch.as_tensor(now[k]), v) for k,v in was.items())
    assert [dict(h) for h in learn.opt.hypers]==hypers

def test_calibration_of_a_net_that_ends_in_a_softmax():
    "Its outputs are probabilities already"
    a,b = learner(),learner()
    b.model.add_module('5', nn.Softmax(1))
    a.loss_func,b.loss_func = nn.CrossEntropyLoss(),lambda p,y: nn.functional.nll_loss(p.log(), y)
    x,y = [robustness(l, corruptions=()) for l in (a,b)]
    torch.testing.assert_close(torch.tensor(x.ece.values), torch.tensor(y.ece.values))
    assert x.ece.min()>0

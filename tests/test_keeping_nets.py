"Nets that keep what a forward pass has made, as fastai's U-Net does: they are copied, searched again, shrunk and combined as others are"
from copy import deepcopy
import pytest
from fastai.vision.all import DynamicUnet,TensorImage,TensorMask,foreground_acc
from nets import *
from fastai_lottery.arms import *
from fastai_lottery.channels import copy_of,net_copy
from fastai_lottery.combine import *
from fastai_lottery.data import digits
from fastai_lottery.labels import weights_in
from fastai_lottery.all import *
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]

class Keeps(nn.Module):
    "Features in an attribute, a list with a tuple, a dict that a hook fills, and an object of its own"
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1),
                                  nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head,self.aux,self.seen,self.by = nn.Linear(16, 10),None,[],{}
        self.other = SimpleNamespace(last=None)
        self.body[0].register_forward_hook(self.note)
    def note(self, m, i, o): self.by['first'] = o
    def forward(self, x):
        f = self.body(x)
        self.aux,self.seen,self.other.last = f,[f,(2*f,)],f.sum()
        return self.head(f)

def keeping(units='weights'):
    set_seed(0)
    return still(Learner(digits(seed=0, device='cpu'), Keeps(), metrics=accuracy, cbs=LotteryCallback(units=units)))

def u_net(units='weights'):
    set_seed(0)
    x = torch.rand(24, 3, 16, 16)
    ds = list(zip(TensorImage(x), TensorMask((x.mean(1)>.5).long())))
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
    dls = DataLoaders.from_dsets(ds[:16], ds[16:], bs=4, device='cpu')
    net = DynamicUnet(body, 2, (16,16))
    return still(Learner(dls, net, loss_func=CrossEntropyLossFlat(axis=1), metrics=foreground_acc, cbs=LotteryCallback(units=units)))

def still(learn):
    learn.remove_cbs(learn._grab_cbs(ProgressCallback))
    learn.logger = noop
    return learn

both = pytest.mark.parametrize('make', [keeping,u_net])

def graph(o):
    "Tensors with a graph that are held by modules, by hooks of theirs and by what these hold"
    found,seen,todo = [],set(),[o]
    while todo:
        v = todo.pop()
        if id(v) in seen or isinstance(v, (type,str,int,float,type(None))): continue
        seen.add(id(v))
        if torch.is_tensor(v): found += [v]*(v.grad_fn is not None)
        elif isinstance(v, dict): todo += v.values()
        elif isinstance(v, (list,tuple,set,L)): todo += list(v)
        elif hasattr(v, '__self__') and not isinstance(v.__self__, type(torch)): todo.append(v.__self__)
        elif hasattr(v, '__dict__'): todo += vars(v).values()
    return found

@both
def test_a_copy(make):
    "`deepcopy` refuses such a net; the copy has no graph, its hooks fill its own places, and says the same"
    learn = make()
    learn.fit(1)
    xb = learn.dls.train.one_batch()[0]
    learn.model(xb)
    with pytest.raises(RuntimeError, match='graph leaves'): deepcopy(learn.model)
    assert graph(learn.model)
    m,old = copy_of(learn.model),{id(t) for t in graph(learn.model)}
    assert not graph(m)
    assert not {p.data_ptr() for p in m.parameters()}&{p.data_ptr() for p in learn.model.parameters()}
    m(xb)
    assert graph(m) and {id(t) for t in graph(learn.model)}==old, 'what the copy makes stays in the copy'
    assert torch.equal(m.eval()(xb), learn.model.eval()(xb))

def test_what_is_shared_in_a_net_is_shared_in_its_copy():
    net = Keeps()
    net(torch.rand(2, 1, 8, 8))
    m = net_copy(net)
    assert m.aux is m.seen[0] and m.aux is not net.aux and torch.equal(m.aux, net.aux)

@both
def test_another_lottery_of_its_start(make, tmp_path):
    learn,how = make(),dict(n_epoch=1, lr_max=.01)
    kw = dict(rounds=2, amount=.5, seed=0, test_dl=learn.dls.valid, path=tmp_path)
    rs = learn.fit_lottery(**how, **kw)
    run = Run(learn, rs, how, lambda r: weights_in(tmp_path/f'round_{r:02d}')[0], 0)
    learn.model(learn.dls.train.one_batch()[0])
    assert graph(learn.model)
    assert searched(run, 2, 2).masks.hash()==rs[2].masks.hash(), 'the same prunes from the same start'

@both
def test_tasks_and_averages(make):
    learn = make()
    learn.fit_lottery(1, rounds=1, amount=.5, seed=0, keep='all')
    xb = learn.dls.train.one_batch()[0]
    own = learn.model.eval()(xb)
    assert graph(learn.model)
    assert torch.allclose(Ensemble([learn,learn]).eval()(xb).softmax(1), own.softmax(1), atol=1e-5)
    soup = average(learn.lottery.rounds, learn=learn, tol=None)
    assert not graph(soup) and soup(xb).shape==own.shape
    learn.freeze_kept()
    learn.fit(1)

@pytest.mark.extra
@both
def test_shrunk(make, tmp_path):
    learn = make(units='channels')
    learn.fit_lottery(1, rounds=1, amount=.4, seed=0)
    xb,n = learn.dls.valid.one_batch()[0],sum(p.numel() for p in learn.model.parameters())
    want = learn.model.eval()(xb)
    assert graph(learn.model)
    learn.shrink()
    assert sum(p.numel() for p in learn.model.parameters())<.8*n
    assert torch.allclose(learn.model.eval()(xb), want, atol=1e-5)
    learn.to_onnx(tmp_path/'net.onnx')
    learn.fit(1)

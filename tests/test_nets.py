"The papers' nets, their optimizer and their schedule"
import pickle,warnings
from copy import deepcopy
from functools import partial
import numpy as np,pytest,torch
from torch import nn
import torch.nn.functional as F
from nets import *
from fastai_lottery.data import digits
from fastai_lottery.nets import *
from fastai_lottery.presets import presets
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]

def count(m): return sum(p.numel() for p in m.parameters())
def weights(m, include=None): return sum(p.numel() for p in named_weights(m, prunable(m, include=include)).values())
all_nets = dict(
    lenet=lambda: lenet_300_100(),
    conv2=lambda: conv_net(2), conv4=lambda: conv_net(4), conv6=lambda: conv_net(6),
    conv2_drop=lambda: conv_net(2, width=16, dropout=.5),
    resnet=lambda: resnet_20(),
    vgg16=lambda: vgg(16, width=32), vgg19=lambda: vgg(19, width=32),
    vgg_in=lambda: vgg(16, width=32, init=kaiming_),
    vgg_out=lambda: vgg(16, width=32, init=partial(kaiming_, mode='fan_out')))
convs = {2:(38_592,4_300_992), 4:(259_776,2_425_024), 6:(1_144_512,2_261_184)}

# --- sizes: figure 2 of 1803.03635

def test_lenet_counts(): assert (weights(lenet_300_100()),count(lenet_300_100()))==(266_200,266_610)

@pytest.mark.parametrize('n', convs)
def test_conv_counts(n):
    "38K, 260K, 1.1M in convolutions, of 4.3M, 2.4M, 2.26M"
    m = conv_net(n)
    assert (weights(m,'conv*'),weights(m))==convs[n]
    assert count(m)==convs[n][1]+sum(64*2**(i//2) for i in range(n))+256+256+10     # biases
    pools = [k for k,_ in m.named_children() if k.startswith('pool')]
    names = {k.split('.')[0] for k,_ in m.named_parameters()}
    assert len(pools)==n//2 and names=={*(f'conv{i+1}' for i in range(n)),'fc1','fc2','out'}

def test_resnet_counts():
    "274K with batch norm's running statistics, of which 270K in convolutions"
    m = resnet_20()
    assert weights(m, ['conv1','blocks'])==270_256 and count(m)==272_474
    assert sum(v.numel() for v in m.state_dict().values() if v.is_floating_point())==274_042
    assert sum(isinstance(o,(nn.Conv2d,nn.Linear)) for k,o in m.named_modules() if 'downsample' not in k)==20
    names = prunable(m, exclude=['fc','*downsample*'])
    assert len(names)==19 and not [n for n in names if 'downsample' in n or n.startswith('fc')]
    assert weights(m, '*downsample*')==16*32+32*64

@pytest.mark.parametrize('depth,n_conv', [(16,13),(19,16)])
def test_vgg_counts(depth, n_conv):
    m = vgg(depth)
    chans = [64]*2+[128]*2+[256]*(3 if depth==16 else 4)+[512]*(6 if depth==16 else 8)
    by_hand = sum(9*a*b for a,b in zip([3]+chans, chans))
    assert weights(m,'conv*')==by_hand and count(m)==by_hand+sum(3*c for c in chans)+512*10+10
    assert round(count(m)/1e6, 1)=={16:14.7,19:20.0}[depth]
    assert sum(isinstance(o,nn.Conv2d) for o in m.modules())==n_conv
    assert prunable(m, exclude='fc')==[f'conv{i+1}.weight' for i in range(n_conv)]

# --- shapes

def shapes(m, x):
    "Shape behind each child"
    res = {}
    for k,o in m.eval().named_children():
        x = o(x)
        res[k] = tuple(x.shape[1:])
    return res

def test_conv6_shapes():
    s = shapes(conv_net(6), torch.randn(1,3,32,32))
    want = dict(conv2=(64,32,32), pool1=(64,16,16), conv4=(128,16,16), pool2=(128,8,8), conv6=(256,8,8),
                pool3=(256,4,4),
                flat=(4096,), fc1=(256,), fc2=(256,), out=(10,))
    assert {k:s[k] for k in want}==want

def test_resnet_shapes():
    m = resnet_20()
    want = [(16,32,32)]*3+[(32,16,16)]*3+[(64,8,8)]*3
    assert shapes(m.blocks, torch.randn(1,16,32,32))=={str(i):o for i,o in enumerate(want)}
    assert shapes(m, torch.randn(1,3,32,32))['flat']==(64,)

def test_vgg_shapes():
    s = shapes(vgg(19, width=8), torch.randn(1,3,32,32))
    assert [s[f'pool{i}'] for i in (1,2,3,4)]==[(8,16,16),(16,8,8),(32,4,4),(64,2,2)] and 'pool5' not in s
    assert s['flat']==(64,)

@pytest.mark.parametrize('n,size', [(2,2),(2,9),(4,7),(4,31),(6,8),(6,28)])
def test_conv_on_odd_sizes(n, size):
    assert conv_net(n, width=4, n_in=1, size=size, n_out=7)(torch.randn(3,1,size,size)).shape==(3,7)

@pytest.mark.parametrize('size', [16,17,33,47])
@pytest.mark.parametrize('f', [resnet_20,vgg])
def test_any_size(f, size): assert f(width=4, n_in=1, n_out=7)(torch.randn(2,1,size,size)).shape==(2,7)

def test_block_is_a_residual():
    "With both convolutions at zero a block passes on what comes in, and the first block of a stage what `downsample` makes of it"
    m,x = resnet_20().eval(),torch.rand(2,16,8,8)
    for b in m.blocks:
        nn.init.zeros_(b.conv1.weight)
        nn.init.zeros_(b.conv2.weight)
    assert torch.equal(m.blocks[0](x), x) and torch.equal(m.blocks[3](x), m.blocks[3].downsample(x).relu())

def test_relu_between_layers():
    "Each convolution and hidden layer is followed by its ReLU (after the norm), and the last layer by nothing"
    for m in (conv_net(4), conv_net(2, dropout=.5), vgg(16, width=4)):
        ks = [type(o) for o in m.children()]
        for i,k in enumerate(ks[:-1]):
            if k in (nn.Conv2d,nn.Linear): assert ks[i+1+(ks[i+1] is nn.BatchNorm2d)] is nn.ReLU
        assert ks[-1] is nn.Linear

def test_dropout_is_behind_hidden_linear_layers():
    m = conv_net(4, dropout=.5)
    ks = [k for k,_ in m.named_children()]
    assert [ks[ks.index(d)-1] for d in ('drop1','drop2')]==['relu_fc1','relu_fc2']
    assert {o.p for o in m.modules() if isinstance(o,nn.Dropout)}=={.5}
    assert not [o for o in conv_net(4).modules() if isinstance(o,nn.Dropout)]
    assert count(m)==count(conv_net(4)) and prunable(m)==prunable(conv_net(4))

@pytest.mark.parametrize('f,say', [
    (lambda: conv_net(3), '`n_conv` should be 2 or 4 or 6; got 3'),
    (lambda: conv_net(6, size=7), '`size` should be at least 8 for the 3 pools of Conv-6; got 7'),
    (lambda: vgg(11), '`depth` should be 16 or 19; got 11'),
    (lambda: kaiming_(nn.Linear(2,2), 'fan'), "`mode` should be 'fan_in' or 'fan_out'; got 'fan'")])
def test_errors_of_nets(f, say):
    with pytest.raises(ValueError) as e: f()
    assert say in str(e.value)

# --- initialisation

def fans(w): return w[0].numel(), w.shape[0]*(w[0,0].numel() if w.ndim>2 else 1)
def kaiming_std(i, w): return (2/fans(w)[i])**.5 if w.ndim>2 else .01
want_std = dict(vgg_in=partial(kaiming_std, 0), vgg_out=partial(kaiming_std, 1))
def glorot_std(w): return (2/sum(fans(w)))**.5

@pytest.mark.parametrize('name', all_nets)
def test_spread(name):
    "Gaussian, of the spread that the paper's initialiser has, and biases at 0"
    torch.manual_seed(0)
    m = all_nets[name]()
    for n,p in ((n,p.detach()) for n,p in m.named_parameters()):
        if p.ndim>1:
            sd = want_std.get(name, glorot_std)(p)
            assert abs(float(p.std())/sd-1)<4/(2*p.numel())**.5, n
            if p.numel()<=3000: continue
            within = float((p.abs()<sd).float().mean())
            assert abs(within-.6827)<.03 and float(p.abs().max())>2.5*sd, n     # not uniform
        elif n.endswith('bias'): assert not p.any(), n

@pytest.mark.parametrize('name', all_nets)
def test_fresh_draw(name):
    "A fresh draw: other weights, of the same spread; norms as they were; the net and the global random numbers untouched"
    torch.manual_seed(0)
    m = all_nets[name]()
    for o in m.modules():
        if isinstance(o, nn.BatchNorm2d):
            nn.init.constant_(o.weight, .5)
            o.running_mean.fill_(3)
    w_i,names,rng = state(m),prunable(m),torch.get_rng_state()
    w_n = fresh(m, torch.Generator().manual_seed(1), w_i=w_i, names=names)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_draw(w_n, w_i, names)
    for k in w_i: assert ((w_n[k]!=w_i[k]).float().mean()>.99) if k in names else torch.equal(w_n[k], w_i[k]), k
    assert torch.equal(rng, torch.get_rng_state()) and all(torch.equal(v, m.state_dict()[k]) for k,v in w_i.items())
    again = fresh(m, torch.Generator().manual_seed(1), w_i=w_i, names=names)
    assert all(torch.equal(again[k], w_n[k]) for k in w_n)
    for k in names:
        if w_n[k].numel()>3000: assert abs(float(w_n[k].std())/want_std.get(name, glorot_std)(w_n[k])-1)<.06, k

def _language(tied):
    from fastai.text.models import AWD_LSTM,get_language_model
    from fastai.text.all import awd_lstm_lm_config
    return get_language_model(AWD_LSTM, 50, dict(awd_lstm_lm_config, emb_sz=24, n_hid=40, n_layers=2, tie_weights=tied))

def _classifier():
    from fastai.text.models import AWD_LSTM,get_text_classifier
    from fastai.text.all import awd_lstm_clas_config
    return get_text_classifier(AWD_LSTM, 50, 3, config=dict(awd_lstm_clas_config, emb_sz=24, n_hid=40, n_layers=2))

def _table():
    from fastai.tabular.model import TabularModel
    return TabularModel([(40,24),(30,16)], 3, 2, [64,32])

by_hand = dict(tied=partial(_language, True), untied=partial(_language, False), classifier=_classifier, table=_table)
@pytest.mark.parametrize('name', by_hand)
def test_nets_of_fastai_are_drawn_as_they_were_built(name):
    "Their embeddings are drawn in the constructor, otherwise than `nn.Embedding` draws"
    torch.manual_seed(0)
    m = by_hand[name]()
    w_i,names,gen = state(m),prunable(m),torch.Generator().manual_seed(1)
    w_n = fresh(m, gen, w_i=w_i, names=names)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_draw(w_n, w_i, names)
    for k in names:
        assert (w_n[k]!=w_i[k]).float().mean()>.95, k
        assert .8<float(w_n[k].std()/w_i[k].std())<1.25 and .7<float(w_n[k].abs().max()/w_i[k].abs().max())<1.4, k
    for k in w_i:    # a decoder's bias begins at 0
        if k.endswith('decoder.bias'): assert torch.equal(w_n[k], w_i[k])

def test_a_net_that_is_built_again_is_drawn_as_it_was():
    "What the warning, and the error, say to do"
    from fastai.vision.models.xresnet import xresnet18
    from fastai.vision.learner import create_body,create_head
    def build():
        body = partial(xresnet18, widen=.25)(pretrained=False)
        return nn.Sequential(create_body(body, pretrained=False, cut=-4), create_head(128, 5))
    torch.manual_seed(0)
    m = build()
    w_i,names,gen = state(m),prunable(m),torch.Generator().manual_seed(1)
    with pytest.warns(UserWarning, match='load_state_dict[(]build'): check_draw(fresh(m, gen, None, w_i, names), w_i, names)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        w_n = fresh(m, gen, lambda m: m.load_state_dict(build().state_dict()), w_i, names)
        check_draw(w_n, w_i, names)
    for k in names:
        if w_n[k].numel()>500: assert (w_n[k]!=w_i[k]).all() and abs(float(w_n[k].std()/w_i[k].std())-1)<.2, k

drawn_nets = {getattr(p.model, 'func', p.model):p.model for p in presets.values()}
@pytest.mark.parametrize('model', drawn_nets.values(), ids=[f.__name__ for f in drawn_nets])
def test_nets_of_presets_are_drawn_as_they_were_built(model):
    "Else a control with new weights would be another net's"
    if 'bert' in getattr(model, 'func', model).__name__: pytest.importorskip('transformers', reason='needs the extra `text`')
    m = model()
    w_i,names = state(m),prunable(m)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_draw(fresh(m, torch.Generator().manual_seed(1), getattr(m, 'init', None), w_i, names), w_i, names)

def test_kaiming_modes_differ():
    torch.manual_seed(0)
    a = vgg(16, width=16, init=kaiming_).conv3.weight
    torch.manual_seed(0)
    b = vgg(16, width=16, init=partial(kaiming_, mode='fan_out')).conv3.weight
    assert abs(float(a.std()/b.std())-2**.5)<.01       # 16 → 32 channels

def test_reinit_control_trains_without_warning():
    learn = Learner(digits(seed=0), conv_net(2, width=4, n_in=1, size=8), cbs=LotteryCallback())
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        rs = learn.fit_lottery(1, rounds=1, scope={'conv*':.5,'out':.5}, seed=0, lr_max=1e-3)
        learn.fit_ticket(rs[1].ticket, 1, reset='random_reinit', seed=0, lr_max=1e-3)
    m = learn.lottery.masks
    want = dict(conv1=.11, conv2=.1, fc1=.2, out=.1)
    assert {n:round(1-float(m[f'{n}.weight'].float().mean()), 2) for n in want}==want

@pytest.mark.parametrize('name', all_nets)
def test_copies_and_pickles(name):
    m = all_nets[name]().eval()
    x = torch.randn(2,1,28,28) if name=='lenet' else torch.randn(2,3,32,32)
    for o in (deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert torch.equal(o(x), m(x))
        o.reset_parameters()

def test_a_slice_keeps_its_weights():
    m = conv_net(2, width=4)
    part = m[:3]
    assert part.conv1 is m.conv1 and list(dict(part.named_children()))==['conv1','relu1','conv2'] and m[0] is m.conv1
    w = m.conv1.weight.clone()
    m[:3]
    assert torch.equal(m.conv1.weight, w)

# --- SGD

class Bn(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.bn,self.b = nn.Linear(8,16),nn.BatchNorm1d(16),nn.Linear(16,4)
    def forward(self, x): return self.b(self.bn(self.a(x)).relu())

class Batches(Callback):
    "What the net was given"
    def before_fit(self): self.seen = []
    def before_batch(self):
        if self.training: self.seen.append((self.x.clone(), self.y.clone()))

def by_torch(m, batches, **kwargs):
    opt = torch.optim.SGD(m.parameters(), **kwargs)
    for x,y in batches:
        opt.zero_grad()
        F.cross_entropy(m(x), y).backward()
        opt.step()
    return m.state_dict()

@pytest.mark.parametrize('wd_bn_bias', [False,True])
@pytest.mark.parametrize('how', ['fit','learner','opt'])
def test_sgd_is_torchs(how, wd_bn_bias):
    "Momentum .9 and decay of the gradient's kind, of all parameters, wherever the decay is given"
    torch.manual_seed(0)
    m,wd = Bn(),.1
    m0 = deepcopy(m)
    def given(where): return dict(wd=wd) if how==where else {}
    learn = Learner(data(), m, loss_func=F.cross_entropy, lr=.05, cbs=Batches(), opt_func=partial(sgd, **given('opt')),
                    wd_bn_bias=wd_bn_bias, **given('learner'))
    with learn.no_bar(), learn.no_logging(): learn.fit(3, lr=.02, **given('fit'))
    assert learn.opt.hypers[0]['wd']==wd and learn.opt.hypers[0]['mom']==.9 and len(learn.batches.seen)==12
    want = by_torch(m0, learn.batches.seen, lr=.02, momentum=.9, weight_decay=wd)
    for k,v in m.state_dict().items(): assert torch.equal(v, want[k]), k

def test_sgd_decay_is_coupled():
    "By hand: the decay goes through the momentum, and a norm's weight decays too"
    p = nn.Parameter(torch.tensor([1.,-2.], dtype=torch.double))
    w,v = p.detach().clone(),0
    opt = sgd([p], lr=.1, wd=.5)
    for g in (.3,-.2,.1):
        p.grad = torch.full_like(p, g)
        opt.step()
        v = .9*v+g+.5*w
        w = w-.1*v
    assert torch.allclose(p, w, rtol=1e-12)
    decoupled = 1.
    for g in (.3,-.2,.1): decoupled *= 1-.1*.5
    assert abs(float(p[0])-decoupled)>.05

def test_sgd_without_decay_by_default():
    p = nn.Parameter(torch.ones(2))
    opt = sgd([p])
    assert opt.hypers[0]['wd']==0 and opt.hypers[0]['mom']==.9
    p.grad = torch.zeros(2)
    opt.step()
    assert torch.equal(p, torch.ones(2))

def test_sgd_with_one_cycle_and_groups():
    "`moms` reach torch's momentum, and each group has its own rate"
    learn = Learner(data(), Bn(), loss_func=F.cross_entropy, opt_func=sgd,
                    splitter=lambda m: [params(m.a)+params(m.bn), params(m.b)])
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, slice(.01,.1), moms=(.8,.7,.8))
    assert min(learn.recorder.hps['mom'])<.75 and len(learn.opt.opt.param_groups)==2
    with learn.no_bar(), learn.no_logging(): learn.fit_drops(1, slice(.01,.1), drops=[2])
    assert np.allclose([h['lr'] for h in learn.opt.hypers], [.001,.01], rtol=1e-12)

def test_pruned_weights_stay_zero_under_sgd():
    learn = Learner(data(), Bn(), loss_func=F.cross_entropy, opt_func=sgd, cbs=LotteryCallback())
    with learn.no_bar(), learn.no_logging():
        learn.fit_lottery(2, rounds=2, amount=.5, fit=Learner.fit_drops, lr=.1, wd=1e-2, seed=0)
    for n,m in learn.lottery.masks.items(): assert not named_weights(learn.model)[n][~m].any()
    assert learn.lottery.rounds[-1]['kept']==48

# --- the schedule

class Rates(Callback):
    "The rate of each step that is made, with its iteration"
    def __init__(self): self.fits = []
    def before_fit(self): self.fits.append([])
    def before_step(self):
        groups = self.opt.opt.param_groups if hasattr(self.opt,'opt') else self.opt.hypers
        self.fits[-1].append((self.train_iter, [g['lr'] for g in groups]))

def rate(i, lr, drops=(), factor=.1, warmup=0):
    "By the words of the paper"
    r = lr*i/warmup if i<warmup else lr
    for d in drops: r = r*factor if i>=d else r
    return r

def rates_of(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit_drops(*args, **kwargs)
    return learn.rates.fits[-1]

def drop_learner(cbs=(), **kw):    # 4 iterations an epoch
    torch.manual_seed(0)
    return Learner(data(), Bn(), loss_func=F.cross_entropy, **{**dict(opt_func=sgd), **kw}, cbs=[Rates(),*cbs])

@pytest.mark.parametrize('kw,want', [
    (dict(drops=[7,10]), dict(drops=(7,10))),
    (dict(drops=('2ep','11it')), dict(drops=(8,11))),
    (dict(drops=(.5,.75)), dict(drops=(10,15))),
    (dict(), dict(drops=(13,17))),
    (dict(drops=9, factor=.5), dict(drops=(9,), factor=.5)),
    (dict(drops=[], warmup=8), dict(warmup=8)),
    (dict(drops=[12,np.int64(16)], warmup='3ep'), dict(drops=(12,16), warmup=12)),
    (dict(drops=[12], warmup=.25), dict(drops=(12,), warmup=5)),
    (dict(drops=[3], warmup=6), dict(drops=(3,), warmup=6)),
    (dict(drops=[1,19]), dict(drops=(1,19))),
    (dict(drops=[6], warmup='init'), dict(drops=(6,)))])
@pytest.mark.parametrize('opt_func', [sgd,SGD,Adam])
def test_rate_by_iteration(kw, want, opt_func):
    "The rate of each of the twenty steps"
    seen = rates_of(drop_learner(opt_func=opt_func), 5, lr=.1, **kw)
    assert [i for i,_ in seen]==list(range(20))
    assert np.allclose([r[0] for _,r in seen], [rate(i, .1, **want) for i in range(20)], rtol=1e-12, atol=0)

def test_rate_after_many_iterations():
    "fastai adds up the part that is done; the drops of the papers come at their iteration nevertheless"
    for n,drops,warmup in ((30000,(20000,25000),20000), (112480,(56240,84360),10000), (29835,(19890,24862),0)):
        f,pct = drops_sched(.03, n, drops, .1, warmup),0.
        for i in range(n):
            near = any(abs(i-d)<3 for d in (0,warmup,*drops,n))
            if near or i%997==0: assert abs(f(pct)-rate(i,.03,drops,.1,warmup))<=1e-12*.03, i
            pct += 1/n

@pytest.mark.parametrize('to,k', [('3it',3),('1ep',4),('6it',6),('13it',13)])
def test_rate_after_a_late_rewind(to, k):
    "Going on from iteration k means: at its rate, through what is left of the schedule"
    learn = drop_learner([LotteryCallback(to)])
    with learn.no_bar(), learn.no_logging():
        learn.fit_lottery(5, rounds=2, fit=Learner.fit_drops, lr=.1, drops=[9,'4ep'], warmup=6, seed=0)
    want = [(i, rate(i,.1,(9,16),.1,6)) for i in range(20)]
    for f,w in zip(learn.rates.fits, (want, want[k:], want[k:])):
        assert [i for i,_ in f]==[i for i,_ in w]
        assert np.allclose([r[0] for _,r in f], [r for _,r in w], rtol=1e-12, atol=0)
    assert len(learn.rates.fits)==3 and [r['iterations'] for r in learn.lottery.rounds]==[20,20-k,20-k]

def test_fit_drops_goes_with_a_ticket_and_a_folder(tmp_path):
    kw = dict(fit=Learner.fit_drops, lr=.1, drops=(.5,), seed=0, wd=1e-4)
    a,b,whole = drop_learner([LotteryCallback()]),drop_learner([LotteryCallback()]),drop_learner([LotteryCallback()])
    with a.no_bar(), a.no_logging(): a.fit_lottery(2, rounds=1, path=tmp_path, **kw)
    with b.no_bar(), b.no_logging(): b.fit_lottery(2, rounds=2, path=tmp_path, **kw)
    with whole.no_bar(), whole.no_logging():
        whole.fit_lottery(2, rounds=2, **kw)
        r = whole.fit_ticket(whole.lottery.ticket(1), 2, **kw)
    assert [o['mask_hash'] for o in b.lottery.rounds]==[o['mask_hash'] for o in whole.lottery.rounds]
    assert b.lottery.rounds[2]['valid_loss']==whole.lottery.rounds[2]['valid_loss']
    assert r['iterations']==8
    with pytest.raises(ValueError, match='drops was'):
        b.fit_lottery(2, rounds=2, path=tmp_path, **{**kw, 'drops':(.25,)})

def test_learners_own_rate_and_other_arguments():
    learn = drop_learner(lr=.04)
    seen = rates_of(learn, 2, drops=[4], cbs=(extra := Batches()), wd=.3)
    assert learn.opt.opt.param_groups[0]['weight_decay']==.3
    assert np.allclose([r[0] for _,r in seen], [.04]*4+[.004]*4) and len(extra.seen)==8
    learn = drop_learner()
    rates_of(learn, 1, lr=.1, drops=[2])
    opt = learn.opt
    rates_of(learn, 1, lr=.1, drops=[2])
    assert learn.opt is opt
    rates_of(learn, 1, lr=.1, drops=[2], reset_opt=True)
    assert learn.opt is not opt
    assert np.allclose([r[0] for _,r in rates_of(learn, 3, lr=.1, drops=[10], warmup=5, start_epoch=1)],
                       [.08]+[.1]*5+[.01]*2)

def test_hps_are_recorded():
    learn = drop_learner()
    rates_of(learn, 2, lr=.1, drops=[6])
    assert np.allclose(learn.recorder.hps['lr'], [.1]*6+[.01]*2)

@pytest.mark.parametrize('kw,say', [
    (dict(drops=[20]), "`drops` has 20, which is iteration 20, but this training has only 20 (5 epochs of 4)"),
    (dict(drops=(20000,25000)), "`drops` has 20000"),
    (dict(drops=['80ep']), "`drops` has '80ep', which is iteration 320"),
    (dict(drops=[0]), "`drops` takes iterations from 1"),
    (dict(drops=[1.]), "fractions of the training between 0 and 1 such as .5; got 1.0"),
    *[(dict(drops=[o]), f'got {o!r}') for o in ('5x','init',-3,1.5,True,None,float('nan'))],
    (dict(warmup=20), "`warmup` has 20"), (dict(warmup=-1), "`warmup` takes iterations from 0"),
    *[(dict(warmup=o), f'got {o!r}') for o in ('soon',None)],
    (dict(factor=0), "`factor` should be between 0 and 1; got 0"), (dict(factor=10), "got 10"), (dict(factor='x'), "got 'x'")])
def test_errors_of_the_schedule(kw, say):
    "Said before a step is made"
    learn = drop_learner()
    w = state(learn.model)
    with pytest.raises(ValueError) as e: learn.fit_drops(5, lr=.1, **kw)
    assert say in str(e.value) and 'rewind_to' not in str(e.value)
    assert all(torch.equal(v, w[k]) for k,v in learn.model.state_dict().items())
    learn.add_cb(LotteryCallback())
    with pytest.raises(ValueError) as e, learn.no_bar(), learn.no_logging():
        learn.fit_lottery(5, rounds=1, fit=Learner.fit_drops, lr=.1, **kw)
    assert say in str(e.value)

def test_fraction_never_falls_out_of_a_short_training():
    for n in (1,2):
        assert np.allclose([r[0] for _,r in rates_of(drop_learner(), n, lr=.1, drops=[.01,.99])], [.1]+[.01]*(4*n-1))
    assert np.allclose([r[0] for _,r in rates_of(drop_learner(), 1, lr=.1, drops=[.999])], [.1]*4)

"""Dead units really taken out: the small net says the same, and is a Learner's net like any other. And structured
lotteries end to end. `python -m pytest -m extra`, with Torch-Pruning"""
import pickle,warnings
from copy import deepcopy
import pytest,torch
from torch import nn
from nets import *
from unit_zoo import *
from fastai.learner import load_learner
from fastai_lottery.units import *
from fastai_lottery.coupled import *
from fastai_lottery.removal import *
from fastai_lottery.shrink import *
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]
pytestmark = pytest.mark.extra
pytest.importorskip('torch_pruning', reason="needs torch-pruning: pip install 'fastai_lottery[deploy]'")

def body(n=8, act=nn.ReLU):
    return nn.Sequential(conv(3,n), nn.BatchNorm2d(n), act(), conv(n,12), nn.BatchNorm2d(12), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(12,10), nn.ReLU(), nn.Linear(10,4))
def halves(m): return [list(m[:6].parameters()), list(m[6:].parameters())]
def unit_learner(net=None, units='channels', cbs=(), rewind_to='init', seed=0, **kwargs):
    torch.manual_seed(seed)
    return Learner(data((3,8,8)), net or body(), loss_func=nn.CrossEntropyLoss(), metrics=accuracy,
                   cbs=[LotteryCallback(rewind_to, units=units, **kwargs), *cbs])
def played(rounds=2, **kwargs):
    learn = unit_learner(**kwargs)
    with learn.no_bar(): learn.fit_lottery(2, rounds=rounds, amount=.3, seed=1, lr_max=.01)
    return learn
def said(m, xb):
    m = deepcopy(m).double().eval()
    with torch.no_grad(): return m(*[o.double() if o.is_floating_point() else o for o in xb])
def same(a, b, tol=1e-5): return float((a-b).abs().max()/a.abs().max())<tol
def n_params(m): return sum(p.numel() for p in m.parameters())
@pytest.fixture
def learn(): return played()

# --- in plain PyTorch

nets_ = dict(conv=(lambda: around(nn.ReLU()), images), body=(body, images), twice=(Twice, images), c2f=(C2f, images),
             squeeze=(Squeeze, images), two_in=(lambda: linear(f=lambda s,x: s.b(s.a(x).relu())), rows6),
             grouped=(lambda: nn.Sequential(conv(3,16), nn.ReLU(), conv(16,32,groups=4), nn.ReLU(), conv(32,8,1),
                                            nn.Flatten(),
                                            nn.Linear(512,4)), images))
def masked(m, xb, seed=0):
    units = checked_units(channel_units(m, xb), m, xb)
    gen = generator(seed, 'test')
    return units.masks(Masks({g:torch.randperm(n, generator=gen)>=n//2 for g,n in units.sizes.items()}))

@pytest.mark.parametrize('name', nets_)
def test_shrink_says_the_same(name):
    torch.manual_seed(0)
    net,xb = nets_[name]
    m,xb = net().eval(),xb()
    masks,was = masked(m, xb),deepcopy(m.state_dict())
    small = shrink(m, masks, xb)
    assert all(torch.equal(v, was[k]) for k,v in m.state_dict().items()), 'the model is left as it is'
    assert n_params(small)<.8*n_params(m) and list(small.state_dict())==list(was)
    assert same(said(masks.apply_(deepcopy(m)), xb), said(small, xb), 1e-9)

def test_a_sigmoid_before_padding_keeps_its_units_with_a_warning():
    torch.manual_seed(0)
    m,xb = around(nn.Sigmoid()).eval(),images()
    masks = masked(m, xb)
    with pytest.warns(ShrinkWarning, match='8 dead units stay .8 of 0.'): small = shrink(m, masks, xb)
    assert small[0].out_channels==16 and small[2].out_channels==6
    assert same(said(masks.apply_(deepcopy(m)), xb), said(small, xb), 1e-9)

@pytest.mark.parametrize('bias', [True,False])
def test_a_sigmoid_without_padding_is_folded(bias):
    "Into the bias, or into the running mean of the norm behind; no key is added"
    torch.manual_seed(0)
    m,xb = around(nn.Sigmoid(), pad=False).eval(),images()
    if not bias: m[2].bias = None
    m[3].running_mean.normal_()
    masks = masked(m, xb)
    with warnings.catch_warnings():
        warnings.simplefilter('error', ShrinkWarning)
        small = shrink(m, masks, xb)
    assert small[0].out_channels==8 and list(small.state_dict())==list(m.state_dict())
    for x in (xb, images(3, 12)):
        assert same(said(masks.apply_(deepcopy(m)), x), said(small, x), 1e-6), 'but for the rounding of a bias'

@pytest.mark.parametrize('kw', [dict(), dict(f=lambda s,x: s.b(s.a(x).sigmoid()))])
def test_one_item_is_enough_to_shrink_on(kw):
    m,xb = linear(f=kw.get('f', lambda s,x: s.b(s.a(x).relu()))),(torch.randn(1,6),)
    masks = masked(m, xb)
    small,x = shrink(m, masks, xb),(torch.randn(7,6),)
    assert small.a.out_features==5 and same(said(masks.apply_(deepcopy(m)), x), said(small, x), 1e-6)

def test_what_single_weights_leave_dead():
    "A neuron without outputs goes; one without inputs says its bias, which is added to the next layer's"
    torch.manual_seed(0)
    m,x = nn.Sequential(nn.Linear(6,10), nn.ReLU(), nn.Linear(10,8), nn.ReLU(), nn.Linear(8,3)),(torch.randn(4,6),)
    with torch.no_grad():
        m[0].weight[[1,4]] = 0
        m[0].bias[1] = 2.
        m[2].weight[:,7] = 0
        m[4].weight[:,[0,5]] = 0
    masks = Masks({n:w!=0 for n,w in named_weights(m, prunable(m)).items()})
    small = shrink(m, masks, x)
    assert (small[0].out_features,small[2].out_features)==(7,6)
    assert same(said(m, x), said(small, x), 1e-6) and same(said(shrink(m, None, x), x), said(small, x), 1e-12)

def test_a_net_that_cannot_be_shrunk_is_refused_and_left():
    torch.manual_seed(0)
    m,xb = around(Fn(lambda x: x+torch.arange(x.shape[1])[:,None,None]), pad=False).eval(),images()
    ids = torch.arange(16)
    parts = [Part('0','0.weight',0,ids), Part('0','0.bias',0,ids), Part('0','2.weight',1,ids,False)]
    units = Units({'0':16}, parts, m.state_dict())
    was,masks = deepcopy(m.state_dict()),units.masks({'0':ids>5})
    with pytest.raises(ValueError,
                       match="the small net's outputs differ by .* of their size, first behind '2'. Nothing was changed"):
        shrink(m, masks, xb)
    units.parts = tuple(p for p in units.parts if p.makes)
    with pytest.raises(ValueError, match='the small net does not run: RuntimeError.*Nothing was changed'):
        shrink(m, masks, xb)
    assert all(torch.equal(v, was[k]) for k,v in m.state_dict().items())

def test_files_of_a_small_net(tmp_path):
    torch.manual_seed(0)
    m,xb = body().eval(),images()
    masks = masked(m, xb)
    small = shrink(m, masks, xb)
    f = save_shrunk(tmp_path/'small', small, m, masks, xb)
    torch.manual_seed(5)
    new = shrunk_like(body(), tmp_path/'small.safetensors')
    assert torch.equal(new.eval()(*xb), small.eval()(*xb)) and new[0].out_channels==4
    with pytest.raises(ValueError, match='is of another architecture'):
        shrunk_like(body(16), tmp_path/'small.safetensors')
    with pytest.raises(ValueError, match='is of another architecture'):
        shrunk_like(Twice(), tmp_path/'small.safetensors')

# --- on a Learner

def test_learn_shrink_says_the_same_and_is_as_large_as_said(learn):
    big,row,loss = deepcopy(learn.model),learn.lottery.rounds[-1].row,learn.validate()
    df = learn.shrink()
    assert n_params(learn.model)==row['params']==df.params_left['total']<.6*n_params(big)
    assert df.units_left['total']==row['units'] and df.units['total']==row['units_dense']
    xb = images()
    assert same(said(big, xb), said(learn.model, xb), 1e-9)
    assert torch.allclose(tensor(loss), tensor(learn.validate()), atol=1e-5)
    assert len(learn.lottery.rounds)==3 and learn.lottery.report()['params'].iloc[0]==n_params(big), 'rounds tell of the large net'

def test_ticket_and_masks_are_those_of_the_small_net(learn):
    learn.shrink()
    t,shapes = learn.lottery.ticket(),{n:p.shape for n,p in learn.model.named_parameters()}
    assert all(t.weights[n].shape==s for n,s in shapes.items()) and all(m.shape==shapes[n] for n,m in t.masks.items())
    assert t.masks.density==1 and t.masks==learn.lottery.masks

def test_the_first_step_of_the_small_ticket_is_that_of_the_masked_net(learn):
    t = learn.lottery.ticket()
    masked_ = deepcopy(learn)
    def step(o, t):
        with o.no_bar(): o.fit_ticket(t, 1, fit=Learner.fit, seed=3, lr=.05)
        return said(o.model, images_)
    images_ = images(4)
    with_masks = step(masked_, t)
    learn.shrink()
    assert same(with_masks, step(learn, learn.lottery.ticket()), 1e-3), 'after an epoch, in single precision'

def first_losses(o, t):
    losses = []
    class Note(Callback):
        def after_batch(self):
            if self.training: losses.append(float(self.loss))
    with o.no_bar(),o.added_cbs(Note()): o.fit_ticket(t, 1, fit=Learner.fit, seed=3, lr=.01)
    return tensor(losses[:3])

def test_the_first_steps_lose_the_same(learn):
    a = first_losses(deepcopy(learn), learn.lottery.ticket())
    learn.shrink()
    assert torch.allclose(a, first_losses(learn, learn.lottery.ticket()), atol=1e-5)

def test_groups_freezing_and_hyper_parameters_stay():
    torch.manual_seed(0)
    learn = Learner(data((3,8,8)), body(), loss_func=nn.CrossEntropyLoss(), splitter=halves,
                    cbs=LotteryCallback(units='channels'))
    learn.prune(.4)
    learn.freeze_to(1)
    learn.opt.set_hypers(lr=[.1,.2], wd=.03)
    opt = learn.opt
    learn.shrink()
    assert learn.opt is not opt and [h['lr'] for h in learn.opt.hypers]==[.1,.2] and learn.opt.hypers[0]['wd']==.03
    assert learn.opt.frozen_idx==1 and [len(g) for g in learn.opt.param_lists]==[8,4]
    ps = {id(p) for p in learn.model.parameters()}
    assert {id(p) for g in learn.opt.param_lists for p in g}==ps and not learn.model[0].weight.requires_grad
    before = learn.model[8].weight.detach().clone()
    with learn.no_bar(): learn.fit(1)
    assert not torch.equal(learn.model[8].weight, before), 'it trains'

@pytest.mark.filterwarnings('ignore:.*load_learner.*')
def test_files_of_a_small_learner(learn, tmp_path):
    learn.shrink()
    learn.path,dls = tmp_path,learn.dls
    dls.new_empty = lambda: dls
    out = said(learn.model, xb := images())
    learn.export('small.pkl')
    assert same(out, said(load_learner(tmp_path/'small.pkl').model, xb), 1e-12)
    learn.save('small')
    for p in learn.model.parameters(): p.data.zero_()
    learn.load('small')
    assert same(out, said(learn.model, xb), 1e-12)

def test_what_is_done_with_a_small_net(learn):
    learn.shrink()
    n = n_params(learn.model)
    out = said(learn.model, xb := images())
    for new in (deepcopy(learn), pickle.loads(pickle.dumps(learn))):
        assert same(out, said(new.model, xb), 1e-12) and n_params(new.model)==n
        with new.no_bar(): new.fine_tune(1)
    with learn.no_bar():
        learn.fine_tune(1)
        with pytest.warns(UserWarning, match='begins anew'): rounds = learn.fit_lottery(1, rounds=1, amount=.3, seed=0)
    assert rounds[0]['params']==n and rounds[1]['params']<n
    learn.shrink()
    assert n_params(learn.model)==rounds[1]['params'], 'and again'

def test_a_small_file_does_not_fit_a_large_learner(learn, tmp_path):
    big = unit_learner()
    learn.path = big.path = tmp_path
    learn.shrink()
    learn.save('small')
    says = "(?s)'small' is of a net of other sizes, as learn.shrink.*shrunk_like.*size mismatch for"
    with pytest.raises(RuntimeError, match=says): big.load('small')

def test_shrink_after_single_weights():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8,40), nn.ReLU(), nn.Linear(40,30), nn.ReLU(), nn.Linear(30,4))
    learn = Learner(data(), net, loss_func=nn.CrossEntropyLoss(), metrics=accuracy, cbs=LotteryCallback())
    with learn.no_bar(): learn.fit_lottery(2, rounds=1, amount=.95, seed=0)
    kept,x,out = learn.lottery.masks.n_kept,(torch.randn(5,8),),None
    out = said(learn.model, x)
    df = learn.shrink()
    assert df.units_left['total']<df.units['total'] and same(out, said(learn.model, x))
    masks = learn.lottery.masks
    assert masks.units is None and masks.n_kept<=kept and masks.density<1
    for n,w in named_weights(learn.model, masks).items(): assert (w[~masks[n]]==0).all()
    with learn.no_bar(): learn.fit(1)
    for n,w in named_weights(learn.model, masks).items(): assert (w[~masks[n]]==0).all(), 'zeros stay'

def test_a_learner_that_cannot_be_shrunk_is_left(learn):
    m = learn.model
    learn.lottery.masks.units.parts = tuple(p for p in learn.lottery.masks.units.parts if p.name!='3.weight' or p.makes)
    was = deepcopy(m.state_dict())
    with pytest.raises(ValueError, match='Nothing was changed'): learn.shrink()
    assert learn.model is m and all(torch.equal(v, was[k]) for k,v in m.state_dict().items())

# --- structured lotteries

@pytest.mark.parametrize('kw',
                         [dict(criterion='filter_l1'), dict(criterion='filter_l2'), dict(criterion='geometric_median'),
                                dict(criterion='bn_scale', include=['0','3']), dict(criterion='taylor'),
                                dict(criterion='magnitude_increase'),
                                dict(scope='local'), dict(reset='keep'), dict(reset='constant'), dict(reset='random_reinit'),
                                dict(pool='max', comparable=False), dict(round_to=4)])
def test_criteria_scopes_and_resets_of_a_structured_lottery(kw):
    learn = unit_learner(include=kw.pop('include', None))
    with learn.no_bar(): rounds = learn.fit_lottery(1, rounds=1, amount=.3, seed=0, **kw)
    masks = learn.lottery.masks
    n = rounds[0]['units']
    if kw.get('round_to')==4: assert all(int(v.sum())%4==0 or len(v)%4 for v in masks.counted.values())
    else: assert rounds[1]['units']==n-round(.3*n) or kw.get('scope')=='local'
    if kw.get('reset')=='constant': assert (learn.model[1].weight[masks.counted['0']]!=0).any()
    x = images()
    out = said(learn.model, x)
    learn.shrink()
    assert same(out, said(learn.model, x))

@pytest.mark.parametrize('to,what,share', [('40% params','params',.4), ('50% macs','macs',.5), ('50% flops','macs',.5),
                                           ('30% units','units',.3), (.3,'units',.3)])
def test_to(to, what, share):
    learn = unit_learner()
    with learn.no_bar(): last = learn.fit_lottery(1, to=to, amount=.4, seed=0)[-1]
    got = last[what]/last[f'{what}_dense']
    assert share-.08<got<=share+.5/last[f'{what}_dense']+1e-9
    if what!='units': learn.shrink()
    if what=='params': assert n_params(learn.model)==last['params']

def test_multiply_adds_as_counted_by_hand():
    learn = unit_learner()
    with learn.no_bar(): rounds = learn.fit_lottery(1, rounds=1, amount=.3, seed=0)
    def by_hand(m):
        return 64*27*m[0].out_channels+64*9*m[0].out_channels*m[3].out_channels+m[8].weight.numel()+m[10].weight.numel()
    assert rounds[0]['macs']==by_hand(learn.model)
    learn.shrink()
    assert rounds[1]['macs']==by_hand(learn.model)

def test_include_and_exclude_go_by_what_is_coupled():
    learn = unit_learner(exclude='3.weight')
    assert set(learn.lottery.own_units().sizes)=={'0','8'}
    df = learn.lottery.competing()
    assert 'does not compete' in df.why['3.weight'] and not df.competes['4.weight'] and df.competes['1.bias']
    learn = unit_learner(include=['3'])
    assert set(learn.lottery.own_units().sizes)=={'3'}

def test_a_net_without_units_says_why_before_it_trains():
    learn = unit_learner(nn.Sequential(nn.Flatten(), nn.Linear(192,4)))
    with learn.no_bar(),pytest.raises(ValueError,
                                      match="no channels, neurons or heads .*1: an output of the net.*units='weights'"):
        learn.fit_lottery(1, rounds=1)

@pytest.mark.parametrize('rewind_to', ['init','3it','1ep'])
def test_late_rewinding_and_tolerance(rewind_to):
    learn = unit_learner(rewind_to=rewind_to)
    with learn.no_bar(): rounds = learn.fit_lottery(2, rounds=2, amount=.3, seed=0, tol=.9)
    lot = learn.lottery
    learn.rewind()
    for n,w in named_weights(learn.model, lot.masks).items(): assert torch.equal(w, lot.w_k[n]*lot.masks[n])
    learn.shrink()
    assert {n:tuple(v.shape) for n,v in lot.w_k.items()}=={n:tuple(v.shape) for n,v in learn.model.state_dict().items()}

class Stop(Exception): "A kill"
class KillAt(Callback):
    "An end in the middle of a fit"
    order = 90
    at,seen = None,0
    def after_batch(self):
        if self.training: KillAt.seen += 1
        if KillAt.seen==KillAt.at: raise Stop('a kill')

@pytest.mark.parametrize('at', [3, 7, 11])
def test_a_run_that_was_killed_ends_bit_equal(at, tmp_path):
    "Units come back with the run"
    kw = dict(rounds=2, amount=.3, seed=4)
    KillAt.at = None
    one = unit_learner(cbs=[KillAt()])
    with one.no_bar(): a = one.fit_lottery(1, path=tmp_path/'a', **kw)
    KillAt.at,KillAt.seen = at,0
    two = unit_learner(cbs=[KillAt()])
    with two.no_bar(),pytest.raises(Stop): two.fit_lottery(1, path=tmp_path/'b', **kw)
    three = unit_learner(cbs=[KillAt()])
    with three.no_bar(): b = three.fit_lottery(1, path=tmp_path/'b', **kw)
    for k,v in one.model.state_dict().items(): assert torch.equal(v, three.model.state_dict()[k]), k
    for k in ('units','params','macs','mask_hash','accuracy'): assert [r[k] for r in a]==[r[k] for r in b], k
    assert three.lottery.masks.units is not None and three.lottery.masks.counted==one.lottery.masks.counted
    three.shrink()
    assert n_params(three.model)==b[-1]['params']

def test_a_ticket_from_a_file_knows_its_units_again(learn, tmp_path):
    learn.lottery.ticket().save(tmp_path/'t')
    new = unit_learner()
    t = Ticket.load(tmp_path/'t')
    with new.no_bar(): new.fit_ticket(t, 1, seed=0)
    assert new.lottery.masks.counted==learn.lottery.masks.counted
    with pytest.raises(ValueError, match='dense=True'): new.fit_ticket(t, 1, mask=random_mask, seed=0)
    t = Ticket.load(learn.lottery.ticket().save(tmp_path/'whole', dense=True))
    with new.no_bar(): new.fit_ticket(t, 1, mask=random_mask, seed=0)
    masks = new.lottery.masks
    assert masks.counted.n_kept==learn.lottery.masks.counted.n_kept and masks==masks.units.masks(masks.counted)
    with new.no_bar(): new.fit_ticket(t, 1, mask=random_mask, seed=0)
    new.shrink()
    assert n_params(new.model)<n_params(body())

def test_keep_zeros_takes_whole_units():
    learn = unit_learner()
    with torch.no_grad():
        for k in (0,1):
            for n in ('weight','bias'): getattr(learn.model[k], n)[[1,3]] = 0
    learn.keep_zeros()
    masks = learn.lottery.masks
    assert masks==masks.units.masks(masks.counted) and (~masks.counted['0']).nonzero().flatten().tolist()==[1,3]
    assert all(v.all() for g,v in masks.counted.items() if g!='0'), 'a bias of zeros is no dead unit'

def two_inputs():
    rows = [(torch.randn(6), torch.randn(4), i%3) for i in range(96)]
    dls = DataLoaders(DataLoader(rows[:64], bs=16), DataLoader(rows[64:], bs=16), device='cpu')
    dls.n_inp = 2
    return Learner(dls, TwoInTwoOut(), loss_func=lambda p,y: F.cross_entropy(p[0], y))

def in_bfloat16():
    dls = dls_of(torch.randn(96,3,8,8).bfloat16(), torch.randint(0,4,(96,)))
    return Learner(dls, body().bfloat16(), loss_func=lambda p,y: F.cross_entropy(p.float(), y))

def plain(net=None, **kwargs):
    return Learner(data((3,8,8), **kwargs), net or body(), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
def frozen():
    learn = plain()
    learn.model[0].weight.requires_grad_(False)
    return learn

others = dict(frozen=frozen, bfloat16=in_bfloat16, two_inputs=two_inputs,
              compiled=lambda: plain(torch.compile(body(), backend='eager')),
              mixup=lambda: plain().add_cb(MixUp()), fp16=lambda: plain().to_bf16(), one_item=lambda: plain(n=8, bs=1),
              last=lambda: plain(body().to(memory_format=torch.channels_last)),
              parallel=lambda: plain(nn.DataParallel(body())),
              group_norm=lambda: plain(nn.Sequential(conv(3,8), nn.GroupNorm(2,8), nn.ReLU(), nn.Flatten(),
                                                     nn.Linear(512,4))),
              sigmoid=lambda: plain(body(act=nn.Sigmoid)), clipped=lambda: plain().add_cb(GradientClip()),
              accumulated=lambda: plain().add_cb(GradientAccumulation(32)))
@pytest.mark.filterwarnings('ignore::fastai_lottery.shrink.ShrinkWarning')
@pytest.mark.parametrize('how', others)
def test_learners_of_other_kinds(how):
    torch.manual_seed(0)
    learn = others[how]()
    learn.add_cb(LotteryCallback(units='channels', frozen=how=='frozen'))
    with learn.no_bar(): rounds = learn.fit_lottery(1, rounds=1, amount=.3, seed=0)
    assert rounds[1]['params']<rounds[0]['params'] and rounds[1]['macs']<rounds[0]['macs']
    learn.shrink()
    n = n_params(learn.model)
    assert n==rounds[1]['params'] if how!='sigmoid' else rounds[1]['params']<n<rounds[0]['params']
    with learn.no_bar(): learn.fit(1)

class OfDicts(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c = nn.Linear(6,10),nn.Linear(4,10),nn.Linear(10,3)
    def forward(self, d): return self.c((self.a(d['a'])+self.b(d['b'])).relu())

def test_inputs_that_are_dicts():
    rows = [(dict(a=torch.randn(6), b=torch.randn(4), no='text'), i%3) for i in range(96)]
    dls = DataLoaders(DataLoader(rows[:64], bs=16), DataLoader(rows[64:], bs=16), device='cpu')
    learn = Learner(dls, OfDicts(), loss_func=CrossEntropyLossFlat(), cbs=LotteryCallback(units='channels'))
    with learn.no_bar(): rounds = learn.fit_lottery(1, rounds=1, amount=.3, seed=0)
    assert [r['macs'] for r in rounds]==[10*6+10*4+10*3, 7*6+7*4+7*3], 'of one item'
    learn.shrink()
    assert n_params(learn.model)==rounds[1]['params']

def test_looking_for_units_changes_nothing_in_a_learner():
    learn = unit_learner()
    learn.model.train()
    learn.model[3].eval()
    def look():
        bufs = [b.clone() for b in learn.model.buffers()]
        return [o.training for o in learn.model.modules()],bufs,[p.grad for p in learn.model.parameters()],torch.get_rng_state()
    def hooks(): return [(len(o._forward_hooks),len(o._forward_pre_hooks)) for o in learn.model.modules()]
    was,cbs,on = look(),list(learn.cbs),hooks()
    learn.lottery.own_units()
    new = look()
    assert was[0]==new[0] and all(map(torch.equal, was[1], new[1])) and was[2]==new[2] and torch.equal(was[3], new[3])
    assert list(learn.cbs)==cbs and hooks()==on and learn.opt is None

def test_what_was_shrunk_twice_and_rounds_of_the_large_net(learn):
    big = learn.lottery.ticket(1)
    learn.shrink()
    was,state = n_params(learn.model),deepcopy(learn.model.state_dict())
    df = learn.shrink()
    assert n_params(learn.model)==was==df.params['total']==df.params_left['total']
    for f in (lambda: learn.lottery.load(1), lambda: learn.fit_ticket(big, 1),
              lambda: learn.fit_lottery(1, rounds=3, start='rounds'),
              lambda: learn.fit_lottery(1, rounds=1, start=big)):
        with learn.no_bar(),pytest.raises(ValueError): f()
        assert all(torch.equal(v, state[k]) for k,v in learn.model.state_dict().items())

def test_a_vision_learner_as_people_make_it():
    "Body and head, its groups, and a head that ends in norms of vectors; no layer collapses"
    from fastai.vision.learner import vision_learner
    from fastai.vision.models import resnet18
    torch.manual_seed(0)
    dls = data((3,32,32), n=96, bs=32)
    learn = vision_learner(dls, resnet18, pretrained=False, n_out=4, loss_func=CrossEntropyLossFlat(), metrics=accuracy, normalize=False,
                           cbs=LotteryCallback(units='channels'))
    groups = len(learn.splitter(learn.model))
    with learn.no_bar(): rounds = learn.fit_lottery(1, rounds=3, amount=.3, seed=0)
    assert rounds[-1]['params']<=.45*rounds[0]['params'] and rounds[-1]['macs']<.5*rounds[0]['macs']
    units,alive = learn.lottery.masks.units,learn.lottery.masks.counted
    assert all(int(v.sum())>=.05*units.sizes[g] for g,v in alive.items())
    xb = images(side=32)
    out = said(learn.model, xb)
    learn.shrink()
    assert same(out, said(learn.model, xb)) and n_params(learn.model)==rounds[-1]['params']
    assert len(learn.splitter(learn.model))==groups==len(learn.opt.param_lists)
    learn.freeze()
    with learn.no_bar(): learn.fine_tune(1)

@pytest.mark.parametrize('fits', [0,1], ids=['no fit before','a fit before'])
def test_the_small_net_trains_where_the_optimizer_was_made_beforehand(fits):
    net = body()
    learn = unit_learner(net)
    learn.opt_func = OptimWrapper(net.parameters(), partial(torch.optim.AdamW, weight_decay=.03))
    with learn.no_bar(), learn.no_logging():
        if fits: learn.fit(1)
        learn.prune(.5)
        learn.shrink()
        was = [p.detach().clone() for p in learn.model.parameters()]
        learn.fit(1, .01)
    assert all((p!=w).any() for p,w in zip(learn.model.parameters(), was))
    assert type(learn.opt.opt) is torch.optim.AdamW and learn.opt.opt.param_groups[0]['weight_decay']==.03

def test_a_net_whose_optimizer_cannot_be_made_again_is_shrunk_and_the_next_fit_says_so():
    net = body()
    learn = unit_learner(net)
    groups = [dict(params=net[:6].parameters(), weight_decay=.1), dict(params=net[6:].parameters())]
    learn.opt_func = OptimWrapper(opt=torch.optim.AdamW(groups))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        learn.prune(.5)
        before = n_params(learn.model)
        learn.shrink()
        assert n_params(learn.model)<before and learn.evaluate()
        with pytest.raises(ValueError, match='made beforehand.*opt_func=partial'): learn.fit(1)

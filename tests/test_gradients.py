"""Gradients that criteria see are those of the next training step, taken without a trace; those of pruned weights are 0 for
whoever looks"""
import pickle,time,warnings
from torch.amp import GradScaler,autocast
from fastai.collab import EmbeddingDotBias
from fastai.tabular.model import TabularModel
from fastai.text.all import get_language_model,awd_lstm_lm_config,rnn_cbs
import pytest
from fastai_lottery.model import unwatched
from fastai_lottery.signals import loss_grads,hessian_grads,flow_grads,gradients,train_batches
from nets import *

# --- Learners of many kinds

class Scaled(Callback):
    "Inputs in another unit"
    def before_batch(self): self.learn.xb = tuple(3*x+.5 for x in self.xb)

class Penalty(Callback):
    "Weight decay in the loss"
    def after_loss(self):
        if self.training: self.learn.loss_grad = self.loss_grad+.1*sum((p**2).sum() for p in self.learn.model.parameters())

class First(Callback):
    def after_pred(self): self.learn.pred = self.pred[0]

class Noise(Callback):
    "Adds to gradients, by chance"
    order = 5
    def before_step(self):
        for p in self.learn.model.parameters():
            if p.grad is not None: p.grad.add_(torch.randn_like(p)*.01)

class SetUp(Callback):
    "Has what it needs from `before_fit`, and an epoch's state"
    def before_fit(self): self.scale = 2.
    def before_train(self): self.left = 5
    def before_batch(self):
        self.left -= 1
        self.learn.xb = tuple(self.scale*x*self.left for x in self.xb)

class Amp(MixedPrecision):
    "fastai's, on the CPU, with a loss scale that is too large at first"
    def __init__(self, dtype=torch.float16, scale=2.**30):
        super().__init__()
        self.dtype,self.first = dtype,scale
    def before_fit(self):
        scaler = GradScaler('cpu', init_scale=self.first, enabled=self.first>1)
        self.autocast,self.learn.scaler,self.scales = autocast('cpu', dtype=self.dtype),scaler,L()

class OwnBackward(Callback):
    def before_backward(self):
        (2*self.learn.loss_grad).backward()
        raise CancelBackwardException

class Sharp(Callback):
    "Steps from a place a little uphill (as 2010.01412)"
    def before_step(self):
        ps = [p for p in self.learn.model.parameters() if p.grad is not None]
        gs = [p.grad.clone() for p in ps]
        with torch.no_grad():
            for p,g in zip(ps, gs): p.add_(.1*g)
        for p in ps: p.grad = None
        self.learn.loss_func(self.learn.model(*self.xb), *self.yb).backward()
        with torch.no_grad():
            for p,g in zip(ps, gs): p.sub_(.1*g)

class Two(nn.Module):
    "Two inputs, three outputs"
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c = nn.Linear(8,6),nn.Linear(8,6),nn.Linear(6,4)
    def forward(self, x, z):
        h = self.a(x).relu()+self.b(z).tanh()
        return self.c(h),h,(x,z)

class Weighted(nn.Module):
    "A loss with a parameter and a count"
    def __init__(self):
        super().__init__()
        self.s,self.n = nn.Parameter(torch.tensor(.7)),0
        self.register_buffer('seen', torch.zeros(()))
    def forward(self, x, y):
        self.n += 1
        self.seen += 1
        return F.cross_entropy(x*self.s, y)+self.s**2

class Counts(nn.Module):
    "A layer that remembers, in a list and in a plain tensor"
    def __init__(self):
        super().__init__()
        self.l,self.calls,self.last = nn.Linear(8,8),[],torch.zeros(8)
    def forward(self, x):
        self.calls.append(len(x))
        self.last.mul_(.9).add_(x.detach().mean(0))
        return self.l(x)*(1+.1*len(self.calls))+self.last

def rows(*xs, bs=8, n_inp=None):
    "Loaders of tuples"
    ds = list(zip(*xs))
    dls = DataLoaders(DataLoader(ds[:24], bs=bs, shuffle=True, drop_last=True), DataLoader(ds[24:], bs=bs), device='cpu')
    if n_inp: dls.n_inp = n_inp
    return dls

def randint(hi, *shape): return torch.randint(0, hi, shape, generator=torch.Generator().manual_seed(1))
def randn(*shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(2))
def text():
    c = dict(awd_lstm_lm_config, emb_sz=8, n_hid=10, n_layers=2)
    return dict(model=lambda: get_language_model(AWD_LSTM, 20, c), dls=rows(randint(20,32,6), randint(20,32,6)),
                cbs=rnn_cbs(alpha=2., beta=1.))
def tabular():
    return dict(model=lambda: TabularModel([(5,3),(4,2)], 3, 4, [8,6], ps=.2), dls=rows(randint(4,32,2), randn(32,3), randint(4,32), n_inp=2))
def collab():
    return dict(model=lambda: EmbeddingDotBias(4, 9, 12, (0,5)), dls=rows(randint(9,32,2), randn(32)+3), loss=MSELossFlat(), metrics=[])
def with_loss():
    loss = Weighted()
    return dict(loss=loss, splitter=lambda m: [[*m.parameters(), *loss.parameters()]])

kinds = dict(
    plain  = lambda: {},
    vision = lambda: dict(model=conv_bn, dls=data(shape=(1,6,6))),
    drop   = lambda: dict(model=drop_bn),
    lstm   = lambda: dict(model=lstm, dls=data(shape=(5,8))),
    attention = lambda: dict(model=attention, dls=data(shape=(5,8))),
    text   = text,
    tabular = tabular,
    collab = collab,
    several = lambda: dict(model=Two, dls=rows(randn(32,8), randn(32,8).flip(0), randint(4,32), n_inp=2), cbs=First()),
    loss   = with_loss,
    counts = lambda: dict(model=lambda: nn.Sequential(Counts(), nn.ReLU(), nn.Linear(8,4))),
    scaled = lambda: dict(cbs=Scaled()),
    penalty = lambda: dict(cbs=Penalty()),
    set_up = lambda: dict(cbs=SetUp()),
    mixup  = lambda: dict(model=conv_bn, dls=data(shape=(1,6,6)), cbs=MixUp()),
    cutmix = lambda: dict(model=conv_bn, dls=data(shape=(1,6,6)), cbs=CutMix()),
    few    = lambda: dict(cbs=GradientAccumulation(40)),
    enough = lambda: dict(cbs=GradientAccumulation(16)),
    clip   = lambda: dict(cbs=GradientClip(.05)),
    scaled_clip = lambda: dict(cbs=[Scaled(), GradientClip(.05), Penalty()]),
    noise  = lambda: dict(cbs=Noise()),
    backward = lambda: dict(cbs=OwnBackward()),
    sharp  = lambda: dict(cbs=Sharp()),
    fp16   = lambda: dict(cbs=MixedPrecision()),
    bf16   = lambda: dict(cbs=Amp(torch.bfloat16, 1)),
    amp    = lambda: dict(cbs=Amp()),
    amp_clip_few = lambda: dict(cbs=[Amp(scale=2.**10), GradientClip(.05), GradientAccumulation(40)]),
)
pytestmark = pytest.mark.filterwarnings('ignore')

def made(kind, cbs=LotteryCallback, **kwargs):
    kw = kinds[kind]()
    return learner(cbs=[*L(cbs), *L(kw.pop('cbs', None))], **{**kw, **kwargs})

class OnBatch(Callback):
    "The first batch of a fit is `b`, and random numbers start from a seed with it"
    order = -1000
    def __init__(self, b): self.b = b
    def before_batch(self):
        self.learn._split(deepcopy(self.b))
        torch.manual_seed(5)

class Gradients(Callback):
    "What the optimizer's first step has before it, or the first batch that is cancelled on the way there"
    order = 1000
    def __init__(self): self.seen = None
    def look(self):
        if self.seen is None: self.seen = {n:p.grad.clone() for n,p in named_weights(self.learn.model).items() if p.grad is not None}
    def before_step(self): self.look()
    def after_cancel_batch(self):
        s = getattr(self.learn, 'scaler', None)
        if self.seen is not None: return
        self.look()
        if s is not None: self.seen = {n:g/s.get_scale() for n,g in self.seen.items()}

def next_step(learn, b):
    "Gradients that the next training step sees on the batch `b`"
    learn.fit(1, cbs=[OnBatch(b), g := Gradients()])
    return g.seen

def taken(learn, names, word='g'):
    lot = learn.lottery
    torch.manual_seed(5)
    return lot.known(names, [word], generator(0))[word]

def ready(kind, state, **kwargs):
    "A Learner of a kind, dense or pruned, with all layers free or some frozen"
    learn = made(kind, LotteryCallback(frozen=state=='frozen'), **kwargs)
    learn.fit(1)
    if state!='dense': learn.prune(.4, hold='hold_init' if state=='held' else None)
    if state=='frozen': list(named_weights(learn.model, learn.lottery.masks).values())[0].requires_grad_(False)
    return learn

@pytest.mark.parametrize('state', ['new','dense','pruned','held','frozen'])
@pytest.mark.parametrize('kind', kinds)
def test_a_criterion_sees_what_the_next_step_sees(kind, state):
    "On weights that train; on the others, what they would see if they did"
    learn = made(kind) if state=='new' else ready(kind, state)
    learn.lottery.remember()
    names,lot = list(learn.lottery.masks),learn.lottery
    for p in learn.model.parameters(): p.grad = None    # of a window that the last fit has left open
    b, = train_batches(learn)
    g,some = taken(learn, names),0
    want = next_step(learn, b)
    for n,w in named_weights(learn.model, names).items():
        assert g[n].shape==w.shape
        if not w.requires_grad:
            assert (n not in want or not want[n].any()) and g[n].any()
            continue
        m = lot.masks[n]
        assert torch.equal(g[n][m], want[n][m]), n
        if kind!='noise': assert not want[n][~m].any()
        some += int(g[n][~m].any())
    assert some or state in ('new','dense')

# --- nothing left behind

def everything(learn):
    "All that could tell of a trial"
    m,opt = learn.model,learn.opt
    def held(o): return [(k,id(v),repr(v)) for k,v in vars(o).items()]
    rng = torch.get_rng_state(),random.getstate(),np.random.get_state()[1],learn.dls.train.rng.getstate()
    mods = [(id(o),o.training,held(o)) for o in m.modules()]
    ps = [(id(p),id(p.grad),p.requires_grad,repr(p.grad),len(p._post_accumulate_grad_hooks or ())) for p in m.parameters()]
    loss = learn.loss_func
    own = held(loss)+[repr(loss.state_dict())] if isinstance(loss, nn.Module) else held(loss)
    learn.lottery.paused = False
    known = opt and (vars(opt).keys(),[dict(h) for h in opt.hypers],[repr(s) for s in opt.state.values()])
    cbs = [(id(cb),held(cb)) for cb in learn.cbs if not isinstance(cb, Recorder)]
    rec = [(k,repr(v)) for k,v in vars(learn.recorder).items() if k!='learn']
    return bits(m),repr((rng,mods,ps,own,known,cbs,rec,held(learn))),torch.is_autocast_enabled('cpu')

@pytest.mark.parametrize('word', ['g','hg','r'])
@pytest.mark.parametrize('kind', kinds)
def test_a_trial_leaves_nothing(kind, word):
    for state in ('new','pruned'):
        learn = made(kind) if state=='new' else ready(kind, state)
        learn.lottery.remember()
        for p in learn.model.parameters(): p.grad = torch.ones_like(p)
        names,was = list(learn.lottery.masks),everything(learn)
        try: learn.lottery.known(names, [word], generator(0))
        except ValueError as e: assert (kind,word) in no_signal and no_signal[kind,word] in str(e)
        else: assert (kind,word) not in no_signal
        assert everything(learn)==was

no_signal = {(k,'r'):'inputs that are numbers' for k in ('text','tabular','collab')} | {('backward','hg'):'before it had gradients'}

@pytest.mark.parametrize('kind', kinds)
def test_a_training_with_trials_in_it_is_the_same(kind):
    "Before it, between two fits, and at the end of an epoch within one"
    class Tries(Callback):
        def __init__(self, on): self.on = on
        def after_epoch(self):
            if self.on: loss_grads(self.learn, list(self.learn.lottery.masks))
    def play(on):
        learn = made(kind)
        learn.lottery.remember()
        names = list(learn.lottery.masks)
        seed_all(learn)
        for k in range(2):
            if on: loss_grads(learn, names)
            learn.fit(2, cbs=Tries(on))
        return bits(learn.model),repr(learn.recorder.values),learn.recorder.losses
    (a,x,ls),(b,y,ms) = play(False),play(True)
    assert a==b and x==y and all(map(torch.equal, ls, ms))

def test_torchs_own_loader_keeps_its_generator():
    ds = list(zip(randn(32,8), randint(4,32)))
    gen = torch.Generator().manual_seed(3)
    dls = DataLoaders(torch.utils.data.DataLoader(ds, batch_size=8, shuffle=True, generator=gen), torch.utils.data.DataLoader(ds, 8))
    learn = learner(dls=dls)
    learn.fit(1)
    was,rng = gen.get_state(),torch.get_rng_state()
    a, = train_batches(learn)
    torch.rand(1, generator=gen)
    b, = train_batches(learn)
    assert all(map(torch.equal, a, b)) and torch.equal(torch.get_rng_state(), rng)
    gen.set_state(was)
    learn.prune(.3, 'snip')
    assert torch.equal(gen.get_state(), was)

def test_hooks_of_callbacks_and_what_they_write_outside():
    "A callback with hooks and a callback that counts: as they were"
    class Hooked(Callback):
        def __init__(self): self.counts,self.seen = dict(n=0),[]
        def before_fit(self): self.h = self.learn.model[0].register_forward_hook(lambda *_: self.seen.append(1))
        def after_fit(self): self.h.remove()
        def after_batch(self): self.counts['n'] += 1
    learn = learner(cbs=[LotteryCallback, cb := Hooked()])
    counts = cb.counts
    learn.prune(.3, 'snip')
    assert not learn.model[0]._forward_hooks and cb.counts is counts and counts['n']==0 and cb.seen==[] and not hasattr(cb, 'h')

def test_an_error_in_a_trial_leaves_nothing():
    class Breaks(Callback):
        def after_pred(self): raise KeyError('mine')
    learn = learner(cbs=[LotteryCallback, Amp(), Breaks()])
    learn.lottery.remember()
    was = everything(learn)
    with pytest.raises(KeyError, match='mine'): learn.prune(.3, 'snip')
    learn.lottery.told = False
    assert everything(learn)==was and not torch.is_autocast_enabled('cpu')

# --- second derivatives

@pytest.mark.parametrize('kind', [k for k in kinds if (k,'hg') not in no_signal and k not in ('drop','text','tabular','mixup','cutmix','bf16','amp','amp_clip_few')])
def test_hessian_is_that_of_the_loss_that_trains(kind):
    "By finite differences of gradients along the gradient, where no chance plays along; a clip is no part of the loss"
    learn = made(kind)
    learn.remove_cbs([GradientClip,Noise,Sharp])
    if kind!='fp16': learn.model.double()
    names,learn.lottery.masks = learn.lottery.names(),None
    if kind!='loss': learn.loss_func = F.mse_loss if kind=='collab' else F.cross_entropy    # in double precision
    else: learn.loss_func.double()
    dbl = [cb for cb in (Doubled(),) if kind!='fp16']
    learn.add_cbs(dbl)
    learn.lottery.remember()
    hg,g,ws = taken(learn, names, 'hg'),taken(learn, names),named_weights(learn.model, names)
    e,tol = (1e-6,1e-4) if kind!='fp16' else (1e-2,3e-2)
    def at(s):
        for n,w in ws.items(): w.data.add_(s*e*g[n])
        res = taken(learn, names)
        for n,w in ws.items(): w.data.sub_(s*e*g[n])
        return res
    a,b = at(1),at(-1)
    for n in names: torch.testing.assert_close(hg[n], (a[n]-b[n])/(2*e), rtol=tol, atol=tol*float(hg[n].abs().max()))

class Doubled(Callback):
    order = -5
    def before_batch(self): self.learn.xb = tuple(x.double() if x.is_floating_point() else x for x in self.xb)

@pytest.mark.parametrize('scale', [1,2.**6,2.**16])
def test_hessian_is_free_of_the_loss_scale(scale):
    learn = learner(cbs=[LotteryCallback, Amp(torch.bfloat16, scale)])
    learn.lottery.remember()
    names = list(learn.lottery.masks)
    a = taken(learn, names, 'hg')
    b = taken(learner(cbs=[LotteryCallback, Amp(torch.bfloat16, 1)]), names, 'hg') if scale>1 else a
    for n in names: torch.testing.assert_close(a[n], b[n])

@pytest.mark.parametrize('name', ['attention','lstm','gru','awd_lstm'])
def test_grasp_where_a_kernel_has_no_second_derivative(name):
    learn = from_zoo(name)
    learn.fit(1)
    learn.prune(.3, 'grasp')
    assert learn.lottery.masks.n_kept<learn.lottery.masks.numel
    learn.fit_lottery(1, rounds=1, criterion='grasp')

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
        if self.training:
            self.learn.loss_grad = self.loss_grad+.1*sum((p**2).sum() for p in self.learn.model.parameters())

class First(Callback):
    def after_pred(self): self.learn.pred = self.pred[0]

class Noise(Callback):
    "Adds to gradients, by chance"
    order = 5
    def before_step(self):
        for p in self.learn.model.parameters():
            if p.grad is not None: p.grad.add_(torch.randn_like(p)*.01)

class InPlace(Callback):
    "Writes into the batch"
    def before_batch(self): self.learn.xb[0].mul_(2)

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
    dls = DataLoaders(DataLoader(ds[:24], bs=bs, shuffle=True, drop_last=True), DataLoader(ds[24:], bs=bs),
                      device='cpu')
    if n_inp: dls.n_inp = n_inp
    return dls

def randint(hi, *shape): return torch.randint(0, hi, shape, generator=torch.Generator().manual_seed(1))
def randn(*shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(2))
def text():
    c = dict(awd_lstm_lm_config, emb_sz=8, n_hid=10, n_layers=2)
    return dict(model=lambda: get_language_model(AWD_LSTM, 20, c), dls=rows(randint(20,32,6), randint(20,32,6)),
                cbs=rnn_cbs(alpha=2., beta=1.))
def tabular():
    dls = rows(randint(4,32,2), randn(32,3), randint(4,32), n_inp=2)
    return dict(model=lambda: TabularModel([(5,3),(4,2)], 3, 4, [8,6], ps=.2), dls=dls)
def collab():
    return dict(model=lambda: EmbeddingDotBias(4, 9, 12, (0,5)), dls=rows(randint(9,32,2), randn(32)+3),
                loss=MSELossFlat(), metrics=[])
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
    amp_in_place = lambda: dict(cbs=[Amp(), InPlace()]),
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
        if self.seen is None:
            self.seen = {n:p.grad.clone() for n,p in named_weights(self.learn.model).items() if p.grad is not None}
    def before_step(self): self.look()
    def after_cancel_batch(self):
        s = getattr(self.learn, 'scaler', None)
        if self.seen is not None: return
        self.look()
        if s is not None and self.seen: self.seen = {n:g/s.get_scale() for n,g in self.seen.items()}
    def after_batch(self):
        if self.seen is not None: raise CancelFitException    # what comes after plays no part

def next_step(learn, b):
    "Gradients that the next training step sees on the batch `b`"
    learn.fit(10, cbs=[OnBatch(b), g := Gradients()])    # some skip steps at first
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

class Next(Callback):
    "Takes gradients after batch `at` of a fit, on a batch `b`"
    order = 1000
    def __init__(self, at): self.at,self.got,self.b = at,None,None
    def after_batch(self):
        if not self.training or self.learn.train_iter!=self.at: return
        for p in self.learn.model.parameters(): p.grad = None
        self.b, = train_batches(self.learn)
        self.got = taken(self.learn, list(self.learn.lottery.masks))

class OnNext(Callback):
    "The batch after that is `b`, and random numbers start from the same seed"
    order = -1000
    def __init__(self, next): self.next = next
    def before_batch(self):
        if self.next.b is None or not self.training or self.learn.train_iter!=self.next.at: return
        self.learn._split(deepcopy(self.next.b))
        torch.manual_seed(5)

class At(Gradients):
    "Those of iteration `at`"
    def __init__(self, at):
        super().__init__()
        self.at = at
    def look(self):
        if self.learn.train_iter==self.at: super().look()

@pytest.mark.parametrize('at', [2,3])
@pytest.mark.parametrize('kind', ['drop','set_up','counts','mixup','penalty','amp_clip_few','clip'])
def test_a_criterion_within_a_fit_sees_what_the_next_batch_sees(kind, at):
    learn = made(kind)
    learn.fit(1)
    learn.prune(.4)
    learn.fit(2, cbs=[n := Next(at), OnNext(n), g := At(at)])
    for k,m in learn.lottery.masks.items(): assert torch.equal(n.got[k][m], g.seen[k][m]), k

@pytest.mark.parametrize('event',
                         ['after_batch','after_train','after_validate','after_epoch','after_fit','before_fit',
                          'before_epoch'])
def test_a_callback_may_prune_by_gradients(event):
    def prunes(self):
        if not getattr(self, 'done', False):
            self.done = True
            self.learn.prune(.5, 'snip')
    learn = learner(cbs=[LotteryCallback, Amp()])
    learn.fit(1)
    learn.fit(2, cbs=type('Prunes', (Callback,), {event:prunes})())
    assert learn.lottery.masks.n_kept==144 and leaks(learn)==0

def test_a_callback_that_prunes_each_time():
    class Prunes(Callback):
        def after_batch(self):
            if self.training: self.learn.prune(.1, 'snip')
    learn = learner()
    learn.fit(1, cbs=Prunes())
    assert learn.lottery.n_pruned==4
    class Before(Callback):
        def before_batch(self): self.learn.prune(.1, 'snip')
    with pytest.raises(ValueError, match='prune in after_batch'): learn.fit(1, cbs=Before())

def test_gradients_by_hand():
    "Of other masks than those that are on, as a user may ask for them"
    learn = learner()
    learn.fit(1)
    learn.prune(.5)
    names,masks = list(learn.lottery.masks),learn.lottery.masks
    fewer = Masks({n:m&(torch.arange(m.numel()).view(m.shape)%2==0) for n,m in masks.items()})
    for o in (masks,fewer):
        a,b = loss_grads(learn, names, o),learn.lottery.known(names, ['g'], generator(0), o)['g']
        assert all(torch.equal(a[n], b[n]) and a[n][~o[n]].any() for n in names)
        x,y = train_batches(learn)[0]
        m = o.apply_(deepcopy(learn.model))
        g = torch.autograd.grad(learn.loss_func(m(x), y), list(named_weights(m, names).values()))
        assert all(torch.equal(a[n], v) for n,v in zip(names, g))

# --- nothing left behind

def everything(learn):
    "All that could tell of a trial"
    m,opt = learn.model,learn.opt
    def held(o): return [(k,id(v),repr(v)) for k,v in vars(o).items()]
    rng = torch.get_rng_state(),random.getstate(),np.random.get_state()[1],learn.dls.train.rng.getstate()
    mods = [(id(o),o.training,held(o)) for o in m.modules()]
    ps = [(id(p),id(p.grad),p.requires_grad,repr(p.grad),
           len(p._post_accumulate_grad_hooks or ())) for p in m.parameters()]
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
    dls = DataLoaders(torch.utils.data.DataLoader(ds, batch_size=8, shuffle=True, generator=gen),
                      torch.utils.data.DataLoader(ds, 8))
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
    class Stays(Callback):
        def before_fit(self): self.learn.model[0].register_forward_hook(lambda *_: None)
    learn.add_cb(Stays())
    learn.prune(.3, 'snip')
    assert not learn.model[0]._forward_hooks and cb.counts is counts and counts['n']==0 and cb.seen==[]
    assert not hasattr(cb, 'h')

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

class Doubled(Callback):
    order = -5
    def before_batch(self): self.learn.xb = tuple(x.double() if x.is_floating_point() else x for x in self.xb)

def smooth(kind):
    "A Learner in double precision, without what acts on gradients"
    learn = made(kind)
    learn.remove_cbs([GradientClip,Noise,Sharp])
    learn.model.double()
    learn.add_cb(Doubled())
    if kind=='loss': learn.loss_func.double()
    else: learn.loss_func = F.mse_loss if kind=='collab' else F.cross_entropy
    learn.lottery.remember()
    return learn

by_chance = 'drop text tabular mixup cutmix'.split()
in_half = 'fp16 bf16 amp amp_in_place amp_clip_few'.split()
@pytest.mark.parametrize('kind', [k for k in kinds if (k,'hg') not in no_signal and k not in by_chance+in_half])
def test_hessian_is_that_of_the_loss_that_trains(kind):
    "By finite differences of gradients along the gradient"
    learn,e = smooth(kind),1e-6
    names = list(learn.lottery.masks)
    hg,g,ws = taken(learn, names, 'hg'),taken(learn, names),named_weights(learn.model, names)
    def at(s):
        for n,w in ws.items(): w.data.add_(s*e*g[n])
        res = taken(learn, names)
        for n,w in ws.items(): w.data.sub_(s*e*g[n])
        return res
    a,b = at(1),at(-1)
    for n in names: torch.testing.assert_close(hg[n], (a[n]-b[n])/(2*e), rtol=1e-4, atol=1e-4*float(hg[n].abs().max()))

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

# --- refused before the dense round

class Steps(Callback):
    "Counts what trains"
    def __init__(self): self.n = 0
    def after_step(self): self.n += 1

class OnlyOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x*2
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g): return g*2

class Once(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(8,4)
    def forward(self, x): return OnlyOnce.apply(self.l(x))

class Named(nn.Module):
    "Outputs a text beside its numbers, and none that the flow could use in evaluation"
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(8,4)
    def forward(self, x): return self.l(x) if self.training else self.l(x).argmax(1)

class Skips(Callback):
    order = 5
    def before_backward(self): raise CancelBatchException

class Bare2(nn.Module):
    "A bare matrix, which nothing can draw anew"
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(8,4))
    def forward(self, x): return x@self.w

def no_batch():
    return DataLoaders(DataLoader([], bs=8), DataLoader(list(zip(randn(8,8), randint(4,8))), bs=8), device='cpu')

refused = dict(
    indices = (text, dict(criterion='synflow'), 'inputs that are numbers'),
    outputs = (lambda: dict(model=Named), dict(criterion='synflow'), 'outputs that are numbers'),
    once    = (lambda: dict(model=Once), dict(criterion='grasp'), 'second derivatives.*once_differentiable.*snip'),
    skipped = (lambda: dict(cbs=Skips()), dict(criterion='taylor'), 'callback cancels it'),
    skipped_in_fit = (lambda: {}, dict(criterion='taylor', cbs=Skips()), 'callback cancels it'),
    of_a_reset = (lambda: dict(cbs=Skips()), dict(reset=lambda w_k, g: w_k), 'callback cancels it'),
    of_an_action = (lambda: dict(cbs=Skips()), dict(hold=lambda w_i, g: 0*w_i), 'callback cancels it'),
    drawn   = (lambda: dict(model=Bare2), dict(reset='random_reinit', cb=dict(include='*')),
               'no initialiser of its own'),
)
@pytest.mark.parametrize('name', refused)
def test_what_cannot_play_is_refused_before_the_dense_round(name, tmp_path):
    kw,asked,says = refused[name]
    kw = kw()
    learn = learner(cbs=[LotteryCallback(**asked.pop('cb', {})), steps := Steps(), *L(kw.pop('cbs', None))], **kw)
    was = bits(learn.model)
    with pytest.raises(ValueError, match=says): learn.fit_lottery(1, rounds=1, path=tmp_path/'run', **asked)
    assert steps.n==0 and bits(learn.model)==was and not (tmp_path/'run').exists() and not learn.lottery.rounds

def test_a_gradient_needs_a_batch():
    learn = learner(dls=no_batch())
    for criterion,says in (('snip','gave no batch'), ('grasp','gave no batch'),
                           ('synflow','the training set gave none')):
        with pytest.raises(ValueError, match=says): learn.prune(.5, criterion)

def test_no_signal_is_asked_for_where_nothing_is_pruned():
    learn = learner(cbs=[LotteryCallback, Skips()])
    learn.lottery.check_known = None
    learn.fit_lottery(1, rounds=0, criterion='snip')

@pytest.mark.parametrize('criterion', ['snip','grasp','synflow'])
@pytest.mark.parametrize('kind', ['drop','vision','counts','mixup','loss','set_up','amp'])
def test_the_check_changes_no_training(kind, criterion, monkeypatch):
    def play():
        learn = made(kind)
        learn.fit_lottery(1, rounds=1, criterion=criterion, seed=3, amount=.3)
        return bits(learn.model),learn.lottery.report(full=True).drop(columns=['seconds']).to_dict()
    monkeypatch.setattr(synflow, 'steps', 3)
    a = play()
    monkeypatch.setattr(LotteryCallback, 'check_known', lambda *args: None)
    assert repr(play())==repr(a)

def test_callbacks_that_are_given_to_the_fit_take_part():
    def masks(own=None, **kwargs):
        learn = learner(cbs=[LotteryCallback, *L(own)])
        learn.fit_lottery(1, rounds=1, criterion='snip', amount=.5, seed=1, **kwargs)
        return learn.lottery.ticket().masks
    a,b = masks(Penalty()),masks(cbs=Penalty())
    assert a==b and a!=masks()

# --- gradients of pruned weights

class Looks(Callback):
    "Pruned weights whose gradient is not 0, at every event after backward"
    def __init__(self, order): self.order,self.seen,self.bad = order,0,0
    def look(self):
        ws = named_weights(self.learn.model)
        for n,m in self.learn.lottery.masks.items():
            if (g := ws[n].grad) is None: continue
            self.seen += 1
            self.bad += int((g.to_dense()[~m]!=0).sum()) if m.shape==g.shape else 1
    def after_backward(self): self.look()
    def before_step(self): self.look()
    def after_cancel_batch(self): self.look()

@pytest.mark.parametrize('order', [-1000,0,1000])
@pytest.mark.parametrize('kind', [k for k in kinds if k!='noise'])
def test_gradients_of_pruned_weights_are_0_for_whoever_looks(kind, order):
    learn = made(kind)
    learn.fit(1)
    learn.prune(.6, hold='hold_init' if order else None)
    learn.fit(2, cbs=(o := Looks(order)))
    assert o.seen and not o.bad
    learn.unprune()
    learn.fit(1)
    assert not any(p._post_accumulate_grad_hooks for p in learn.model.parameters())

@pytest.mark.parametrize('name', zoo)
@pytest.mark.parametrize('opt', [Adam, partial(OptimWrapper, opt=torch.optim.SGD)])
def test_every_kind_of_layer(name, opt):
    learn = from_zoo(name, opt_func=opt)
    learn.fit(1)
    learn.prune(.6)
    learn.fit(1, cbs=(o := Looks(-1000)))
    learn.rewind()
    learn.fit(1, cbs=o)
    assert o.seen and not o.bad

def test_sparse_gradients():
    def model(): return Ends(nn.Embedding(20,8,sparse=True), 8)
    learn = learner(model, data(shape=(6,), ints=20), opt_func=partial(OptimWrapper, opt=torch.optim.SGD))
    learn.fit(1)
    learn.prune(.6)
    learn.fit(1, cbs=(o := Looks(-1000)))
    assert o.seen and not o.bad and leaks(learn)==0
    learn.prune(.3, 'snip')

def test_infinite_gradients_and_the_bits_of_the_others():
    learn = learner()
    learn.fit(1)
    learn.prune(.5)
    w,m = learn.model[0].weight,learn.lottery.masks['0.weight']
    w.grad = None
    bad = torch.tensor([float('inf'),float('nan'),-float('inf'),-0.]).repeat(24).view(12,8)
    (w*bad).sum().backward()
    assert torch.equal(w.grad.view(torch.int32)[m], bad.view(torch.int32)[m])
    assert (w.grad.view(torch.int32)[~m]==0).all()

@pytest.mark.parametrize('thaw', ['fine_tune','by a callback'])
def test_layers_that_thaw(thaw):
    "Frozen where the masks were put on, free later, be it within a fit"
    class Thaws(Callback):
        def before_epoch(self):
            if self.epoch==1: self.learn.model.requires_grad_()
    learn = learner(drop_bn, splitter=lambda m: [params(m[:4]), params(m[4:])])
    learn.fit(1)
    learn.prune(.6)
    o = Looks(-1000)
    learn.freeze()
    if thaw=='fine_tune': learn.fine_tune(1, cbs=o)
    else: learn.fit(2, cbs=[Thaws(), o])
    assert o.seen and not o.bad

def test_copies_and_exports_have_their_own(tmp_path):
    learn = learner(path=tmp_path)
    learn.fit(1)
    learn.prune(.6)
    a = deepcopy(learn)
    p = deepcopy(learn.model)[0].weight
    p.sum().backward()
    assert (p.grad==1).all(), 'a copy of the model alone is nobody\'s'
    learn.unprune()
    a.fit(1, cbs=(o := Looks(-1000)))
    assert o.seen and not o.bad
    b = pickle.loads(pickle.dumps(a))
    b.fit(1, cbs=(o := Looks(-1000)))
    assert o.seen and not o.bad
    lot = a.lottery
    a.remove_cb(lot)
    a.model.zero_grad()
    (a.model(randn(4,8))**2).sum().backward()
    assert a.model[0].weight.grad[~lot.masks['0.weight']].any(), 'without the callback, none is 0'

# --- a clip is that of the net without its pruned weights

class Shown(Callback):
    "Norm and kept gradients before and after a clip"
    def __init__(self, order): self.order,self.norms,self.grads = order,[],[]
    def before_step(self):
        gs = [p.grad.clone() for p in self.learn.model.parameters()]
        self.norms.append(torch.stack([g.norm() for g in gs]).norm())
        self.grads.append(gs)

class Gone(nn.Module):
    "A linear layer that has only its surviving weights as parameters"
    def __init__(self, l, m):
        super().__init__()
        self.v,self.bias = nn.Parameter(l.weight.detach()[m].clone()),nn.Parameter(l.bias.detach().clone())
        self.register_buffer('m', m)
    def forward(self, x): return F.linear(x, torch.zeros(self.m.shape).masked_scatter(self.m, self.v), self.bias)

@pytest.mark.parametrize('norm_type', [1.,2.,float('inf')])
@pytest.mark.parametrize('n_acc', [None,32])
def test_a_clip_is_that_of_the_net_without_its_pruned_weights(norm_type, n_acc):
    learn = learner(opt_func=SGD)
    learn.fit(1)
    learn.prune(.8)
    learn.opt = None
    ms = learn.lottery.masks
    ls = [Gone(o, ms[f'{i}.weight']) if isinstance(o, nn.Linear) else nn.ReLU() for i,o in enumerate(learn.model)]
    small = learner(nn.Sequential(*ls), cbs=None, opt_func=SGD)
    for l in (learn,small):
        seed_all(l)
        acc = [GradientAccumulation(n_acc)] if n_acc else []
        l.fit(2, lr=.1, cbs=[GradientClip(.02, norm_type), *acc])
    for i,o in enumerate(ls):
        if not isinstance(o, Gone): continue
        w = learn.model[i]
        torch.testing.assert_close(w.weight[ms[f'{i}.weight']], o.v, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(w.bias, o.bias, rtol=1e-4, atol=1e-6)

def test_without_a_clip_a_training_is_what_it_was(monkeypatch):
    "To the last bit: a pruned weight's gradient moves nothing else"
    def play(opt):
        learn = learner(drop_bn, opt_func=opt)
        learn.fit(1)
        learn.prune(.6)
        seed_all(learn)
        learn.fit(3)
        return bits(learn.model)
    opts = [Adam, partial(SGD, mom=.9), partial(OptimWrapper, opt=torch.optim.AdamW)]
    new = [play(o) for o in opts]
    monkeypatch.setattr(LotteryCallback, 'after_grad', lambda *_: None)
    assert [play(o) for o in opts]==new

def test_no_event_after_the_step_is_played():
    seen = []
    class Told(Callback):
        def after_fit(self):
            seen.append(len(self.learn.recorder.values))
    learn = learner(cbs=[LotteryCallback(), Told()])
    learn.fit_lottery(1, rounds=2, amount=.3, criterion='snip')
    assert seen==[1,1,1]

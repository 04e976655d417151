"""Pruned weights held at values other than zero (mask-0 actions of 1905.01067), and fine-tuning at the last learning rate
(2003.02389)"""
import gc,json,math,os,warnings
from copy import deepcopy
import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from nets import *
from test_traps_masks import opts,later,dense_file,overflow,CpuAmp,_New
from fastai_lottery.fits import last_lr
from fastai_lottery.signals import train_batches
from fastai_lottery.digests import digest_of
from fastai_lottery.labels import weights_in

# --- the same, told a second time

def decided(how, w_i, w_f, m0, m1, old=None):
    "Values of pruned weights by name: those of `m0` that `m1` drops by `how`, those dropped before as in `old`"
    def one(n):
        i,f = w_i[n].double().numpy(),w_f[n].double().numpy()
        v = dict(hold_zero=np.zeros_like(i), hold_init=i, hold_init_or_zero=np.where(abs(f)<abs(i), 0., i))[how]
        before = np.zeros_like(i) if old is None else old[n].double().numpy()
        return torch.from_numpy(np.where(m1[n].numpy(), 0., np.where(m0[n].numpy(), v, before))).to(w_i[n].dtype)
    return {n:one(n) for n in m1}

def raw(t):
    "Bits of a tensor, of any strides"
    t = t.detach().cpu().contiguous()
    return t.view({1:torch.int8,2:torch.int16,4:torch.int32,8:torch.int64}[t.element_size()])

def astray(learn, want, model=None):
    "Number of pruned weights that are not, bit for bit, where they should be held"
    ws,ms = named_weights(model or learn.model),learn.lottery.masks
    return sum(int((raw(ws[n])[~m]!=raw(want[n].to(ws[n].dtype))[~m]).sum()) for n,m in ms.items())

class AtHeld(Probe):
    "`Probe` for values `want`"
    def __init__(self, want):
        super().__init__()
        self.want = want
    def look(self, when):
        if n := astray(self.learn, self.want): self.bad.append((when, self.steps, n))

def prune_held(learn, amount=.5, hold='hold_init', old=None, **kwargs):
    "Prune, and say by other means where the weights that went should be"
    if learn.lottery.masks is None: learn.lottery.remember()
    lot = learn.lottery
    m0,w_f = lot.masks,state(learn.model)
    m1 = learn.prune(amount, hold=hold, **kwargs)
    want = decided(hold, lot.w_i, w_f, m0, m1, old)
    assert m1!=m0 and astray(learn, want)==0
    return want

def masked(learn):
    "Names, masks and weights"
    ms = learn.lottery.masks
    return [(n,m,p) for (n,m),p in zip(ms.items(), named_weights(learn.model, ms).values())]

def some(want, masks): return sum(int((v[~masks[n]]!=0).sum()) for n,v in want.items())

how = pytest.mark.parametrize('hold', ['hold_init','hold_init_or_zero'])

# --- exactly held, after every step

def train_held(cbs=(), opt=SGD, n_epoch=2, steps=None, model=mlp, hold='hold_init', **kwargs):
    "Train, prune half, train on with what the optimizer remembers; prune more, and train from the rewind point"
    learn,want = learner(model, opt_func=opt, **kwargs),None
    learn.fit_one_cycle(1, lr_max=.01)
    for again in range(2):
        want = prune_held(learn, .2 if again else .5, hold, want)
        assert some(want, learn.lottery.masks)>(50 if hold=='hold_init' else 0)
        if again:
            learn.rewind()
            assert astray(learn, want)==0
        before,probe = state(learn.model),AtHeld(want)
        learn.fit_one_cycle(n_epoch, lr_max=.01, cbs=[probe, *[o() if isinstance(o,type) else o for o in L(cbs)]])
        n = len(learn.dls.train)*n_epoch
        assert probe.bad==[] and astray(learn, want)==0 and probe.batches==n
        assert probe.steps==(n if steps is None else steps)
        assert all(not torch.equal(before[k][m], p.data[m]) for k,m,p in masked(learn)), 'kept weights should train'
    return learn

@how
@pytest.mark.parametrize('opt', opts)
def test_held_after_every_step(opt, hold): train_held(opt=opts[opt], hold=hold)

@pytest.mark.parametrize('opt', ['sgd_mom_wd','ranger','torch_adamw_fused'])
@pytest.mark.parametrize('model', [conv_bn, drop_bn], ids=lambda o: o.__name__)
def test_with_batchnorm_and_convolutions(opt, model):
    train_held(opt=opts[opt], model=model, dls=data(shape=(1,6,6)) if model is conv_bn else data())

fp16 = type('MixedPrecision', (CpuAmp,), dict(__init__=lambda self: CpuAmp.__init__(self, 'fp16')))
settings = dict(
    fp16=([_New(CpuAmp,'fp16')],{}), bf16=([_New(CpuAmp,'bf16')],{}),
    skipped_steps=([fp16, _New(At, (1,4,5), overflow, 'before_step', 5)],{}),
    cancelled_steps=([_New(At, (0,2,3), raiser(CancelStepException), 'before_step', 5)],{}),
    accumulation=([_New(GradientAccumulation, 48)],dict(n_epoch=3, steps=4)), clip=([_New(GradientClip, .05)],{}),
    all_at_once=([_New(GradientAccumulation, 32), _New(GradientClip, .1), fp16],dict(steps=4)))

@pytest.mark.parametrize('opt', ['sgd_mom_wd','adam_l2','torch_adamw_fused'])
@pytest.mark.parametrize('what', settings)
def test_held_with_precision_accumulation_and_steps_that_do_not_happen(what, opt):
    cbs,kw = settings[what]
    train_held(cbs, opt=opts[opt], **kw)

@pytest.mark.parametrize('ex', [CancelBatchException, CancelTrainException, CancelEpochException, CancelFitException])
def test_cancelled_between_the_step_and_our_turn(ex):
    learn = learner(opt_func=opts['sgd_mom_wd'])
    learn.fit_one_cycle(1)
    probe = AtHeld(prune_held(learn))
    cut = At(2, raiser(ex), 'after_step', 70)
    learn.fit_one_cycle(2, cbs=[probe, cut])
    assert cut.done and probe.bad==[] and astray(learn, probe.want)==0

@pytest.mark.parametrize('v', [math.inf, math.nan])
@pytest.mark.parametrize('opt', ['sgd_mom_wd','adam_l2','torch_adamw_fused'])
def test_gradients_of_held_weights_that_are_not_finite(v, opt):
    learn = learner(opt_func=opts[opt])
    learn.fit(1)
    probe = AtHeld(prune_held(learn))
    def poison(learn):
        for _,m,p in masked(learn): p.grad[~m] = v
    bad = At(range(8), poison, 'before_step')
    learn.fit_one_cycle(2, cbs=[probe, bad])
    assert bad.done==8 and probe.bad==[] and all(torch.isfinite(p).all() for p in learn.model.parameters())

def other_strides(w):
    if w.ndim==4: return w.to(memory_format=torch.channels_last)
    return w.t().contiguous().t() if w.ndim==2 else w

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64],
                         ids=str)
@pytest.mark.parametrize('do', ['hold_','Hold'])
def test_any_bits(dtype, do):
    "-0, denormals, the largest numbers; whatever was there before; every shape and stride"
    g = torch.Generator().manual_seed(0)
    for shape in (7,), (5,4), (600,700), (3,2,4,4):
        for t in (lambda w: w, other_strides):
            w,v = (f(torch.randn(shape, generator=g).to(dtype)) for f in (t, lambda o: o))
            m = torch.rand(shape, generator=g)<.5
            flat = v.view(-1)
            ends = -0., torch.finfo(dtype).tiny/4, -torch.finfo(dtype).max, torch.finfo(dtype).max
            for i,o in enumerate(ends): flat[i::5] = o
            want = torch.where(m, w, v)
            w[~m] = math.nan
            for _ in range(2): hold_([w], [m], [v]) if do=='hold_' else Hold([w], [m], [v])()
            b = (lambda x: raw(torch.view_as_real(x))) if dtype.is_complex else raw
            assert torch.equal(b(w), b(want))

def test_some_held_and_some_zero():
    "`None` for one of the layers is 0"
    a,b,m = torch.ones(6),torch.ones(6),torch.arange(6)<3
    h = Hold([a,b], [m,m], [None,torch.full((6,), 7.)])
    h()
    assert a.tolist()==[1,1,1,0,0,0] and b.tolist()==[1,1,1,7,7,7]
    hold_([a,b], [m,m], [torch.full((6,), -2.),None])
    assert a.tolist()==[1,1,1,-2,-2,-2] and b.tolist()==[1,1,1,0,0,0]

# --- held until it is taken off

@pytest.fixture
def pruned(tmp_path):
    learn = learner(drop_bn, path=tmp_path, splitter=lambda m: [params(m[:4]), params(m[4:])])
    learn.fit(1)
    return learn,prune_held(learn)

@pytest.mark.parametrize('what', later)
def test_held_whatever_comes_later(pruned, what):
    learn,want = pruned
    masks,probe = learn.lottery.masks,AtHeld(want)
    learn.add_cb(probe)
    later[what](learn)
    assert probe.bad==[] and astray(learn, want)==0 and learn.lottery.masks==masks
    learn.fit(1)
    assert probe.bad==[] and astray(learn, want)==0 and learn.lottery.masks==masks and masks.density==.5

@pytest.mark.parametrize('what', ['fit','load_dense','fine_tune','rewind'])
def test_until_unprune(pruned, what):
    learn,want = pruned
    masks,at = learn.lottery.masks,state(learn.model)
    learn.unprune()
    assert bits(learn.model)==bits(at), 'they move again from where they were held'
    assert learn.lottery.masks.density==1 and learn.lottery.held is None
    later[what](learn)
    ws = named_weights(learn.model, masks)
    if what!='rewind': assert all((ws[n].data[~m]!=want[n][~m]).any() for n,m in masks.items())
    learn.prune(.3)
    learn.fit(1)
    assert leaks(learn)==0 and learn.lottery.held is None, 'a later prune holds at 0'

class Cast(Callback):
    def before_batch(self): self.learn.xb = tuple(x.to(next(self.model.parameters()).dtype) for x in self.xb)
    def after_pred(self): self.learn.pred = self.pred.float()

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_models_of_other_precision(dtype):
    "Held at the nearest number that the model has; back in single precision to the bit"
    learn = learner()
    learn.fit(1)
    want = prune_held(learn)
    lot = learn.lottery
    learn.model.to(dtype)
    lot.hold()
    assert astray(learn, want)==0
    if dtype!=torch.float16:
        learn.opt = None
        probe = AtHeld(want)
        learn.fit(1, cbs=[Cast(), probe])
        assert probe.bad==[] and probe.steps==4
    learn.model.float()
    lot.hold()
    assert astray(learn, want)==0

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64], ids=str)
def test_lottery_and_report_in_other_precision(dtype):
    learn = learner(lambda: mlp().to(dtype), cbs=[LotteryCallback(), Cast()])
    learn.fit_lottery(1, 2, amount=.5, hold='hold_init', seed=0)
    assert list(learn.lottery.report().density)==[1,.5,.25]
    learn = learner(cbs=[LotteryCallback(), Cast()])
    learn.fit(1)
    prune_held(learn)
    learn.model.to(dtype)
    learn.opt = None
    r = learn.fit_ticket(Ticket(learn.lottery.masks, learn.lottery.w_i, {}, learn.lottery.held), 1, seed=0)
    assert r['density']==.5

# --- copies and files

def lottery(path='.', n=2, hold='hold_init', model=drop_bn, cb={}, **kwargs):
    learn = learner(model, cbs=LotteryCallback(**cb), path=path, opt_func=Adam)
    learn.fit_lottery(1, n, amount=.4, seed=1, hold=hold, **kwargs)
    return learn

def held_of(learn): return {n:v.clone() for n,v in learn.lottery.held.items()}

acts = dict(
    hold=lambda c: ([p.data.fill_(1) for p in c.model.parameters()], c.lottery.hold()), rewind=lambda c: c.rewind(),
    load=lambda c: c.load(dense_file(c)), fit=lambda c: c.fit(1), ticket=lambda c: c.fit_ticket(c.lottery.ticket(), 1),
    state_dict=lambda c: c.model.load_state_dict({k: torch.ones_like(v) for k,v in c.model.state_dict().items()}))

@pytest.mark.parametrize('act', acts)
@pytest.mark.filterwarnings("ignore:Saved file doesn't contain")
def test_a_deepcopy_holds_its_own(tmp_path, act):
    learn = lottery(tmp_path)
    want,was,copy = held_of(learn),bits(learn.model),deepcopy(learn)
    a,b = ({v.data_ptr() for v in o.lottery.held.values()} for o in (copy,learn))
    assert not a&b, 'nothing is shared'
    acts[act](copy)
    assert astray(copy, want)==0 and some(want, copy.lottery.masks)
    copy.fit(1)
    assert astray(copy, want)==0
    copy.unprune()
    learn.lottery.hold()
    assert bits(learn.model)==was and astray(learn, want)==0

@pytest.mark.filterwarnings('ignore:.*load_learner.*')
def test_export_and_load_learner(tmp_path):
    learn = lottery(tmp_path)
    want,was = held_of(learn),bits(learn.model)
    dls = learn.dls
    dls.new_empty = lambda: dls
    learn.export('l.pkl')
    other = load_learner(tmp_path/'l.pkl')
    del learn
    gc.collect()
    assert bits(other.model)==was and astray(other, want)==0
    probe = AtHeld(want)
    other.fit(1, cbs=probe)
    assert probe.steps==4 and probe.bad==[] and bits(other.model)!=was

def test_save_and_load(tmp_path):
    learn = lottery(tmp_path)
    want,was = held_of(learn),bits(learn.model)
    learn.save('a')
    learn.fit(1)
    learn.load('a')
    assert bits(learn.model)==was and astray(learn, want)==0
    other = learner(drop_bn, path=tmp_path, opt_func=Adam)
    other.load('a')
    assert bits(other.model)==was, 'a checkpoint holds them as they are'

# --- decided at each prune

def starts(learn):
    "Callback that notes the state in which each training starts"
    class Start(Callback):
        order = 99
        def before_batch(self):
            if self.training and self.train_iter==0: seen.append(state(self.learn.model))
    seen = []
    learn.add_cb(Start())
    return seen

variants = dict(
    zero=(None,'rewind'), freeze=('hold_init','rewind'), variant_1=('hold_init_or_zero','rewind'),
    variant_2=('hold_init_or_zero','rewind_or_zero'))

def check_round(what, seen, m0, m1, ws, f, end, old):
    "One round: `f` was trained before it, `end` in it; `old` says where its pruned weights should be held"
    w_i,w_k = ws
    for n,m in m1.items():
        assert torch.equal(raw(end[n])[~m], raw(old[n])[~m]), n
        go,zero = m0[n]&~m,f[n].abs()<w_i[n].abs()
        if 'variant' in what: assert (go&zero).any() and (go&~zero).any(), 'both cases should be there'
        if seen is None: continue
        start = torch.where(zero, 0., w_k[n]) if what=='variant_2' else w_k[n]
        assert torch.equal(raw(seen[n]), raw(torch.where(m, start, old[n]))), n

@pytest.mark.parametrize('to', ['init','3it'])
@pytest.mark.parametrize('what', variants)
def test_two_rounds_by_hand(tmp_path, what, to):
    "Values are decided at each prune for the weights that go then, and stay for those that went before"
    hold,reset = variants[what]
    learn = learner(drop_bn, cbs=LotteryCallback(rewind_to=to), opt_func=Adam)
    seen = [None]*4 if to!='init' else starts(learn)
    # by chance, so that each round drops some that grew and some that shrank
    learn.fit_lottery(2, 3, amount=.4, criterion='random', hold=hold, reset=reset, seed=0, path=tmp_path)
    rs,w_i,w_k = learn.lottery.rounds,learn.lottery.w_i,learn.lottery.w_k
    assert (bits(w_i)!=bits(w_k))==(to!='init')
    trained,old = [weights_in(tmp_path/f'round_{r:02d}')[0] for r in range(4)],None
    for r in 1,2,3:
        m0,m1 = rs[r-1].masks,rs[r].masks
        old = decided(hold or 'hold_zero', w_i, trained[r-1], m0, m1, old)
        check_round(what, seen[r], m0, m1, (w_i,w_k), trained[r-1], trained[r], old)
        if hold is None: assert rs[r].held is None and rs[r].ticket.held is None
        else: assert all(torch.equal(rs[r].held[n][~m], old[n][~m]) for n,m in m1.items())
    if what!='variant_2': check_again(tmp_path, to, trained[2], rs[2])

def check_again(path, to, trained, r):
    "The ticket of a round, trained again, starts and ends where the round did"
    again = learner(drop_bn, cbs=LotteryCallback(rewind_to=to), opt_func=Adam, seed=5)
    again.fit_ticket(Ticket.load(path/'round_02'/'ticket'), 2, seed=0)
    assert bits(again.model)==bits(trained)
    assert astray(again, r.held or {n:torch.zeros(m.shape) for n,m in r.masks.items()})==0

def last(w_f): return w_f
def chance(w_i, gen): return torch.randn(w_i.shape, generator=gen)

def test_an_action_of_ones_own():
    "Any function of the vocabulary"
    learn = learner()
    learn.fit(1)
    was = state(learn.model)
    learn.prune(.5, hold=last)
    assert bits(learn.model)==bits(was), 'held where they are'
    first = {n:m for n,m in learn.lottery.masks.items()}
    learn.fit(1)
    learn.prune(.5, hold=chance, seed=4)
    got = state(learn.model)
    for n,m in learn.lottery.masks.items():
        assert torch.equal(got[n][~first[n]], was[n][~first[n]])
        assert not (got[n][first[n]&~m]==was[n][first[n]&~m]).any()
    learn.fit(1)
    learn.prune(0, hold=chance, seed=9)
    assert all(torch.equal(named_weights(learn.model)[n][~m], got[n][~m]) for n,m in learn.lottery.masks.items())

def test_a_random_action_draws_from_the_seed():
    "and only once"
    a,b,c = (lottery(hold=chance) for _ in range(3))
    b.fit_lottery(1, 2, amount=.4, seed=1, hold=chance)
    c.fit_lottery(1, 2, amount=.4, seed=2, hold=chance)
    assert bits(a.model)==bits(b.model)!=bits(c.model)
    rng = rng_states()
    a.prune(.1, hold=chance, seed=1)
    assert rng_states()==rng

def test_zero_after_held():
    "Weights that go later are 0 where nothing is said; those held before stay"
    learn = learner()
    learn.fit(1)
    want = prune_held(learn, .5)
    m = learn.lottery.masks
    learn.fit(1)
    want = prune_held(learn, .5, 'hold_zero', want)
    assert some(want, m) and all((v[m[n]]==0).all() for n,v in want.items())
    learn.fit(1)
    assert astray(learn, want)==0

# --- measured

@how
def test_reports_measure(hold):
    learn = lottery(n=3, hold=hold)
    df,rs = learn.lottery.report(full=True),learn.lottery.rounds
    for r,d,k in zip(rs, df.density, df.kept): assert k==r.masks.n_kept and d==k/df.prunable[0]
    zeros = sum(int((p==0).sum()) for p in named_weights(learn.model, learn.lottery.masks).values())
    assert (zeros==0)==(hold=='hold_init') and df.kept.iloc[-1]<df.prunable[0]-zeros

def test_a_held_weight_that_moved_shows_in_the_report():
    class Leak(Callback):
        def before_validate(self):
            for n,m in self.learn.lottery.masks.items():
                if len(i := (~m).nonzero()): named_weights(self.learn.model)[n].data[tuple(i[0])] += 1.
    learn = learner(cbs=[LotteryCallback(), Leak()])
    learn.fit_lottery(1, 1, amount=.5, hold='hold_init')
    assert list(learn.lottery.report().kept)==[288,144+3] and learn.lottery.masks.n_kept==144

# --- tickets

@pytest.fixture(scope='module')
def ticket(): return lottery(hold='hold_init_or_zero').lottery.ticket()

def applied(t): return {k:torch.where(t.masks[k], v, t.held[k]) if k in t.masks else v for k,v in t.weights.items()}

def test_tickets_keep_held_values(ticket, tmp_path):
    "Through a file, into a plain PyTorch model, and through a training, to the bit"
    ticket.save(tmp_path/'t')
    t = Ticket.load(tmp_path/'t')
    assert t.masks==ticket.masks and t.digest()==ticket.digest()
    assert bits(t.held)==bits(ticket.held) and some(t.held, t.masks)
    model = t.apply_(learner(drop_bn, seed=9).model)
    assert bits(model)==bits(applied(ticket))
    o = torch.optim.SGD(model.parameters(), lr=.1, momentum=.9, weight_decay=.1)
    for _ in range(3):
        o.zero_grad()
        model(torch.randn(16,8)).square().mean().backward()
        o.step()
        t.masks.apply_(model, t.held)
    ws = named_weights(model)
    assert all(torch.equal(raw(ws[n])[~m], raw(t.held[n])[~m]) for n,m in t.masks.items())
    assert all((ws[n][m]!=t.weights[n][m]).any() for n,m in t.masks.items())
    learn = learner(drop_bn, seed=7)
    probe = AtHeld(t.held)
    r = learn.fit_ticket(t, 2, cbs=probe)
    assert probe.bad==[] and probe.steps==8 and r['density']==t.density and bits(r.ticket.held)==bits(t.held)

def test_a_ticket_without_held_values_has_none(tmp_path):
    t = lottery(hold=None).lottery.ticket()
    t.save(tmp_path/'t')
    with safe_open(tmp_path/'t.safetensors', 'pt') as f: assert not [k for k in f.keys() if k.startswith('held')]
    assert Ticket.load(tmp_path/'t').held is None

def test_damaged_held_values_of_a_ticket(ticket, tmp_path):
    f = ticket.save(tmp_path/'t')
    b = bytearray(f.read_bytes())
    n = int.from_bytes(b[:8], 'little')
    head = json.loads(b[8:8+n])
    spans = [(k,v['data_offsets']) for k,v in head.items() if k.startswith('held/')]
    assert len(spans)==len(ticket.masks)
    model = drop_bn()
    before = bits(model)
    for k,(lo,hi) in spans:
        for at in (lo, (lo+hi)//2, hi-1):
            c = bytearray(b)
            c[8+n+at] ^= 1
            f.write_bytes(c)
            with pytest.raises(ValueError, match='t.safetensors.*damaged'): Ticket.load(f).apply_(model)
    f.write_bytes(b[:8+n+spans[0][1][1]-1])
    with pytest.raises(ValueError, match='t.safetensors.*damaged'): Ticket.load(f)
    assert bits(model)==before

def rewritten(f, change):
    "The file with other tensors, of which its digest is right"
    with safe_open(f, 'pt') as o: head,ts = o.metadata(),{k:o.get_tensor(k) for k in o.keys()}
    change(ts)
    save_file(ts, f, {**head, 'sha256':digest_of(ts, head['meta'])})

def test_held_values_of_another_shape(ticket, tmp_path):
    f = ticket.save(tmp_path/'t')
    k = next(iter(ticket.masks))
    rewritten(f, lambda ts: ts.update({f'held/{k}':torch.zeros(3,3)}))
    with pytest.raises(ValueError, match=rf"t\.safetensors.*{k}"): Ticket.load(f)
    with pytest.raises(ValueError, match=k):
        Ticket(ticket.masks, ticket.weights, {}, {**ticket.held, k:torch.zeros(3,3)})

# --- what else sees them

def at_held(learn, want):
    "The net with its pruned weights put to `want` by torch alone"
    m = deepcopy(learn.model)
    with torch.no_grad():
        ms = learn.lottery.masks
        for n,w in named_weights(m, ms).items(): w.copy_(torch.where(ms[n], w, want[n]))
    return m

def signal(kind, model, batch, names):
    "Gradients by autograd, by hand"
    ws,(x,y) = list(named_weights(model, names).values()),batch
    if kind=='flow':
        for p in model.parameters(): p.data = p.data.double().abs()
        return torch.autograd.grad(model.eval()(torch.ones_like(x[:1]).double()).sum(), ws)
    loss = nn.functional.cross_entropy(model.train()(x), y)
    gs = torch.autograd.grad(loss, ws, create_graph=True)
    return gs if kind=='loss' else torch.autograd.grad(sum((g*g).sum() for g in gs)/2, ws)

@pytest.mark.parametrize('kind,word', [('loss','g'), ('hessian','hg'), ('flow','r')])
def test_gradients_are_taken_with_held_values(kind, word):
    learn = learner()
    learn.fit(1)
    want = prune_held(learn, .5)
    lot = learn.lottery
    names = list(lot.masks)
    batch = one_batch(learn)
    def hand(want): return dict(zip(names, signal(kind, at_held(learn, want), batch, names)))
    got,by_hand = lot.known(names, [word], generator(0))[word],hand(want)
    zero = hand({n:torch.zeros_like(v) for n,v in want.items()})
    for n in names:
        torch.testing.assert_close(got[n].double(), by_hand[n].double(), rtol=1e-4, atol=1e-6)
        assert not torch.allclose(got[n].double(), zero[n].double(), rtol=1e-2,
                                  atol=1e-4), 'otherwise this tells nothing'
    # on the way to the next masks, what goes is 0 and what went before is where it is held; afterwards all is as it was
    before,masks = bits(learn.model),lot.masks
    fewer = make_masks({n:w.detach().abs() for n,w in named_weights(learn.model, names).items()}, masks, .3)
    got = lot.known(names, [word], generator(0), fewer)[word]
    assert bits(learn.model)==before
    fewer.apply_(learn.model, {n:torch.where(masks[n], 0., v) for n,v in want.items()})
    for n,g in zip(names, signal(kind, deepcopy(learn.model), batch, names)):
        torch.testing.assert_close(got[n].double(), g.double(), rtol=1e-4, atol=1e-6)

def one_batch(learn):
    b, = train_batches(learn)
    return tuple(b)

def test_batch_of_the_criteria_is_mixed_and_always_the_same():
    """Data in the order of their classes, augmentation, a loader that does not shuffle: a batch has all classes, and no random
    number moves"""
    y = torch.arange(40)//10
    ds = [(torch.full((3,), float(k)),k) for k in y]
    noise = lambda b: (b[0]+torch.rand_like(b[0]), b[1])
    for shuffle in (True,False):
        dls = DataLoaders(DataLoader(ds, bs=16, shuffle=shuffle, after_batch=noise), DataLoader(ds, bs=16),
                          device='cpu')
        learn = Learner(dls, nn.Linear(3,4), loss_func=nn.CrossEntropyLoss(), cbs=LotteryCallback())
        rng = learn.dls.train.rng.getstate(),torch.get_rng_state(),random.getstate()
        a,b = one_batch(learn),one_batch(learn)
        assert len(a[1].unique())==4 and all(torch.equal(o, p) for o,p in zip(a, b))
        assert learn.dls.train.rng.getstate()==rng[0] and random.getstate()==rng[2]
        assert torch.equal(torch.get_rng_state(), rng[1])

by_signal = dict(snip=lambda g,w: (g*w).abs(), taylor=lambda g,w: (g*w)**2, grasp=lambda g,w: g*w, synflow=lambda g,
                 w: (g*w.double()).abs())

@pytest.mark.parametrize('criterion', ['snip','grasp','synflow','taylor'])
def test_criteria_that_use_gradients(criterion):
    "The same weights go as by hand; the held ones stay held"
    learn = learner()
    learn.fit(1)
    want = prune_held(learn, .5)
    lot = learn.lottery
    names = list(lot.masks)
    batch,kind = one_batch(learn),dict(snip='loss', taylor='loss', grasp='hessian', synflow='flow')[criterion]
    def by_hand(want):
        g = dict(zip(names, signal(kind, at_held(learn, want), batch, names)))
        w = named_weights(learn.model, names)
        s = {n:by_signal[criterion](g[n], w[n]).detach() for n in names}
        return make_masks(s, lot.masks, .3)
    a,b = by_hand(want),by_hand({n:torch.zeros_like(v) for n,v in want.items()})
    from fastai_lottery.criteria import synflow,snip,grasp,taylor
    f = dict(synflow=lambda w_f, r: (r*w_f).abs(), snip=snip, grasp=grasp,
             taylor=taylor)[criterion]    # synflow in one step
    got = learn.prune(.3, f, hold='hold_zero')
    assert got==a and a!=b and astray(learn, want)==0
    learn.prune(.3, criterion)
    learn.fit(1)
    assert all(torch.equal(named_weights(learn.model)[n][want[n]!=0], want[n][want[n]!=0]) for n in names)

# --- every kind of weight

@pytest.mark.parametrize('name', zoo)
def test_every_kind_of_layer(name):
    learn = from_zoo(name, opt_func=Adam)
    learn.fit(1)
    probe = AtHeld(prune_held(learn, .5, 'hold_init_or_zero'))
    learn.fit(1, cbs=probe)
    learn.rewind()
    learn.fit(1, cbs=probe)
    assert probe.steps==8 and probe.bad==[] and astray(learn, probe.want)==0 and some(probe.want, learn.lottery.masks)

def test_tied_weights(tmp_path):
    learn = lottery(tmp_path, model=Tied)
    m,want = learn.model,held_of(learn)
    assert m.enc.weight is m.dec.weight and astray(learn, want)==0
    assert some({'enc.weight':want['enc.weight']}, learn.lottery.masks)
    assert 'dec.weight' not in learn.lottery.held and learn.lottery.report(full=True).prunable[0]==64+32
    t = learn.lottery.ticket()
    t.save(tmp_path/'t')
    other = Ticket.load(tmp_path/'t').apply_(Tied())
    assert other.enc.weight is other.dec.weight and astray(learn, want, other)==0
    with torch.no_grad(): m.dec.weight.fill_(9)
    learn.lottery.hold()
    assert astray(learn, want)==0
    learn = learner(Tied, cbs=LotteryCallback(include='dec'))
    learn.fit(1)
    want = prune_held(learn)
    learn.rewind()
    learn.fit(1)
    assert astray(learn, want)==0 and learn.model.enc.weight is learn.model.dec.weight

def test_channels_last(tmp_path):
    def model(): return conv_bn().to(memory_format=torch.channels_last)
    learn = learner(model, data(shape=(1,6,6)), opt_func=Adam, path=tmp_path)
    learn.fit_lottery(1, 2, amount=.4, hold='hold_init', seed=0)
    want = {n:v.clone() for n,v in learn.lottery.held.items()}
    probe = AtHeld(want)
    learn.fit(1, cbs=probe)
    w = learn.model[3].weight
    assert probe.bad==[] and probe.steps==4 and w.is_contiguous(memory_format=torch.channels_last)
    assert not w.is_contiguous()
    i = learn.lottery.w_i
    assert all(torch.equal(v[~m], i[n][~m]) for (n,v),m in zip(want.items(), learn.lottery.masks.values()))
    t = learn.lottery.ticket()
    t.save(tmp_path/'t')
    assert astray(learn, want, Ticket.load(tmp_path/'t').apply_(conv_bn()))==0

def test_biases(tmp_path):
    "Prunable with bias=True; held as weights are"
    def model():
        m = mlp()
        for n,p in m.named_parameters():
            if 'bias' in n: nn.init.uniform_(p, .5, 1.)
        return m
    learn = lottery(tmp_path, model=model, cb=dict(bias=True), hold='hold_init', criterion='random')
    masks,want = learn.lottery.masks,held_of(learn)
    gone = [n for n in masks if n.endswith('bias') and not masks[n].all()]
    assert gone and masks.numel==288+28 and all((want[n][~masks[n]]>=.5).all() for n in gone)
    probe = AtHeld(want)
    learn.fit(1, cbs=probe)
    assert probe.bad==[] and probe.steps==4

def test_frozen_layers_are_not_held(tmp_path):
    learn = learner(drop_bn, splitter=lambda m: [params(m[:4]), params(m[4:])])
    learn.freeze()
    learn.fit(1)
    want = prune_held(learn, .5)
    assert learn.lottery.masks['0.weight'].all()
    learn.unfreeze()
    learn.fit(1)
    assert astray(learn, want)==0
    want = prune_held(learn, .5, old=want)
    learn.fit(1)
    assert astray(learn, want)==0 and not learn.lottery.masks['0.weight'].all()

# --- one lottery after another

def test_nothing_is_left_of_the_lottery_before():
    "A second lottery, a ticket without held values, `forget`"
    plain = lottery(hold=None)
    def play(l): return l.fit_lottery(1, 2, amount=.4, seed=1)
    def forget(l):
        l.lottery.forget()
        load_(l.model, plain.lottery.w_i)
        play(l)
    for again in (play, forget, lambda l: l.fit_ticket(plain.lottery.ticket(), 1, seed=1)):
        learn = lottery(hold='hold_init')
        assert learn.lottery.held
        again(learn)
        assert learn.lottery.held is None and leaks(learn)==0 and bits(learn.model)==bits(plain.model)
    assert all(r.held is None for r in plain.lottery.rounds)

def test_learners_do_not_share():
    a,b = lottery(hold='hold_init'),lottery(hold=None)
    want = held_of(a)
    b.fit(1)
    a.fit(1)
    assert leaks(b)==0 and astray(a, want)==0

def test_rounds_keep_their_own():
    "What is held in a later round does not change what an earlier one says"
    learn = learner(opt_func=Adam)
    seen = []
    class Note(Callback):
        def before_fit(self): seen.append(None if self.learn.lottery.held is None else bits(self.learn.lottery.held))
    learn.add_cb(Note())
    learn.fit_lottery(1, 3, amount=.4, hold='hold_init', seed=0)
    assert seen[0] is None and len({repr(s) for s in seen})==4
    assert all(bits(r.held)==s for r,s in zip(learn.lottery.rounds[1:], seen[1:]))

@pytest.mark.parametrize('store', [False,True])
def test_going_back_within_the_tolerance(tmp_path, store):
    "The round before is put on again, with what it held"
    learn = learner(mlp, opt_func=Adam, metrics=[accuracy, AvgMetric(lambda p,t: torch.tensor(1.))])
    lot = learn.lottery
    def worse(*_): return torch.tensor(1. if lot.masks is None or lot.masks.n_kept>80 else 0.)
    learn.metrics = L(AvgMetric(worse))
    learn.fit_lottery(1, amount=.4, hold='hold_init', seed=0, tol=.1, lower=False,
                      **(dict(path=tmp_path) if store else {}))
    rs = lot.rounds
    assert len(rs)==4 and rs[-1]['kept']<80 and lot.masks==rs[2].masks
    assert bits(lot.held)==bits(rs[2].held)!=bits(rs[3].held)
    want = held_of(learn)
    assert astray(learn, want)==0
    probe = AtHeld(want)
    learn.fit(1, cbs=probe)
    assert probe.bad==[]

left = {}    # batches before the cut; not in the callback: a checkpoint would put it back

class Stopped(Exception): pass

class Cut(Callback):
    def before_batch(self):
        if not self.training: return
        left['n'] = left.get('n', 0)-1
        if left['n']==0: raise Stopped('stopped')

how_held = dict(amount=.4, hold='hold_init_or_zero', reset='rewind_or_zero', seed=1)
def stoppable(path, *cbs):
    learn = learner(drop_bn, opt_func=Adam, cbs=[LotteryCallback(), *cbs])
    learn.fit_lottery(2, 3, **how_held, path=path)
    return learn

def held_bits(learn): return [r.held and bits(r.held) for r in learn.lottery.rounds]

def test_a_run_that_was_stopped_goes_on_with_what_it_held(tmp_path):
    "Between rounds, and within one"
    want = stoppable(tmp_path/'a')
    for at in (9, 14, 17, 22, 29):    # 8 batches a round, 4 an epoch
        path = tmp_path/f'{at}'
        left['n'] = at
        with pytest.raises(Stopped): stoppable(path, Cut())
        learn = stoppable(path, Cut())
        assert bits(learn.model)==bits(want.model) and learn.lottery.masks==want.lottery.masks
        assert held_bits(learn)==held_bits(want)
        for r in 1,2,3:
            a,b = (Ticket.load(o/f'round_{r:02d}'/'ticket') for o in (path,tmp_path/'a'))
            assert a.masks==b.masks and bits(a.held)==bits(b.held) and bits(a.weights)==bits(b.weights)
    other = {k:v for k,v in how_held.items() if k!='hold'}
    with pytest.raises(ValueError, match='hold was'):
        learner(drop_bn, opt_func=Adam).fit_lottery(2, 3, **other, path=tmp_path/'a')

# --- settings

def ticket_of(l): return Ticket(Masks.ones(named_weights(l.model, l.lottery.names())), state(l.model))
ask = dict(
    prune=lambda l: l.prune(.5, hold='hold_me'), fit_lottery=lambda l: l.fit_lottery(1, 1, hold='hold_me'),
    fit_ticket=lambda l: l.fit_ticket(ticket_of(l), 1, hold='hold_me'))
@pytest.mark.parametrize('act', ask.values(), ids=ask)
def test_an_unknown_action_lists_them(act):
    learn = learner()
    before = bits(learn.model)
    with pytest.raises(ValueError, match="`hold` should be.*hold_zero, hold_init, hold_init_or_zero; got 'hold_me'"):
        act(learn)
    assert bits(learn.model)==before and (learn.lottery.masks is None or learn.lottery.masks.density==1)

def test_the_menu_has_each_once():
    assert list(actions_menu())==['hold_zero','hold_init','hold_init_or_zero']
    assert not set(actions_menu())&set(resets_menu()) and 'rewind_or_zero' in resets_menu()

@pytest.mark.parametrize('hold', [lambda w_j: w_j, lambda w_i, nope: w_i], ids=['w_j','two'])
def test_an_action_that_asks_for_something_unknown(hold):
    "is told before anything is trained"
    learn = learner()
    before = bits(learn.model)
    with pytest.raises(ValueError, match='asks for'): learn.fit_lottery(1, 1, hold=hold)
    assert bits(learn.model)==before and len(learn.lottery.rounds)==0

def test_an_action_without_a_name():
    def at(w_i, v): return torch.full_like(w_i, v)
    learn = learner()
    learn.fit_lottery(1, 1, amount=.5, hold=partial(at, v=3.))
    assert astray(learn, {n:torch.full(m.shape, 3.) for n,m in learn.lottery.masks.items()})==0

wrong = dict(shape=lambda w_i: torch.zeros(2), finite=lambda w_i: w_i/0, tensor=lambda w_i: 3.)
@pytest.mark.parametrize('bad,match', [(f,k) for k,f in wrong.items()], ids=['shape','nan','number'])
def test_an_action_that_gives_something_else(bad, match):
    learn = learner()
    learn.fit(1)
    before = bits(learn.model)
    with pytest.raises(ValueError, match=match): learn.prune(.5, hold=bad)
    assert bits(learn.model)==before and learn.lottery.masks.density==1

def test_fit_ticket_with_an_action_of_its_own():
    t = lottery(hold=None).lottery.ticket()
    learn = learner(drop_bn, seed=5)
    probe = AtHeld(t.weights)
    r = learn.fit_ticket(t, 1, hold='hold_init', cbs=probe)
    assert probe.bad==[] and probe.steps==4 and r['density']==t.density and some(r.held, t.masks)
    before = bits(learn.model)
    with pytest.raises(ValueError, match="needs 'w_f'"): learn.fit_ticket(t, 1, hold='hold_init_or_zero')
    assert bits(learn.model)==before

# --- memory

def test_no_memory_grows_with_prunes():
    "Values of one net, however often it is pruned, rewound and trained"
    learn = learner(opt_func=Adam)
    learn.fit(1)
    sizes = []
    for k in range(8):
        learn.prune(.1, hold='hold_init')
        learn.rewind()
        learn.fit(1)
        gc.collect()
        sizes.append(sum(t.numel() for t in gc.get_objects() if type(t) in (torch.Tensor,nn.Parameter)))
    assert max(sizes[3:])<=1.02*sizes[2]

# --- fine-tuning at the last learning rate

class Rates(Callback):
    "Learning rates of all groups at each step of each fit"
    order,run_valid = 95,False
    def __init__(self): self.fits = []
    def before_fit(self): self.fits.append([])
    def after_step(self): self.fits[-1].append([float(h['lr']) for h in self.opt.hypers])

import fastai_lottery.nets
schedules = dict(
    one_cycle=(Learner.fit_one_cycle, dict(lr_max=slice(1e-3,1e-2))), flat_cos=(Learner.fit_flat_cos, dict(lr=slice(1e-3,1e-2))),
    constant=(Learner.fit, dict(lr=slice(1e-3,1e-2))), drops=(Learner.fit_drops, dict(lr=slice(1e-3,1e-2))),
    one_lr=(Learner.fit_one_cycle, dict(lr_max=3e-3)), sgdr=(Learner.fit_flat_cos, dict(lr=1e-2, pct_start=.2)))

def tuned(fit, kw, cb={}, n=2, epochs=3, **settings):
    rec = Rates()
    def thirds(m): return [params(m[:4]), params(m[4:])]
    learn = learner(drop_bn, cbs=[LotteryCallback(**cb), rec], splitter=thirds, opt_func=partial(SGD, mom=.9))
    learn.fit_lottery(epochs, n, amount=.4, fit=fit, seed=0, **{'reset':'keep', **settings}, **kw)
    return learn,rec.fits

@pytest.mark.parametrize('what', schedules)
def test_last_lr_is_constant_in_pruned_rounds(what):
    "and is each group's last of the dense round, which is as it was"
    fit,kw = schedules[what]
    (a,plain),(b,fine) = tuned(fit, kw),tuned(last_lr(fit), kw)
    assert len(fine)==len(plain)==3 and all(len(f)==12 for f in fine) and fine[0]==plain[0]
    rows = [{k:v for k,v in o.lottery.rounds[0].row.items() if k!='seconds'} for o in (a,b)]
    assert bits(a.lottery.w_i)==bits(b.lottery.w_i) and rows[0]==rows[1]
    last = fine[0][-1]
    assert len(last)==2 and (len(set(last))==2)==('one_lr'!=what and 'sgdr'!=what)
    for f in fine[1:]:
        assert all(lr==f[0] for lr in f), 'constant'
        np.testing.assert_allclose(f[0], last, rtol=1e-6)
    if what!='constant': assert fine[0][0]!=last and bits(a.model)!=bits(b.model)
    assert plain[1]==plain[0] and leaks(b)==0

def by_hand(w0, masks, batches, lr):
    "Plain SGD under masks, by torch alone"
    model = mlp()
    load_(model, w0)
    masks.apply_(model)
    o = torch.optim.SGD(model.parameters(), lr=lr)
    for x,y in batches:
        o.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        o.step()
        masks.apply_(model)
    return model

def test_last_lr_starts_from_the_trained_weights(tmp_path):
    "Fine-tuning: the pruned round goes on from w_f, by steps of the last rate"
    learn,seen,rec = learner(opt_func=SGD),[],Rates()
    class Batches(Callback):
        run_valid = False
        def before_batch(self): seen.append((self.xb[0].clone(), self.yb[0].clone()))
    learn.add_cbs([Batches(), rec])
    learn.fit_lottery(2, 1, amount=.5, reset='keep', fit=last_lr(Learner.fit_flat_cos), seed=0, lr=.05, path=tmp_path)
    w0,lr = weights_in(tmp_path/'round_00')[0],rec.fits[0][-1][0]
    model = by_hand(w0, learn.lottery.masks, seen[8:], lr)
    for p,q in zip(model.parameters(), learn.model.parameters()): torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    assert 0<lr<.05 and any(not torch.allclose(p, w0[n]) for n,p in model.named_parameters())

def test_last_lr_after_late_rewinding_and_by_itself():
    "A rewind to iteration 5 goes on from there at the last rate; a dense fit is untouched, a pruned one is not"
    learn,fits = tuned(last_lr(Learner.fit_one_cycle), dict(lr_max=1e-2), cb=dict(rewind_to='5it'), reset='rewind')
    assert [len(f) for f in fits]==[12,7,7] and all(lr==f[0] for f in fits[1:] for lr in f)
    np.testing.assert_allclose(fits[1][0], fits[0][-1], rtol=1e-6)
    rec,learn = Rates(),learner(opt_func=SGD)
    learn.add_cb(rec)
    learn.fit_one_cycle(2, .01)
    last_lr(Learner.fit_one_cycle)(learn, 2, lr_max=.01)
    learn.prune(.3, hold='hold_init')
    last_lr(Learner.fit_one_cycle)(learn, 2, lr_max=.01)
    learn.fit_one_cycle(2, .01)
    assert rec.fits[0]==rec.fits[1]==rec.fits[3]
    assert all(lr==rec.fits[2][0] for lr in rec.fits[2]) and rec.fits[2][0]!=rec.fits[0][0]

def test_last_lr_leaves_the_learner_and_a_folder_in_order(tmp_path):
    "No callback stays; a run of it is not taken for one of the schedule, and goes on"
    fit = last_lr(Learner.fit_one_cycle)
    def play(f, n):
        l = learner(opt_func=SGD)
        l.fit_lottery(1, n, amount=.4, fit=f, reset='keep', seed=0, path=tmp_path/'a')
        return l
    a = play(fit, 1)
    names = [type(c).__name__ for c in a.cbs]
    assert names==[type(c).__name__ for c in learner(opt_func=SGD).cbs] and fit.__name__=='last_lr(fit_one_cycle)'
    b = play(last_lr(Learner.fit_one_cycle), 2)
    assert len(b.lottery.rounds)==3
    with pytest.raises(ValueError, match=r"fit was 'last_lr\(fit_one_cycle\)'"): play(Learner.fit_one_cycle, 2)
    with pytest.raises(TypeError, match=r'last_lr\(fit_one_cycle\)'): learner().fit_lottery(1, 1, fit=fit, nope=3)

@pytest.mark.parametrize('lr', [slice(1e-3,1e-2), slice(1e-2), np.array([1e-3,1e-2])], ids=['slice','to','array'])
def test_rates_of_groups_are_a_setting(tmp_path, lr):
    "A run with other ones in the same folder is refused"
    def play(lr):
        l = learner(drop_bn, splitter=lambda m: [params(m[:4]), params(m[4:])])
        l.fit_lottery(1, 1, fit=last_lr(Learner.fit), lr=lr, reset='keep', seed=0, path=tmp_path/'a')
    play(lr)
    play(lr)
    with pytest.raises(ValueError, match='lr was'): play(slice(1e-3,2e-2))

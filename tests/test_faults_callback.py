"Faults seen in use, by kind: who looks, what is exported, what trains beside the model, zeros from elsewhere, one callback a Learner"
import gc,logging,math,pickle,warnings
from copy import deepcopy
import pandas as pd,pytest
from torch.optim.swa_utils import AveragedModel
from nets import *
import fastai_lottery.callback as callback
from fastai_lottery.hold import Hold,hold_
from fastai_lottery.masks import optimizers_in
from fastai_lottery.signals import outside_state,load_outside_,unwatched

# --- optimizers that write where others do not

class ScheduleFree(torch.optim.Optimizer):
    "Schedule-free SGD (2405.15682): weights are y in training and x in evaluation; z goes by the gradient"
    def __init__(self, params, lr=.05, beta=.9, data=False):
        super().__init__(params, dict(lr=lr, beta=beta, data=data, k=0, at='train'))
    def each(self, f):
        with torch.no_grad():
            for g in self.param_groups:
                for p in g['params']:
                    f(g, p.data if g['data'] else p, self.state[p].setdefault('z', p.detach().clone()), p.grad)
    def swap(self, to, weight):
        if self.param_groups[0]['at']==to: return
        self.each(lambda g,p,z,_: p.lerp_(z, weight(g['beta'])))
        for g in self.param_groups: g['at'] = to
    def eval(self): self.swap('eval', lambda b: 1-1/b)
    def train(self): self.swap('train', lambda b: 1-b)
    def step(self, closure=None):
        def one(g, p, z, grad):
            c = 1/(g['k']+1)
            p.lerp_(z, c).add_(grad, alpha=g['lr']*(g['beta']*(1-c)-1))
            z.sub_(grad, alpha=g['lr'])
        self.each(one)
        for g in self.param_groups: g['k'] += 1

class Swaps(Callback):
    "Tell a schedule-free optimizer what comes; `late`: after all others"
    def __init__(self, late=False): self.order = 200 if late else -5
    def before_train(self): self.opt.opt.train()
    def before_validate(self): self.opt.opt.eval()

class Sam(Callback):
    "Sharpness-aware minimisation (2010.01412): the gradient of a point a little uphill"
    run_valid = False
    def __init__(self, data=False): self.data,self.climbs = data,0
    def before_step(self):
        ps = [p for p in self.model.parameters() if p.grad is not None]
        es = [.05*p.grad/(p.grad.norm()+1e-12) for p in ps]
        self._move(ps, es, 1)
        self.opt.zero_grad()
        self.loss_func(self.model(*self.xb), *self.yb).backward()
        self._move(ps, es, -1)
        self.climbs += 1
    def _move(self, ps, es, sign):
        with torch.no_grad():
            for p,e in zip(ps, es): (p.data if self.data else p).add_(e, alpha=sign)

class SamOpt(torch.optim.Optimizer):
    "The same as an optimizer around another, which climbs within its own step"
    def __init__(self, params, lr=.05):
        super().__init__(params, dict(lr=lr))
        self.base_optimizer,self.again = torch.optim.SGD(self.param_groups, lr=lr, momentum=.9),None
    @torch.no_grad()
    def step(self, closure=None):
        ps = [p for g in self.param_groups for p in g['params'] if p.grad is not None]
        was = [p.data.clone() for p in ps]
        for p in ps: p.data.add_(.05*p.grad.sign())
        with torch.enable_grad(): self.again()
        for p,w in zip(ps, was): p.data = w
        self.base_optimizer.step()

class Again(Callback):
    "What `SamOpt` computes after its climb"
    def before_step(self): self.opt.opt.again = self._again
    def _again(self):
        self.opt.zero_grad()
        self.loss_func(self.model(*self.xb), *self.yb).backward()

def torchs(opt, **kwargs): return partial(OptimWrapper, opt=opt, **kwargs)
plain = dict(
    sgd=partial(SGD, mom=.9, wd=.1), adam=partial(Adam, wd=.1), lamb=Lamb, ranger=partial(ranger, k=2),
    torch_sgd=torchs(torch.optim.SGD, momentum=.9), adamw=torchs(torch.optim.AdamW, weight_decay=.1),
    fused=torchs(torch.optim.AdamW, fused=True, weight_decay=.1))
strange = dict(
    schedule_free=(torchs(ScheduleFree), [Swaps]),
    schedule_free_data=(torchs(ScheduleFree, data=True), [Swaps]),
    schedule_free_late=(torchs(ScheduleFree, data=True), [lambda: Swaps(True)]),
    sam=(plain['sgd'], [Sam]), sam_adam=(Adam, [Sam]), sam_fused=(plain['fused'], [Sam]),
    sam_data=(plain['sgd'], [lambda: Sam(True)]), sam_opt=(torchs(SamOpt), [Again]))
every = {**{k:(v,[]) for k,v in plain.items()}, **strange}

def pruned_learner(opt='sgd', model=mlp, amount=.5, hold=None, **kwargs):
    "Trained a little, then pruned"
    f,cbs = every[opt]
    learn = learner(model, opt_func=f, **kwargs)
    learn.add_cbs([o() for o in cbs])
    learn.fit(1)
    learn.prune(amount, hold=hold)
    return learn

# --- whoever looks sees pruned weights at their value

class Early(Callback):
    "Looks right after the step, before any other"
    order = -5
    def __init__(self): self.seen = []
    def after_step(self): self.seen.append(leaks(self.learn))
    def after_cancel_step(self): self.seen.append(leaks(self.learn))

@pytest.mark.parametrize('opt', every)
def test_an_early_callback_sees_zeros_after_each_step(opt):
    learn = pruned_learner(opt)
    learn.fit(2, cbs=(c := Early()))
    assert c.seen==[0]*8

def looks(opt, seen, learn):
    "A hook on each torch optimizer that `opt` holds"
    def look(*args): seen.append(leaks(learn))
    return [o.register_step_post_hook(look) for o in optimizers_in(opt) if isinstance(o, torch.optim.Optimizer)]

@pytest.mark.parametrize('first', [True,False], ids=['theirs first','ours first'])
@pytest.mark.parametrize('opt', ['torch_sgd','adamw','fused','schedule_free','sam_opt'])
def test_a_hook_on_the_torch_optimizer_sees_zeros(opt, first):
    f,cbs = every[opt]
    learn,seen = learner(opt_func=f),[]
    learn.add_cbs([o() for o in cbs])
    learn.create_opt()
    hooks = looks(learn.opt, seen, learn) if first else []
    learn.prune(.5)
    learn.fit(1)
    if not first: hooks = looks(learn.opt, seen, learn)
    learn.fit(2)
    assert len(seen)==len(hooks)*(12 if first else 8) and hooks and not any(seen)

averaged = [(o,'callback') for o in ('sgd','adam','fused','schedule_free')]+[('fused','hook'),('schedule_free','hook')]
@pytest.mark.parametrize('opt,how', averaged)
def test_an_average_of_the_weights_is_as_sparse(opt, how):
    learn = pruned_learner(opt)
    ema = AveragedModel(learn.model, avg_fn=lambda a,p,n: .9*a+.1*p)
    class Ema(Callback):
        order = -5
        def after_step(self): ema.update_parameters(self.model)
    if how=='hook': learn.opt.opt.register_step_post_hook(lambda *a: ema.update_parameters(learn.model))
    learn.fit(2, cbs=[] if how=='hook' else Ema())
    ws = named_weights(ema.module)
    assert int(ema.n_averaged)==8 and all(not ws[n][~m].any() and ws[n][m].any() for n,m in learn.lottery.masks.items())

def each_forward(learn, want=None):
    "Note, from within each forward pass, how many pruned weights are elsewhere"
    seen,ws = [],named_weights(learn.model)
    def look(m, xs):
        ms = learn.lottery.masks.items()
        seen.append(sum(int((ws[n].data[~m]!=(0 if want is None else want[n][~m])).sum()) for n,m in ms))
    next(m for m in unwrap(learn.model).modules() if isinstance(m, nn.Linear)).register_forward_pre_hook(look)
    return seen

@pytest.mark.parametrize('hold', [None,'hold_init'])
@pytest.mark.parametrize('opt', every)
def test_every_forward_pass_has_them_at_their_value(opt, hold):
    "In training, validation and afterwards; twice a batch with SAM"
    learn = pruned_learner(opt, hold=hold)
    seen = each_forward(learn, learn.lottery.held)
    learn.fit(2)
    n = 2*(8 if 'sam' in opt else 4)+2
    assert len(seen)==n and not any(seen)
    learn.validate()
    learn.get_preds()
    if hasattr(learn.opt, 'opt') and hasattr(learn.opt.opt, 'train'):
        for f in (learn.opt.opt.train, learn.opt.opt.eval): [f(), learn.model(learn.dls.one_batch()[0])]
        assert len(seen)==n+4
    learn.rewind()
    learn.fit(1)
    assert len(seen)>n+2 and not any(seen)

@pytest.mark.parametrize('opt', ['schedule_free','schedule_free_data'])
def test_what_is_saved_after_a_swap_is_sparse(opt, tmp_path):
    learn = pruned_learner(opt, path=tmp_path)
    learn.fit(2)
    learn.opt.opt.train()
    learn.opt.opt.eval()
    learn.save('m', with_opt=False)
    saved = torch.load(tmp_path/'models/m.pth', weights_only=True)
    assert all(not saved[n][~m].any() for n,m in learn.lottery.masks.items())

def test_kept_weights_go_as_without_the_callback():
    "A schedule-free training under masks, by hand"
    learn = pruned_learner('schedule_free')
    model,masks,batches = deepcopy(learn.model),learn.lottery.masks,[]
    learn.opt = None
    class Note(Callback):
        def before_batch(self):
            if self.training: batches.append((self.xb[0].clone(), self.yb[0].clone()))
    learn.fit(2, .05, cbs=Note())
    opt = ScheduleFree(list(model.parameters()), lr=.05)
    for x,y in batches:
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
        masks.apply_(model)
    learn.opt.opt.train()
    for a,b in zip(model.parameters(), learn.model.parameters()): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

# --- writers that come late, and those that go through `.data`

def nudge(learn, data=True):
    with torch.no_grad():
        for p in learn.model.parameters(): (p.data if data else p).add_(.1)

def writer(event, data):
    c = Callback()
    setattr(c, event, lambda: nudge(c.learn, data) if c.learn.training else None)
    return c

@pytest.mark.parametrize('event',
                         ['after_step','after_batch','before_batch','before_train','before_epoch','before_fit'])
def test_a_callback_that_writes(event):
    learn = pruned_learner()
    seen = each_forward(learn)
    learn.fit(2, cbs=writer(event, False))
    assert len(seen)==10 and not any(seen)

def test_a_callback_that_writes_through_data_after_the_step():
    learn = pruned_learner()
    seen = each_forward(learn)
    learn.fit(2, cbs=[writer('after_step', True), p := Probe()])
    assert len(seen)==10 and not any(seen) and p.bad==[]

def test_whoever_writes_through_data_elsewhere_says_so():
    learn = pruned_learner()
    seen = each_forward(learn)
    c = writer('before_batch', True)
    also = Callback(before_batch=lambda self: self.learn.lottery.hold())
    learn.fit(1, cbs=[c,also])
    assert not any(seen)

@pytest.mark.parametrize('opt', ['sgd','fused','adam'])
def test_the_optimizer_may_be_replaced_in_the_middle(opt):
    "and a prune may come in the middle too"
    learn = pruned_learner(opt)
    seen,new = each_forward(learn),At(2, lambda l: l.create_opt())
    more = At(5, lambda l: l.prune(.3))
    learn.fit(2, cbs=[new, more, c := Early()])
    assert new.done and more.done and not any(seen) and sum(map(bool, c.seen))<=1, 'the first step of a new optimizer may be seen, no other'

@pytest.mark.parametrize('ex', [KeyboardInterrupt(), RuntimeError('no'), CancelFitException(), CancelTrainException()],
                         ids=repr)
@pytest.mark.parametrize('opt', ['sgd','adamw'])
def test_a_fit_that_is_cut_off(opt, ex):
    learn = pruned_learner(opt)
    try: learn.fit(2, cbs=At(2, raiser(ex), 'after_step', -9))
    except (KeyboardInterrupt,RuntimeError): pass
    assert leaks(learn)==0
    learn.loss = learn.loss_grad = learn.pred = None    # they cannot be copied, being in the middle of a graph
    copy = deepcopy(learn)
    for l in (learn,copy):
        l.fit(1, cbs=(c := Early()))
        assert c.seen==[0]*4

@pytest.mark.parametrize('opt', ['sgd','ranger','adamw'])
def test_a_loop_of_ones_own(opt):
    "Without any event: steps and passes by hand"
    learn = pruned_learner(opt)
    seen,(x,y) = each_forward(learn),learn.dls.one_batch()
    for _ in range(3):
        learn.loss_func(learn.model(x), y).backward()
        learn.opt.step()
        assert leaks(learn)==0
        learn.opt.zero_grad()
    assert seen==[0]*3

@pytest.mark.parametrize('cbs', [[], [lambda: GradientAccumulation(48)], [lambda: GradientClip(.1)]],
                         ids=['plain','accumulation','clip'])
def test_one_hold_a_step(cbs, monkeypatch):
    "and none for a pass: the hold right after the step is taken on trust"
    n,call = [],Hold.__call__
    monkeypatch.setattr(Hold, '__call__', lambda self: [n.append(len(self.ws)), call(self)][1])
    learn = pruned_learner('adamw')
    n.clear()
    learn.fit(1, cbs=[o() for o in cbs])
    assert 4<=len(n)<=4+4, 'and a few for the whole fit'

# --- copies, pickles, wrappers

@pytest.mark.parametrize('when', ['after','within'])
@pytest.mark.parametrize('opt', [*plain,'schedule_free'])
def test_a_copy_holds_its_own_weights_alone(opt, when):
    learn,copies = pruned_learner(opt),[]
    if when=='within': learn.fit(1, cbs=At(0, lambda l: copies.append(deepcopy(l)), 'before_train'))
    copy = copies[0] if copies else deepcopy(learn)
    copy.cbs = L(o for o in copy.cbs if not isinstance(o, At))
    was = bits(learn.model)
    for p in copy.model.parameters(): p.data.fill_(1)
    copy.opt.zero_grad()
    step(copy)
    assert leaks(copy)==0 and bits(learn.model)==was and copy.lottery is not learn.lottery
    for p in learn.model.parameters(): p.data.fill_(1)
    now = bits(copy.model)
    step(learn)
    assert leaks(learn)==0 and bits(copy.model)==now
    seen = each_forward(copy)
    copy.fit(1)
    assert seen and not any(seen)

def step(learn):
    x,y = learn.dls.one_batch()
    learn.loss_func(learn.model(x), y).backward()
    learn.opt.step()

@pytest.mark.parametrize('opt', ['sgd','ranger','adamw'])
def test_a_pickle_keeps_everything_and_holds(opt):
    learn = pruned_learner(opt)
    other = pickle.loads(pickle.dumps(learn))
    assert other.lottery.masks==learn.lottery.masks and bits(other.lottery.w_i)==bits(learn.lottery.w_i)
    assert other.opt.step.__func__ is getattr(type(other.opt), 'step', None) or hasattr(other.opt, 'opt')
    seen = each_forward(other)
    other.validate()
    other.fit(1, cbs=(c := Early()))
    assert c.seen==[0]*4 and not any(seen)

@pytest.mark.parametrize('gone', ['unprune','forget','remove_cb'])
def test_nothing_stays_when_the_masks_are_gone(gone):
    learn = pruned_learner('adam')
    lot,masks = learn.lottery,learn.lottery.masks
    assert len(learn.model._forward_pre_hooks)==1 and 'step' in vars(learn.opt)
    dict(unprune=learn.unprune, forget=lot.forget, remove_cb=lambda: learn.remove_cb(lot))[gone]()
    assert not learn.model._forward_pre_hooks and 'step' not in vars(learn.opt)
    learn.fit(1)
    assert sum(int((p!=0).sum()) for p in named_weights(learn.model, masks).values())>masks.n_kept+60
    torch.jit.script(learn.model)

def test_copies_of_copies_gather_no_hooks():
    learn = pruned_learner('adamw')
    for _ in range(4): learn = deepcopy(learn)
    assert len(learn.model._forward_pre_hooks)==1 and len(learn.model._load_state_dict_post_hooks)==1
    assert len(learn.opt.opt._optimizer_step_post_hooks)==1

def test_the_model_alone_is_nobodys():
    learn = pruned_learner()
    for m in (deepcopy(learn.model), pickle.loads(pickle.dumps(learn.model))):
        assert list(m.state_dict())==list(mlp().state_dict())
        with torch.no_grad():
            for p in m.parameters(): p.fill_(1)
        m(torch.randn(2,8))
        assert all((p==1).all() for p in m.parameters())

@pytest.mark.parametrize('wrap', ['compiled','in place','dataparallel','both'])
def test_wrapped_models(wrap):
    "`fullgraph`: the hook breaks no graph"
    torch._dynamo.reset()    # what other tests of this process compiled counts, too
    learn = learner(opt_func=torchs(ScheduleFree), cbs=[LotteryCallback(), Swaps()])
    make = dict(compiled=lambda m: torch.compile(m, backend='eager', fullgraph=True), dataparallel=nn.DataParallel,
                both=lambda m: nn.DataParallel(torch.compile(m, backend='eager', fullgraph=True)))
    if wrap=='in place': learn.model.compile(backend='eager', fullgraph=True)
    else: learn.model = make[wrap](learn.model)
    learn.fit(1)
    learn.prune(.5)
    x,seen,bare = learn.dls.one_batch()[0],[],mlp()
    class Same(Callback):
        order = 300
        def after_pred(self):
            load_(bare, state(self.model))
            seen.append(leaks(self.learn)+int(not torch.allclose(bare(*self.xb), self.pred, atol=1e-5)))
    learn.fit(2, cbs=Same())
    assert len(seen)==10 and not any(seen)

def test_export_and_trace_of_a_pruned_model():
    learn = pruned_learner()
    x,m = learn.dls.one_batch()[0],learn.model.eval()
    want = m(x)
    for f in (torch.export.export(m, (x,)).module(), torch.jit.trace(m, x)): torch.testing.assert_close(f(x), want)
    got = torch.func.functional_call(m, {k: torch.zeros_like(v) for k,v in m.named_parameters()}, (x,))
    assert not got.any() and leaks(learn)==0
    with torch.inference_mode(): torch.testing.assert_close(learn.model(x), want)
    learn.fit(1, cbs=(c := Early()))
    assert c.seen==[0]*4

def test_a_pass_under_inference_mode_where_weights_have_moved():
    learn = pruned_learner()
    learn.model.double().float()
    with torch.inference_mode(): learn.model(learn.dls.one_batch()[0])
    learn.model[0].weight.data.fill_(1)
    learn.lottery.hold()
    assert leaks(learn)==0
    learn.fit(1, cbs=(c := Early()))
    assert c.seen==[0]*4

def test_unwatched_passes_take_the_weights_as_they_are():
    learn = pruned_learner()
    seen = each_forward(learn)
    with unwatched(learn):
        with torch.no_grad(): learn.model[0].weight.fill_(1)
        learn.model(learn.dls.one_batch()[0])
    assert seen==[int((~learn.lottery.masks['0.weight']).sum())]
    learn.model(learn.dls.one_batch()[0])
    assert seen[-1]==0

@pytest.mark.parametrize('dt', [torch.float32,torch.float16,torch.bfloat16,torch.float64,torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize('held', [False,True])
def test_wide_masks_and_bytes_do_the_same(dt, held):
    g = torch.Generator().manual_seed(0)
    w = torch.randn(40,30, generator=g)
    w[::3],w[1::5] = math.inf,math.nan
    m,v = torch.rand(40,30, generator=g)<.5,torch.randn(40,30, generator=g).to(dt) if held else None
    a,b,c,was = w.to(dt),w.to(dt),w.to(dt),m.clone()
    wide,narrow = Hold([a], [m], [v]),Hold([b], [m], [v], wide=0)
    assert wide.wide and not narrow.wide
    for o in (wide,narrow,wide,narrow): o()
    hold_([c], [m], [v])
    assert a.view(torch.uint8).equal(b.view(torch.uint8)) and a.view(torch.uint8).equal(c.view(torch.uint8))
    assert torch.equal(m, was)
    n = w.numel()
    assert wide.nbytes-narrow.nbytes==0 if dt.itemsize==1 else wide.nbytes==n*dt.itemsize*(1+held)

def test_large_nets_keep_bytes():
    w = torch.empty(2049,2048)
    assert not Hold([w], [torch.ones(w.shape, dtype=torch.bool)]).wide
    assert Hold([w[1:]], [torch.ones(2048,2048, dtype=torch.bool)]).wide

# --- what an export carries

def wide_net():
    return nn.Sequential(nn.Linear(8,400), nn.ReLU(), nn.Linear(400,400), nn.BatchNorm1d(400), nn.ReLU(),
                         nn.Linear(400,4))

def exported(learn, path):
    learn.dls.new_empty = lambda: type(learn.dls)(*[o.new([]) for o in learn.dls.loaders])
    learn.export('l.pkl')
    return learn.path/'l.pkl'

def played(path, model=wide_net, **kwargs):
    learn = learner(model, opt_func=Adam, path=path)
    learn.fit_lottery(1, 2, amount=.4, seed=1, **kwargs)
    return learn

def loaded(f):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return load_learner(f)

def n_bytes(model): return sum(t.numel()*t.element_size() for t in model.state_dict().values())

@pytest.mark.parametrize('hold', [None,'hold_init'])
def test_an_export_carries_the_model_and_masks_at_a_bit_a_weight(tmp_path, hold):
    learn = played(tmp_path, hold=hold)
    assert len(pickle.dumps(learn)) > 3*n_bytes(learn.model), 'a pickle keeps snapshots and rounds'
    size,none = exported(learn, tmp_path).stat().st_size,learner(wide_net, cbs=[], path=tmp_path)
    assert size-exported(none, tmp_path).stat().st_size < learn.lottery.masks.numel/8+10_000
@pytest.mark.parametrize('hold', [None,'hold_init'])
def test_what_is_loaded_predicts_and_stays_pruned(tmp_path, hold):
    learn = played(tmp_path, hold=hold)
    dl,x = learn.dls.valid,torch.randn(4,8)
    other,want = loaded(exported(learn, tmp_path)),{n:v.clone() for n,v in (learn.lottery.held or {}).items()}
    assert torch.equal(other.get_preds(dl=dl)[0], learn.get_preds(dl=dl)[0])
    assert torch.equal(other.model.eval()(x), learn.model.eval()(x)) and other.lottery.masks==learn.lottery.masks
    other.dls = learn.dls
    other.fit(1)
    ws = named_weights(other.model)
    assert all(torch.equal(ws[n].data[~m], want[n][~m] if want else torch.zeros(int((~m).sum()))) for n,m in other.lottery.masks.items())
    other.fit_lottery(1, 1)
    assert len(other.lottery.rounds)==2

def test_an_exported_lottery_says_that_it_is_one(tmp_path):
    other = loaded(exported(played(tmp_path, mlp), tmp_path))
    lot = other.lottery
    assert len(lot.rounds)==0 and lot.w_i is lot.w_k is lot.hypers is None and lot.b_i==lot.b_k=={}
    with pytest.raises(ValueError, match='was exported.*leaves rounds and snapshots behind.*ticket'): other.rewind()
    assert 'was exported' in lot.why_nothing(rounds=True)
    assert 'fit_lottery' in learner().lottery.why_nothing(rounds=True)

@pytest.mark.parametrize('ok', [True,False])
def test_an_export_leaves_the_learner_as_it_was(tmp_path, ok):
    learn = played(tmp_path, mlp)
    lot,was = learn.lottery,(bits(learn.model),bits(learn.lottery.w_i),learn.lottery.masks)
    rounds,dls = [dict(r.row) for r in lot.rounds],learn.dls
    if ok: exported(learn, tmp_path)
    else:
        learn.path = tmp_path/'nowhere'
        with pytest.raises((OSError,RuntimeError)): exported(learn, tmp_path)
        learn.opt,learn.dls = None,dls    # fastai leaves these behind
    assert (bits(learn.model),bits(lot.w_i),lot.masks)==was and [r.row for r in lot.rounds]==rounds
    learn.path = tmp_path
    seen = each_forward(learn)
    learn.fit(1, cbs=(c := Early()))
    learn.rewind()
    assert c.seen==[0]*4 and not any(seen) and leaks(learn)==0

def test_an_exported_model_has_no_hooks(tmp_path):
    m = loaded(exported(played(tmp_path, mlp), tmp_path)).model
    assert not m._forward_pre_hooks and not m._load_state_dict_post_hooks
    torch.jit.script(m)

def test_an_export_without_a_lottery(tmp_path):
    learn = learner(cbs=[], path=tmp_path)
    assert loaded(exported(learn, tmp_path)).model[0].weight.equal(learn.model[0].weight)
    learn = learner(path=tmp_path)
    assert loaded(exported(learn, tmp_path)).lottery.masks is None

# --- what trains beside the model

class Scaled(nn.Module):
    "A loss that learns a scale, and keeps a running mean"
    def __init__(self):
        super().__init__()
        self.s,self.unused = nn.Parameter(torch.tensor([1.,.5])),nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer('mean', torch.zeros(()))
    def forward(self, p, y):
        self.mean = .9*self.mean+.1*nn.functional.cross_entropy(p, y).detach()
        return nn.functional.cross_entropy(p*self.s[0], y)+self.s[1]**2

class Wrapped(CrossEntropyLossFlat):
    def __init__(self): self.func,self.axis,self.flatten,self.is_2d,self.floatify = Scaled(),-1,True,True,False

class MixedUp(Scaled):
    "As MixUp wants a loss"
    y_int,reduction = True,'mean'
    def forward(self, p, y):
        o = nn.functional.cross_entropy(p*self.s[0], y, reduction=self.reduction)
        return o+self.s[1]**2

def scaled(loss=None, at='init', **kwargs):
    "A Learner whose loss learns, and the module of it"
    loss = loss or Scaled()
    m = getattr(loss, 'func', loss)
    learn = learner(drop_bn, loss=loss, splitter=lambda net: [*net.parameters(), m.s], cbs=LotteryCallback(at), lr=.1,
                    **kwargs)
    return learn,m

class Begins(Callback):
    "The loss's parameters as each training begins"
    order = -20
    def __init__(self, m): self.m,self.seen = m,[]
    def before_batch(self):
        if self.training and self.train_iter in (0,3):
            self.seen.append((self.train_iter,*self.m.s.tolist(),float(self.m.mean)))

@pytest.mark.parametrize('loss', [Scaled,Wrapped])
@pytest.mark.parametrize('at', ['init','3it'])
def test_a_loss_that_learns_is_rewound(loss, at):
    learn,m = scaled(loss(), at)
    learn.fit(1)
    lot,after = learn.lottery,m.s.detach().clone()
    assert set(lot.b_i)=={'loss_func.s','loss_func.mean'} and lot.b_i['loss_func.s'].tolist()==[1.,.5]!=after.tolist()
    assert (lot.b_k['loss_func.s'].tolist()==[1.,.5])==(float(lot.b_k['loss_func.mean'])==0)==(at=='init')
    for _ in range(2):
        learn.prune(.2)
        learn.rewind()
        assert torch.equal(m.s, lot.b_k['loss_func.s']) and torch.equal(m.mean, lot.b_k['loss_func.mean'])
        assert m.s.grad is None
        learn.fit(1)
        assert not torch.equal(m.s, lot.b_k['loss_func.s'])

@pytest.mark.parametrize('at', ['init','3it'])
def test_each_round_of_a_lottery_begins_with_the_same_loss(at):
    learn,m = scaled(at=at)
    learn.add_cb(c := Begins(m))
    learn.fit_lottery(2, 3, amount=.3, seed=1)
    k = 0 if at=='init' else 3
    seen = {o for o in c.seen if o[0]==k}
    assert sum(o[0]==k for o in c.seen)==4 and len(seen)==1

def test_resets_and_the_loss():
    "Those that draw redraw the model alone; what trains on takes the loss as it is"
    learn,m = scaled()
    learn.fit(1)
    after = m.s.detach().clone()
    learn.rewind('keep')
    assert torch.equal(m.s, after) and learn.lottery.outside_for('keep')=={}
    for reset in ('random_reinit','rewind'):
        m.s.data.copy_(after)
        learn.rewind(reset)
        assert m.s.tolist()==[1.,.5]

@pytest.mark.parametrize('opt', [SGD, torchs(torch.optim.AdamW)], ids=['fastai','torch'])
def test_any_other_parameter_of_the_optimizer_is_rewound(opt):
    free = [nn.Parameter(torch.ones(2)),nn.Parameter(torch.zeros(()))]
    def loss(p, y): return nn.functional.cross_entropy(p*free[0][0]+free[1], y)+(free[0]**2).sum()+(free[1]-1)**2
    learn = learner(loss=loss, splitter=lambda m: [list(m.parameters()),free], opt_func=opt)
    learn.prune(.5)
    assert {k:v.tolist() for k,v in learn.lottery.b_i.items()}=={'opt.0':[1.,1.],'opt.1':0.}, 'known before there is an optimizer'
    learn.fit(1)
    assert free[0].tolist()!=[1.,1.] and free[1].item()!=0
    learn.rewind()
    assert free[0].tolist()==[1.,1.] and free[1].item()==0 and all(p.grad is None for p in free)

def test_a_loss_that_only_has_constants_is_left_alone():
    for loss in (CrossEntropyLossFlat(weight=torch.ones(4)), nn.CrossEntropyLoss(weight=torch.ones(4)), Scaled()):
        learn = learner(loss=loss)
        learn.fit(1)
        assert learn.lottery.b_i==learn.lottery.b_k==outside_state(learn)=={}

def test_an_optimizer_of_copies_has_nothing_beside():
    "As fastai's old mixed precision has them for as long as a fit"
    learn,_ = scaled()
    learn.splitter = lambda m: [p.detach().clone() for p in m.parameters()]
    assert outside_state(learn)=={}

def test_a_loss_under_mixup():
    "MixUp stands in its place while it trains, which is when the snapshot is taken"
    learn,m = scaled(MixedUp())
    learn.fit(1, cbs=MixUp())
    assert set(learn.lottery.b_i)=={'loss_func.s','loss_func.mean'} and m.s.tolist()!=[1.,.5]
    learn.rewind()
    assert m.s.tolist()==[1.,.5]

def test_another_loss_in_its_place_is_an_error():
    learn,m = scaled()
    learn.fit(1)
    learn.loss_func,learn.opt = CrossEntropyLossFlat(),None
    learn.splitter = trainable_params
    with pytest.raises(ValueError, match=r'were replaced.*loss_func\.s.*nothing.*forget'): learn.rewind()
    learn.lottery.forget()
    learn.fit(1)
    learn.rewind()

def test_outside_state_is_a_copy_and_goes_back():
    learn,m = scaled()
    s = outside_state(learn)
    m.s.data.fill_(9)
    assert s['loss_func.s'].tolist()==[1.,.5]
    load_outside_(learn, {})
    assert m.s.tolist()==[9.,9.]
    load_outside_(learn, s)
    assert m.s.tolist()==[1.,.5]

@pytest.mark.parametrize('criterion', ['snip','grasp'])
def test_criteria_leave_no_trace_in_the_loss(criterion):
    learn,m = scaled()
    learn.fit(1)
    m.s.grad,was = torch.tensor([7.,8.]),bits(m)
    learn.prune(.3, criterion)
    assert bits(m)==was and m.s.grad.tolist()==[7.,8.]

# --- weights that come pruned

@pytest.fixture
def sparse(tmp_path):
    learn = learner(path=tmp_path)
    learn.fit(1)
    learn.prune(.6)
    learn.save('sparse')
    return learn

def test_a_fresh_learner_takes_the_zeros_that_it_loads(sparse, tmp_path):
    learn = learner(path=tmp_path, seed=3)
    learn.load('sparse')
    took = learn.keep_zeros()
    masks = sparse.lottery.masks
    assert learn.lottery.masks==masks and took=={n:int((~m).sum()) for n,m in masks.items()} and sum(took.values())==173
    seen = each_forward(learn)
    learn.fit(2, cbs=(c := Early()))
    assert c.seen==[0]*8 and not any(seen)
    learn.prune(.5)
    assert learn.lottery.masks.n_kept==115-round(.5*115)
    learn.rewind()
    assert bits(under(learn.lottery.w_i, learn.lottery.masks))==bits(learn.model)

def test_without_the_verb_they_train_dense(sparse, tmp_path):
    learn = learner(path=tmp_path, seed=3)
    learn.load('sparse')
    learn.fit(1)
    assert sum(int((p!=0).sum()) for p in named_weights(learn.model, sparse.lottery.masks).values())>150

def test_zeros_of_torchs_prune():
    import torch.nn.utils.prune as tp
    learn = learner()
    ls = [(m,'weight') for m in learn.model if isinstance(m, nn.Linear)]
    tp.global_unstructured(ls, tp.L1Unstructured, amount=.5)
    with pytest.warns(UserWarning, match=r'nothing was taken.*prune is still on for 0.weight_orig.*prune.remove'):
        assert learn.keep_zeros()=={}
    for m,n in ls: tp.remove(m, n)
    learn.lottery.forget()
    assert sum(learn.keep_zeros().values())==144
    learn.fit(1, cbs=(p := Probe()))
    assert p.bad==[] and learn.lottery.masks.n_kept==144

def test_zeros_of_fasterais_sparsifier():
    from fasterai.sparse.all import Sparsifier,large_final
    learn = learner()
    s = Sparsifier(learn.model, 'weight', 'global', large_final, layer_type=nn.Linear)
    s.sparsify_model(.5)
    other = learner(seed=5)
    other.model.load_state_dict({k:v for k,v in learn.model.state_dict().items() if k in other.model.state_dict()})
    zeros = {n:int((p==0).sum()) for n,p in named_weights(other.model, other.lottery.names()).items()}
    assert sum(zeros.values())>100 and other.keep_zeros()=={n:k for n,k in zeros.items() if k}
    other.fit(1, cbs=(p := Probe()))
    assert p.bad==[] and other.lottery.masks.density<.7

def test_keep_zeros_adds_to_what_is_pruned_and_held():
    learn = learner()
    learn.fit(1)
    learn.prune(.3, hold='hold_init')
    held,masks = {n:v.clone() for n,v in learn.lottery.held.items()},learn.lottery.masks
    at = masks['2.weight'].nonzero()[:5]
    learn.model[2].weight.data[tuple(at.T)] = 0.
    assert learn.keep_zeros()=={'2.weight':5} and learn.lottery.masks.n_kept==masks.n_kept-5
    learn.fit(1)
    ws = named_weights(learn.model)
    assert all(torch.equal(ws[n].data[~m], held[n][~m]) for n,m in masks.items())
    assert not ws['2.weight'].data[tuple(at.T)].any()

def test_keep_zeros_warns():
    learn = learner()
    with pytest.warns(UserWarning, match='no weight that competes is exactly 0.*nothing was taken'):
        assert learn.keep_zeros()=={}
    learn.model[4].weight.data.zero_()
    with pytest.warns(UserWarning, match=r'all weights of 4.weight are exactly 0.*exclude'):
        assert learn.keep_zeros()=={'4.weight':48}
    learn = learner(cbs=LotteryCallback(exclude='4'))
    learn.model[4].weight.data.zero_()
    learn.model[0].weight.data[0,0] = -0.
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert learn.keep_zeros()=={'0.weight':1}

# --- one callback, one Learner, one model

@pytest.mark.parametrize('how', ['constructor','add_cb','fit','fit_lottery'])
def test_two_callbacks_on_a_learner(how):
    two = LotteryCallback('2ep', exclude='0')
    with pytest.raises(ValueError,
                       match=r"LotteryCallback\('init'\).*LotteryCallback\('2ep', exclude='0'\).*remove_cb"):
        if how=='constructor': learner(cbs=[LotteryCallback(),two])
        learn = learner()
        n = len(learn.cbs)
        if how=='add_cb': learn.add_cb(two)
        getattr(learn, how)(1, cbs=[two])
    if how in ('add_cb','fit'): assert len(learn.cbs)==n and two.learn is None

def test_the_same_callback_twice():
    learn = learner()
    with pytest.raises(ValueError, match='takes one LotteryCallback'): learn.fit(1, cbs=learn.lottery)

def test_one_callback_on_two_learners():
    cb = LotteryCallback()
    a = learner(cbs=cb)
    a.fit_lottery(1, 1)
    with pytest.raises(ValueError, match="another Learner's.*2 rounds.*of its own"): learner(cbs=cb)
    assert cb.learn is a and len(a.lottery.rounds)==2
    a.fit(1, cbs=(p := Probe()))
    a.remove_cb(cb)
    b = learner(cbs=cb)
    b.fit(1, cbs=p)
    assert b.lottery is cb and leaks(b)==0 and p.bad==[], 'it goes where it is taken'

def test_removed_for_a_while():
    learn = pruned_learner()
    lot = learn.lottery
    with learn.removed_cbs(lot): learn.fit(1)
    assert learn.lottery is lot
    learn.fit(1, cbs=(c := Early()))
    assert c.seen==[0]*4

@pytest.mark.parametrize('verb', ['names','competing','hold','remember','set_masks','fresh_opt'])
def test_a_callback_on_no_learner(verb):
    learn = pruned_learner()
    lot,masks = learn.lottery,learn.lottery.masks
    learn.remove_cb(lot)
    for o in (lot,LotteryCallback()):
        if verb=='hold' and o is not lot: continue
        args = [masks] if verb=='set_masks' else []
        with pytest.raises(ValueError, match=r"LotteryCallback\('init'\) is on no Learner.*add_cb"):
            getattr(o, verb)(*args)
    assert learn.prune(.1).n_kept==288-29, 'the Learner takes a new one'

other_nets = dict(
    fewer=(lambda: nn.Sequential(nn.Linear(8,12), nn.ReLU(), nn.Linear(12,4)),
           "its '2.weight' has shape|lacks '4.weight'"),
    wider=(lambda: mlp(16), r"its '0.weight' has shape \(16, 8\), not \(12, 8\)"),
    more=(lambda: nn.Sequential(*mlp(), nn.Linear(4,4)), "'5.weight' is new"))
verbs = dict(
    fit=lambda l: l.fit(1), prune=lambda l: l.prune(.2), rewind=lambda l: l.rewind(), lottery=lambda l: l.fit_lottery(1, 1),
    unprune=lambda l: l.unprune(), ticket=lambda l: l.fit_ticket(l.t, 1), validate=lambda l: l.validate(), zeros=lambda l: l.keep_zeros())

@pytest.mark.parametrize('net', other_nets)
@pytest.mark.parametrize('verb', verbs)
def test_a_model_that_was_replaced(net, verb):
    learn = learner()
    learn.fit_lottery(1, 1)
    learn.t = learn.lottery.ticket()
    make,what = other_nets[net]
    learn.model,learn.opt = make(),None
    with pytest.raises(ValueError, match=rf'model was replaced.*({what}).*forget'): verbs[verb](learn)
    learn.lottery.forget()
    learn.fit_lottery(1, 1, cbs=(p := Probe()))
    assert p.bad==[] and len(learn.lottery.rounds)==2

def test_another_model_of_the_same_kind_goes_on():
    learn = pruned_learner()
    learn.model,learn.opt,old = mlp(),None,learn.model
    learn.fit(1, cbs=(c := Early()))
    assert c.seen==[0]*4 and not old._forward_pre_hooks, 'the old one is let go'

# --- signals of nets of many kinds

class Outs(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.a,self.b,self.kind = nn.Linear(8,6),nn.Linear(6,4),kind
    def forward(self, x):
        h = self.a(x).relu()
        o = self.b(h)
        deep = dict(out=o, more=[h.mean(1),(o.sum(),None)], n=torch.tensor(3))
        return dict(tuple=(o,h), list=[o,h], dict=dict(out=o, h=h), deep=deep)[self.kind]

class First(Callback):
    def after_pred(self): self.learn.pred = self.pred['out'] if isinstance(self.pred, dict) else self.pred[0]

@pytest.mark.parametrize('kind', ['tuple','list','dict','deep'])
def test_synflow_of_several_outputs(kind):
    learn = learner(lambda: Outs(kind), cbs=[LotteryCallback(), First()])
    learn.fit(1)
    g = learn.lottery.known(['a.weight','b.weight'], ['r'], generator(0))['r']
    m = deepcopy(learn.model).double()
    for p in m.parameters(): p.data.abs_()
    h = m.a(torch.ones(1,8).double()).relu()
    o = m.b(h)
    total = o.sum()+(h.sum() if kind!='deep' else h.mean()+o.sum())
    for n,w in zip(['a.weight','b.weight'], torch.autograd.grad(total, [m.a.weight,m.b.weight])):
        torch.testing.assert_close(g[n], w)
    learn.prune(.5, 'synflow')
    assert learn.lottery.masks.n_kept==36

def test_synflow_of_a_net_without_numbers():
    class Names(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8,4)
        def forward(self, x): return dict(kind='none', n=self.a(x).argmax(1))
    with pytest.raises(ValueError, match='outputs that are numbers; this net gives dict'):
        learner(Names).prune(.5, 'synflow')

@pytest.mark.parametrize('criterion', ['snip','taylor','grasp','synflow'])
def test_signals_see_the_weights_as_they_are_made_for_them(criterion):
    "Held values count by their size in the synaptic flow: nobody puts them back in the middle"
    learn = pruned_learner(hold='hold_init')
    lot = learn.lottery
    names,word = list(lot.masks),dict(snip='g', taylor='g', grasp='hg', synflow='r')[criterion]
    a = lot.known(names, [word], generator(0))[word]
    copy = deepcopy(learn)
    copy.lottery.let_go()
    b = copy.lottery.known(names, [word], generator(0))[word]
    assert all(torch.equal(a[n], b[n]) for n in names)

# --- what competes is said

class Own(nn.Module):
    def __init__(self, n=1):
        super().__init__()
        self.w,self.head = nn.Parameter(torch.randn(8,6)),nn.Linear(6,4)
        for i in range(n): self.register_parameter(f'pos_embed{i}', nn.Parameter(torch.zeros(6,6)))
    def forward(self, x): return self.head((x@self.w)@(1+self.pos_embed0))

def test_matrices_that_are_left_out_are_named_once(caplog):
    learn = learner(Own)
    caplog.set_level(logging.INFO, 'fastai_lottery')
    with pytest.warns(UserWarning, match=r'pos_embed0 \(positional\).*72 weights compete, 64.3%.*competing\(\)') as w:
        learn.prune(.2)
    assert w[0].filename==__file__ and '72 weights compete' in caplog.text
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn.prune(.2)
        deepcopy(learn).prune(.2)

def test_many_matrices_are_not_all_named():
    with pytest.warns(UserWarning, match=r'pos_embed7 \(positional\) and 4 more\.'): learner(partial(Own, 12)).prune(.2)

@pytest.mark.parametrize('cb', [dict(exclude='pos*'), dict(include=['pos_embed0','w'])])
def test_nothing_is_said_of_what_was_asked_for(cb):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore',
                                'competing without effect')    # a positional table that is added: true, and another matter
        learner(Own, cbs=LotteryCallback(**cb)).prune(.2)
        learner(mlp).prune(.2)

def test_the_table_of_what_competes():
    learn = learner(Own, cbs=LotteryCallback(exclude='pos*'))
    df = learn.lottery.competing()
    assert isinstance(df, pd.DataFrame) and list(df.columns)==['shape','numel','share','competes','why'] and len(df)==4
    assert list(df.index[df.competes])==learn.lottery.names()==['w','head.weight'] and df.why['pos_embed0']=='excluded'
    learn.lottery.set_masks(Masks.ones(named_weights(learn.model, ['w','pos_embed0'])))
    df = learn.lottery.competing()
    assert list(df.index[df.competes])==['w','pos_embed0'] and df.why['head.weight']=='by the masks that are on'
    assert learn.lottery.how_much().startswith('84 weights')

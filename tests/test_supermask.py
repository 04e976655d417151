"Supermasks: weights never move, the model comes back, the ticket is what was evaluated"
import math
import pytest
from nets import *
from copy import deepcopy
from fastai_lottery.supermask import *
from fastai_lottery.supermask import Supermask

ways = dict(
    bernoulli=dict(how=bernoulli_mask), popup=dict(how=partial(edge_popup, density=.3)), signed=dict(how=signed_mask),
    bernoulli_dwr=dict(how=bernoulli_mask, base=signed_constant, rescale=True),
    popup_dwr=dict(how=edge_popup, base=signed_kaiming, rescale=True),
    signed_dwr=dict(how=signed_mask, base=signed_constant, rescale=True),
    rounded=dict(how=bernoulli_mask, sample=None, rescale=True), biases=dict(zero_bias=False))
way = pytest.mark.parametrize('kw', ways.values(), ids=ways)
from_the_zoo = 'batchnorm','bare','attention','embedding','rmsnorm','bias_free','tied'
kinds = {**{k:zoo[k] for k in from_the_zoo}, 'drop_bn':(drop_bn, {}, None, [])}
sgd = partial(SGD, mom=.9, wd=.1)

def net(kind='drop_bn', seed=0, bias=True):
    torch.manual_seed(seed)
    m = kinds[kind][0]()
    for n,p in m.named_parameters():
        if bias and 'bias' in n: nn.init.normal_(p)
    return m
def on(m, kind='drop_bn', **kw): return add_supermask(m, include=kinds[kind][2], **kw)
def train(m, kind='drop_bn', n=2, lr=1., **kw):
    l = learner(m, data(**kinds[kind][1]), cbs=None, opt_func=sgd, lr=lr, **kw)
    seed_all(l)
    l.fit(n)
    return l
def batch(kind): return data(**kinds[kind][1]).valid.one_batch()[0]
def scores_of(m): return {n:p.detach().clone() for n,p in m.named_parameters() if n.endswith('.0.m')}
def ids(m): return [(n,id(p),p.requires_grad) for n,p in m.named_parameters(remove_duplicate=False)]
def modules(m): return [type(o) for o in m.modules()]

def looks(m): return bits(m),list(m.state_dict()),ids(m),modules(m),len(m._forward_pre_hooks)

def trains(m, kind, kw):
    "Put masks on and train them; no weight moves"
    weights = {p:p.detach().clone() for p in m.parameters()}
    on(m, kind, **kw)
    start = scores_of(m)
    train(m, kind)
    end = scores_of(m)
    assert start and any(not torch.equal(start[n], end[n]) for n in start), 'nothing was trained'
    assert all(torch.equal(p, w) and p.grad is None for p,w in weights.items())        # before the masks come off

@pytest.mark.parametrize('kind', kinds)
@way
def test_round_trip(kind, kw):
    "Weights are bitwise unmoved while masks train; the ticket gives the outputs of evaluation; the model comes back whole"
    m = net(kind)
    m[0].bias.requires_grad_(False) if kind=='drop_bn' else None
    was = looks(m)
    trains(m, kind, kw)
    t,xb = supermask_ticket(m),batch(kind)
    other = t.apply_(net(kind, seed=5)).eval()
    with torch.no_grad():
        out = m.eval()(xb)
        assert torch.equal(out, m(xb)) and torch.equal(other(xb), out) and out.abs().sum()>0
    assert 0<t.density<1 and list(t.weights)==was[1]
    remove_supermask(m)
    assert looks(m)==was and was[-1]==0
    on(m, kind, **kw)
    remove_supermask(m)    # and once more
    assert looks(m)==was

made = dict(weight_norm=nn.utils.parametrizations.weight_norm, spectral_norm=nn.utils.parametrizations.spectral_norm,
    old_weight_norm=nn.utils.weight_norm, old_spectral_norm=nn.utils.spectral_norm)
@pytest.mark.filterwarnings('ignore:.*weight_norm.*:FutureWarning')
@pytest.mark.parametrize('how', made)
def test_masks_on_weights_that_are_made_of_other_tensors(how):
    torch.manual_seed(0)
    m,x = nn.Sequential(made[how](nn.Linear(8,9)), nn.ReLU(), nn.Linear(9,4)).eval(),torch.randn(5,8)
    m(x)
    was,out = looks(m),m(x)
    names = prunable(m)
    add_supermask(m)
    masked,t = m(x),supermask_ticket(m)
    assert list(t.masks)==names and not prunable_or_none(m), 'scores of masks are no weights'
    remove_supermask(m)
    assert looks(m)==was and torch.equal(m(x), out) and not torch.equal(masked, out)
    assert torch.equal(t.apply_(m)(x), masked)

def prunable_or_none(m):
    try: return prunable(m)
    except ValueError: return []

def test_optimizer_cannot_reach_a_weight_even_when_thawed():
    m = on(mlp())
    ws = [(p,p.detach().clone()) for n,p in m.named_parameters() if n.endswith('original')]
    for p,_ in ws: p.requires_grad_()
    assert len(ws)==6
    train(m)
    assert all(torch.equal(p, w) and p.grad is None for p,w in ws)

@pytest.mark.parametrize('zero', [True,False])
def test_biases(zero):
    m = on(net(), zero_bias=zero)
    b = net()[0].bias
    assert torch.equal(m[0].bias, b*0 if zero else b)
    train(m)
    assert torch.equal(supermask_ticket(m).weights['0.bias'], b*0 if zero else b)
    assert torch.equal(m[1].bias, net()[1].bias)

# --- rescaling and bases, by hand

def test_rescaling_by_hand():
    w = torch.tensor([[1.,-2.,3.],[4.,5.,-6.]])
    l = nn.Linear(3,2,bias=False)
    l.weight.data = w.clone()
    m = add_supermask(nn.Sequential(l), how=partial(edge_popup, density=1/3), rescale=True,
        start=lambda w,gen: torch.tensor([[9.,1.,1.],[1.,1.,-7.]]))
    assert torch.equal(m[0].weight, torch.tensor([[3.,0.,0.],[0.,0.,-18.]]))               # six weights over two ones
    t = supermask_ticket(m)
    assert torch.equal(t.weights['0.weight'], w*3) and t.masks['0.weight'].tolist()==[[True,False,False],[False,False,True]]
    remove_supermask(m)
    m = add_supermask(m, how=signed_mask, rescale=True, start=lambda w,gen: torch.tensor([[-1.,0.,0.],[.5,.01,2.]]))
    assert torch.equal(m[0].weight, torch.tensor([[-2.,0.,0.],[8.,0.,-12.]]))              # six over three
    remove_supermask(m)
    std = math.sqrt(sum((v-5/6)**2 for v in w.reshape(-1).tolist())/6)
    m = add_supermask(m, how=signed_mask, base=signed_constant, start=lambda w,gen: torch.ones(2,3))
    assert torch.allclose(m[0].weight, w.sign()*std)

def test_untrained():
    w_i = state(net())
    masks = Masks({n:torch.rand(w_i[n].shape)<.5 for n in prunable(net())})
    old = deepcopy(w_i)
    def sized(w): return w.sign()*w.var(correction=0).sqrt()
    for base,f in ((None,lambda w: w),(signed_constant,sized),(lambda w_i: w_i*2,lambda w: w*2)):
        for dwr in (False,True):
            m = untrained(masks, w_i, base, dwr).apply_(net(seed=4))
            for n,w in state(m).items():
                want = w_i[n] if n not in masks else f(w_i[n])*masks[n]*(masks[n].numel()/masks[n].sum() if dwr else 1)
                assert torch.allclose(w.float(), want.float())
    assert bits(w_i)==bits(old)

def test_half_precision_counts_past_its_largest_number():
    assert float(rescaled(torch.ones(70000, dtype=torch.half), torch.ones(70000))[0])==1

# --- gradients, derived by hand

def grad_of(how, base, rescale, m0, w0, G, **kw):
    l = nn.Linear(*w0.shape[::-1], bias=False).double()
    l.weight.data = w0.clone()
    m = add_supermask(nn.Sequential(l), how=how, base=base, rescale=rescale, start=lambda w,gen: m0.clone(), **kw)
    o = next(o for o in m.modules() if isinstance(o, Supermask))
    (m[0].weight*G).sum().backward()
    return o.m.grad,o.mask().detach()

@pytest.mark.parametrize('rescale', [False,True])
@pytest.mark.parametrize('how', [bernoulli_mask,edge_popup,signed_mask], ids=lambda f: f.__name__)
def test_straight_through(how, rescale):
    "dL/dm = dL/dw' · w · dsoft/dm; rescaling by N/n adds −(N/n²) Σ dL/dw' w b through n = Σ|b|, also for dropped ones if b is 0 or 1"
    g = torch.Generator().manual_seed(0)
    m0,w0,G = (torch.randn(5,4, generator=g, dtype=torch.double) for _ in range(3))
    got,b = grad_of(how, None, rescale, m0, w0, G)
    p = 1/(1+(-m0).exp())
    soft = {bernoulli_mask:p*(1-p), edge_popup:m0.sign(), signed_mask:1}[how]
    N,n = b.numel(),float(b.abs().sum())
    db = G*w0 if not rescale else N/n*G*w0 - N/n**2*float((G*w0*b).sum())*(b.sign() if how is signed_mask else 1)
    assert torch.allclose(got, (db*soft).double()) and 0<n<N+1 and set(b.unique().tolist())<={-1.,0.,1.}

@pytest.mark.parametrize('n', [1,2,7,100,301])
@pytest.mark.parametrize('density', [.01,.2,.5,.77,1])
@pytest.mark.parametrize('fill', ['normal','ties','constant'])
def test_edge_popup_exact(n, density, fill):
    s = torch.randn(n)
    s = {'normal':s, 'ties':(s*2).round(), 'constant':torch.ones(n)}[fill]
    b = edge_popup(s, density).bool()
    k = max(1, round(density*n))
    assert int(b.sum())==k
    order = sorted(range(n), key=lambda i: float(s[i].abs()))      # stable: of equals the first go
    assert sorted(order[n-k:])==b.nonzero()[:,0].tolist()

def test_edge_popup_exact_in_each_layer():
    m = on(net(), how=partial(edge_popup, density=.3))
    train(m)
    assert all(int(o.sum())==round(.3*o.numel()) for o in supermask_ticket(m).masks.values())

# --- chance

def test_bernoulli_keeps_with_its_probability():
    p = torch.tensor([0.,.1,.5,.9,1.]).logit()
    u = torch.rand(20000,5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(bernoulli_mask(p.expand(20000,5), u).mean(0), p.sigmoid(), atol=.02)

@way
def test_global_rng_untouched(kw):
    m,xb = net(),batch('drop_bn')
    for o in m.modules():
        if isinstance(o, nn.Dropout): o.p = 0.
    was = rng_states()
    on(m, **kw)
    m.train()(xb).sum().backward()
    m.eval()(xb)
    supermask_ticket(m)
    remove_supermask(m)
    assert rng_states()==was

@way
def test_deterministic(kw):
    def once(seed):
        m = on(net(), seed=seed, **kw)
        torch.manual_seed(seed+40)
        train(m)
        return supermask_ticket(m).masks.hash()
    assert once(1)==once(1)!=once(2)

def test_draws():
    "A new mask for each training batch, the same for each evaluation, which leaves no trace in training"
    def masks_seen(look):
        m,xb,seen = on(mlp()),batch('drop_bn'),[]
        for _ in range(4):
            m.train()(xb)
            seen.append((m[0].weight!=0).clone())
            if look:
                m.eval()(xb)
                seen_eval.append((m[0].weight!=0).clone())
                supermask_ticket(m)
        return seen
    seen_eval = []
    a,b = masks_seen(False),masks_seen(True)
    assert all(torch.equal(x,y) for x,y in zip(a,b))
    assert not any(torch.equal(a[i],a[j]) for i in range(4) for j in range(i))
    assert all(torch.equal(x, seen_eval[0]) for x in seen_eval) and not any(torch.equal(x, seen_eval[0]) for x in a)
    m = on(mlp())
    hs = [supermask_ticket(m, sample=i).masks.hash() for i in range(3)]
    assert len(set(hs))==3 and supermask_ticket(m).masks.hash()==hs[0] and supermask_ticket(m, sample=None).density==0

def test_layers_and_tied_weights_draw_what_they_should():
    m = on(mlp(), seed=3)
    u = [o.u for o in m.modules() if isinstance(o, Supermask)]
    assert not torch.equal(u[0].reshape(-1)[:32], u[1].reshape(-1)[:32])
    t = on(net('tied'), 'tied')
    t.train()(batch('tied'))
    assert torch.equal(t.enc.weight, t.dec.weight) and (t.enc.weight==0).any()

# --- company

def test_copies_and_checkpoints(tmp_path):
    m = on(net())
    l = train(m, path=tmp_path, lr=30.)
    t = supermask_ticket(m)
    c = deepcopy(m)
    assert supermask_ticket(c).masks==t.masks
    remove_supermask(c)
    assert not c._forward_pre_hooks and supermask_ticket(m).masks==t.masks     # the copy is a thing of its own
    l.save('masks')
    l.fit(1)
    assert supermask_ticket(m).masks!=t.masks
    l.load('masks')
    assert supermask_ticket(m).masks==t.masks
    r = Ticket.load(t.save(tmp_path/'t', dense=True))
    assert r.masks==t.masks and bits(r.weights)==bits(t.weights) and r.meta['supermask']=='bernoulli_mask'

def test_errors():
    def fails(f, word, e=ValueError):
        with pytest.raises(e, match=word): f()
    m = net()
    was = bits(m)
    for kw,word,e in (
        (dict(how='x'),'`how`',TypeError), (dict(base='x'),'`base`',TypeError), (dict(base=lambda w_f: w_f),'w_i alone',ValueError),
        (dict(base=lambda w_i: w_i.sum()),'shape',ValueError), (dict(how=partial(edge_popup, density=0)),'density',ValueError),
        (dict(how=partial(signed_mask, tau=-1)),'tau',ValueError), (dict(include='nope'),'nope',ValueError)):
        fails(lambda: add_supermask(m, **kw), word, e)
        assert bits(m)==was and modules(m)==modules(net()) and not hasattr(m, '_supermask')    # an error leaves the model as it was
    fails(lambda: remove_supermask(m), 'no supermasks')
    fails(lambda: supermask_ticket(m), 'no supermasks')
    add_supermask(m)
    fails(lambda: add_supermask(m), 'already')
    next(o for o in m.modules() if isinstance(o, Supermask)).m.data.fill_(math.nan)
    fails(lambda: supermask_ticket(m), 'not finite')
    for k in 'lstm','gru','awd_lstm': fails(lambda: add_supermask(zoo[k][0]()), '`exclude`')
    add_supermask(zoo['lstm'][0](), exclude='body')

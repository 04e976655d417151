"Laws that hold for every criterion, scope and reset of the menus, whatever is added to them"
import functools
import pytest
from nets import *
from fastai_lottery.means import RunningMean,RunningSaliency

pytestmark = pytest.mark.filterwarnings('ignore::fastai_lottery.scopes.EmptyLayerWarning')
scopes = {
    'global_':global_, 'local':local, 'floor':partial(global_, floor=3), 'local floor':partial(local, floor=2),
    'rates':{'b':.5, 'c*':0.}, 'rates by module':{'blocks.0':.25},
    'erk':erk, 'erk power':partial(erk, power=.5), '2:4':'2:4', '1:8':n_of_m(1,8)}
amounts = [0, .01, .2, .5, .77]    # of what the scope lets go, see `most`
fills = ['normal','ties','repeated','float16','strided']

def weights(fill, seed=0):
    "Weights of several shapes, as they occur"
    g = torch.Generator().manual_seed(seed)
    shapes = {'a':(12,10), 'b':(40,), 'c':(4,3,3,3), 'c2':(60,), 'blocks.0.weight':(7,5)}
    ws = {n:torch.randn(s, generator=g) for n,s in shapes.items()}
    if fill=='ties': ws = {n:torch.ones_like(w) for n,w in ws.items()}
    if fill=='repeated': ws = {n:(w*2).round()/2 for n,w in ws.items()}
    if fill=='float16': ws = {n:w.half() for n,w in ws.items()}
    if fill=='strided': ws = {n:strided(w) for n,w in ws.items()}
    return ws

def strided(w):
    if w.ndim==4: return w.to(memory_format=torch.channels_last)
    return w.t().contiguous().t() if w.ndim==2 else w

drawn = functools.lru_cache(lambda seed: weights('normal', seed))

def known_for(ws, masks, seed=0):
    "All words that a criterion or a reset may ask for"
    gen = torch.Generator().manual_seed(seed)
    return {**{w:drawn(i) for i,w in enumerate(words, 1)}, 'w_f':ws, 'm':masks, 'gen':gen}

def some_masks(ws, p=.8, seed=9):
    g = torch.Generator().manual_seed(seed)
    return Masks({n:torch.rand(w.shape, generator=g)<p for n,w in ws.items()})

def prune_once(criterion, scope, amount, fill='normal', seed=0, masks=None):
    ws = weights(fill)
    masks = Masks.ones(ws) if masks is None else masks
    s = scores(criterion, list(ws), **known_for(ws, masks, seed))
    return s,masks,make_masks(s, masks, amount*most(scope, masks), scope)

def pattern(scope):
    "`(n, m)` of an N:M scope, else None"
    name = scope if isinstance(scope, str) else getattr(scope, '__name__', '')
    return tuple(map(int, re.findall(r'\d+', name))) if isinstance(scope, str) or 'n_of_m' in name else None

def blocks(shape, m):
    "Positions of the weights in each group of an N:M scope"
    size,cols = math.prod(shape),math.prod(shape[1:]) if len(shape)>1 else math.prod(shape)
    return [range(r+c, min(r+c+m, r+cols)) for r in range(0, size, cols) for c in range(0, cols, m)]

def least(n, m, block): return math.ceil(n*len(block)/m)

def most(scope, masks):
    "The largest amount that the scope lets go in one prune: 1, or as far as an N:M pattern allows"
    if pattern(scope) is None: return 1.
    n,m = pattern(scope)
    def free(o, b): return max(0, int(o.reshape(-1)[list(b)].sum())-least(n, m, b))
    def share(o): return sum(free(o, b) for b in blocks(o.shape, m))/int(o.sum())
    return min(map(share, masks.values()))

def groups(scope, masks):
    "Who competes: `[(names, rate, floor)]`, told a second time and by other means"
    if pattern(scope): return [([n],most(scope, masks),0) for n in masks]
    def rate(n): return next((r for g,r in scope.items() if re.match(g.replace('*','.*')+r'(\.weight)?$', n)), 1.)
    if isinstance(scope, dict): return [([n], rate(n), 0) for n in masks]
    f,floor = (scope.func,scope.keywords.get('floor',0)) if isinstance(scope, partial) else (scope,0)
    return [([n],1.,floor) for n in masks] if f is local else [(list(masks),1.,floor)]

def lowest(xs): return sorted(xs, key=lambda x: x[0])      # stable

def reference(scores, masks, amount, scope):
    "A stable sort of survivors' scores, layer after layer: the first `round(amount × survivors)` go, but for a layer's best `floor`"
    new = {n:m.clone() for n,m in masks.items()}
    if pattern(scope): return greedy(scores, new, amount, scope)
    if getattr(scope,'func',scope) is erk:
        return by_shape(scores, new, amount, getattr(scope,'keywords',{}).get('power',1))
    for names,rate,floor in groups(scope, masks):
        order = [(float(scores[n].reshape(-1)[i]),n,int(i)) for n in names for i in masks[n].reshape(-1).nonzero()[:,0]]
        k = round(amount*rate*len(order))
        def best(o): return lowest(x for x in order if x[1]==o)[max(0, int(masks[o].sum())-floor):]
        safe = {x[1:] for o in names for x in best(o)} if floor else set()
        for _,n,i in lowest(x for x in order if x[1:] not in safe)[:k]: new[n].view(-1)[i] = False
    return Masks(new)

def greedy(scores, new, amount, scope):
    "N:M one weight at a time: the lowest goes, unless its group has no more than it must keep"
    (n,m),left = pattern(scope),{o:round(amount*most(scope, new)*int(k.sum())) for o,k in new.items()}
    for o,k in new.items():
        flat,of = k.view(-1),{i:b for b in blocks(k.shape, m) for i in b}
        for _,i in lowest((float(scores[o].reshape(-1)[i]),int(i)) for i in flat.nonzero()[:,0]):
            if left[o] and int(flat[list(of[i])].sum())>least(n, m, of[i]):
                flat[i] = False
                left[o] -= 1
        assert left[o]==0
    return Masks(new)

def by_shape(scores, new, amount, power):
    "RigL's loop: layers that would be denser than they are leave, one round after the other; then largest remainders"
    have = {o:int(k.sum()) for o,k in new.items()}
    want = {o:k.numel()*(sum(k.shape)/k.numel())**power for o,k in new.items()}
    total,kept,free = sum(have.values())-round(amount*sum(have.values())),{},list(new)
    while free:
        f = (total-sum(kept.values()))/sum(want[o] for o in free)
        if not (over := [o for o in free if f*want[o]>have[o]+1e-9]): break
        kept.update({o:have[o] for o in over})
        free = [o for o in free if o not in over]
    x = {o:f*want[o] for o in free}
    low = {o:math.floor(v+1e-9) for o,v in x.items()}
    up = sorted(free, key=lambda o: -round(x[o]-low[o], 9))[:total-sum(kept.values())-sum(low.values())]
    kept.update({o:low[o]+(o in up) for o in free})
    for o,k in new.items():
        order = lowest((float(scores[o].reshape(-1)[i]),int(i)) for i in k.reshape(-1).nonzero()[:,0])
        for _,i in order[:have[o]-kept[o]]: k.view(-1)[i] = False
    return Masks(new)

menu = pytest.mark.parametrize('criterion', criteria_menu())
scoped = pytest.mark.parametrize('scope', scopes.values(), ids=scopes.keys())

def test_the_menus_are_derived_from_the_modules():
    import fastai_lottery.criteria as c,fastai_lottery.resets as r
    assert {'large_final','small_final','random','magnitude_increase','movement','large_init'} <= set(criteria_menu())
    assert {'rewind','random_reinit'} <= set(resets_menu())
    for mod,menu in ((c,criteria_menu()),(r,resets_menu())):
        for n,f in menu.items():
            assert vars(mod)[n] is f and f.__module__==mod.__name__ and needs(f) is not None and f.__doc__

# --- criteria

@menu
@pytest.mark.parametrize('fill', fills)
def test_scores_have_their_weights_shapes(criterion, fill):
    ws = weights(fill)
    s = scores(criterion, list(ws), **known_for(ws, Masks.ones(ws)))
    assert list(s)==list(ws)
    for n,w in ws.items(): assert s[n].shape==w.shape and torch.isfinite(s[n]).all() and not s[n].requires_grad

@menu
def test_criteria_are_pure(criterion):
    "Inputs unchanged, also where they are parameters; no global random number drawn; no alias handed out and written to"
    ws = {n:nn.Parameter(w) for n,w in weights('normal').items()}
    k = known_for(ws, Masks.ones(ws))
    before,rng = {w:bits(d) for w,d in k.items() if w!='gen'},rng_states()
    s = scores(criterion, list(ws), **k)
    make_masks(s, k['m'], .5)
    assert {w:bits(d) for w,d in k.items() if w!='gen'}==before
    assert rng_states()==rng and all(w.grad is None for w in ws.values())

@menu
def test_deterministic(criterion):
    for name,scope in scopes.items():
        a,b,c = (prune_once(criterion, scope, .4, seed=s) for s in (1,1,2))
        assert bits(a[0])==bits(b[0]) and a[2]==b[2], name
        draws = 'gen' in needs(criteria_menu()[criterion])
        if not draws: assert a[2]==c[2], 'only what draws random numbers depends on the seed'
        if criterion=='random': assert a[2]!=c[2]

# --- masks

@menu
@scoped
def test_exact_count(criterion, scope):
    for amount,p in zip(amounts, (.6,1.,.6,1.,.6)):
        s,old,new = prune_once(criterion, scope, amount, masks=some_masks(weights('normal'), p))
        for names,rate,_ in groups(scope, old):
            n = sum(int(old[o].sum()) for o in names)
            assert sum(int(new[o].sum()) for o in names)==n-round(amount*rate*n)

@menu
@scoped
def test_equal_to_a_stable_sort(criterion, scope):
    "Ties and repeated values included: the first in order among equals go"
    for fill,amount in zip(fills, (.2,.5,.77,.3,.6)):
        s,old,new = prune_once(criterion, scope, amount, fill, masks=some_masks(weights('normal')))
        assert new==reference(s, old, amount, scope)

@menu
def test_monotone_and_a_new_value(criterion):
    for name,scope in scopes.items():
        masks = Masks.ones(weights('normal'))
        for k in range(4):
            was = {n:m.clone() for n,m in masks.items()}
            s,old,new = prune_once(criterion, scope, .3, masks=masks, seed=k)
            assert (new&old)==new and new.n_kept<old.n_kept, name
            ours,theirs = ({m.data_ptr() for m in o.values()} for o in (new,old))
            assert all(torch.equal(m, was[n]) for n,m in old.items()) and not ours&theirs, name
            masks = new

@menu
def test_dead_weights_have_no_say(criterion):
    "Whatever the score of a pruned weight is, the same survivors go"
    s,old,new = prune_once(criterion, global_, .4, masks=some_masks(weights('normal')))
    for v in (-1e30, 1e30, math.nan, math.inf, -math.inf):
        assert make_masks({n:torch.where(old[n], o.float(), torch.tensor(v)) for n,o in s.items()}, old, .4)==new

@scoped
def test_pruning_is_pure(scope):
    s,old,_ = prune_once('large_final', scope, 0)
    before,rng = (bits(s),old.hash()),rng_states()
    new = make_masks(s, old, .5*most(scope, old), scope)
    assert (bits(s),old.hash())==before and rng_states()==rng and new.n_kept<old.n_kept

@scoped
def test_amount_0_is_nothing(scope):
    s,old,new = prune_once('large_final', scope, 0, masks=some_masks(weights('normal')))
    assert new==old

@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_scores_of_any_float(dtype):
    "float64 scores that differ by less than float32 can tell stay apart"
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    s = dict(w=torch.arange(1000, dtype=torch.float64)[order])
    s = dict(w=1+s['w']*1e-12) if dtype==torch.float64 else {n:o.to(dtype) for n,o in s.items()}
    m = Masks.ones(s)
    assert make_masks(s, m, .37)==reference(s, m, .37, global_)

def test_mixed_dtypes_in_one_scope():
    g = torch.Generator().manual_seed(0)
    a,b,c = (torch.randn(50, generator=g) for _ in range(3))
    s = dict(a=a.half(), b=b.double(), c=c)
    m = Masks.ones(s)
    assert make_masks(s, m, .5)==reference(s, m, .5, global_)

def test_two_rates_that_match_the_first_counts():
    s,old,new = prune_once('large_final', {'c2':0., 'c*':.5, '*':1.}, .4)
    assert [int(m.sum()) for m in new.values()]==[120-48, 40-16, 108-22, 60, 35-14]

# --- rounds

@menu
@pytest.mark.parametrize('scope', [global_, local, erk], ids=['global','local','erk'])
def test_density_after_k_rounds(criterion, scope):
    "`.8^k`, up to half a weight of each prune in each group"
    ws = weights('normal')
    masks = Masks.ones(ws)
    N,n_groups = masks.numel,len(groups(scope, masks))
    for k in range(1,11):
        _,_,masks = prune_once(criterion, scope, .2, masks=masks, seed=k)
        assert abs(masks.n_kept-.8**k*N)<=n_groups*.5*(1-.8**k)/.2+1e-6

@menu
def test_in_a_learner_as_on_paper(criterion):
    "`learn.prune` is the composition of the plain functions, and takes no global random number"
    scope = [global_, local, {'0':.5}, 'erk', n_of_m(1,4)][list(criteria_menu()).index(criterion)%5]
    learn,twin = [learner(drop_bn, cbs=[LotteryCallback(), RunningMean(), RunningSaliency()]) for _ in range(2)]
    for o in (learn,twin):
        seed_all(o)
        o.fit(1)
    names,f = learn.lottery.names(),criteria_menu()[criterion]
    masks = Masks.ones(named_weights(twin.model, names))
    known = twin.lottery.known(names, needs(f), generator(3,'prune',0))
    rng,before,modes = rng_states(),state(learn.model),[m.training for m in learn.model.modules()]
    got = learn.prune(.35, criterion, scope, seed=3)
    assert rng_states()==rng and [m.training for m in learn.model.modules()]==modes
    assert got==make_masks(scores(f, names, **known), masks, .35, scope) or getattr(f,'steps',1)>1
    assert bits(learn.model)==bits(under(before, got))

# --- resets

@pytest.mark.parametrize('reset', resets_menu())
@pytest.mark.parametrize('model', [drop_bn, conv_bn, Tied], ids=lambda o: o.__name__)
def test_resets_leave_masks_and_random_numbers_alone(reset, model):
    learn = learner(model, data((1,6,6)) if model is conv_bn else None)
    learn.fit(1)
    masks = learn.prune(.4)
    was,rng,snap = masks.hash(),rng_states(),(digest(learn.lottery.w_i),digest(learn.lottery.w_k))
    names,modes = list(learn.model.state_dict()),[m.training for m in learn.model.modules()]
    learn.rewind(reset, seed=1)
    a = bits(learn.model)
    assert learn.lottery.masks==masks and masks.hash()==was and rng_states()==rng
    assert (digest(learn.lottery.w_i),digest(learn.lottery.w_k))==snap
    assert leaks(learn)==0 and list(learn.model.state_dict())==names
    assert [m.training for m in learn.model.modules()]==modes
    learn.rewind(reset, seed=1)
    assert bits(learn.model)==a, 'one seed, one start'
    learn.rewind(reset, seed=2)
    assert (bits(learn.model)!=a)==('w_n' in needs(resets_menu()[reset]) or 'gen' in needs(resets_menu()[reset]))

@pytest.mark.parametrize('reset', resets_menu())
def test_resets_are_pure(reset):
    ws = weights('normal')
    k = known_for(ws, Masks.ones(ws))
    before,rng = {w:bits(d) for w,d in k.items() if w!='gen'},rng_states()
    new = reset_state(reset, list(ws), **k)
    assert list(new)==list(ws) and all(new[n].shape==w.shape for n,w in ws.items())
    assert {w:bits(d) for w,d in k.items() if w!='gen'}==before and rng_states()==rng

@pytest.mark.parametrize('control', [shuffle_mask, random_mask, erk_mask], ids=lambda o: o.__name__)
def test_mask_controls(control):
    "As many weights as the ticket, in each layer or over all; other ones; by the private generator"
    m = some_masks(weights('normal'), .3)
    rng,was = rng_states(),m.hash()
    a,b,c = (control(m, generator(s,'mask')) for s in (1,1,2))
    assert a==b and a!=c and a!=m and m.hash()==was and rng_states()==rng and list(a)==list(m) and a.n_kept==m.n_kept
    if control is shuffle_mask: assert all(a[n].sum()==o.sum() for n,o in m.items())
    else: assert any(a[n].sum()!=o.sum() for n,o in m.items())

# --- masks are values

def test_masks_algebra():
    ws = weights('normal')
    a,b,one = some_masks(ws,.5,1),some_masks(ws,.5,2),Masks.ones(ws)
    assert (a&b)==(b&a) and (a|b)==~(~a&~b) and (a&a)==a and (a&one)==a and (a|one)==one and ~~a==a
    assert (a&b).n_kept+(a|b).n_kept==a.n_kept+b.n_kept and (a&~a).n_kept==0 and a.density+a.sparsity==pytest.approx(1)
    assert unpack(a.pack())==a and unpack(a.pack()).hash()==a.hash()!=b.hash()
    with pytest.raises(TypeError): a.d['a'] = b['a']
    with pytest.raises(ValueError, match='masks of different weights'): a&Masks({'a':a['a']})

@pytest.mark.parametrize('fill', ['normal','float16','strided'])
def test_holding_is_exact_and_idempotent(fill):
    ws = weights(fill)
    m = some_masks(ws,.5)
    want = bits(under({n:w.clone() for n,w in ws.items()}, m))
    ptrs = {n:w.data_ptr() for n,w in ws.items()}
    for _ in range(2):
        m.apply_(ws)
        assert bits(ws)==want and {n:w.data_ptr() for n,w in ws.items()}==ptrs

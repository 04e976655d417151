"Laws of 26_analysis: figures equal those by hand, and a Learner is as it was"
import ast,inspect,math
import pytest
import numpy as np,pandas as pd
from nets import *
from fastai_lottery import analysis,packing
from fastai_lottery.analysis import *
from fastai_lottery.packing import kept_by_both
from fastai_lottery.scopes import shuffle_mask

def two(learn):
    "States of two trainings of `learn` from one start"
    start,res = state(learn.model),[]
    for s in (1,2):
        load_(learn.model, start)
        seed_all(learn, s)
        learn.fit(2, reset_opt=True)
        res.append(state(learn.model))
    return res

@pytest.fixture
def trained():
    l = learner()
    return l,*two(l)
@pytest.fixture
def normed():
    l = learner(drop_bn)
    return l,*two(l)

def test_it_draws_nothing():
    "Numbers only: pictures have a room of their own"
    tree = list(ast.walk(ast.parse(inspect.getsource(analysis))))
    mods = [a.name for o in tree if isinstance(o, ast.Import) for a in o.names]
    mods += [o.module for o in tree if isinstance(o, ast.ImportFrom)]
    assert {'numpy','collections'}<=set(mods) and not [m for m in mods if m.startswith('matplotlib')]
    assert not [n for n in analysis.__all__ if n.startswith('plot')]

# ---- instability

class Quad(nn.Module):
    "Its output is w, whatever comes in"
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))
    def forward(self, x): return self.w.expand(len(x), 2)

def quad(): # loss ‖w‖²
    return learner(Quad, dls_of(torch.zeros(64,1), torch.zeros(64,2)), loss=lambda p,y: (p-y).pow(2).sum(1).mean(),
                   metrics=[])

def test_barrier_of_a_quadratic_by_hand():
    # (α−2(1−α))² = (3α−2)² along the first axis: 4 at 0, 1 at 1, highest at an end
    r = instability(quad(), {'w':tensor([1.,0.])}, {'w':tensor([-2.,0.])}, alphas=[.5,1/3], by='loss')
    assert r.path.alpha.tolist()==pytest.approx([0,1/3,.5,1])
    assert r.path.loss.tolist()==pytest.approx([4,1,.25,1], abs=1e-6)
    assert r.barrier==pytest.approx(4-2.5) and r.path.error.isna().all()

def test_barrier_of_a_hill_by_hand():
    l = quad()
    l.loss_func = lambda p,y: (1-p[:,0].pow(2)+p[:,1].mul(.5)).mean()    # 1−(2α−1)²+α at w = (2α−1, 2α)
    r = instability(l, {'w':tensor([1.,2.])}, {'w':tensor([-1.,0.])}, alphas=5, by='loss')
    assert r.path.loss.tolist()==pytest.approx([0,1,1.5,1.5,1], abs=1e-6)
    assert r.barrier==pytest.approx(1.5-.5)

def test_alpha_is_the_share_of_the_first():
    r = instability(quad(), {'w':tensor([3.,0.])}, {'w':tensor([0.,0.])}, by='loss')
    assert len(r.path)==30 and np.allclose(r.path.loss, (3*np.linspace(0,1,30))**2, atol=1e-5)

def test_barrier_with_itself_is_exactly_0(trained, normed):
    for l,w,_ in (trained,normed):
        r = instability(l, w, w, alphas=4)
        assert r.barrier==0 and barrier(r.path,'loss')==0 and r.path.loss.nunique()==1

def test_barrier_is_symmetric(trained):
    l,a,b = trained
    r,s = instability(l, a, b, alphas=5),instability(l, b, a, alphas=5)
    assert r.path.loss.tolist()==pytest.approx(s.path.loss.tolist()[::-1], rel=1e-5)
    assert r.barrier==pytest.approx(s.barrier)

def test_ends_are_what_evaluate_says(trained, normed):
    for l,a,b in (trained,normed):
        r = instability(l, a, b, alphas=3, norm_dl=False).path
        for k,w in ((0,b),(2,a)):
            load_(l.model, w)
            e = l.evaluate()
            assert r.loss[k]==e['valid_loss'] and r.error[k]==1-e['accuracy']

def test_error_rate_and_other_data(trained):
    l,a,b = trained
    r = instability(l, a, b, alphas=3, dl=l.dls.train.new(shuffle=False)).path
    l.metrics = error_rate
    s = instability(l, a, b, alphas=3, dl=l.dls.train.new(shuffle=False)).path
    assert r.error.tolist()==pytest.approx(s.error.tolist()) and r.loss.tolist()==s.loss.tolist()
    assert r.loss.tolist()!=instability(l, a, b, alphas=3).path.loss.tolist()

def by_hand(w, batches, xv, yv):
    "Loss of `drop_bn` with weights `w`, each batch norm with the plain average of its statistics over `batches`"
    F,stats = nn.functional,{}
    def upto(x, n, use=None):
        for k in (0,4):
            x = F.linear(x, w[f'{k}.weight'], w[f'{k}.bias'])
            if k==n: return x
            mu,var = use[k] if use else (x.mean(0),x.var(0,unbiased=False))
            x = ((x-mu)/(var+1e-5).sqrt()*w[f'{k+1}.weight']+w[f'{k+1}.bias']).relu()
        return F.linear(x, w['8.weight'], w['8.bias'])
    for k in (0,4):
        hs = [upto(b, k) for b in batches]
        stats[k] = torch.stack([h.mean(0) for h in hs]).mean(0),torch.stack([h.var(0) for h in hs]).mean(0)
    return float(F.cross_entropy(upto(xv, None, stats), yv))

def test_batch_norm_statistics_are_taken_anew(normed):
    l,a,b = normed
    a = {k:torch.full_like(v, 1e3) if 'running' in k else v for k,v in a.items()}    # of no use to anybody
    mid = {k:(a[k]+b[k])/2 if a[k].is_floating_point() else a[k] for k in a}
    rows = list(l.dls.train.dataset)
    xs = torch.stack([o[0] for o in rows])
    xv,yv = next(iter(l.dls.valid))
    r = instability(l, a, b, alphas=3).path
    assert r.loss.tolist()==pytest.approx([by_hand(w, xs.split(16), xv, yv) for w in (b,mid,a)], rel=1e-4)
    few = l.dls.train.new(shuffle=False, n=32)
    s = instability(l, a, b, alphas=3, norm_dl=few).path
    assert s.loss[1]==pytest.approx(by_hand(mid, xs[:32].split(16), xv, yv), rel=1e-4) and abs(s.loss[1]-r.loss[1])>1e-4
    assert abs(instability(l, a, b, alphas=3, norm_dl=False).path.loss[1]-r.loss[1])>1e-2

def test_nothing_changes_the_learner(normed):
    for l,a,b in (normed,(lambda l: (l,*two(l)))(learner(lambda: Ends(nn.LSTM(8,6,batch_first=True), 6), data((5,8))))):
        l.prune(.5)
        l.model.train()
        next(l.model.children()).eval()
        for p in l.model.parameters(): p.grad = torch.full_like(p, .25)
        bn = [m for m in l.model.modules() if isinstance(m, nn.BatchNorm1d)]
        def snap():
            params = [(p.grad.sum().item(),id(p),p.requires_grad) for p in l.model.parameters()]
            modes = [m.training for m in l.model.modules()],[m.momentum for m in bn]
            orders = rng_states(),[d.rng.getstate() for d in l.dls.loaders]
            return bits(l.model),params,modes,orders,list(l.cbs),sorted(l.__dict__),l.lottery.masks.hash(),bits(a),bits(b)
        before = snap()
        instability(l, a, b, alphas=3)
        assert snap()==before

def test_the_learner_is_put_back_after_an_error(normed):
    l,a,b = normed
    before,cbs,rng = bits(l.model),list(l.cbs),rng_states()
    l.loss_func = lambda *o: raiser(RuntimeError('no loss'))(l)
    with pytest.raises(RuntimeError, match='no loss'): instability(l, a, b, alphas=3)
    assert bits(l.model)==before and list(l.cbs)==cbs and rng_states()==rng

def test_the_learners_masks_are_not_put_on_other_nets(trained):
    l,a,b = trained
    want = instability(l, a, b, alphas=3).path
    l.prune(.9)
    pd.testing.assert_frame_equal(instability(l, a, b, alphas=3).path, want)
    assert leaks(l)==0

def test_torch_loader_with_its_own_generator(normed):
    l,a,b = normed
    g = torch.Generator().manual_seed(3)
    l.dls.loaders[0] = torch.utils.data.DataLoader(list(l.dls.train.dataset), batch_size=16, shuffle=True, generator=g)
    before = g.get_state()
    r = instability(l, a, a, alphas=4)
    assert torch.equal(g.get_state(), before) and r.barrier==0 and r.path.loss.nunique()==1

@pytest.mark.parametrize('wrap', [nn.DataParallel, lambda m: torch.compile(m, backend='eager')],
                         ids=['DataParallel','compile'])
def test_wrapped_models(normed, wrap):
    l,a,b = normed
    want = instability(l, a, b, alphas=3).path
    l.model = wrap(l.model)
    pd.testing.assert_frame_equal(instability(l, a, b, alphas=3).path, want)
    m = Masks.ones(named_weights(l.model, prunable(l.model)))
    t = stability(m, l.model, a)
    assert list(t.index)==['0.weight','4.weight','8.weight','total']
    assert t.distance.total==pytest.approx(stability(m, state(l.model), a).distance.total)

def test_tied_and_integers():
    l = learner(Tied)
    w_1,w_2 = two(l)
    r = instability(l, w_1, w_2, alphas=3)
    assert l.model.enc.weight is l.model.dec.weight and len(r.path)==3
    l = learner(drop_bn)
    w_1,w_2 = two(l)
    w_1['1.num_batches_tracked'].fill_(99)
    assert math.isfinite(instability(l, w_1, w_2, alphas=4, norm_dl=False).barrier)

def test_nan_is_not_hidden():
    assert math.isnan(barrier(pd.DataFrame(dict(alpha=[0,.5,1], loss=[1,math.nan,1])), 'loss'))

def test_instability_errors(trained):
    l,a,b = trained
    before = bits(l.model)
    def says(s, *args, e=ValueError, **kw):
        with pytest.raises(e, match=s): instability(l, *args, **kw)
    says("`w_2` is of another architecture: it has no '4.bias'", a, {k:v for k,v in b.items() if k!='4.bias'})
    shapes = r"its '0.weight' has shape \(3, 8\), the model's \(12, 8\)"
    says(f"`w_1` is of another architecture: {shapes}", {**a, '0.weight':torch.ones(3,8)}, b)
    says("`w_1` is of another architecture: it has 'more', which the model lacks", {**a, 'more':torch.ones(3)}, b)
    says("`w_1` should be a state", 3, b, e=TypeError)
    for o in (1.5, -.1, math.nan, math.inf): says(r'`alphas` should be in \[0, 1\]; got', a, b, alphas=[0,o])
    for o in (1, 0, True): says('`alphas` should be a whole number of at least 2', a, b, alphas=o)
    says("`by` should be 'error' or 'loss'; got 'top5'", a, b, by='top5')
    l.metrics = []
    says("by='error' needs `accuracy` or `error_rate`", a, b)
    assert bits(l.model)==before

def test_barrier_errors():
    with pytest.raises(ValueError, match='both ends'): barrier(pd.DataFrame(dict(alpha=[0,.5], error=[0,1])))
    no = pd.DataFrame(dict(alpha=[0,1], error=[np.nan]*2, loss=[1,2]))
    with pytest.raises(ValueError, match="no figures of 'error'; it has loss"): barrier(no)

def test_without_a_validation_set_it_is_said_where_to_measure(trained):
    l,a,b = trained
    want = instability(l, a, b, alphas=3).path
    valid = l.dls.valid
    for dls in (DataLoaders.from_dsets(l.dls.train_ds, [], bs=16), DataLoaders(l.dls.train)):
        l.dls = dls
        with pytest.raises(ValueError, match='this Learner has none: say where to measure, such as dl=learn.dls.train'):
            instability(l, a, b)
        pd.testing.assert_frame_equal(instability(l, a, b, alphas=3, dl=valid).path, want)

def test_no_batch_for_statistics(normed):
    l,a,b = normed
    few = l.dls.train.new(n=3, drop_last=True)
    with pytest.raises(ValueError, match='`norm_dl` has no batch'): instability(l, a, b, norm_dl=few)

# ---- layer by layer

m3 = Masks(dict(a=tensor([[True,True],[False,True]]), b=tensor([True,False])))
w = dict(a=tensor([[3.,0.],[math.inf,4.]]), b=tensor([2.,5.]), bias=tensor([7.]))
v = dict(a=tensor([[0.,0.],[-9.,-4.]]), b=tensor([-2.,5.]), bias=tensor([0.]))

def test_stability_by_hand():
    t = stability(m3, w, v)
    assert t.index.tolist()==['a','b','total'] and t.kept.tolist()==[3,1,4]
    assert t.distance.tolist()==pytest.approx([73**.5, 4, 89**.5])
    # cos a = -16/(5·4), cos all = (-16-4)/(√29·√20)
    assert t.angle.tolist()==pytest.approx([math.degrees(math.acos(-.8)), 180, math.degrees(math.acos(-20/580**.5))])

def test_small_angles_are_exact():
    def w(*xs): return dict(a=tensor(xs, dtype=torch.double))
    t = stability(Masks(dict(a=torch.ones(2).bool())), w(1.,0.), w(1.,1e-9))
    assert t.angle.total==pytest.approx(math.degrees(1e-9), rel=1e-6)

def test_doubles_are_compared_as_doubles():
    d = torch.ones(2, dtype=torch.double)
    assert stability(Masks(dict(a=torch.tensor([True,False]))), dict(a=d), dict(a=d+2**-40)).distance.total==2**-40

def test_signs_by_hand():
    t = sign_changes(m3, w, v)
    assert t.changed.tolist()==[2,1,3] and t.fraction.tolist()==pytest.approx([2/3,1,3/4])

def test_moved_by_hand():
    t = moved(m3, w, v)
    assert t.mean_abs.tolist()==pytest.approx([11/3,4,15/4]) and t.distance.tolist()==pytest.approx([73**.5,4,89**.5])
    assert t.relative.tolist()==pytest.approx([73**.5/5,2,(89/29)**.5])
    both = Masks(dict(a=torch.ones(2).bool()))
    assert moved(both, dict(a=tensor([1.,1.])), dict(a=tensor([4.,-2.]))).mean_abs.a==3, 'up and down do not cancel'

def test_empty_layers_and_zero_weights():
    m = Masks(dict(a=torch.zeros(2).bool(), b=torch.ones(2).bool()))
    x,y = dict(a=torch.ones(2), b=torch.zeros(2)),dict(a=torch.ones(2), b=torch.ones(2))
    t,s,d = stability(m, x, y),sign_changes(m, x, y),moved(m, x, y)
    assert t.distance.a==0 and math.isnan(t.angle.a) and math.isnan(t.angle.b)
    assert s.changed.tolist()==[0,2,2] and math.isnan(s.fraction.a) and s.fraction.b==1
    assert math.isnan(d.mean_abs.a) and d.relative.b==math.inf

def test_layers_take_tickets_rounds_models(trained):
    l,a,b = trained
    rs = l.fit_lottery(1, rounds=1, amount=.5, seed=0)
    w = rs[1].ticket.weights
    for o in (rs[1],rs[1].ticket,l.lottery):
        pd.testing.assert_frame_equal(moved(o, w, l.model), moved(rs[1].masks, w, state(l.model)))

def test_layers_errors():
    for f in (stability,sign_changes,moved):
        with pytest.raises(ValueError, match="`w_(2|f)` and the masks do not match: a mask is for 'b'"):
            f(m3, w, dict(a=v['a']))
        with pytest.raises(ValueError, match=r"`w_(1|i)` and the masks do not match: the mask of 'a' has shape"):
            f(m3, dict(w, a=torch.ones(4)), v)
        with pytest.raises(TypeError, match='expected `Masks`'): f(dict(a=1), w, v)

# ---- masks

def rand(n, d, seed):
    def kept(name, n, d): return torch.rand(n, generator=generator(seed,name))<d
    return Masks(dict(a=kept('a', n, d), b=kept('b', 3*n, d/2)))

def test_overlap_table_by_hand():
    ms = [Masks(dict(w=tensor(o).bool())) for o in ([1,1,1,0],[0,1,1,1],[1,0,0,0])]
    t = overlap_table(ms)
    assert t.values.tolist()==[[1,.5,1/3],[.5,1,0],[1/3,0,1]] and list(t.index)==list(t.columns)==[0,1,2]

def test_overlap_is_symmetric_with_ones():
    ms = {f's{s}':rand(50, .2+.2*s, s) for s in range(4)}
    t = overlap_table({**ms, 'none':~Masks.ones(ms['s0'])})
    assert (t.values==t.values.T).all() and (np.diag(t)==1).all() and list(t.columns)==[*ms,'none']
    assert t.loc['s0','s2']==overlap(ms['s0'],ms['s2']) and 0<t.loc['s0','s2']<1 and t.loc['s0','none']==0

def test_random_overlap_by_hand_and_by_chance():
    ms = [Masks(dict(a=torch.arange(8)<4, b=torch.arange(16)<2)),Masks(dict(a=torch.arange(8)<2, b=torch.arange(16)<8))]
    t = random_overlap(ms)    # both: 4·2/8 + 2·8/16 = 2 of 6+10−2 = 14; alone: 2+.25 of 12−2.25
    assert t.iloc[0,1]==t.iloc[1,0]==pytest.approx(2/14) and t.iloc[0,0]==pytest.approx(2.25/9.75)
    a,b = rand(3000, .4, 1),rand(3000, .7, 2)
    seen = [overlap(shuffle_mask(a, generator(s)), shuffle_mask(b, generator(s,'b'))) for s in range(30)]
    assert random_overlap([a,b]).iloc[0,1]==pytest.approx(np.mean(seen), abs=4*np.std(seen)/30**.5)
    none = ~Masks.ones(a)
    assert random_overlap([none,none]).values.tolist()==[[0,0],[0,0]]

def test_overlap_labels(trained):
    l,*_ = trained
    r1,r2 = list(l.fit_lottery(1, rounds=2, seed=1)),list(l.fit_lottery(1, rounds=1, seed=2))
    t = overlap_table(r1)
    assert list(t.index)==['round 0','round 1','round 2']
    assert t.iloc[1,2]==r1[2]['kept']/r1[1]['kept']
    assert list(overlap_table(r1[:2]+[r2[1].ticket]).index)==['seed 1 round 0','seed 1 round 1','seed 2 round 1']
    assert list(overlap_table([r1[1],r1[1].ticket]).index)==[0,1]
    assert list(overlap_table([r1[1],r1[1].masks]).index)==[0,1]

def test_overlap_errors():
    a = rand(10,.5,0)
    for f in (overlap_table,random_overlap):
        sizes = r"0 is of a \(10,\), b \(30,\); 1 of a \(11,\), b \(33,\)"
        with pytest.raises(ValueError, match=f"masks of different weights: {sizes}"): f([a, rand(11,.5,0)])
        with pytest.raises(ValueError, match="masks of different weights: 'x' is of .*; 'y' of a"):
            f(dict(x=a, y=Masks(dict(a=a['a']))))
        with pytest.raises(TypeError, match='`masks` should be a list'): f(a)
        with pytest.raises(TypeError, match='expected `Masks`'): f([a, 3])
        with pytest.raises(ValueError, match='at least one'): f([])

# ---- counts of pairs

def by_hand(a, b):
    both,either = ([int(f(a[n].cpu(), b[n].cpu()).sum()) for n in a] for f in (torch.logical_and,torch.logical_or))
    return sum(both)/max(sum(either), 1)

shapes = {'bits':[(1,),(7,),(64,),(65,)], 'empty':[(0,4),(3,),(0,)], 'none':[(0,)], 'scalar':[(),(5,)], 'long':[(1,1000),(1000,1),(3,400)],
          'kernels':[(8,4,3,3),(40,3,5,5)], 'many':[(k%9,3) for k in range(300)]}

def several(kind, k=5):
    "Masks of which some lie channels last or transposed, some keep all or nothing"
    def one(i, s, shape):
        m = torch.rand(shape, generator=generator(s, f'{kind}{i}'))<(.0,.1,.5,.9,1.)[s%5]
        if m.ndim==4 and s%2: return m.contiguous(memory_format=torch.channels_last)
        return m.t().contiguous().t() if m.ndim==2 and s%2 else m
    return [Masks({f'w{i}':one(i, s, o) for i,o in enumerate(shapes[kind])}) for s in range(k)]

@pytest.mark.parametrize('together', [1,640,2**23])
@pytest.mark.parametrize('kind', shapes)
def test_overlaps_are_those_of_bools(kind, together, monkeypatch):
    monkeypatch.setattr(packing, '_together', together)
    ms = several(kind)
    t,n = overlap_table(ms),kept_by_both(ms)
    for i,a in enumerate(ms):
        for j,b in enumerate(ms):
            assert overlap(a, b)==by_hand(a, b)==(t.iloc[i,j] if i!=j else by_hand(a, b))
            assert n[i,j]==sum(int((a[o]&b[o]).sum()) for o in a)
    assert (np.diag(t)==1).all() and n.dtype==np.int64

@pytest.mark.parametrize('kind', shapes)
def test_counts_without_numpys_own(kind, monkeypatch):
    want = kept_by_both(several(kind))
    monkeypatch.delattr(np, 'bitwise_count', raising=False)
    assert (kept_by_both(several(kind))==want).all()

def test_a_square_never_holds_all_bits(monkeypatch):
    monkeypatch.setattr(packing, '_together', 2**12)
    seen,real = [],packing._words
    def words(o):
        seen.append(real(o))
        return seen[-1]
    monkeypatch.setattr(packing, '_words', words)
    ms = [Masks(dict(a=torch.rand(3,5000)<.5, b=torch.rand(70)<.5)) for _ in range(8)]
    kept_by_both(ms)
    assert max(8*o.nbytes for o in seen)<=2**12 and sum(o.nbytes for o in seen)*8>=8*15070

def test_overlap_says_what_differs():
    a = rand(10,.5,0)
    with pytest.raises(ValueError, match=r"masks of different weights: a \(10,\), b \(30,\) and a \(1,\), b \(3,\)"):
        overlap(a, rand(1,.5,0))    # torch would repeat the one
    with pytest.raises(ValueError, match=r"and b \(30,\), a \(10,\)"): overlap(a, Masks(dict(b=a['b'], a=a['a'])))

def test_chance_of_masks_with_an_empty_layer():
    full,half = Masks(dict(a=torch.ones(8).bool(), e=torch.ones(0).bool())),Masks(dict(a=torch.arange(8)<4, e=torch.ones(0).bool()))
    assert random_overlap([full,half]).values.tolist()==[[1,.5],[.5,1/3]]

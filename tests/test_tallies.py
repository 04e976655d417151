"Many small layers, one large one, and counts instead of prunes"
import tracemalloc
from functools import partial
import pytest,torch
from nets import said
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from fastai.basics import DataLoaders,Learner
from fastai_lottery.all import LotteryCallback
from fastai_lottery.arms import amount_for
from fastai_lottery.criteria import large_final
from fastai_lottery.lowest import Rows,drop_lowest
from fastai_lottery.masks import Masks
from fastai_lottery.model import one_more
from fastai_lottery.scopes import as_scope,erk,global_,local,make_masks,n_of_m,per_layer
from fastai_lottery.tallies import cut_prune,tally
import fastai_lottery.arms,fastai_lottery.model

scopes = {'global':global_, 'local':local, 'erk':erk, '2:4':n_of_m(2,4), '1:3':n_of_m(1,3), 'rates':per_layer({'l1*':.5}),
          'global floor':partial(global_, floor=9), 'local floor':partial(local, floor=9), 'erk floor':partial(erk, floor=9)}
each = pytest.mark.parametrize('scope', scopes.values(), ids=scopes)
shapes = [*[(10,20)]*9,(3,5,3,3),(17,),(0,4),(),(3,5,3,3),(40,30),(7,),(7,)]
def some(density=.7, seed=0, whole=False):
    g = torch.Generator().manual_seed(seed)
    s = {f'l{i}':torch.randn(o, generator=g) for i,o in enumerate(shapes)}
    if whole: s = {n:(2*v).round() for n,v in s.items()}
    return s,Masks({n:torch.rand(v.shape, generator=g)<density for n,v in s.items()})

# --- rows

@pytest.mark.parametrize('whole', [False,True])
@pytest.mark.parametrize('chunk', [50,700,2**17])
def test_each_tensor_by_itself(chunk, whole):
    "In whatever rows, the same go as from each tensor alone, ties included; what is kept stays though it does not compete"
    s,m = some(whole=whole)
    for share in (0,.3,1):
        ks = {n:round(share*int(o.sum())) for n,o in m.items()}
        want = Masks({n:drop_lowest({n:s[n]}, {n:o}, ks[n])[n] for n,o in m.items()})
        rows,among = Rows(s, m, chunk=chunk),Rows(s, {n:o.clone() for n,o in m.items()}, True, chunk)
        rows.drop_each(ks)
        among.drop_each(ks, Masks.ones(m))
        assert rows.counts()=={n:int(o.sum()) for n,o in want.items()}
        assert Masks(rows.masks())==want and Masks(among.masks())==(want|~m)

@each
def test_masks_have_memory_of_their_own(scope):
    s,m = some()
    for amount in (0,.1):
        new = make_masks(s, m, amount, scope)
        assert all(o.untyped_storage().nbytes()==o.numel() for o in new.values())
        assert not {o.data_ptr() for o in new.values() if o.numel()}&{o.data_ptr() for o in m.values() if o.numel()}

@pytest.mark.parametrize('scope', [local, per_layer({'l1*':.5}), erk])
def test_scores_are_not_looked_through_for_each_layer(scope):
    class Seen(dict):
        n = 0
        def values(self):
            self.n += 1
            return super().values()
    s,m = some()
    s = Seen(s)
    scope(s, m, .2)
    assert s.n<3

@each
def test_no_loop_over_layers(scope):
    "A layer more costs a view here and there, not passes of its own"
    class Count(TorchDispatchMode):
        n = 0
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            self.n += 1
            return f(*args, **(kwargs or {}))
    def calls(k):
        s = {f'l{i}':torch.randn(4, 8) for i in range(k)}
        with Count() as c: make_masks(s, Masks.ones(s), .1, scope)
        return c.n
    assert calls(150)-calls(50)<12*100

class Largest(TorchDispatchMode):
    "Bytes of the largest tensor that torch makes"
    n = 0
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        res = f(*args, **(kwargs or {}))
        for t in res if isinstance(res, (list,tuple)) else [res]:
            if torch.is_tensor(t) and f._schema.name!='aten::detach': self.n = max(self.n, t.numel()*t.element_size()*self.new(t, args))
        return res
    def new(self, t, args): return all(t.data_ptr()!=a.data_ptr() for a in args if torch.is_tensor(a))

@each
@pytest.mark.parametrize('parts', [1,3])
def test_a_prune_takes_a_byte_a_weight(scope, parts):
    "No tensor is larger than its mask, and what numpy holds is a constant"
    n = 3*2**20
    s = {f'l1{i}':torch.rand(1024, n//parts//1024) for i in range(parts)}
    m = Masks.ones(s)
    make_masks(s, m, .2, scope)
    tracemalloc.start()
    with Largest() as c: make_masks(s, m, .2, scope)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert c.n<=max(n//parts, 2**21) and peak<16*2**20

def test_sums_that_overflow_are_no_news():
    for dt,v in ((torch.float32,3e38), (torch.float16,6e4), (torch.float64,1.7e308)):
        s = {f'l{i}':torch.full((4,8), v, dtype=dt) for i in range(3)}
        assert make_masks(s, Masks.ones(s), .25).n_kept==72
        s['l1'][0,:2] = torch.inf
        with pytest.raises(ValueError, match="2 scores of 'l1' are not finite"): make_masks(s, Masks.ones(s), .25)

def test_a_lack_of_length_names_the_first_layer():
    s = {f'l{i}':torch.rand(9, 2) for i in range(9)}
    with pytest.raises(ValueError, match="slice.* of 'l2'"): make_masks(s, Masks.ones(s), .9, local, {f'l{i}':0 for i in (7,2,5)})

# --- tallies

@each
def test_tally_is_what_prunes_leave(scope):
    s,m = some(1.)
    left = tally(m, scope)
    for a in (0,.01,.05,.13):
        cur = m
        for k in range(3):
            if (n := left(*[a]*(k+1))) is None: break
            cur = make_masks(s, cur, a, scope)
            assert n==cur.n_kept
    assert left(.01, .01)<m.n_kept

@each
def test_tally_tells_what_is_refused(scope):
    s,m = some(.8)
    left = tally(m, scope)
    for a in (.3,.6,.9,.97,.9999):
        try: want = make_masks(s, m, a, scope).n_kept
        except ValueError: want = None
        assert left(a)==want
    assert left(1.) is None

def test_no_tally_of_other_scopes():
    _,m = some()
    assert tally(m, lambda scores, masks, amount: masks) is None

@each
def test_cut_by_counts_as_by_prunes(scope):
    s,m = some(.9)
    n = m.n_kept
    def at(a): return make_masks(s, m, a, scope)
    for least in (1,n//9,n//2,n-n//10,n-1,n):
        for amount in (.05,.3,.9):
            got = []
            for t in (tally(m, scope), None):
                try: got.append(cut_prune(at, amount, least, n, n, len(m), t))
                except ValueError as e: got.append(str(e))
            assert got[0]==got[1]

def lottery():
    net = nn.Sequential(nn.Linear(9,30), nn.ReLU(), nn.Linear(30,20), nn.ReLU(), nn.Linear(20,4))
    lot = Learner(DataLoaders([], []), net, loss_func=nn.MSELoss(), cbs=LotteryCallback()).lottery
    lot.remember()
    lot.set_masks(lot.all_kept(), None)
    return lot

@pytest.mark.parametrize('scope', ['global','local','erk',{'0':.5},partial(global_, floor=4)], ids=said)
def test_one_whole_prune_is_enough(scope, monkeypatch):
    lot,asked,made = lottery(),[],fastai_lottery.model.make_masks
    monkeypatch.setattr(fastai_lottery.model, 'make_masks', lambda s, m, a, *args: asked.append(a) or made(s, m, a, *args))
    assert one_more(lot, large_final, .3, scope, None, 777).n_kept==777 and len(asked)==1
    own = as_scope(scope, list(lot.masks))
    assert one_more(lot, large_final, .3, lambda s,m,a: own(s, m, a), None, 777).n_kept==777 and len(asked)>3, 'a search'

@pytest.mark.parametrize('n,d', [(1,.5),(2,.3),(5,.61)])
@pytest.mark.parametrize('scope', ['global','local','erk',{'l1*':.5}], ids=str)
def test_rate_of_a_search_without_prunes(scope, n, d, monkeypatch):
    _,m = some()
    own = as_scope(scope, list(m))
    want = amount_for(m, n, d, lambda s,m,a: own(s, m, a))
    monkeypatch.setattr(fastai_lottery.arms, 'make_masks', None)
    assert amount_for(m, n, d, scope)==want

def test_a_rate_where_some_are_refused():
    "Half of each layer twice over is more than 2:4 lets go; the search goes on below"
    m = Masks({'w':torch.ones(40, 40, dtype=torch.bool)})
    assert tally(m, '2:4')(*[amount_for(m, 2, .6, '2:4')]*2)==960

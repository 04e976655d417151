"Laws of 08_sizes: each figure equals a count or a formula by hand"
import math, random
import numpy as np, pandas as pd, pytest, torch
from scipy import stats
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from fastai_lottery.sizes import *
from fastai_lottery.statistics import *
from fastai_lottery.claims import *

def half_masks(model):
    return {n:torch.arange(p.numel()).view_as(p)%2==0 for n,p in model.named_parameters() if p.ndim>1}

# ---- weights

def test_layer_table_counts():
    t = layer_table({'a':torch.tensor([[1,0,0],[1,1,0]]).bool(), 'b.weight':torch.zeros(4,1,2,2).bool()})
    assert t.index.tolist() == ['a','b.weight','total'] and t['shape'].tolist() == ['2×3','4×1×2×2','']
    assert t.total.tolist() == [6,16,22] and t.kept.tolist() == [3,0,3]
    assert t.density.tolist() == [.5,0,3/22]
    assert t.total.dtype.kind == t.kept.dtype.kind == 'i' and t.density.dtype.kind == 'f'

def test_layer_table_counts_beyond_float32():
    n = 2**24+3 # float32 cannot count this far
    assert layer_table({'w':torch.ones(n).bool()}).loc['total','kept'] == n

def test_zeros_are_measured():
    m = nn.Sequential(nn.Linear(3,4), nn.Linear(4,2))
    nn.init.ones_(m[0].bias)
    nn.init.zeros_(m[1].bias)
    with torch.no_grad():
        m[0].weight.view(-1)[[0,5]] = 0
        m[0].weight.view(-1)[7] = float('nan')
    assert zeros(m) == {'0.weight':2,'0.bias':0,'1.weight':0,'1.bias':2}
    assert zeros(m.state_dict(), ['1.bias','0.weight']) == {'1.bias':2,'0.weight':2}
    with pytest.raises(ValueError, match=r"got \['w'\]"): zeros(m, ['w'])

# ---- flops

@pytest.mark.parametrize('layer,x,want', [
    (nn.Linear(7,5), (3,7), 2*3*7*5), (nn.Linear(7,5,bias=False), (7,), 2*7*5), (nn.Linear(7,5), (2,4,7), 2*8*7*5),
    (nn.Conv2d(3,8,3), (2,3,9,7), 2*2*8*7*5*3*9), (nn.Conv2d(3,8,3,stride=2,padding=1), (1,3,9,7), 2*8*5*4*3*9),
    (nn.Conv2d(4,8,(1,3),groups=2), (1,4,5,5), 2*8*5*3*2*3), (nn.Conv2d(3,8,3,dilation=2), (1,3,9,9), 2*8*5*5*3*9),
    (nn.Conv1d(4,6,3), (2,4,10), 2*2*6*8*4*3), (nn.Conv3d(2,3,2), (1,2,4,4,4), 2*3*27*2*8),
    (nn.ConvTranspose2d(3,8,2,stride=2), (1,3,5,5), 2*3*25*8*4)], ids=str)
def test_flops_equal_a_hand_count(layer, x, want):
    t = flops(layer, torch.rand(x))
    assert t.index.tolist() == ['weight','total']
    assert t.loc['weight'].tolist() == [want,1,want] and t.loc['total','flops'] == want
    t = flops(layer, torch.rand(x), half_masks(layer))
    n = layer.weight.numel()
    assert t.loc['weight','flops'] == want
    assert t.loc['weight','sparse_flops'] == t.loc['total','sparse_flops'] == round(want*-(-n//2)/n)

class Zoo(nn.Module):
    "Attention, recurrence, a bare parameter, a tied and an unused weight"
    def __init__(self):
        super().__init__()
        self.emb,self.att = nn.Embedding(11,8),nn.MultiheadAttention(8,2,batch_first=True)
        self.lstm,self.gru = nn.LSTM(8,6,batch_first=True),nn.GRU(6,8,batch_first=True)
        self.w,self.spare = nn.Parameter(torch.rand(8,8)),nn.Linear(2,2)
        self.head = nn.Linear(8,11,bias=False)
        self.head.weight = self.emb.weight
        self.drop,self.norm = nn.Dropout(),nn.BatchNorm1d(5)
    def forward(self, i):
        x = self.emb(i)
        return self.head(self.drop(self.norm(self.gru(self.lstm(self.att(x,x,x)[0])[0])[0] @ self.w)))

def test_flops_by_weight():
    model,x = Zoo(),torch.randint(0, 11, (3,5))
    t = flops(model, x)
    b,s = 3,5
    want = {'emb.weight':2*b*s*8*11, 'att.in_proj_weight':2*b*s*8*24, 'att.out_proj.weight':2*b*s*8*8,
            'lstm.weight_ih_l0':2*b*s*8*24,
            'lstm.weight_hh_l0':2*b*s*6*24, 'gru.weight_ih_l0':2*b*s*6*24, 'gru.weight_hh_l0':2*b*s*8*24, 'w':2*b*s*8*8,
            'spare.weight':0, '(no weight)':2*2*b*s*s*8}
    assert t.flops.drop('total').to_dict() == want
    assert t.loc['total','flops'] == sum(want.values())

def test_flops_add_up_to_the_counter_of_pytorch():
    body = nn.Conv2d(3,8,3),nn.BatchNorm2d(8),nn.ReLU(),nn.Conv2d(8,8,3,groups=2)
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(8*16,10)).eval()
    x = torch.rand(2,3,8,8)
    with FlopCounterMode(display=False) as c: model(x)
    assert flops(model, x).loc['total','flops'] == c.get_total_flops()

def test_sparse_flops_use_each_layers_own_density():
    model,x = nn.Sequential(nn.Linear(4,6), nn.Linear(6,2)),torch.rand(1,4)
    masks = {'0.weight':torch.arange(24).view(6,4)<6, '1.weight':torch.ones(2,6).bool()}
    t = flops(model, x, masks)
    assert t.sparse_flops.tolist() == [12,24,36] and t.density.tolist() == [.25,1,36/72]
    assert flops(model, x, {k:torch.zeros_like(m) for k,m in masks.items()}).sparse_flops.tolist() == [0,0,0]
    with pytest.raises(ValueError, match=r"got \['2.weight'\]"): flops(model, x, {'2.weight':masks['1.weight']})

def test_flops_of_several_inputs():
    class Two(nn.Linear):
        def forward(self, a, b):
            assert not torch.is_grad_enabled() # nothing is kept for a backward pass
            return super().forward(a)+super().forward(b)
    assert flops(Two(3,4), (torch.rand(5,3),torch.rand(2,3).mean(0,keepdim=True))).flops.tolist() == [2*6*3*4]*2

def test_a_product_that_the_counter_does_not_know_shows_as_0():
    assert flops(nn.Bilinear(3,4,2), (torch.rand(5,3),torch.rand(5,4))).loc['weight','flops'] == 0

@pytest.mark.parametrize('fast', [True,False])
def test_flops_leave_all_as_it_was(fast, request):
    request.addfinalizer(lambda old=torch.backends.mha.get_fastpath_enabled(): torch.backends.mha.set_fastpath_enabled(old))
    torch.backends.mha.set_fastpath_enabled(fast)
    model,x,wrong = Zoo(),torch.randint(0, 11, (3,5)),torch.rand(3,5)
    model.train()
    model.norm.eval()
    state = {k:v.clone() for k,v in model.state_dict().items()}
    modes,rng = [m.training for m in model.modules()],(torch.get_rng_state().tolist(),random.getstate())
    flags = torch.backends.mha.get_fastpath_enabled(),torch.backends.mkldnn.enabled,torch.backends.cudnn.enabled
    flops(model, x)
    with pytest.raises(RuntimeError): flops(model, wrong)
    assert all(state[k].equal(v) for k,v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes and (torch.get_rng_state().tolist(),random.getstate()) == rng
    assert (torch.backends.mha.get_fastpath_enabled(),torch.backends.mkldnn.enabled,
            torch.backends.cudnn.enabled) == flags
    assert torch.is_grad_enabled() and all(p.grad is None for p in model.parameters())

def test_flops_see_through_the_fast_path_of_attention():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).requires_grad_(False)
    t = flops(layer, torch.rand(2,5,8))
    assert t.flops['linear1.weight'] == 2*10*8*16 and t.flops['self_attn.in_proj_weight'] == 2*10*8*24

# ---- bytes

@pytest.mark.parametrize('dtype', [torch.float32,torch.float16,torch.float64])
@pytest.mark.parametrize('shape', [(7,),(6,9),(4,3,3,3)])
@pytest.mark.parametrize('keep', [0,3,1000])
@pytest.mark.filterwarnings('ignore:Sparse')
def test_ticket_size_equals_what_pytorch_stores(shape, keep, dtype):
    w = torch.ones(shape, dtype=dtype)
    m = torch.arange(w.numel()).view(shape)<keep
    t = ticket_size({'w':w,'b':torch.ones(3)}, {'w':m})
    flat = (w*m).flatten(1) if w.ndim>1 else (w*m)[None]
    csr,coo = flat.to_sparse_csr(),flat.to_sparse_coo()
    want = [w.nbytes, len(np.packbits(m.numpy()))+w[m].nbytes,
            csr.values().nbytes+csr.col_indices().int().nbytes+csr.crow_indices().int().nbytes,
            coo.values().nbytes+coo.indices().int().nbytes]
    assert t.loc['w'].tolist() == want and t.loc['b'].tolist() == [12]*4
    assert t.loc['total'].tolist() == [o+12 for o in want]

def test_ticket_size_names():
    with pytest.raises(ValueError, match=r"got \['v'\]"): ticket_size({'w':torch.ones(2)}, {'v':torch.ones(2).bool()})

# ---- early stop

nan,inf = math.nan,math.inf
stops = [([3,1,2],200),([1,1,1],100),([2,1,1],200),([nan,5,4],300),([3,nan,4],100),([inf,2,nan],200)]
@pytest.mark.parametrize('loss,want', stops)
def test_early_stop(loss, want):
    got = early_stop(pd.DataFrame(dict(iteration=[100,200,300], valid_loss=loss), index=[7,7,9]))
    assert got == want and type(got) is int

def test_early_stop_of_nothing():
    def curve(**kw): return pd.DataFrame(dict(iteration=range(1, 1+len(next(iter(kw.values())))), **kw))
    for loss in ([], [nan]*2): assert math.isnan(early_stop(curve(valid_loss=loss)))
    with pytest.raises(ValueError, match=r"lacks \['err'\]"): early_stop(curve(valid_loss=[1]), 'err')
    assert early_stop(curve(err=[2,1]), 'err') == 2

# ---- intervals

@pytest.mark.parametrize('n,t95', [(2,12.7062),(5,2.7764),(20,2.0930)]) # Student's t, from a table
def test_interval_by_hand(n, t95):
    xs = np.random.RandomState(n).normal(5, 2, n)
    i = interval(xs)
    assert i.mean == pytest.approx(xs.mean()) and i.n == n
    assert i.half == pytest.approx(t95*xs.std(ddof=1)/n**.5, rel=1e-4)
    assert (i.lo,i.hi) == pytest.approx((i.mean-i.half,i.mean+i.half))
    assert interval(xs, .99).half > i.half > interval(xs, .5).half

def test_interval_covers_as_often_as_it_says():
    r = np.random.RandomState(0)
    hits = np.mean([(i:=interval(r.normal(3, 1, 4))).lo <= 3 <= i.hi for _ in range(1500)])
    assert .93 < hits < .97

def test_interval_of_little():
    i = interval([4.])
    assert (i.mean,i.n) == (4,1) and all(map(math.isnan, i[1:4]))
    assert math.isnan(interval([1,math.nan,2]).mean) and interval([2,2,2]).half == 0
    with pytest.raises(ValueError, match='at least one value'): interval([])
    for level in (0,1,95):
        with pytest.raises(ValueError, match=f'`level` should be in .*got {level}'): interval([1,2], level)

def test_geo_interval():
    xs = [1.2,3.4,2.2]
    g,i = geo_interval(xs),interval(np.log(xs))
    assert g.mean == pytest.approx(np.prod(xs)**(1/3)) and (g.lo,g.hi) == pytest.approx((math.exp(i.lo),math.exp(i.hi)))
    assert (g.lo,g.hi) == pytest.approx((g.mean/g.half,g.mean*g.half)) and g.n == 3
    assert geo_interval(xs, .5).half < g.half < geo_interval(xs, .99).half
    back = geo_interval([1/x for x in xs]) # the same in reverse
    assert (back.lo,back.hi) == pytest.approx((1/g.hi,1/g.lo))
    assert geo_interval([3.]).mean == pytest.approx(3) and math.isnan(geo_interval([3.]).half)
    for bad in (0,-1):
        with pytest.raises(ValueError, match=f'above 0; got {bad}'): geo_interval([1,bad])

def test_summarise():
    df = pd.DataFrame(dict(round=[1,0,1,0,1,2], arm=list('ttttrt'), acc=[3.,1,5,2,9,7], stop=[30,10,50,20,90,70]))
    t = summarise(df, ['round','arm'], ['acc','stop'])
    assert list(t.columns) == ['round','arm','n','acc','acc_lo','acc_hi','stop','stop_lo','stop_hi']
    assert t[['round','arm','n','acc']].values.tolist() == [[1,'t',2,4],[0,'t',2,1.5],[1,'r',1,9],[2,'t',1,7]]
    assert t.loc[0,['stop_lo','stop_hi']].tolist() == pytest.approx(list(interval([30,50])[2:4]))
    assert t.loc[2:,['acc_lo','stop_hi']].isna().all(axis=None)
    one = summarise(df, 'round', 'acc', level=.5)
    assert one.n.tolist() == [3,2,1] and one.acc_hi[1] == pytest.approx(interval([1,2], .5).hi)
    with pytest.raises(ValueError, match=r"no columns \['x'\]"): summarise(df, 'round', 'x')

def test_a_failed_replicate_is_not_left_out():
    t = summarise(pd.DataFrame(dict(k=[0,0,0], acc=[1,2,math.nan])), 'k', 'acc')
    assert t.n[0] == 3 and math.isnan(t.acc[0])

# ---- comparisons

@pytest.mark.filterwarnings('error')
def test_paired():
    r = np.random.RandomState(3)
    b = r.normal(0, 5, 8)
    a = b+1+r.normal(0, .1, 8)
    p,ref = paired(a, b),stats.ttest_1samp(a-b, 0)
    assert (p.diff,p.n) == (pytest.approx((a-b).mean()),8) and (p.t,p.p) == pytest.approx((ref.statistic,ref.pvalue))
    assert (p.lo,p.hi) == pytest.approx(tuple(ref.confidence_interval(.95)))
    assert p.p < 1e-6 < stats.ttest_ind(a, b).pvalue
    q = paired(b, a)
    assert (q.diff,q.t,q.p) == pytest.approx((-p.diff,-p.t,p.p))
    one = paired([3], [1])
    assert one.diff == 2 and math.isnan(one.p) and math.isnan(one.half)
    for f in (paired, lambda a,b: tost(a, b, 1)):
        with pytest.raises(ValueError, match='got 2 and 3'): f([1,2], [1,2,3])

def test_holm():
    # a worked example: m·p₁ = .04, then max(.04, 3·.02 = .06), then max(.06, 2·.03 = .06), then .06 again
    assert holm([.01,.02,.03,.04]).tolist() == pytest.approx([.04,.06,.06,.06])
    assert holm([.04,.01,.03,.02]).tolist() == pytest.approx([.06,.04,.06,.06])
    assert holm([.6,.9]).tolist() == [1,1] and holm([.03]).tolist() == [.03] and holm([]).tolist() == []
    r = np.random.RandomState(0)
    for _ in range(50):
        ps = r.rand(6)
        adj = holm(ps)
        assert (adj >= ps).all() and (adj <= np.minimum(ps*6, 1)+1e-12).all()
        assert (np.argsort(adj[np.argsort(ps)], kind='stable') == np.arange(6)).all()
    for bad in (-.1,1.2,math.nan):
        with pytest.raises(ValueError, match='`ps` should be in'): holm([.1,bad])

@pytest.mark.filterwarnings('error')
def test_tost():
    r = np.random.RandomState(5)
    b = r.normal(98, .1, 10)
    a = b+.05+r.normal(0, .1, 10)
    p = tost(a, b, .3)
    assert p < .01 and p == pytest.approx(tost(b, a, .3))
    assert tost(a, b, .3) < tost(a, b, .15) < tost(a, b, .05)
    # the duality: p < .05 exactly where the 90 % interval lies within the margin
    i = paired(a, b, level=.9)
    edge = max(abs(i.lo),abs(i.hi))
    assert tost(a, b, edge*1.001) < .05 < tost(a, b, edge*.999)
    assert tost(a+1, b, .3) > .99 and math.isnan(tost([1], [1], .3))
    for bad in (0,-1,math.nan):
        with pytest.raises(ValueError, match='`margin` should be above 0'): tost(a, b, bad)

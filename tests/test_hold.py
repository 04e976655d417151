"Holding pruned weights at zero: every dtype, stride and size, infinities included (`hold.hold_`, `hold.Hold`)"
import torch,pytest,copy
from torch import nn
import fastai_lottery.hold as hold
from fastai_lottery.hold import hold_,Hold
inf,nan=float('inf'),float('nan')
bits={1:torch.int8,2:torch.int16,4:torch.int32,8:torch.int64}
DT=[torch.float32,torch.float64,torch.float16,torch.bfloat16,torch.complex64,torch.complex128,torch.float8_e4m3fn]
@pytest.fixture(params=['hold_','Hold','hold_ small','Hold small','Hold together','Hold together small'],autouse=True)
def do(request,monkeypatch):
    if 'small' in request.param: monkeypatch.setattr(hold._bits,'__defaults__',(500,))
    many=dict(small=2**24,many=1) if 'together' in request.param else {}
    return hold_ if 'hold_' in request.param else lambda w,m: Hold(w,m,**many)()
def mk(shape,dt=torch.float32):
    w=torch.randn(shape)
    f=w.view(-1)
    f[::7]=inf
    f[1::11]=nan
    f[2::13]=-0.
    f[3::17]=-inf
    f[4::19]=-1e-40
    f[5::23]=0.
    return w.to(dt)
def ib(t):
    t=t.detach()
    if t.is_complex(): t=torch.view_as_real(t).contiguous()
    return t.contiguous().view(bits[t.element_size()])
def check(do,w,m):
    old=ib(w).clone()
    do([w],[m])
    b=ib(w)
    k=m.unsqueeze(-1).expand(b.shape) if w.is_complex() else m
    assert (b[~k]==0).all() and torch.equal(b[k],old[k]) and (~k).any() and k.any()
@pytest.mark.parametrize('dt',DT,ids=str)
@pytest.mark.parametrize('shape',[(10,7),(64,),(8,4,3,3),(513,1100),(1,700_000)],ids=str)
def test_bits(do,dt,shape): check(do,mk(shape,dt),torch.rand(shape)<.4)
def test_param(do): check(do,nn.Parameter(mk((300,784))),torch.rand(300,784)<.2)
def test_strides(do):
    check(do,mk((40,30)).t(),torch.rand(30,40)<.4)
    check(do,mk((40,30))[::2,1::3],torch.rand(20,10)<.4)
    w=mk((16,8,3,3)).to(memory_format=torch.channels_last)
    check(do,w,torch.rand(16,8,3,3)<.4)
    assert w.is_contiguous(memory_format=torch.channels_last)
    check(do,mk((40,30)),(torch.rand(30,40)<.4).t())
def test_tied(do):
    a=nn.Linear(20,20,bias=False)
    b=nn.Linear(20,20,bias=False)
    b.weight=a.weight
    m=torch.rand(20,20)<.5
    do([a.weight],[m])
    assert (b.weight[~m]==0).all() and a.weight.data_ptr()==b.weight.data_ptr()
    e=mk((6,5))
    v=e.view(5,6)
    do([e],[torch.zeros(6,5,dtype=torch.bool)])
    assert (v==0).all()
    e=mk((6,5))
    do([e,e.t()],[torch.ones(6,5,dtype=torch.bool),torch.zeros(5,6,dtype=torch.bool)])
    assert (e==0).all()
def test_optim(do):
    p=nn.Parameter(torch.randn(30,20))
    m=torch.rand(30,20)<.5
    o=torch.optim.Adam([p],fused=True)
    for _ in range(3):
        (p**2).sum().backward()
        o.step()
        do([p],[m])
        o.zero_grad()
    assert p.requires_grad and p.is_leaf and (p[~m]==0).all() and (p[m]!=0).all()
def test_empty_and_scalar(do):
    do([torch.empty(0,4)],[torch.empty(0,4,dtype=torch.bool)])
    w=torch.tensor(inf)
    do([w],[torch.tensor(False)])
    assert w==0
def test_moved_storage():
    l=nn.Linear(9,9)
    m=torch.rand(9,9)<.5
    h=Hold([l.weight],[m])
    h()
    for f in (lambda w: w.clone(), lambda w: w.double(), lambda w: w.t(), lambda w: w.t().contiguous(), lambda w: w.bfloat16()):
        l.weight.data=f(l.weight.data)
        l.weight.data.fill_(nan)
        h()
        assert (l.weight[~m]==0).all() and l.weight[m].isnan().all()
    c=copy.deepcopy(h)
    assert c.ws[0] is not h.ws[0]
    c.ws[0].data.fill_(nan)
    c()
    assert (c.ws[0][~m]==0).all()
    l.to_empty(device='cpu')
    l.weight.data.fill_(inf)
    h()
    assert (l.weight[~m]==0).all() or h.ws[0] is not l.weight
def test_multiply_would_fail(): assert (torch.tensor([inf])*torch.tensor([False])).isnan()

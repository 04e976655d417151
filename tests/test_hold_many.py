"Many small weights held by one call: the same bits as one by one, and only where it is quicker (`hold.Hold`)"
import torch,pytest,copy
from torch import nn
import fastai_lottery.model    # noqa: F401, gradients
import fastai_lottery.hold as hold
from fastai_lottery.hold import hold_,Hold
from test_hold import DT,ib,inf,mk,nan

shapes=(25,8),(7,),(4,3,2,2),(0,3),(),(80,60),(33,1)
def net(n,held=False,dts=DT):
    "Weights of each type, each in a memory of its own; of every third, weight and mask lie in another order; masks, and held values"
    g=torch.Generator().manual_seed(0)
    ws,ms,vs=[],[],[]
    for k in range(n):
        shape=shapes[k%len(shapes)]
        w,m=mk(shape,dts[k//2%len(dts)]),torch.rand(shape,generator=g)<(.3,1.,.0)[k//5%3]
        if k%3==0 and w.ndim==4: w=w.contiguous(memory_format=torch.channels_last)
        if k%3==0 and w.ndim==2: w,m=w.t().contiguous().t(),m.t().contiguous().t()
        ws.append(nn.Parameter(w) if k%2 else w)
        ms.append(m)
        vs.append(mk(shape,w.dtype) if held and k%4 else None)
    return ws,ms,vs
def alike(a,b): return all(x.shape==y.shape and x.stride()==y.stride() and torch.equal(ib(x),ib(y)) for x,y in zip(a,b))

@pytest.mark.parametrize('held',[False,True])
@pytest.mark.parametrize('wide,chunk',[(2**24,2**18),(2**24,50),(15_000,2**18),(0,2**18)])
def test_together_as_alone(held,wide,chunk,monkeypatch):
    monkeypatch.setattr(hold._bits,'__defaults__',(chunk,))
    ws,ms,vs=net(210,held)
    was=copy.deepcopy(ws)
    want=copy.deepcopy(ws)
    hold_(want,ms,vs)
    h=Hold(ws,ms,vs,wide=wide)
    for _ in range(3):
        h()
        assert alike(ws,want)
        assert {2**24:150<len(h.together)<210, 15_000:20<len(h.together)<150, 0:not h.together}[wide]
        for k,(w,o) in enumerate(zip(ws,was)):
            if k%7==0: w.data=o.data.clone()    # elsewhere
            else: w.data.copy_(o.data)
    assert not all(map(torch.equal,map(ib,ws),map(ib,want))), 'what is pruned is back'

def test_one_call_for_thousands():
    ws,ms,vs=net(3000,True,[torch.float32])
    ws,ms,vs=([o for o,w in zip(x,ws) if 0<w.numel()<=200] for x in (ws,ms,vs))
    for v,n in (None,1),(vs,2):
        h=Hold(ws,ms,v)
        h()
        assert len(ws)>2000 and len(h.plan)==n
    assert len(h.together)==len(ws)

@pytest.mark.parametrize('n,size,together',[(15,100,0),(16,100,16),(100,4096,100),(100,4097,0)])
def test_few_or_large_ones_are_held_as_they_were(n,size,together):
    ws=[torch.full((size,),nan) for _ in range(n)]
    big=torch.full((300,300),inf)
    h=Hold([*ws,big],[torch.arange(size)%2==0]*n+[torch.zeros(300,300,dtype=torch.bool)])
    h()
    assert len(h.together)==together and len(h.plan)==n-together+1+(together>0)
    assert all(w.isnan().sum()==(size+1)//2 and (w[1::2]==0).all() for w in ws) and (big==0).all()

def test_who_shares_memory_waits_for_its_turn():
    "of a matrix and its transpose the later one decides, as one by one"
    for held in (False,True):
        def mk_all():
            e=mk((6,5))
            return [e,*(mk((4,4)) for _ in range(20)),e.t(),e[:2]]
        torch.manual_seed(0)
        a,ms=mk_all(),[]
        ms=[torch.rand(w.shape)<.5 for w in a]
        vs=[torch.randn(w.shape) for w in a] if held else None
        b=mk_all()
        for w,o in zip(a[:21],b[:21]): o.copy_(w)
        h=Hold(a,ms,vs)
        h()
        hold_(b,ms,vs)
        assert alike(a,b) and len(h.together)==20
    e=[mk((4,4)) for _ in range(15)]
    h=Hold([*e,e[0].t()],[torch.rand(4,4)<.5]*16)
    h()
    assert not h.together and len(h.plan)==16, 'too few are left'

def test_memory_of_those_held_together():
    ws=[torch.randn(100) for _ in range(50)]
    ms=[torch.rand(100)<.5 for _ in ws]
    h=Hold(ws,ms)
    h()
    assert h.nbytes==50*400
    h=Hold(ws,ms,[torch.randn(100) if k%2 else None for k in range(50)])
    h()
    assert h.nbytes==75*400
    h=Hold([w.to(torch.float8_e4m3fn) for w in ws],ms)
    h()
    assert h.nbytes==50*100 and all(m.dtype==torch.bool for m in ms)

def test_turned_in_its_place():
    "the same memory read in another order; and a weight that is strided comes to lie in order"
    ws=[mk((4,4)) for _ in range(20)]
    m=torch.arange(16).view(4,4)%5<2
    h=Hold(ws,[m]*20)
    for f in (torch.t,torch.t,lambda w: w.t().contiguous().t(),lambda w: w.contiguous()):
        h()
        for w in ws:
            w.data=f(w.data)
            w.data.fill_(inf)
        h()
        assert all((w[~m]==0).all() and w[m].isinf().all() for w in ws) and len(h.together)==20

@pytest.mark.parametrize('chunk',[2**18,20])
@pytest.mark.parametrize('dt',DT,ids=str)
def test_gradients_of_those_held_together(dt,chunk,monkeypatch):
    monkeypatch.setattr(hold._bits,'__defaults__',(chunk,))
    ws=[nn.Parameter(mk(shapes[k%2*2],dt)) for k in range(40)]
    ms=[torch.rand(w.shape)<.5 for w in ws]
    h=Hold(ws,ms).on_grads()
    with torch.inference_mode(): h()
    assert len(h.together)==40
    for w in ws: w.grad=mk(w.shape,dt)
    want=[w.grad.clone() for w in ws]
    hold_(want,ms)
    for w in ws: h.zero_grad_(w)
    assert alike([w.grad for w in ws],want)
    h.off()

def test_a_step_of_each():
    "backward, a step and a hold: as one by one, to the last bit"
    def trained(**kwargs):
        torch.manual_seed(0)
        ws=[nn.Parameter(torch.randn(5,4)) for _ in range(30)]
        ms=[torch.rand(5,4)<.5 for _ in ws]
        h=Hold(ws,ms,[torch.randn(5,4) if k%3==0 else None for k in range(30)],**kwargs).on_grads()
        opt=torch.optim.AdamW(ws,lr=.1)
        for k in range(5):
            h()
            loss=sum((w@w.t()).cos().sum() for w in ws)
            loss.backward()
            if k==3: ws[4].grad[0,1],ws[5].data[2,2]=inf,nan
            opt.step()
            assert all((w.grad[~m]==0).all() for n,(w,m) in enumerate(zip(ws,ms)) if n!=4)
            opt.zero_grad()
        h()
        return ws,len(h.together)
    (a,n),(b,none)=trained(),trained(many=1000)
    assert alike(a,b) and (n,none)==(30,0)

"`drop_lowest` against a stable sort"
import torch,pytest,numpy as np
from fastai_lottery.scopes import drop_lowest
def ref(scores,masks,k):
    s=torch.cat([x.reshape(-1).double() for x in scores.values()]).numpy()
    m=torch.cat([x.reshape(-1) for x in masks.values()]).numpy().copy()
    i=np.flatnonzero(m)
    o=i[np.argsort(s[i],kind='stable')][:k]
    m[o]=False
    out,at={},0
    for n,x in masks.items():
        out[n]=torch.from_numpy(m[at:at+x.numel()]).view(x.shape)
        at+=x.numel()
    return out
def mk(kind,dt,g):
    sh=[(300,784),(100,300),(10,100),(7,),(0,4),(8,4,3,3)]
    def normal(s): return torch.randn(s,generator=g)
    def whole(lo,hi,s): return torch.randint(lo,hi,s,generator=g)
    f=dict(normal=normal, abs=lambda s: normal(s).abs(), ties=lambda s: whole(-3,4,s).float(), same=lambda s: torch.full(s,.25),
      zeros=lambda s: torch.where(torch.rand(s,generator=g)<.5,-0.,0.), tiny=lambda s: normal(s)*1e-40,
      inf=lambda s: normal(s).mul(3).round()/whole(0,3,s), close=lambda s: 1+whole(0,50,s)*2.**-23)[kind]
    return {f'l{i}':f(s).nan_to_num(nan=9.,posinf=float('inf'),neginf=-float('inf')).to(dt) for i,s in enumerate(sh)}
@pytest.mark.parametrize('dt',[torch.float32,torch.float64,torch.float16,torch.bfloat16],ids=str)
@pytest.mark.parametrize('kind','normal abs ties same zeros tiny inf close'.split())
@pytest.mark.parametrize('chunk',[2**18,1000])
def test_ref(kind,dt,chunk):
    g=torch.Generator().manual_seed(1)
    s=mk(kind,dt,g)
    m={n:torch.rand(x.shape,generator=g)<.7 for n,x in s.items()}
    N=sum(int(x.sum()) for x in m.values())
    old={n:x.clone() for n,x in m.items()}
    so={n:x.clone() for n,x in s.items()}
    for k in (0,1,2,N//5,N//2,N-1,N):
        a,b=drop_lowest(s,m,k,chunk=chunk),ref(s,m,k)
        assert all(torch.equal(a[n],b[n]) for n in m) and sum(int(x.sum()) for x in a.values())==N-k
    assert all(torch.equal(m[n],old[n]) and torch.equal(s[n],so[n]) for n in m)
def test_noncontig_and_mixed():
    g=torch.Generator().manual_seed(2)
    def normal(*shape): return torch.randn(shape,generator=g)
    s=dict(a=normal(40,30).t(),b=normal(16,8,3,3).to(memory_format=torch.channels_last))
    s.update(c=normal(50).bfloat16(),d=normal(9).double())
    m={n:torch.rand(x.shape,generator=g)<.6 for n,x in s.items()}
    m['a']=m['a'].t().contiguous().t()
    k=400
    for q in (s,{n:x for n,x in s.items() if n!='d'}):
        mm={n:m[n] for n in q}
        a,b=drop_lowest(q,mm,k),ref(q,mm,k)
        assert all(torch.equal(a[n],b[n]) for n in q)
def test_all_dead_layer():
    s=dict(a=torch.randn(10),b=torch.randn(10))
    m=dict(a=torch.zeros(10,dtype=torch.bool),b=torch.ones(10,dtype=torch.bool))
    a=drop_lowest(s,m,4)
    assert not a['a'].any() and a['b'].sum()==6

"""A ticket's file holds packed masks and survivors' values: nothing that the net needs is lost, its size is near the
bound, controls that need the rest refuse it, and a crafted file makes nothing that it does not hold"""
import json,random,shutil,zlib
from copy import deepcopy
from dataclasses import replace
import numpy as np,pytest
from nets import *
from wrong import wrong

from fastai_lottery.arms import Run,unmasked
from fastai_lottery.digests import pieces
from fastai_lottery.files import load_tensors,read_label,save_tensors
from fastai_lottery.fits import *
from fastai_lottery.labels import weights_in
from fastai_lottery.packing import bits_of,dense_bits,least_bytes,packed_bits
from fastai_lottery.resets import state
from fastai_lottery.resets import resets_menu
from fastai_lottery.scopes import inverse_mask,random_mask,shuffle_mask
from fastai_lottery.supermask import signed_constant,untrained
from fastai_lottery.transfer import transfer
from old_files import Bare
from test_start import make
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]

# --- bits

@pytest.mark.parametrize('density', [0,1e-4,.01,.036,.1,.5,.9,1])
def test_bits_come_back(density):
    for n in (1,7,8,9,63,64,65,4097,300_001):
        bits = bits_of(Masks({'a':torch.rand(n)<density, 'b':torch.rand(3)<density}))
        assert np.array_equal(dense_bits(packed_bits(bits), len(bits)), bits)

def test_masks_are_near_their_entropy():
    for density in (.5,.2,.1,.036,.01):
        m = Masks({'a':torch.rand(2_000_000)<density})
        assert len(packed_bits(bits_of(m)))<1.035*least_bytes(m, 0), density

def test_a_resnet_is_near_the_bound(tmp_path):
    from torchvision.models import resnet18
    ws = state(resnet18())
    names = [n for n,w in ws.items() if w.dim()>1]
    rest = sum(w.numel()*w.element_size() for n,w in ws.items() if n not in names)
    for density in (.5,.036,.01):
        t = Ticket(Masks({n:torch.rand(ws[n].shape)<density for n in names}), ws)
        assert t.save(tmp_path/'t').stat().st_size<1.05*(least_bytes(t.masks)+rest), density

# --- what is kept is kept to the bit

def raw(o):
    "Tensors of a dict or a model as bytes; numpy knows no bfloat16"
    ts = o if isinstance(o, dict) else state(o)
    return {k:(v.dtype, v.shape, b''.join(map(bytes, pieces(v)))) for k,v in ts.items()}

nets = dict(mlp=mlp, drop_bn=drop_bn, conv_bn=conv_bn, bare=Bare, tied=lambda: Tied())

class Tied(nn.Module):
    "An embedding and a head that share their weight"
    def __init__(self):
        super().__init__()
        self.emb,self.out = nn.Embedding(30,8),nn.Linear(8,30)
        self.out.weight = self.emb.weight

@pytest.mark.parametrize('kind', [torch.float32,torch.float16,torch.bfloat16,torch.float64])
@pytest.mark.parametrize('net', nets)
def test_a_net_comes_back(net, kind, tmp_path):
    m = nets[net]().to(kind)
    ws = named_weights(m, prunable(m))
    masks = Masks({n:torch.rand(w.shape)<.3 for n,w in ws.items()})
    held = {n:torch.where(masks[n], torch.zeros_like(w), w.detach()) for n,w in ws.items()}
    for h in (None,held):
        t = Ticket(masks, state(m), {}, h, None, state(masks.apply_(deepcopy(m), h)))
        u = Ticket.load(t.save(tmp_path/'t'))
        assert not u.dense and u.digest()==t.digest() and raw(u.trained)==raw(t.trained) and u.masks==masks
        assert raw(u.apply_(nets[net]().to(kind)))==raw(t.apply_(nets[net]().to(kind)))
        assert Ticket.load(t.save(tmp_path/'t', dense=True)).digest(dense=True)==t.digest(dense=True)
        own = [n for n,w in load_tensors(tmp_path/'t')[0].items() if n.startswith('weight/')]
        assert net!='tied' or own==['weight/emb.weight','weight/out.bias'], 'the twin is not written twice'

def test_trained_weights_that_are_not_held_are_whole(tmp_path):
    "Nobody relies on what is not so"
    m = drop_bn()
    masks = Masks({n:torch.rand(w.shape)<.3 for n,w in named_weights(m, prunable(m)).items()})
    t = Ticket(masks, state(m), {}, None, None, state(m))
    assert bits(Ticket.load(t.save(tmp_path/'t')).trained)==bits(t.trained)
    assert not [n for n in read_label(tmp_path/'t')['packed']['kept'] if n.startswith('trained/')]

# --- controls

@pytest.fixture(scope='module', params=['init','4it'])
def played(request, tmp_path_factory):
    "A lottery's Learner, one of its tickets, and files of it with survivors and with all"
    d,one = tmp_path_factory.mktemp('played'),make(rewind_to=request.param)
    one.fit_lottery(1, rounds=2, amount=.5, seed=1)
    t = one.lottery.ticket(1)
    return one,t,t.save(d/'part'),t.save(d/'all', dense=True)

def start_of(learn): return {n:p.detach().clone() for n,p in learn.model.named_parameters()}

def begun(t, learn=None, **kw):
    "Where a training of `t` begins"
    learn = make(seed=7) if learn is None else learn
    seen = {}
    class See(Callback):
        def before_train(self):
            if not seen: seen.update(start_of(self))
    learn.fit_ticket(t, 1, seed=2, cbs=See(), **kw)
    return seen

refused = r'holds survivors only.*save\(path, dense=True\)'
of_all = dict(permute=dict(reset='permute'), constant=dict(reset='constant'), noisy=dict(reset='noisy'),
              constant_keep_sign=dict(reset='constant_keep_sign'),
              shuffled=dict(mask=shuffle_mask), inverse=dict(mask=inverse_mask),
              random=dict(mask=random_mask), own=dict(reset=lambda w_k: torch.where(w_k>w_k.mean(), w_k, -w_k)),
              hold=dict(hold='hold_init'), by_mean=dict(hold=lambda w_k, m: w_k.mean().expand_as(w_k)))
of_part = dict(rewind={}, reinit=dict(reset='random_reinit'), signs=dict(reset='reinit_keep_sign'),
               dealt=dict(reset='reshuffle'),
               dealt_signs=dict(reset='reshuffle_keep_sign'), drawn=dict(reset='random_reinit', mask=shuffle_mask),
               zero=dict(hold='hold_zero'), half=dict(reset=lambda w_k: w_k/2))

@pytest.mark.parametrize('kw', of_all.values(), ids=list(of_all))
def test_what_needs_all_refuses_survivors(played, kw):
    _,t,part,whole = played
    learn = make(seed=7)
    was = bits(learn.model)
    if kw.get('hold')=='hold_init' and t.meta['rewind_to']!='init':
        pytest.skip('a late ticket knows no initial weights')
    with pytest.raises(ValueError, match=refused): learn.fit_ticket(Ticket.load(part), 1, seed=2, **kw)
    assert bits(learn.model)==was, 'nothing is touched'
    begun(Ticket.load(whole), **kw)

@pytest.mark.parametrize('kw', of_part.values(), ids=list(of_part))
def test_what_needs_survivors_gets_them(played, kw):
    _,t,part,whole = played
    if 'hold' in kw and t.meta['rewind_to']!='init': pytest.skip('a late ticket knows no initial weights at all')
    a,b = begun(Ticket.load(part), **kw),begun(Ticket.load(whole), **kw)
    assert all(torch.equal(v, b[n]) for n,v in a.items())

def test_each_reset_is_one_or_the_other():
    told = {kw['reset'] for kw in [*of_all.values(),*of_part.values()] if isinstance(kw.get('reset'), str)}
    assert told|{'rewind','keep','rewind_or_zero'}==set(resets_menu())

@pytest.mark.parametrize('kw', of_all.values(), ids=list(of_all))
def test_its_own_lottery_knows_the_rest(played, kw):
    "A ticket that was loaded is recognised, and controls start where those of the ticket in memory do"
    one,t,part,_ = played
    if kw.get('hold')=='hold_init' and t.meta['rewind_to']!='init': kw = dict(hold=kw['hold'])
    a,b = begun(Ticket.load(part), one, **kw),begun(t, one, **kw)
    assert all(torch.equal(v, b[n]) for n,v in a.items())

def test_a_lottery_goes_on_from_survivors(played):
    _,t,part,whole = played
    a,b = (make(seed=7) for _ in range(2))
    kw = dict(rounds=2, amount=.3, seed=3)
    for l,f in ((a,part),(b,whole)): l.fit_lottery(1, start=Ticket.load(f), **kw)
    assert [r['mask_hash'] for r in a.lottery.rounds]==[r['mask_hash'] for r in b.lottery.rounds]
    assert bits(a.model)==bits(b.model) and not a.lottery.ticket().dense
    for reset in ('permute','noisy'):
        learn,t = make(seed=7),Ticket.load(part)
        with pytest.raises(ValueError, match=refused): learn.fit_lottery(1, start=t, reset=reset, **kw)
    with pytest.raises(ValueError, match=refused): a.rewind('permute')
    if t.meta['rewind_to']=='init':
        was = bits(a.model)
        with pytest.raises(ValueError, match=refused): a.fit_lottery(1, rounds=0)
        assert bits(a.model)==was and a.lottery.masks.density<1

def test_other_users_of_starting_weights(played):
    _,_,part,whole = played
    t,u = Ticket.load(part),Ticket.load(whole)
    run = Run(None, [type('R', (), dict(ticket=o)) for o in (t,u)], {}, None)
    a,b = unmasked(run, 0),unmasked(run, 1)
    assert a.dense and all(torch.equal(v, b.weights[n]) for n,v in a.weights.items())    # but for the sign of a zero
    a,b = (bits(untrained(o.masks, o.weights).apply_(make().model)) for o in (t,u))
    assert a==b
    for f in (lambda: untrained(Masks.ones(t.masks), t.weights), lambda: untrained(t.masks, t.weights, signed_constant),
              lambda: replace(t, masks=shuffle_mask(t.masks, generator(1))).apply_(make().model),
              lambda: make().fit_ticket(transfer(t, make().model), 1, mask=shuffle_mask)):
        with pytest.raises(ValueError, match=refused): f()
    assert not transfer(t, make().model).dense

def test_a_folder_knows_the_ticket_from_its_file(played, tmp_path):
    "The training of the ticket in memory goes on by the one from the file"
    _,t,part,_ = played
    a = make(seed=7).fit_ticket(t, 1, seed=2, path=tmp_path/'run')
    b = make(seed=8).fit_ticket(Ticket.load(part), 1, seed=2, path=tmp_path/'run')
    assert a.row==b.row
    make(seed=7).fit_lottery(1, rounds=0, seed=2, start=t, path=tmp_path/'more')
    assert len(make(seed=7).fit_lottery(1, rounds=1, seed=2, start=Ticket.load(part), path=tmp_path/'more'))==2

# --- a run's folder

def sizes(d): return {f.relative_to(d).as_posix():f.stat().st_size for f in d.rglob('*.safetensors')}

@pytest.mark.parametrize('late', ['init','4it'])
def test_a_folder_has_its_start_once(late, tmp_path):
    learn = make(rewind_to=late)
    rs = learn.fit_lottery(1, rounds=2, amount=.6, seed=1, path=tmp_path/'run', keep='all')
    d = tmp_path/'run'
    has = {'init.safetensors'} if late=='init' else {'init.safetensors','start.safetensors'}
    assert {f.name for f in d.glob('*.safetensors')}==has
    for r in rs:
        f = d/f"round_{r['round']:02d}"
        t = Ticket.load(f/'ticket')
        assert t.dense and bits(t.weights)==bits(r.start)
        assert not [n for n in load_tensors(f/'ticket')[0] if n.startswith('weight/')]
        assert bits(weights_in(f)[0])==bits(learn.lottery.trained[r['round']])

@pytest.mark.parametrize('late', ['init','4it'])
def test_a_ticket_leaves_its_folder(late, tmp_path):
    "Whole, by a save; its file alone says what is missing, and another run's start is none"
    d = tmp_path/'run'
    rs = make(rewind_to=late).fit_lottery(1, rounds=2, amount=.6, seed=1, path=d)
    f = Ticket.load(d/'round_02'/'ticket').save(tmp_path/'out')
    assert not Ticket.load(f).dense and Ticket.load(f).digest()==rs[2].ticket.digest()
    (tmp_path/'alone').mkdir()
    f = shutil.copy(d/'round_02'/'ticket.safetensors', tmp_path/'alone')
    with pytest.raises(ValueError, match=r'alone.*starting weights are in another file.*\.save\(path\)'): Ticket.load(f)
    other = make(seed=3, rewind_to=late).fit_lottery(1, rounds=0, seed=5, path=tmp_path/'other')
    for o in (tmp_path/'other').glob('*.safetensors'): shutil.copy(o, d)
    with pytest.raises(ValueError, match='starting weights are in another file'): Ticket.load(d/'round_02'/'ticket')

@pytest.mark.parametrize('hold', [None,'hold_init','hold_init_or_zero'])
def test_trained_weights_in_a_folder(hold, tmp_path):
    "Where pruned weights are held at other values, too"
    learn = make()
    rs = learn.fit_lottery(1, rounds=2, amount=.5, seed=1, hold=hold, path=tmp_path/'run', keep='all')
    for k,r in enumerate(rs):
        assert bits(weights_in(tmp_path/'run'/f'round_{k:02d}')[0])==bits(learn.lottery.trained[k])
    again = make(seed=9)
    again.fit_lottery(1, rounds=2, amount=.5, seed=1, hold=hold, path=tmp_path/'run')
    assert bits(again.model)==bits(learn.model)

# --- files that somebody made

right = lambda: Masks(dict(a=torch.rand(40,30)<.2, b=torch.rand(7)<.5))

@pytest.fixture
def file(tmp_path): return some_file(tmp_path)

def some_file(d):
    "A ticket's file with all that there may be in one"
    torch.manual_seed(0)
    masks = right()
    held = {n:torch.where(m, 0., torch.randn(m.shape)) for n,m in masks.items()}
    ws = dict({n:torch.randn(m.shape) for n,m in masks.items()}, c=torch.randn(3), d=torch.tensor(2))
    return Ticket(masks, ws, dict(round=1), held, dict(x=torch.ones(2)), {**ws, **held}).save(d/'t')

def test_a_file_that_would_swell(tmp_path):
    "130 kB that promise a thousand million weights: an error that says how much, and no such thing is made"
    n = 2**33
    label = dict(names=['a'], kept=0, prunable=n, density=0., mask_hash='0'*16)
    stream = bytearray(zlib.compress(bytes(2**27), 9))
    ts = {'masks':torch.frombuffer(stream, dtype=torch.uint8), 'weight/a':torch.zeros(0)}
    packed = dict(kept=['weight/a'], pruned=[], same={}, shapes=[[n]], start=None)
    f = save_tensors(tmp_path/'t', ts, dict(label, packed=packed))
    assert f.stat().st_size<200_000
    with pytest.raises(ValueError, match=r't.safetensors.*40.0 GiB in memory.*`limit`, 8.0 GiB'): Ticket.load(f)
    with pytest.raises(ValueError, match=r'1.4 MiB.*1.0 MiB'):
        t = Ticket(Masks({'a':torch.arange(300_000)<9}), {'a':torch.ones(300_000)})
        Ticket.load(t.save(tmp_path/'u'), limit=2**20)
    assert Ticket.load(tmp_path/'u', limit=None).masks.n_kept==9

def test_streams_that_are_none(file):
    ts,label = load_tensors(file)
    b = ts['masks'].numpy().tobytes()
    bits = zlib.decompress(b)
    others = bits+b'\0',bits[:-1],b'\xff'*len(bits),bytes(len(bits)),bytes(10**7)
    for new in (b[:-1], b[:9], b'', b+b'\0', *map(zlib.compress, others)):
        ts['masks'] = torch.frombuffer(bytearray(new or b'\0'), dtype=torch.uint8)
        with pytest.raises(ValueError, match='t.safetensors'): Ticket.load(save_tensors(file, ts, label))

def test_a_name_that_stands_twice(file):
    "In the header, whose digest says nothing of it, and in the label"
    b = file.read_bytes()
    n = int.from_bytes(b[:8], 'little')
    head = b[8:8+n].decode()
    one = json.dumps({'weight/c':json.loads(head)['weight/c']}, separators=(',',':'))[1:-1]
    new = head.replace(one, f'{one},{one}').encode()
    file.write_bytes(len(new).to_bytes(8, 'little')+new+b[8+n:])
    try: assert Ticket.load(file).weights['c'].shape==(3,)    # the same thing twice is no other
    except ValueError as e: assert str(file) in str(e)
    file.write_bytes(b)
    ts,label = load_tensors(file)
    for k in ('kept','pruned'):
        p = label['packed']
        save_tensors(file, ts, dict(label, packed={**p, k:p[k]+p[k][:1]}))
        with pytest.raises(ValueError, match='t.safetensors'): Ticket.load(file)

def tried(f):
    "Nothing, where the file is read or refused by name; else what is wrong"
    try: Ticket.load(f, limit=2**24)
    except ValueError as e: return None if str(f) in str(e) and '\x1b' not in str(e) else f'names no file: {e}'
    except Exception as e: return f'{type(e).__name__}: {e}'

def is_read(f):
    "Is the file taken for a ticket? An error that is no `ValueError` goes on"
    try: Ticket.load(f)
    except ValueError: return False
    return True

def crafted(f, n):
    "The file with one wrong thing in its tensors or its label, and the right digest; what that is"
    r,(ts,label) = random.Random(n),load_tensors(f)
    while True:
        try:
            if r.random()<.5:
                new,says = wrong(label['packed'], r)
                ts2,m = ts,dict(label, packed=new)
            else:
                new,says = wrong(dict(ts=ts, meta=label), r)
                ts2,m = new['ts'],new['meta']
            save_tensors(f, {str(k):v for k,v in ts2.items() if torch.is_tensor(v)}, m)
            return says
        except (TypeError,ValueError,AttributeError,RecursionError,OverflowError,
                KeyError): pass    # JSON has no such thing

@pytest.mark.parametrize('first', range(0, 400, 100))
def test_wrong_content(file, first):
    good,bad = file.read_bytes(),[]
    for n in range(first, first+100):
        says = crafted(file, n)
        if why := tried(file): bad.append(f'{says} [{n}]: {why}')
        file.write_bytes(good)
    assert not bad, '\n'.join(bad)

def damaged(b, r):
    "Bytes with one thing wrong: a bit, a cut, something more, a piece from elsewhere"
    i,j = sorted(r.randrange(len(b)) for _ in range(2))
    how = r.randrange(5)
    if how==0: return b[:i]+bytes([b[i]^1<<r.randrange(8)])+b[i+1:]
    if how==1: return b[:i]
    if how==2: return b+r.randbytes(1+r.randrange(99))
    if how==3: return b[:i]+b[j:]
    return b[:i]+r.randbytes(1+r.randrange(9))+b[i+1:]

def test_damaged_files(file):
    good,r = file.read_bytes(),random.Random(0)
    for _ in range(1500):
        new = damaged(good, r)
        if new==good: continue
        file.write_bytes(new)
        with pytest.raises(ValueError, match='t.safetensors'): Ticket.load(file)

@pytest.mark.parametrize('fill', [torch.zeros, torch.ones, lambda *s: torch.eye(*s) if len(s)>1 else torch.zeros(*s)])
def test_what_is_equal_by_chance_is_no_tied_weight(tmp_path, fill):
    "A bias of zeros and a running mean, an identity that competes and one that does not: none loses a value"
    ws = {n:fill(*s) for n,s in dict(a=(6,6), b=(6,6), bias=(6,), mean=(6,)).items()}
    half = {n:torch.arange(ws[n].numel()).view(ws[n].shape)%2==0 for n in ('a','bias')}
    t = Ticket.load(Ticket(Masks(half), ws).save(tmp_path/'t'))
    for n in ('b','mean'): assert torch.equal(t.weights[n], ws[n])

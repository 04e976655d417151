"Densities by shape, N of every M, and controls on masks"
import subprocess,sys
import pytest
from fastai_lottery.identity import say
from fastai_lottery.scopes import as_scope,_shares
from nets import *

def draw(shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {n:torch.rand(s, generator=g) for n,s in shapes.items()}

lenet = draw(dict(fc1=(300,784), fc2=(100,300), out=(10,100)))
conv2 = draw(dict(c1=(64,3,3,3), c2=(64,64,3,3), fc1=(256,4096), fc2=(256,256), out=(10,256)))
dense = Masks.ones
def kept(masks): return [int(m.sum()) for m in masks.values()]
def some(ws, p, seed=3):
    shapes = {n:w.shape for n,w in ws.items()}
    return Masks({n:m<p for n,m in draw(shapes, seed).items()})
def per_group(m, k): return m.reshape(len(m), -1, k).sum(-1)

# --- ERK

@pytest.mark.parametrize('amount,want', [
    (.9,
     [18714,6906,
      1000]),               # out would have 26620*110/1594 = 1837: it keeps its 1000; 25620*1084/1484 = 18714.34
    (.99,
     [1810,668,
      184]),                  # 2662 in all, 1.67 of each unit of dims: 1810.30, 668.01, 183.70; nothing is cut off
    (.2,  [181960,30000,1000]),             # two are cut off: fc2 would have 211960*400/1484
    (.999,[181,67,18]), (0,[235200,30000,1000])])
def test_erk_by_hand(amount, want):
    new = make_masks(lenet, dense(lenet), amount, erk)
    assert kept(new)==want and new.n_kept==266200-round(amount*266200)
    for n,m in new.items():     # the lowest of each layer went
        if (~m).any(): assert lenet[n][m].min()>=lenet[n][~m].max()

def test_erk_convolutions_and_vectors():
    "A kernel's dims all count: (64,64,3,3) has 134/36864, (64,3,3,3) 73/1728; a vector is full before anything else is"
    new = make_masks(conv2, dense(conv2), .999, erk)
    f = new.n_kept/(73+134+4352+512+266)
    assert all(abs(k-f*sum(w.shape))<1 for k,w in zip(kept(new), conv2.values()))
    ws = draw(dict(w=(50,40), bias=(50,)))
    assert kept(make_masks(ws, dense(ws), .5, erk))==[975,50]

@pytest.mark.parametrize('power,want', [(0,[23520,3000,100]), (2,[12392,13228,1000])])
def test_erk_power(power, want):
    "0 is one density for all. 2: out is cut off, the others share 25620 as 1084**2/235200 = 4.99600 to 400**2/30000 = 5.33333"
    assert kept(make_masks(lenet, dense(lenet), .9, partial(erk, power=power)))==want

many = draw({f'l{i}':(i+2,7,*([3,3]*(i%2))) for i in range(23)})
@pytest.mark.parametrize('ws', [lenet, many, draw(dict(a=(3,3), b=(3,3), c=(3,3)))], ids=['lenet','many','equal'])
@pytest.mark.parametrize('p', [1., .5, .05])
def test_erk_totals_are_exact(ws, p):
    masks = dense(ws) if p==1 else some(ws, p)
    for amount in np.linspace(0, .97, 40).tolist():
        if (n := masks.n_kept-round(amount*masks.n_kept))==0: continue
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', EmptyLayerWarning)
            new = make_masks(ws, masks, amount, erk)
        assert new.n_kept==n and (new&masks)==new
        # What is not cut off has one factor, up to a weight
        f = [k/sum(w.shape) for k,w,m in zip(kept(new), ws.values(), masks.values()) if k<int(m.sum())]
        assert not f or max(f)-min(f)<=max(2/sum(w.shape) for w in ws.values())

def test_erk_remainders_go_to_the_first_of_equals():
    ws = draw(dict(a=(3,3), b=(3,3), c=(3,3)))
    assert [kept(make_masks(ws, dense(ws), k/27, erk)) for k in (1,2,3,4)]==[[9,9,8],[9,8,8],[8,8,8],[8,8,7]]

def test_erk_in_rounds_ends_where_one_prune_does():
    "Densities by shape do not depend on the way, but for rounding"
    masks = dense(lenet)
    for _ in range(10):
        was,masks = masks,make_masks(lenet, masks, .2, erk)
        assert (masks&was)==masks and masks.n_kept==was.n_kept-round(.2*was.n_kept)
    once = make_masks(lenet, dense(lenet), 1-masks.n_kept/masks.numel, erk)
    assert all(abs(a-b)<=1 for a,b in zip(kept(masks), kept(once)))

def test_erk_layers_that_have_less_are_left_alone():
    "fc1 was pruned to 5000 before: at a tenth it would have 18714, so the others share the rest"
    masks = Masks({**dense(lenet), 'fc1':(torch.arange(235200)<5000).view(300,784)})
    new = make_masks(lenet, masks, .5, erk)
    assert new['fc1'].equal(masks['fc1']) and kept(new)==[5000,12000,1000]
    assert kept(make_masks(lenet, masks, 31000/36000, erk))==[round(5000*o/1594) for o in (1084,400,110)]

def test_erk_floor_and_empty_layers():
    ws = draw(dict(wide=(400,500), thin=(2,2)))
    with pytest.warns(EmptyLayerWarning, match=r'no weight is left in thin.*partial\(erk, floor=10\)'):
        new = make_masks(ws, dense(ws), .9995, erk)
    assert kept(new)==[100,0]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert kept(make_masks(ws, dense(ws), .9995, partial(erk, floor=3)))==[97,3]
        assert kept(make_masks(ws, dense(ws), .9995, partial(erk, floor=10)))==[96,4]
    with pytest.raises(ValueError,
                       match=r'amount=0\.9999 would remove 199984 weights, but `floor=50` leaves only 199950'):
        make_masks(ws, dense(ws), .9999, partial(erk, floor=50))

@pytest.mark.parametrize('power', [-1, 'x', math.nan, math.inf, None, True], ids=str)
def test_erk_bad_power(power):
    with pytest.raises(ValueError, match='`power` should be a number of at least 0'):
        make_masks(lenet, dense(lenet), .5, partial(erk, power=power))

def test_shares_of_many_random_layers():
    "Against bisection for the factor, in floats"
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(1,12))
        want,hi = rng.integers(1,500,n),rng.integers(0,300,n)
        lo = np.minimum(hi, rng.integers(0,6,n))
        total = int(rng.integers(lo.sum(), hi.sum()+1))
        got = np.array(_shares(want.tolist(), lo.tolist(), hi.tolist(), total))
        a,b = 0.,1e6
        for _ in range(200):
            f = (a+b)/2
            a,b = (f,b) if np.clip(f*want, lo, hi).sum()<total else (a,f)
        assert got.sum()==total and (got>=lo).all() and (got<=hi).all() and np.abs(got-np.clip(b*want, lo, hi)).max()<1

# --- N:M

@pytest.mark.parametrize('n,m', [(1,2),(2,4),(1,4),(4,8),(3,4)])
@pytest.mark.parametrize('shape', [(6,16),(5,8,3,3),(4,16,1,2),(64,)], ids=str)
def test_full_amount_is_the_pattern(n, m, shape):
    "Exactly n in each group; which: the best ones"
    ws = draw(dict(w=shape))
    new = make_masks(ws, dense(ws), 1-n/m, n_of_m(n,m))['w']
    g,s = new.reshape(-1,m),ws['w'].reshape(-1,
                                            m)     # rows are multiples of m, so groups are the same in the flat weight
    assert (g.sum(-1)==n).all()
    assert all(set(a.nonzero()[:,0].tolist())==set(np.argsort(b.numpy())[m-n:].tolist()) for a,b in zip(g, s))

def test_groups_lie_in_rows_of_inputs():
    "Rows of 6: groups of 4 and 2, each row's own; a flat cut into fours would keep other weights"
    ws = dict(w=torch.tensor([[1.,2,3,4, 9,8],[6,5,4,3, 1,2]]))
    assert make_masks(ws, dense(ws), .5, '2:4')['w'].long().tolist()==[[0,0,1,1,1,0],[1,1,0,0,0,1]]

@pytest.mark.parametrize('cols,keep', [(4,2),(5,3),(6,3),(7,4),(8,4),(3,2),(1,1)])
def test_a_rest_keeps_its_share_rounded_up(cols, keep):
    ws = draw(dict(w=(50,cols)))
    n = 50*(cols-keep)
    new = make_masks(ws, dense(ws), n/(50*cols), n_of_m(2,4))['w']
    assert (new.sum(1)==keep).all()
    whole = per_group(new[:,:cols//4*4], 4)
    assert (whole==2).all() and (new[:,cols//4*4:].sum(1)==math.ceil(2*(cols%4)/4)).all()
    with pytest.raises(ValueError, match='2:4 lets only'): make_masks(ws, dense(ws), (n+1)/(50*cols), n_of_m(2,4))

def test_small_amounts_on_the_way():
    "Exact in each layer, never more than 2 of 4 gone, and 2:4 at the end"
    ws = {k:v for k,v in conv2.items() if k!='c1'}
    masks,total = dense(ws),4
    for left in (3.6, 3.1, 2.5, 2.2, 2.):
        amount,total,was = 1-left/total,left,masks
        masks = make_masks(ws, was, amount, '2:4')
        assert kept(masks)==[h-round(amount*h) for h in kept(was)] and (masks&was)==masks
        assert all((per_group(m,4)>=2).all() for m in masks.values())
    assert all((per_group(m,4)==2).all() for m in masks.values()) and masks==make_masks(ws, dense(ws), .5, '2:4')

def test_the_lowest_of_all_groups_go_first():
    "A group may lose two before another loses any; within what may go, the order is that of the layer"
    ws = dict(w=torch.tensor([[.1,.2,.3,.4, 5,6,7,8]]))
    assert [kept_at(ws, k) for k in (1,2,3,4)]==[[1,2,3,4,5,6,7],[2,3,4,5,6,7],[2,3,5,6,7],[2,3,6,7]]
def kept_at(ws, k): return make_masks(ws, dense(ws), k/8, '2:4')['w'][0].nonzero()[:,0].tolist()

@pytest.mark.parametrize('scope,n,m', [('2:4',2,4), (n_of_m(1,8),1,8)], ids=['2:4','1:8'])
def test_masks_already_pruned(scope, n, m):
    "Pruned weights count as gone; a group with less than it should keep is left as it is"
    ws = {k:w-.7 for k,w in draw(dict(a=(20,40), c=(6,5,3,3))).items()}
    old = some(ws, .6)    # scores of both signs
    lost = {k:per_group(torch.nn.functional.pad(o.flatten(1), (0,-o[0].numel()%m)), m) for k,o in old.items()}
    amount = .8*min(int((v-n).clamp(min=0).sum())/int(v.sum()) for v in lost.values()) if m==4 else .3
    new = make_masks(ws, old, amount, scope)
    assert kept(new)==[h-round(amount*h) for h in kept(old)] and (new&old)==new
    for k,o in new.items():
        now = per_group(torch.nn.functional.pad(o.flatten(1), (0,-o[0].numel()%m)), m)
        cols = o[0].numel()
        must = torch.full_like(now, n)
        if cols%m: must[:,-1] = math.ceil(n*(cols%m)/m)
        assert (now>=torch.minimum(must, lost[k])).all() and (now<lost[k]).any()

def test_dead_weights_never_count_as_best():
    "Whatever their scores are, nan and inf too"
    ws = draw(dict(w=(30,8)))
    old = some(ws, .8)
    want = make_masks(ws, old, .1, '2:4')
    for v in (1e30, -1e30, math.nan, math.inf, -math.inf):
        assert make_masks(dict(w=torch.where(old['w'], ws['w'], torch.tensor(v))), old, .1, '2:4')==want

def test_negative_scores_ties_and_kinds():
    ones = dict(w=-torch.ones(3,8))
    assert make_masks(ones, dense(ones), .5, '2:4')['w'].long().tolist()==[[0,0,1,1]*2]*3, 'of equals the first go'
    for dt in (torch.float16, torch.bfloat16, torch.float64):
        ws = dict(w=(draw(dict(w=(40,16)))['w']*8).to(dt)-4)
        assert make_masks(ws, dense(ws), .5, '2:4')==make_masks({'w':ws['w'].double()}, dense(ws), .5, '2:4')
    close = dict(w=1+torch.tensor([[4.,3,2,1]], dtype=torch.float64)*1e-12)
    assert make_masks(close, dense(close), .5, '2:4')['w'].tolist()==[[True,True,False,False]]
    last = {'w':draw(dict(w=(4,8,3,3)))['w'].to(memory_format=torch.channels_last)}
    assert make_masks(last, dense(last), .5, '2:4')==make_masks({'w':last['w'].contiguous()}, dense(last), .5, '2:4')

def test_the_largest_amount_is_named_and_works():
    ws = draw(dict(a=(20,16), c=(64,3,3,3)))
    want = r"amount=0\.5 would remove 864 of the 1728 weights left in 'c', but 2:4 lets only 832 go: `amount` can be at most 0\.4814"
    with pytest.raises(ValueError, match=want+' here.*`exclude=`'): make_masks(ws, dense(ws), .5, n_of_m(2,4))
    assert kept(make_masks(ws, dense(ws), .4814, n_of_m(2,4)))==[320-154, 1728-832]
    done = make_masks(dict(a=ws['a']), dense(dict(a=ws['a'])), .5, '2:4')
    with pytest.raises(ValueError, match='at most 0 here'): make_masks(dict(a=ws['a']), done, .2, '2:4')
    assert make_masks(dict(a=ws['a']), done, 0, '2:4')==done

def test_no_layer_is_ever_emptied():
    ws = draw(dict(a=(1,8), b=(400,8)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert kept(make_masks(ws, dense(ws), .875, n_of_m(1,8)))==[1,400]
        # Emptied before: no news, and no reason to refuse
        gone = Masks(dict(a=torch.zeros(1,8,dtype=torch.bool), b=dense(ws)['b']))
        assert kept(make_masks(ws, gone, .875, n_of_m(1,8)))==[0,400]

@pytest.mark.parametrize('n,m', [(0,4),(4,4),(5,4),(-1,4),(2.,4),(2,4.),('2','4'),(True,4)], ids=str)
def test_bad_patterns(n, m):
    with pytest.raises(ValueError, match=r'1 <= n < m, such as n_of_m\(2, 4\); got n='): n_of_m(n, m)

def test_no_loop_over_groups():
    "48,000 groups take as many calls of torch as 160 do, but for the pieces that pruning goes in"
    from torch.utils._python_dispatch import TorchDispatchMode
    class Count(TorchDispatchMode):
        n = 0
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            self.n += 1
            return f(*args, **(kwargs or {}))
    def calls(rows):
        ws = draw(dict(w=(rows,64)))
        with Count() as c: new = make_masks(ws, dense(ws), .5, '2:4')
        assert (per_group(new['w'],4)==2).all()
        return c.n
    assert calls(10)<100 and calls(3000)<150

# --- by name

def test_names_of_scopes():
    for n,f in dict(erk=erk, local=local, global_=global_, **{'global':global_}).items(): assert as_scope(n, ['w']) is f
    a = {say(o) for o in (n_of_m(2,4), n_of_m(1,4), n_of_m(4,8), erk, partial(erk, power=.5), partial(erk, floor=5),
                          local, global_)}
    assert len(a)==8 and say(n_of_m(2,4))==say(as_scope('2:4', ['w']))=='n_of_m(2, 4)'
    code = "from fastai_lottery.scopes import *; from fastai_lottery.identity import say; print(say(n_of_m(1, 8)))"
    got = subprocess.run([sys.executable,'-W','ignore','-c',code], capture_output=True, text=True, check=True)
    assert got.stdout.strip()==say(n_of_m(1,8)), 'the same in every process'
    for bad in ('2-4', 'erks', '', '2:4:8', ':', 3, None):
        want = r"`scope` should be 'global', 'local', 'erk', '<n>:<m>' such as '2:4', a dict.*got "+re.escape(repr(bad))
        with pytest.raises(ValueError, match=want): as_scope(bad, ['w'])
    with pytest.raises(ValueError, match='1 <= n < m'): as_scope('4:2', ['w'])

played = {'erk':('erk',.3), '2:4':('2:4',.2), '1:4':(n_of_m(1,4),.3), 'floor':(partial(erk, floor=4),.6)}
@pytest.mark.parametrize('scope,amount', played.values(), ids=played)
def test_in_a_lottery(scope, amount):
    "Rounds of the scope, recorded by its name; pruned weights stay 0"
    learn = learner()
    learn.fit_lottery(1, rounds=2, amount=amount, scope=scope)
    masks = dense(named_weights(learn.model, learn.lottery.masks))
    for r in learn.lottery.rounds[1:]:
        if pattern := (2,4) if scope=='2:4' else (1,4) if getattr(scope,'__name__','')=='n_of_m(1, 4)' else None:
            assert kept(r.masks)==[h-round(amount*h) for h in kept(masks)]
            assert all((per_group(m,4)>=pattern[0]).all() for m in r.masks.values())
        assert abs(r.masks.n_kept-(masks.n_kept-amount*masks.n_kept))<=.5*len(masks) and (r.masks&masks)==r.masks
        masks = r.masks
    assert leaks(learn)==0 and learn.lottery.ticket().meta['scope']==say(scope)

@pytest.mark.parametrize('criterion', ['random','synflow'])
def test_erk_tickets_before_training(criterion):
    "Random ERK tickets, and a criterion that prunes in a hundred steps"
    learn = learner(lambda: nn.Sequential(nn.Linear(8,60), nn.ReLU(), nn.Linear(60,60), nn.ReLU(), nn.Linear(60,4)))
    m = learn.prune(.9, criterion, 'erk', seed=1)
    n = 4320-round(.9*4320)
    far = 1 if criterion=='random' else 2
    assert m.n_kept==n and all(abs(k-n*d/(68+120+64))<=far for k,d in zip(kept(m), (68,120,64)))

# --- controls

def test_inverse_mask():
    t = make_masks(lenet, dense(lenet), .9, local)
    rng = rng_states()
    i = inverse_mask(t, torch.Generator())
    assert (i&t).n_kept==0 and (i|t).n_kept==t.numel and i.density==pytest.approx(.9)
    assert inverse_mask(i)==t and rng_states()==rng
    with pytest.raises(ValueError, match='the ticket is dense.*take a later round'): inverse_mask(dense(lenet))
    with pytest.warns(EmptyLayerWarning, match='keeps all of out'):
        inverse_mask(make_masks(lenet, dense(lenet), .9, erk))

def test_erk_mask():
    "As many weights as the ticket, wherever the ticket has them; another draw with another generator"
    t = make_masks(lenet, dense(lenet), .9, global_)
    a,b,c = (erk_mask(t, generator(s,'mask')) for s in (1,1,2))
    assert kept(a)==[18714,6906,1000]!=kept(t) and a==b and a!=c and kept(c)==kept(a)
    empty = Masks({**t, 'out':torch.zeros(10,100,dtype=torch.bool)})
    assert kept(erk_mask(empty, generator(1)))[2]>500, 'not cut off at what the ticket has'
    assert abs(float(a['fc1'][:,:392].float().mean())/float(a['fc1'].float().mean())-1)<.05, 'all over the layer'

def test_mask_of_another_seed():
    "Its mask, from this ticket's weights"
    ts = []
    for seed in (0,1):
        learn = learner(seed=seed)
        learn.fit_lottery(1, rounds=1, amount=.5, seed=seed)
        ts.append(learn.lottery.ticket())
    a,b = ts
    r = learn.fit_ticket(a, 1, mask=mask_of(b), seed=0)
    assert r.masks==b.masks!=a.masks and r['mask']==f'mask_of({b.masks.hash()})'
    assert all(torch.equal(v, a.weights[k]) for k,v in r.ticket.weights.items())
    assert mask_of(b.masks)(a.masks)==b.masks and mask_of(r)(a.masks)==b.masks
    turned = Masks(dict(reversed(list(b.masks.items()))))
    assert list(mask_of(turned)(a.masks))==list(a.masks) and mask_of(turned)(a.masks)==b.masks

def test_mask_of_another_net():
    a = dense(lenet)
    with pytest.raises(ValueError, match=r"'fc1' has shape \(300, 784\), this one's \(5, 784\)"):
        mask_of(a)(Masks({**a, 'fc1':a['fc1'][:5]}))
    for m,o in ((a, {n:a[n] for n in ('fc1','out')}), ({n:a[n] for n in ('fc1','out')}, a)):
        with pytest.raises(ValueError, match=r"'fc2' is in one only; they have"): mask_of(Masks(o))(Masks(m))
    for bad in ('mnist', None, dict(a)):
        with pytest.raises(TypeError, match='`mask_of` takes a Ticket or Masks; got'): mask_of(bad)
    learn = learner()
    was = bits(learn.model)
    learn.fit_lottery(1, rounds=1, amount=.5)
    t,was = learn.lottery.ticket(),bits(learn.model)
    with pytest.raises(ValueError, match='another net'): learn.fit_ticket(t, 1, mask=mask_of(a))
    assert bits(learn.model)==was and learn.lottery.masks==t.masks

# --- GraSP

def test_grasp_scores_what_the_gradient_would_lose():
    "What a small cut of one weight takes off half of |g|², by finite differences: high scores, which stay, are what the gradient needs"
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6,10), nn.Tanh(), nn.Linear(10,3)).double()
    x,y,ws = torch.randn(40,6).double(),torch.randint(0,3,(40,)),[net[0].weight,net[2].weight]
    def norm2(): return sum((g**2).sum() for g in torch.autograd.grad(F.cross_entropy(net(x), y), ws)).item()
    from fastai_lottery.signals import hessian_grads
    dls = DataLoaders.from_dsets(rows := list(zip(x, y)), rows, bs=40, device='cpu')
    hg = hessian_grads(Learner(dls, net, loss_func=F.cross_entropy), ['0.weight','2.weight'])
    s = scores('grasp', ['0.weight','2.weight'], w_f={n:w.detach() for n,w in zip(('0.weight','2.weight'), ws)}, hg=hg)
    for n,w in zip(s, ws):
        for i in range(0, w.numel(), 7):
            old,e = w.data.view(-1)[i].item(),1e-4
            was = norm2()
            w.data.view(-1)[i] = old*(1-e)
            now = norm2()
            w.data.view(-1)[i] = old
            assert (was-now)/(2*e)==pytest.approx(float(s[n].view(-1)[i]), rel=1e-2, abs=1e-7)

# --- empty layers: what is added lets all pass

added = '0.bias rnn.bias_ih_l0 att.in_proj_bias att.bias_k u_bias.weight pos_embed cls_token attn.relative_position_bias_table'
multiplied = '0.weight rnn.weight_hh_l0 norm.weight layer_scale bias_net.0.weight alpha weight_g emb.weight'.split()
def sized(n): return (9,1) if n=='u_bias.weight' else (9,3) if n.endswith('weight') and 'norm' not in n else (9,)

@pytest.mark.parametrize('scope', [global_, local, erk], ids=lambda f: f.__name__)
@pytest.mark.parametrize('name', [*added.split(), *multiplied])
def test_only_what_is_multiplied_by_passes_nothing_on(name, scope):
    w = {name:torch.full(sized(name), .01), 'other':torch.rand(300,300)+1}
    masks = Masks({**dense(w), 'other':torch.rand(300,300)<(.005 if scope is local else 1)})
    amount = {global_:.5, local:.99, erk:.9999}[scope]
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        new = make_masks(w, masks, amount, scope)
    assert not new[name].any(), 'else this shows nothing'
    said = [str(o.message) for o in ws if o.category is EmptyLayerWarning]
    assert len(said)==(name in multiplied) and all(f'no weight is left in {name}, which' in o for o in said)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        make_masks(w, new, .001)        # news once

def test_inverse_of_a_full_bias_is_no_empty_layer():
    m = Masks({'0.weight':torch.rand(4,4)<.5, '0.bias':torch.ones(4, dtype=torch.bool)})
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        inverse_mask(m)
    m = Masks({'0.weight':torch.ones(4,4, dtype=torch.bool), '0.bias':torch.zeros(4, dtype=torch.bool)})
    with pytest.warns(EmptyLayerWarning, match='keeps all of 0.weight, so'): inverse_mask(m)

def test_a_pruned_bias_says_nothing_in_use():
    "Small biases go first, and the net learns on"
    learn = learner(cbs=LotteryCallback(bias=True))
    with torch.no_grad():
        for o in learn.model[::2]: o.bias.fill_(1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter('error', EmptyLayerWarning)
        masks = learn.prune(.2)
    assert not any(masks[f'{i}.bias'].any() for i in (0,2,4))

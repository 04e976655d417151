"Units as values, their scores, prunes and controls; and lotteries of units that need no graph of the net"
import pickle
from copy import deepcopy
import pytest,torch
from torch import nn
from nets import *
from fastai_lottery.masks import unpack
from fastai_lottery.units import *
from fastai_lottery.scopes import NothingMore
from fastai_lottery.removal import without
from fastai_lottery.shrink import living
from fastai_lottery.all import unit_criteria_menu
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]

# --- units by hand: two coupled layers that share their units, a norm, and one behind them

class Two(nn.Module):
    "`a` and `b` are added; `n` normalises the sum; `c` reads it; `o` is the last layer"
    def __init__(self, i=8, h=10, k=6, classes=4):
        super().__init__()
        self.a,self.b,self.n = nn.Linear(i, h),nn.Linear(i, h, bias=False),nn.BatchNorm1d(h)
        self.c,self.o = nn.Linear(h, k),nn.Linear(k, classes)
    def forward(self, x): return self.o(self.c(self.n(self.a(x)+self.b(x)).relu()).relu())

def units_of_two(m, **kwargs):
    h,k = m.n.num_features,m.c.out_features
    made = [Part('a', n, 0, torch.arange(h)) for n in ('a.weight','a.bias','b.weight','n.weight','n.bias')]
    read = [Part('a', n, d, torch.arange(h), False) for n,d in (('n.running_mean',0),('n.running_var',0),('c.weight',1))]
    last = [Part('c', 'c.weight', 0, torch.arange(k)), Part('c', 'c.bias', 0, torch.arange(k)),
            Part('c', 'o.weight', 1, torch.arange(k), False)]
    return Units(dict(a=h, c=k), [*made, *read, *last], m.state_dict(), **kwargs)

def two(seed=0, **kwargs):
    torch.manual_seed(seed)
    m = Two(**kwargs)
    return m,units_of_two(m)

def drawn(units, gen, share=.5):
    return Masks({g:torch.rand(n, generator=gen)>=share for g,n in units.sizes.items()})

def unit_learner(seed=0, **kwargs):
    "A Learner whose units are known by hand, so that no graph is needed"
    torch.manual_seed(seed)
    learn = Learner(data(), Two(), loss_func=nn.CrossEntropyLoss(), metrics=accuracy,
                    cbs=LotteryCallback(units='channels', **kwargs))
    learn.lottery.units_are(units_of_two(learn.model))
    return learn

within = {'rows':'rows', 'kernels':'kernels', 'blocks':block_units(2, 3)}
def small_conv():
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 5))
def units_in(kind, m): return units_within(named_weights(m, prunable(m)), within[kind])

def some_units():
    "Pairs of a model and its units, of every kind"
    yield two()
    for k in within:
        torch.manual_seed(0)
        m = small_conv()
        yield m,units_in(k, m)
kinds = ['channels', *within]
@pytest.fixture(params=range(len(kinds)), ids=kinds)
def mu(request): return list(some_units())[request.param]

# --- masks and what is alive

def test_masks_of_units_and_back(mu):
    m,u = mu
    gen = generator(0, 'test')
    for share in (0,.3,.8):
        alive = drawn(u, gen, share)
        masks = u.masks(alive)
        assert u.alive(masks)==alive and masks.counted==alive and masks.units is u
        assert u.alive(u.masks(u.alive(masks)))==alive

def test_more_units_alive_are_more_weights_kept(mu):
    _,u = mu
    gen = generator(1, 'test')
    a = drawn(u, gen)
    b = Masks({g:v&(torch.rand(len(v), generator=gen)>.3) for g,v in a.items()})
    assert all((~m|u.masks(a)[n]).all() for n,m in u.masks(b).items())

def test_a_dead_unit_is_silent_and_can_be_taken_out():
    m,u = two()
    alive = drawn(u, generator(2, 'test'))
    m.n.running_mean.normal_()
    u.masks(alive).apply_(m)
    m,x = m.double().eval(),torch.randn(5, 8, dtype=torch.double)
    out = m.n(m.a(x)+m.b(x))
    assert (out[:,~alive['a']].relu()==0).all()
    small = without(m, u, alive)
    assert small.a.out_features==int(alive['a'].sum())==small.n.num_features
    assert torch.allclose(small(x), m(x), rtol=0, atol=1e-12)

def carried(masks):
    yield 'pack', unpack(masks.pack())
    yield 'pickle', pickle.loads(pickle.dumps(masks))
    yield 'deepcopy', deepcopy(masks)
    yield 'to', masks.to('cpu')
    yield 'near', masks.near({n:m.float() for n,m in masks.items()})
    yield 'and', masks&masks
    yield 'or', masks|masks

def test_masks_carry_their_units(mu):
    _,u = mu
    masks = u.masks(drawn(u, generator(3, 'test')))
    for how,new in carried(masks):
        assert new==masks and new.units is not None, how
        assert new.counted==masks.counted and new.hash()==masks.hash(), how
    assert (~masks).units is u

def test_and_and_or_go_by_units(mu):
    _,u = mu
    a,b = [drawn(u, generator(i, 'test')) for i in (4,5)]
    assert (u.masks(a)&u.masks(b)).counted==a&b and (u.masks(a)|u.masks(b)).counted==a|b

@pytest.mark.parametrize('f', [shuffle_mask, random_mask, erk_mask, inverse_mask])
def test_controls_go_by_whole_units(f, mu):
    _,u = mu
    masks = u.masks(drawn(u, generator(6, 'test')))
    new = f(masks, generator(7, 'test'))
    assert new==u.masks(new.counted) and new.units is u, 'whole units'
    if f is inverse_mask: assert new.counted==~masks.counted
    else: assert new.counted.n_kept==masks.counted.n_kept and new!=masks
    if f is shuffle_mask: assert all(int(new.counted[g].sum())==int(v.sum()) for g,v in masks.counted.items())

# --- scores

def ranks(u): return {n:torch.randn(s, generator=generator(0, n)) for n,s in u.shapes.items() if len(s)>1}

@pytest.mark.parametrize('pool,f',
                         [('mean',lambda t: t.mean(1)), ('sum',lambda t: t.sum(1)), ('max',lambda t: t.max(1).values),
                                    (lambda t: t.std(1), lambda t: t.std(1))])
def test_pooling_as_by_hand(pool, f):
    "Each coupled layer for itself, then together"
    m,u = two()
    s = ranks(u)
    got = u.pooled(s, pool)
    assert torch.allclose(got['a'], f(torch.stack([f(s['a.weight']), f(s['b.weight'])], 1)))
    assert torch.allclose(got['c'], f(s['c.weight']))

def test_pooling_within_a_weight():
    w = torch.arange(24.).view(2,3,2,2)
    u = units_within({'w':w}, 'kernels')
    assert torch.equal(u.pooled({'w':w})['w'], w.flatten(2).mean(2).flatten())
    u = units_within({'w':w.view(4,6)}, block_units(3, 4))
    m = w.view(4,6)
    by_hand = [m[:3,:4], m[:3,4:], m[3:,:4], m[3:,4:]]
    assert u.sizes=={'w':4} and torch.equal(u.pooled({'w':m})['w'], torch.stack([b.mean() for b in by_hand]))

def test_a_pool_that_gives_no_number_a_unit():
    _,u = two()
    with pytest.raises(ValueError,
                       match="`pool`, or the criterion, should give one number a unit, 10 for 'a.weight'; it gave shape"):
        u.pooled(ranks(u), lambda s: s)

def test_criteria_of_units_as_their_papers_have_them():
    m,u = two()
    w = m.a.weight.detach()
    def of(f): return u.scores_of(f, PerUnit(), dict(w_f={n:t.detach() for n,t in m.named_parameters()}))
    menu = unit_criteria_menu()
    assert set(menu)=={'filter_l1','filter_l2','geometric_median','bn_scale'}
    both = [m.a.weight.detach(), m.b.weight.detach()]
    assert torch.allclose(of(menu['filter_l1'])['a'], sum(t.abs().sum(1) for t in both)/2)
    assert torch.allclose(of(menu['filter_l2'])['a'], sum(t.pow(2).sum(1).sqrt() for t in both)/2)
    far = torch.stack([(w-r).norm(dim=1).sum() for r in w])
    assert torch.allclose(geometric_median(w), far, atol=1e-4)
    got = of(menu['bn_scale'])
    assert list(got)==['a'] and torch.equal(got['a'], torch.ones(10)), 'only norms are read'

def test_bn_scale_without_norms():
    with pytest.raises(ValueError, match="'bn_scale' goes by the scales of norms, and no unit of this net has one"):
        units_in('rows', small_conv()).read_by(bn_scale)

# --- prunes

def scores_for(u, seed=0): return {g:torch.rand(n, generator=generator(seed, g)) for g,n in u.sizes.items()}
free = PerUnit(comparable=False, floor=0)

@pytest.mark.parametrize('scope', ['global','local','erk',{'a':.5}])
@pytest.mark.parametrize('amount', [0,.2,.5])
def test_counts_are_exact_and_dead_stay_dead(scope, amount):
    _,u = two(h=40, k=20)
    alive,n = u.ones(),60
    for i in range(3):
        s = scores_for(u, i)
        new = u.prune(s, alive, amount, scope, free)
        assert all((~new[g]|alive[g]).all() for g in alive), 'monotone'
        gone = alive.n_kept-new.n_kept
        if scope in ('global','erk'): assert gone==round(amount*alive.n_kept)
        if scope=='local': assert gone==sum(round(amount*int(v.sum())) for v in alive.values())
        alive = new

def test_equals_go_in_order():
    _,u = two()
    s = {g:torch.ones(n) for g,n in u.sizes.items()}
    new = u.prune(s, u.ones(), .25, 'local', free)
    assert new['a'].tolist()==[False]*2+[True]*8 and u.prune(s, u.ones(), .25, 'local', free)==new

def test_comparable_across_layers():
    "Layers whose scores differ by a factor lose the same; without it, one loses all"
    _,u = two(h=20, k=20)
    s = scores_for(u)
    s['c'] = s['a'].clone()*1e-3
    new = u.prune(s, u.ones(), .5, 'global', PerUnit())
    assert int(new['a'].sum())==int(new['c'].sum())==10
    new = u.prune({g:v+(g=='a') for g,v in s.items()}, u.ones(), .4, 'global', free)
    assert int(new['a'].sum())==20 and int(new['c'].sum())==4

@pytest.mark.parametrize('floor,amount,stay', [(.1,.6,2), (.33,.6,7), (.5,.5,10), (0,.6,1)])
def test_no_layer_falls_below_the_floor(floor, amount, stay):
    _,u = two(h=20, k=40)
    s = scores_for(u)
    s['a'] = s['a']-10    # all of `a` goes first
    new = u.prune(s, u.ones(), amount, 'global', PerUnit(comparable=False, floor=floor))
    assert int(new['a'].sum())==stay and new.n_kept==60-round(amount*60)
    assert torch.equal(new['a'].nonzero()[:,0], s['a'].argsort()[20-stay:].sort().values), 'the best stay'

def test_an_amount_that_the_floor_does_not_let():
    _,u = two()
    says = "amount=0.9 would leave 0 of the 10 units of 'a', and 5 stay at least: .* smaller floor than 0.5"
    with pytest.raises(NothingMore, match=says):
        u.prune(scores_for(u), u.ones(), .9, 'global', PerUnit(floor=.5))

@pytest.mark.parametrize('k', [1, 4, 8])
def test_counts_are_rounded_up_to_what_hardware_likes(k):
    _,u = two(h=32, k=13)
    s,alive = scores_for(u),u.ones()
    for _ in range(4):
        new = u.prune(s, alive, .3, 'local', PerUnit(round_to=k, floor=0))
        for g,v in new.items():
            n = int(v.sum())
            assert n%k==0 or n==int(alive[g].sum()), 'a multiple, or as many as there were'
            assert torch.equal(v.nonzero()[:,0], s[g].argsort()[len(v)-n:].sort().values), 'the best stay'
        alive = new

@pytest.mark.parametrize('kw,says', [
    (dict(pool='median'), "`pool` should be 'mean', 'sum', 'max' or a function of scores, a row a unit; got 'median'"),
    (dict(floor=2), r"`floor` should be a fraction of a layer's units, in \[0, 1\]; got 2"),
    (dict(floor=True), '`floor` should be a fraction'),
    (dict(round_to=0), '`round_to` should be a whole number'),
    (dict(round_to=1.5), '`round_to` should be a whole number')])
def test_what_perunit_refuses(kw, says):
    with pytest.raises(ValueError, match=says): PerUnit(**kw)

def test_units_that_are_none():
    w = {'w':torch.randn(4,3)}
    for f in ('row', 3):
        pytest.raises(ValueError, units_within, w,
                      f).match("`units` should be 'weights', 'channels', 'rows', 'kernels'")
    for f in (lambda w: w, lambda w: torch.arange(4), lambda w: None):
        pytest.raises(ValueError, units_within, w,
                      f).match(r"units of 'w' should be whole numbers in a tensor of shape \(4, 3\); got")
    with pytest.raises(ValueError, match='`rows` should be a whole number'): block_units(0, 2)
    with pytest.raises(ValueError, match='nothing can be taken out'):
        (u := units_within(w, 'rows')).cuts({'w':torch.zeros(4).bool()})

# --- in a Learner

def test_a_lottery_of_units_by_hand():
    learn = unit_learner()
    with learn.no_bar(): rounds = learn.fit_lottery(1, rounds=2, amount=.25, seed=0)
    lot = learn.lottery
    assert [r['units'] for r in rounds]==[16, 12, 9] and lot.masks==lot.masks.units.masks(lot.masks.counted)
    dead = ~lot.masks.counted['a']
    for n in ('a.weight','a.bias','b.weight','n.weight','n.bias'):
        assert (dict(learn.model.named_parameters())[n][dead]==0).all(), n

@pytest.mark.parametrize('reset', ['constant','rewind','random_reinit','permute','keep'])
def test_resets_leave_norms_alone(reset):
    "`constant` on a norm's scale of ones would be exactly 0"
    learn = unit_learner()
    with learn.no_bar():
        learn.fit(1)
        learn.prune(.25)
        trained = {k:v.clone() for k,v in learn.model.state_dict().items()}
        learn.rewind(reset, seed=0)
    m,lot = learn.model,learn.lottery
    alive = lot.masks.counted['a']
    if reset!='keep': assert torch.equal(m.n.weight, alive.float()) and torch.equal(m.n.bias, torch.zeros(10))
    else: assert torch.equal(m.n.weight, trained['n.weight']), 'keep'
    assert (m.a.weight[alive]!=0).any() and (m.a.weight[~alive]==0).all()

@pytest.mark.parametrize('hold', ['hold_init','hold_init_or_zero'])
def test_units_are_held_at_nothing_but_0(hold):
    learn = unit_learner()
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    for f in (lambda: learn.fit_lottery(1, rounds=1, hold=hold), lambda: learn.prune(.2, hold=hold)):
        with pytest.raises(ValueError, match='units are pruned to 0, or they could not be taken out: leave out hold='):
            f()
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())

@pytest.mark.parametrize('kw,says', [
    (dict(scope='2:4'), "scope='2:4' is a pattern of single weights"),
    (dict(pool='middle'), '`pool` should be'), (dict(floor=-1), '`floor` should be'), (dict(round_to=0), '`round_to` should be'),
    (dict(to='50% atoms'), "`to` should be a fraction, or, where channels compete"), (dict(to=0.), '`to`'),
    (dict(to='0% units'), '`to`'), (dict(to='150% params'), '`to`')])
def test_settings_of_units_that_are_refused(kw, says):
    learn = unit_learner()
    with learn.no_bar(),pytest.raises(ValueError, match=says): learn.fit_lottery(1, rounds=1, **kw)

@pytest.mark.parametrize('kw',
                         [dict(pool='max'), dict(comparable=False), dict(floor=.2), dict(round_to=8),
                          dict(to='50% params')])
def test_words_of_units_where_weights_compete(kw):
    learn = Learner(data(), mlp(), loss_func=nn.CrossEntropyLoss(), metrics=accuracy, cbs=LotteryCallback())
    with learn.no_bar(),pytest.raises(ValueError, match='for units'): learn.fit_lottery(1, rounds=1, **kw)

def test_a_criterion_of_units_where_weights_compete():
    learn = Learner(data(), mlp(), loss_func=nn.CrossEntropyLoss(), metrics=accuracy, cbs=LotteryCallback())
    for f in (lambda: learn.prune(.2, 'filter_l1'), lambda: learn.fit_lottery(1, rounds=1, criterion='filter_l1')):
        with learn.no_bar(),pytest.raises(ValueError, match="gives one number a unit, and single weights compete here"):
            f()

def test_what_competes_under_units():
    df = unit_learner().lottery.competing()
    assert df.competes[['a.weight','n.bias','c.weight']].all() and not df.competes['o.weight']
    assert df.why['n.weight']=='makes units of a' and df.why['o.weight']=='goes with units of c'

@pytest.mark.parametrize('kind', within)
def test_lotteries_of_units_within_weights(kind):
    torch.manual_seed(0)
    learn = Learner(data((2,8,8)),
                    nn.Sequential(nn.Conv2d(2,6,3), nn.ReLU(), nn.Conv2d(6,4,3), nn.Flatten(), nn.Linear(64,4)),
                    loss_func=nn.CrossEntropyLoss(), metrics=accuracy, cbs=LotteryCallback(units=within[kind]))
    with learn.no_bar(): rounds = learn.fit_lottery(1, rounds=2, amount=.25, seed=0)
    lot = learn.lottery
    n = lot.masks.units.numel
    assert [r['units'] for r in rounds]==[n, n-round(.25*n), (k := n-round(.25*n))-round(.25*k)]
    assert 'params' not in rounds[0].row and all((m.any() for m in lot.masks.values()))
    for w,m in zip(named_weights(learn.model, lot.masks).values(), lot.masks.values()): assert (w[~m]==0).all()
    with pytest.raises(ValueError, match='needs units that can be taken out'): learn.fit_lottery(1, to='50% params')

def test_a_copy_and_a_pickle_of_a_learner_know_their_units():
    learn = unit_learner()
    with learn.no_bar(): learn.fit_lottery(1, rounds=1, amount=.25, seed=0)
    for new in (deepcopy(learn), pickle.loads(pickle.dumps(learn))):
        assert new.lottery.masks==learn.lottery.masks and new.lottery.masks.counted==learn.lottery.masks.counted
        with new.no_bar(): new.fit(1)
        for n,w in named_weights(new.model, new.lottery.masks).items(): assert (w[~new.lottery.masks[n]]==0).all()

def test_a_second_lottery_begins_with_all_units():
    learn = unit_learner()
    with learn.no_bar():
        one = learn.fit_lottery(1, rounds=2, amount=.25, seed=0)
        with pytest.warns(UserWarning, match='begins anew'): again = learn.fit_lottery(1, rounds=2, amount=.25, seed=0)
    assert [r['mask_hash'] for r in one]==[r['mask_hash'] for r in again]

@pytest.mark.parametrize('mask', [random_mask, shuffle_mask, erk_mask])
def test_controls_of_a_ticket_of_units(mask):
    learn = unit_learner()
    with learn.no_bar():
        learn.fit_lottery(1, rounds=2, amount=.25, seed=0)
        t = learn.lottery.ticket()
        learn.fit_ticket(t, 1, mask=mask, seed=0)
    masks = learn.lottery.masks
    assert masks.counted.n_kept==t.masks.counted.n_kept and masks==masks.units.masks(masks.counted)
    assert masks!=t.masks

def test_frozen_units_stay():
    learn = unit_learner()
    learn.model.c.weight.requires_grad_(False)
    learn.prune(.5)
    assert learn.lottery.masks.counted['c'].all() and int(learn.lottery.masks.counted['a'].sum())==5

def test_to_meets_units_and_parameters():
    for to,what,share in ((.5,'units',.5), ('40% units','units',.4), ('60% params','params',.6),
                          ('60% macs','macs',.6)):
        learn = unit_learner()
        with learn.no_bar(): last = learn.fit_lottery(1, to=to, amount=.3, seed=0)[-1]
        one = 1/16 if what=='units' else .12
        assert share-one<=last[what]/last[f'{what}_dense']<=share+1e-9, to

# --- what single weights leave dead

def test_living_units_by_weights_alone():
    "A neuron without inputs, without outputs, or behind dead ones only"
    m,u = two()
    ws = {n:t.detach().clone() for n,t in m.named_parameters()}
    ws['a.weight'][3] = ws['b.weight'][3] = 0
    ws['c.weight'][:,5] = 0
    ws['o.weight'][:,2] = 0
    alive = living(u, ws)
    assert (~alive['a']).nonzero().flatten().tolist()==[3,5] and (~alive['c']).nonzero().flatten().tolist()==[2]

def test_without_the_extra_an_error_says_which(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'torch_pruning', None)
    learn = Learner(data(), mlp(), loss_func=nn.CrossEntropyLoss(), cbs=LotteryCallback(units='channels'))
    with learn.no_bar(),pytest.raises(ImportError,
                                      match=r"finding units needs Torch-Pruning: pip install 'fastai_lottery\[deploy\]'"):
        learn.fit_lottery(1, rounds=1)

def test_zeros_of_biases_are_no_dead_units():
    learn = unit_learner()
    with torch.no_grad(): learn.model.a.weight[[1,3]] = learn.model.b.weight[[1,3]] = learn.model.c.weight[2] = 0
    took = learn.keep_zeros()
    masks = learn.lottery.masks
    assert masks==masks.units.masks(masks.counted) and took['a.weight']==16 and took['n.bias']==2
    assert [(~v).nonzero().flatten().tolist() for v in masks.counted.values()]==[[1,3],[2]]

def test_a_tickets_file_keeps_the_order_of_units(tmp_path):
    "Random numbers are dealt out group by group, so a control of the read ticket is that of the one in memory"
    net = nn.Sequential(nn.Linear(4,6), nn.ReLU(), nn.Linear(6,5))
    parts = [Part(g, f'{n}.weight', 0, torch.arange(k)) for g,n,k in (('z',2,5),('a',0,6))]
    units = Units({'z':5, 'a':6}, parts, named_weights(net))
    masks = units.masks(Masks({'z':torch.arange(5)<3, 'a':torch.arange(6)%2==0}))
    t = Ticket(masks, state(net))
    read = Ticket.load(t.save(tmp_path/'t'))
    assert list(read.masks.units.sizes)==['z','a'] and read.masks==masks and read.digest()==t.digest()
    for seed in range(3):
        assert shuffle_mask(read.masks, generator(seed))==shuffle_mask(masks, generator(seed))

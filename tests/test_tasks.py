"Several tasks in one net: what finished ones read stays bit for bit, whatever trains the next"
from copy import deepcopy
import contextlib,pickle,pytest
from fastai.callback.fp16 import AMPMode,MixedPrecision
from nets import *
from fastai_lottery.analysis import sensitivity,tensors_in
from fastai_lottery.growth import GrowthCallback
from fastai_lottery.means import RunningMean,means_of
from fastai_lottery.shrink import shrink
from fastai_lottery.tasks import *
import fastai_lottery.deploy,fastai_lottery.gradual
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]
pytestmark = pytest.mark.filterwarnings('ignore')

class SpecNorm(nn.Module):
    "A norm without weights, a layer under spectral norm, an embedding that does not compete"
    def __init__(self):
        super().__init__()
        self.pos,self.a = nn.Parameter(torch.randn(8)),nn.utils.parametrizations.spectral_norm(nn.Linear(8,12))
        self.norm,self.head = nn.BatchNorm1d(12, affine=False),nn.Linear(12,4)
    def forward(self, x): return self.head(self.norm(self.a(x+self.pos)).relu())

sequences = dict(shape=(6,), ints=20)
steps = dict(shape=(5,8))
heads = dict(conv=(conv_bn,'7',dict(shape=(1,6,6))), dropout=(drop_bn,'8',{}), lstm=(lstm,'head',steps),
             attention=(attention,'head',steps), awd=(AWD,'head',sequences), tied=(Tied,'head',{}),
             special=(SpecNorm,'head',{}), embedding=(lambda: Ends(nn.Embedding(20,8), 8),'head',sequences))

def torchs(opt, **kw): return partial(OptimWrapper, opt=partial(opt, **kw))
opts = dict(sgd=partial(SGD, mom=.9, wd=.1), adam=partial(Adam, wd=.1, decouple_wd=False), ranger=ranger,
            lamb=partial(Lamb, wd=.1),
            adamw=torchs(torch.optim.AdamW, weight_decay=.1),
            nesterov=torchs(torch.optim.SGD, momentum=.9, nesterov=True, weight_decay=.1),
            rprop=torchs(torch.optim.Rprop))

def first(name='dropout', **kwargs):
    "A Learner with one task trained and pruned, its data, and what it says"
    net,head,kw = heads[name]
    d = data(**kw)
    learn = learner(net, d, lr=.02, **kwargs)
    learn.fit(1)
    learn.prune(.6)
    learn.fit(1)
    return learn,head,d.valid.one_batch()[0]

def says(learn, x):
    learn.model.eval()
    if hasattr(learn.model, 'reset'): learn.model.reset()
    with torch.no_grad(): return learn.model(x)

def two(name='dropout', seed=0, **kwargs):
    "The same, with the next task begun"
    set_seed(seed)
    learn,head,x = first(name, **kwargs)
    was = says(learn, x)
    learn.freeze_kept('a', head=head)
    return learn,x,was

def check(learn, x, was):
    "Is the first task what it was, and has the next one moved?"
    t = learn.lottery.tasks
    ws = named_weights(learn.model, t.values)
    assert any((w.detach()!=t.values[n]).any() for n,w in ws.items())
    ts = tensors_in(learn.model)
    assert all(torch.equal(ts[n], v) for n,v in t.fixed.items())
    assert all(torch.equal(ts[n][t.taken(n)], v[t.taken(n)]) for n,v in t.values.items())
    learn.switch_task('a')
    assert torch.equal(says(learn, x), was)
    learn.switch_task()

# --- bit for bit

@pytest.mark.parametrize('name', heads)
def test_what_the_first_task_reads_stays_bit_for_bit(name):
    learn,x,was = two(name)
    learn.fit(2, wd=.1)
    check(learn, x, was)

@pytest.mark.parametrize('opt', opts)
def test_whatever_optimizer_trains(opt):
    learn,x,was = two(opt_func=opts[opt])
    learn.fit(2)
    check(learn, x, was)

def test_momentum_of_before_moves_nothing():
    learn,head,x = first(opt_func=partial(SGD, mom=.9))
    was,opt = says(learn, x),learn.opt
    learn.freeze_kept('a', head=head)
    learn.opt = opt    # with the moments of the first task
    learn.fit(1)
    check(learn, x, was)

ways = dict(clipped=lambda l: l.add_cb(GradientClip(.1)).fit(1),
            accumulated=lambda l: l.add_cb(GradientAccumulation(40)).fit(1),
            one_cycle=lambda l: l.fit_one_cycle(1), fine_tune=lambda l: l.fine_tune(1),
            found=lambda l: (l.lr_find(), l.fit(1)),
            rounds=lambda l: l.fit_lottery(1, rounds=2, amount=.4), gradual=lambda l: l.fit_gradual(2, to=.2),
            ticket=lambda l: l.fit_ticket(l.fit_lottery(1, rounds=1, amount=.4)[1].ticket, 1, reset='random_reinit'),
            half=lambda l: l.add_cb(MixedPrecision(amp_mode=AMPMode.BF16)).fit(1),
            saved=lambda l: l.add_cb(SaveModelCallback()).fit(2))

@pytest.mark.parametrize('way', ways)
def test_however_it_is_trained(way, tmp_path):
    learn,x,was = two(path=tmp_path)
    ways[way](learn)
    check(learn, x, was)

def test_a_step_by_hand_a_load_and_writes_move_nothing():
    learn,x,was = two()
    learn.fit(1)
    opt = torch.optim.SGD(learn.model.parameters(), .5)
    learn.opt = OptimWrapper(opt=opt)
    learn.fit(1)
    noise = {k:torch.randn_like(v) if v.is_floating_point() else v+7 for k,v in learn.model.state_dict().items()}
    learn.model.load_state_dict(noise)
    check(learn, x, was)
    with torch.no_grad():
        for t in [*learn.model.parameters(), *learn.model.buffers()]: t.add_(1)
    learn.lottery.hold()
    check(learn, x, was)

def test_shared_norms_stay_in_evaluation_mode_and_those_of_the_head_do_not():
    head = nn.Sequential(nn.Linear(12,12), nn.BatchNorm1d(12), nn.Linear(12,4))
    net = nn.Sequential(nn.Linear(8,12), nn.BatchNorm1d(12), nn.ReLU(), head)
    learn = learner(net)
    learn.fit(1)
    learn.prune(.5)
    learn.freeze_kept('a', head=net[3])
    modes = []
    class Look(Callback):
        def after_pred(self): modes.append((self.model.training, self.model[1].training, self.model[3][1].training))
    learn.add_cb(Look()).fit(2)
    assert (True,False,True) in modes and {o[1] for o in modes}=={False}
    assert (learn.model[3][1].running_mean!=0).any()

# --- what the verbs mean

def test_masks_are_the_task_s_own_and_prune_takes_of_these():
    learn,x,was = two()
    t = learn.lottery.tasks
    learn.fit(1)
    m = learn.lottery.masks
    assert all(not (m[n]&t.taken(n)).any() for n in t.values) and m['8.weight'].all()
    n = m.n_kept
    learn.prune(.5)
    assert learn.lottery.masks.n_kept==n-round(.5*n)
    check(learn, x, was)
    learn.unprune()
    assert learn.lottery.masks==m
    check(learn, x, was)

def test_rewind_and_ticket_are_of_the_task():
    learn,x,was = two()
    rs = learn.fit_lottery(1, rounds=1, amount=.5, seed=0)
    t,tasks = rs[1].ticket,learn.lottery.tasks
    at = {n:tasks.taken(n) for n in tasks.values}
    assert t.masks==learn.lottery.ticket().masks
    assert all(torch.equal(t.held[n][at[n]], v[at[n]]) for n,v in tasks.values.items())
    learn.rewind()
    ws = named_weights(learn.model, tasks.values)
    assert all(torch.equal(w.detach(), tasks.values[n]) for n,w in ws.items())    # the free ones began at 0
    learn.fit(1)
    check(learn, x, was)

def test_freed_weights_begin_at_0_or_freshly_drawn():
    learn,head,x = first()
    was,w = says(learn, x),learn.model[0].weight
    other = deepcopy(learn)
    learn.freeze_kept('a', head=head)
    assert torch.equal(w==0, ~learn.lottery.tasks.taken('0.weight'))
    other.freeze_kept('a', head=head, reset='random_reinit', seed=3)
    w,t = other.model[0].weight.detach(),other.lottery.tasks
    at = t.taken('0.weight')
    assert (w!=0).all() and torch.equal(w[at], t.values['0.weight'][at])
    other.fit(1)
    check(other, x, was)

def test_three_tasks_each_with_its_mask():
    learn,x,was = two()
    learn.fit(1)
    learn.prune(.5)
    learn.fit(1)
    second = says(learn, x)
    learn.freeze_kept('b', new=nn.Linear(12,7))
    assert learn.model[8].out_features==7 and 'head' not in learn.model.state_dict()
    learn.loss_func = lambda out,y: F.cross_entropy(out, y)
    learn.fit(1)
    third,t = says(learn, x),learn.lottery.tasks
    for _ in range(2):
        for name,said in zip(['b','a',None], [second,was,third]):
            learn.switch_task(name)
            assert torch.equal(says(learn, x), said)
    a,b = t.masks('a'),t.masks('b')
    assert all((a[n]<=b[n]).all() and not (t.done[0].own[n]&t.done[1].own[n]).any() for n in t.values)
    assert list(t.report().index)==['a','b'] and t.report().reads['b']==b.n_kept
    check(learn, x, was)

def test_the_task_in_training_waits_and_goes_on():
    learn,x,_ = two()
    other = deepcopy(learn)
    for l in (learn,other):
        l.fit_lottery(1, rounds=1, amount=.5, seed=0)
        if l is learn: l.switch_task('a')
        l.switch_task()
        assert len(l.lottery.rounds)==2
        l.fit_lottery(1, rounds=2, amount=.5, seed=0, start='rounds')
    assert all(torch.equal(v, other.model.state_dict()[k]) for k,v in learn.model.state_dict().items())

def test_the_new_head_trains():
    learn,head,_ = first()
    old = learn.model[8].weight.detach().clone()
    learn.freeze_kept('a', head=head)
    new = learn.model[8].weight.detach().clone()
    learn.fit(1)
    now = learn.model[8].weight.detach()
    assert (new!=0).all() and not torch.equal(new, old) and (now!=new).all()

def test_without_a_head_all_is_shared():
    learn,_,x = first()
    was = says(learn, x)
    learn.freeze_kept()
    learn.fit(1)
    assert learn.lottery.tasks.names==['task 1']
    learn.switch_task('task 1')
    assert torch.equal(says(learn, x), was)

# --- files

def test_export_pickle_and_copy_take_the_tasks_along(tmp_path):
    learn,x,was = two(path=tmp_path)
    learn.fit(1)
    now = says(learn, x)
    pickled = pickle.loads(pickle.dumps(learn))
    learn.dls.new_empty = lambda: learn.dls       # these rows know nothing of empty copies
    learn.export('x.pkl')
    for l in (load_learner(tmp_path/'x.pkl'), pickled, deepcopy(learn), learn):
        assert torch.equal(says(l, x), now)
        l.switch_task('a')
        assert torch.equal(says(l, x), was)
        l.switch_task()
        assert torch.equal(says(l, x), now)
    c = deepcopy(learn)
    c.fit(1)
    check(c, x, was)

def test_one_task_alone_as_a_small_net_and_as_onnx(tmp_path):
    pytest.importorskip('torch_pruning')
    pytest.importorskip('onnxruntime')
    learn,x,was = two('conv')
    learn.fit(1)
    learn.switch_task('a')
    small = shrink(learn.model, None, x[:2]).eval()
    assert torch.allclose(small(x), was, atol=1e-5)
    assert learn.to_onnx(tmp_path/'a').exists()
    learn.switch_task()
    check(learn, x, was)

class Halt(Callback):
    at = None
    def after_epoch(self):
        if Halt.at==(len(self.lottery.rounds),self.epoch): raise KeyboardInterrupt

def two_of_units(name, seed):
    set_seed(seed)
    learn,head,x,was = in_units(name)
    learn.freeze_kept('a', head=head)
    return learn,x,was

@pytest.mark.parametrize('begun', [two,two_of_units])
def test_the_next_task_goes_on_after_a_kill(begun, tmp_path):
    def play(path, at, seed=0):
        Halt.at = at
        learn,x,was = begun('conv', seed)
        with contextlib.suppress(KeyboardInterrupt):
            learn.fit_lottery(3, rounds=2, amount=.5, seed=0, path=path, cbs=Halt())
        return learn,x,was
    whole,x,was = play(tmp_path/'whole', None)
    for at in [(0,1),(1,1),(2,0),None]: learn,*_ = play(tmp_path/'killed', at)
    with pytest.raises(ValueError, match='tasks'): play(tmp_path/'killed', None, seed=1)
    assert len(learn.lottery.rounds)==len(whole.lottery.rounds)>1
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k,v in whole.model.state_dict().items())
    check(learn, x, was)

# --- refusals

def refused(says, f, *args, **kwargs):
    with pytest.raises(ValueError, match=says): f(*args, **kwargs)

def test_a_first_task_that_cannot_end():
    learn = learner(drop_bn)
    refused('there is one task so far', learn.switch_task, 'a')
    refused('train and prune first', learn.freeze_kept, 'a')
    learn.fit(1)
    refused('no weight is free', learn.freeze_kept, 'a')
    learn.prune(.5)
    refused("'nothing' in `head` matches|should be a module", learn.freeze_kept, 'a', head='nothing')
    refused('should be a module', learn.freeze_kept, 'a', head='8.weight')
    refused('whose place', learn.freeze_kept, 'a', new=nn.Linear(12,3))
    assert learn.lottery.tasks is None and len(learn.lottery.masks)

def test_a_next_task_that_cannot_end():
    learn,*_ = two()
    refused('train and prune first', learn.freeze_kept, 'b')
    learn.fit(1)
    refused('no weight is free', learn.freeze_kept, 'b')
    learn.prune(.5)
    refused('already', learn.freeze_kept, 'a')
    refused("the head is '8'", learn.freeze_kept, 'b', head='4')
    refused("there is no finished task 'c'", learn.switch_task, 'c')

def test_a_finished_task_does_not_train():
    learn,*_ = two()
    learn.fit(1)
    learn.switch_task('a')
    refused('of which nothing may move', learn.fit, 1)
    refused('goes back to the one in training', learn.freeze_kept, 'b')
    learn.validate()
    learn.switch_task()
    learn.fit(1)

def test_held_values_are_refused():
    learn = learner(mlp)
    learn.fit(1)
    learn.prune(.5, hold='hold_init')
    with pytest.raises(ValueError, match='hold=None'): learn.freeze_kept('a')

# --- whole units

class Residual(nn.Module):
    "Channels that go together over a sum, a depthwise convolution, a norm of groups"
    def __init__(self):
        super().__init__()
        self.first,self.norm = nn.Conv2d(1,8,3,padding=1),nn.BatchNorm2d(8)
        self.deep,self.up = nn.Conv2d(8,8,3,padding=1,groups=8),nn.Conv2d(8,8,1)
        self.wide,self.groups = nn.Conv2d(8,12,3),nn.GroupNorm(6, 12)
        self.hidden,self.head = nn.Linear(12,10),nn.Linear(10,4)
    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        x = (x+self.up(self.deep(x))).relu()
        return self.head(self.hidden(self.groups(self.wide(x)).relu().mean((2,3))).relu())

class Attention(nn.Module):
    "Heads as units, as timm has them"
    def __init__(self):
        super().__init__()
        self.num_heads,self.head_dim,self.attn_dim = 4,2,8
        self.qkv,self.proj = nn.Linear(8,24),nn.Linear(8,8)
    def forward(self, x):
        q,k,v = self.qkv(x).unflatten(-1, (3,self.num_heads,self.head_dim)).permute(2,0,3,1,4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1,2).flatten(2))

class Attentive(nn.Module):
    "An attention in a residual branch, and neurons after it"
    def __init__(self):
        super().__init__()
        self.embed,self.attention,self.norm = nn.Linear(8,8),Attention(),nn.LayerNorm(8)
        self.hidden,self.head = nn.Linear(8,12),nn.Linear(12,4)
    def forward(self, x):
        x = self.embed(x)
        return self.head(self.hidden(self.norm(x+self.attention(x)).mean(1)).relu())

with_units = dict(conv=(conv_bn,'7',dict(shape=(1,6,6)),'channels'), neurons=(mlp,'4',{},'channels'),
                  norm=(drop_bn,'8',{},'channels'), residual=(Residual,'head',dict(shape=(1,6,6)),'channels'),
                  heads=(Attentive,'head',steps,'channels'), rows=(mlp,'4',{},'rows'),
                  kernels=(conv_bn,'7',dict(shape=(1,6,6)),'kernels'))

def in_units(name, **kwargs):
    "A Learner whose first task has been pruned by units, its data, and what it says"
    net,head,kw,units = with_units[name]
    if units=='channels': pytest.importorskip('torch_pruning')
    learn = learner(net, data(**kw), lr=.02, cbs=LotteryCallback(units=units), **kwargs)
    learn.fit(1)
    learn.prune(.5)
    learn.fit(1)
    x = learn.dls.valid.one_batch()[0]
    return learn,head,x,says(learn, x)

@pytest.mark.parametrize('name', with_units)
def test_units_of_the_first_task_stay_and_freed_ones_learn(name):
    learn,head,x,was = in_units(name)
    dead = ~learn.lottery.masks
    learn.freeze_kept('a', head=head)
    w0 = {n:w.detach().clone() for n,w in named_weights(learn.model).items()}
    learn.fit_lottery(2, rounds=1, amount=.3, seed=0)
    check(learn, x, was)
    for n,w in named_weights(learn.model).items():
        if n in dead and not learn.lottery.tasks.in_head(n):
            own = learn.lottery.masks[n]
            assert not (own&~dead[n]).any(), f'{n}: the next task owns what the first does'
            assert not own.any() or (w.detach()!=w0[n])[own].any(), f'{n} does not learn'
    now = says(learn, x)
    learn.freeze_kept('b')
    learn.fit(1)
    learn.switch_task('b')
    assert torch.equal(says(learn, x), now)
    learn.switch_task('a')
    assert torch.equal(says(learn, x), was)

@pytest.mark.parametrize('way', ways)
def test_units_however_the_next_task_is_trained(way, tmp_path):
    learn,head,x,was = in_units('norm', path=tmp_path)
    learn.freeze_kept('a', head=head)
    ways[way](learn)
    check(learn, x, was)

@pytest.mark.parametrize('kw', [dict(), dict(start='init', grow='random')], ids=['gradient','chance'])
@pytest.mark.parametrize('name', ['conv','norm'])
def test_connections_that_move_leave_the_first_task_alone(name, kw):
    "Of single weights, and of channels, which are drawn anew"
    if not kw: learn,head,x = first(dict(conv='conv', norm='dropout')[name])
    else: learn,head,x,_ = in_units(name)
    was = says(learn, x)
    learn.freeze_kept('a', head=head)
    learn.prune(.3)
    learn.add_cb(GrowthCallback(density=.5, every=2, **kw))
    learn.fit(2)
    assert len(learn.growth.moves)==2
    check(learn, x, was)

@pytest.mark.parametrize('name', [n for n,o in with_units.items() if o[3]=='channels'])
def test_a_task_of_units_as_a_small_net(name):
    "Each task alone shrinks to its own units and those of the tasks before, and the row of a round counts these"
    learn,head,x,was = in_units(name)
    one = learn.lottery.unit_row()
    learn.freeze_kept('a', head=head)
    learn.fit_lottery(1, rounds=1, amount=.5, seed=0)
    row,ours = learn.lottery.rounds[-1].row,says(learn, x)
    sizes = dict(a=one['params'], b=row['params'])
    assert sizes['a']<sizes['b']<row['params_dense']
    learn.freeze_kept('b')
    for t,y in dict(a=was, b=ours).items():
        learn.switch_task(t)
        small = shrink(learn.model, None, x[:2]).eval()
        torch.testing.assert_close(small(x), y, rtol=1e-4, atol=1e-5)
        assert sum(p.numel() for p in small.parameters())<=sizes[t]

def test_freed_channels_begin_as_new_ones():
    learn,head,x,was = in_units('norm')
    gone = ~learn.lottery.masks['0.weight'].any(1)
    assert gone.any() and not gone.all()
    learn.freeze_kept('a', head=head)
    m,fixed = learn.model,learn.lottery.tasks.fixed
    for t in (m[1].running_mean,fixed['1.running_mean']): assert not t[gone].any() and t[~gone].all()
    for t in (m[1].running_var,fixed['1.running_var']): assert (t[gone]==1).all() and (t[~gone]!=1).all()
    assert (m[1].weight[gone]==1).all() and m[0].weight[gone].abs().sum(1).all()
    assert (m[0].bias[gone]==learn.lottery.tasks.values['0.bias'].new_tensor(0)).sum()<gone.sum()

@pytest.mark.parametrize('grow', ['gradient','random'])
@pytest.mark.parametrize('name', ['dropout','conv','attention'])
def test_connections_of_the_next_task_move_where_nobody_stands(name, grow):
    "As many in each tensor at each move, and the finished task as it was"
    learn,x,was = two(name)
    learn.fit(1)
    learn.prune(.5, scope='local')
    def counts(): return {n:int(m.sum()) for n,m in learn.lottery.masks.items()}
    before = counts()
    learn.fit(2, cbs=(g := GrowthCallback(every=2, fraction=.5, until=1., grow=grow)))
    assert counts()==before and g.table.came.sum()>0
    own = learn.lottery.tasks.closed(learn.lottery.masks)
    assert own and not any((learn.lottery.masks[n]&m).any() for n,m in own.items())
    check(learn, x, was)

def test_whole_units_of_the_next_task_move_where_nobody_stands():
    learn = learner(conv_bn, data((1,6,6)), cbs=LotteryCallback(units='channels'), lr=.02)
    learn.fit(1)
    learn.prune(.4)
    learn.freeze_kept('a', head='7')
    learn.fit(1)
    learn.prune(.3)
    lot = learn.lottery
    before = {g:int(m.sum()) for g,m in lot.masks.counted.items()}
    learn.fit(3, cbs=GrowthCallback(every=2, fraction=.8, until=1., grow='random', start='init'))
    assert {g:int(m.sum()) for g,m in lot.masks.counted.items()}==before
    for g,m in lot.tasks.closed(lot.masks).items(): assert not (m&lot.masks.counted[g]).any()

# --- what a task must not keep of the one before

class OwnNorm(nn.Module):
    "Statistics that a layer puts in place of the old ones, not into them"
    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.zeros(12))
    def forward(self, x):
        if self.training: self.mean = .9*self.mean+.1*x.detach().mean(0)
        return x-self.mean

def test_a_buffer_that_is_assigned_anew_stays():
    d = data()
    learn = learner(nn.Sequential(nn.Linear(8,12), OwnNorm(), nn.ReLU(), nn.Linear(12,4)), d, lr=.02)
    learn.fit(1)
    learn.prune(.6)
    learn.fit(1)
    x = d.valid.one_batch()[0]
    was,stat = says(learn, x),learn.model[1].mean.clone()
    assert stat.abs().sum()>0
    learn.freeze_kept('a', head='3')
    learn.fit(2)
    assert torch.equal(learn.model[1].mean, stat)
    learn.freeze_kept('b') if learn.lottery.masks.density<1 and not learn.prune(.5) else None
    learn.switch_task('a')
    assert torch.equal(says(learn, x), was)

T = torch.optim
@pytest.mark.parametrize('opt', [T.Adam,T.AdamW,partial(T.SGD, momentum=.9)], ids=['adam','adamw','sgd'])
def test_an_optimizer_that_was_made_beforehand_goes_on_with_the_next_head(opt):
    net = nn.Sequential(nn.Linear(8,12), nn.ReLU(), nn.Linear(12,4))
    learn = learner(net, data(), lr=.02, opt_func=OptimWrapper(net.parameters(), partial(opt, weight_decay=.03)))
    learn.fit(1)
    learn.prune(.5)
    learn.freeze_kept('a', head='2')
    was = [w.detach().clone() for w in (learn.model[0].weight, learn.model[2].weight)]
    learn.fit(1)
    assert torch.equal(learn.model[0].weight!=was[0], learn.lottery.masks['0.weight'])
    assert (learn.model[2].weight!=was[1]).all()
    assert type(learn.opt.opt) is getattr(opt, 'func', opt) and learn.opt.opt.param_groups[0]['weight_decay']==.03

def test_an_optimizer_of_unequal_groups_is_refused_where_the_head_changes():
    net = nn.Sequential(nn.Linear(8,12), nn.ReLU(), nn.Linear(12,4))
    groups = [dict(params=net[0].parameters(), weight_decay=.1), dict(params=net[2].parameters())]
    learn = learner(net, data(), lr=.02, opt_func=OptimWrapper(opt=torch.optim.AdamW(groups)))
    learn.fit(1)
    learn.prune(.5)
    with pytest.raises(ValueError, match='made beforehand.*opt_func=partial'): learn.freeze_kept('a', head='2')
    assert learn.lottery.tasks is None
    learn.freeze_kept('a')
    learn.fit(1)

def test_running_means_begin_anew():
    "The next head's mean is of its own weights"
    net = nn.Sequential(nn.Linear(8,12), nn.ReLU(), nn.Linear(12,4))
    learn = learner(net, data(), lr=.001, cbs=[LotteryCallback(), RunningMean()])
    learn.fit(2)
    learn.prune(.5, criterion='large_mean')
    learn.fit(1)
    learn.freeze_kept('a', head='2')
    old,ours = learn.lottery.tasks.done[0].state['2.weight'],learn.model[2].weight
    learn.fit(1)
    mean = means_of(learn, ['2.weight'])['2.weight']
    def near(w): return float(torch.corrcoef(torch.stack([mean.flatten(), w.detach().abs().flatten()]))[0,1])
    assert near(ours)>.9>near(old)

def test_a_rewind_point_that_is_a_share_and_rows_of_tickets_are_of_this_task():
    learn,_,_ = first('dropout', cbs=LotteryCallback('10%'))
    learn.fit_ticket(learn.lottery.ticket(), 1)
    was = learn.lottery.rewind_to.n
    learn.fit(10)
    assert len(learn.lottery.report()) and was
    learn.freeze_kept('a', head='8')
    assert learn.lottery.rewind_to==learn.lottery.asked and not len(learn.lottery.report())
    learn.fit(5)
    assert learn.lottery.rewind_to.n==2 and learn.lottery.w_k is not None
    learn.switch_task('a')
    learn.switch_task()
    assert learn.lottery.rewind_to.n==2

def test_growth_in_a_task_where_nothing_is_pruned_says_so():
    learn,x,was = two()
    learn.add_cb(GrowthCallback(density=.1, every=2, seed=0))
    with pytest.warns(UserWarning, match='no connection moved: nothing that may move is pruned'): learn.fit(2)
    with pytest.raises(ValueError, match=r'learn.prune\(...\) prunes what is free'): learn.sparse_start(.1)
    learn.prune(.5)
    learn.fit(3)
    assert learn.growth.table.came.sum()>0

def test_sensitivity_of_a_finished_task_is_refused():
    learn,x,was = two(metrics=accuracy)
    assert (sensitivity(learn, amounts=.5).of>0).all()
    learn.switch_task('a')
    with pytest.raises(ValueError, match='finished task.*switch_task'): sensitivity(learn)

"Connections that move: laws of masks, of what optimizers hold, of gradients, and of what stays when a process is killed"
import math,pickle,warnings
import pytest
from test_crash import server,whole,same,batches,needs_fork
from nets import *
import crash_run as cr
from fastai.callback.core import CancelBatchException,CancelStepException
from fastai.callback.fp16 import MixedPrecision
from fastai_lottery.gradual import *
from fastai_lottery.growth import *
from fastai_lottery.growth import NoGrowthWarning,moved,share_at
from fastai_lottery.arms import another
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]
pytestmark = pytest.mark.filterwarnings('ignore::fastai_lottery.scopes.EmptyLayerWarning')

class See(Callback):
    "Of each step: masks and weights before and after it, was it cancelled, how many gradients pruned weights have"
    order,run_valid = 95,False
    def before_fit(self): self.seen,self.off,self.was = [],False,None
    def before_batch(self): self.was = self.was or (self.learn.lottery.masks,bits(self.learn.model))
    def after_cancel_step(self): self.off = True
    def after_step(self):
        lot,grads = self.learn.lottery,0
        for n,w in named_weights(self.learn.model, lot.masks).items():
            if w.grad is not None: grads += int((w.grad[~lot.masks[n]]!=0).sum())
        self.seen.append(dict(old=self.was[0], new=lot.masks, before=self.was[1], after=bits(self.learn.model),
                              off=self.off, grads=grads))
        self.off,self.was = False,None

def grown(model=mlp, dls=None, fit=lambda l: l.fit(6, .01), more=(), cb={}, lkw={}, **kw):
    "A fit of 6 epochs of 4 batches in which connections move each third step; the Learner, and what was seen"
    growth = GrowthCallback(**{**dict(density=.3, every=3, fraction=.5, seed=1), **kw})
    learn = learner(model, dls, cbs=[LotteryCallback(**cb), growth, Probe, See, *more], **lkw)
    seed_all(learn)
    with learn.no_bar(): fit(learn)
    return learn,learn.see.seen

def counts(masks): return {n:int(m.sum()) for n,m in masks.items()}
def moments(learn):
    "All tensors that optimizers hold of a weight's shape, by the weight's name"
    from fastai_lottery.masks import optimizers_in
    res = {}
    for n,w in named_weights(learn.model, learn.lottery.masks).items():
        for o in optimizers_in(learn.opt):
            own = vars(o).get('state', {}).get(w, {})
            res[n] = res.get(n, [])+[(k,v) for k,v in own.items() if torch.is_tensor(v) and v.shape==w.shape]
    return res

# --- masks

ways = [dict(), dict(grow='random'), dict(start='init'), dict(start='rewind', drop='snip'),
        dict(grow='large_init', drop='random'),
        dict(grow=lambda g,w_i: (g*w_i).abs(), drop='movement', start='init')]
@pytest.mark.parametrize('kw', ways, ids=range(len(ways)))
@pytest.mark.parametrize('name', ['batchnorm','lstm','awd_lstm','attention','tied','embedding'])
def test_laws(name, kw):
    "As many in each layer after each step, zeros and gradients where they should be, and moves that are no steps"
    model,dkw,inc,_ = zoo[name]
    learn,seen = grown(model, data(**dkw), cb=dict(include=inc), **kw)
    first = seen[0]['old']
    assert first.n_kept==round(.3*first.numel) and not learn.probe.bad and leaks(learn)==0
    moves = [i for i,o in enumerate(seen) if o['off']]
    assert moves==[3,6,9,12,15]==[*learn.growth.table.step] and len(seen)==24
    assert all(counts(o['new'])==counts(first) and o['grads']==0 for o in seen)
    for i,o in enumerate(seen):
        assert (o['old']==o['new']) or i in moves
        came,stay = o['new']&~o['old'],o['new']&o['old']
        if i in moves: assert learn.growth.table.came[moves.index(i)]==came.n_kept==(o['old']&~o['new']).n_kept
    assert learn.growth.table.came.sum()>0

def test_a_move_changes_only_what_moves():
    "Weights that stay are what they were, to the bit; new ones are 0, or from their initialiser"
    for start in ('zero','init','rewind'):
        learn,seen = grown(start=start, grow='random')
        for o in [o for o in seen if o['off']]:
            ws = {k:torch.frombuffer(bytearray(v[2]), dtype=torch.float32).view(v[1]) for k,v in o['after'].items()}
            was = {k:torch.frombuffer(bytearray(v[2]), dtype=torch.float32).view(v[1]) for k,v in o['before'].items()}
            for n,m in o['new'].items():
                came,stay = m&~o['old'][n],m&o['old'][n]
                assert torch.equal(ws[n][stay], was[n][stay]) and (ws[n][~m]==0).all()
                if start=='zero': assert (ws[n][came]==0).all()
                if start=='init':
                    assert (ws[n][came]!=0).all() and not torch.isin(ws[n][came], learn.lottery.w_i[n]).any()
                if start=='rewind': assert torch.equal(ws[n][came], learn.lottery.w_i[n][came])
            assert all(o['before'][n]==o['after'][n] for n in o['before'] if n not in o['new'])

def test_a_layer_that_is_left_dense_sits_out():
    def model(): return nn.Sequential(nn.Linear(8,60), nn.ReLU(), nn.Linear(60,60), nn.ReLU(), nn.Linear(60,2))
    learn,seen = grown(model, data(classes=2), density=.15)
    first = seen[0]['old']
    assert first['4.weight'].all() and all(o['new']['4.weight'].all() and counts(o['new'])==counts(first) for o in seen)
    assert first.n_kept==round(.15*first.numel)

def test_by_hand():
    "Half of the two that are there go, and the highest of the others come; one that went may come back"
    old = Masks(dict(a=tensor([1,1,0,0]).bool(), b=tensor([[1,0],[0,1]]).bool()))
    drop = dict(a=tensor([.1,.2,0,0]), b=tensor([[.3,0],[0,.1]]))
    new = moved(old, drop, dict(a=tensor([0.,0,1,2]), b=tensor([[9.,1],[2,3]])), .5)
    assert new['a'].tolist()==[False,True,False,True] and new['b'].tolist()==[[True,False],[False,True]]
    assert moved(old, drop, drop, 0.)==old
    assert math.isclose(share_at(0, .3), .3) and math.isclose(share_at(.5, .3), .15) and share_at(1, .3)<1e-12
    with pytest.raises(ValueError, match="scores of 'a' are not finite"):
        moved(old, drop, dict(drop, a=tensor([0.,0,math.nan,0])), .5)

class Dense(Callback):
    "The gradient of each step as torch gives it for the weights as they are, without masks on it"
    order,run_valid = MixedPrecision.order+.55,False
    def before_fit(self): self.sums,self.gs = None,[]
    def before_batch(self): self.x = [*self.xb,*self.yb]
    def after_loss(self):
        ps = list(named_weights(self.learn.model, self.learn.lottery.masks).values())
        gs = torch.autograd.grad(self.loss_grad, ps, retain_graph=True)
        self.sums = gs if self.sums is None else [a+b for a,b in zip(self.sums, gs)]
    def before_step(self): self.gs.append(self.sums)
    def after_step(self): self.sums = None

@pytest.mark.parametrize('acc', [None,32,40])
def test_new_ones_have_the_largest_gradients_of_the_step(acc):
    "Of all batches that were accumulated for it"
    more = [Dense()] if acc is None else [GradientAccumulation(acc),Dense()]
    learn,seen = grown(more=more, every=2, lkw=dict(opt_func=SGD))
    n = {None:24, 32:12, 40:8}[acc]
    assert len(seen)==n==len(learn.dense.gs)
    for i in [i for i,o in enumerate(seen) if o['off']]:
        gs = dict(zip(seen[i]['old'], learn.dense.gs[i]))
        for k,m in seen[i]['new'].items():
            come,others = m&~seen[i]['old'][k],~m&~seen[i]['old'][k]
            if come.any() and others.any(): assert gs[k].abs()[come].min()>=gs[k].abs()[others].max()*(1-1e-5)
    assert len(learn.growth.moves)==len([i for i in range(1, n) if i%2==0 and i<.75*n])

class Half(cr.HalfOnCpu):
    "Mixed precision whose first gradients overflow"
    def before_fit(self):
        super().before_fit()
        self.learn.scaler = torch.amp.GradScaler('cpu', init_scale=2.**self.power, growth_interval=10**6)
    power = 10
Half.__module__ = MixedPrecision.__module__

def test_half_precision_looks_at_unscaled_gradients():
    "The scale of the loss changes nothing"
    runs = []
    for p in (0,10):
        half = Half()
        half.power = p
        runs.append(grown(more=[half], lkw=dict(opt_func=SGD))[0])
    assert runs[0].lottery.masks==runs[1].lottery.masks and len(runs[1].growth.moves)==5

class Overflow(Callback):
    "Gradients of two batches are inf"
    order,run_valid = 5,False
    def after_backward(self):
        if self.learn.train_iter in (3,4): next(self.learn.model.parameters()).grad.fill_(math.inf)

def test_a_skipped_step_is_none():
    "A move waits until gradients are finite"
    learn,seen = grown(more=[Half(),Overflow()], lkw=dict(opt_func=SGD))
    steps = [o for o in seen if not o['off']]
    assert len(seen)==24 and len(steps)==24-2-len(learn.growth.moves)
    assert seen[3]['old']==seen[3]['new'] and seen[4]['old']==seen[4]['new'] and seen[5]['old']!=seen[5]['new']
    assert learn.growth.table.step[0]==3 and leaks(learn)==0 and all(o['grads']==0 for o in seen)

# --- optimizers

def wrapped(o, **kw): return partial(OptimWrapper, opt=partial(o, **kw))
T = torch.optim
opts = dict(sgd=partial(SGD, mom=.9), adam=Adam, decayed=partial(Adam, wd=.1),
            l2=partial(Adam, wd=.1, decouple_wd=False), rms=RMSProp,
            radam=RAdam, lamb=Lamb, larc=Larc, qh=QHAdam, ranger=ranger, adamw=wrapped(T.AdamW), fused=wrapped(T.AdamW, fused=True),
            foreach=wrapped(T.Adam, foreach=True, amsgrad=True), nesterov=wrapped(T.SGD, momentum=.9, nesterov=True),
            adagrad=wrapped(T.Adagrad, initial_accumulator_value=.1), rprop=wrapped(T.Rprop), nadam=wrapped(T.NAdam),
            centred=wrapped(T.RMSprop, centered=True, momentum=.5), asgd=wrapped(T.ASGD), delta=wrapped(T.Adadelta))

class Held(Callback):
    "After each move: what the optimizer holds of weights that are no old connections"
    order,run_valid = 96,False
    def before_fit(self): self.odd,self.n,self.off,self.was = [],0,False,None
    def before_batch(self): self.was = self.learn.lottery.masks
    def after_cancel_step(self): self.off = True
    def after_step(self):
        if self.off: self.look()
        self.off = False
    def look(self):
        stay = self.learn.lottery.masks&self.was
        for n,ms in moments(self.learn).items():
            w = dict(named_weights(self.learn.model))[n].detach()
            for k,v in ms:
                self.n += int((v[stay[n]]!=0).sum())
                want = w if k in ('ax',) else torch.full_like(w, dict(step_size=.01, sum=.1).get(k, 0.))
                if not torch.equal(v[~stay[n]], want[~stay[n]]): self.odd.append((n,k))

@pytest.mark.parametrize('name', opts)
def test_what_optimizers_hold(name):
    "Of new and of dropped weights as of one that was never trained; of the others something is left"
    kw = dict(lr=.01) if name=='rprop' else {}
    learn,seen = grown(model=drop_bn, more=[Held()], start='init', lkw=dict(opt_func=opts[name], **kw))
    assert not learn.held.odd and (learn.held.n or name=='sgd' and not moments(learn)['0.weight'])
    assert not learn.probe.bad and leaks(learn)==0 and all(o['grads']==0 for o in seen)
    assert len({str(counts(o['new'])) for o in seen})==1 and len(learn.growth.moves)==5

def test_lookahead_brings_nothing_back():
    "Its slow weights follow: dropped ones are 0, new ones are where they start"
    learn,seen = grown(lkw=dict(opt_func=ranger), start='init', every=4, fit=lambda l: l.fit(8, .01))
    assert learn.opt.slow_weights is not None and leaks(learn)==0
    for ps,ss in zip(learn.opt.param_lists, learn.opt.slow_weights):
        for p,s in zip(ps, ss):
            n = next((n for n,w in named_weights(learn.model, learn.lottery.masks).items() if w is p), None)
            if n: assert (s[~learn.lottery.masks[n]]==0).all()

# --- company

class NoGrads(Callback):
    "Are gradients of pruned weights 0 in all steps but those of a move?"
    order,run_valid = 5,False
    def before_fit(self): self.n = []
    def after_backward(self):
        masks = self.learn.lottery.masks
        ws = named_weights(self.learn.model, masks)
        self.n.append(sum(int((ws[n].grad[~m]!=0).sum()) for n,m in masks.items()))

@pytest.mark.parametrize('kw', [dict(),dict(grow='random'),dict(grow='random', drop='snip')], ids=str)
def test_dense_gradients_at_moves_only(kw):
    learn,_ = grown(more=[NoGrads()], **kw)
    at = [i for i,n in enumerate(learn.no_grads.n) if n]
    assert at==([] if kw==dict(grow='random') else [3,6,9,12,15])

def test_clipping_and_discriminative_fine_tune():
    "The mask is drawn over frozen layers, too; they do not move until they train"
    def split(m): return L(m[:4], m[4:]).map(params)
    learn,seen = grown(drop_bn, fit=lambda l: l.fine_tune(4, .01, freeze_epochs=2), more=[GradientClip(.1)],
                       lkw=dict(splitter=split))
    first = seen[0]['old']
    assert first.n_kept==round(.3*first.numel) and leaks(learn)==0 and not learn.probe.bad
    for grow in ('gradient','random'):    # with gradients, and without any
        growth = GrowthCallback(.3, 2, .5, grow=grow, seed=1)
        learn = learner(drop_bn, cbs=[LotteryCallback,growth,See], splitter=split)
        learn.freeze()
        learn.fit(4, .01)
        seen = learn.see.seen
        assert all(torch.equal(seen[0]['old']['0.weight'], o['new']['0.weight']) for o in seen)
        assert any(o['old']!=o['new'] for o in seen)

def test_fit_one_cycle_and_a_second_fit_goes_on():
    learn,seen = grown(fit=lambda l: l.fit_one_cycle(6, .02))
    end = learn.lottery.masks
    learn.fit(3, .01)
    assert learn.see.seen[0]['old']==end and counts(learn.lottery.masks)==counts(end) and learn.lottery.masks!=end
    learn.remove_cb(GrowthCallback)
    end = learn.lottery.masks
    learn.fit(2, .01)
    assert learn.lottery.masks==end and leaks(learn)==0

def test_looking_draws_nothing():
    "`validate`, `get_preds` and `lr_find` are no trainings"
    learn = learner(mlp, cbs=[LotteryCallback,GrowthCallback(.3, 3, seed=1)])
    learn.validate()
    learn.get_preds()
    with learn.no_bar(): learn.lr_find(num_it=8, show_plot=False, suggest_funcs=())
    assert learn.lottery.masks is None or learn.lottery.masks.density==1
    with pytest.warns(NoGrowthWarning, match='every=3, and this fit had 0 steps'):
        learn.fit(1, .01, cbs=At(0, raiser(CancelFitException), 'before_batch', order=-9))
    learn.fit(4, .01)
    assert len(learn.growth.table)==3
    learn.validate()
    assert len(learn.growth.table)==3 and list(learn.growth.table)==['step','share','came']

def test_without_a_lottery_callback():
    learn = learner(mlp, cbs=None)
    learn.fit(6, .01, cbs=[growth := GrowthCallback(.3, 3, seed=1)])
    assert len(growth.moves)==5 and learn.lottery.masks.n_kept==round(.3*learn.lottery.masks.numel) and leaks(learn)==0

def test_global_random_numbers_and_seeds():
    "No draw is anybody else's: with masks that do not move, the data order is the same with and without"
    a = grown(seed=1, grow='random', start='init')[0]
    b = grown(seed=1, grow='random', start='init')[0]
    assert a.lottery.masks!=grown(seed=2, grow='random', start='init')[0].lottery.masks
    assert a.lottery.masks==b.lottery.masks
    def one(*cbs):
        learn = learner(mlp, cbs=[LotteryCallback,*cbs])
        seed_all(learn)
        learn.fit(3, .01)
        return rng_states(),learn
    plain,(with_growth,learn) = one()[0],one(GrowthCallback(.3, 2, grow='random', start='init'))
    assert plain==with_growth and len(learn.growth.moves)==4
    assert one(GrowthCallback(.3, 2, grow='random', start='init'))[1].lottery.masks==learn.lottery.masks

def test_trackers_begin_afresh_with_each_move(tmp_path):
    save = SaveModelCallback()
    learn = learner(mlp, cbs=[LotteryCallback,GrowthCallback(.3, 3, .5, seed=1)], path=tmp_path)
    learn.fit(6, 1e-9, cbs=[save,EarlyStoppingCallback(patience=1)])
    assert learn.lottery.masks.n_kept==round(.3*learn.lottery.masks.numel) and leaks(learn)==0
    assert list(learn.growth.table.step)[-1]==15, 'an early stop that compares with other connections comes too soon'

def test_a_cancelled_window_leaves_no_gradient():
    "A fit that ends while batches are accumulated for a move"
    learn,seen = grown(more=[GradientAccumulation(40)], every=2, fit=lambda l: l.fit(2, .01), until=1.)
    for n,w in named_weights(learn.model, learn.lottery.masks).items():
        assert (w.grad[~learn.lottery.masks[n]]==0).all()
    assert not learn.lottery.looking

def test_keyboard_interrupt_and_what_follows():
    learn = learner(mlp, cbs=[LotteryCallback,GrowthCallback(.3, 3, .5, seed=1),NoGrads()])
    with pytest.raises(KeyboardInterrupt):
        learn.fit(6, .01, cbs=At(3, raiser(KeyboardInterrupt), 'after_backward', order=99))
    assert learn.lottery.looking
    learn.remove_cb(GrowthCallback)
    learn.fit(2, .01)
    assert not any(learn.no_grads.n) and leaks(learn)==0

def test_a_criterion_that_reads_gradients_between_fits():
    "What it tries on a batch moves nothing"
    learn,_ = grown()
    was,n = learn.lottery.masks,len(learn.growth.moves)
    learn.prune(.2, 'snip')
    assert not (learn.lottery.masks&~was).n_kept and len(learn.growth.moves)==n
    assert learn.lottery.masks.n_kept==was.n_kept-round(.2*was.n_kept)

def test_lengths():
    "Where rows are divided by their lengths, each keeps a weight"
    def model():
        m = mlp()
        nn.utils.parametrizations.weight_norm(m[0])
        return m
    learn,seen = grown(model, density=.2, fraction=.9, lkw=dict(metrics=[]))
    name = next(n for n in learn.lottery.masks if '0.' in n)
    assert all(o['new'][name].any(1).all() for o in seen) and len(learn.growth.moves)==5

def test_compiled_net_gives_the_same_bits():
    a = grown(drop_bn)[0]
    b = grown(lambda: torch.compile(drop_bn(), backend='eager'))[0]
    assert a.lottery.masks.hash()==b.lottery.masks.hash()

def test_prunes_take_and_growth_keeps():
    "A gradual fit and a lottery: the count falls by their prunes alone"
    learn = learner(mlp, cbs=[LotteryCallback,GrowthCallback(.5, 3, .5, seed=1),Probe])
    rs = learn.fit_lottery(5, rounds=2, amount=.2, seed=1)
    n = rs[0]['kept']
    assert [r['kept'] for r in rs]==[n, n-round(.2*n), n-round(.2*n)-round(.2*(n-round(.2*n)))] and not learn.probe.bad
    assert (rs[1].masks&~rs[0].masks).n_kept>0, 'a prune, and then a move'

def test_values_that_pruned_weights_are_held_at():
    "A new weight leaves the value that it was held at, and one that goes is 0"
    learn = learner(mlp, cbs=[LotteryCallback,GrowthCallback(.5, 3, .5, seed=1)])
    learn.prune(.6, hold='hold_init')
    first,w_i = learn.lottery.masks,learn.lottery.w_i
    learn.fit(6, .01)
    for n,w in named_weights(learn.model, first).items():
        m = learn.lottery.masks[n]
        gone,never = first[n]&~m,~first[n]&~m
        assert (w[gone]==0).all() and len(set(w[never].tolist())-set(w_i[n][~first[n]].tolist())-{0.})==0
    assert learn.lottery.masks!=first and learn.lottery.masks.n_kept==first.n_kept

# --- tickets, files

def test_a_ticket_of_a_plain_fit(tmp_path):
    learn,seen = grown()
    t = learn.lottery.ticket()
    assert t.masks==learn.lottery.masks and bits(t.weights)==bits(learn.lottery.w_i)
    t.save(tmp_path/'t')
    back = Ticket.load(tmp_path/'t')
    assert back.masks==t.masks and math.isclose(back.meta['density'], t.masks.density)
    assert bits(learn.lottery.ticket(trained=True).trained)==bits(learn.model)
    r = learner(mlp).fit_ticket(back, 2, seed=1)
    assert r['kept']==t.masks.n_kept
    with pytest.raises(ValueError, match='no rounds yet'): learn.lottery.ticket(0)
    with pytest.raises(ValueError, match='no rounds yet'): learner(mlp).lottery.ticket()

class Rows(list):
    def new_empty(self): return Rows()

def test_load_export_and_pickle(tmp_path):
    learn,_ = grown(lkw=dict(path=tmp_path))
    learn.remove_cbs([learn.probe,learn.see])
    learn.save('m')
    learn.load('m')
    assert leaks(learn)==0
    for dl in learn.dls.loaders: dl.dataset = Rows(dl.dataset)
    learn.export('e.pkl')
    got = load_learner(tmp_path/'e.pkl')
    assert bits(got.model)==bits(learn.model) and got.growth.every==3
    assert pickle.loads(pickle.dumps(GrowthCallback(.2))).density==.2

def test_sparse_start():
    learn = learner(mlp)
    m = learn.sparse_start(.3, seed=1)
    assert learn.lottery.masks==m and m.n_kept==round(.3*m.numel) and m==learner(mlp).sparse_start(.3, seed=1)
    assert m!=learner(mlp).sparse_start(.3, seed=2) and leaks(learn)==0
    learn.fit(2, .01)
    assert learn.lottery.masks==m and learn.lottery.ticket().masks==m
    assert len({round(float(o.float().mean()), 1) for o in learner(mlp).sparse_start(.5, 'local').values()})==1
    with pytest.raises(ValueError, match='pruned already, to density 0.29'): learn.sparse_start(.3)
    for d in (0, 1, 1.5, True, '.1'):
        with pytest.raises(ValueError, match='`density` should be between 0 and 1'): learner(mlp).sparse_start(d)
    with pytest.raises(ValueError, match='did you mean'): learner(mlp).sparse_start(.5, 'erkk')

# --- units

@pytest.mark.parametrize('units,model', [('rows',mlp), pytest.param('channels', conv_bn, marks=pytest.mark.extra)])
def test_units(units, model):
    "Whole units go, and others come, drawn anew"
    cb = dict(units=units, exclude=['4' if model is mlp else '7'])
    dls = data() if model is mlp else data(shape=(1,6,6))
    learn,seen = grown(model, dls, cb=cb, density=.5, grow='random', start='init')
    alive = [o['new'].units.alive(o['new']) for o in seen]
    assert len({str(counts(a)) for a in alive})==1 and any(a!=alive[0] for a in alive)
    assert leaks(learn)==0 and not learn.probe.bad and learn.lottery.ticket().masks.units is not None
    with pytest.raises(ValueError, match="units compete here, and a unit"): grown(model, dls, cb=cb)

# --- wrong values

wrong = [(dict(density=0), '`density` should be between'), (dict(density=1), '`density`'),
         (dict(every=0), '`every` should be a whole'),
    (dict(every=1.5), '`every`'), (dict(fraction=1), '`fraction`'), (dict(until=0), '`until` should be a share'),
    (dict(until=1.1), '`until`'), (dict(until=True), '`until`'), (dict(drop='larg_final'), 'did you mean'),
    (dict(grow='gradiant'), "`grow` should be a function of .* or one of gradient, "), (dict(grow=lambda w_q: w_q), 'w_q'),
    (dict(start='zeros'), '`reset` should be'), (dict(drop='grasp'), "`drop`='grasp' needs 'hg'"),
    (dict(grow='synflow'), "`grow`='synflow' needs 'r'")]
@pytest.mark.parametrize('kw,says', wrong, ids=said)
def test_wrong_values(kw, says):
    with pytest.raises(ValueError, match=says): GrowthCallback(**kw)

def test_two_of_them():
    learn = learner(mlp, cbs=[LotteryCallback,GrowthCallback(),GrowthCallback()])
    with pytest.raises(ValueError, match='takes one GrowthCallback'): learn.fit(1)

def test_a_gradient_that_is_no_number():
    def spoil(learn): learn.model[0].weight.grad.fill_(math.nan)
    with pytest.raises(ValueError, match="scores of '0.weight' are not finite, so nobody knows which"):
        grown(more=[At(3, spoil, 'after_backward', order=5)])

# --- kills

kills = dict(plain=dict(), accumulated=dict(name='gather', every=2), half=dict(name='half'), late=dict(name='late_it'),
             ranger=dict(name='ranger', grow='random', start='init', every=2))

@needs_fork
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('k', kills)
def test_killed_run_ends_the_same(k, server, whole, tmp_path):
    "Killed in the middle of each epoch but the first: it goes on from the epoch's start, and ends in the same bits"
    from test_gradual import same_place
    kw = dict(what='growing', **{**dict(name='plain'), **kills[k]})
    d,end,_ = whole(**kw)
    done = batches(d)[0]
    starts = [i for i,o in enumerate(done) if not i or o[1]!=done[i-1][1]][1:]
    at = 0
    for i,t in enumerate(starts):
        assert (res := server.run(folder=tmp_path, init=i, n=t-at+2, **kw)) is None, res
        at = t
    res = server.good(folder=tmp_path, init=9, **kw)
    if k=='late': same_place(d, tmp_path)
    same(d, tmp_path, end, res)
    assert len(batches(tmp_path))==len(starts)+1 and end['ok']['moves']>=2

def test_a_folder_of_other_growth_is_named(tmp_path):
    def go(**kw):
        learn = learner(mlp)
        return learn.fit_lottery(3, rounds=0, seed=1, path=tmp_path/'run',
                                 cbs=GrowthCallback(**{**dict(density=.3, every=3), **kw}))[-1]
    a,b = go(),go()
    assert a['mask_hash']==b['mask_hash']
    for kw in (dict(density=.2), dict(every=2), dict(fraction=.4), dict(until=.5), dict(grow='random'),
               dict(drop='movement'),
               dict(start='init'), dict(grow=lambda g: g*g), dict(seed=3)):
        with pytest.raises(ValueError, match='other settings: cbs was .* and is now'): go(**kw)

def test_a_ticket_whose_connections_move_in_a_folder(tmp_path):
    "`fit_ticket` keeps the masks of the end, and reads them again"
    def go():
        learn = learner(mlp)
        t = Ticket(learner(mlp).sparse_start(.3, seed=1), state(mlp()), {})
        return learn,t,learn.fit_ticket(t, 4, seed=1, path=tmp_path/'t', cbs=GrowthCallback(every=3, fraction=.5))
    learn,t,r = go()
    again,_,q = go()
    assert r.masks!=t.masks and r.masks==learn.lottery.masks and r['kept']==t.masks.n_kept
    assert q.masks==r.masks==again.lottery.masks and bits(learn.model)==bits(again.model)

def test_a_density_that_keeps_nothing_is_told_by_its_name():
    learn = learner(mlp)
    with pytest.raises(ValueError, match='`density`=0.0001 of the 288 that compete keeps none'): learn.sparse_start(.0001)
    with pytest.raises(ValueError, match='`density`'): learner(mlp, cbs=[LotteryCallback(),GrowthCallback(.0001, every=1)]).fit(1)

# --- what cannot move

def pair(): return nn.Sequential(nn.Linear(8,12), nn.ReLU(), nn.Linear(12,12), nn.ReLU(), nn.Linear(12,4))

def frozen_first(l):
    for p in l.model[0].parameters(): p.requires_grad_(False)
    l.fit(6, .01)

def told_of(f):
    with pytest.warns(UserWarning) as said: f()
    return [str(o.message) for o in said]

def test_a_frozen_layer_is_named_at_the_start_and_at_the_end():
    said = told_of(lambda: grown(pair, fit=frozen_first))
    assert any(s.startswith('frozen, and pruned by chance all the same: 0.weight. ') for s in said)
    assert any('not moved in any of the 5 moves of this fit: 0.weight. ' in s for s in said)

def test_a_layer_without_gradient_is_named():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used,self.spare = mlp(),nn.Linear(8,8)
        def forward(self, x): return self.used(x)
    said = told_of(lambda: grown(Unused))
    assert any('of this fit: spare.weight. ' in s for s in said)
    assert not any('frozen, and' in s for s in said)

class InTurn(Callback):
    "Trains one layer or the other, as `GANLearner` does with its two nets"
    def before_batch(self):
        for i in (0,2):
            for p in self.model[i].parameters(): p.requires_grad_((self.train_iter//4%2==0)==(i==0))

def test_layers_that_are_frozen_in_turn_have_moved():
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*not moved')
        learn,_ = grown(pair, more=[InTurn])
    assert learn.growth.still==[]

def test_what_trains_or_is_whole_is_not_named():
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*(not moved|by chance)')
        grown(pair)
        grown(pair, fit=frozen_first, cb=dict(exclude='0'))

# --- moves that come to nothing, and slices that would lose their length

def test_moves_of_less_than_one_connection_are_told():
    with pytest.warns(NoGrowthWarning, match='came to less than one.*larger `fraction`'):
        learn,_ = grown(lambda: nn.Sequential(nn.Linear(8,6), nn.ReLU(), nn.Linear(6,4)), fraction=.05, density=.1)
    assert len(learn.growth.moves) and not learn.growth.table.came.any()

def normed(): return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8,24)), nn.ReLU(), nn.Linear(24,4))

class Least(Callback):
    "The least length of a row after each step"
    order = 200
    def before_fit(self): self.least = []
    def after_step(self): self.least.append(float(self.model[0].parametrizations.weight.original1.norm(dim=1).min()))

def gradient(g): return g.abs()

@pytest.mark.parametrize('drop', ['snip','large_final','random',gradient])
def test_no_row_of_a_normed_weight_is_left_with_zeros_alone(drop):
    learn,_ = grown(normed, density=.5, every=1, fraction=.9, drop=drop, grow='random', more=[Least])
    assert min(learn.least.least)>0 and learn.growth.table.came.sum()>0
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())

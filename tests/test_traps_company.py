"Traps 25-28, what is promised about a callback left alone, and errors"
import gc,math,os,warnings
import pytest
from nets import *
import fastai_lottery.callback as callback

# --- 25: freezing, param groups, discriminative learning rates

def thirds(m): return [params(m[:4]), params(m[4:8]), params(m[8:])]
def grouped(frozen=False, cbs=(), **kwargs):
    return learner(drop_bn, cbs=[LotteryCallback(frozen=frozen), *L(cbs)], splitter=thirds, opt_func=Adam, **kwargs)

def test_trap_25_a_frozen_layer_is_not_pruned():
    learn = grouped()
    learn.fit(1)
    learn.freeze_to(1)
    learn.fit(1)
    before = state(learn.model)
    masks = learn.prune(.5)
    assert masks['0.weight'].all() and bits(learn.model)['0.weight']==bits(before)['0.weight']
    assert masks.n_kept==96+(144+48-96)
    learn.unfreeze()
    learn.fit(1, cbs=(p := Probe()))
    assert p.bad==[] and leaks(learn)==0
    masks = learn.prune(.5)
    assert not masks['0.weight'].all() and masks.n_kept==96

def test_trap_25_unless_it_is_asked_for():
    learn = grouped(frozen=True)
    learn.fit(1)
    learn.freeze_to(1)
    masks = learn.prune(.5, scope=local)
    assert masks['0.weight'].sum()==48 and masks.density==.5 and leaks(learn)==0
    learn.fit(1)
    assert leaks(learn)==0

def test_trap_25_a_layer_pruned_before_it_was_frozen_stays_pruned():
    learn = grouped()
    learn.fit(1)
    a = learn.prune(.5, scope=local)
    learn.freeze_to(2)
    learn.fit(1)
    b = learn.prune(.5, scope=local)
    assert torch.equal(a['0.weight'], b['0.weight']) and torch.equal(a['4.weight'], b['4.weight'])
    assert b['8.weight'].sum()==12
    learn.rewind()
    assert leaks(learn)==0

def test_trap_25_all_frozen_is_an_error():
    learn = grouped()
    for p in learn.model.parameters(): p.requires_grad_(False)
    with pytest.raises(ValueError, match='all prunable layers are frozen.*frozen=True'): learn.prune(.5)

def test_trap_25_discriminative_learning_rates_in_each_round():
    lrs = Lrs()
    learn = grouped(cbs=lrs)
    groups = [[id(p) for p in g] for g in thirds(learn.model)]
    learn.fit_lottery(2, 2, lr_max=slice(1e-4,1e-2))
    assert [[id(p) for p in g] for g in learn.opt.param_lists]==groups
    for o in lrs.fits:
        assert o['groups']==lrs.fits[0]['groups']
        assert all(g[0]<g[1]<g[2] and g[2]/g[0]==pytest.approx(100) for g in o['groups'])

def test_trap_25_frozen_groups_stay_frozen_through_a_lottery():
    learn = grouped()
    learn.freeze_to(1)
    start = bits(learn.model)
    rounds = learn.fit_lottery(1, 2, amount=.3)
    now = bits(learn.model)
    assert learn.opt.frozen_idx==1 and [p.requires_grad for p in learn.model[0].parameters()]==[False,False]
    assert now['0.weight']==start['0.weight'] and now['4.weight']!=start['4.weight']
    assert rounds[-1].masks['0.weight'].all()
    assert [r['kept'] for r in rounds]==[288, 288-58, 288-58-40]

def test_trap_25_fine_tune_lottery():
    learn = grouped(cbs=(lrs := Lrs()))
    rounds = learn.fit_lottery(1, 2, amount=.4, fit=Learner.fine_tune, base_lr=.01)
    assert [r['kept'] for r in rounds]==[288,173,104] and leaks(learn)==0 and learn.opt.frozen_idx==0
    assert rounds[-1].masks.density<.4 and not rounds[-1].masks['0.weight'].all()
    frozen,thawed = lrs.fits[::2],lrs.fits[1::2]
    assert all(o['groups']==frozen[0]['groups'] for o in frozen)
    assert all(o['groups']==thawed[0]['groups'] for o in thawed)
    assert all(g[2]/g[0]==pytest.approx(100) for g in thawed[0]['groups'])

def vision(path, cbs):
    "fastai's pretrained kind: a body, a head, groups of parameters"
    from fastai.vision.all import vision_learner,resnet18
    dls = data((3,32,32), n=16, bs=8)
    dls.n_inp,dls.c = 1,4
    kw = dict(pretrained=False, normalize=False, n_out=4, loss_func=CrossEntropyLossFlat(), lr=1e-3)
    learn = vision_learner(dls, resnet18, path=path, cbs=cbs, **kw)
    learn.remove_cbs(learn._grab_cbs(ProgressCallback))
    learn.logger = noop
    learn.create_opt()
    return learn

def test_trap_25_vision_learner(tmp_path):
    learn = vision(tmp_path, [LotteryCallback(), lrs := Lrs()])
    groups = [[id(p) for p in g] for g in learn.opt.param_lists]
    learn.freeze()
    body = bits({k:v for k,v in state(learn.model).items() if k.startswith('0.') and v.ndim>1})
    learn.fit_one_cycle(1, slice(1e-5,1e-3))
    masks = learn.prune(.9)
    n_head = sum(m.numel() for n,m in masks.items() if n.startswith('1.'))
    assert all(m.all() for n,m in masks.items() if n.startswith('0.')) and masks.numel-masks.n_kept==round(.9*n_head)
    assert bits({k:v for k,v in state(learn.model).items() if k in body})==body
    learn.unfreeze()
    learn.fit_one_cycle(1, slice(1e-5,1e-3), cbs=(p := Probe()))
    learn.prune(.5)
    learn.rewind()
    assert p.bad==[] and leaks(learn)==0
    assert [[id(p) for p in g] for g in learn.opt.param_lists]==groups and len(groups)>1
    g = lrs.fits[-1]['groups'][-1]
    assert g[0]<g[-1] and g[-1]/g[0]==pytest.approx(100)
# --- 26: wrappers

def _inner(m):
    "Only a part is compiled"
    m[0] = torch.compile(m[0], backend='eager')
    return m

def compiled(m): return torch.compile(m, backend='eager')
wraps = dict(
    compiled=compiled, dataparallel=nn.DataParallel, both=lambda m: nn.DataParallel(compiled(m)),
    channels_last=lambda m: m.to(memory_format=torch.channels_last), part=_inner)

@pytest.fixture
def bare():
    "A lottery of the bare net"
    learn = learner(conv_bn, data((1,6,6)))
    return learn,learn.fit_lottery(1, 2, amount=.3, seed=1)

@pytest.mark.parametrize('wrap', wraps)
def test_trap_26_wrapped_models_have_the_same_names_and_masks(wrap, bare):
    torch.manual_seed(0)
    m = wraps[wrap](conv_bn())
    learn = learner(m, data((1,6,6)), cbs=[LotteryCallback(), p := Probe()])
    rounds = learn.fit_lottery(1, 2, amount=.3, seed=1)
    assert p.bad==[] and leaks(learn)==0 and p.steps==12
    for a,b in zip(bare[1], rounds):
        assert (list(a.masks),list(a.start),bits(a.start),a['kept'])==(list(b.masks),list(b.start),bits(b.start),b['kept'])
        if wrap!='channels_last': assert a.masks==b.masks and a['valid_loss']==b['valid_loss']
    t = learn.lottery.ticket()
    assert bits(t.apply_(conv_bn()))==bits(under(t.weights, t.masks)), 'a ticket of a wrapped model fits the bare one'
    bare[1][1].ticket.check(learn.model)
    load_(learn.model, bare[1][0].start)
    learn.lottery.hold()
    assert leaks(learn)==0
    if wrap=='channels_last': assert learn.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    for m in (learn.model,unwrap(learn.model)):
        m.load_state_dict({k: torch.ones_like(v) for k,v in m.state_dict().items()})
        assert leaks(learn)==0, 'loads are noticed through the wrapper'

@pytest.mark.parametrize('wrap', ['compiled','dataparallel','both'])
def test_trap_26_wrapped_in_the_middle(wrap, bare):
    learn,_ = bare
    masks = learn.lottery.masks
    learn.model = wraps[wrap](learn.model)
    learn.fit(1, cbs=(p := Probe()))
    assert p.bad==[] and learn.lottery.masks==masks
    assert list(learn.prune(.5))==list(masks)
    learn.rewind()
    learn.fit(1)
    assert leaks(learn)==0
    learn.model = unwrap(learn.model)
    learn.fit(1)
    assert leaks(learn)==0 and learn.lottery.masks.n_kept==masks.n_kept-round(.5*masks.n_kept)

def test_trap_26_channels_last_callback():
    from fastai.callback.channelslast import ChannelsLast
    learn = learner(conv_bn, data((1,6,6)), cbs=[LotteryCallback(), ChannelsLast(), p := Probe()])
    learn.fit_lottery(1, 2, amount=.3)
    assert p.bad==[] and leaks(learn)==0 and p.steps==12

def test_trap_26_modules_and_globs_through_wrappers():
    m = conv_bn()
    for w in (torch.compile(m, backend='eager'), nn.DataParallel(m)):
        assert prunable(w, exclude=m[0])==prunable(m, exclude='0')==['3.weight','7.weight']
        assert list(named_weights(w))==list(named_weights(m))

# --- 27: no leaks between learners and lotteries

def test_trap_27_two_learners_side_by_side():
    "Their rounds interleaved, and each as if it were alone"
    def once(learn):
        learn.prune(.3)
        learn.rewind()
        seed_all(learn)
        learn.fit_one_cycle(1)
        return bits(learn.model),learn.lottery.masks.hash()
    def play(learn, n): return [once(learn) for _ in range(n)]
    a,b = learner(seed=1, opt_func=ranger),learner(seed=2, opt_func=ranger)
    for o in (a,b):
        seed_all(o)
        o.fit(1)
    mixed = [play(o,1)[0] for _ in range(3) for o in (a,b)]
    for i,seed in enumerate((1,2)):
        o = learner(seed=seed, opt_func=ranger)
        seed_all(o)
        o.fit(1)
        assert play(o,3)==mixed[i::2]
    assert a.lottery.masks!=b.lottery.masks and a.lottery.rounds is not b.lottery.rounds

three_opts = dict(adam=Adam, ranger=ranger, torch=partial(OptimWrapper, opt=torch.optim.AdamW))

@pytest.mark.parametrize('at', ['init','3it','2ep'])
@pytest.mark.parametrize('kw', [dict(opt_func=o) for o in three_opts.values()], ids=three_opts)
def test_trap_27_one_learner_two_lotteries_in_a_row(at, kw):
    "With one seed the second repeats the first, whatever lay between"
    learn = learner(drop_bn, cbs=LotteryCallback(at), **kw)
    def shown(r): return bits(r.start), r['mask_hash'], r['valid_loss'], r['train_loss']
    def play(): return [shown(r) for r in learn.fit_lottery(3, 2, amount=.3, seed=1)],bits(learn.model)
    first = play()
    rounds = learn.lottery.rounds
    assert play()==first and len(rounds)==len(learn.lottery.rounds)==3 and rounds is not learn.lottery.rounds
    learn.fit_one_cycle(1, .5, wd=.3)
    learn.prune(.9)
    learn.fit(1)
    assert play()==first
    learn.unprune()
    learn.fit_lottery(3, 1, amount=.8, scope=local, criterion='random', seed=9)
    assert play()==first

@pytest.mark.parametrize('at', ['init','3it'])
@pytest.mark.parametrize('kw', [{}, dict(reset='random_reinit'), dict(mask=random_mask)],
                         ids=['ticket','reinit','mask'])
def test_trap_27_a_ticket_in_between_leaves_no_trace(at, kw):
    learn = learner(drop_bn, cbs=LotteryCallback(at))
    def shown(r): return bits(r.start), r['mask_hash'], r['valid_loss']
    def play(): return [shown(r) for r in learn.fit_lottery(2, 1, amount=.3, seed=1)],bits(learn.model)
    first = play()
    w_i = bits(learn.lottery.w_i)
    learn.fit_ticket(learn.lottery.ticket(), 2, seed=5, **kw)
    assert play()==first and bits(learn.lottery.w_i)==w_i

def test_trap_27_a_foreign_ticket_is_a_guest():
    other = learner(seed=5)
    other.fit_lottery(1, 1)
    t = other.lottery.ticket()
    learn = learner(seed=1)
    start = bits(learn.model)
    learn.fit_ticket(t, 1)
    rounds = learn.fit_lottery(1, 1)
    assert bits(rounds[0].start) in (start, bits(t.weights))
    assert bits(other.model)!=bits(learn.model) and other.lottery.masks==t.masks and leaks(other)==0

def test_trap_27_fit_ticket_repeats_the_round():
    "The winning ticket, trained again with the seed of its lottery, is that round bit for bit"
    for at in ('init','3it'):
        learn = learner(drop_bn, cbs=LotteryCallback(at))
        rounds = learn.fit_lottery(2, 2, amount=.3, seed=1)
        was = bits(learn.model)
        r = learn.fit_ticket(rounds[-1].ticket, 2, seed=1)
        assert bits(learn.model)==was
        assert all(r[k]==rounds[-1][k] for k in ('valid_loss','train_loss','kept','mask_hash','iterations'))
        assert len(learn.lottery.rounds)==3

def test_trap_27_seeds_make_equal_and_different_runs():
    def play(seed, noise=0):
        learn = learner(drop_bn)
        torch.rand(noise)
        [random.random() for _ in range(noise)]
        np.random.rand(noise)
        learn.dls.train.rng.random()
        learn.fit_lottery(1, 2, amount=.3, criterion='random', seed=seed)
        return bits(learn.model),learn.lottery.masks.hash()
    assert play(1)==play(1, 5) and play(1)[0]!=play(2)[0] and play(1)[1]!=play(2)[1]

def test_trap_27_classes_and_modules_hold_no_state():
    def values_of(mod): return {k:v for k,v in vars(mod).items() if isinstance(v,(dict,list,set))}
    before = {k for k in vars(LotteryCallback)},values_of(callback)
    learner().fit_lottery(1, 1)
    assert ({k for k in vars(LotteryCallback)},values_of(callback))==before

# --- 28: memory

@pytest.fixture
def counting():
    "Tensors made from here on, and their bytes"
    gc.collect()
    gc.freeze()
    def count():
        gc.collect()
        ts = [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter)]
        return len(ts),sum({o.untyped_storage().data_ptr():o.untyped_storage().nbytes() for o in ts}.values())
    yield count
    gc.unfreeze()

@pytest.mark.filterwarnings('ignore::fastai_lottery.scopes.EmptyLayerWarning')
def test_trap_28_no_growth_over_rounds(counting):
    "Tensors alive and their bytes at the start of each round; a round itself keeps packed masks, and weights that all share"
    learn,seen = learner(drop_bn, opt_func=Adam),[]
    class Count(Callback):
        def before_fit(self):
            seen.append((*counting(), len(unwrap(self.learn.model)._load_state_dict_post_hooks), len(self.learn.cbs)))
    learn.add_cb(Count())
    rounds = learn.fit_lottery(1, 10, amount=.1, eval_every=3)
    late = seen[2:]
    # the trained nets of the last round and of the best stay for `load`: one net, or two
    net = state(learn.model).values()
    n,size = len(net),sum(v.nbytes for v in net)
    assert max(o[0] for o in late)-min(o[0] for o in late)<=2+n
    assert max(o[1] for o in late)-min(o[1] for o in late)<=64+size
    assert {o[2:] for o in seen[1:]}=={seen[1][2:]} and seen[1][2]==1
    assert len({id(r.start) for r in rounds})==1
    assert sum(b.nbytes for _,b in rounds[0].masks_.values())<=288/8+3

@pytest.mark.filterwarnings('ignore::fastai_lottery.scopes.EmptyLayerWarning')
def test_trap_28_no_growth_over_lotteries_and_verbs(counting):
    learn = learner(drop_bn, opt_func=ranger)
    def once():
        learn.fit_lottery(1, 2, seed=1)
        learn.fit_ticket(learn.lottery.ticket(), 1, reset='random_reinit')
        learn.prune(.1)
        learn.rewind()
        learn.unprune()
        learn.evaluate()
        learn.validate()
        return *counting(),len(learn.model._load_state_dict_post_hooks)
    once()
    a,b,c = once(),once(),once()
    assert c[0]<=a[0] and c[1]<=a[1] and b[2]==c[2]==1

def test_trap_28_a_learner_that_is_gone_is_gone():
    import weakref
    learn = learner()
    learn.fit_lottery(1, 1)
    m,ref,cb = learn.model,weakref.ref(learn),weakref.ref(learn.lottery)
    del learn
    gc.collect()
    assert ref() is None and cb() is None
    m.load_state_dict({k: torch.ones_like(v) for k,v in m.state_dict().items()})
    assert (m[0].weight==1).all()

# --- attached and left alone, it changes nothing

class Losses(Callback):
    order,run_valid = 99,False
    def __init__(self): self.got = []
    def after_batch(self): self.got.append(float(self.learn.loss))

def trained(model, cbs=(), fit=Learner.fit_one_cycle, dls=None, before=noop, opt=Adam, n=3, seed=True, **kwargs):
    learn = learner(model, dls or data(), cbs=[*L(cbs), loss := Losses()], opt_func=opt)
    if seed: seed_all(learn)
    before(learn)
    fit(learn, n, **kwargs)
    rec,states = learn.recorder,getattr(learn.opt,'opt',learn.opt).state.values()
    def plain(v): return v.tolist() if torch.is_tensor(v) else v
    opt_state = [(k, plain(v)) for o in states for k,v in sorted(o.items()) if k!='params']
    return dict(
        loss=loss.got, model=bits(learn.model), smooth=[float(o) for o in rec.losses], values=[list(o) for o in rec.values],
        lrs=rec.lrs, opt=opt_state, rng=rng_states(), order=learn.dls.train.rng.random(),
        mode=[m.training for m in learn.model.modules()])

def same(a, b):
    for k in a: assert a[k]==b[k], f'{k} differ'

alone_opts = dict(
    sgd=partial(SGD,mom=.9,wd=.1), adam=Adam, ranger=ranger, lamb=Lamb,
    adamw_fused=partial(OptimWrapper, opt=torch.optim.AdamW, fused=True))

@pytest.mark.parametrize('opt', alone_opts)
@pytest.mark.parametrize('at', ['init','5it','1ep'])
def test_attached_and_left_alone_it_changes_nothing(opt, at):
    "Losses, weights, moments, learning rates, random numbers: bit for bit"
    same(trained(drop_bn, LotteryCallback(at), opt=alone_opts[opt]), trained(drop_bn, opt=alone_opts[opt]))

@pytest.mark.parametrize('name', [k for k in zoo if k!='bare'])
def test_attached_and_left_alone_in_any_net(name):
    model,kw,inc,_ = zoo[name]
    same(trained(model, LotteryCallback(), dls=data(**kw)), trained(model, dls=data(**kw)))

beside = dict(
    mixup=MixUp, accumulation=lambda: GradientAccumulation(32), clip=lambda: GradientClip(.1), amp=lambda: MixedPrecision('bf16'),
    fp16=lambda: MixedPrecision('fp16'), bnfreeze=BnFreeze, short=lambda: ShortEpochCallback(.5))

@pytest.mark.parametrize('cb', [o for o in beside if o!='fp16'])
@pytest.mark.filterwarnings('ignore:.*CUDA.*', 'ignore:.*cuda.*')
def test_attached_and_left_alone_beside_others(cb):
    same(trained(drop_bn, [LotteryCallback(), beside[cb]()]), trained(drop_bn, beside[cb]()))

def test_a_prune_of_nothing_changes_nothing():
    same(trained(drop_bn, LotteryCallback(), before=lambda l: l.prune(0)), trained(drop_bn))

class Evaluates(Callback):
    run_valid = False
    def __init__(self, event, order):
        self.order,self.seen = order,[]
        setattr(self, event, self._look)
    def _look(self): self.seen.append(self.learn.evaluate())

moments = [
    ('after_batch',81), ('after_batch',-20), ('before_batch',0), ('after_step',90), ('after_epoch',70), ('before_epoch',-5),
    ('before_train',70), ('after_train',70), ('after_fit',99), ('before_fit',99)]

@pytest.mark.parametrize('event,order', moments)
def test_evaluate_leaves_no_trace_in_a_training(event, order):
    "In a net with dropout and BatchNorm, at any event"
    c = Evaluates(event, order)
    same(trained(drop_bn, [LotteryCallback(), c]), trained(drop_bn))
    assert len(c.seen)>0 and all(math.isfinite(o['valid_loss']) for o in c.seen)

@pytest.mark.parametrize('cb', ['mixup','accumulation','amp','fp16','bnfreeze'])
@pytest.mark.filterwarnings('ignore:.*CUDA.*', 'ignore:.*cuda.*')
def test_evaluate_leaves_no_trace_beside_others(cb):
    same(trained(drop_bn, [LotteryCallback(), beside[cb](), Evaluates('after_batch',81)]),
         trained(drop_bn, beside[cb]()))

def test_evaluate_leaves_python_and_numpy_alone_too():
    "Items may draw random numbers from anywhere"
    def noisy(o):
        x,y = o
        return x+random.random()*np.random.rand()*float(torch.rand(()))*1e-3,y
    def d(): return data(after_item=noisy)
    same(trained(drop_bn, [LotteryCallback(), Evaluates('after_batch',81)], dls=d()), trained(drop_bn, dls=d()))

def test_evaluate_on_the_training_set_leaves_its_order_alone():
    class Look(Callback):
        order,run_valid,n = 81,False,0
        def after_batch(self):
            self.learn.evaluate(self.learn.dls.train)
            self.n += 1
    same(trained(drop_bn, [LotteryCallback(), c := Look()]), trained(drop_bn))
    assert c.n==12

def test_evaluate_is_what_validate_says():
    learn = learner(drop_bn, metrics=[accuracy, F1Score(average='macro')])
    learn.fit(1)
    modes = [m.training for m in learn.model.modules()]
    got = learn.evaluate()
    assert list(got)==['valid_loss','accuracy','f1_score'] and [m.training for m in learn.model.modules()]==modes
    assert list(got.values())==pytest.approx(list(learn.validate()))
    assert learn.evaluate(learn.dls.train) != got and learn.dls.train is learn.dls.loaders[0]
    before = bits(learn.model),rng_states()
    learn.evaluate(learn.dls.valid)
    assert (bits(learn.model),rng_states())==before

@pytest.mark.parametrize('model', [drop_bn, conv_bn, AWD], ids=lambda o: o.__name__)
def test_eval_every_changes_no_bit(model):
    def play(**kw):
        d = data((1,6,6)) if model is conv_bn else data((6,), ints=20) if model is AWD else data()
        learn = learner(model, d, cbs=[LotteryCallback('2it'), l := Losses()], opt_func=Adam)
        rounds = learn.fit_lottery(2, 2, amount=.3, seed=1, **kw)
        def plain(r): return {k:v for k,v in r.row.items() if k!='seconds' and not k.startswith(('es_','test_'))}
        return bits(learn.model),l.got,[plain(r) for r in rounds],[len(r.curve) if r.curve is not None else 0 for r in rounds]
    a,b = play(),play(eval_every=1)
    assert a[:3]==b[:3] and a[3]==[0,0,0] and b[3]==[8,6,6]
    test = data((1,6,6)).valid if model is conv_bn else data((6,), ints=20).valid if model is AWD else data().valid
    assert play(eval_every=3, test_dl=test)[:3]==a[:3]

# --- a round is a plain fit: the same events in the same order

from fastai.callback.core import _events

cancels = {('after_pred',2):CancelBatchException, ('before_step',3):CancelStepException,
           ('after_backward',5):CancelTrainException}

class Tape(Callback):
    "Every event that comes by, and the state of the loop then"
    def __init__(self, order, tape):
        self.order,self.tape = order,tape
        for o in _events[1:]: setattr(self, o, partial(self.note, o))
    def note(self, ev):
        at = {k:self.learn.__dict__.get(k) for k in ('epoch','training','train_iter','pct_train')}
        self.tape.append((self.order, ev, *at.values()))
        ex = cancels.get((ev,at['train_iter']))
        if ex and at['training']: raise ex

ways = dict(one_cycle=(Learner.fit_one_cycle,{}), fine_tune=(Learner.fine_tune,{}), fit=(Learner.fit,dict(lr=.1)))
@pytest.mark.parametrize('fit,kw', ways.values(), ids=ways)
@pytest.mark.parametrize('more', [[], ['mixup'], ['accumulation','clip'], ['amp']],
                         ids=['alone','mixup','accumulation','amp'])
@pytest.mark.filterwarnings('ignore:.*CUDA.*', 'ignore:.*cuda.*')
def test_a_round_is_a_plain_fit(fit, kw, more):
    def play(go):
        tape = []
        tapes = [Tape(60,tape), Tape(-50,tape), Tape(60.5,tape), *[beside[o]() for o in more], l := Losses()]
        learn = learner(drop_bn, cbs=[LotteryCallback(), *tapes], splitter=lambda m: [params(m[:4]), params(m[4:])])
        learn.dls.train.rng.seed(5)
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)
        go(learn)
        return bits(learn.model),l.got,tape,sorted(learn.__dict__),rng_states()
    a,b = play(lambda l: fit(l, 2, **kw)),play(lambda l: l.fit_lottery(2, 0, fit=fit, **kw))
    n = len(a[2])
    assert b[1]==a[1] and b[2][:n]==a[2] and n>150, 'same losses, same events'
    assert {o[1] for o in b[2][n:]} <= set(_events), 'what follows is the evaluation'
    assert all(o[3] is False or o[1]=='before_validate' for o in b[2][n:])
    assert b[0]==a[0] and a[4][2]==b[4][2]
    assert set(b[3])<=set(a[3]), 'and nothing stays behind in the Learner'

@pytest.mark.parametrize('ex', [KeyboardInterrupt(), RuntimeError('out of luck'), CancelFitException()], ids=repr)
def test_a_round_that_fails_leaves_the_learner_as_it_was(ex):
    learn = learner(drop_bn)
    learn.fit(1)
    was,cbs = set(learn.__dict__),list(learn.cbs)
    learn.add_cb(c := At(3, raiser(ex), 'before_step'))
    try: learn.fit_lottery(2, 1)
    except (KeyboardInterrupt,RuntimeError) as e: assert type(e) is type(ex)
    learn.remove_cb(c)
    assert set(learn.__dict__)==was and list(learn.cbs)==cbs and c.done

# --- errors

def nan_in(r, event='after_loss', it=2):
    "A loss that is nan in round `r`"
    class Nan(Callback):
        run_valid = False
        def _go(self):
            if len(self.learn.lottery.rounds)==r and self.learn.train_iter>=it:
                self.learn.loss_grad = self.learn.loss_grad*math.nan
                self.learn.loss = self.learn.loss*math.nan
    setattr(Nan, event, Nan._go)
    return Nan()

@pytest.mark.parametrize('r', [0,1,2])
def test_error_nan_loss_stops_the_round_and_keeps_the_finished_ones(r, tmp_path):
    n_cbs = len(learner().cbs)
    learn = learner(cbs=[LotteryCallback(), bad := nan_in(r)])
    why = f'round {r}: the loss is nan at iteration.*lower learning rate.*kept'
    with pytest.raises(FloatingPointError, match=why): learn.fit_lottery(2, 3, seed=1, path=tmp_path/'run')
    df = learn.lottery.report(full=True)
    assert len(df)==len(learn.lottery.rounds)==r and not r or list(df['round'])==list(range(r))
    assert len(list((tmp_path/'run').glob('round_*/ticket.safetensors')))==r
    if r: assert Ticket.load(tmp_path/f'run/round_{r-1:02d}/ticket').masks==learn.lottery.ticket().masks
    assert not (set(learn.__dict__)&{'_do_fit'})
    learn.remove_cb(bad)
    assert len(learn.cbs)==n_cbs
    other = learner()
    again = [bits_of(o.fit_lottery(2, 1, seed=1), o) for o in (learn,other)]
    assert again[0]==again[1], 'usable after, and as good as new'

def bits_of(rounds, learn): return [r['mask_hash'] for r in rounds],bits(learn.model)

def test_error_nan_in_validation_alone():
    learn = learner()
    class Nan(Callback):
        run_train = False
        def after_pred(self):
            if len(self.learn.lottery.rounds)==1: self.learn.pred = self.learn.pred*math.nan
    learn.add_cb(Nan())
    with pytest.raises(FloatingPointError, match='round 1: the loss is nan'): learn.fit_lottery(1, 2)
    assert len(learn.lottery.rounds)==1

def test_error_a_high_learning_rate_for_real():
    learn = learner(opt_func=SGD)
    with pytest.raises(FloatingPointError, match='round 0.*lower learning rate'):
        learn.fit_lottery(5, 2, fit=Learner.fit, lr=1e30)
    assert len(learn.lottery.rounds)==0 and learn.lottery.report().empty

def stop_in(event, r, it):
    "Ctrl-C at an event in round `r`"
    class Stop(Callback):
        run_valid,order = False,82
        def _go(self):
            if len(self.learn.lottery.rounds)==r and self.learn.train_iter>=it: raise KeyboardInterrupt
    setattr(Stop, event, Stop._go)
    return Stop()

@pytest.mark.parametrize('event', ['before_batch','after_pred','before_step','after_step','after_batch'])
@pytest.mark.parametrize('r,it', [(0,2),(1,0),(2,7)])
def test_error_ctrl_c_keeps_the_finished_rounds(event, r, it, tmp_path):
    learn = learner(drop_bn, cbs=[LotteryCallback(), stop := stop_in(event, r, it)], path=tmp_path)
    def names(): return [type(o).__name__ for o in learn.cbs]
    was = names()
    with pytest.raises(KeyboardInterrupt): learn.fit_lottery(2, 3, seed=1, path=tmp_path/'run', eval_every=2)
    assert len(learn.lottery.report())==len(learn.lottery.rounds)==r and names()==was
    assert '_do_fit' not in learn.__dict__
    assert len(list((tmp_path/'run').glob('round_*')))==r and not list((tmp_path/'run').rglob('*.tmp'))
    learn.remove_cb(stop)
    if r:
        assert learn.lottery.ticket().density==learn.lottery.rounds[-1]['density']
        assert learn.lottery.best(1.).masks is not None
    learn.fit(1)
    learn.validate()
    assert leaks(learn)==0
    other = learner(drop_bn)
    assert bits_of(learn.fit_lottery(2, 1, seed=1), learn)==bits_of(other.fit_lottery(2, 1, seed=1), other)

def test_error_ctrl_c_within_a_step_leaves_nothing_to_be_seen():
    "Between the optimizer's step and ours: whoever looks next sees zeros"
    learn = learner(opt_func=partial(SGD, mom=.9))
    learn.fit(1)
    learn.prune(.5)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=At(2, raiser(KeyboardInterrupt), 'after_step', 70))
    class Look(Callback):
        def before_batch(self): self.n = leaks(self.learn)
    learn.validate(cbs=(c := Look()))
    assert c.n==0
    learn.fit(1)
    assert leaks(learn)==0

bad_args = dict(
    amount=(dict(amount=1.2), r'`amount` should be in \[0, 1\).*1\.2'),
    rounds=(dict(rounds=-1), '`rounds` should be a whole number.*-1'), rounds_f=(dict(rounds=2.5), '`rounds`.*2.5'),
    rounds_b=(dict(rounds=True), '`rounds`'), to=(dict(to=0), '`to` should be between 0 and 1'), to_1=(dict(to=1.), '`to`'),
    tol=(dict(tol=-1), '`tol`'), monitor=(dict(monitor='acc'), '`monitor` should be one of valid_loss, accuracy'),
    every=(dict(eval_every=0), '`eval_every`'),
    criterion=(dict(criterion='magnitude'), '`criterion` should be.*large_final.*got \'magnitude\''),
    unknown=(dict(criterion=lambda w_x: w_x),
             "asks for 'w_x'; known are w_i"), two=(dict(criterion=lambda w_f,grad: w_f), "'grad'"),
    reset=(dict(reset='rewnd'), '`reset` should be.*random_reinit'), reset_arg=(dict(reset=lambda w_0: w_0), "asks for 'w_0'"),
    builtin=(dict(criterion=3), '`criterion`.*3'),
    scope=(dict(scope='everywhere'), "`scope` should be 'global', 'local'.*'everywhere'"),
    scope_glob=(dict(scope={'7*':.5}), r"'7\*' in the rates matches no prunable weight"))

@pytest.mark.parametrize('name', bad_args)
def test_error_wrong_arguments_are_told_before_any_training(name):
    kw,msg = bad_args[name]
    learn = learner()
    was,rng = bits(learn.model),rng_states()
    with pytest.raises((ValueError,TypeError), match=msg):
        learn.fit_lottery(1, **{'rounds':2, **kw} if 'to' not in kw else kw)
    assert bits(learn.model)==was and len(learn.lottery.rounds)==0, 'found out only after a round of training'
    learn.fit_lottery(1, 1)

@pytest.mark.parametrize('n', [0,-1,1.5,'3',None,True])
def test_error_epochs(n):
    learn = learner()
    with pytest.raises(ValueError, match='`n_epoch` should be a whole number of at least 1'): learn.fit_lottery(n)

@pytest.mark.parametrize('name', ['criterion','unknown','two','scope','scope_glob'])
def test_error_prune_with_wrong_arguments_changes_nothing(name):
    kw,msg = bad_args[name]
    learn = learner()
    m = learn.prune(.2)
    was = bits(learn.model)
    with pytest.raises((ValueError,TypeError), match=msg): learn.prune(.2, **kw)
    assert bits(learn.model)==was and learn.lottery.masks==m

def mask_of_x(m, gen): return Masks({'x':torch.ones(2).bool()})
bad_of_ticket = dict(
    word=(dict(reset=lambda w_0: w_0), "'w_0'"), name=(dict(reset='rewnd'), '`reset`'), epochs=(dict(n_epoch=0), '`n_epoch`'),
    mask=(dict(mask=mask_of_x), "'x'"))
@pytest.mark.parametrize('kw,msg', bad_of_ticket.values(), ids=bad_of_ticket)
def test_error_fit_ticket_with_wrong_arguments_changes_nothing(kw, msg):
    learn = learner()
    learn.fit_lottery(1, 2)
    def now(): return bits(learn.model), learn.lottery.masks.hash(), id(learn.lottery.w_i), id(learn.lottery.w_k)
    t,was = learn.lottery.ticket(1),now()
    with pytest.raises(ValueError, match=msg): learn.fit_ticket(t, **{'n_epoch':1, **kw})
    assert now()==was

def test_error_a_criterion_of_another_shape():
    learn = learner()
    with pytest.raises(ValueError, match="score of '0.weight' should be a tensor of shape"):
        learn.prune(.2, lambda w_f: w_f.sum())
    assert learn.lottery.masks.density==1

def test_error_random_reinit_without_an_initialiser():
    learn = learner(Bare, cbs=LotteryCallback(include='*'))
    learn.fit(1)
    was = bits(learn.model)
    with pytest.raises(ValueError, match=r"'(w|gain)' has no initialiser.*LotteryCallback\(init="):
        learn.rewind('random_reinit')
    assert bits(learn.model)==was

def test_error_a_folder_that_holds_another_run(tmp_path):
    learn = learner()
    learn.fit_lottery(1, 1, path=tmp_path/'run')
    was = bits(learn.model),{f:f.read_bytes() for f in (tmp_path/'run').rglob('*') if f.is_file()},learn.lottery.masks
    other = 'holds a run with other settings: amount was 0.2 and is now 0.3'
    with pytest.raises(ValueError, match=other): learn.fit_lottery(1, 1, amount=.3, path=tmp_path/'run')
    assert (bits(learn.model),{f:f.read_bytes() for f in (tmp_path/'run').rglob('*') if f.is_file()},
            learn.lottery.masks)==was
    assert len(learn.lottery.rounds)==2, 'refused before anything is lost'

def test_error_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path/'f').write_text('')
    learn = learner()
    learn.fit_lottery(1, 1)
    was = bits(learn.model)
    with pytest.raises(OSError, match='cannot write'): learn.fit_lottery(1, 1, path=tmp_path/'f'/'run')
    assert bits(learn.model)==was and len(learn.lottery.rounds)==2, 'refused before anything is lost'

# --- when to stop

@pytest.mark.parametrize('scope', [global_, local, {'4':.5}], ids=['global','local','rates'])
@pytest.mark.parametrize('to,amount', [(.5,.2), (.1,.3), (.8**3,.2), (.3,.9)])
def test_stops_at_the_density_that_was_asked_for(to, amount, scope):
    learn = learner()
    rounds = learn.fit_lottery(1, to=to, amount=amount, scope=scope)
    slack = 0 if scope is global_ else 3
    assert abs(learn.lottery.masks.n_kept-round(to*288))<=slack
    assert all(r['kept']>round(to*288)+slack for r in rounds[:-1]), 'and no round too many'

def test_stops_at_a_density_before_the_last_of_so_many_rounds():
    assert [r['kept'] for r in learner().fit_lottery(1, 9, to=.5, amount=.3)]==[288, 288-86, 144]
    assert [r['kept'] for r in learner().fit_lottery(1, 1, to=.5, amount=.3)]==[288, 288-86], 'and no more rounds than were asked for'

def test_stops_by_tolerance_with_the_smallest_ticket_within_it():
    learn = learner()
    rounds = learn.fit_lottery(4, tol=.02, amount=.5, monitor='valid_loss', seed=1)
    d = rounds[0]['valid_loss']
    assert rounds[-1]['valid_loss']-d>.02 and all(r['valid_loss']-d<=.02 for r in rounds[:-1])
    assert learn.lottery.masks==rounds[-2].masks and leaks(learn)==0
    assert learn.evaluate()=={k:rounds[-2][k] for k in ('valid_loss','accuracy')}
    assert learn.lottery.best(.02, 'valid_loss').masks==rounds[-2].masks

def test_one_shot():
    learn = learner()
    rounds = learn.fit_lottery(1, 1, amount=.9)
    assert [r['kept'] for r in rounds]==[288, 288-259]

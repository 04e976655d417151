"Traps 1-9 and 24: masks and counts. Each test is named after a fault that was seen elsewhere"
import math,warnings
from contextlib import nullcontext
import pytest
from torch.amp import GradScaler,autocast
from nets import *
from fastai_lottery.means import RunningMean,RunningSaliency

# --- 1: pruned weights are exactly 0 after every step

adamw = partial(OptimWrapper, opt=torch.optim.AdamW, weight_decay=.1)
opts = dict(
    sgd=SGD, sgd_mom_wd=partial(SGD, mom=.9, wd=.1), sgd_mom_l2=partial(SGD, mom=.9, wd=.1, decouple_wd=False),
    adam_l2=partial(Adam, wd=.1, decouple_wd=False), adam_decoupled=partial(Adam, wd=.1),
    rmsprop=RMSProp, rmsprop_mom=partial(RMSProp, mom=.9, wd=.1), radam=partial(RAdam, wd=.1), lamb=partial(Lamb, wd=.1),
    larc=partial(Larc, wd=.1), lars=partial(Larc, clip=False), qhadam=partial(QHAdam, wd=.1),
    ranger=partial(ranger, k=3), lookahead_sgd=lambda p,lr: Lookahead(SGD(p, lr=lr, mom=.9), k=2),
    torch_sgd=partial(OptimWrapper, opt=torch.optim.SGD, momentum=.9),
    torch_adamw=partial(adamw, foreach=False), torch_adamw_foreach=partial(adamw, foreach=True),
    torch_adamw_fused=partial(adamw, fused=True))

def train_pruned(cbs=(), opt=SGD, n_epoch=2, fit=Learner.fit_one_cycle, steps=None, model=mlp, **kwargs):
    "Train, prune half, train on with what the optimizer remembers, then once more from the rewind point; how it went"
    learn = learner(model, opt_func=opt, **kwargs)
    fit(learn, 1, lr_max=.01)
    learn.prune(.5)
    for again in range(2):
        if again:
            learn.prune(.2)
            learn.rewind()
        before,probe = state(learn.model),Probe()
        fit(learn, n_epoch, lr_max=.01, cbs=[probe, *[o() if isinstance(o,type) else o for o in L(cbs)]])
        n = len(learn.dls.train)*n_epoch
        assert probe.bad==[] and leaks(learn)==0
        assert probe.batches==n and probe.steps==(n if steps is None else steps)
        masks,ws = learn.lottery.masks,named_weights(learn.model)
        assert not any(torch.equal(before[k][m], ws[k].data[m]) for k,m in masks.items()), 'kept weights should train'
    assert learn.lottery.masks.n_kept==round(.8*learn.lottery.masks.numel/2)
    return learn

@pytest.mark.parametrize('opt', opts)
def test_trap_01_pruned_weights_are_zero_after_every_step(opt): train_pruned(opt=opts[opt])

@pytest.mark.parametrize('opt', ['sgd_mom_wd','adam_decoupled','ranger','torch_adamw_fused'])
@pytest.mark.parametrize('model', [conv_bn, drop_bn], ids=lambda o: o.__name__)
def test_trap_01_with_batchnorm_and_convolutions(opt, model):
    train_pruned(opt=opts[opt], model=model, dls=data(shape=(1,6,6)) if model is conv_bn else data())

class CpuAmp(MixedPrecision):
    "fastai's mixed precision with an autocast and a scaler that work on the CPU"
    def before_fit(self):
        dt = torch.bfloat16 if self.amp_mode==AMPMode.BF16 else torch.float16
        self.autocast,self.scales = autocast('cpu', dtype=dt),L()
        self.learn.scaler = GradScaler('cpu', init_scale=8., growth_interval=2, enabled=dt==torch.float16)

def overflow(learn): next(learn.model.parameters()).grad.view(-1)[0] = math.inf

@pytest.mark.parametrize('mode', ['fp16','bf16'])
@pytest.mark.parametrize('amp', [CpuAmp, MixedPrecision], ids=lambda o: o.__name__)
@pytest.mark.filterwarnings('ignore:.*CUDA.*', 'ignore:.*cuda.*')
def test_trap_01_mixed_precision(mode, amp): train_pruned([_New(amp, mode)], opt=opts['adam_l2'])

def _New(cls, *args):
    "A callback class whose objects are `cls(*args)`: each fit gets a new one"
    return type(cls.__name__, (cls,), dict(__init__=lambda self: cls.__init__(self, *args)))

@pytest.mark.parametrize('opt', ['sgd_mom_wd','adam_l2','torch_adamw','ranger'])
def test_trap_01_mixed_precision_with_skipped_steps(opt):
    "Gradients overflow at some steps; the scaler then skips these"
    skipped = []
    class Note(Callback):
        order = 95
        def after_step(self): skipped.append(self.mixed_precision.skipped)
    amp = type('MixedPrecision', (CpuAmp,), dict(__init__=lambda self: CpuAmp.__init__(self, 'fp16')))
    train_pruned([amp, _New(At, (1,4,5), overflow, 'before_step', 5), Note], opt=opts[opt])
    assert skipped==[i in (1,4,5) for i in range(8)]*2

@pytest.mark.parametrize('opt', ['sgd_mom_wd','adam_l2'])
def test_trap_01_steps_that_a_callback_cancels(opt):
    train_pruned(_New(At, (0,2,3), raiser(CancelStepException), 'before_step', 5), opt=opts[opt])

@pytest.mark.parametrize('opt', ['sgd_mom_wd','adam_l2','torch_adamw_fused'])
def test_trap_01_gradient_accumulation(opt):
    "Raises CancelBatchException, so that `after_step` comes once in three batches"
    train_pruned(_New(GradientAccumulation, 48), n_epoch=3, steps=4, opt=opts[opt])

def test_trap_01_gradient_clip(): train_pruned(_New(GradientClip, .05), opt=opts['adam_l2'])
def test_trap_01_accumulation_and_clip_and_mixed_precision():
    half = type('MixedPrecision', (CpuAmp,), dict(__init__=lambda self: CpuAmp.__init__(self, 'fp16')))
    train_pruned([_New(GradientAccumulation, 32), _New(GradientClip, .1), half], steps=4, opt=opts['adam_decoupled'])

@pytest.mark.parametrize('ex', [CancelBatchException, CancelTrainException, CancelEpochException, CancelFitException])
def test_trap_01_cancelled_between_the_step_and_our_turn(ex):
    "Another callback leaves `after_step` before ours is asked: pruned weights are 0 at the next moment that anybody looks"
    learn = learner(opt_func=opts['sgd_mom_wd'])
    learn.fit_one_cycle(1)
    learn.prune(.5)
    probe,cut = Probe(),At(2, raiser(ex), 'after_step', 70)
    learn.fit_one_cycle(2, cbs=[probe, cut])
    assert cut.done and probe.bad==[] and leaks(learn)==0

@pytest.mark.cuda
@pytest.mark.parametrize('mode', ['fp16','bf16'])
def test_trap_01_mixed_precision_on_a_gpu(mode):
    learn = learner(opt_func=opts['adam_l2'], dls=data().to('cuda'))
    learn.add_cb(MixedPrecision(mode))
    learn.fit_one_cycle(1)
    learn.prune(.5)
    probe,its = Probe(),At((1,4), overflow, 'before_step', 5)
    learn.fit_one_cycle(2, cbs=[probe, its])
    assert its.done==2 and probe.steps==8 and probe.bad==[] and leaks(learn)==0

# --- 2, 3: exact counts

@pytest.mark.parametrize('scope', [global_, local], ids=['global','local'])
@pytest.mark.parametrize('fill', ['ties','repeated','distinct','zeros'])
@pytest.mark.parametrize('amount', [0, .2, .4, .5, .6, .9, .999])
def test_trap_02_exact_count(amount, fill, scope):
    "A bare threshold removes too many or too few where values repeat"
    learn = learner()
    with torch.no_grad():
        for p in named_weights(learn.model).values():
            if fill!='distinct':
                p.copy_(dict(ties=torch.ones_like(p), zeros=torch.zeros_like(p), repeated=(p*4).round()/4)[fill])
    ws,was = named_weights(learn.model),{}
    for _ in range(3):
        masks = learn.lottery.masks
        was = {n:int(m.sum()) for n,m in masks.items()} if masks else {n:ws[n].numel() for n in learn.lottery.names()}
        left = {n:c-round(amount*c) for n,c in was.items()}
        tot = sum(was.values())-round(amount*sum(was.values()))
        if (scope is local and not sum(left.values())) or (scope is global_ and not tot): break
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', EmptyLayerWarning)
            masks = learn.prune(amount, scope=scope)
        got = {n:int(m.sum()) for n,m in masks.items()}
        assert got==left if scope is local else sum(got.values())==tot

def test_trap_02_down_to_one_weight():
    learn = learner(lambda: nn.Linear(8,4,bias=False))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert learn.prune(31/32).n_kept==1
        assert learn.prune(.4).n_kept==1       # round(.4) is 0
    with pytest.raises(ValueError, match='no weight at all'): learn.prune(.9)
    assert learn.lottery.masks.n_kept==1

@pytest.mark.parametrize('amount', [1, 1., 1.5, -.1, math.nan, math.inf, '.2', None, True])
def test_trap_02_amount_outside_0_1_is_an_error(amount):
    learn = learner()
    before = bits(learn.model)
    with pytest.raises(ValueError, match=r'`amount` should be in \[0, 1\)'): learn.prune(amount)
    with pytest.raises(ValueError, match=r'`amount` should be in \[0, 1\)'): learn.fit_lottery(1, 1, amount=amount)
    assert bits(learn.model)==before and learn.lottery.masks.density==1

@pytest.mark.parametrize('scope', [global_, local], ids=['global','local'])
def test_trap_03_a_fraction_of_the_survivors(scope):
    "After k rounds .8^k is left, up to the rounding of each"
    learn = learner(lambda: mlp(40))
    n = {k:p.numel() for k,p in named_weights(learn.model, learn.lottery.names()).items()}
    tot,N = sum(n.values()),sum(n.values())
    for k in range(1,13):
        masks = learn.prune(.2, scope=scope)
        tot -= round(.2*tot)
        n = {o:c-round(.2*c) for o,c in n.items()}
        assert masks.n_kept==(tot if scope is global_ else sum(n.values()))
        assert abs(masks.n_kept-.8**k*N) <= 2.5*(1 if scope is global_ else len(n))

# --- 4, 5: monotone; random numbers

@pytest.mark.parametrize('criterion', criteria_menu())
def test_trap_04_once_pruned_always_pruned(criterion, monkeypatch):
    "In every criterion, also where the score of a pruned weight is the highest"
    if hasattr(f := criteria_menu()[criterion], 'steps'): monkeypatch.setattr(f, 'steps', 10)
    learn = learner(cbs=[LotteryCallback(), RunningMean(), RunningSaliency()])
    learn.fit(1)
    for k in range(3):
        old = learn.lottery.masks
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', EmptyLayerWarning)
            new = learn.prune(.5, criterion, seed=k)
        assert (new&old)==new and new!=old
        learn.fit(1)

def test_trap_04_even_if_a_scope_brings_them_back():
    learn = learner()
    a = learn.prune(.5)
    b = learn.prune(.2, scope=lambda scores,masks,amount: Masks({n:torch.ones_like(m) for n,m in masks.items()}))
    assert a==b and leaks(learn)==0

def test_trap_05_random_scores_come_from_a_private_generator():
    learn,other = learner(),learner()
    learn.lottery.remember()
    other.lottery.remember()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = rng_states()
    a,b = learn.prune(.5,'random',seed=5),learn.prune(.5,'random',seed=5)
    assert rng_states()==before, 'a prune should leave the global random numbers alone'
    torch.manual_seed(1)
    torch.rand(100)
    assert other.prune(.5,'random',seed=5)==a, 'and not depend on what was drawn from them'
    share = (b.n_kept/a.n_kept)
    assert share==.5 and learner().prune(.5,'random',seed=6)!=a

def test_trap_05_random_scores_are_drawn_once():
    "One draw of each weight for each prune; all of them by the one generator that the criterion is handed"
    learn,seen = learner(),[]
    def chance(w_f, gen):
        seen.append((w_f.shape, gen))
        return torch.rand(w_f.shape, generator=gen)
    learn.prune(.5, chance)
    assert [s for s,_ in seen]==[p.shape for p in named_weights(learn.model, learn.lottery.masks).values()]
    assert len({id(g) for _,g in seen})==1 and seen[0][1] is not torch.default_generator

def test_trap_05_resets_and_controls_leave_global_random_numbers_alone():
    learn = learner(drop_bn)
    learn.fit(1)
    learn.prune(.5)
    before = rng_states()
    learn.rewind('random_reinit', seed=1)
    shuffle_mask(learn.lottery.masks, generator(1,'x'))
    random_mask(learn.lottery.masks, generator(1,'x'))
    assert rng_states()==before

# --- 6: what is not finite

floats = torch.float16,torch.bfloat16,torch.float32,torch.float64,torch.complex64,torch.complex128
@pytest.mark.parametrize('v', [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize('dtype', floats, ids=str)
def test_trap_06_nothing_leaks_through_a_mask(v, dtype):
    "inf × 0 is nan; -x × 0 is -0"
    for shape in (7,), (5,4), (600,700), (3,2,4,4):
        g = torch.Generator().manual_seed(0)
        w,m = torch.randn(shape, generator=g).to(dtype),torch.rand(shape, generator=g)<.5
        want = torch.where(m, w, torch.zeros_like(w))
        w[~m] = v
        w[~m&(torch.rand(shape, generator=g)<.5)] = -1.
        hold_([w], [m])
        if w.is_complex(): w,want = torch.view_as_real(w),torch.view_as_real(want)
        assert torch.equal(w, want)
        assert not (torch.view_as_real(w) if w.is_complex() else w).double()[~m].signbit().any(), 'a plain 0, not -0'

def test_trap_06_nan_of_kept_weights_is_kept():
    "A mask hides nothing: what is wrong with a kept weight stays to be seen"
    w = torch.tensor([math.nan, math.inf, 1., -0.])
    old = w.clone()
    hold_([w], [torch.tensor([True,True,False,True])])
    assert w[:2].numpy().tobytes()==old[:2].numpy().tobytes() and w[2]==0 and w[3:].signbit().all()

@pytest.mark.parametrize('v', [math.inf, math.nan])
@pytest.mark.parametrize('opt', ['sgd_mom_wd','adam_l2','lamb','torch_adamw_fused'])
def test_trap_06_training_goes_on_where_pruned_gradients_are_not_finite(v, opt):
    "inf and nan in the gradients of pruned weights, at each step, stay there"
    learn = learner(opt_func=opts[opt])
    learn.fit(1)
    learn.prune(.5)
    def poison(learn):
        ws = named_weights(learn.model)
        for n,m in learn.lottery.masks.items(): ws[n].grad[~m] = v
    probe,bad = Probe(),At(range(8), poison, 'before_step')
    learn.fit_one_cycle(2, cbs=[probe, bad])
    assert bad.done==8 and probe.bad==[] and leaks(learn)==0
    if opt!='lamb': # Lamb scales a whole layer's step by its norm: that is not ours to mend
        assert all(torch.isfinite(p).all() for p in learn.model.parameters())

@pytest.mark.parametrize('v', [math.inf, -math.inf, math.nan])
def test_trap_06_pruning_what_is_not_finite_is_an_error(v):
    learn = learner()
    masks = learn.prune(.3)
    w = named_weights(learn.model)['0.weight']
    i = masks['0.weight'].nonzero()[3]
    w.data[tuple(i)] = v
    before = bits(learn.model)
    with pytest.raises(ValueError, match="'0.weight'.*not finite"): learn.prune(.3)
    with pytest.raises(ValueError, match="'0.weight'.*not finite"): learn.prune(.3, lambda w_f: w_f*math.nan)
    assert learn.lottery.masks==masks and bits(learn.model)==before

def test_trap_06_pruned_ones_do_not_count():
    "A score that is not finite on pruned weights is no reason to stop, and chooses none of them"
    learn = learner()
    a = learn.prune(.3)
    b = learn.prune(.3, lambda w_f,m: torch.where(m, w_f.abs(), torch.full_like(w_f, math.nan)))
    assert b.n_kept==a.n_kept-round(.3*a.n_kept) and (a&b)==b

# --- 7: masks stay on

def dense_file(learn, name='dense'):
    "A checkpoint of a dense net of this architecture, with no 0 in it"
    learn.save(name, with_opt=False)
    f = learn.path/learn.model_dir/f'{name}.pth'
    sd = torch.load(f)
    torch.save({k: torch.full_like(v, .5) for k,v in sd.items()}, f)
    return name

@pytest.fixture
def pruned(tmp_path):
    learn = learner(drop_bn, path=tmp_path, splitter=lambda m: [params(m[:4]), params(m[4:])])
    learn.fit(1)
    learn.prune(.5)
    return learn

def moved(l):
    l.model.double()
    l.model.float()

later = dict(
    fit=lambda l: l.fit(1), reset_opt=lambda l: l.fit(1, reset_opt=True), fit_one_cycle=lambda l: l.fit_one_cycle(1),
    fit_flat_cos=lambda l: l.fit_flat_cos(1), fit_sgdr=lambda l: l.fit_sgdr(1,1), fine_tune=lambda l: l.fine_tune(1),
    lr_find=lambda l: l.lr_find(num_it=12, show_plot=False), load_dense=lambda l: l.load(dense_file(l)),
    load_state_dict=lambda l: l.model.load_state_dict({k: torch.ones_like(v) for k,v in l.model.state_dict().items()}),
    freeze=lambda l: (l.freeze(), l.fit(1), l.unfreeze(), l.fit(1)), validate=lambda l: l.validate(),
    get_preds=lambda l: l.get_preds(), new_opt=lambda l: (setattr(l,'opt',None), l.fit(1)),
    half=lambda l: (moved(l), l.fit(1)), moved=lambda l: (moved(l), l.rewind()),
    moved_load=lambda l: (moved(l), l.load(dense_file(l))),
    new_data=lambda l: ([setattr(p,'data',torch.ones_like(p)) for p in l.model.parameters()], l.lottery.hold()),
    prune_0=lambda l: l.prune(0), rewind=lambda l: l.rewind(), keep=lambda l: l.rewind('keep'),
    random_reinit=lambda l: l.rewind('random_reinit'))

@pytest.mark.parametrize('what', later)
def test_trap_07_masks_stay_on(pruned, what):
    learn,masks,probe = pruned,pruned.lottery.masks,Probe()
    learn.add_cb(probe)
    later[what](learn)
    assert probe.bad==[] and leaks(learn)==0 and learn.lottery.masks==masks
    learn.fit(1)
    assert probe.bad==[] and leaks(learn)==0 and learn.lottery.masks==masks and masks.density==.5

@pytest.mark.parametrize('what', ['fit','load_dense','fine_tune'])
def test_trap_07_until_unprune(pruned, what):
    learn,masks = pruned,pruned.lottery.masks
    learn.unprune()
    assert learn.lottery.masks.density==1 and leaks(learn)==0
    later[what](learn)
    ws = named_weights(learn.model, masks)
    assert all((ws[n].data[~m]!=0).any() for n,m in masks.items())

def test_trap_07_a_callback_that_was_removed_holds_nothing(pruned):
    "and its hook in the model neither fails nor masks"
    learn,masks = pruned,pruned.lottery.masks
    learn.remove_cb(LotteryCallback)
    learn.load(dense_file(learn))
    assert all((p==.5).all() for p in named_weights(learn.model, masks).values())

# --- 8, 9: nothing to prune, empty layers, biases

acts = dict(prune=lambda l: l.prune(.2), fit=lambda l: l.fit(1), fit_lottery=lambda l: l.fit_lottery(1))
@pytest.mark.parametrize('act', acts.values(), ids=acts)
def test_trap_08_nothing_prunable_says_what_there_is(act):
    learn = learner(lambda: nn.Sequential(rms(8), nn.BatchNorm1d(8)), data(classes=8))
    with pytest.raises(ValueError, match=r'nothing prunable.*0\.weight, 1\.weight, 1\.bias'): act(learn)

@pytest.mark.parametrize('kw', [dict(include='nope.*'), dict(exclude='heda'), dict(include='0.wieght')])
def test_trap_08_a_glob_without_a_match_is_a_typing_error(kw):
    with pytest.raises(ValueError, match=r"matches no parameter; the model has 0\.weight, 0\.bias"):
        learner(cbs=LotteryCallback(**kw)).prune(.2)

def test_trap_08_reports_show_measured_zeros():
    "Not the target: zeros are counted in the weights that were trained"
    learn = learner()
    rounds = learn.fit_lottery(1, 3, amount=.3)
    df = learn.lottery.report(full=True)
    for r,d,k in zip(rounds, df.density, df.kept): assert k==r.masks.n_kept and d==k/df.prunable[0]
    zeros = sum(int((p==0).sum()) for p in named_weights(learn.model, learn.lottery.masks).values())
    assert df.kept.iloc[-1]==df.prunable.iloc[-1]-zeros

def test_trap_08_a_pruned_weight_that_moved_shows_in_the_report():
    "Another callback writes to pruned weights after the last moment that we look: the report must not repeat what was asked for"
    class Leak(Callback):
        def before_validate(self):
            ws = named_weights(self.learn.model)
            for n,m in self.learn.lottery.masks.items(): ws[n].data[~m] = 1.
    learn = learner(cbs=[LotteryCallback(), Leak()])
    learn.fit_lottery(1, 1, amount=.5)
    assert list(learn.lottery.report().density)==[1,1] and learn.lottery.masks.density==.5

def test_trap_09_a_layer_left_empty_is_named():
    learn = learner()
    with torch.no_grad(): learn.model[2].weight.mul_(1e-3)
    with pytest.warns(EmptyLayerWarning, match=r'no weight is left in 2\.weight'): learn.prune(.6)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn.prune(.1)    # named once

@pytest.mark.parametrize('scope', [global_, local], ids=['global','local'])
def test_trap_09_a_floor_for_each_layer(scope):
    learn = learner()
    with torch.no_grad(): learn.model[2].weight.mul_(1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        masks = learn.prune(.6, scope=partial(scope, floor=7))
    went = sum(round(.6*n) for n in ([288] if scope is global_ else [96,144,48]))
    assert all(m.sum()>=7 for m in masks.values()) and masks.n_kept==288-went
    if scope is global_: assert masks['2.weight'].sum()==7
    with pytest.raises(ValueError, match='floor=40'): learn.prune(.9, scope=partial(scope, floor=40))

def test_trap_09_biases_and_norms_are_out_by_default():
    assert prunable(conv_bn())==['0.weight','3.weight','7.weight']
    assert prunable(nn.LSTM(3,4))==['weight_ih_l0','weight_hh_l0']
    assert prunable(nn.MultiheadAttention(4,2))==['in_proj_weight','out_proj.weight']
    assert prunable(conv_bn(), types=nn.BatchNorm2d)==['1.weight','4.weight']
    learn = learner(conv_bn, data(shape=(1,6,6)))
    assert learn.lottery.names()==['0.weight','3.weight','7.weight']
    before = bits(learn.model)
    learn.prune(.9)
    after = bits(learn.model)
    assert {k for k in before if before[k]!=after[k]}=={'0.weight','3.weight','7.weight'}
    names = learner(conv_bn, cbs=LotteryCallback(bias=True)).lottery.names()
    assert names==['0.weight','0.bias','3.weight','3.bias','7.weight','7.bias']
    learn = learner(mlp, cbs=LotteryCallback(bias=True))
    with torch.no_grad(): learn.model[0].bias.fill_(9)
    masks = learn.prune(.5)
    assert masks['0.bias'].all() and masks.numel==288+28 and masks.n_kept==158

# --- 24: tied weights, and very many of them

def test_trap_24_tied_weights_count_once_and_stay_tied():
    learn = learner(Tied)
    m = learn.model
    def tied(): return m.enc.weight is m.dec.weight and m.enc.weight.data_ptr()==m.dec.weight.data_ptr()
    learn.fit(1)
    masks = learn.prune(.5)
    assert masks.numel==64+32 and list(masks)==['enc.weight','head.weight']
    fresh,again = partial(learn.rewind, 'random_reinit'),partial(learn.fit_lottery, 1, 1)
    for f in (partial(learn.fit, 1), learn.rewind, fresh, learn.unprune, again):
        f()
        assert tied() and leaks(learn)==0

def test_trap_24_tied_weights_chosen_by_their_second_name():
    learn = learner(Tied, cbs=LotteryCallback(include='dec'))
    assert learn.lottery.names()==['dec.weight']
    learn.fit(1)
    m = learn.prune(.5)['dec.weight']
    learn.rewind()
    assert torch.equal(learn.model.enc.weight, learn.lottery.w_i['enc.weight']*m)
    learn.rewind(lambda w_k: 2*w_k)
    want = 2*learn.lottery.w_i['enc.weight']*m
    assert torch.equal(learn.model.enc.weight, want), 'a reset should reach a weight under whichever name it was chosen'

def test_trap_24_more_than_16_7_million_in_one_scope():
    "torch.quantile refuses so many, and float32 counts only to 2^24"
    w = torch.randint(0, 1000, (4100,4100), generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    ws = dict(a=w[:100], b=w[100:])
    new = make_masks(ws, Masks.ones(ws), .3)
    k = round(.3*w.numel())
    assert w.numel()>2**24 and new.n_kept==w.numel()-k
    kept = torch.cat(list(new.values()))
    t = int(w[~kept].max())
    assert int((w<t).sum()) <= k <= int((w<=t).sum()) and bool(kept[w>t].all()) and not bool(kept[w<t].any())

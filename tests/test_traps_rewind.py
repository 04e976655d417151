"Traps 10-16 and 18: rewinding"
import inspect,warnings
import pytest
from nets import *

# --- 10, 11: everything comes back

@pytest.mark.parametrize('name', zoo)
def test_trap_10_the_rewind_covers_the_whole_state(name):
    learn = from_zoo(name)
    start = state(learn.model)
    learn.fit_one_cycle(2)
    moved = {k for k,v in bits(start).items() if v!=bits(learn.model)[k]}
    copies = {f'body.rnns.{i}.module.weight_hh_l0' for i in (0,1)}    # of AWD_LSTM's raw matrices
    assert moved >= named_weights(learn.model).keys()-copies, 'all should have moved, or there is nothing to show'
    masks = learn.prune(.5)
    learn.rewind()
    got = state(learn.model)
    by_id = {id(q):o for o,q in named_weights(learn.model, masks).items()}
    alias = {n:by_id[id(p)] for n,p in named_weights(learn.model).items() if id(p) in by_id}
    assert bits(got)==bits(under(start, {n:masks[o] for n,o in alias.items()}))
    for n,m in masks.items(): assert torch.equal(got[n][m], start[n][m]) and not got[n][~m].any()

@pytest.mark.parametrize('name', zoo)
def test_trap_10_weight_matrices_are_prunable(name):
    "and their masks hold while such a net trains"
    learn,probe = from_zoo(name),Probe()
    assert set(zoo[name][3]) <= set(learn.lottery.names())
    learn.fit_one_cycle(1)
    masks = learn.prune(.5, scope=local)
    assert all(masks[n].sum()==masks[n].numel()-round(.5*masks[n].numel()) for n in zoo[name][3])
    learn.fit_one_cycle(2, cbs=probe)
    assert probe.steps==8 and probe.bad==[] and leaks(learn)==0

@pytest.mark.parametrize('name', zoo)
@pytest.mark.filterwarnings('ignore:.*fresh draw.*')
def test_trap_10_lotteries_of_all_these_nets(name):
    learn = from_zoo(name)
    rounds = learn.fit_lottery(1, 2, amount=.4, seed=1)
    start = bits(rounds[0].start)
    assert [r['kept'] for r in rounds]==[r.masks.n_kept for r in rounds] and leaks(learn)==0
    assert all(bits(r.start)==start for r in rounds)

def test_trap_10_batchnorm_statistics_come_back():
    learn = from_zoo('batchnorm')
    learn.fit(2)
    bn = learn.model[1]
    assert bn.num_batches_tracked==8 and bn.running_mean.any()
    learn.rewind()
    assert bn.num_batches_tracked==0 and not bn.running_mean.any() and (bn.running_var==1).all()
    assert (bn.weight==1).all()

def test_trap_10_awd_lstm_computes_with_the_rewound_weights():
    "`WeightDropout` holds a copy of the recurrent matrix beside the parameter: outputs must follow the parameter"
    learn = from_zoo('awd_lstm')
    x = learn.dls.valid.one_batch()[0]
    def out():
        learn.model.eval()
        learn.model.reset()
        return learn.model(x).detach()
    a = out()
    learn.fit_one_cycle(1)
    learn.rewind()
    assert torch.equal(out(), a)
    learn.prune(.5)
    raw = learn.model.body.rnns[0]
    out()
    assert torch.equal(raw.module.weight_hh_l0.detach(), raw.weight_hh_l0_raw.detach())
    assert not raw.module.weight_hh_l0[~learn.lottery.masks['body.rnns.0.weight_hh_l0_raw']].any()

@pytest.mark.parametrize('name', ['batchnorm','awd_lstm','attention','tied'])
def test_trap_11_rewind_again_and_again(name):
    "A peer's snapshot was the weights themselves after the first rewind"
    learn = from_zoo(name)
    first,seen = None,set()
    for k in range(4):
        learn.fit_one_cycle(1)
        first = first or digest(learn.lottery.w_k)
        seen.add(digest(learn.model))
        learn.rewind()
        assert digest(learn.model)==digest(learn.lottery.w_k)==first
        learn.rewind()
        assert digest(learn.model)==first
    assert first not in seen
    ptrs = {v.data_ptr() for v in learn.model.state_dict().values()}
    assert not any(v.data_ptr() in ptrs for v in learn.lottery.w_k.values())

def test_trap_11_editing_the_model_leaves_the_snapshot_alone():
    learn = learner()
    learn.fit(1)
    learn.rewind()
    for p in learn.model.parameters(): p.data.fill_(3.)
    learn.rewind()
    assert not any((p==3).any() for p in learn.model.parameters())
    for o in learn.lottery.known(learn.lottery.names(), [], None)['w_f'].values(): assert not o.requires_grad

# --- 12: what was not chosen

@pytest.mark.parametrize('kw',
                         [dict(include='2'), dict(exclude=['0','4.*']),
                          dict(types=nn.Linear, include='2.weight')], ids=str)
def test_trap_12_modules_outside_the_subset_are_untouched(kw):
    learn = learner(cbs=LotteryCallback(**kw))
    start = bits(learn.model)
    learn.fit_one_cycle(1)
    trained = bits(learn.model)
    assert list(learn.prune(.5))==['2.weight']
    now = bits(learn.model)
    assert {k for k in now if now[k]!=trained[k]}=={'2.weight'}, 'a prune should change nothing but what it prunes'
    learn.lottery.hold()
    assert bits(learn.model)==now
    learn.rewind()
    now = bits(learn.model)
    assert {k for k in now if now[k]!=start[k]}=={'2.weight'}

    learn.fit(1)
    assert all(v!=start[k] for k,v in bits(learn.model).items()), 'they train like any other'

def test_trap_12_a_module_itself_can_be_named():
    m = mlp()
    learn = learner(m, cbs=LotteryCallback(exclude=m[4]))
    assert learn.lottery.names()==['0.weight','2.weight']
    with pytest.raises(ValueError, match='no part of the model'):
        learner(cbs=LotteryCallback(exclude=nn.Linear(2,2))).prune(.1)

# --- 13, 14: rewind points and schedules

fits = dict(fit_one_cycle=(Learner.fit_one_cycle, dict(lr_max=.02)),
            fit_flat_cos=(Learner.fit_flat_cos, dict(lr=.02)), fit=(Learner.fit, dict(lr=.02)))

@pytest.mark.parametrize('at,k', [('init',0), ('1it',1), ('3it',3), ('5it',5), ('1ep',4), ('2ep',8), ('9it',9)])
@pytest.mark.parametrize('fit', fits)
def test_trap_13_training_goes_on_from_the_rewind_point(at, k, fit):
    "with the schedule's value of that step, and the weights of that step"
    lrs,seen = Lrs(),{}
    learn = learner(cbs=[LotteryCallback(at), lrs])
    f,kw = fits[fit]
    class Weights(Callback):
        order,run_valid = -50,False
        def before_batch(self):
            if self.train_iter==k: seen.setdefault(len(lrs.fits)-1, state(self.learn.model))
    learn.add_cb(Weights())
    rounds = learn.fit_lottery(3, 2, amount=.3, fit=f, seed=4, **kw)
    dense,*later = lrs.fits
    assert len(dense['lr'])==12 and len(later)==2
    assert bits(learn.lottery.w_k)==bits(seen[0])
    for i,o in enumerate(later, 1):
        assert o['lr']==dense['lr'][k:] and o['mom']==dense['mom'][k:] and o['iter']==list(range(k,12))
        assert bits(seen[i])==bits(under(seen[0], rounds[i].masks))
    assert [r['iterations'] for r in rounds]==[12,12-k,12-k]
    assert len(learn.recorder.lrs)==12-k and learn.recorder.lrs==dense['lr'][k:]

def test_trap_13_without_pruning_the_dense_rest_is_repeated():
    "From iteration 3 with the same order of data: with an optimizer without memory, the same bits"
    lrs = Lrs()
    learn = learner(cbs=[LotteryCallback('3it'), lrs], opt_func=SGD)
    rounds = learn.fit_lottery(3, 0, seed=4)
    dense = bits(learn.model)
    learn.fit_ticket(rounds[0].ticket, 3, seed=4)
    a,b = lrs.fits
    assert b['x']==a['x'][3:] and b['loss']==a['loss'][3:] and bits(learn.model)==dense

@pytest.mark.parametrize('at', ['12it','3ep','500it'])
def test_trap_13_a_point_after_the_end_is_an_error(at):
    learn = learner(cbs=LotteryCallback(at))
    before = bits(learn.model)
    with pytest.raises(ValueError, match=f"'{at}'.*only 12"): learn.fit_lottery(3, 1)
    assert bits(learn.model)==before

@pytest.mark.parametrize('at', ['2x','it','-1it','1.5ep','',None,-3,True,2.5,'ep2','2 ep','100%','%','-1%'])
def test_trap_13_an_unreadable_point_is_an_error(at):
    with pytest.raises(ValueError, match="`rewind_to` should be 'init', '<n>it' or '<n>ep'"): LotteryCallback(at)

def test_trap_13_nothing_to_rewind_to_yet():
    learn = learner(cbs=LotteryCallback('3it'))
    with pytest.raises(ValueError, match="nothing to rewind to yet.*'3it'"): learn.rewind()

@pytest.mark.parametrize('fit', fits)
def test_trap_14_equal_schedules(fit):
    "Same steps, same highest learning rate in each round"
    lrs = Lrs()
    f,kw = fits[fit]
    learn = learner(cbs=[LotteryCallback(), lrs], opt_func=Adam)
    learn.fit_lottery(2, 3, fit=f, **kw)
    assert len(lrs.fits)==4
    for o in lrs.fits: assert o['lr']==lrs.fits[0]['lr'] and o['mom']==lrs.fits[0]['mom'] and len(o['lr'])==8
    assert max(lrs.fits[0]['lr'])==pytest.approx(.02) if fit!='fit_one_cycle' else max(lrs.fits[0]['lr'])>.015

def test_trap_14_fine_tune_in_each_round():
    lrs = Lrs()
    learn = learner(drop_bn, cbs=[LotteryCallback(), lrs], splitter=lambda m: [params(m[:4]), params(m[4:])])
    rounds = learn.fit_lottery(2, 2, fit=Learner.fine_tune, base_lr=.02)
    assert len(lrs.fits)==6                    # frozen and thawed, three times
    for i in (0,1):
        for o in lrs.fits[i::2]: assert o['groups']==lrs.fits[i]['groups'] and len(o['lr'])==(4,8)[i]
    assert [r['iterations'] for r in rounds]==[12]*3

# --- 15: a fresh optimizer

def moments(opt): return {k for o in opt.state.values() for k in o}-{'force_train','do_wd'}

@pytest.mark.parametrize('opt', ['sgd','adam','ranger','lamb','torch','fused'])
def test_trap_15_moments_are_gone(opt):
    opts = dict(sgd=partial(SGD,mom=.9), adam=Adam, ranger=ranger, lamb=Lamb,
                torch=partial(OptimWrapper, opt=torch.optim.AdamW))
    opt = {**opts, 'fused':partial(OptimWrapper, opt=torch.optim.Adam, fused=True)}[opt]
    learn = learner(drop_bn, opt_func=opt)
    learn.fit_one_cycle(1)
    inner = lambda: getattr(learn.opt,'opt',learn.opt)
    assert moments(inner()) and (o := learn.opt)
    groups = [[id(p) for p in g] for g in learn.opt.param_lists]
    learn.prune(.3)
    learn.rewind()
    assert learn.opt is o and not moments(inner()) and [[id(p) for p in g] for g in learn.opt.param_lists]==groups
    assert all(p.grad is None or not p.grad.any() for p in learn.model.parameters())

@pytest.mark.parametrize('opt', [Adam, ranger, partial(OptimWrapper, opt=torch.optim.AdamW)],
                         ids=['adam','ranger','torch'])
def test_trap_15_a_rewound_net_trains_as_a_new_one_does(opt):
    "Bit for bit: nothing of the first training is left in the optimizer"
    learn = learner(drop_bn, opt_func=opt)
    start = state(learn.model)
    seed_all(learn)
    learn.fit_one_cycle(2, .02, wd=.1)
    first = bits(learn.model)
    learn.rewind()
    seed_all(learn)
    learn.fit_one_cycle(2, .02, wd=.1)
    assert bits(learn.model)==first
    masks = learn.prune(.4)
    learn.rewind()
    seed_all(learn)
    learn.fit_one_cycle(2, .02, wd=.1)
    other = learner(drop_bn, opt_func=opt)
    load_(other.model, start)
    other.lottery.remember()
    other.lottery.set_masks(masks)
    seed_all(other)
    other.fit_one_cycle(2, .02, wd=.1)
    assert bits(learn.model)==bits(other.model)

def test_trap_15_freezing_and_hyper_state_survive():
    "`fit(reset_opt=True)` makes a new optimizer, in which nothing is frozen"
    def thirds(m): return [params(m[:4]), params(m[4:8]), params(m[8:])]
    learn = learner(drop_bn, opt_func=Adam, splitter=thirds, wd_bn_bias=False, train_bn=True,
                    cbs=LotteryCallback(frozen=True))
    learn.fit(1)
    learn.freeze_to(1)
    learn.fit(1, slice(1e-4,1e-2))
    def kept():
        s = lambda k: [k in learn.opt.state[p] and learn.opt.state[p][k] for p in learn.model.parameters()]
        return learn.opt.frozen_idx,s('do_wd'),s('force_train'),[p.requires_grad for p in learn.model.parameters()]
    was = kept()
    assert was[0]==1 and False in was[1][1:] and True in was[2] and False in was[3]
    learn.prune(.3)
    learn.rewind()
    assert kept()==was
    learn.lottery.fresh_opt()
    assert kept()==was and not moments(learn.opt)

def test_trap_15_hyper_parameters_start_again():
    "Left by a schedule at its end, `lr` and `mom` are those of the start; `wd` too"
    learn = learner(opt_func=Adam, splitter=lambda m: [params(m[:2]), params(m[2:])])
    learn.create_opt()
    learn.opt.set_hyper('eps', 1e-3)
    hs = []
    class H(Callback):
        def before_train(self): hs.append([dict(h) for h in self.learn.opt.hypers])
    learn.fit_one_cycle(1, slice(1e-3,1e-2), wd=.2, cbs=H())
    assert [h['lr'] for h in learn.opt.hypers]!=[h['lr'] for h in hs[0]]
    learn.rewind()
    assert [dict(h) for h in learn.opt.hypers]==hs[0] and hs[0][0]['eps']==1e-3 and hs[0][0]['wd']==.2

def test_trap_15_lookaheads_slow_weights_are_made_again():
    learn = learner(opt_func=partial(ranger, k=3))
    learn.fit(1)
    assert learn.opt.slow_weights is not None and learn.opt.count==4
    learn.prune(.5)
    learn.rewind()
    assert learn.opt.slow_weights is None and learn.opt.count==0
    learn.fit(1, cbs=(probe := Probe()))
    start = under(learn.lottery.w_k, learn.lottery.masks)
    assert probe.bad==[] and len(learn.opt.slow_weights[0])==6

# --- 16: the last round ends trained

kinds = {'dense':dict(rounds=0), 'three':dict(rounds=3), 'one shot':dict(rounds=1, amount=.9), 'to':dict(to=.3),
         'fine_tune':dict(rounds=2, fit=Learner.fine_tune)}
@pytest.mark.parametrize('kw', kinds.values(), ids=kinds)
def test_trap_16_the_last_round_ends_trained(kw):
    learn = learner()
    if 'fit' in kw: learn = learner(splitter=lambda m: [params(m[:2]), params(m[2:])])
    rounds = learn.fit_lottery(2, seed=1, **kw)
    last = rounds[-1]
    assert learn.lottery.masks==last.masks and leaks(learn)==0
    now,start = state(learn.model),under(last.start, last.masks)
    assert all(not torch.equal(now[k], start[k]) for k in now)
    assert learn.evaluate()=={k:last[k] for k in ('valid_loss','accuracy')}
    assert list(learn.validate())==pytest.approx([last['valid_loss'],last['accuracy']])

# --- 18: the snapshot is taken once

def snapshot_of(learn): return bits(learn.lottery.w_i),None if learn.lottery.w_k is None else bits(learn.lottery.w_k)

def interrupted(learn):
    for it in (0,2,5):
        with pytest.raises(KeyboardInterrupt):
            learn.fit_one_cycle(2, cbs=At(it, raiser(KeyboardInterrupt), 'before_step'))
def saved_and_loaded(learn):
    learn.save('m')
    learn.load('m')
def pruned_twice(learn):
    learn.prune(.5)
    learn.rewind()
    learn.prune(.5)
happens = dict(interrupt=interrupted, load=saved_and_loaded, prune=pruned_twice,
               cancel=lambda l: l.fit_one_cycle(2, cbs=At(3, raiser(CancelFitException), 'before_batch')),
               lr_find=lambda l: l.lr_find(num_it=10, show_plot=False), one_batch=lambda l: l.one_batch(0, l.dls.train.one_batch()),
               **{k:lambda l, k=k: getattr(l, k)(2) for k in ('fit','fit_one_cycle','fine_tune')},
               **{k:lambda l, k=k: getattr(l, k)() for k in ('validate','get_preds','evaluate')})

@pytest.mark.parametrize('at', ['init','3it','1ep'])
@pytest.mark.parametrize('what', happens)
def test_trap_18_nothing_overwrites_the_snapshot(what, at, tmp_path):
    learn = learner(cbs=LotteryCallback(at), path=tmp_path, splitter=lambda m: [params(m[:2]), params(m[2:])])
    start = bits(learn.model)
    learn.fit_one_cycle(2)
    was = snapshot_of(learn)
    assert was[0]==start and (was[1]==start)==(at=='init')
    happens[what](learn)
    assert snapshot_of(learn)==was
    learn.fit_one_cycle(2)
    assert snapshot_of(learn)==was
    learn.unprune()
    learn.rewind()
    assert bits(learn.model)==was[1]

@pytest.mark.parametrize('what', ['validate','get_preds','lr_find','evaluate'])
@pytest.mark.parametrize('at', ['init','2it'])
def test_trap_18_only_training_takes_it(what, at, tmp_path):
    "Before any training they take none; the one that training takes is right"
    learn = learner(drop_bn, cbs=LotteryCallback(at), path=tmp_path)
    if what=='lr_find': learn.lr_find(num_it=10, show_plot=False)
    else: getattr(learn, what)()
    assert learn.lottery.w_i is None and learn.lottery.w_k is None
    learn.model[0].weight.data.fill_(.25)        # such as loading pretrained weights
    start = bits(learn.model)
    learn.fit(1)
    assert bits(learn.lottery.w_i)==start and (bits(learn.lottery.w_k)==start)==(at=='init')

def test_trap_18_an_interrupt_before_the_point_leaves_none():
    learn = learner(cbs=LotteryCallback('5it'))
    start = bits(learn.model)
    with pytest.raises(KeyboardInterrupt): learn.fit(2, cbs=At(3, raiser(KeyboardInterrupt)))
    assert learn.lottery.w_k is None and bits(learn.lottery.w_i)==start
    rounds = learn.fit_lottery(2, 1, seed=1)
    assert bits(rounds[0].start)!=start
    other = learner(cbs=LotteryCallback('5it'))
    again = other.fit_lottery(2, 1, seed=1)
    assert bits(again[0].start)==bits(rounds[0].start), 'a lottery begins at the initial weights, not at what an interrupted fit left'

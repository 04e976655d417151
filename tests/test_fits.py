"A training of whatever fits: where the rewind point lies in it, where a round goes on, and that looking changes nothing"
import warnings
import pytest
from nets import *
from fastai.callback.all import *
from fastai.callback.training import ShortEpochCallback
import fastai_lottery.nets            # `fit_drops`
from fastai_lottery.data import TensorDL,TensorDS
for _n in [o for o in globals() if o.startswith("test")]: del globals()[_n]

def rows(n=64):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=g)
    return list(zip(x, (x[:,:3].sum(1)>0).long()))

def loaders(bs=8):
    "Eight batches an epoch, always in the same order"
    return DataLoaders(DataLoader(rows(), bs=bs, shuffle=False), DataLoader(rows(16), bs=16), device='cpu')

def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6,12), nn.ReLU(), nn.Linear(12,8), nn.ReLU(), nn.Linear(8,2))

def halves(m): return [list(m[:2].parameters()), list(m[2:].parameters())]

def plain(rewind_to='init', cbs=(), opt=SGD, **kw):
    "A Learner of plain SGD, in two parameter groups"
    opt = partial(opt, mom=0.) if opt is SGD else opt
    learn = Learner(loaders(), net(), loss_func=CrossEntropyLossFlat(), opt_func=opt, metrics=accuracy, splitter=halves,
                    lr=.1,
                    cbs=[LotteryCallback(rewind_to=rewind_to), *cbs], **kw)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

# --- ways to train

def two_fits(learn, n, **kw):
    learn.fit(n, lr=.1)
    learn.fit(n, lr=.05)
def warm_up(learn, n, **kw):
    learn.fit(1, lr=.01)
    learn.fit_one_cycle(n, lr_max=.2)
def three_with_freezing(learn, n, **kw):
    learn.freeze()
    learn.fit_one_cycle(1, lr_max=.1)
    learn.unfreeze()
    learn.fit_flat_cos(n, lr=.1)
    learn.fit(1, lr=slice(.01,.05))
def reads_the_last_rate(learn, n, **kw):
    learn.fit_flat_cos(n, lr=.2)
    learn.fit(n, lr=float(learn.opt.hypers[-1]['lr'])*10+.01)
def fine(learn, n, **kw): learn.fine_tune(n, base_lr=.1)
def resumed(learn, n, **kw): learn.fit_one_cycle(n+2, lr_max=.1, start_epoch=2)

class Counts(Callback):
    "Scales the loss by what it has counted since its fit began"
    def before_fit(self): self.seen = 0
    def after_loss(self):
        if not self.training: return
        self.seen += 1
        self.learn.loss_grad = self.loss_grad*(1+.01*self.seen)

# Name → way to fit, its arguments, makers of callbacks
ways = dict(
    fit=(Learner.fit, {}, []),
    one_cycle=(Learner.fit_one_cycle, dict(lr_max=.1), []),
    flat_cos=(Learner.fit_flat_cos, dict(lr=.1), []),
    sgdr=(Learner.fit_sgdr, dict(cycle_len=1, lr_max=.1), []),
    drops=(Learner.fit_drops, dict(lr=.1), []),
    fine_tune=(Learner.fine_tune, dict(base_lr=.1), []),
    fine_lambda=(fine, {}, []),
    two_fits=(two_fits, {}, []),
    warm_up=(warm_up, {}, []),
    three=(three_with_freezing, {}, []),
    rate=(reads_the_last_rate, {}, []),
    resumed=(resumed, {}, []),
    start_epoch=(Learner.fit, dict(start_epoch=1), []),
    short=(Learner.fit_one_cycle, {}, [lambda: ShortEpochCallback(.5, short_valid=False)]),
    short_both=(two_fits, {}, [lambda: ShortEpochCallback(.4)]),
    accumulation=(Learner.fit_one_cycle, {}, [lambda: GradientAccumulation(24)]),
    early=(Learner.fit, {}, [lambda: EarlyStoppingCallback(patience=1, min_delta=9.)]),
    plateau=(Learner.fit, {}, [lambda: ReduceLROnPlateau(patience=0, min_delta=9.)]),
    counts=(two_fits, {}, [Counts]),
    clip=(warm_up, {}, [lambda: GradientClip(.1)]))

def played(way, to, path=None, seed=None, rounds=1, amount=0):
    fit,kw,cbs = ways[way]
    learn = plain(to, [f() for f in cbs])
    ends = []
    class Keep(Callback):
        order = 100
        def after_fit(self): ends.append((len(self.learn.lottery.rounds), bits(self.learn.model)))
    learn.add_cb(Keep())
    learn.fit_lottery(3, rounds=rounds, amount=amount, fit=fit, path=path, seed=seed, **kw)
    return learn,dict(ends)

@pytest.mark.parametrize('to', ['1it','5it','8it','11it','1ep'])
@pytest.mark.parametrize('way', ways)
def test_a_late_round_that_prunes_nothing_repeats_the_dense_round(way, to):
    "The law of late rewinding, for each way to train: to the last bit"
    learn,ends = played(way, to)
    dense,again = learn.lottery.rounds
    at = int(to[:-2]) if to.endswith('it') else 5 if 'short' in way else 8
    assert ends[0]==ends[1]
    assert again['iterations']==dense['iterations']-at and again['valid_loss']==dense['valid_loss']

@pytest.mark.parametrize('way', ['fit','fine_tune','two_fits','short','resumed'])
def test_a_share_of_the_iterations_becomes_a_number(way):
    learn,_ = played(way, '25%', rounds=2)
    rs = learn.lottery.rounds
    k = round(.25*8*(4 if way=='fine_tune' else 3))
    assert learn.lottery.rewind_to.n==k==rs[2]['rewind_it'] and str(learn.lottery.rewind_to)==f'{k}it'
    assert rs[1]['rewind_share']==k/rs[0]['iterations']
    assert rs[1]['iterations']==rs[2]['iterations']==rs[0]['iterations']-k

@pytest.mark.parametrize('to', [11, '11it'])
def test_a_number_is_a_number_of_iterations(to):
    assert [r['iterations'] for r in played('two_fits', to)[0].lottery.rounds]==[48,37]

def test_two_fits_and_a_warm_up():
    "A rewind point in the first of two fits, and one behind a warm-up"
    assert [r['iterations'] for r in played('two_fits', '8it')[0].lottery.rounds]==[48,40]
    assert [r['iterations'] for r in played('warm_up', '10it')[0].lottery.rounds]==[32,22]

@pytest.mark.parametrize('way,to', [('early','20it'), ('short','20it'), ('two_fits','60it')])
def test_a_point_that_is_not_reached_keeps_the_dense_round(way, to):
    fit,kw,cbs = ways[way]
    learn = plain(to, [f() for f in cbs])
    with pytest.raises(ValueError,
                       match=f"'{to}' was not reached: the dense training ended after \\d+ iterations. It is kept as round 0"):
        learn.fit_lottery(3, rounds=2, fit=fit, **kw)
    assert len(learn.lottery.rounds)==1
    learn.fit_lottery(3, rounds=0, fit=fit, **kw)

def test_what_cannot_be_reached_is_refused_before_the_dense_round():
    learn = plain('24it')
    with pytest.raises(ValueError, match="iteration 24, but this training has only 24"): learn.fit_lottery(3, rounds=1)
    with pytest.raises(ValueError, match="iteration 24, but this training has only 16"):
        learn.fit_lottery(4, rounds=1, start_epoch=2)
    assert not learn.lottery.rounds

def test_fine_tune_bound_to_the_learner_and_a_function_of_that_name():
    learn = plain('5it')
    learn.fit_lottery(2, rounds=1, fit=learn.fine_tune, base_lr=.1)
    def fine_tune(learn, n): learn.fit(n, lr=.1)
    other = plain('5it')
    other.fit_lottery(2, rounds=1, fit=fine_tune)
    assert [r['iterations'] for r in learn.lottery.rounds]==[24,19]
    assert [r['iterations'] for r in other.lottery.rounds]==[16,11]

@pytest.mark.parametrize('way', ['one_cycle','fine_tune','two_fits','accumulation','three'])
def test_a_ticket_goes_on_where_its_rounds_did(way, tmp_path):
    "From memory bit for bit; from a file as well, but for an accumulation that is under way"
    learn,_ = played(way, '11it', seed=3, rounds=2, amount=.3)
    fit,kw,_ = ways[way]
    t,want = learn.lottery.ticket(2),learn.lottery.rounds[2]
    r = learn.fit_ticket(t, 3, fit=fit, seed=3, **kw)
    assert r['valid_loss']==want['valid_loss'] and r['iterations']==want['iterations']
    other = plain('11it', [f() for f in ways[way][2]])
    r = other.fit_ticket(Ticket.load(t.save(tmp_path/'t')), 3, fit=fit, seed=3, **kw)
    assert r['iterations']==want['iterations'] and (way=='accumulation' or r['valid_loss']==want['valid_loss'])

def test_a_ticket_whose_place_the_training_has_not():
    learn,_ = played('two_fits', '30it')
    with pytest.raises(ValueError, match='iteration 30, in fit 2 .*this training ended before: it had 1 fit'):
        learn.fit_ticket(learn.lottery.ticket(), 5, fit=Learner.fit)

class Stop(Callback):
    "Ends the process, as it were, after so many batches"
    order,left = 200,None
    def after_batch(self):
        if not self.training or Stop.left is None: return
        Stop.left -= 1
        if Stop.left==0: raise KeyboardInterrupt

@pytest.mark.parametrize('to', ['init','5it','13it'])
@pytest.mark.parametrize('way', ['fine_tune','two_fits','accumulation','warm_up','counts'])
def test_stopped_in_any_of_its_fits_it_goes_on_bit_equal(way, to, tmp_path):
    "Ended by an error at every sixth batch of the whole lottery, and called again"
    fit,kw,cbs = ways[way]
    def go(path):
        learn = plain(to, [*[f() for f in cbs], Stop()])
        learn.fit_lottery(3, rounds=2, amount=.3, fit=fit, seed=1, path=path, **kw)
        return bits(learn.model),[{k:v for k,v in r.row.items() if k!='seconds'} for r in learn.lottery.rounds]
    Stop.left = None
    want = go(None)
    for i in range(60):
        Stop.left = 14+i
        try: got = go(tmp_path/'run')
        except KeyboardInterrupt: continue
        break
    assert i>3 and got==want

# --- layers that a training freezes and unfreezes

def wrapped(learn, n, **kw): return learn.fine_tune(n, **kw)
def by_hand(learn, n, **kw):
    learn.freeze()
    learn.fit(1)
    learn.unfreeze()
    learn.fit(n)

@pytest.mark.parametrize('way', [Learner.fine_tune, wrapped, by_hand], ids=lambda f: f.__name__)
def test_layers_that_a_training_unfreezes_are_pruned_and_nothing_is_said(way):
    learn = plain()
    learn.freeze()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        rs = learn.fit_lottery(1, rounds=1, amount=.5, scope='local', fit=way)
    assert all(m.sum()==m.numel()//2 for m in rs[1].masks.values())

def stays_frozen(learn, n, **kw): learn.fit(n)

@pytest.mark.parametrize('way', [Learner.fit, stays_frozen], ids=lambda f: f.__name__)
def test_layers_that_stay_frozen_are_said(way):
    learn = plain()
    for p in learn.model[:4].parameters(): p.requires_grad_(False)
    with pytest.warns(UserWarning, match='of the prunable weights are frozen and stay as they are'): learn.fit_lottery(1, rounds=1, fit=way)

def test_all_frozen_is_refused_only_where_that_is_known():
    learn = plain()
    for p in learn.model.parameters(): p.requires_grad_(False)
    with pytest.raises(ValueError, match='all parameters are frozen'): learn.fit_lottery(1, fit=Learner.fit)
    def thaws(l, n, **kw):
        for p in l.model.parameters(): p.requires_grad_(True)
        l.fit(n)
    assert learn.fit_lottery(1, rounds=1, amount=.5, fit=thaws)[1]['density']==.5

def test_a_preset_that_fine_tunes(tmp_path):
    from fastai_lottery.experiments import Preset,play_seed,results
    def data(seed=0, device=None, path=None):
        x,y = map(torch.stack, zip(*rows(96)))
        parts = [TensorDS(x[s], y[s], vocab=[0,1]) for s in (slice(64), slice(64,80), slice(80,96))]
        return DataLoaders(TensorDL(parts[0], bs=8, shuffle=True, seed=seed), *[TensorDL(o, bs=16) for o in parts[1:]], device='cpu')
    settings = dict(n_epoch=2, rounds=1, amount=.5, fit=Learner.fine_tune, eval_every=4)
    p = Preset('fine', 'a net that is fine-tuned', 'none', 'seconds', data=data, model=net, settings=settings, levels=(1,), replicates=1)
    play_seed(p, 0, tmp_path/'seed_00')
    df = results(tmp_path)
    assert {'dense','ticket','reinit','shuffle'}<=set(df.arm) and (df.iterations==24).all()    # one epoch frozen, and two

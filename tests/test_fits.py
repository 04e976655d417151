"A training of whatever fits: where the rewind point lies in it, where a round goes on, and that looking changes nothing"
import pytest
from nets import *
from fastai.callback.all import *
from fastai.callback.training import ShortEpochCallback

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
    learn = Learner(loaders(), net(), loss_func=CrossEntropyLossFlat(), opt_func=partial(opt, mom=0.) if opt is SGD else opt, metrics=accuracy,
                    splitter=halves, lr=.1, cbs=[LotteryCallback(rewind_to=rewind_to), *cbs], **kw)
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
    learn.fit(n, lr=learn.opt.hypers[-1]['lr']*10+.01)
def fine(learn, n, **kw): learn.fine_tune(n, base_lr=.1)
def resumed(learn, n, **kw): learn.fit_one_cycle(n+2, lr_max=.1, start_epoch=2)

class Counts(Callback):
    "Scales the loss by what it has counted since its fit began"
    def before_fit(self): self.seen = 0
    def after_loss(self):
        if not self.training: return
        self.seen += 1
        self.learn.loss_grad = self.loss_grad*(1+.01*self.seen)

ways = dict(fit=(Learner.fit, {}, []), one_cycle=(Learner.fit_one_cycle, dict(lr_max=.1), []), flat_cos=(Learner.fit_flat_cos, dict(lr=.1), []),
            sgdr=(Learner.fit_sgdr, dict(cycle_len=1, lr_max=.1), []), drops=(Learner.fit_drops, dict(lr=.1), []), fine_tune=(Learner.fine_tune, dict(base_lr=.1), []),
            fine_lambda=(fine, {}, []), two_fits=(two_fits, {}, []), warm_up=(warm_up, {}, []), three=(three_with_freezing, {}, []), rate=(reads_the_last_rate, {}, []),
            resumed=(resumed, {}, []), start_epoch=(Learner.fit, dict(start_epoch=1), []),
            short=(Learner.fit_one_cycle, {}, [lambda: ShortEpochCallback(.5, short_valid=False)]), short_both=(two_fits, {}, [lambda: ShortEpochCallback(.4)]),
            accumulation=(Learner.fit_one_cycle, {}, [lambda: GradientAccumulation(24)]), early=(Learner.fit, {}, [lambda: EarlyStoppingCallback(patience=1, min_delta=9.)]),
            plateau=(Learner.fit, {}, [lambda: ReduceLROnPlateau(patience=0, min_delta=9.)]), counts=(two_fits, {}, [Counts]), clip=(warm_up, {}, [lambda: GradientClip(.1)]))

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
    at = 8 if to=='1ep' and 'short' not in way else int(to[:-2]) if to.endswith('it') else 5 if way=='short' else 4
    assert ends[0]==ends[1]
    assert again['iterations']==dense['iterations']-at and again['valid_loss']==dense['valid_loss']

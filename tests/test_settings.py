"What a lottery is asked for: the rule that ends it, what must be equal to go on, and Learners without a validation set"
import enum,json,math
import pytest
from nets import *
from fastai.callback.all import *
from fastai_lottery.plots import *
from fastai_lottery.identity import about_callback,say
from fastai_lottery.settings import Settings
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]

def lottery(learn=None, *args, **kwargs):
    learn = learn or learner(mlp)
    learn.fit_lottery(1, *args, seed=0, **kwargs)
    return learn
def kept(learn): return [r['kept'] for r in learn.lottery.rounds]

# --- one rule

def test_stop_is_asked_after_each_round():
    seen = []
    def stop(rounds):
        seen.append([r['round'] for r in rounds])
        return rounds[-1]['density']<.4
    learn = lottery(amount=.5, stop=stop)
    n = learn.lottery.masks.numel
    assert kept(learn)==[n, n//2, n//4] and seen==[[0],[0,1],[0,1,2]]

@pytest.mark.parametrize('more,last', [(dict(rounds=1), .5), (dict(to=.3), .3), (dict(to=.05), .25)])
def test_stop_stands_beside_the_others(more, last):
    "The first that says enough ends the lottery"
    learn = lottery(amount=.5, stop=lambda rounds: len(rounds)>2, **more)
    assert learn.lottery.masks.n_kept==round(last*learn.lottery.masks.numel)

@pytest.mark.parametrize('stop', [7, 'never', lambda: True, lambda a, b: True])
def test_a_stop_that_is_no_rule(stop):
    learn = learner(mlp)
    with pytest.raises(ValueError, match='`stop` should be a function of the rounds so far'): lottery(learn, stop=stop)
    assert not learn.lottery.rounds

@pytest.mark.parametrize('rule', [dict(stop=lambda rounds: False), dict(tol=1e9, monitor='valid_loss')])
def test_a_rule_without_end_ends_where_a_prune_takes_nothing(rule):
    learn = lottery(amount=.8, **rule)
    assert learn.lottery.masks.n_kept<=2 and len(kept(learn))<12

def test_rounds_that_ask_for_nothing_are_played():
    assert len(set(kept(lottery(rounds=3, amount=0))))==1
    assert len(kept(lottery(amount=0, stop=lambda rounds: len(rounds)>3)))==4

@pytest.mark.parametrize('now', [dict(to=.5), dict(tol=.1), dict(stop=lambda rounds: len(rounds)>9)])
def test_a_rule_is_part_of_what_must_be_equal(now, tmp_path):
    lottery(None, 1, path=tmp_path/'run', stop=lambda rounds: len(rounds)>8)
    lottery(None, 2, path=tmp_path/'run', stop=lambda rounds: len(rounds)>8)
    with pytest.raises(ValueError, match=f'{list(now)[0]} was .* and is now|stop was'):
        lottery(None, 2, path=tmp_path/'run', **now)

def test_one_value_derives_every_seed():
    s = Settings(1, seed=5)
    assert s.seed_for('prune', 1)==derive(5, 'prune', 1)!=s.seed_for('prune', 2)
    assert Settings(1).seed_for('prune', 1) is None
    with pytest.raises(Exception, match='cannot assign'): s.seed = 3

# --- no validation set

def without_valid(**kw):
    x,y = zip(*data().train_ds)
    dls = DataLoaders.from_dsets(list(zip(x, y)), [], bs=16, device='cpu')
    learn = Learner(dls, mlp(), loss_func=CrossEntropyLossFlat(), metrics=[accuracy, F1Score(average='macro')],
                    cbs=LotteryCallback(), **kw)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def test_all_data_for_training(tmp_path):
    "As for a last training on all there is: it plays, with empty columns"
    a,b = without_valid(),without_valid()
    for l,path in ((a,None), (b,tmp_path/'run')):
        set_seed(0)
        l.fit_lottery(2, rounds=2, seed=0, path=path)
    df = a.lottery.report(full=True)
    assert len(df)==3 and df[['valid_loss','accuracy','f1_score']].isna().all(axis=None) and df.train_loss.notna().all()
    c = without_valid()
    c.fit_lottery(2, rounds=3, seed=0, path=tmp_path/'run')
    assert len(c.lottery.rounds)==4
    assert [r['mask_hash'] for r in c.lottery.rounds[:3]]==[r['mask_hash'] for r in b.lottery.rounds]
    t = a.lottery.ticket(2)
    r = a.fit_ticket(t, 1, seed=0)
    assert math.isnan(r['valid_loss']) and math.isnan(a.evaluate()['accuracy'])

@pytest.mark.parametrize('what', [dict(tol=.01), dict(eval_every=2)])
def test_what_needs_a_validation_set_says_so(what):
    l = without_valid()
    with pytest.raises(ValueError, match=f'`{list(what)[0]}`=.*no validation set'): l.fit_lottery(1, rounds=1, **what)
    assert not l.lottery.rounds
    l.fit_lottery(1, rounds=1)
    with pytest.raises(ValueError, match='chosen by .* on the validation set'): l.lottery.best()
    with pytest.raises(ValueError, match='validation'): l.lottery.plot()

# --- what is a setting

class Kind(enum.Enum): a,b = 1,2
class Scales(Callback):
    def __init__(self, by): self.factor = 2*by
class Marked(Callback):
    def __init__(self, kind=Kind.a, sizes=(1,2)): self.what,self.n = kind,{'sizes':sizes}
class Counting(Callback):
    def __init__(self): self.n = 0
    def after_batch(self): self.n += 1

twos = dict(mixup=(MixUp, .2, .4), cutmix=(CutMix, .5, 1.), own=(Scales, 1, 2), enum=(Marked, Kind.a, Kind.b),
            clip=(GradientClip, .1, .2),
            precision=(MixedPrecision, AMPMode.FP16, AMPMode.BF16), nested=(partial(Marked, Kind.a), (1,2), (1,3)),
            patience=(partial(EarlyStoppingCallback, 'valid_loss', None, 0.), 1, 2))
@pytest.mark.parametrize('make,a,b', twos.values(), ids=twos)
def test_a_callbacks_own_numbers_are_settings(make, a, b):
    assert about_callback(make(a))==about_callback(make(a))!=about_callback(make(b))==about_callback(make(b))

@pytest.mark.parametrize('how', ['cbs of the Learner', 'cbs of the fit'])
def test_changed_numbers_are_noticed_and_counts_are_not(how, tmp_path):
    def go(rounds, *cbs):
        learn = learner(mlp, cbs=[LotteryCallback(), *(cbs if how=='cbs of the Learner' else ())])
        return lottery(learn, rounds, path=tmp_path/'run', **({} if how=='cbs of the Learner' else dict(cbs=list(cbs))))
    scales,counting = Scales(1),Counting()
    go(1, scales, counting)
    assert counting.n
    go(2, scales, counting)
    go(3, Scales(1), Counting())
    with pytest.raises(ValueError, match='Scales.factor=4.'): go(3, Scales(2), Counting())

def test_a_run_begun_in_one_precision_goes_on_in_it(tmp_path):
    lottery(None, 0, path=tmp_path/'run')
    learn = learner(lambda: mlp().double(), dls=data())
    with pytest.raises(ValueError, match="dtypes was .'float32'. and is now .'float64'."):
        lottery(learn, 1, path=tmp_path/'run')

def test_run_json_says_what_competes(tmp_path):
    learn = lottery(learner(mlp, cbs=LotteryCallback(exclude='0')), 0, path=tmp_path/'run')
    assert json.loads((tmp_path/'run'/'run.json').read_text())['competes']==list(learn.lottery.masks)
    with pytest.raises(ValueError, match='prunable was'): lottery(None, 1, path=tmp_path/'run')

# --- callbacks that change the learning rate

class Decays(Callback):
    def after_epoch(self): self.learn.opt.set_hyper('wd', .1+self.epoch)

plateau = partial(ReduceLROnPlateau, patience=0, min_delta=10.)

@pytest.mark.parametrize('fit', [Learner.fit, Learner.fit_one_cycle])
@pytest.mark.parametrize('cb', [plateau, partial(plateau, reset_on_fit=False), Decays])
def test_each_round_begins_with_the_learning_rate_afresh(cb, fit):
    dls = data()
    rows = list(dls.train_ds)
    dls = DataLoaders(DataLoader(rows, bs=16), dls.valid, device='cpu')
    learn = learner(mlp, dls=dls, cbs=[LotteryCallback(), cb()])
    learn.fit_lottery(3, rounds=2, amount=0, fit=fit)
    assert len({r['valid_loss'] for r in learn.lottery.rounds})==1

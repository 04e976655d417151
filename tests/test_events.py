"`fast_events` calls the same callbacks in the same order as fastai, with the same results"
import contextlib,copy,pickle
import cloudpickle,pytest,torch
from fastai.basics import Callback,all_equal,event,noop,set_seed
from fastai.callback.core import (CancelBackwardException,CancelBatchException,CancelEpochException,CancelFitException,
    CancelStepException,CancelTrainException,CancelValidException,FetchPredsCallback)
from fastai.callback.progress import ProgressCallback
from fastai.test_utils import synth_learner
from fastai_lottery.looks import fast_events
from fastai_lottery.presets import preset

events = [e for e in vars(event) if not e.startswith('_')]
ways = contextlib.nullcontext,fast_events      # fastai's own, and ours

def quiet(l):
    l.remove_cb(ProgressCallback)
    l.logger = noop
    return l

def learner(cbs=None, heard=None, **kwargs):
    set_seed(3)
    l = quiet(synth_learner(n_trn=4, n_val=2, cbs=cbs, **kwargs))
    l.heard = heard
    return l

def Log(name, log, evs=events, order=0, **attrs):
    "A callback that writes down when it is called, and in what state it finds the Learner"
    def noting(e):
        def f(self): log.append((name, e, bool(self.learn.training), getattr(self.learn, 'iter', None)))
        return f
    return type(name, (Callback,), {e:noting(e) for e in evs}|dict(order=order)|attrs)()

def outcome(l):
    losses = list(getattr(l.recorder, 'losses', ()))
    return [(type(c).__name__, c.run) for c in l.cbs], losses, [p.detach().clone() for p in l.model.parameters()]

def fit(f, way):
    "What `f(log)` logs and comes to in a fit"
    log = []
    l = f(log)
    try:
        with way(l): l.fit(2)
    except Exception as e: log.append((type(e), e.args, type(e.__cause__)))
    assert '_call_one' not in vars(l) and '_with_events' not in vars(l)
    return log, *outcome(l)

def both(f):
    "The log, which is the same both ways, as is everything else"
    (log,cbs,losses,ps),(log2,cbs2,losses2,ps2) = [fit(f, way) for way in ways]
    assert log==log2 and len(log)>3
    assert cbs==cbs2
    assert all_equal(losses, losses2)
    assert all(torch.equal(a,b) for a,b in zip(ps, ps2))
    return log

def test_order():
    def f(log):
        some = Log('D', log, ['after_batch']),Log('E', log, events[::2], -20.5)
        return learner([Log('A', log, order=5), Log('B', log, order=-3), Log('C', log, order=5), *some])
    cancels = {e for e in events if 'cancel' in e}
    assert {e for _,e,*_ in both(f)} >= set(events)-cancels-{'after_create'}

def test_run_flags():
    def f(log):
        a = Log('A', log)
        a.run = False
        flags = dict(B=dict(run_train=False), C=dict(run_valid=False), D=dict(run_train=False, run_valid=False))
        return learner([a, *[Log(k, log, **kw) for k,kw in flags.items()], Log('F', log, ['after_batch'], run=False)])
    both(f)

def test_run_reset_of_all():
    class A(Callback): pass
    l = learner(A())
    l.a.run = False
    with fast_events(l):
        l.fit(1)
        assert l.a.run

def test_stops_itself():
    class Stop(Callback):
        def after_batch(self):
            if self.train_iter==2: self.run = False
            self.learn.heard.append(('s', self.train_iter))
    both(lambda log: learner([Stop, Log('A', log)], log))

def test_instance_event():
    def f(log):
        own = Callback(after_batch=lambda self: log.append('x'), before_step=lambda self: log.append('y'))
        return learner([own, Log('A', log, ['after_step'])])
    both(f)

def test_set_while_running():
    class S(Callback):
        def before_train(self): self.learn.cbs[-1].after_batch = lambda: self.learn.heard.append(('late', self.iter))
    def f(log):
        l = learner([S, Log('A', log, ['after_step'])], log)
        l.add_cb(Log('Z', log, []))
        return l
    assert any(o[0]=='late' for o in both(f))

def test_add_remove_while_running():
    def f(log):
        class S(Callback):
            def after_batch(self):
                if self.train_iter==2: self.learn.add_cb(Log('N', log, order=-50))
                if self.train_iter==3: self.learn.remove_cb(self.learn.n)
                if self.train_iter==4: self.learn.x1.order = -99
        return learner([S, Log('X1', log, order=9)])
    both(f)

raised = [CancelBatchException,CancelBackwardException,CancelStepException,CancelTrainException,CancelEpochException,
    CancelFitException,CancelValidException,ValueError,KeyboardInterrupt]
raised_in = '''before_fit before_epoch before_batch after_pred after_loss before_backward after_backward before_step after_step
    after_batch before_validate after_epoch'''.split()
@pytest.mark.parametrize('ex', raised)
@pytest.mark.parametrize('ev', raised_in)
def test_exceptions(ex, ev):
    def f(log):
        def h(self):
            if getattr(self.learn, 'train_iter', 9)!=0 or ev in ('before_fit','before_epoch'): raise ex('boo')
        bad = type('Bad', (Callback,), {'order':1, ev:h})
        return learner([Log('A', log), bad, Log('B', log, order=2)])
    for way in ways if ex is KeyboardInterrupt else ():
        l = f([])
        with pytest.raises(KeyboardInterrupt), way(l): l.fit(1)
        assert '_call_one' not in vars(l)
    if ex is not KeyboardInterrupt: both(f)

def test_own_call():
    def f(log):
        class V(Callback):
            def __call__(self, ev):
                log.append(ev)
                return super().__call__(ev)
        return learner(V)
    both(f)

def test_unknown_event():
    l = learner()
    with fast_events(l), pytest.raises(Exception, match='missing'): l('nope')

def test_get_preds_validate():
    both(lambda log: learner([FetchPredsCallback(), Log('A', log)]))
    l = learner()
    a = l.get_preds()[0]
    with fast_events(l): assert torch.equal(a, l.get_preds()[0])

def test_nested_and_raise():
    l = learner()
    with fast_events(l):
        with fast_events(l): l.fit(1)
        assert '_call_one' in vars(l)
    assert '_call_one' not in vars(l)
    with contextlib.suppress(ZeroDivisionError), fast_events(l): 1/0
    assert '_call_one' not in vars(l)

def test_instance_override_is_left():
    l,seen = learner(),[]
    l._call_one = lambda ev: seen.append(ev)
    with fast_events(l): l('before_fit')
    assert seen==['before_fit'] and '_call_one' in vars(l)

@pytest.mark.parametrize('copied', [copy.deepcopy, *[lambda l, p=p: p.loads(p.dumps(l)) for p in (cloudpickle,pickle)]])
def test_copies(copied):
    "A copy that is made within calls its own callbacks"
    l = learner()
    with fast_events(l):
        c = copied(l)
        assert c._call_one.__self__ is c
        c.fit(1)

def test_one_cycle_bit_equal():
    def train(way):
        set_seed(5)
        l = quiet(preset('digits').learner(seed=0))
        l.prune(.5)
        with way(l): l.fit_one_cycle(6)
        return l.recorder.losses, l.recorder.lrs, [p.detach() for p in l.model.parameters()]
    (losses,lrs,ps),(losses2,lrs2,ps2) = map(train, ways)
    assert len(losses)==120 and losses==losses2 and lrs==lrs2
    assert all(torch.equal(a,b) for a,b in zip(ps, ps2))

class Bare(Callback):
    def before_batch(self): raise AssertionError    # pytest gives words to `assert`

def test_an_error_without_words_is_told_as_it_is():
    for way in ways[1:]:    # ours; fastai ends with an error of its own
        with way(l := learner(Bare())), pytest.raises(AssertionError, match='`Bare` when calling event `before_batch`'): l.fit(1)

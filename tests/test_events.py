"`fast_events` calls the same callbacks in the same order as fastai, with the same results"
import pytest,copy,torch,warnings,contextlib
from fastai.basics import *
from fastai.callback.all import *
from fastai.test_utils import synth_learner
from fastai_lottery.fits import fast_events
EV=[e for e in vars(event) if not e.startswith('_')]
def learner(cbs=None,**kw):
    set_seed(3)
    l=synth_learner(n_trn=4,n_val=2,cbs=cbs,**kw)
    l.remove_cb(ProgressCallback)
    l.logger=noop
    return l
def Log(name,log,evs,order=0,**attrs):
    def mk(e): return lambda self: log.append((name,e,bool(self.learn.training),self.learn.iter if hasattr(self.learn,'iter') else None))
    return type(name,(Callback,),{e:mk(e) for e in evs}|dict(order=order)|attrs)()
def both(f):
    out=[]
    for ctx in (contextlib.nullcontext,fast_events):
        log=[]
        l=f(log)
        try:
            with ctx(l): l.fit(2)
        except Exception as e: log.append((type(e),e.args,type(e.__cause__)))
        assert '_call_one' not in vars(l) and '_with_events' not in vars(l)
        out.append((log,[(type(c).__name__,c.run) for c in l.cbs],list(l.recorder.losses) if hasattr(l.recorder,'losses') else None,[p.detach().clone() for p in l.model.parameters()]))
    a,b=out
    assert a[0]==b[0] and len(a[0])>3
    assert a[1]==b[1]
    assert all_equal(a[2] or [],b[2] or [])
    assert all(torch.equal(x,y) for x,y in zip(a[3],b[3]))
    return a[0]
def test_order():
    def f(log): return learner([Log('A',log,EV,5),Log('B',log,EV,-3),Log('C',log,EV,5),Log('D',log,['after_batch'],0),Log('E',log,EV[::2],-20.5)])
    assert {e for _,e,*_ in both(f)}>=set(EV)-{e for e in EV if 'cancel' in e}-{'after_create'}
def test_run_flags():
    def f(log):
        a=Log('A',log,EV)
        a.run=False
        return learner([a,Log('B',log,EV,run_train=False),Log('C',log,EV,run_valid=False),Log('D',log,EV,run_train=False,run_valid=False),Log('F',log,['after_batch'],run=False)])
    both(f)
def test_run_reset_of_all():
    class A(Callback): pass
    l=learner(A())
    l.a.run=False
    with fast_events(l):
        l.fit(1)
        assert l.a.run
def test_stops_itself():
    class Stop(Callback):
        def after_batch(self):
            if self.train_iter==2: self.run=False
            self.learn.log.append(('s',self.train_iter))
    def f(log):
        l=learner([Stop,Log('A',log,EV)])
        l.log=log
        return l
    both(f)
def test_instance_event():
    def f(log): return learner([Callback(after_batch=lambda self: log.append('x'),before_step=lambda self: log.append('y')),Log('A',log,['after_step'])])
    both(f)
def test_set_while_running():
    class S(Callback):
        def before_train(self): self.learn.cbs[-1].after_batch=lambda: self.learn.log.append(('late',self.iter))
    def f(log):
        l=learner([S,Log('A',log,['after_step'])])
        l.log=log
        l.add_cb(Log('Z',log,[]))
        return l
    assert any(o[0]=='late' for o in both(f))
def test_add_remove_while_running():
    def f(log):
        class S(Callback):
            def after_batch(self):
                if self.train_iter==2: self.learn.add_cb(Log('N',log,EV,-50))
                if self.train_iter==3: self.learn.remove_cb(self.learn.n)
                if self.train_iter==4: self.learn.x1.order=-99
        return learner([S,Log('X1',log,EV,9)])
    both(f)
@pytest.mark.parametrize('ex',[CancelBatchException,CancelBackwardException,CancelStepException,CancelTrainException,CancelEpochException,CancelFitException,CancelValidException,ValueError,KeyboardInterrupt])
@pytest.mark.parametrize('ev',['before_fit','before_epoch','before_batch','after_pred','after_loss','before_backward','after_backward','before_step','after_step','after_batch','before_validate','after_epoch'])
def test_exceptions(ex,ev):
    def f(log):
        class Bad(Callback):
            order=1
        def h(self):
            if getattr(self.learn,'train_iter',9)!=0 or ev in('before_fit','before_epoch'): raise ex('boo')
        setattr(Bad,ev,h)
        return learner([Log('A',log,EV),Bad,Log('B',log,EV,2)])
    if ex is KeyboardInterrupt:
        for ctx in (contextlib.nullcontext,fast_events):
            l=f([]); 
            with pytest.raises(KeyboardInterrupt), ctx(l): l.fit(1)
            assert '_call_one' not in vars(l)
    else: both(f)
def test_own_call():
    def f(log):
        class V(Callback):
            def __call__(self,ev):
                log.append(ev)
                return super().__call__(ev)
        return learner(V)
    both(f)
def test_unknown_event():
    l=learner()
    with fast_events(l), pytest.raises(Exception,match='missing'): l('nope')
def test_get_preds_validate():
    def f(log):
        class P(Callback):
            def after_epoch(self): log.append(self.learn.get_preds(inner=True)[0].sum().item()) if 0 else None
        return learner([P,FetchPredsCallback(),Log('A',log,EV)])
    both(f)
    l=learner()
    a=l.get_preds()[0]
    with fast_events(l): assert torch.equal(a,l.get_preds()[0])
def test_nested_and_raise():
    l=learner()
    with fast_events(l):
        with fast_events(l): l.fit(1)
        assert '_call_one' in vars(l)
    assert '_call_one' not in vars(l)
    with contextlib.suppress(ZeroDivisionError), fast_events(l): 1/0
    assert '_call_one' not in vars(l)
def test_instance_override_is_left():
    l=learner()
    seen=[]
    l._call_one=lambda ev: seen.append(ev)
    with fast_events(l): l('before_fit')
    assert seen==['before_fit'] and '_call_one' in vars(l)
def test_copies():
    l=learner()
    with fast_events(l):
        import copy as cp
        c=cp.deepcopy(l)
        assert c._call_one.__self__ is c
        c.fit(1)
        import cloudpickle,pickle
        for p in (cloudpickle,pickle):
            d=p.loads(p.dumps(l))
            assert d._call_one.__self__ is d
            d.fit(1)
def test_one_cycle_bit_equal():
    from fastai_lottery.presets import preset
    r=[]
    for ctx in (contextlib.nullcontext,fast_events):
        set_seed(5)
        l=preset('digits').learner(seed=0)
        l.remove_cb(ProgressCallback)
        l.logger=noop
        l.prune(.5)
        with ctx(l): l.fit_one_cycle(6)
        r.append((l.recorder.losses,l.recorder.lrs,[p.detach() for p in l.model.parameters()]))
    assert len(r[0][0])==120 and r[0][0]==r[1][0] and r[0][1]==r[1][1] and all(torch.equal(a,b) for a,b in zip(r[0][2],r[1][2]))
for o in 'test_fail test test_eq test_eq_type test_ne test_close test_is test_shuffled test_stdout test_fig_exists test_sig test_set test_overflow test_warns'.split(): globals().pop(o,None)

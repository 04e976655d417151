"Laws of 12_checkpoints: what trains beside the net, checkpoints before the first epoch, cost, files of before"
import hashlib,io,subprocess,sys
from collections import Counter
from pathlib import Path
import numpy as np,pytest,torch
import fastai_lottery.carried as carried,fastai_lottery.checkpoints as checkpoints
from fastai_lottery.checkpoints import *
from nets import *
for _n in [o for o in globals() if o.startswith('test_')]: del globals()[_n]

# --- losses that learn

class Learned(nn.Module):
    "A weight for each class and a mean that it follows; a count that no `state_dict` has"
    def __init__(self):
        super().__init__()
        self.weight,self.net,self.calls = nn.Parameter(torch.ones(4)),nn.Linear(4,4),0
        self.register_buffer('mean', torch.zeros(4))
    def forward(self, pred, y):
        self.calls += 1
        if self.training: self.mean.mul_(.9).add_(pred.detach().mean(0), alpha=.1)
        loss = F.cross_entropy(pred*self.weight+.1*self.net(pred-self.mean), y)
        return loss+.01*self.weight.pow(2).sum()+.001*min(self.calls, 20)

class Wrapped:
    "As fastai's `BaseLoss` does it: no module, but it has one"
    def __init__(self): self.func,self.scale = Learned(),1.
    def __call__(self, pred, y):
        self.scale *= .99
        return self.func(pred, y)*self.scale

class Method(Wrapped):
    def compute(self, pred, y): return self(pred, y)

def flat():
    "fastai's own, around a module that learns"
    return BaseLoss(Learned)

class Tempered(Callback):
    "Trains a temperature that belongs to nobody, and counts all its batches, over all fits"
    def __init__(self): self.t,self.seen = nn.Parameter(torch.tensor(1.)),Counter()
    def after_pred(self): self.learn.pred = self.pred*self.t
    def before_batch(self):
        self.seen['batches'] += 1
        self.learn.xb = (self.xb[0]*(1+.001*self.seen['batches']),)

def plain(pred, y): return F.cross_entropy(pred, y)

def make(loss=Learned, cbs=(), path='.', **kw):
    "A Learner whose optimizer trains the net, the loss and what callbacks have"
    torch.manual_seed(0)
    loss,cbs = loss() if isinstance(loss, type) or loss is flat else loss,[o() for o in cbs]
    f = loss.compute if isinstance(loss, Method) else loss
    mod = loss if isinstance(loss, nn.Module) else getattr(loss, 'func', None)
    def split(m):
        more = [*(mod.parameters() if mod is not None else ()), *(o.t for o in cbs if hasattr(o, 't'))]
        return [list(m.parameters()), more] if more else [list(m.parameters())]
    l = learner(drop_bn, cbs=cbs, loss=f, splitter=split, path=path, **kw)
    l.mod,l.temper = mod,next((o.t for o in cbs if hasattr(o, 't')), None)
    return l

def beside(learn):
    res = {} if learn.mod is None else bits(learn.mod)
    return res if learn.temper is None else {**res, 't':learn.temper.detach().numpy().tobytes()}

# --- halves and wholes

class _Own(Tempered): pass     # a name that begins as private ones do

class Stop(Callback):
    "Write a checkpoint at the end of an epoch, and stop"
    order = 1000
    def __init__(self, path, at): self.path,self.at = path,at
    def after_epoch(self):
        if self.epoch!=self.at: return
        write_checkpoint(self.path, take_checkpoint(self.learn, Stop))
        raise KeyboardInterrupt

def fit(learn, seed=3, cbs=None, n=3):
    seed_all(learn, seed)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(n, .05, cbs=cbs)
    return learn

def rest(learn, path, first):
    "The epochs that are left, by a Learner with other random numbers"
    def _do_fit():
        put_checkpoint(learn, read_checkpoint(path))
        for learn.epoch in range(first, learn.n_epoch): learn._with_events(learn._do_epoch, 'epoch', CancelEpochException)
    learn._do_fit = _do_fit
    return fit(learn, seed=11)

def same(a, b):
    assert bits(a.model)==bits(b.model) and beside(a)==beside(b)
    assert a.recorder.values==b.recorder.values and [float(o) for o in a.recorder.losses]==[float(o) for o in b.recorder.losses]

cases = dict(
    module  = dict(loss=Learned),
    wrapped = dict(loss=Wrapped),
    fastai  = dict(loss=flat),
    method  = dict(loss=Method),
    nobodys = dict(loss=plain, cbs=[Tempered]),
    private = dict(loss=plain, cbs=[_Own]),
    all     = dict(loss=Wrapped, cbs=[Tempered]),
    open    = dict(loss=Wrapped, cbs=[Tempered, lambda: GradientAccumulation(40)]),
    torch   = dict(loss=Learned, opt_func=partial(OptimWrapper, opt=torch.optim.AdamW)))

@pytest.mark.parametrize('name', cases)
@pytest.mark.parametrize('at', [0,1])
def test_what_trains_beside_the_net_goes_on(name, at, tmp_path):
    kw = cases[name]
    whole = fit(make(**kw))
    assert beside(whole)!=beside(make(**kw)), 'it has not trained'
    with pytest.raises(KeyboardInterrupt): fit(make(**kw), cbs=Stop(tmp_path/'c', at)).fit(0)
    same(whole, rest(make(**kw), tmp_path/'c', at+1))

def test_a_part_of_the_net_in_its_loss_is_not_kept_twice():
    learn = make(plain)
    learn.loss_func = Wrapped()
    learn.create_opt()
    assert list(take_checkpoint(learn)['loss'])==['weight','mean','net.weight','net.bias']
    learn.loss_func.func = learn.model[0]
    d = take_checkpoint(learn)
    assert d['loss'] is None and not d['others']

# --- before the first epoch

def test_a_checkpoint_before_the_first_epoch(tmp_path):
    "What a callback carries over fits is there again, and the fit is the same"
    kw = dict(loss=Wrapped, cbs=[Tempered])
    def second(learn, begin):
        def _do_fit():
            learn.epoch = -1    # the epoch that is finished
            begin()
            for learn.epoch in range(learn.epoch+1, learn.n_epoch): learn._with_events(learn._do_epoch, 'epoch', CancelEpochException)
        learn._do_fit = _do_fit
        return fit(learn, n=2)
    first = fit(make(**kw))
    whole = second(first, lambda: write_checkpoint(tmp_path/'c', take_checkpoint(first)))
    fresh = make(**kw)
    again = second(fresh, lambda: put_checkpoint(fresh, read_checkpoint(tmp_path/'c')))
    same(whole, again)
    assert first.tempered.seen==fresh.tempered.seen and fresh.tempered.seen['batches']>4*5

def test_a_checkpoint_of_a_learner_that_has_not_trained():
    "No optimizer, no epoch: what there is comes back"
    a,b = make(Wrapped, [Tempered]),make(Wrapped, [Tempered])
    a.tempered.seen['batches'] = 7
    for p in a.model.parameters(): p.data.add_(1)
    d = take_checkpoint(a)
    assert d['opt'] is None and 'epoch' not in d
    put_checkpoint(b, d)
    assert b.opt is None and b.tempered.seen==Counter(batches=7) and bits(a.model)==bits(b.model)

# --- what it costs

def test_cost_does_not_grow_with_the_steps(monkeypatch):
    "The recorder has a loss and a rate a step: their number is not that of the calls"
    learn,n = fit(make(plain)),[]
    old = carried.as_plain
    def count(o):
        n[-1] += 1
        return old(o)
    monkeypatch.setattr(carried, 'as_plain', count)
    for steps in (50,5000):
        r = learn.recorder
        r.losses = [TensorBase(float(i)) for i in range(steps)]
        r.lrs,r.iters = [np.float64(.1)]*steps,list(range(steps))
        learn.hist = None
        n.append(0)
        d = dict(take_checkpoint(learn)['cbs'])['Recorder']
        assert d['losses']['#stack'].shape==(steps,) and d['lrs']==[.1]*steps and type(d['lrs'][0]) is float
    assert n[0]==n[1]

def test_modules_are_not_written_again_for_each_that_holds_them():
    "Of a deep net each module's `state_dict` was taken for its parent too"
    class Deep(nn.Linear):
        taken = 0
        def state_dict(self, *args, **kwargs):
            Deep.taken += 1
            return super().state_dict(*args, **kwargs)
    m = Deep(8,4)
    for _ in range(5): m = nn.Sequential(m)
    learn = learner(m, cbs=None)
    learn.create_opt()
    Deep.taken = 0
    take_checkpoint(learn)
    assert Deep.taken<=1

# --- plain data

def test_the_second_of_two_gaussians():
    "numpy draws them in pairs, and an own generator remembers the other one"
    r,s = np.random.RandomState(1),np.random.RandomState(2)
    r.normal()
    d = carried.as_plain([r])
    want = r.normal(size=3)
    carried.from_plain(d, [s])
    assert (s.normal(size=3)==want).all()

def test_a_generator_of_before():
    "Files of version 1 have the bits alone"
    r,s = np.random.RandomState(1),np.random.RandomState(2)
    d = [{'#rng':carried.as_plain(r._bit_generator.state)}]
    want = r.normal(size=3)
    carried.from_plain(d, [s])
    assert (s.normal(size=3)==want).all()

lists = [1,2.5,None,'a',True],[np.float64(.1)]*9,[np.float32(.1),np.int64(3)],[.1,np.float64(.2)],[],[[1],[(2,)]]
@pytest.mark.parametrize('o', lists, ids=str)
def test_lists_come_back_as_python_numbers(o):
    back = carried.from_plain(carried.as_plain(o))
    assert back==o and all(type(a) in (int,float,str,bool,type(None),list) for a in back)

# --- files

@pytest.mark.parametrize('loss', [Learned, plain])
def test_a_file_of_version_1_goes_on(loss, tmp_path):
    "It has gradients and attributes of the net alone"
    kw = dict(loss=loss)
    whole = fit(make(**kw))
    with pytest.raises(KeyboardInterrupt): fit(make(**kw), cbs=Stop(tmp_path/'c', 0))
    d = read_checkpoint(tmp_path/'c')
    n = len(list(whole.model.parameters()))
    d.pop('others')
    d['cbs'] = [('_'+n,v) if n=='Recorder' else (n,v) for n,v in d['cbs']]    # some of ours had such names
    d['params'] = dict(d['params'], grads=d['params']['grads'][:n], free=d['params']['free'][:n])
    d['params']['modules'] = d['params']['modules'][:len(list(whole.model.modules()))]
    buf = io.BytesIO()
    torch.save(d, buf)
    b = buf.getvalue()
    (tmp_path/'c').write_bytes(b'lottery checkpoint 1\n'+hashlib.sha256(b).digest()+b)
    again = make(**kw)
    if loss is Learned: again.mod.calls = 4+1    # this the first version forgot
    same(whole, rest(again, tmp_path/'c', 1))

def _checkpoint_of_0_0_1(path, d):
    "As it was written before tensors went to the disk one by one"
    torch.save(d, b := io.BytesIO())
    path.write_bytes(b'lottery checkpoint 1\n'+hashlib.sha256(b.getvalue()).digest()+b.getvalue())

def test_the_file_is_what_it_was(tmp_path):
    "Byte for byte, though it is written tensor by tensor, and the digest in front at the end"
    d = dict(a=torch.randn(3, 5), b=[1,{'c':torch.arange(9)}], text='t')
    _checkpoint_of_0_0_1(tmp_path/'old', d)
    write_checkpoint(tmp_path/'new', d)
    assert (tmp_path/'new').read_bytes()==(tmp_path/'old').read_bytes()
    for f in ('new','old'):
        o = read_checkpoint(tmp_path/f)
        assert torch.equal(o['a'], d['a']) and o['text']=='t'

@pytest.mark.parametrize('at', [0, 25, 60, -1])
def test_a_byte_that_is_another_is_noticed(tmp_path, at):
    write_checkpoint(tmp_path/'c', dict(a=torch.randn(30)))
    b = bytearray((tmp_path/'c').read_bytes())
    b[at] ^= 1
    (tmp_path/'c').write_bytes(b)
    with pytest.warns(UserWarning, match='damaged'): assert read_checkpoint(tmp_path/'c') is None

@pytest.mark.slow
def test_the_most_memory_of_a_lottery_with_a_folder(tmp_path):
    "At most 40 bytes a weight with AdamW: a checkpoint is no copy of weights and moments"
    if not Path('/proc/self/clear_refs').exists(): pytest.skip('needs /proc/self/clear_refs')
    f = Path(__file__).with_name('peak_run.py')
    res = subprocess.run([sys.executable,f,'20000000',tmp_path/'run'], capture_output=True, text=True)
    assert res.returncode==0, res.stderr[-2000:]
    assert float(res.stdout.splitlines()[-1])<=40

"""Lotteries that are killed; see test_crash.py.
`python crash_run.py` is a server that forks a process for each attempt, so that imports are done once"""
import gc,json,os,random,resource,signal,sys,time,traceback,warnings
from collections import Counter,deque
from pathlib import Path
warnings.filterwarnings('ignore')
from nets import *
from fastai.callback.fp16 import MixedPrecision,AMPMode
from fastai_lottery.looks import *
from fastai_lottery.fits import *
from fastai_lottery.rounds import *
from fastai_lottery.gradual import *
from fastai_lottery.growth import *
from fastai_lottery.searches import *
from fastai_lottery.data import TensorDS,TensorDL
import fastai_lottery.presets as presets,fastai_lottery.experiments as experiments,fastai_lottery.cli,fastai_lottery.told
import fastai_lottery.tasks    # `freeze_kept`
import fastai_lottery.tables as tables
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]

# --- callbacks that look, and some that remember

class Note(Callback):
    "The history of each round's fit, on disk"
    order,run_valid = 100,False
    def after_fit(self):
        if hasattr(self.learn, 'lr_finder'): return
        r = self.learn.recorder
        def floats(os): return list(map(float, os))
        values,hps = [floats(v) for v in r.values],{k:floats(map(np.mean, v)) for k,v in getattr(r,'hps',{}).items()}
        res = dict(values=values, losses=floats(r.losses), lrs=floats(r.lrs), iters=list(r.iters), hps=hps)
        f = self.learn.path/f'history_{len(self.learn.lottery.rounds)}.json'
        f.with_suffix('.new').write_text(json.dumps(res))
        os.rename(f.with_suffix('.new'), f)

class Batches(Callback):
    "A line for each training batch; ends its own process at the `n`-th"
    order,run_valid = 101,False
    n,i,by = None,0,signal.SIGKILL        # of the process: what is the callback's own would come back with a checkpoint
    def after_batch(self):
        if not self.training or hasattr(self.learn, 'lr_finder'): return
        Batches.i += 1
        at = os.getpid(),len(self.learn.lottery.rounds),self.learn.epoch,self.learn.train_iter
        with open(self.learn.path/'batches', 'a') as f: f.write(' '.join(map(str, at))+'\n')
        if Batches.i==Batches.n: os.kill(os.getpid(), Batches.by)

class Noise(Callback):
    "Draws from every generator there is, the global ones and its own, and remembers what it has drawn"
    run_valid = False
    def before_fit(self):
        self.gens = [random.Random(1), np.random.default_rng(1), torch.Generator().manual_seed(1)]
        self.last,self.seen,self.n = deque(maxlen=3),set(),Counter()
    def before_batch(self):
        a,b,c = self.gens
        x = random.random()+np.random.rand()+a.random()+b.random()+torch.rand(1, generator=c).item()
        self.last.append(x)
        self.n['batches'] += 1
        self.seen.add(self.epoch)
        noise = torch.randn_like(self.xb[0])*sum(self.last)/50
        self.learn.xb = (self.xb[0]+noise+.01*len(self.seen)+.001*self.n['batches'],)

class Unfreeze(Callback):
    "A weight that is frozen at first, a bias that is frozen at last, and a dropout rate and a momentum that go up"
    run_valid = False
    def before_epoch(self):
        if self.epoch<2: self.learn.model[0].weight.requires_grad_(self.epoch==1)
        if self.epoch==0: self.learn.model[0].bias.requires_grad_(True)
        if self.epoch==1: self.learn.model[0].bias.requires_grad_(False)
        if self.epoch==0: self.learn.model[3].p = .1
        if self.epoch==1: self.learn.model[3].p += .2
        if self.epoch<2: self.learn.opt.set_hyper('mom', self.learn.opt.hypers[-1]['mom']+.02)

class HalfOnCpu(MixedPrecision):
    "Mixed precision with a scaler that scales, on the CPU, and by no powers of 2, which would leave no trace"
    __module__ = MixedPrecision.__module__
    def before_fit(self):
        self.autocast,self.scales = torch.autocast('cpu', dtype=torch.bfloat16),L()
        self.learn.scaler = torch.amp.GradScaler('cpu', init_scale=3., growth_factor=1.7, growth_interval=2)

class Ema(Callback):
    "An average of the net that is looked at by nobody but the loss"
    run_valid = False
    def before_fit(self): self.avg = [torch.optim.swa_utils.AveragedModel(self.model)]
    def after_step(self): self.avg[0].update_parameters(self.model)
    def after_loss(self):
        ps = zip(self.model.parameters(), self.avg[0].module.parameters())
        self.learn.loss_grad = self.loss_grad+.1*sum((p-q.detach()).pow(2).sum() for p,q in ps)

class Carried(Callback):
    "Counts the batches of all rounds, and trains a little otherwise with each"
    run_valid = False
    def __init__(self): self.seen = 0
    def before_batch(self):
        self.seen += 1
        self.learn.xb = (self.xb[0]*(1+.01*self.seen),)

class Weighted(nn.Module):
    "A loss that learns a weight for each class"
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
    def forward(self, pred, y): return F.cross_entropy(pred*self.weight, y)+.01*self.weight.pow(2).sum()

class Wrapped:
    "As fastai's losses keep theirs"
    def __init__(self): self.func = Weighted()
    def __call__(self, pred, y): return self.func(pred, y)

# --- data

class Noisy:
    def __init__(self, n): self.x,self.y = zip(*_rows(n))
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i]+torch.randn(8)*.1,self.y[i]

def _rows(n):
    g = torch.Generator().manual_seed(7)
    x = torch.randn(n, 8, generator=g)
    return list(zip(x, (x@torch.randn(8, 4, generator=g)).argmax(1)))

def workers():
    train = DataLoader(Noisy(64), bs=16, shuffle=True, drop_last=True, num_workers=1)
    return DataLoaders(train, DataLoader(Noisy(32), bs=32), device='cpu')
def tensordl():
    x,y = map(torch.stack, zip(*_rows(96)))
    def noisy(x, gen): return x+.1*torch.randn(x.shape, generator=gen)
    train = TensorDL(TensorDS(x[:64],y[:64]), bs=16, shuffle=True, tfm=noisy)
    return DataLoaders(train, TensorDL(TensorDS(x[64:],y[64:]), bs=32), device='cpu')
def torchdl():
    x,y = map(torch.stack, zip(*_rows(96)))
    ds,dl = torch.utils.data.TensorDataset,torch.utils.data.DataLoader
    sampler = torch.utils.data.WeightedRandomSampler([1.]*64, 64, generator=torch.Generator().manual_seed(3))
    return DataLoaders(dl(ds(x[:64],y[:64]), batch_size=16, sampler=sampler), dl(ds(x[64:],y[64:]), batch_size=32), device='cpu')

# --- the runs: what is different from `play`

def splitter(m): return L(m[:4], m[4:]).map(params)
def found(learn, n_epoch, **kw):
    "Looks for a learning rate, then trains: two fits, of which the first is no training"
    with learn.no_bar(): learn.lr_find(num_it=8, show_plot=False, suggest_funcs=())
    lr = learn.recorder.lrs[int(np.argmin(learn.recorder.losses))]/100
    learn.fit_one_cycle(n_epoch, lr, **kw)
def twice(learn, n_epoch, **kw):
    learn.fit(1, .01)
    learn.fit_one_cycle(n_epoch-1, .02, **kw)

loss = Wrapped()
def with_loss(m): return [params(m),list(loss.func.parameters())]
def track(): return [SaveModelCallback(), EarlyStoppingCallback(patience=2), ReduceLROnPlateau(patience=1, factor=2)]

runs = dict(
    plain    = dict(),
    late_it  = dict(cb=dict(rewind_to='5it')),
    late_ep  = dict(cb=dict(rewind_to='1ep')),
    finetune = dict(learn=dict(splitter=splitter), fit=Learner.fine_tune, n_epoch=2, freeze_epochs=2, base_lr=.01, lr_max=None),
    twice    = dict(fit=twice, lr_max=None),
    fused    = dict(learn=dict(opt_func=partial(OptimWrapper, opt=partial(torch.optim.Adam, fused=True)))),
    sgd      = dict(learn=dict(opt_func=partial(SGD, mom=.9)), fit=Learner.fit, lr=.05, lr_max=None),
    ranger   = dict(learn=dict(opt_func=ranger), fit=Learner.fit_flat_cos, lr=.02, lr_max=None),
    trackers = dict(cbs=track, n_epoch=5, lr_max=.3),
    gather   = dict(cbs=lambda: [GradientAccumulation(40)]),
    hold     = dict(hold='hold_init_or_zero', reset='rewind_or_zero'),
    last_lr  = dict(reset='keep', fit=last_lr(Learner.fit_one_cycle), lr_max=.02),
    random   = dict(criterion='random', reset='random_reinit'),
    snip     = dict(criterion='snip', scope='local'),
    bare     = dict(eval_every=None, test=False),
    half     = dict(cbs=lambda: [HalfOnCpu()]),
    tensordl = dict(dls=tensordl),
    torchdl  = dict(dls=torchdl),
    workers  = dict(dls=workers, rounds=1, n_epoch=2, eval_every=None, test=False),
    noise    = dict(cbs=lambda: [Noise()]),
    unfreeze = dict(cbs=lambda: [Unfreeze()], fit=Learner.fit, lr=.02, lr_max=None),
    ema      = dict(cbs=lambda: [Ema()]),
    lstm     = dict(zoo='awd_lstm'),
    learned  = dict(learn=dict(loss=loss, splitter=with_loss), cb=dict(rewind_to='5it')),
    carried  = dict(cbs=lambda: [Carried()]),
    found    = dict(fit=found, lr_max=None))

def make(name, folder, init=0):
    "The Learner of a run; another `init` gives it other initial weights, which the folder's replace"
    s = dict(runs[name])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cbs = [LotteryCallback(**s.get('cb', {})), Note(), Batches(), *s.get('cbs', list)()]
    kw = dict(cbs=cbs, seed=init, path=folder, **{'opt_func':Adam, **s.get('learn', {})})
    if 'zoo' in s:
        model,dkw,inc,_ = zoo[s['zoo']]
        return learner(model, data(**dkw), **kw)
    return learner(drop_bn, s['dls']() if 'dls' in s else data(), **kw)

def play(name='plain', folder='.', init=0, n=None, **change):
    "A run, in `folder`/run; what is shown by its end"
    Batches.n,learn = n,make(name, folder, init)
    own = {k:v for k,v in runs[name].items() if k not in ('cb','learn','cbs','dls','zoo','test')}
    s = {**dict(n_epoch=3, rounds=2, amount=.4, seed=5, eval_every=4, lr_max=.05), **own, **change}
    if s['lr_max'] is None: s.pop('lr_max')
    test = data().valid if runs[name].get('test', True) and 'zoo' not in runs[name] else None
    with learn.no_bar(), learn.no_logging(): learn.fit_lottery(**s, test_dl=test, path=Path(folder)/'run')
    lot = learn.lottery
    return dict(model=digest(learn.model), masks=lot.masks.hash(), leaks=0 if lot.held else leaks(learn))

searches = dict(
    short = dict(search=.7),
    going = dict(search=going_on(.7, .4), criterion='large_mean', sides=(1,)),
    bird  = dict(search=early_bird(.05, 3, 1)),
    tight = dict(search=gradual(1.4), rounds=None, to=.2))

def searching(kind, **kw):
    "A run whose trainings before the last are of a search"
    return play(**kw, **searches[kind])

def tightened(name='plain', folder='.', init=0, n=None, **change):
    "A gradual fit, in `folder`/run, of a net that may be `pruned` before; `units` compete in its hidden layers"
    Batches.n,learn = n,make(name, folder, init)
    if units := change.pop('units', None): learn.lottery.units,learn.lottery.exclude = units,['8']
    own = {k:v for k,v in runs[name].items() if k in ('fit','freeze_epochs','base_lr')}
    if 'base_lr' not in own: own['lr_max'] = .05
    with learn.no_bar(), learn.no_logging():
        if change.pop('pruned', False): learn.prune(.2)
        learn.fit_gradual(**{**dict(n_epoch=4, to=.3, seed=5, eval_every=4, every=1, **own), **change}, path=Path(folder)/'run')
    return dict(model=digest(learn.model), masks=learn.lottery.masks.hash(), leaks=leaks(learn))

def sharing(name='plain', folder='.', n=None, **change):
    "The next task of a net that has finished one, in `folder`/run; `n` counts its own batches alone"
    set_seed(0)    # the first task is the same in each process
    Batches.n,learn = None,make(name, folder)
    x = data().valid.one_batch()[0]
    def said():
        learn.model.eval()
        with torch.no_grad(): return learn.model(x)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, .02)
        learn.prune(.5)
        learn.fit(1, .02)
        was = said()
        learn.freeze_kept('first', head='8')
        Batches.i,Batches.n = 0,n
        learn.fit_lottery(3, **{**dict(rounds=2, amount=.4, seed=5, eval_every=4, lr_max=.05), **change}, path=Path(folder)/'run')
    tasks,ws = learn.lottery.tasks,named_weights(learn.model)
    held = all(torch.equal(ws[n].detach()[at := tasks.taken(n)], v[at]) for n,v in tasks.values.items())
    end = dict(model=digest(learn.model), masks=learn.lottery.masks.hash(), tasks=tasks.digest(), held=held)
    learn.switch_task('first')
    return dict(end, stays=torch.equal(said(), was))

def growing(name='plain', folder='.', init=0, n=None, **change):
    "A run of one training in which connections move, in `folder`/run"
    Batches.n,learn = n,make(name, folder, init)
    own = {k:v for k,v in runs[name].items() if k in ('fit','lr','base_lr')}
    with learn.no_bar(), learn.no_logging():
        growth = GrowthCallback(**{**dict(density=.3, every=3, fraction=.5), **change})
        learn.fit_lottery(**{**dict(n_epoch=6, rounds=0, seed=5, eval_every=4), **own}, cbs=growth, path=Path(folder)/'run')
    masks = learn.lottery.masks
    return dict(model=digest(learn.model), masks=masks.hash(), kept=masks.n_kept, leaks=leaks(learn), moves=len(growth.moves))

def replicate(folder='.', seed=0, measures=False, **change):
    "A replicate of the preset `digits`, whose settings are shorter"
    p = presets.preset('digits')
    def left(run, k): return dict(kept=run.ticket(k).masks.n_kept)
    def two(run, k): return [dict(a=.1), dict(a=.2)]
    if measures: p = experiments.replace(p, measures=dict(left=left, two=two))
    return len(experiments.play_seed(p, seed, folder, **change))

def command(args, log):
    "The `lottery` command, in a session of its own"
    os.setsid()
    fd = os.open(log, os.O_WRONLY|os.O_CREAT|os.O_TRUNC)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    del sys.modules['__main__'].__file__        # workers need not import this script
    res = fastai_lottery.cli.main(args)
    sys.stdout.flush()
    sys.stderr.flush()
    return res

# --- how attempts end

def killing(n=None, after=False, at=None):
    "Kill this process just before (or after) its `n`-th file is put in place or added to, or the first whose name starts with `at`"
    old,i,add = os.replace,[0],tables._add
    def hit(f):
        i[0] += 1
        return i[0]==n or at is not None and Path(f).name.startswith(at)
    def end(): os.kill(os.getpid(), signal.SIGKILL)
    def replace(a, b, *args, **kw):
        it = hit(b)
        if it and not after: end()
        old(a, b, *args, **kw)
        if it: end()
    def added(f, where, b):
        "Half of a line, where the kill comes before"
        it = hit(f)
        add(f, where, b[:len(b)//2] if it and not after else b)
        if it: end()
    os.replace,tables._add = replace,added
    return i

def full(at):
    "No room on the disk from the moment on that a file whose name holds `at` is begun"
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    import fastai_lottery.files as t
    old = t.tempfile.mkstemp
    def mkstemp(*args, prefix='', **kw):
        if at in prefix: resource.setrlimit(resource.RLIMIT_FSIZE, (60, resource.RLIM_INFINITY))
        return old(*args, prefix=prefix, **kw)
    t.tempfile.mkstemp,add = mkstemp,tables._add
    def added(f, *args):
        if at in f.name: resource.setrlimit(resource.RLIMIT_FSIZE, (60, resource.RLIM_INFINITY))
        add(f, *args)
    tables._add = added

def hurting(kill=None, count=False, full_at=None, term=False):
    "Do to this process what an attempt asks for; the number of files so far, in a list, where that is asked"
    if full_at is not None: full(full_at)
    if term: Batches.by = signal.SIGTERM
    return killing(**kill) if kill else killing() if count else None

def child(what, args, hurt, out):
    "In the forked process: a run, and what came of it in the file `out`"
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    warned = []
    try:
        count = hurting(**hurt)
        with warnings.catch_warnings(record=True) as ws:
            warnings.simplefilter('always')
            try: res = dict(ok=globals()[what](**args))
            finally: warned = [str(o.message) for o in ws if o.category is UserWarning]
        if count: res['files'] = count[0]
    except BaseException as e: res = dict(error=type(e).__name__, says=str(e), trace=traceback.format_exc())
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    Path(out).write_text(json.dumps(dict(res, warned=warned)))
    sys.stderr.flush()
    os._exit(0)

def worked(pid, t0):
    "Seconds of the processor that a process has had, so that a busy machine changes nothing; by the clock where there is no /proc"
    try: s = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except OSError: return time.monotonic()-t0
    return (int(s[11])+int(s[12]))/os.sysconf('SC_CLK_TCK')+random.random()*.01

def start(what, args, hurt, out):
    if not (pid := os.fork()): child(what, args, hurt, out)
    return pid

def end(pid, secs=None):
    "Wait for its end, or kill it when it has worked for `secs`: was it killed, and how long did it work"
    def what_of(p): return os.WIFSIGNALED(p[1]),p[2].ru_utime+p[2].ru_stime
    if secs is None: return what_of(os.wait4(pid, 0))
    t0 = time.monotonic()
    while worked(pid, t0)<secs:
        if (p := os.wait4(pid, os.WNOHANG))[0]: return what_of(p)
        time.sleep(.001)
    os.kill(pid, signal.SIGKILL)
    return what_of(os.wait4(pid, 0))

def server():
    "Lines of JSON in, lines of JSON out"
    torch.set_num_threads(1)
    os.fsync = lambda fd: None    # see conftest.py
    torch.optim.Adam([nn.Parameter(torch.ones(1))], fused=True)    # imports more
    answer = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)
    gc.collect()
    gc.freeze()    # so that children share what they only read
    do = dict(start=start, end=end)
    for line in sys.stdin:
        d = json.loads(line)
        answer.write(json.dumps(do[d.pop('do')](**d))+'\n')

if __name__=='__main__': server()

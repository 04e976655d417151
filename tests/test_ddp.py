"""Two processes train together by `torch.distributed` (gloo, CPU): the same masks and weights in both, and one of them writes.
This file is also the program that each of the two runs: `python test_ddp.py RANK FOLDER CASE...`"""
import contextlib,faulthandler,hashlib,io,json,os,random,subprocess,sys,time,traceback,types
from datetime import timedelta
from pathlib import Path
import torch,torch.distributed as dist
from torch import nn

N,LIMIT,WAIT = 2,300,60     # processes; seconds after which they are stopped, whatever they do; seconds that one waits for the other

# --- what each process does

def net(): return nn.Sequential(nn.Linear(8,16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16,4))
def digest(d): return {k:hashlib.sha256(v.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:12] for k,v in d.items()}

def cases(rank):
    "By name, each a function of a folder of its own; what it gives is compared between the processes by the tests"
    from fastai.basics import Learner,Callback,DataLoader,DataLoaders,CrossEntropyLossFlat,Metric,accuracy
    import fastai_lottery.rounds
    from fastai_lottery.callback import LotteryCallback
    from fastai_lottery.core import unwrap
    from fastai_lottery.scopes import shuffle_mask,random_mask
    from fastai_lottery.resets import state
    DDP = nn.parallel.DistributedDataParallel

    class Accelerator:
        "accelerate's part in fastai's `distrib_ctx`, on the CPU: it need not be installed for this, and keeps one process group for good"
        def __init__(self, **kwargs): pass
        def prepare(self, model): return DDP(model)
        def backward(self, loss): loss.backward()
    sys.modules['accelerate'] = types.ModuleType('accelerate')
    sys.modules['accelerate'].Accelerator = Accelerator
    from fastai.distributed import DistributedDL
    def _broadcast(self, t, rank):    # fastai's wants a GPU
        dist.broadcast(t := torch.tensor(t), rank)
        return t.tolist()
    DistributedDL._broadcast = _broadcast

    class Stop(Callback):
        "Stops a training, in all processes, when it comes to epoch number `at`"
        at = n = None
        def before_epoch(self):
            Stop.n = 1 if Stop.n is None else Stop.n+1
            if Stop.n==Stop.at: raise RuntimeError('stopped')

    def loaders(spoil=None, bs=8, split=True):
        g = torch.Generator().manual_seed(7)
        x,w = torch.randn(96, 8, generator=g),torch.randn(8, 4, generator=g)
        y = (x@w).argmax(1)
        if spoil==rank: x[:] = float('inf')
        mine = list(zip(x,y))[rank::N] if split else list(zip(x,y))     # each process has its own half
        n = len(mine)*2//3
        return DataLoaders(DataLoader(mine[:n], bs=bs, shuffle=True, drop_last=True), DataLoader(mine[n:], bs=16), device='cpu')

    def learner(buffers=True, rewind_to='init', wrap=True, metrics=accuracy, seed=100, cbs=(), **kwargs):
        torch.manual_seed(seed+rank)                                    # each process draws its own numbers
        m = net()
        return Learner(loaders(split=wrap, **kwargs), DDP(m, broadcast_buffers=buffers) if wrap else m, loss_func=CrossEntropyLossFlat(), lr=.02,
                       metrics=metrics, cbs=[LotteryCallback(rewind_to=rewind_to), *cbs])

    def now(learn):
        "Masks and the whole state, as they are"
        return dict(mask=learn.lottery.masks.hash(), state=digest(unwrap(learn.model).state_dict()))

    def play(learn, rounds=2, n_epoch=1, fit=Learner.fit_one_cycle, **kwargs):
        "A lottery; what it began each round from, came to, and wrote down"
        seen = []
        def watched(learn, n_epoch, **kw):
            seen.append(now(learn))
            fit(learn, n_epoch, **kw)
            seen.append(dict(weights=digest(dict(unwrap(learn.model).named_parameters()))))
        rs = learn.fit_lottery(n_epoch, rounds=rounds, fit=watched, **kwargs)
        return dict(seen=seen, rows=[{k:v for k,v in r.row.items() if k!='seconds'} for r in rs],
                    hashes=[r.masks.hash() for r in rs], curves=[None if r.curve is None else r.curve.to_dict('list') for r in rs], starts=[digest(r.start) for r in rs], keys=list(rs[-1].start), **now(learn))

    def play_ctx(rounds=1, seed=None, rewind_to='init', at=100, **kwargs):
        "fastai's own way: it wraps the model and splits the data for the length of each fit"
        learn = learner(wrap=False, rewind_to=rewind_to, seed=at)
        with learn.distrib_ctx(sync_bn=False): return play(learn, rounds, seed=seed, **kwargs)

    def attempt(f):
        try:
            f()
            return 'no error'
        except Exception as e: return f'{type(e).__name__}: {e}'

    res = {}
    def case(f):
        res[f.__name__] = f
        return f

    for b in (True,False):
        res[f'global_{b}'] = lambda d, b=b: play(learner(b))
        res[f'late_{b}'] = lambda d, b=b: play(learner(b, rewind_to='2it'))
        res[f'random_{b}'] = lambda d, b=b: play(learner(b), criterion='random')
        res[f'reinit_{b}'] = lambda d, b=b: play(learner(b), reset='random_reinit')
        res[f'snip_{b}'] = lambda d, b=b: play(learner(b), criterion='snip')
    for k,n in (('init',1),('1it',1),('1ep',2)): res[f'ctx_{k}'] = lambda d, k=k, n=n: play_ctx(rewind_to=k, n_epoch=n, criterion='magnitude_increase', eval_every=2)
    @case
    def by_hand(d):
        learn,res = learner(False, rewind_to='1it'),[]
        def note(part='state_dict'): res.append(dict(mask=learn.lottery.masks.hash(), state=digest(dict(getattr(unwrap(learn.model), part)()))))
        learn.fit(1, 1e-2)                                              # batch norm's statistics are each process's own after a plain fit
        learn.prune(.3, criterion='random')
        note('named_parameters')
        learn.prune(.3, criterion='snip')
        note('named_parameters')
        learn.rewind()
        note()
        learn.rewind('noisy')
        note()
        learn.fit(1, 1e-2)
        learn.prune(.3)
        note('named_parameters')
        learn.rewind('random_reinit', seed=3)
        note()
        learn.prune(.3, hold=lambda w_f, gen: torch.randn(w_f.shape, generator=gen))
        note()
        return res
    @case
    def controls(d):
        learn = learner()
        learn.fit_lottery(1, rounds=1)
        res = []
        for kw in (dict(), dict(mask=shuffle_mask), dict(mask=random_mask), dict(reset='random_reinit')):
            r = learn.fit_ticket(learn.lottery.ticket(), 1, **kw)
            res.append(dict(now(learn), start=digest(r.start), row={k:v for k,v in r.row.items() if k!='seconds'}))
        return res
    @case
    def own_figures(d):
        "A metric that each process sees otherwise must not part them"
        class Odd(Metric):
            name,at = 'odd',0
            def reset(self): pass
            def accumulate(self, learn): type(self).at += 1
            @property
            def value(self): return -float(type(self).at) if rank else 1.
        rs = learner(metrics=[Odd()]).fit_lottery(1, rounds=3, tol=.5, monitor='odd')
        return [r['odd'] for r in rs]
    @case
    def no_variables(d):
        "Without WORLD_SIZE and RANK in the environment fastai gathers no figures: each process has its own"
        old = {k:os.environ.pop(k) for k in ('WORLD_SIZE','RANK')}
        try: return play(learner(), 1, eval_every=1, test_dl=loaders().valid, seed=3, path=d/'run')
        finally: os.environ.update(old)
    @case
    def not_finite(d): return attempt(lambda: learner(spoil=1, bs=32).fit_lottery(1, rounds=1))
    @case
    def folder(d):
        did = []
        def hook(ev, args):
            if ev=='open' and str(d) in str(args[0]) and ((isinstance(args[2],int) and args[2]&(os.O_WRONLY|os.O_RDWR|os.O_CREAT)) or set(str(args[1]))&set('wax+')): did.append(['open', str(args[0])])
            elif ev in ('os.rename','os.mkdir','os.remove') and str(d) in str(args[0]): did.append([ev, str(args[1 if ev=='os.rename' else 0])])
        sys.addaudithook(hook)
        whole = play(learner(False), rounds=2, seed=3, path=d/'whole')
        first = play(learner(False), rounds=1, seed=3, path=d/'parts')
        again = play(learner(False, seed=500), rounds=2, seed=3, path=d/'parts')      # another net, until it reads the folder's
        third = play(learner(False, seed=900), rounds=2, seed=3, path=d/'parts')      # nothing is left to do
        def epochs(d, seed, at=None):
            Stop.n,Stop.at = None,at
            return play(learner(False, seed=seed, cbs=[Stop()]), rounds=1, n_epoch=3, seed=3, eval_every=2, path=d)
        unbroken = epochs(d/'unbroken', 100)
        stopped = [attempt(lambda: epochs(d/'broken', 100, 3)), attempt(lambda: epochs(d/'broken', 500, 3))]    # in round 0, and in round 1
        return dict(whole=whole, first=first, again=again, third=third, did=list(did), unbroken=unbroken, stopped=stopped, broken=epochs(d/'broken', 900), played=Stop.n)
    @case
    def ctx_folder(d):
        kw = dict(seed=3, criterion='random')
        whole = play_ctx(1, path=d/'whole', **kw)
        play_ctx(0, path=d/'parts', **kw)
        return dict(whole=whole, again=play_ctx(1, path=d/'parts', at=500, **kw))
    @case
    def killed(d):
        "Long enough to be killed between epochs"
        class Slow(Callback):
            def before_epoch(self): time.sleep(.2)
        Stop.n,Stop.at = 0,None
        seed = 500 if (d/'run').exists() else 100    # another net, until it reads the folder's
        out = play(learner(False, seed=seed, cbs=[Stop(), Slow()]), rounds=2, n_epoch=3, seed=3, eval_every=2, path=d/'run')
        return dict(out, played=Stop.n)
    @case
    def screen(d):
        with contextlib.redirect_stdout(io.StringIO()) as o: learner().fit_lottery(1, rounds=1)
        return o.getvalue()
    @case
    def folder_errors(d):
        p = d/'run'
        play(learner(), rounds=1, seed=3, path=p)
        other = attempt(lambda: play(learner(), rounds=1, seed=4, path=p))
        if rank==0: (d/'file').write_text('')
        nowhere = attempt(lambda: play(learner(), rounds=1, path=d/'file'/'run'))
        f = p/'round_01'/'weights.safetensors'
        if rank==0: f.write_bytes(f.read_bytes()[:-40])
        dist.barrier()
        return [other, nowhere, attempt(lambda: play(learner(), rounds=1, seed=3, path=p))]
    return res

def worker(rank, d, only):
    faulthandler.dump_traceback_later(LIMIT-5, exit=True)
    torch.set_num_threads(1)
    todo = cases(rank)
    for name in only or todo:
        (d/name).mkdir(exist_ok=True)
        try:
            dist.init_process_group('gloo', f'file://{d/name}.store', rank=rank, world_size=N, timeout=timedelta(seconds=WAIT))    # a new one: an error here does not reach the next case
            out = todo[name](d/name)
            dist.barrier()
        except Exception: out = {'error': traceback.format_exc()}
        finally:
            if dist.is_initialized(): dist.destroy_process_group()
        (d/f'{name}.{rank}.json').write_text(json.dumps(out))

if __name__=='__main__':
    worker(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    sys.exit()

# --- what the tests make of it

import pytest
from fastai_lottery.files import load_tensors
from fastai_lottery.tickets import Ticket
from fastai_lottery.core import named_weights

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason='needs torch.distributed with gloo; this torch has none')

def launch(d, *only, until=None):
    "Run both processes to their end, or stop them; or kill both as soon as `until()`"
    env = dict(os.environ, WORLD_SIZE=str(N), OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
    logs = [open(d/f'log.{r}', 'w') for r in range(N)]
    ps = [subprocess.Popen([sys.executable, __file__, str(r), str(d), *only], env=dict(env, RANK=str(r), LOCAL_RANK=str(r)), stdout=logs[r], stderr=subprocess.STDOUT) for r in range(N)]
    try:
        end = time.monotonic()+LIMIT
        while until and not until() and all(p.poll() is None for p in ps) and time.monotonic()<end: time.sleep(.005)
        if until: [p.kill() for p in ps]
        for p in ps: p.wait(max(1, end-time.monotonic()))
    except subprocess.TimeoutExpired: pass      # the tests say what is missing, with the log
    finally:
        for p in ps:
            if p.poll() is None: p.kill()
            p.wait()
        for o in logs: o.close()
    return d

@pytest.fixture(scope='module')
def ran(tmp_path_factory): return launch(tmp_path_factory.mktemp('ddp'))

def results(d, name):
    "What both processes found"
    res = []
    for r in range(N):
        f = d/f'{name}.{r}.json'
        assert f.exists(), f"process {r} did not finish {name!r}:\n{(d/f'log.{r}').read_text()[-3000:]}"
        res.append(json.loads(f.read_text()))
    if bad := [f'process {r}: {o["error"]}' for r,o in enumerate(res) if isinstance(o,dict) and 'error' in o]: pytest.fail('\n'.join(bad))
    return res

def same(ran, name):
    a,b = results(ran, name)
    assert a==b
    return a

@pytest.mark.parametrize('buffers', [True,False])
@pytest.mark.parametrize('what', 'global late random reinit snip'.split())
def test_trap_23_both_processes_play_the_same_lottery(ran, what, buffers):
    "Masks, starting and trained weights, and the whole state, batch norm's statistics included; the processes' random numbers and data differ, and there is no seed"
    o = same(ran, f'{what}_{buffers}')
    assert len(o['rows'])==len(set(o['hashes']))==3 and [r['kept'] for r in o['rows']]==[192,154,123]
    assert len(o['seen'])==6 and o['hashes']==[s['mask'] for s in o['seen'][::2]] and o['hashes']==[r['mask_hash'] for r in o['rows']]

@pytest.mark.parametrize('to,iterations', [('init',[4,4]), ('1it',[4,3])])
def test_trap_23_fastais_own_context(ran, to, iterations):
    "The processes' nets differ until the first fit: the rewind point is that of rank 0, in both; points are counted in iterations of one process"
    o = same(ran, f'ctx_{to}')
    assert len(set(o['hashes']))==2 and o['starts'][0]==o['starts'][1] and [r['iterations'] for r in o['rows']]==iterations

def test_trap_23_a_rewind_point_by_epochs_in_fastais_own_context(ran):
    o = same(ran, 'ctx_1ep')
    assert [r['iterations'] for r in o['rows']]==[8,4] and [c['iteration'] for c in o['curves']]==[[2,4,6,8],[6,8]]

def test_trap_23_names_are_unwrapped(ran, tmp_path):
    "Names are those of the bare model, and its ticket fits one"
    plain = net()
    for name in ('global_True','ctx_init'): assert same(ran, name)['keys']==list(plain.state_dict())
    t = Ticket.load(ran/'folder'/'whole'/'round_02'/'ticket')
    assert list(t.masks)==['0.weight','3.weight']
    t.apply_(plain)
    for n,w in named_weights(plain, t.masks).items(): assert torch.equal(w, t.weights[n]*t.masks[n])

def test_trap_23_verbs_by_hand(ran):
    a,b,c,d,e,f,g = same(ran, 'by_hand')
    assert len({a['mask'],b['mask'],e['mask']})==3 and b['mask']==c['mask']==d['mask']
    assert c['state']['1.running_mean']==d['state']['1.running_mean'] and c['state']['0.weight']!=d['state']['0.weight']

def test_trap_23_controls_of_a_ticket(ran):
    o = same(ran, 'controls')
    assert len({r['mask'] for r in o})==3 and o[0]['mask']==o[3]['mask']

def test_trap_23_figures_that_differ_decide_as_rank_0(ran): assert same(ran, 'own_figures')==[1.]*4

def test_trap_23_a_group_that_fastai_does_not_know_of(ran): assert 'es_test_loss' in same(ran, 'no_variables')['rows'][1]

def test_trap_23_a_loss_that_one_process_finds_not_finite_stops_both(ran):
    assert same(ran, 'not_finite').startswith('FloatingPointError: round 0: the loss is')

def test_trap_23_rank_0_alone_writes(ran):
    a,b = results(ran, 'folder')
    assert b['did']==[]
    put = [f for ev,f in a['did'] if ev=='os.rename']
    once = [f for f in put if not f.endswith('.csv') and '.ckpt' not in f and '.tmp' not in f]
    assert len(once)==len(set(once)) and len(once)>=2*(2+2*3)      # settings and initial weights, and two files a round, in each of two folders
    d = ran/'folder'/'whole'
    assert not list(d.rglob('*.tmp'))
    for r in range(3):
        t = Ticket.load(d/f'round_{r:02d}'/'ticket')
        assert t.masks.hash()==b['whole']['hashes'][r] and digest(t.weights)==b['whole']['starts'][r]
    assert digest(load_tensors(d/'round_02'/'weights')[0])==b['whole']['state']

def test_trap_23_rank_0_alone_prints(ran):
    a,b = results(ran, 'screen')
    assert 'valid_loss' in a and b==''

def test_trap_23_a_folder_goes_on_in_both_processes(ran):
    a,b = results(ran, 'folder')
    for o in (a,b): del o['did']
    assert a==b
    for k in 'rows hashes starts curves mask state'.split(): assert a['again'][k]==a['whole'][k]==a['third'][k], k
    assert len(a['first']['seen'])==4 and len(a['again']['seen'])==2 and a['third']['seen']==[]
    assert a['again']['seen']==a['whole']['seen'][4:]

def test_trap_23_a_training_goes_on_after_its_last_epoch_in_both_processes(ran):
    a,b = results(ran, 'folder')
    for o in (a,b):
        assert all('stopped' in e for e in o['stopped']) and o['played']==2     # two epochs of six were left to do
        for k in 'rows hashes starts curves mask state'.split(): assert o['broken'][k]==o['unbroken'][k], k

def test_trap_23_both_killed_go_on_from_the_last_epoch(ran, tmp_path):
    whole = same(ran, 'killed')
    run,rng = tmp_path/'killed'/'run',random.Random()
    def then(f):
        "Some moment after `f()`, within two epochs"
        wait = rng.random()*.4
        def until():
            if not f(): return False
            time.sleep(wait)
            return True
        return until
    for f in (lambda: (run/'epoch.ckpt').exists(), lambda: (run/'round_00'/'weights.safetensors').exists(), lambda: (run/'rounds.csv').exists() and (run/'epoch.ckpt').exists()):
        launch(tmp_path, 'killed', until=then(f))
        assert not list(tmp_path.glob('*.json')), 'it came to its end before it was killed'
        (tmp_path/'killed.store').unlink(missing_ok=True)
    launch(tmp_path, 'killed')
    last = same(tmp_path, 'killed')
    assert whole['played']==9 and 0<last['played']<=6, last['played']     # round 0 is whole, and an epoch is played twice at most
    for k in 'rows hashes starts curves mask state'.split(): assert last[k]==whole[k], k

def test_trap_23_a_folder_in_fastais_own_context(ran):
    o = same(ran, 'ctx_folder')
    for k in 'rows hashes starts curves mask state'.split(): assert o['again'][k]==o['whole'][k], k

def test_trap_23_an_error_with_the_folder_stops_both(ran):
    other,nowhere,damaged = same(ran, 'folder_errors')
    assert other.startswith('ValueError') and 'seed was 3 and is now 4' in other
    assert 'cannot write' in nowhere and nowhere.split(':')[0] in ('OSError','NotADirectoryError','FileExistsError')
    assert damaged.startswith('ValueError') and 'damaged' in damaged

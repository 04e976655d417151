"Trap 21, and 17 across a kill: real processes are killed at any moment, and what they leave goes on to the same bits"
import contextlib,json,os,random,shutil,signal,subprocess,sys,time,uuid
from pathlib import Path
import pandas as pd,pytest,torch
from functools import partial
import fastai_lottery.rounds,fastai_lottery.identity
from fastai_lottery.files import load_tensors
from fastai_lottery.checkpoints import read_checkpoint
from fastai_lottery.cli import main
import crash_run as cr
for _n in [o for o in globals() if o.startswith('test')]: del globals()[_n]
needs_fork = pytest.mark.skipif(not hasattr(os,'fork'), reason='needs fork and SIGKILL, which Windows has not')
pytestmark = [needs_fork, pytest.mark.filterwarnings('ignore')]
here = Path(__file__).parent

# --- processes

class Server:
    "One process with all imports done, which forks another for each attempt"
    def __init__(self, tmp):
        path = os.pathsep.join([str(here),str(here.parent)])
        env = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', PYTHONPATH=path)
        self.tmp,self.err = tmp,open(tmp/'stderr','w')
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.err)
        self.p = subprocess.Popen([sys.executable, str(here/'crash_run.py')], text=True, env=env, cwd=tmp, **pipes)
    def ask(self, **kw):
        self.p.stdin.write(json.dumps(kw)+'\n')
        self.p.stdin.flush()
        line = self.p.stdout.readline()
        assert line, (self.tmp/'stderr').read_text()[-3000:]
        return json.loads(line)
    def start(self, what, args=None, **hurt):
        out = self.tmp/uuid.uuid4().hex
        args = {k:str(v) if isinstance(v, Path) else v for k,v in (args or {}).items()}
        return self.ask(do='start', what=what, args=args, hurt=hurt, out=str(out)),out
    def end(self, job, secs=None):
        "What a process said at its end; None if it was killed, after `secs` by us"
        pid,out = job
        killed,self.secs = self.ask(do='end', pid=pid, secs=secs)
        if killed: return None
        assert out.exists(), (self.tmp/'stderr').read_text()[-3000:]
        return json.loads(out.read_text())
    def run(self, what='play', kill_after=None, hurt=None, **args):
        return self.end(self.start(what, args, **(hurt or {})), kill_after)
    def good(self, **kw):
        r = self.run(**kw)
        assert r is not None and 'ok' in r, r and r.get('trace')
        return r

@pytest.fixture(scope='module')
def server(tmp_path_factory):
    s = Server(tmp_path_factory.mktemp('server'))
    yield s
    s.p.kill()
    s.p.wait()
    s.err.close()

# --- what must be equal

def content(f):
    "A file of a run without its times, so that equal content is equal bits"
    if f.suffix=='.safetensors':
        ts,meta = load_tensors(f)
        meta.pop('seconds', None)
        return {k:(str(v.dtype), tuple(v.shape), v.numpy().tobytes()) for k,v in ts.items()},meta
    if f.suffix=='.csv':
        df = pd.read_csv(f, dtype=str)
        return df.drop(columns=['seconds','digest'], errors='ignore').to_csv()
    return plain(read_checkpoint(f)) if f.suffix=='.ckpt' else f.read_bytes()

def plain(o):
    "Plain data with its tensors as bytes: pickle writes the same values in other bytes where two of them are one object"
    if torch.is_tensor(o): return str(o.dtype),tuple(o.shape),o.contiguous().numpy().tobytes()
    if isinstance(o, dict): return [(k,plain(v)) for k,v in o.items()]
    return [type(o).__name__,*map(plain, o)] if isinstance(o, (list,tuple)) else repr(o)

def files_in(d):
    return {str(f.relative_to(d)):f for f in sorted(Path(d).rglob('*')) if f.is_file() and not f.name.endswith('.lock')}

def kept(folder):
    "All files that a run keeps, without the lock, and the histories of its fits"
    return {k:content(f) for k,f in files_in(folder).items() if f.name!='batches' and f.parent.name!='models'}

def same(a, b, a_end, b_end, history=True):
    a,b = kept(a),kept(b)
    if not history: a,b = ({k:v for k,v in o.items() if not k.startswith('history')} for o in (a,b))
    assert list(a)==list(b) and [k for k in a if a[k]!=b[k]]==[]
    assert a_end['ok']==b_end['ok']
    assert b_end['ok'].get('leaks', 0)==0

def batches(folder):
    "For each process: (round, epoch, iteration) of the batches that it trained"
    res = {}
    for l in (Path(folder)/'batches').read_text().splitlines():
        pid,*rest = map(int, l.split())
        res.setdefault(pid, []).append(tuple(rest))
    return list(res.values())

@pytest.fixture(scope='module')
def whole(server, tmp_path_factory):
    "A run by its name, never killed: its folder, its end, and how long it took"
    done = {}
    def get(name, **kw):
        key = json.dumps([name,kw])
        if key not in done:
            d = tmp_path_factory.mktemp(name)
            done[key] = d,server.good(name=name, folder=d, hurt=dict(count=True), **kw),server.secs
        return done[key]
    return get

# --- killed at any moment

def other(d, n):
    return n if (d/'run'/'init.safetensors').exists() else 0     # the folder's initial weights count, not the model's

def test_killed_twenty_times_at_random_moments(server, whole, tmp_path):
    "SIGKILL from outside after it has worked for random times, until it ends; what is left is bit-equal to a run never killed"
    rng,kills,i = random.Random(3),0,0
    kw = dict(n_epoch=4, rounds=1, eval_every=2)
    d,end,secs = whole('plain', **kw)
    def go(at, mine):
        "The result; None where it was killed, which it is 12 times at most"
        return server.run(folder=at, init=other(at, kills), kill_after=rng.uniform(0,.9)*secs if mine<12 else None,
                          **kw)
    while kills<24:
        at,i,mine = tmp_path/f'{i}',i+1,0
        while (r := go(at, mine)) is None: kills,mine = kills+1,mine+1
        assert 'ok' in r, r['trace']
        same(d, at, end, r)

@pytest.mark.parametrize('name', cr.runs)
def test_killed_run_ends_the_same(name, server, whole, tmp_path):
    "Killed in each round's last epoch, at its middle, first, last batch: it goes on from the epoch's start, and ends in the same bits"
    d,end,_ = whole(name)
    done = batches(d)[0]
    starts = [i for i,o in enumerate(done) if not i or o[:2]!=done[i-1][:2]]
    rounds = [[i for i in starts if done[i][0]==r] for r in range(1+done[-1][0])]
    last = [o[-1] for o in rounds]      # where the last epoch of each round begins
    ends = [*(o[0]-1 for o in rounds[1:]), len(done)-1]
    moments = [(last[0]+ends[0])//2, last[1], ends[-1]][:len(last)]
    at = 0
    for r,t in enumerate(moments):
        assert (res := server.run(name=name, folder=tmp_path, init=r, n=t-at+1)) is None, res
        at = last[r]
    same(d, tmp_path, end, server.good(name=name, folder=tmp_path, init=9))
    parts = zip([0,*last], [*moments,len(done)-1])
    assert [o for p in batches(tmp_path) for o in p]==[o for a,t in parts for o in done[a:t+1]]

@pytest.mark.parametrize('name', ['plain','learned','carried'])
def test_killed_in_the_first_epoch_of_a_round(name, server, whole, tmp_path):
    "What trains beside the net is as the round found it"
    d,end,_ = whole(name)
    for i,n in enumerate((1,4)):    # the first batch of round 1, its first epoch's last
        at = tmp_path/f'{i}'
        done = batches(d)[0]
        assert server.run(name=name, folder=at, n=next(j for j,o in enumerate(done) if o[0]==1)+n) is None
        same(d, at, end, server.good(name=name, folder=at, init=9))

def test_killed_around_each_file_that_is_put_in_place(server, whole, tmp_path):
    "All states that the disk can be in"
    d,end,_ = whole('plain', n_epoch=2, rounds=1)
    n = end['files']
    assert n==2+2*5     # run.json, init, and per round a checkpoint, ticket, weights, curve and rounds.csv
    for i in range(1, n+1):
        for after in (False,True)[:1+(i in (2,n))]:
            at = tmp_path/f'{i}{after}'
            assert server.run(folder=at, n_epoch=2, rounds=1, hurt=dict(kill=dict(n=i, after=after))) is None
            r = server.good(folder=at, n_epoch=2, rounds=1, init=other(at, i))
            same(d, at, end, r, history=not (after and i==n))

def test_goes_on_from_the_last_finished_epoch(server, tmp_path):
    kw = dict(folder=tmp_path, n_epoch=3, rounds=1)
    assert server.run(n=4*3+4+2, **kw) is None      # the second batch of the second epoch of round 1
    server.good(**kw)
    first,second = batches(tmp_path)
    assert first[-1]==(1, 1, 4+2)
    assert second==[(1, e, 4*e+i) for e in (1,2) for i in range(1,5)]

def test_late_rewinding_goes_on_from_the_last_finished_epoch(server, tmp_path):
    kw = dict(name='late_it', folder=tmp_path, n_epoch=3, rounds=1)
    assert server.run(n=4*3+3+1,
                      **kw) is None      # round 1 begins at iteration 5, in its second epoch: this is in the third
    server.good(**kw)
    first,second = batches(tmp_path)
    assert [o for o in first if o[0]==1]==[(1,1,6),(1,1,7),(1,1,8),(1,2,9)]
    assert second==[(1,2,i) for i in range(9,13)]

# --- several tasks in one net

@pytest.mark.parametrize('name', ['plain','half'])
def test_the_next_task_is_killed_and_the_first_reads_what_it_read(name, server, tmp_path):
    "In its first epoch, in the midst of a round, before a ticket's file: the same bits, and the first task's outputs with them"
    a,b = tmp_path/'a',tmp_path/'b'
    end = server.good(what='sharing', name=name, folder=a)
    for n in (3,6,14): assert server.run('sharing', name=name, folder=b, n=n) is None
    assert server.run('sharing', name=name, folder=b, hurt=dict(kill=dict(at='ticket'))) is None
    assert end['ok']['stays'] and end['ok']['held']
    same(a, b, end, server.good(what='sharing', name=name, folder=b), history=False)    # the first task writes one, too

# --- asked to end

@pytest.mark.parametrize('name', cr.runs)
def test_ended_by_sigterm_goes_on_at_the_next_iteration(name, server, whole, tmp_path):
    "In the midst of an epoch, at its last batch, at a round's first and at the very last: each iteration is trained once, same bits"
    d,end,_ = whole(name)
    done,at = batches(d)[0],0
    second = next(i for i,o in enumerate(done) if o[0]==1)
    for t in (1, second-1, second, second+2, len(done)-1):
        if t<at: continue
        assert (res := server.run(name=name, folder=tmp_path, init=at, n=t-at+1, hurt=dict(term=True))) is None, res
        at = t+1
    same(d, tmp_path, end, server.good(name=name, folder=tmp_path, init=9))
    assert [o for p in batches(tmp_path) for o in p]==done

# --- one process a folder

def test_second_process_on_one_path(server, whole, tmp_path):
    kw = dict(folder=tmp_path, n_epoch=60, rounds=3)
    first = server.start('play', kw)
    while not (tmp_path/'run/epoch.ckpt').exists(): time.sleep(.01)
    shutil.copytree(tmp_path/'run', tmp_path/'was')
    for change in (dict(), dict(amount=.5)):
        r = server.run(**{**kw, **change})
        assert r['error']=='RuntimeError' and str(tmp_path/'run') in r['says'] and f'process {first[0]}' in r['says'], r
    assert not list((tmp_path/'run').rglob('weights*')), 'the first is still in its first round'
    assert server.end(first, 0) is None
    was,now = ({f.name for f in (tmp_path/o).iterdir()} for o in ('was','run'))
    assert now-was<={f.name for f in (tmp_path/'run').glob('.epoch*')}
    r = server.run(n=1, **kw)
    assert r is None        # it trained: it was not refused
    assert batches(tmp_path)[-1][0][1]>0, 'and from where the first was killed'

def test_second_learner_in_one_process(tmp_path):
    a,b = cr.make('plain', tmp_path/'a'),cr.make('plain', tmp_path/'b')
    class Second(cr.Callback):
        order,said = 200,[]
        def after_epoch(self):
            for path in (tmp_path/'run', tmp_path/'b'/'..'/'run'):
                with pytest.raises(RuntimeError) as e: b.fit_lottery(1, rounds=1, path=path)
                self.said.append(str(e.value))
            with pytest.raises(RuntimeError): b.fit_lottery(1, rounds=1, path=tmp_path/'link')
    (tmp_path/'link').symlink_to(tmp_path/'run')
    a.fit_lottery(1, rounds=0, path=tmp_path/'run', cbs=Second())
    assert len(Second.said)==2 and all('this process' in o for o in Second.said)
    assert str(tmp_path/'run') in Second.said[0]
    assert cr.bits(b.model)==cr.bits(cr.make('plain', tmp_path/'c').model), 'the second Learner is untouched'

# --- other settings

settings = dict(amount=.5, n_epoch=2, seed=6, lr_max=.04, hold='hold_init', criterion='random', scope='local',
    reset='random_reinit', eval_every=2)

@pytest.mark.parametrize('k', settings)
def test_changed_setting_is_named(k, whole, server, tmp_path):
    d = copy(whole('plain')[0], tmp_path)
    was = kept(d)
    r = server.run(folder=d, **{k:settings[k]})
    assert r['error']=='ValueError' and k in r['says'] and str(d/'run') in r['says'] and str(settings[k]) in r['says'], r
    assert kept(d)==was

def copy(d, to):
    shutil.copytree(d, to/'copy')
    (to/'copy'/'batches').unlink(missing_ok=True)
    return to/'copy'

def test_changed_lambda_is_told_apart(tmp_path):
    def go(f): return cr.make('bare', tmp_path).fit_lottery(1, rounds=0, criterion=f, path=tmp_path/'run')
    def scaled(c): return lambda w_f: w_f*c
    go(lambda w_f: w_f.abs())
    go(lambda w_f: w_f.abs())
    for f in (lambda w_f: -w_f.abs(), lambda w_f, k=2: w_f.abs(), scaled(1)):
        with pytest.raises(ValueError, match='criterion was .* and is now'): go(f)
    shutil.rmtree(tmp_path/'run')
    go(lambda w_f, k=1: w_f*k)
    with pytest.raises(ValueError, match='criterion'): go(lambda w_f, k=2: w_f*k)
    shutil.rmtree(tmp_path/'run')
    go(scaled(1))
    go(scaled(1))
    with pytest.raises(ValueError, match='criterion'): go(scaled(2))

def test_callbacks_that_were_used_before_are_the_same_setting(tmp_path):
    cbs = [cr.EarlyStoppingCallback(patience=3)]
    def go(cbs, rounds):
        return cr.make('bare', tmp_path).fit_lottery(2, rounds=rounds, seed=1, cbs=cbs, path=tmp_path/'run')
    for i in range(2): rs = go(cbs, i)
    assert len(rs)==2
    with pytest.raises(ValueError, match='patience'): go([cr.EarlyStoppingCallback(patience=2)], 1)

# --- another Learner

def bare(d, cbs=(), cb={}, model=cr.drop_bn, dls=None, **kw):
    return cr.learner(model, dls or cr.data(), cbs=[cr.LotteryCallback(**cb), *cbs], path=d, **kw)
class Scale(cr.Callback):
    def __init__(self, by=1.): self.by = by
    def after_loss(self): self.learn.loss_grad = self.loss_grad*self.by
def less_dropout():
    m = cr.drop_bn()
    m[3].p = .1
    return m
def flipped_data(part):
    dls = cr.data()
    dl = dls.loaders[part]
    dl.dataset = [(-x,y) for x,y in dl.dataset]
    return dls
changed = dict(
    opt_func   = dict(opt_func=partial(cr.SGD, mom=.9)),
    lr         = dict(lr=1.),
    wd         = dict(wd=.5),
    moms       = dict(moms=(.1,.1,.1)),
    loss_func  = dict(loss=cr.LabelSmoothingCrossEntropyFlat()),
    weight     = dict(loss=cr.CrossEntropyLossFlat(weight=cr.torch.tensor([1.,1.,1.,2.]))),
    layers     = dict(model=less_dropout),
    callbacks  = dict(cbs=[cr.GradientClip(.001)]),
    by         = dict(cbs=[Scale(2.)]),
    init       = dict(cb=dict(init=lambda m: None)),
    frozen     = dict(cb=dict(frozen=True)),
    batch_size = dict(dls=lambda: cr.data(bs=15)),
    data_train = dict(dls=lambda: flipped_data(0)),
    data_valid = dict(dls=lambda: flipped_data(1)))
old = dict(weight=dict(loss=cr.CrossEntropyLossFlat(weight=cr.torch.ones(4))), by=dict(cbs=[Scale(1.)]))

def go(d, rounds, path=None, test_dl=None, **kw):
    kw = {k:v() if k=='dls' else v for k,v in kw.items()}
    return bare(d, **kw).fit_lottery(1, rounds=rounds, seed=1, path=path or d/'run', test_dl=test_dl)

@pytest.mark.parametrize('k', changed)
def test_changed_learner_is_named(k, tmp_path):
    go(tmp_path, 0, **old.get(k, {}))
    was = kept_raw(tmp_path)
    with pytest.raises(ValueError, match=rf'other settings: .*\b{k}\b.* and is now') as e: go(tmp_path, 1, **changed[k])
    assert str(tmp_path/'run') in str(e.value) and kept_raw(tmp_path)==was

def test_other_test_data_are_named(tmp_path):
    go(tmp_path, 0, test_dl=cr.data().valid)
    with pytest.raises(ValueError, match='data_test was .* and is now'): go(tmp_path, 1, test_dl=flipped_data(1).valid)
    assert len(go(tmp_path, 0))==1      # none is none

def test_the_same_learner_again_and_one_that_is_looked_at(tmp_path):
    "Progress and loggers change no training; loaders and random numbers are where they were"
    go(tmp_path, 0)
    l = bare(tmp_path, cbs=[cr.ProgressCallback(), cr.CSVLogger(), cr.ShowGraphCallback()])
    with l.no_bar(), l.no_logging(): assert len(l.fit_lottery(1, rounds=1, seed=1, path=tmp_path/'run'))==2
    l = bare(tmp_path)
    dl = l.dls.train
    def at(): return random.getstate(),cr.torch.get_rng_state().tolist(),dl.rng.getstate()
    a,d = at(),fastai_lottery.identity.about_learner(l, l.lottery, l.dls.valid)
    assert at()==a and d==fastai_lottery.identity.about_learner(bare(tmp_path), l.lottery, l.dls.valid)
    assert d['data_valid']==d['data_test']

def test_loaders_that_cannot_be_read_twice_are_left_out(tmp_path):
    class Odd(cr.Noisy):
        def __getitem__(self, i): return self.x[i]*next(count),self.y[i]
    import itertools
    count = itertools.count(1)
    dls = cr.DataLoaders(cr.DataLoader(Odd(64), bs=16), cr.data().valid, device='cpu')
    for i in range(2): rs = go(tmp_path, i, dls=lambda: dls)
    assert len(rs)==2 and 'data_train' not in json.loads((tmp_path/'run'/'run.json').read_text())

def test_a_folder_of_an_older_version(tmp_path):
    "It says nothing of the Learner: it goes on, and run.json stays as it is"
    go(tmp_path, 0)
    f = tmp_path/'run'/'run.json'
    d = json.loads(f.read_text())
    new = 'opt_func lr wd moms loss_func callbacks frozen init layers batch_size'.split()
    f.write_text(s := json.dumps({k:v for k,v in d.items() if k not in new and k[:5]!='data_'}))
    assert len(go(tmp_path, 1, lr=.5))==2 and f.read_text()==s

@pytest.mark.parametrize('how', ['truncated','emptied','removed'])
def test_weights_of_an_earlier_round(how, tmp_path):
    go(tmp_path, 2)
    f = tmp_path/'run'/'round_00'/'weights.safetensors'
    spoil(f, how)
    was = kept_raw(tmp_path)
    with pytest.raises(ValueError, match='missing or damaged.*Put it back') as e: go(tmp_path, 3)
    assert str(f) in str(e.value) and kept_raw(tmp_path)==was

def test_a_copy_of_a_rounds_folder(tmp_path):
    go(tmp_path, 1)
    shutil.copytree(tmp_path/'run'/'round_01', tmp_path/'run'/'round_01_old')
    assert len(go(tmp_path, 2))==3

# --- a full disk

@pytest.mark.parametrize('at', ['run.json','init','epoch.ckpt','ticket','weights','curve','rounds.csv'])
def test_full_disk(at, server, whole, tmp_path):
    d,end,_ = whole('plain')
    early = at in ('run.json','init')
    if not early:
        assert server.run(folder=tmp_path, n=4*3+1) is None
        was = kept(tmp_path/'run'/'round_00')
    r = server.run(folder=tmp_path, hurt=dict(full_at=at))
    says = r['says']
    assert r['error']=='OSError' and at in says and str(tmp_path/'run') in says and 'make room' in says and 'None' not in says, r
    if not early: assert kept(tmp_path/'run'/'round_00')==was and len(pd.read_csv(tmp_path/'run'/'rounds.csv'))==1
    assert not list(tmp_path.rglob('*tmp'))
    same(d, tmp_path, end, server.good(folder=tmp_path))

def test_full_disk_for_the_lock_itself(server, tmp_path):
    "A lock needs no room: what is missing is told by the first file that does"
    r = server.run(folder=tmp_path, hurt=dict(full_at='run.json'))
    assert r['error']=='OSError' and 'run.json' in r['says']

# --- damaged folders

def flip(b, at=.5):
    i = int(len(b)*at)
    return b[:i]+bytes([b[i]^1])+b[i+1:]
damage = dict(truncated=lambda b: b[:len(b)//2], emptied=lambda b: b'', flipped=flip, removed=None)

@pytest.fixture(scope='module')
def stopped(server, whole, tmp_path_factory):
    "A run that was killed in the last round, after its second epoch: all kinds of files are there"
    d = tmp_path_factory.mktemp('stopped')
    assert server.run(folder=d, n=4*3*2+4*2+1) is None
    (d/'batches').unlink()
    return d

of_a_round = 'ticket.safetensors','weights.safetensors','curve.csv'
files = ['run.json','rounds.csv','init.safetensors','epoch.ckpt',
         *(f'round_0{r}/{f}' for r in (0,1) for f in of_a_round)]

def spoil(f, how):
    if how=='removed': f.unlink()
    else: f.write_bytes(damage[how](f.read_bytes()))

@pytest.mark.parametrize('how', damage)
@pytest.mark.parametrize('f', files)
def test_damaged_folder(f, how, stopped, server, whole, tmp_path):
    "Each file in turn: an error that names it and leaves all as it was, or the same bits at the end"
    d = copy(stopped, tmp_path)
    spoil(d/'run'/f, how)
    was = kept_raw(d)
    r = server.run(folder=d)
    if 'error' in r:
        named = str(d/'run'/f) in r['says'] or f=='run.json' and str(d/'run') in r['says']
        assert r['error']=='ValueError' and named, r
        assert kept_raw(d)==was, 'nothing is written'
        assert f!='epoch.ckpt' and (f,how)!=('round_00/weights.safetensors','flipped'), 'this one can be done without'
    else:
        shutil.rmtree(d/'models', ignore_errors=True)
        a,b = kept_spoiled(whole('plain')[0], f),kept_spoiled(d, f)
        assert list(a)==list(b) and [k for k in a if a[k]!=b[k]]==[] and r['ok']==whole('plain')[1]['ok']
        assert f in ('run.json','epoch.ckpt') or (f,how)==('round_00/weights.safetensors','flipped'), 'a silent end'
        if f=='epoch.ckpt': assert (how!='removed')==any('epoch.ckpt' in w for w in r['warned']), r['warned']

def kept_raw(d): return {k:f.read_bytes() for k,f in files_in(d).items()}

def kept_spoiled(d, f):
    "The files but the one that was spoiled, where it is not needed"
    return {k:content(o) for k,o in files_in(d).items() if o.name!='batches' and o!=d/'run'/f}

@pytest.mark.parametrize('at', [.2,.35,.5,.65,.8,.95])
@pytest.mark.parametrize('f', ['rounds.csv','round_00/curve.csv'])
def test_flipped_bit_anywhere_in_a_table(f, at, stopped, server, tmp_path):
    d = copy(stopped, tmp_path)
    o = d/'run'/f
    o.write_bytes(flip(o.read_bytes(), at))
    was = kept_raw(d)
    r = server.run(folder=d)
    assert r.get('error')=='ValueError' and str(o) in r['says'], r
    assert kept_raw(d)==was

def test_rounds_csv_without_its_last_lines(stopped, server, tmp_path):
    d = copy(stopped, tmp_path)
    o = d/'run'/'rounds.csv'
    o.write_text(''.join(o.read_text().splitlines(True)[:2]))
    was = kept_raw(d)    # round 1 is on the disk and finished
    (d/'run'/'epoch.ckpt').unlink()
    was.pop('run/epoch.ckpt')
    r = server.run(folder=d)
    if 'error' in r: assert str(o) in r['says'] and kept_raw(d)==was, r
    else: assert kept(d/'run'/'round_01')==kept(stopped/'run'/'round_01')

def test_init_gone_in_the_first_round(server, whole, tmp_path):
    "The checkpoint belongs to initial weights that are gone: this model's own are taken, and from the beginning"
    assert server.run(folder=tmp_path, n=6) is None
    (tmp_path/'run'/'init.safetensors').unlink()
    r = server.run(folder=tmp_path, init=1)
    if 'error' in r: assert str(tmp_path/'run'/'init.safetensors') in r['says']
    else:
        d = tmp_path/'fresh'
        e = server.good(folder=d, init=1)
        assert kept(d/'run')==kept(tmp_path/'run') and e['ok']==r['ok']

def test_run_json_of_another_kind(whole, server, tmp_path):
    d = copy(whole('plain')[0], tmp_path)
    for s in ('[]','3','null'):
        (d/'run'/'run.json').write_text(s)
        r = server.run(folder=d)
        assert r['error']=='ValueError' and 'run.json' in r['says'], r

def test_run_json_gone_and_other_settings(whole, server, tmp_path):
    "The tickets know how they were made"
    d = copy(whole('plain')[0], tmp_path)
    (d/'run'/'run.json').unlink()
    was = kept_raw(d)
    r = server.run(folder=d, amount=.5, rounds=3)
    assert r['error']=='ValueError' and 'amount was 0.4 and is now 0.5' in r['says'], r
    assert kept_raw(d)==was

def test_a_hash_that_reads_as_a_number(tmp_path, monkeypatch):
    import fastai_lottery.masks as m
    monkeypatch.setattr(m.Masks, 'hash', lambda self: '1234567890123e45')
    for i in range(2): rs = cr.make('bare', tmp_path).fit_lottery(1, rounds=0, seed=1, path=tmp_path/'run')
    assert len(rs)==1

# --- `lottery run`

def alive(group):
    "Processes of a session that are no zombies"
    res = []
    for p in Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):
            s = p.read_text().rpartition(')')[2].split()
            if int(s[3])==group and s[0]!='Z': res.append(int(p.parent.name))
    return res

def until(f, secs=120):
    "Wait for `f`, long enough for a busy machine"
    end = time.monotonic()+secs
    while not (r := f()) and time.monotonic()<end: time.sleep(.02)
    return r

flags = ['run','digits','--rounds','2','--epochs','3','--replicates','2']

class Commands:
    "`lottery run` into one folder, as a process of the server"
    def __init__(self, server, tmp): self.server,self.dir,self.tmp = server,tmp/'run',tmp
    def start(self, *more, log='log'):
        args = [*flags,'--out',str(self.dir),*more]
        return self.server.start('command', dict(args=args, log=str(self.tmp/log)))
    def end(self, p, log='log', **kw): return self.server.end(p, **kw),(self.tmp/log).read_text()

def command_of(pid):
    "The command line of a process; nothing where it has ended since it was listed"
    with contextlib.suppress(OSError): return Path(f'/proc/{pid}/cmdline').read_bytes()
    return b''

def workers(p): return [o for o in alive(p[0]) if b'spawn_main' in command_of(o)]

def is_refused(run, p):
    "A second command is told that `p` is at work"
    r,log = run.end(run.start(log='log2'), 'log2')
    assert r['ok']==1 and f"{str(run.dir)!r} is in use by process {p[0]}" in log and 'Traceback' not in log

def loses_a_worker(run):
    "A worker is killed as often as a piece is tried: the command says so, in words, and the others are played"
    p,dead = run.start('--jobs', '1'),set()
    for _ in range(3):
        assert (w := until(lambda: [o for o in workers(p) if o not in dead]))
        os.kill(w[-1], signal.SIGKILL)
        dead |= {*w}
    r,log = run.end(p)
    assert r['ok']==1 and 'lost 3 times' in log and 'was killed' in log and 'same command' in log
    assert 'Traceback' not in log and 'BrokenProcessPool' not in log, log
    assert until(lambda: not alive(p[0]), 30)

@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks for processes in /proc')
def test_lottery_run_is_killed_and_the_same_command_goes_on(server, tmp_path):
    run = Commands(server, tmp_path)
    p = run.start('--jobs', '2')
    assert until(lambda: (run.dir/'seed_00'/'rounds.csv').exists()), (tmp_path/'log').read_text()
    is_refused(run, p)
    assert server.end(p, 0) is None
    assert until(lambda: not alive(p[0]), 30), 'workers live on when their parent is killed'
    loses_a_worker(run)
    r,log = run.end(run.start('--jobs', '1'))
    assert r['ok']==0, log
    for i in (0,1):
        server.good(what='replicate', folder=tmp_path/f'alone_{i}', seed=i, rounds=2, epochs=3)
        assert kept(tmp_path/f'alone_{i}')==kept(run.dir/f'seed_0{i}')

@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks for processes in /proc')
def test_lottery_run_ends_at_sigterm_with_its_workers_checkpoints(server, tmp_path):
    "The driver asks its workers to end, waits for them, and ends; the same command goes on in mid-epoch, to the same bits"
    run,longer = Commands(server, tmp_path),('--epochs', '12', '--rounds', '1')
    p,at = run.start('--jobs', '1', *longer),run.dir/'seed_00'/'epoch.ckpt'
    assert until(at.exists), (tmp_path/'log').read_text()
    os.kill(p[0], signal.SIGTERM)
    r,log = run.end(p)
    assert r['error']=='SystemExit' and r['says']=='143', r
    assert 'asked to end: the training is on the disk, after iteration' in log, log
    assert until(lambda: not alive(p[0]), 30)
    assert 'mid' in read_checkpoint(at)['learn']
    r,log = run.end(run.start('--jobs', '2', *longer))
    assert r['ok']==0, log
    server.good(what='replicate', folder=tmp_path/'alone', seed=0, rounds=1, epochs=12)
    assert kept(tmp_path/'alone')==kept(run.dir/'seed_00')

def test_jobs_0(tmp_path, capsys):
    assert main(['run','digits','--jobs','0','--out',str(tmp_path/'x')])==1
    assert '`jobs` should be a whole number of at least 1; got 0' in capsys.readouterr().err and not (tmp_path/'x').exists()

def test_second_replicate_on_one_path(server, tmp_path):
    kw = dict(folder=tmp_path/'x', rounds=1, epochs=40)
    first = server.start('replicate', kw)
    assert until(lambda: (tmp_path/'x'/'epoch.ckpt').exists())
    r = server.run('replicate', **kw)
    assert r['error']=='RuntimeError' and f'process {first[0]}' in r['says'] and str(tmp_path/'x') in r['says'], r
    assert server.end(first, 0) is None

@pytest.fixture(scope='module')
def lab(server, tmp_path_factory):
    "A replicate with controls and measures"
    d = tmp_path_factory.mktemp('lab')
    server.good(what='replicate', folder=d/'whole'/'seed_00', measures=True, rounds=1, epochs=1)
    (d/'whole'/'play.json').write_text(json.dumps(dict(preset='digits', epochs=1, replicates=1)))
    return d/'whole'

@pytest.mark.parametrize('how', damage)
@pytest.mark.parametrize('f', ['controls.csv','measures.csv'])
def test_damaged_tables_of_a_replicate(f, how, lab, server, tmp_path):
    d = copy(lab, tmp_path)
    spoil(d/'seed_00'/f, how)
    was = kept_raw(d)
    r = server.run('replicate', folder=d/'seed_00', measures=True, rounds=1, epochs=1)
    if 'error' in r:
        assert r['error']=='ValueError' and str(d/'seed_00'/f) in r['says'], r
        assert kept_raw(d)==was
    else: assert how in ('removed','truncated') and kept(d)==kept(lab), 'a row that is not as it was written'

@pytest.mark.parametrize('how', damage)
def test_damaged_play_json(how, lab, server, tmp_path):
    d = copy(lab, tmp_path)
    spoil(d/'play.json', how)
    was = kept_raw(d)
    run = 'run digits --rounds 1 --epochs 1 --replicates 1 --jobs 1 --out'.split()
    r = server.run('command', args=[*(['report'] if how=='removed' else run), str(d)], log=str(tmp_path/'log'))
    log = (tmp_path/'log').read_text()
    if how=='removed':
        assert r['ok']==0, log
        return
    named = str(d/'play.json') in log or how=='flipped' and str(d) in log
    assert r['ok']==1 and named and 'Traceback' not in log and kept_raw(d)==was, log

def test_killed_among_controls_and_measures(server, lab, tmp_path):
    for f in ('.controls','.measures'):
        d = tmp_path/f
        assert server.run('replicate', hurt=dict(kill=dict(at=f[1:])), folder=d, measures=True, rounds=1,
                          epochs=1) is None
        server.good(what='replicate', folder=d, measures=True, rounds=1, epochs=1)
        assert kept(d)==kept(lab/'seed_00')
    d = tmp_path/'counted'      # the tables are whole, and the last count is missing
    shutil.copytree(lab/'seed_00', d)
    (d/'tables.json').write_text(json.dumps({'controls.csv':1}))
    server.good(what='replicate', folder=d, measures=True, rounds=1, epochs=1)
    assert kept(d)==kept(lab/'seed_00')

"A sweep in pieces: equal to one process bit for bit, whoever plays them; workers that die, errors, drivers that come again"
import contextlib,gc,json,math,os,pickle,shutil,signal,subprocess,sys,threading,time,weakref
from collections import Counter
from concurrent.futures import Executor,Future,ProcessPoolExecutor,ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
import multiprocessing
import pandas as pd,pytest,torch
from torch import nn
from fastai.learner import Learner
from fastai_lottery import pieces,sweeps
from fastai_lottery.arms import ticket_instability,ticket_stability,one_shot
from fastai_lottery.experiments import LevelWarning,Preset,measured,play_seed,results
from fastai_lottery.files import locked
from fastai_lottery.pieces import job_of,pieces_of,rounds_for,work
from fastai_lottery.presets import preset
from fastai_lottery.resets import random_reinit
from fastai_lottery.scopes import shuffle_mask
from fastai_lottery.sweeps import play

# --- a preset with all kinds of pieces

def data(path=None, seed=0, device=None):
    from fastai.data.core import DataLoaders
    from fastai_lottery.data import TensorDL,TensorDS
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(7))
    y = x[:,:4].argmax(1)
    a,b = TensorDS(x[:64], y[:64]),TensorDS(x[64:], y[64:])
    return DataLoaders(TensorDL(a, bs=16, shuffle=True, seed=seed), TensorDL(b, bs=32), TensorDL(b, bs=32),
                       device='cpu')

def net(): return nn.Sequential(nn.Linear(8,12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(.1), nn.Linear(12,4))
def once(run, k): return run.fit(one_shot(run, k))
def kept(run, k): return [dict(what='a', kept=run.ticket(k).masks.n_kept), dict(what='b', kept=len(run.rounds))]

lab = Preset('lab', 'a net of some weights', 'none', 'seconds', data, net,
             dict(n_epoch=2, rounds=3, amount=.4, fit=Learner.fit, lr=.02, eval_every=4), levels=(1,3), replicates=2,
             controls=dict(reinit=dict(reset=random_reinit), shuffle=dict(mask=shuffle_mask), once=once,
                           keep=dict(reset='keep')),
             at=dict(stability=(3,), instability=(3,)),
             lotteries=dict(chance=dict(criterion='random'), wide=dict(n_epoch=1)),
             measures=dict(kept=kept, stability=partial(ticket_stability, orders=2),
                           instability=partial(ticket_instability, alphas=3)))
small = replace(lab, controls=dict(reinit=dict(reset=random_reinit)), lotteries={}, measures={}, levels=(1,),
                settings={**lab.settings, 'rounds':1})

class Here(Executor):
    "Plays at once, in this process; `hurt` sees each job first and may raise what the executor is to raise"
    def __init__(self, hurt=lambda o: None): self.hurt,self.seen,self.closed = hurt,[],False
    def submit(self, fn, job):
        f = Future()
        self.seen.append(str(job['o']))
        try:
            self.hurt(job['o'])
            f.set_result(fn(job))
        except Exception as e: f.set_exception(e)
        return f

def played(p, d, ex=None, **kw): return list(play(p, d, executor=Here() if ex is None else ex, **kw))

def plain(f):
    "The table in a file, without what differs from one training to the next"
    return pd.read_csv(f, dtype=dict(mask_hash=str)).drop(columns=['seconds','digest','at'], errors='ignore')
def same(a, b):
    names = {g.relative_to(a) for g in a.rglob('*.csv')}
    assert names=={g.relative_to(b) for g in b.rglob('*.csv')}
    for n in sorted(names):
        if n.name=='tables.json': continue
        pd.testing.assert_frame_equal(plain(a/n), plain(b/n), check_exact=True)

@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    "Two seeds, each played by one process"
    d = tmp_path_factory.mktemp('alone')
    for i in range(2): play_seed(lab, i, d/f'seed_{i:02d}')
    return d

# --- equal

def test_pieces_are_equal_to_one_process(alone, tmp_path):
    ex = Here()
    seen = played(lab, tmp_path/'run', ex)
    for i in range(2): same(alone/f'seed_0{i}', tmp_path/'run'/f'seed_0{i}')
    assert len(ex.seen)==len({*ex.seen})==2*len(pieces_of(lab, 0))
    assert seen[-1][0]==seen[-1][1] and all(a[0]<=b[0] for a,b in zip(seen, seen[1:]))
    told = pd.concat([o.new for o in seen if o.new is not None])
    key = ['seed','arm','round']
    want = results(tmp_path/'run')
    assert sorted(told[key].itertuples(index=False))==sorted(want[key].itertuples(index=False)), 'each training is told once'
    assert not (tmp_path/'run'/'seed_00'/'pieces').exists() and not (tmp_path/'run'/'.driver').exists()
    again = Here()
    assert played(lab, tmp_path/'run', again)[-1]==seen[-1] and not again.seen, 'nothing is asked for again'

def test_pieces_in_any_order_give_the_same_files(alone, tmp_path):
    "The last that may begin goes first"
    class Last(Here):
        def __init__(self):
            super().__init__()
            self.waits = []
        def submit(self, fn, job):
            self.waits.append((f := Future(), fn, job))
            return f
        def go(self):
            f,fn,job = self.waits.pop()
            f.set_result(fn(job))
    ex = Last()
    steps = play(lab, tmp_path/'run', executor=ex)
    next(steps)
    t = threading.Thread(target=lambda: [None for _ in steps])
    t.start()
    while t.is_alive():
        ex.go() if ex.waits else time.sleep(.01)
    for i in range(2): same(alone/f'seed_0{i}', tmp_path/'run'/f'seed_0{i}')

def test_threads_play_one_piece_at_a_time(alone, tmp_path):
    with ThreadPoolExecutor(3) as ex: played(lab, tmp_path/'run', ex)
    for i in range(2): same(alone/f'seed_0{i}', tmp_path/'run'/f'seed_0{i}')

def test_a_folder_of_one_process_goes_on_in_pieces(alone, tmp_path):
    d = tmp_path/'run'
    shutil.copytree(alone, d)
    f = d/'seed_01'/'controls.csv'
    f.write_text(''.join(f.read_text().splitlines(True)[:3]))
    ex = Here()
    played(lab, d, ex)
    assert Counter(o.split(', ')[0] for o in ex.seen)=={'seed 0':3,
                                                        'seed 1':3+6}, 'lotteries are checked once, and what is missing is played'
    same(alone/'seed_01', d/'seed_01')

def test_a_piece_that_was_left_is_taken_by_one_process(alone, tmp_path):
    o = [o for o in pieces_of(lab, 0) if o.name=='once'][0]
    def job(o): return job_of(pickle.dumps(lab), o, tmp_path, made='xmade')
    for q in (pieces_of(lab, 0)[0], o): assert 'ok' in work(job(q))
    with pytest.raises(ValueError, match="holds 'once' .round 1. made in another way"):
        play_seed(lab, 0, tmp_path/'seed_00')
    shutil.rmtree(tmp_path/'seed_00'/'pieces')
    assert 'ok' in (res := work({**job(o), 'made':sweeps.made_by(once)})), res
    n = len(results(tmp_path))
    assert n==4+1, 'what a piece has finished is shown before it is merged'
    play_seed(lab, 0, tmp_path/'seed_00')
    same(alone/'seed_00', tmp_path/'seed_00')

# --- what may begin when

nets = []
def seen_net():
    nets.append(weakref.ref(m := net()))
    return m

def test_nothing_of_a_piece_stays_in_its_worker(tmp_path):
    "A Learner and its callbacks hold each other; Python would look for them some time later"
    p,nets[:] = replace(small, model=seen_net),[]
    gc.disable()
    try:
        for o in pieces_of(p, 0): assert 'ok' in work(job_of(p, o, tmp_path))
        assert len(nets)>1 and not [m for m in nets if m() is not None]
    finally: gc.enable()

def test_a_control_begins_when_its_round_is_there(tmp_path):
    by = {(o.name,o.k):rounds_for(lab, o) for o in pieces_of(lab, 0)}
    assert by['reinit',1]==2 and by['reinit',3]==4 and by['once',1]==by['kept',1]==math.inf
    assert by['chance',-1]==1 and by['wide',-1]==0
    for more in (dict(tol=.1), dict(stop=len), dict(cbs=[1])):
        p = replace(lab, settings={**lab.settings, **more})
        assert rounds_for(p, [o for o in pieces_of(p, 0) if o.name=='reinit'][0])==math.inf

def test_a_control_beside_a_lottery_that_goes_on(alone, tmp_path):
    "It is over before the lottery is"
    q = replace(lab, settings={**lab.settings, 'rounds':1}, levels=(1,))
    ps = pieces_of(lab, 0)
    assert 'ok' in work(job_of(pickle.dumps(q), ps[0], tmp_path))
    o = [o for o in ps if (o.name,o.k)==('keep',1)][0]
    row = work(job_of(pickle.dumps(lab), o, tmp_path))['ok'][0]
    assert len(pd.read_csv(tmp_path/'seed_00'/'rounds.csv'))==2
    want = plain(alone/'seed_00'/'controls.csv')
    want = want[(want.arm=='keep')&(want['round']==1)].iloc[0]
    assert row['mask_hash']==want.mask_hash and row['test_accuracy']==want.test_accuracy
    assert row['valid_loss']==want.valid_loss

def test_measures_train_nothing_twice(tmp_path, monkeypatch):
    fits = []
    old = pieces.Kept.fit
    monkeypatch.setattr(pieces.Kept, 'fit', lambda self, *a, **kw: fits.append(1) or old(self, *a, **kw))
    p = replace(lab, controls={}, lotteries={}, levels=(3,), replicates=1)
    played(p, tmp_path/'run')
    # orders 3, 0 of the ticket, of which 3 was trained by the lottery, and of the random mask; instability has no more
    assert len(fits)==3

# --- workers that die, errors

def dies(times):
    "Raises, as an executor does whose worker is gone, for the pieces named so often"
    left = dict(times)
    def hurt(o):
        if left.get(o.kind, 0)>0:
            left[o.kind] -= 1
            raise OSError('node lost')
    return hurt

def test_a_piece_that_is_lost_is_asked_for_again(tmp_path):
    ex = Here(dies(dict(lottery=1, control=2)))
    played(small, tmp_path/'run', ex, replicates=1)
    assert ex.seen==['seed 0, lottery']*2+['seed 0, reinit, round 1']*3

def test_a_piece_that_is_always_lost_ends_alone(tmp_path):
    "Its seed keeps what it has; the other seed is played"
    def hurt(o):
        if (o.seed,o.kind)==(0,'control'): raise OSError('node lost')
    ex = Here(hurt)
    with pytest.raises(RuntimeError, match='seed 0, reinit, round 1: its worker was lost 3 times.*node lost'):
        played(small, tmp_path/'run', ex)
    assert results(tmp_path/'run').groupby('seed').size().to_dict()=={0:2, 1:3}
    played(small, tmp_path/'run')
    assert results(tmp_path/'run').groupby('seed').size().to_dict()=={0:3, 1:3}

def _typo(run, k): raise KeyError(f'seed {run.seed}')
def test_an_error_of_a_piece_is_raised_when_the_others_are_over(tmp_path):
    p = replace(lab, replicates=1, controls=dict(reinit=dict(reset=random_reinit), bad=_typo), lotteries={},
                measures=dict(kept=kept), levels=(1,))
    ex,seen = Here(),[]
    with pytest.raises(KeyError, match='seed 0'): seen.extend(o for o in play(p, tmp_path/'run', executor=ex))
    assert len(ex.seen)==4, 'an error of ours is asked for once'
    df = results(tmp_path/'run')
    assert df.arm.tolist()==['dense']+['ticket']*3+['reinit'] and len(measured(tmp_path/'run'))==2
    log = next((tmp_path/'run'/'logs'/'seed_00').glob('*bad*.log')).read_text()
    assert 'Traceback' in log and '_typo' in log
    assert play_seed(replace(p, controls=dict(reinit=p.controls['reinit'])), 0,
                     tmp_path/'run'/'seed_00').equals(df.drop(columns='seed'))

def test_what_needs_a_failed_piece_is_not_played(tmp_path):
    def net(): raise ValueError('no such net')
    ex = Here()
    with pytest.raises(ValueError, match='no such net'):
        played(replace(small, model=net), tmp_path/'run', ex, replicates=1)
    assert ex.seen==['seed 0, lottery']

def kill_once(f, fn, job):
    "A worker that dies at its first control"
    if job['o'].kind=='control' and not os.path.exists(f):
        open(f, 'w').close()
        os.kill(os.getpid(), signal.SIGKILL)
    return fn(job)

class Hurt(Executor):
    "Another executor, whose workers are killed"
    def __init__(self, ex, f): self.ex,self.f = ex,f
    def submit(self, fn, job): return self.ex.submit(kill_once, self.f, fn, job)

def test_a_pool_that_broke_ends_with_an_error_that_says_so(tmp_path):
    ex = Hurt(ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')), str(tmp_path/'dead'))
    with pytest.raises(RuntimeError, match='takes no more pieces, BrokenProcessPool.*make a new executor'):
        for _ in play('one-shot-tiny', tmp_path/'run', replicates=1, executor=ex): pass
    assert len(results(tmp_path/'run'))>=2, 'what was finished is kept'
    with pytest.raises(RuntimeError, match='takes no more pieces'):
        for _ in play('one-shot-tiny', tmp_path/'run', replicates=1, executor=ex): pass

# --- drivers that come again

def test_a_piece_that_an_old_worker_still_plays_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, '_pause', .1)
    o = pieces_of(small, 0)[0]
    d = tmp_path/'run'/'seed_00'/'pieces'/o.folder
    d.mkdir(parents=True)
    ex,asked = Here(),[]
    with locked(d, 'piece'):
        steps = play(small, tmp_path/'run', replicates=1, executor=ex)
        for _ in steps:
            if len(ex.seen)>=3: break
        assert {*ex.seen}=={str(o)} and not (tmp_path/'run'/'seed_00'/'rounds.csv').exists()
    for _ in steps: pass
    assert len(results(tmp_path/'run'))==3

def test_a_control_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    "Stopped in its last epoch, it trains no more than that"
    p = replace(small, settings={**small.settings, 'n_epoch':4}, replicates=1)
    o = pieces_of(p, 0)[1]
    def job(o): return job_of(pickle.dumps(p), o, tmp_path/'run', made='x')
    work(job(pieces_of(p, 0)[0]))
    epochs,old = [],Learner._do_epoch
    def epoch(self):
        if len(epochs)==3: raise MemoryError('stopped')
        epochs.append(1)
        old(self)
    monkeypatch.setattr(Learner, '_do_epoch', epoch)
    assert 'error' in work(job(o))
    more = []
    monkeypatch.setattr(Learner, '_do_epoch', lambda self: more.append(1) or old(self))
    row = work(job(o))['ok'][0]
    assert len(more)==1
    whole = play_seed(p, 0, tmp_path/'whole')
    want = whole[whole.arm=='reinit'].iloc[0]
    assert (row['mask_hash'],row['valid_loss'],row['test_accuracy'])==(want.mask_hash,want.valid_loss,want.test_accuracy)

# --- workers are checked

def test_a_worker_that_does_not_see_the_folder(tmp_path, monkeypatch):
    class Elsewhere(Here):
        def submit(self, fn, job): return super().submit(fn, {**job, 'root':str(tmp_path/'other')})
    monkeypatch.setattr(pieces, '_sees', partial(pieces._sees, secs=.1))
    with pytest.raises(RuntimeError, match='does not see what the driver wrote into .*other'):
        played(small, tmp_path/'run', Elsewhere())

def test_a_worker_of_another_version(tmp_path):
    class Old(Here):
        def submit(self, fn, job): return super().submit(fn, {**job, 'versions':{**job['versions'], 'torch':'1.0'}})
    with pytest.raises(RuntimeError, match='it has torch .* and the driver 1.0'): played(small, tmp_path/'run', Old())

def test_executor_and_jobs(tmp_path):
    with pytest.raises(ValueError, match='`jobs` is for processes of our own'):
        play('digits', tmp_path, jobs=2, executor=Here())
    with pytest.raises(ValueError, match='`executor` should be one of concurrent.futures'):
        play('digits', tmp_path, executor=3)

# --- nothing is read that has not changed

def test_what_has_not_changed_is_not_read_again(alone, tmp_path, monkeypatch):
    from fastai_lottery import experiments,files
    shutil.copytree(alone, tmp_path/'run')
    monkeypatch.setattr(files, '_young', 0)
    first = results(tmp_path/'run')
    read = []
    monkeypatch.setattr(experiments, 'checked_rounds', lambda *a: read.append(a))
    pd.testing.assert_frame_equal(results(tmp_path/'run'), first)
    assert not read
    os.utime(tmp_path/'run'/'seed_00'/'round_01'/'curve.csv')
    with contextlib.suppress(Exception): results(tmp_path/'run')
    assert read

def test_a_young_file_is_read_again(alone, tmp_path):
    "Another change may bear the same time"
    shutil.copytree(alone, tmp_path/'run')
    a = results(tmp_path/'run')
    f = tmp_path/'run'/'seed_00'/'rounds.csv'
    st = f.stat()
    f.write_text(f.read_text().replace('0', '1', 1))
    os.utime(f, ns=(st.st_atime_ns, st.st_mtime_ns))
    with pytest.raises(ValueError, match='seed_00.rounds.csv'): results(tmp_path/'run')

def test_a_backend_by_its_name(capsys, tmp_path):
    from fastai_lottery.cli import main
    for args,says in ((['--backend','rai'], 'did you mean'), (['--address','a:1'], 'are for --backend ray or dask')):
        assert main(['run', 'digits', '--out', str(tmp_path/'x'), *args])==1
        assert says in capsys.readouterr().err.lower() and not (tmp_path/'x').exists()

# --- experiments of one's own: what they may hold is told before anything is written

def go(p, out, **kw): return [*play(p, out, executor=Here(), **kw)]

@pytest.mark.parametrize('more', [dict(search=.5), dict(search=.5, sides=[1]), dict(keep='all'), dict(start=None)])
def test_settings_of_a_lottery_are_none_of_its_controls(more, tmp_path):
    "Whatever `fit_lottery` takes and `fit_ticket` does not"
    p = replace(small, settings={**small.settings, 'rounds':2, **more}, levels=(1,2), replicates=1)
    go(p, tmp_path/'a')
    df = results(tmp_path/'a')
    assert {(a,k) for a,k in zip(df.arm, df['round'])} >= {('reinit',1),('reinit',2),('ticket',2)}
    alone = play_seed(p, 0, tmp_path/'b')
    assert df[df.arm=='reinit'].mask_hash.tolist()==alone[alone.arm=='reinit'].mask_hash.tolist()
    assert df[df.arm=='reinit'].test_loss.tolist()==alone[alone.arm=='reinit'].test_loss.tolist()

@pytest.mark.parametrize('gives,says', [(dict(a=1., round=0),"figure called 'round'"), (dict(seed=1),"figure called 'seed'"),
                                        ([dict(arm=1)],"figure called 'arm'"), (dict(of=1),"figure called 'of'"),
                                        (1.5,'figures by name.*1.5'), ('x','figures by name'), ([1],'figures by name')])
def test_a_measure_that_no_table_can_hold(gives, says, tmp_path):
    p = replace(small, measures=dict(m=lambda run,k: gives), controls={}, replicates=1)
    with pytest.raises(ValueError, match=says): go(p, tmp_path/'a')
    assert not (tmp_path/'a'/'seed_00'/'measures.csv').exists()
    with pytest.raises(ValueError, match=says): play_seed(p, 0, tmp_path/'b')

def test_a_control_that_is_no_round(tmp_path):
    p = replace(small, controls=dict(c=lambda run,k: dict(a=1)), replicates=1)
    with pytest.raises(ValueError, match=r'should give a `Round`.*\{.a.: 1\}'): go(p, tmp_path/'a')

@pytest.mark.parametrize('change,says', [
    (dict(lotteries={'1/3':dict(amount=1/3)}),"'1/3', which cannot be its folder"), (dict(lotteries=dict(pieces={})),"'pieces'"),
    (dict(lotteries=dict(round_01={})),"'round_01'"), (dict(lotteries={'..':{}}),"'..'"),
    (dict(lotteries=dict(reinit={})),"'reinit'.*of its own"),
    (dict(controls=dict(ticket=dict(reset='keep'))),"'ticket'.*of its own"), (dict(controls={3:dict(reset='keep')}),'called 3'),
    (dict(settings=dict(n_epoch=1)),"'rounds' is missing"), (dict(settings=dict(rounds=1)),"'n_epoch' is missing")])
def test_names_and_settings_that_cannot_be_told_apart_or_lack(change, says, tmp_path):
    p = replace(small, **change)
    with pytest.raises(ValueError, match=says): play(p, tmp_path/'a', executor=Here())
    with pytest.raises(ValueError, match=says): play_seed(p, 0, tmp_path/'a')
    assert not (tmp_path/'a').exists()

def test_a_level_that_the_lottery_did_not_reach(tmp_path):
    "It is left out with a word, again where the same call comes again; all else is played"
    p = replace(small, settings={**small.settings, 'rounds':4, 'to':.5}, levels=(1,4), replicates=1)
    want = [('dense',0),('reinit',1),('ticket',1),('ticket',2)]
    for f in (lambda: go(p, tmp_path/'a'), lambda: go(p, tmp_path/'a'), lambda: play_seed(p, 0, tmp_path/'b')):
        with pytest.warns(LevelWarning, match='reinit: its lottery ended before round 4, by `to`'): f()
    for df in (results(tmp_path/'a'), play_seed(p, 0, tmp_path/'b')): assert sorted(zip(df.arm, df['round']))==want

@pytest.mark.parametrize('kw', [dict(replicates=2.5), dict(replicates='3'), dict(replicates=[1]), dict(replicates=0), dict(rounds=1.5),
                                dict(epochs=1.5), dict(epochs='2')])
def test_numbers_that_are_not_whole(kw, tmp_path):
    with pytest.raises(ValueError, match=f'`{[*kw][0]}` should be a whole number of at least'): go(small, tmp_path/'a', **kw)
    assert not (tmp_path/'a').exists()
@pytest.mark.parametrize('jobs', [1.5, math.nan, '2', 0])
def test_jobs_that_are_no_number(jobs, tmp_path):
    with pytest.raises(ValueError, match='`jobs` should be a whole number of at least 1'): play(small, tmp_path/'a', jobs=jobs)

class Odd(Executor):
    def __init__(self, gives): self.gives = gives
    def submit(self, fn, *args): return self.gives
def given(v):
    f = Future()
    f.set_result(v)
    return f
@pytest.mark.parametrize('ex,kind,says', [(ThreadPoolExecutor,ValueError,'one of concurrent.futures'),
                                          (Odd({}),TypeError,'should give a Future'),
                                          (Odd(given(None)),RuntimeError,'gave None for what the piece gave')])
def test_executors_that_are_none(ex, kind, says, tmp_path):
    with pytest.raises(kind, match=says): [*play(replace(small, replicates=1), tmp_path/'a', executor=ex)]

def test_what_cannot_travel_is_told(tmp_path):
    p = replace(small, controls=dict(c=partial(once, threading.Lock())))
    with pytest.raises(TypeError, match="'lab' holds something that cannot travel.*lock"):
        play(p, tmp_path/'a', executor=ThreadPoolExecutor(1))

def test_a_measure_that_gives_nothing_is_no_level_beyond_the_end(tmp_path, recwarn):
    go(replace(small, measures=dict(m=lambda run,k: []), controls={}, replicates=1), tmp_path/'a')
    assert not [w for w in recwarn if issubclass(w.category, LevelWarning)]

@pytest.mark.parametrize('ends', [lambda ex: ex.submit(os._exit, 3).result(), lambda ex: ex.submit(float, 'x').result()],
                         ids=['killed','error'])
def test_no_thread_of_a_pool_outlives_an_error(ends):
    "Python's own end would meet it closing pipes, and add 'Bad file descriptor' to the error that counts"
    from fastai_lottery.slots import of_ours
    with pytest.raises((RuntimeError,ValueError)), of_ours(1) as ex: ends(ex)
    assert not [t for t in threading.enumerate() if 'ExecutorManager' in type(t).__name__]

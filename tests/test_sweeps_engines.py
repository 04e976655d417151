"Sweeps on real clusters of this machine: Ray with two nodes, Dask with workers of several threads"
import contextlib,os,signal,socket,subprocess,sys,threading,time
from functools import partial
from pathlib import Path
import pandas as pd,pytest
from fastai_lottery import engines
from fastai_lottery.checkpoints import read_checkpoint
from fastai_lottery.engines import RayExecutor,dask_executor,executor_for
from fastai_lottery.experiments import play_seed,results
from fastai_lottery.presets import preset
from fastai_lottery.sweeps import play

pytestmark = pytest.mark.extra
root = Path(__file__).resolve().parent.parent
few = dict(rounds=2, epochs=2)

def figures(d):
    df = results(d).sort_values(['seed','arm','round'], ignore_index=True)
    return df.drop(columns='seconds')

@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    d = tmp_path_factory.mktemp('alone')
    for i in range(2): play_seed(preset('digits'), i, d/f'seed_0{i}', **few)
    return d

def equal(a, b): pd.testing.assert_frame_equal(figures(a), figures(b), check_exact=True)

def files(d, what): return [f.read_text() for f in (d/'logs').rglob('*.log') if what in f.name]

@contextlib.contextmanager
def env(**kw):
    old = {k:os.environ.get(k) for k in kw}
    os.environ.update(kw)
    try: yield
    finally:
        for k,v in old.items(): os.environ.pop(k) if v is None else os.environ.__setitem__(k, v)

own = dict(PYTHONPATH=str(root), OMP_NUM_THREADS='1')

@contextlib.contextmanager
def silent():
    "A socket that listens and never says anything"
    with socket.socket() as o:
        o.bind(('127.0.0.1', 0))
        o.listen()
        yield f'127.0.0.1:{o.getsockname()[1]}'

def worker_of(d, kind):
    "The process that plays a piece of this kind, once it has begun"
    end = time.monotonic()+180
    while time.monotonic()<end:
        for s in files(d, kind):
            if 'begins' in s: return int(s.split('begins in process ')[-1].split(' ')[0])
        time.sleep(.02)
    raise AssertionError('no piece began')

def driver_dies(d, backend, address):
    "`lottery run` on a cluster, killed as soon as a worker has begun a piece, which goes on there or ends with it"
    says = 'import sys; from fastai_lottery.cli import main; sys.exit(main())'
    args = ['run','digits','--rounds','2','--epochs','2','--replicates','2','--out',str(d),'--backend',backend,'--address',address]
    p = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', says, *args], env=dict(os.environ, **own),
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try: worker_of(d, 'lottery')
    finally:
        p.kill()
        p.wait()

@pytest.fixture(scope='module')
def long(tmp_path_factory):
    "One seed, played long enough to be asked to end in the midst of an epoch"
    d = tmp_path_factory.mktemp('long')
    play_seed(preset('digits'), 0, d/'seed_00', rounds=1, epochs=20)
    return d

def ends_in_mid_epoch(d, seen, client=None):
    "SIGTERM to the worker that plays a piece, or its retirement by Dask's `client`; from which process its checkpoint then is"
    pid,at = worker_of(d, 'lottery'),d/'seed_00'/'epoch.ckpt'
    end = time.monotonic()+180
    while not at.exists() and time.monotonic()<end: time.sleep(.01)
    if client is None: os.kill(pid, signal.SIGTERM)
    else: client.retire_workers([a for a,o in client.run(os.getpid).items() if o==pid])
    while time.monotonic()<end:
        with contextlib.suppress(OSError, ValueError):
            if 'mid' in read_checkpoint(at)['learn']: return seen.append(pid)
        time.sleep(.005)

def goes_on_elsewhere(long, d, seen):
    "A checkpoint was written in mid-epoch, and a second worker went on from it to the same bits"
    assert len(seen)==1, 'no checkpoint was written in mid-epoch'
    equal(long, d)
    (log,) = files(d, 'lottery')
    assert log.count('begins')==2 and log.count('is over')==1, log

# --- Ray

@pytest.fixture(scope='module')
def two_nodes():
    ray = pytest.importorskip('ray')
    from ray.cluster_utils import Cluster
    with env(**own, RAY_DEDUP_LOGS='0'):
        c = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False))
        c.other = c.add_node(num_cpus=1)
        ray.init(c.address, log_to_driver=False)
        yield c
        ray.shutdown()
        c.shutdown()

def test_ray_is_equal(two_nodes, alone, tmp_path):
    seen = list(play('digits', tmp_path/'run', replicates=2, executor=RayExecutor(), **few))
    equal(alone, tmp_path/'run')
    assert seen[-1][0]==seen[-1][1]==10

@pytest.mark.parametrize('more', [dict(num_cpus=8), dict(num_gpus=.25), dict(resources={'big':1})])
def test_ray_without_what_is_asked_for(more, two_nodes):
    t = time.monotonic()
    with pytest.raises(RuntimeError, match='no node of the Ray cluster has'): RayExecutor(**more)
    assert time.monotonic()-t<30

def test_a_driver_of_ray_that_is_killed_and_started_again(two_nodes, alone, tmp_path):
    "Nothing twice, nothing lost, whatever its old pieces do"
    driver_dies(tmp_path/'run', 'ray', two_nodes.address)
    for _ in play('digits', tmp_path/'run', replicates=2, executor=RayExecutor(), **few): pass
    equal(alone, tmp_path/'run')

def test_a_worker_of_ray_that_is_asked_to_end_writes_a_checkpoint(two_nodes, long, tmp_path):
    "After the iteration that it is in; another worker goes on from there, to the same bits"
    t = threading.Thread(target=ends_in_mid_epoch, args=(tmp_path/'run', seen := []))
    t.start()
    for _ in play('digits', tmp_path/'run', replicates=1, executor=RayExecutor(), rounds=1, epochs=20): pass
    t.join()
    goes_on_elsewhere(long, tmp_path/'run', seen)

def test_a_worker_and_a_node_of_ray_that_go_away(two_nodes, alone, tmp_path):
    "A piece goes on elsewhere"
    steps = play('digits', tmp_path/'run', replicates=2, executor=RayExecutor(), **few)
    next(steps)
    def hurt():
        os.kill(worker_of(tmp_path/'run', 'lottery'), signal.SIGKILL)
        two_nodes.remove_node(two_nodes.other)
    t = threading.Thread(target=hurt)
    t.start()
    for _ in steps: pass
    t.join()
    equal(alone, tmp_path/'run')
    assert sum(s.count('begins') for s in files(tmp_path/'run', 'lottery'))>2

# --- Dask

@pytest.fixture(scope='module')
def cluster():
    distributed = pytest.importorskip('distributed')
    with env(**own), distributed.LocalCluster(n_workers=2, threads_per_worker=3, dashboard_address=None,
                                              silence_logs=50) as c:
        yield c

def test_dask_is_equal_with_several_threads_a_worker(cluster, alone, tmp_path):
    from distributed import Client
    with Client(cluster) as client:
        for _ in play('digits', tmp_path/'run', replicates=2, executor=client.get_executor(), **few): pass
    equal(alone, tmp_path/'run')

def test_dask_without_the_resource(cluster, tmp_path):
    ex = dask_executor(cluster.scheduler_address, resources={'GPU':.25})
    with pytest.raises(RuntimeError, match="no worker of the Dask cluster has {'GPU': 0.25}"):
        list(play('digits', tmp_path/'run', executor=ex, **few))
    ex._client.close()

def test_a_worker_of_dask_that_is_killed(cluster, alone, tmp_path):
    ex = dask_executor(cluster.scheduler_address)
    steps = play('digits', tmp_path/'run', replicates=2, executor=ex, **few)
    next(steps)
    t = threading.Thread(target=lambda: os.kill(worker_of(tmp_path/'run', 'lottery'), signal.SIGKILL))
    t.start()
    for _ in steps: pass
    t.join()
    equal(alone, tmp_path/'run')
    ex._client.close()

@pytest.mark.parametrize('how', ['sigterm','retired'])
def test_a_worker_of_dask_that_is_asked_to_end_writes_a_checkpoint(how, long, tmp_path):
    "After the iteration that it is in, though a piece is played in a thread; the other worker goes on from there, to the same bits"
    distributed,seen = pytest.importorskip('distributed'),[]
    kw = dict(n_workers=2, threads_per_worker=2, dashboard_address=None, silence_logs=50)
    with env(**own), distributed.LocalCluster(**kw) as c, distributed.Client(c) as client:
        t = threading.Thread(target=ends_in_mid_epoch, args=(tmp_path/'run', seen, client if how=='retired' else None))
        t.start()
        for _ in play('digits', tmp_path/'run', replicates=1, executor=client.get_executor(), rounds=1, epochs=20): pass
        t.join()
    goes_on_elsewhere(long, tmp_path/'run', seen)

def test_a_dask_cluster_within_this_process(alone, tmp_path):
    "Its workers are threads of the driver's process: they take turns"
    distributed = pytest.importorskip('distributed')
    with distributed.LocalCluster(n_workers=2, threads_per_worker=2, processes=False, dashboard_address=None,
                                  silence_logs=50) as c, distributed.Client(c) as client:
        for _ in play('digits', tmp_path/'run', replicates=2, executor=client.get_executor(), **few): pass
    equal(alone, tmp_path/'run')
    assert {s.split('begins in process ')[-1].split(' ')[0] for s in files(tmp_path/'run', '')}=={str(os.getpid())}

def test_a_driver_of_dask_that_is_killed_and_started_again(cluster, alone, tmp_path):
    "Nothing twice, nothing lost: its old pieces play on, and the new driver waits for them"
    driver_dies(tmp_path/'run', 'dask', cluster.scheduler_address)
    ex = dask_executor(cluster.scheduler_address)
    for _ in play('digits', tmp_path/'run', replicates=2, executor=ex, **few): pass
    equal(alone, tmp_path/'run')
    ex._client.close()

def _forking(**kw):
    from fastai.data.core import DataLoader,DataLoaders
    xs = [(float(i), i%2) for i in range(8)]
    return DataLoaders(*[DataLoader(xs, bs=4, num_workers=1) for _ in range(3)])

def test_loaders_with_workers_in_a_daemonic_worker(cluster, tmp_path):
    from dataclasses import replace
    ex = dask_executor(cluster.scheduler_address)
    with env(**own), pytest.raises(RuntimeError, match='daemonic process'):
        list(play(replace(preset('digits'), data=_forking), tmp_path/'run', executor=ex, **few))
    ex._client.close()

# --- executors of others, as they are

def test_loky_is_equal(alone, tmp_path):
    loky = pytest.importorskip('loky')
    ex = loky.ProcessPoolExecutor(2, env=own)
    try:
        for _ in play('digits', tmp_path/'run', replicates=2, executor=ex, **few): pass
    finally: ex.shutdown(kill_workers=True)
    equal(alone, tmp_path/'run')

on_mpi = """
import sys
from mpi4py.futures import MPIPoolExecutor
from fastai_lottery.sweeps import play
if __name__=='__main__':
    with MPIPoolExecutor() as ex:
        for done in play('digits', sys.argv[1], replicates=2, rounds=2, epochs=2, executor=ex): pass
    print(*done)
"""

def test_mpi_is_equal(alone, tmp_path):
    "A driver and two workers, which `mpiexec` starts"
    pytest.importorskip('mpi4py.futures')
    mpiexec = Path(sys.executable).parent/'mpiexec'
    (tmp_path/'run.py').write_text(on_mpi)
    cmd = [str(mpiexec), '-n', '3', sys.executable, '-W', 'ignore', '-m', 'mpi4py.futures', 'run.py', str(tmp_path/'run')]
    done = subprocess.run(cmd, cwd=tmp_path, env=dict(os.environ, **own), capture_output=True, text=True, timeout=240)
    assert done.returncode==0 and done.stdout.split()[:2]==['10','10'], done.stderr[-3000:]
    equal(alone, tmp_path/'run')
    by = {s.split('begins in process ')[-1].split(' ')[0] for s in files(tmp_path/'run', '')}
    assert len(by)==2, 'both workers played'

# --- nobody answers

@pytest.mark.parametrize('backend', ['ray','dask'])
def test_nobody_at_the_address(backend, monkeypatch):
    "Nobody listens; or somebody does, and never says a word"
    pytest.importorskip('ray' if backend=='ray' else 'distributed')
    monkeypatch.setattr(engines, '_tried', partial(engines._tried, secs=8))
    if backend=='ray':
        import ray
        if ray.is_initialized(): ray.shutdown()
    t = time.monotonic()
    with pytest.raises(ConnectionError, match='nobody answers'): executor_for(backend, '127.0.0.1:1')
    with silent() as a, pytest.raises(ConnectionError, match='did not answer'): executor_for(backend, a)
    assert time.monotonic()-t<60

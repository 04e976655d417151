"Two processes train together by `torch.distributed` (gloo, CPU): the same masks and weights in both, and one writes"
import json,os,random,time
from multiprocessing import forkserver,get_context
from pathlib import Path
import pytest,torch,torch.distributed as dist
from fastai_lottery.core import named_weights
from fastai_lottery.labels import weights_in
from fastai_lottery.tickets import Ticket
from ddp_run import LIMIT,N,digest,main,net

gloo = dist.is_available() and dist.is_gloo_available()
pytestmark = pytest.mark.skipif(not gloo, reason='needs torch.distributed with gloo; this torch has none')
here = str(Path(__file__).parent)
forks = get_context('forkserver')     # each process is a fork of one that has imported everything
forks.set_forkserver_preload(['ddp_run'])
same_figures = 'rows hashes starts curves mask state'.split()

def alive(ps): return all(p.is_alive() for p in ps)
def launch(d, *only, until=None):
    "Run both processes to their end, or stop them; or kill both as soon as `until()`"
    ps = [forks.Process(target=main, args=(r, d, only)) for r in range(N)]
    end = time.monotonic()+LIMIT
    for p in ps: p.start()
    try:
        while until and not until() and alive(ps) and time.monotonic()<end: time.sleep(.005)
        if until: [p.kill() for p in ps]
        for p in ps: p.join(max(1, end-time.monotonic()))
    finally:
        for p in ps:
            p.kill()      # one that is still there: the tests say what is missing, with the log
            p.join()
    return d

def one_dies(d, name, when):
    "Kill one process as soon as `when()`; does the other end within a minute?"
    ps = [forks.Process(target=main, args=(r, d, (name,))) for r in range(N)]
    end = time.monotonic()+LIMIT
    for p in ps: p.start()
    try:
        while not when() and alive(ps) and time.monotonic()<end: time.sleep(.005)
        ps[1].kill()
        ps[0].join(60)
        return not ps[0].is_alive()
    finally:
        for p in ps:
            p.kill()
            p.join()

@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    paths = os.pathsep.join(filter(None, [here, os.environ.get('PYTHONPATH')]))
    with pytest.MonkeyPatch.context() as m:
        for k,v in dict(PYTHONPATH=paths, OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore').items(): m.setenv(k,v)
        forkserver.ensure_running()
    return launch(tmp_path_factory.mktemp('ddp'))

def results(d, name):
    "What both processes found"
    res = []
    for r in range(N):
        f = d/f'{name}.{r}.json'
        assert f.exists(), f"process {r} did not finish {name!r}:\n{(d/f'log.{r}').read_text()[-3000:]}"
        res.append(json.loads(f.read_text()))
    bad = [f'process {r}: {o["error"]}' for r,o in enumerate(res) if isinstance(o,dict) and 'error' in o]
    if bad: pytest.fail('\n'.join(bad))
    return res

def same(ran, name):
    a,b = results(ran, name)
    assert a==b
    return a

@pytest.mark.parametrize('buffers', [True,False])
@pytest.mark.parametrize('what', 'global late random reinit snip'.split())
def test_trap_23_both_processes_play_the_same_lottery(ran, what, buffers):
    """Masks, starting and trained weights, and the whole state, batch norm's statistics included;
    the processes' random numbers and data differ, and there is no seed"""
    o = same(ran, f'{what}_{buffers}')
    assert len(o['rows'])==len(set(o['hashes']))==3 and [r['kept'] for r in o['rows']]==[192,154,123]
    assert len(o['seen'])==6 and o['hashes']==[s['mask'] for s in o['seen'][::2]]
    assert o['hashes']==[r['mask_hash'] for r in o['rows']]

@pytest.mark.parametrize('to,iterations', [('init',[4,4]), ('1it',[4,3])])
def test_trap_23_fastais_own_context(ran, to, iterations):
    """The processes' nets differ until the first fit: the rewind point is that of rank 0, in both;
    points are counted in iterations of one process"""
    o = same(ran, f'ctx_{to}')
    assert len(set(o['hashes']))==2 and o['starts'][0]==o['starts'][1]
    assert [r['iterations'] for r in o['rows']]==iterations

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
    assert len(once)==len(set(once))
    assert len(once)>=2*(2+2*3)      # settings and initial weights, and two files a round, in each of two folders
    d = ran/'folder'/'whole'
    assert not list(d.rglob('*.tmp'))
    for r in range(3):
        t = Ticket.load(d/f'round_{r:02d}'/'ticket')
        assert t.masks.hash()==b['whole']['hashes'][r] and digest(t.weights)==b['whole']['starts'][r]
    assert digest(weights_in(d/'round_02')[0])==b['whole']['state']

def test_trap_23_rank_0_alone_prints(ran):
    a,b = results(ran, 'screen')
    assert 'valid_loss' in a and b==''

def test_trap_23_a_folder_goes_on_in_both_processes(ran):
    a,b = results(ran, 'folder')
    for o in (a,b): del o['did']
    assert a==b
    for k in same_figures: assert a['again'][k]==a['whole'][k]==a['third'][k], k
    assert len(a['first']['seen'])==4 and len(a['again']['seen'])==2 and a['third']['seen']==[]
    assert a['again']['seen']==a['whole']['seen'][4:]

def test_trap_23_last_batches_that_are_not_alike(ran):
    "31 items in one process and 26 in the other: as many batches, the last of 7 and of 2"
    o = same(ran, 'uneven')
    assert len(set(o['hashes']))==3 and [r['iterations'] for r in o['rows']]==[8,8,8] and o['held'][0]==0<o['held'][1]

def test_trap_23_gradients_that_add_up_without_a_reduction(ran):
    o = same(ran, 'accumulated')
    assert len(set(o['hashes']))==3 and o['held'][0]==0<o['held'][1]

@pytest.mark.parametrize('name', ['stopped','stopped_added_up'])
def test_trap_23_a_training_goes_on_after_its_last_epoch_in_both_processes(ran, name):
    o = same(ran, name)
    assert len(o['stopped'])==2 and all('stopped' in e for e in o['stopped'])
    assert o['played']==2     # two epochs of six were left to do
    for k in same_figures: assert o['broken'][k]==o['unbroken'][k], k

def soon_after(f, rng):
    "A question that is true at some moment after `f()` is, within two epochs"
    wait = rng.random()*.4
    def until():
        if not f(): return False
        time.sleep(wait)
        return True
    return until

@pytest.fixture
def killed(tmp_path):
    "What both find at last, after they were killed three times"
    run,rng = tmp_path/'killed'/'run',random.Random()
    def has(*names): return lambda: all((run/n).exists() for n in names)
    for f in (has('epoch.ckpt'), has('round_00/weights.safetensors'), has('rounds.csv','epoch.ckpt')):
        launch(tmp_path, 'killed', until=soon_after(f, rng))
        assert not list(tmp_path.glob('*.json')), 'it came to its end before it was killed'
        (tmp_path/'killed.store').unlink(missing_ok=True)
    return same(launch(tmp_path, 'killed'), 'killed')

def test_trap_23_both_killed_go_on_from_the_last_epoch(ran, killed):
    whole = same(ran, 'killed')
    assert whole['played']==9
    assert 0<killed['played']<=6     # round 0 is whole, and an epoch is played twice at most
    for k in same_figures: assert killed[k]==whole[k], k

def test_trap_23_one_killed_ends_the_other_and_the_run_goes_on(ran, tmp_path):
    "With an error, within a minute; started again, both end as if nothing had happened"
    run = tmp_path/'killed'/'run'
    assert one_dies(tmp_path, 'killed', (run/'epoch.ckpt').exists), 'the other still waits'
    f = tmp_path/'killed.0.json'
    assert 'error' in json.loads(f.read_text()) and not (tmp_path/'killed.1.json').exists()
    f.unlink()
    (tmp_path/'killed.store').unlink(missing_ok=True)
    now,whole = same(launch(tmp_path, 'killed'), 'killed'),same(ran, 'killed')
    assert 0<now['played']<whole['played']
    for k in same_figures: assert now[k]==whole[k], k

@pytest.mark.parametrize('name,ends', [('ended',[5,1,9]), ('ended_added_up',[6,2,10])])
def test_trap_23_sigterm_to_one_ends_both_after_the_same_iteration(ran, name, ends):
    "With a checkpoint, where each process holds no gradients of its own; each iteration is trained once"
    o = same(ran, name)
    assert [p['n'] for p in o['parts']]==ends and {p['code'] for p in o['parts']}=={143}
    assert o['whole']['n']==24==sum(ends)+o['last']['n']
    for k in same_figures: assert o['last'][k]==o['whole'][k], k

def test_trap_23_processes_that_merely_share_a_group_do_not_wait_within_an_epoch(ran):
    "They take different numbers of steps, and share the rounds"
    a,b = results(ran, 'apart')
    assert a['hashes']==b['hashes'] and (a['batches'],b['batches'])==(8,4)

def test_trap_23_a_folder_in_fastais_own_context(ran):
    o = same(ran, 'ctx_folder')
    for k in same_figures: assert o['again'][k]==o['whole'][k], k

def test_trap_23_an_error_with_the_folder_stops_both(ran):
    other,nowhere,damaged = same(ran, 'folder_errors')
    assert other.startswith('ValueError') and 'seed was 3 and is now 4' in other
    assert 'cannot write' in nowhere and nowhere.split(':')[0] in ('OSError','NotADirectoryError','FileExistsError')
    assert damaged.startswith('ValueError') and 'damaged' in damaged

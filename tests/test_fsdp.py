"Two processes, each with some rows of every weight (FSDP2, gloo, CPU): the masks, weights and tickets of the whole net"
import json,os,time
from multiprocessing import forkserver,get_context
from pathlib import Path
import pytest,torch,torch.distributed as dist
from fastai_lottery.core import named_weights
from fastai_lottery.saved import load_shards
from fastai_lottery.tickets import Ticket

gloo = dist.is_available() and dist.is_gloo_available()
try: from torch.distributed.fsdp import fully_shard
except ImportError: fully_shard = None
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not gloo or fully_shard is None, reason='needs fully_shard (torch 2.6) and gloo')]
if gloo and fully_shard is not None: from fsdp_run import N,kinds,main,net,opts,resets
else: kinds,opts,resets = [],{},[]
here,LIMIT = str(Path(__file__).parent),900
forks = get_context('forkserver')     # each process is a fork of one that has imported everything

@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    d = tmp_path_factory.mktemp('fsdp')
    paths = os.pathsep.join(filter(None, [here, os.environ.get('PYTHONPATH')]))
    with pytest.MonkeyPatch.context() as m:
        for k,v in dict(PYTHONPATH=paths, OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore').items(): m.setenv(k,v)
        forks.set_forkserver_preload(['fsdp_run'])
        forkserver.ensure_running()
    ps = [forks.Process(target=main, args=(r, d, ())) for r in range(N)]
    end = time.monotonic()+LIMIT
    for p in ps: p.start()
    try: [p.join(max(1, end-time.monotonic())) for p in ps]
    finally:
        for p in ps:
            p.kill()
            p.join()
    return d

def same(ran, name):
    "What both processes found, and they found the same"
    res = []
    for r in range(N):
        f = ran/f'{name}.{r}.json'
        assert f.exists(), f"process {r} did not finish {name!r}:\n{(ran/f'log.{r}').read_text()[-3000:]}"
        res.append(json.loads(f.read_text()))
    bad = [f'process {r}: {o["error"]}' for r,o in enumerate(res) if isinstance(o,dict) and 'error' in o]
    if bad: pytest.fail('\n'.join(bad))
    assert res[0]==res[1]
    return res[0]

@pytest.mark.parametrize('kind,scope', kinds)
def test_masks_are_those_of_the_whole_net(ran, kind, scope):
    "Exact counts, ties and rows that do not halve included, and their hashes"
    o = same(ran, 'masks')[f'{kind}_{scope}']
    assert len(o)==3
    for r in o: assert r['same'] and r['kept']==r['want'] and r['hash']==r['whole']

def test_a_score_that_one_process_finds_not_finite_stops_both(ran):
    assert same(ran, 'not_finite').startswith("ValueError: 1 scores of 'a' are not finite")

def test_a_lottery_is_that_of_the_whole_net(ran):
    "Training, prune and rewind, bit for bit; gradients and weights that are pruned are 0, and moments are forgotten"
    o = same(ran, 'lottery')
    assert len(o)==4 and len({r['masks'][0] for r in o})==4
    for r in o: assert r['sharded']==r['plain'] and r['masks'][0]==r['masks'][1] and r['clean']
    for r in o[1:]: assert r['trained'] and r['moments']==0 and r['kept'][0]==r['kept'][1]

@pytest.mark.parametrize('opt', ['sgd','adamw'])
def test_zeros_hold(ran, opt):
    "Under clipping, momentum, weight decay and accumulation without a reduction"
    o = same(ran, 'clipped')[opt]
    assert o['zeros']==o['gone']>0

@pytest.mark.parametrize('name', opts)
def test_moments_of_what_is_gone_are_forgotten(ran, name):
    "Without a rewind"
    gone,kept = same(ran, 'forgotten')[name]
    assert gone==0<kept

def test_a_state_that_is_loaded_is_pruned(ran):
    zeros,gone = same(ran, 'loaded')
    assert zeros==gone>0

@pytest.mark.parametrize('name', [*(f'learner_{k}' for k in opts),'learner_late'])
def test_fastais_loop(ran, name):
    "The rewind is exact, zeros hold, and a fresh training follows; data differ between the processes"
    o = same(ran, name)
    assert len({r['hash'] for r in o})==2 and len({r['w_k'] for r in o})==1
    for r in o: assert r['back'] and r['first'] and r['zeros']==r['gone'] and r['at']!=r['w_k']

@pytest.mark.parametrize('what', ['random',*resets])
def test_what_is_drawn_is_drawn_alike(ran, what):
    mine,whole,weights,those = same(ran, 'drawn')[0][what]
    assert mine==whole and weights==those

def test_what_needs_the_whole_net_is_refused(ran):
    o = same(ran, 'refused')
    for k in 'snip taylor grasp synflow'.split(): assert f"criterion='{k}' asks for" in o[k] and 'gradients' in o[k]
    for k in 'random_reinit','reinit_keep_sign': assert f"reset='{k}' asks for 'w_n'" in o[k]
    assert "'3.weight' is not spread" in o['part'] and 'Shard(0)' in o['columns'] and '`amount`' in o['wrong']
    assert 'ShardedLottery' in o['callback'] and '15_large_nets' in o['callback']

def test_copies_of_rows(ran):
    mine,whole,read,files = same(ran, 'copies')
    assert mine==whole==read and files==1

def test_a_ticket_goes_whole_and_back(ran):
    "Written by two processes, read by one into a plain net, and put on shards of other weights again"
    o = same(ran, 'ticket')
    t = load_shards(ran/'ticket'/'ticket')
    assert t.masks.hash()==o['hash'] and t.meta['note']=='second' and o['files']==N+1
    for back,state,now in o['back']: assert back==o['hash'] and state==o['state'] and now!=state
    plain = net(9)
    t.apply_(plain)
    for n,w in named_weights(plain, t.masks).items(): assert torch.equal(w, t.weights[n]*t.masks[n])
    t.save(ran/'one')
    assert Ticket.load(ran/'one').masks==t.masks

def test_a_ticket_that_one_process_cannot_read_or_write_stops_both(ran):
    res = [json.loads((ran/f'ticket_errors.{r}.json').read_text()) for r in range(N)]
    for damaged,wrong,nowhere in res:
        assert 'damaged' in damaged and 'another architecture' in wrong
        assert 'cannot write' in nowhere

def test_the_peak_of_a_process(ran):
    res = [json.loads((ran/f'peak.{r}.json').read_text()) for r in range(N)]
    if None in res: pytest.skip('needs /proc/self/clear_refs')
    for o in res:
        assert o['kept']==round(.8*2*o['n'])
        assert o['grew']<=o['share']+64*2**20, o

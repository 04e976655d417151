"""Cost that grows as the work grows: times over several sizes, ratios to a named peer from the same run, and the exponent.
Each benchmark prints a table and a line that says whether it grows as it should"""
import contextlib,functools,io,math,os,shutil,subprocess,sys,tempfile,time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np,pandas as pd
import torch
from torch import nn
from fastai.basics import DataLoaders,Learner,accuracy
from fastai_lottery import sweeps
from fastai_lottery.all import Hold,large_final,lenet_300_100,LotteryCallback,make_masks,Masks
from fastai_lottery.all import overlap,overlap_table,play_seed,Preset,results,shuffle_mask,TensorDL,TensorDS
from fastai_lottery.arms import amount_for
from fastai_lottery.model import one_more
from fastai_lottery.packing import least_bytes
from fastai_lottery.resets import state
from fastai_lottery.tables import append_rows
from bench_import import fresh,importing
from common import data,images,interleave,learner,show,sized,tiny

def exponent(sizes, secs):
    "Slope of log(seconds) over log(size), by least squares"
    return np.polyfit(np.log(sizes), np.log(secs), 1)[0] if len(sizes)>1 else math.nan

def growth(title, sizes, arms, most, slope=1.05, repeats=5, unit='items', of='ms'):
    """Time `arms(size)`, `{name: function}` of ours and then of the peer, A B A B, at each of `sizes`; a function
    may return its own seconds, or thousands of something else, `of`. As it should: the exponent of ours is at most
    `slope`, its ratio to the peer at the largest size at most `most`"""
    def ms(f):
        t = time.perf_counter()
        own = f()
        return 1000*(own if isinstance(own, float) else time.perf_counter()-t)
    rows = [interleave({k:lambda f=f: ms(f) for k,f in arms(n).items()}, repeats) for n in sizes]
    ours,peer = rows[0]
    print(f'\n{title}\n  {unit:>14} {ours:>22} {peer:>22}      ratio')
    for n,r in zip(sizes,rows):
        print(f'  {n:14,} {r[ours]:19.2f} {of} {r[peer]:19.2f} {of}   × {r[ours]/r[peer]:6.2f}')
    e,ratio = exponent(sizes, [r[ours] for r in rows]),rows[-1][ours]/rows[-1][peer]
    good = 'grows as it should' if e<=slope and ratio<=most else 'does NOT grow as it should'
    says = 'a rehearsal' if tiny else good
    print(f'  exponent {e:.2f} (at most {slope:g}), ratio at the end {ratio:.2f} (at most {most:g}): {says}')
    assert len(rows)==len(sizes)
    return rows

# ---- masks and scopes

layers = [sized(625*2**i, 5*(i+1)) for i in range(4)]
def many(n, density=.6):
    "Scores and masks of `n` layers of 200 weights"
    g = torch.Generator().manual_seed(0)
    s = {f'l{i}':torch.randn(10, 20, generator=g).abs() for i in range(n)}
    return s,Masks({k:torch.rand(v.shape, generator=g)<density for k,v in s.items()})

def prunes_of_many(title, scope, peer, name):
    def arms(n):
        s,m = many(n)
        return {title:lambda: make_masks(s, m, .2, scope), name:lambda: peer(s)}
    growth(f'{title}, layers of 200 weights', layers, arms, most=2, unit='layers')

def bench_each_layer_by_itself():
    def loop(s): return [v.view(-1).kthvalue(40) for v in s.values()]
    for name,scope in {'local':'local', 'rates':{'l1*':.5}, 'erk':'erk'}.items(): prunes_of_many(name, scope, loop, 'a loop of kthvalue')

def bench_many_small_layers():
    def one(s): return torch.cat([v.view(-1) for v in s.values()]).kthvalue(40*len(s))
    for scope in ('global','erk'): prunes_of_many(scope, scope, one, 'kthvalue of all')

def bench_groups_of_many_small_layers():
    "`1:8`, which leaves every layer enough to take from, to torch's own choice of the best of each eight"
    def best(s): return [v.view(-1, 8).topk(1).indices for v in s.values()]
    prunes_of_many('1:8', '1:8', best, 'a loop of topk')

def peak(n, parts, scope):
    "Bytes that a prune of `n` weights in `parts` takes beside scores and masks, at most, in a process of its own"
    code = f"""if True:
        import torch
        from pathlib import Path
        from fastai_lottery.masks import Masks
        from fastai_lottery.scopes import make_masks
        def inputs(shape, parts):
            s = {{f'l{{i}}':torch.rand(shape) for i in range(parts)}}
            return s,Masks.ones(s)
        make_masks(*inputs((20,20), 3), .2, {scope!r})
        s,m = inputs(({n//parts//1000},1000), {parts})
        def at_most(): return next(int(o.split()[1]) for o in Path('/proc/self/status').read_text().splitlines() if o.startswith('VmHWM'))
        Path('/proc/self/clear_refs').write_text('5')    # the peak is from here on
        had = at_most()
        make_masks(s, m, .2, {scope!r})
        print(1024*(at_most()-had))"""
    cmd = [sys.executable,'-W','ignore','-c',code]
    out = subprocess.run(cmd, capture_output=True, text=True, check=True, env={**os.environ, 'OMP_NUM_THREADS':'1'})
    return int(out.stdout)

def bench_peak_of_a_prune():
    "In bytes a weight; what a process takes once, some megabytes, is in it and counts for less the more weights there are"
    sizes,most = [sized(k*10**6, 10**4*k) for k in (5,10,30,100)],2
    print('\npeak of a prune beside scores and masks, bytes a weight')
    for scope in sized(('global','2:4'), ('2:4',)):
        for parts in (1,10):
            b = [peak(n, parts, scope) for n in sizes]
            line = '  '.join(f'{n:,}: {o/n:.2f}' for n,o in zip(sizes, b))
            slope = np.polyfit(sizes, b, 1)[0]
            says = 'a rehearsal' if tiny else 'as it should' if b[-1]<=most*sizes[-1] else 'NOT as it should'
            print(f'  {scope:<7} {parts:2} tensors  {line}  each more {slope:.2f} (at most {most}): {says}')

def bench_last_prune():
    "Under `to=`, which leaves just so many weights, to a prune by an amount"
    def arms(n):
        width = math.isqrt(n//4)
        net = torch.nn.Sequential(*[torch.nn.Linear(width, width) for _ in range(4)])
        lot = Learner(DataLoaders([], []), net, loss_func=torch.nn.MSELoss(), cbs=LotteryCallback()).lottery
        lot.remember()
        lot.set_masks(lot.all_kept(), None)
        def prune(least): return one_more(lot, large_final, .3, {'0':.5}, None, least)
        return {'last prune':lambda: prune(round(.83*lot.masks.n_kept)), 'a prune':lambda: prune(0)}
    sizes = [sized(10**k, 400*k) for k in (4,5,6,7)]
    growth('the last prune under `to=`, layers at rates of their own', sizes, arms, most=1.5, unit='weights')

def bench_rate_of_a_search():
    "The rate that leads to a density in five prunes, to one prune"
    def arms(n):
        s = {f'l{i}':torch.rand(10, n//50) for i in range(5)}
        m = Masks.ones(s)
        return {'its rate':lambda: [amount_for(m, 5, .2, {'l0':.5})], 'a prune':lambda: make_masks(s, m, .2, {'l0':.5})}
    growth('a rate for five prunes', [sized(10**k, 500*k) for k in (4,5,6,7)], arms, most=1, unit='weights')

# ---- folders of runs

def two_batches(n, path):
    "A function that trains `n` epochs of two batches, with checkpoints where there is a `path`"
    def f():
        dls = images(sized(128, 16), (8,), bs=sized(64, 8), valid=8)
        l = learner(dls, nn.Linear(8, 10), metrics=accuracy, cbs=LotteryCallback())
        with tempfile.TemporaryDirectory() as d, contextlib.redirect_stdout(io.StringIO()):
            l.fit_lottery(n, rounds=0, fit=Learner.fit_one_cycle, lr_max=1e-2, seed=0, path=d if path else None)
    return f

def bench_checkpoints():
    sizes = sized([100,200,400,800,1600], [2,3])
    growth('a checkpoint an epoch, of a tiny net and epochs of two batches', sizes, repeats=3, unit='epochs', most=4,
           arms=lambda n: {'with path':two_batches(n, True), 'without path':two_batches(n, False)})

def lenet_epochs(n, path):
    "A function that trains LeNet for `n` epochs of 917 batches"
    dls,_ = data()
    def f():
        l = learner(dls, lenet_300_100(), metrics=accuracy, cbs=LotteryCallback())
        with tempfile.TemporaryDirectory() as d, contextlib.redirect_stdout(io.StringIO()):
            l.fit_lottery(n, rounds=0, fit=Learner.fit, lr=1.2e-3, seed=0, path=d if path else None)
    return f

def bench_checkpoints_lenet():
    growth('a checkpoint an epoch, LeNet-300-100 on MNIST', sized([1,2,4,8], [1]), repeats=3, unit='epochs', most=1.02,
           arms=lambda n: {'with path':lenet_epochs(n, True), 'without path':lenet_epochs(n, False)})

def run_of(d, rounds):
    "A function that plays, or takes up, a run of tiny rounds in the folder `d`"
    dls = images(sized(64, 16), (8,), bs=sized(64, 8), valid=8)
    def f():
        torch.manual_seed(0)
        l = learner(dls, nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 10)), cbs=LotteryCallback())
        with contextlib.redirect_stdout(io.StringIO()):
            l.fit_lottery(1, rounds=rounds, amount=.001, fit=Learner.fit, lr=1e-2, seed=0, path=d)
    return f

def bench_going_on():
    with tempfile.TemporaryDirectory() as d:
        def arms(n):
            ours,one = run_of(f'{d}/{n}', n),run_of(f'{d}/one', 1)
            ours()
            return {'taken up':ours, 'a run of one round':one}
        growth('a run of so many rounds is taken up', sized([50,100,200,400,800], [2,3]), arms, most=2, unit='rounds')

def bench_folder_bytes():
    "Starts once, and each round's packed masks and survivors: what lies on the disk, and the least that could"
    def arms(n):
        l = learner(images(600, (1,28,28)), lenet_300_100(), cbs=LotteryCallback())
        with tempfile.TemporaryDirectory() as d, contextlib.redirect_stdout(io.StringIO()):
            rs = l.fit_lottery(1, rounds=n, path=d, seed=0)
            has = sum(f.stat().st_size for f in Path(d).rglob('*.safetensors'))
            once = (Path(d)/'init.safetensors').stat().st_size
        rest = sum(v.numel()*v.element_size() for k,v in state(l.model).items() if k not in rs[0].masks)
        least = once+sum(least_bytes(r.masks)+rest for r in rs)
        return {'on the disk':lambda: has/1e6, 'the least':lambda: least/1e6}
    growth("a run's folder, LeNet-300-100", sized([1,2,4,8,16], [1,2]), arms, most=1.1, repeats=1, unit='rounds', of='kB')

def bench_rows():
    row = dict(arm='random', accuracy=.97531, test_accuracy=.96531, seconds=12.3, mask_hash='0123456789abcdef')
    def ours(n):
        def f():
            rows = []
            with tempfile.TemporaryDirectory() as d:
                for k in range(n): append_rows(Path(d)/'controls.csv', rows, [dict(row, round=k)])
        return f
    def plain(n):
        def f():
            with tempfile.TemporaryDirectory() as d:
                for k in range(n):
                    with open(f'{d}/c.csv', 'a') as o:
                        pd.DataFrame([dict(row, round=k)]).to_csv(o, header=not k, index=False)
                        o.flush()
                        os.fsync(o.fileno())
        return f
    growth('rows are added one by one', sized([50,100,200,400], [2,3]), unit='rows', most=4,
           arms=lambda n: {'with digest and count':ours(n), 'pandas, at the end':plain(n)})

# ---- sweeps and commands

def _net(): return torch.nn.Sequential(torch.nn.Linear(8,12), torch.nn.ReLU(), torch.nn.Linear(12,4))

def _few(path=None, seed=0, device=None):
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(7))
    a,b = [TensorDS(o, o[:,:4].argmax(1)) for o in (x[:64], x[64:])]
    return DataLoaders(TensorDL(a, bs=16, shuffle=True, seed=seed), TensorDL(b, bs=32), TensorDL(b, bs=32),
                       device='cpu')

def _preset(rounds, levels, seeds):
    controls = dict(reinit=dict(reset='random_reinit'), shuffle=dict(mask=shuffle_mask))
    return Preset('few', 'a net of some weights', 'none', 'seconds', _few, _net, levels=levels, controls=controls,
                  replicates=seeds,
                  settings=dict(n_epoch=1, rounds=rounds, amount=.1, fit=Learner.fit, lr=.02, eval_every=4))

@functools.cache
def _sweep(seeds, rounds):
    "A folder of so many seeds that are over, all of them copies of the first, and its preset"
    d,p = Path(tempfile.mkdtemp()),_preset(rounds, (rounds,), seeds)
    play_seed(p, 0, d/'seed_00')
    for i in range(1, seeds): shutil.copytree(d/'seed_00', d/f'seed_{i:02d}')
    for f in d.rglob('*'): os.utime(f, ns=(10**18,)*2)
    time.sleep(sized(2.1, 0))    # until no file is so young that it is read again
    return d,p

rounds_each = sized(16, 1)

def _cpu(f, n=1):
    "A function that calls `f` so many times and gives the seconds of the processor: waiting for the disk or others counts for nothing"
    def timed():
        t = time.process_time()
        for _ in range(n): f()
        return time.process_time()-t
    return timed

def _ms(f, n=20): return 1000*_cpu(f, n)()/n

def bench_results_again():
    "`results` where nothing has changed, to pandas reading the table of each seed"
    def arms(n):
        d,_ = _sweep(n, rounds_each)
        results(d)
        fs = sorted(d.glob('seed_*/rounds.csv'))
        return dict(results=_cpu(lambda: results(d)), pandas=_cpu(lambda: [pd.read_csv(f) for f in fs]))
    growth('results() of seeds of 17 rounds where nothing has changed, to pd.read_csv of rounds.csv',
           sized((5,10,20,40), (1,2)), arms,
                  most=1, unit='seeds')
    d,n = _sweep(sized(40, 2), rounds_each)[0],sized(40, 2)
    print(f'  {_ms(lambda: results(d))/n:.2f} ms a seed (at most 1)')

def _driver(n, work=None):
    "The driver of a sweep of which `n` seeds are over and one plays"
    d,p = _sweep(n, rounds_each)
    seeds = [sweeps.Seed(p, i, d/f'seed_{i:02d}') for i in range(n)]
    drv = sweeps.Driver(seeds, None, math.inf, None, dict.fromkeys(()), n)
    for s in seeds: s.begin(())
    drv.running[None] = seeds[0].left[0]
    return drv,d

def bench_driver_looks():
    "A look of the driver while one seed plays and the others are over, to a stat of the file that may have grown"
    def arms(n):
        drv,d = _driver(n)
        f = d/'seed_00'/'rounds.csv'
        return {'look':_cpu(drv.look, 1000), 'os.stat':_cpu(lambda: os.stat(f), 1000)}
    growth('1,000 looks of the driver, one seed at work, the others over', sized((5,10,20,40), (1,2)), arms, most=20,
           slope=.1, unit='seeds over')

def bench_driver_watches():
    "A look of the driver at seeds that all play: as many as there are, and no file is read"
    def arms(n):
        drv,d = _driver(n)
        for i,s in enumerate(drv.seeds): drv.running[i] = s.left[0]
        fs = [d/f'seed_{i:02d}'/'rounds.csv' for i in range(n)]
        return {'look':_cpu(drv.look, 100), 'os.stat':_cpu(lambda: [os.stat(f) for f in fs], 100)}
    growth('100 looks of the driver at seeds that all play, 17 rounds each', sized((5,10,20,40), (1,2)), arms, most=20,
           unit='seeds at work')
    n = sized(40, 2)
    drv,_ = _driver(n)
    for i,s in enumerate(drv.seeds): drv.running[i] = s.left[0]
    each = _ms(drv.look)/n
    print(f'  {1000*each:.1f} µs a seed at work; a look may take 25 of each 500 ms, so {25/each:,.0f} lotteries')

def _sleeps(secs, job):
    "What a worker gives that only sleeps"
    time.sleep(secs)
    o = job['o']
    rows = [dict(arm=o.name, round=o.k, density=.5, kept=1, valid_loss=.5, mask_hash='x', seconds=secs)]
    return dict(ok=rounds_each+1 if o.kind=='lottery' else rows)

def bench_pieces_that_sleep():
    "Pieces that only sleep: what the driver takes for each, and so for how many workers it is no limit"
    secs,n = sized(.02, .001),sized(40, 2)
    def play_with(workers, levels):
        with tempfile.TemporaryDirectory() as d, ThreadPoolExecutor(workers) as ex:
            p = _preset(rounds_each, tuple(range(1, levels+1)), n)
            for i in range(n):
                shutil.copytree(_sweep(n, rounds_each)[0]/f'seed_{i:02d}', Path(d)/f'seed_{i:02d}',
                                ignore=lambda *a: ['controls.csv','tables.json'])
            old,sweeps.work = sweeps.work,functools.partial(_sleeps, secs)
            t,cpu = time.perf_counter(),time.process_time()
            try: list(sweeps.play(p, d, executor=ex))
            finally: sweeps.work = old
            return time.perf_counter()-t,time.process_time()-cpu
    print(f'\npieces that sleep {1000*secs:.0f} ms, {n} seeds of {rounds_each+1} rounds')
    print('   workers    pieces   wall s   sleep s   driver ms a piece')
    for workers in (1,2,4):
        for levels in sized((1,4), (1,)):
            pieces = n*(1+2*levels)
            wall,cpu = play_with(workers, levels)
            print(f'  {workers:8} {pieces:9,} {wall:8.2f} {pieces*secs/workers:9.2f} {1000*cpu/pieces:12.2f}')
    print(f'  {60/(cpu/pieces):,.0f} workers are no limit for it where a piece takes a minute, {600/(cpu/pieces):,.0f} where it takes ten')

answers = '--help','list','run --help','report --help','bogus','run digit','run digits --round-up'

def bench_commands():
    "Commands that answer load nothing: CPU time of each, to `python -c pass` and to `import torch`"
    says = 'import sys; from fastai_lottery.cli import main; sys.exit(main())'
    arms = {'python -c pass':importing('pass'), 'import torch':importing('import torch')}
    arms |= {f'lottery {o}':fresh('-c', says, *o.split()) for o in answers}
    ms = interleave(arms, 5)
    empty,theirs,*ours = ms.values()
    print()
    for k,v in ms.items(): print(f'  {k:<30} {v:8.0f} ms   × {v/empty:7.2f} of pass   × {v/theirs:5.2f} of torch')
    good = 'as it should' if max(ours)<=1000 else 'NOT as it should'
    print(f'  the slowest {max(ours):.0f} ms (at most 1,000): {"a rehearsal" if tiny else good}')
    assert len(ours)==len(answers)

def bench_worker():
    "What a process loads that plays a seed: CPU time, to that of a Learner alone, which is fastai's"
    opt = 'import torch; torch.optim.SGD([torch.zeros(1, requires_grad=True)], .1)'    # loads torch's compiler
    ours = f'import fastai_lottery.sweeps; {opt}'
    new = f'from fastai_lottery.catalogue import loading\nwith loading(): {ours}'
    arms = dict(learner=f'import fastai.learner; {opt}', worker=ours, loading=new)
    ms = interleave({k:importing(v) for k,v in arms.items()}, 5)
    show('a worker loads, CPU time', ms, 'learner')
    fewer,good = ms['loading']<=ms['learner'],ms['worker']<=1.1*ms['learner']
    print(f'  with `loading` less than a Learner alone, else 1.1 at most: '
          f'{"a rehearsal" if tiny else "as it should" if fewer and good else "NOT as it should"}')
    assert len(ms)==3

# ---- steps, overlaps, loaders

def masks_of(*shape, n=2):
    "So many random masks of one weight, a third of it kept"
    g = torch.Generator().manual_seed(0)
    return [Masks({'w':torch.rand(*shape, generator=g)<.3}) for _ in range(n)]

def bench_overlap_of_two():
    "One pair of masks, which are bools; the peer packs both and counts ones, and has all bits in memory at once"
    def arms(n):
        a,b = masks_of(n)
        def packed():
            x,y = (np.packbits(m['w'].numpy()).view(np.uint64) for m in (a,b))
            return [np.bitwise_count(o).sum(dtype=np.int64) for o in (x&y,x|y)]
        return {'overlap':lambda: overlap(a, b), 'packed bits':packed}
    assert growth('Overlap of two masks', sized([64*1600,64*16_000,64*160_000,64*1_600_000], [640,6400]), arms,
                  most=2, slope=1.2, unit='weights')    # from within a cache to far outside, as the peer

def bench_overlap_table():
    "Forty masks, 780 pairs; the peer is one product of them as floats, made beforehand, and in memory at once"
    def arms(n):
        ms = masks_of(n, n=40)
        x = torch.stack([m['w'] for m in ms]).float()
        return {'overlap_table':lambda: overlap_table(ms), 'one product':lambda: x@x.T}
    assert growth('overlap_table of 40 masks', sized([10**4,10**5,10**6,4*10**6], [640,6400]), arms, most=2, unit='weights')

def small_weights(n, size=200):
    "So many weights and masks, and the masks as floats"
    g = torch.Generator().manual_seed(0)
    ws = [torch.nn.Parameter(torch.randn(size//8, 8, generator=g)) for _ in range(n)]
    ms = [torch.rand(w.shape, generator=g)<.5 for w in ws]
    return ws,ms,[m.float() for m in ms]

def own_seconds(f):
    "A function that calls `f` ten times, and gives the processor's seconds of one"
    def timed():
        t = time.thread_time()
        for _ in range(10): f()
        return (time.thread_time()-t)/10
    return timed

def bench_hold_of_many():
    "A step's hold of small weights; the peer multiplies, which leaves `inf` and `nan` where they are"
    def arms(n):
        ws,ms,floats = small_weights(n)
        @torch.no_grad()
        def peer(): torch._foreach_mul_(ws, floats)
        return {'hold':own_seconds(Hold(ws, ms)), '_foreach_mul_':own_seconds(peer)}
    assert growth('A hold of weights of 200', sized([50,500,1600,5000], [20,40]), arms, most=1.1, slope=1.2, repeats=25, unit='tensors')

def bench_hold_of_many_elsewhere():
    "As before, held at other values than 0"
    def arms(n):
        ws,ms,floats = small_weights(n)
        vs = [torch.randn(w.shape) for w in ws]
        @torch.no_grad()
        def peer():
            torch._foreach_mul_(ws, floats)
            torch._foreach_add_(ws, vs)
        return {'hold':own_seconds(Hold(ws, ms, vs)), '_foreach_mul_, _foreach_add_':own_seconds(peer)}
    assert growth('A hold of weights of 200 at values', sized([50,500,1600,5000], [20,40]), arms, most=1.1, slope=1.2, repeats=25,
                  unit='tensors')

def bench_first_batch():
    "The first batch of an epoch in a new order; the peer draws the permutation"
    def arms(n):
        dl = TensorDL(TensorDS(torch.zeros(n, 1)), bs=64, shuffle=True, seed=0)
        return {'first batch':lambda: next(iter(dl)), 'randperm':lambda: torch.randperm(n)}
    assert growth('First batch of an epoch', sized([10**4,10**5,10**6,10**7], [640,6400]), arms, most=1.2, slope=2,
                  unit='items')    # a permutation misses the cache more often the longer it is

def bench_first_batch_in_order():
    "As before, without shuffling: the number of items does not matter; the peer copies one batch"
    def arms(n):
        x = torch.zeros(n, 1)
        dl = TensorDL(TensorDS(x), bs=64)
        def peer():
            for _ in range(1000): x[:64].clone()
        def first():
            for _ in range(1000): next(iter(dl))
        return {'1,000 first batches':first, '1,000 copies':peer}
    assert growth('First batch in order', sized([10**4,10**5,10**6,10**7], [640,6400]), arms, most=100, slope=.1, unit='items')

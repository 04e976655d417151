"""Many wrong files: a run's folder in which one thing of one file is another, with the right digest (see `tests/wrong.py`).
Each must end in one error that names a file, or go on; LOTTERY_WRONG is the number of the first, LOTTERY_MANY how many"""
import os,random,sys,tempfile,time,warnings
from collections import Counter
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
import test_packing as packed
from wrong import go_on,lab,play_seed,read_replicate,replicate,spoilt,stopped,train,tried
from common import sized

first,many = int(os.environ.get('LOTTERY_WRONG', 0)),int(os.environ.get('LOTTERY_MANY', sized(3000, 6)))

def use_replicate(d):
    read_replicate(d/'seed_00')
    play_seed(lab, 0, d/'seed_00')

def ended(use, d, n, src):
    "How the `n`-th wrong file ended; what it was, where that is wrong"
    f,says = spoilt(src, d, n)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        bad = tried(use, d, f, f'{says} [{n}]')
    return f.suffix,bad

def bench_wrong_files():
    t0,bad,n = time.perf_counter(),[],Counter()
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        for use,src in ((go_on,run := stopped(d/'run')),(train,run),(use_replicate,replicate(d/'lab'))):
            for i in range(first, first+many):
                with tempfile.TemporaryDirectory(dir=d) as to: kind,why = ended(use, Path(to)/'run', i, src)
                n[kind] += 1
                if why: bad.append(why)
    print(f'\n{sum(n.values())} wrong files ({dict(n)}) in {time.perf_counter()-t0:.0f} s, {len(bad)} of them badly taken', *bad, sep='\n')
    assert not bad

def bench_packed_tickets():
    "A packed ticket with one wrong thing and its digest made anew, and one that was damaged and has its old one"
    n,t0,bad = sized((10_000,100_000), (20,50)),time.perf_counter(),[]
    with tempfile.TemporaryDirectory() as d:
        f = packed.some_file(Path(d))
        good,r = f.read_bytes(),random.Random(first)
        for i in range(first, first+n[0]):
            says = packed.crafted(f, i)
            bad += [f'{says} [{i}]: {why}'] if (why := packed.tried(f)) else []
            f.write_bytes(good)
        for i in range(n[1]):
            f.write_bytes(new := packed.damaged(good, r))
            if new!=good and packed.is_read(f): bad.append(f'damaged [{i}]: it was read')
    print(f'\n{n[0]} crafted and {n[1]} damaged tickets in {time.perf_counter()-t0:.0f} s, {len(bad)} of them badly taken', *bad, sep='\n')
    assert not bad

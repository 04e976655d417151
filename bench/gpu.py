"""Everything that a CPU cannot tell, in one command: `python bench/gpu.py`, or `make gpu`. A table; the exit code is 1 where something
is wrong. Without a GPU it says so. `--cpu` runs the same code on a CPU, small: that it runs, and that masks are exact, is all that one
learns there"""
import argparse,gc,os,platform,subprocess,sys,tempfile,time,warnings
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')    # read when CUDA begins: equal bits each time
import torch

here = Path(__file__).resolve().parent
no_gpu = "No GPU: torch finds none that speaks CUDA, so nothing was checked. `--cpu` runs the same checks here, small."

class Row(NamedTuple):
    name:str
    ok:bool # None: it could not be asked
    figure:str
    bound:str
    seconds:float
    warned:tuple=() # What was warned of meanwhile

def in_a_line(e): return ' '.join(f'{type(e).__name__}: {e}'.split())[:160]

def row_of(check, place):
    "What a check found, as a row; one that raises is wrong, and its error is the figure"
    from gpu_kit import Lacks
    t = time.perf_counter()
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        try:
            found = tuple(check.f(place))
            place.wait()
        except Lacks as e: found = None,str(e),''
        except Exception as e: found = False,in_a_line(e),'no error'
    gc.collect()
    if place.cuda: torch.cuda.empty_cache()
    warned = dict.fromkeys(in_a_line(w.message) for w in ws if w.category is UserWarning)
    return Row(check.name, *found, time.perf_counter()-t, tuple(warned))

# ---- tests of the suite that need a GPU

def outcomes(xml):
    "How many tests ran well, went wrong, and were left out"
    kinds = [{o.tag for o in case} for case in ElementTree.parse(xml).iter('testcase')]
    bad,out = (sum(bool(k & names) for k in kinds) for names in ({'failure','error'},{'skipped'}))
    return len(kinds)-bad-out,bad,out

def run_tests(place):
    "the tests that need a GPU"
    from gpu_kit import Found
    files = [p for p in sorted((here.parent/'tests').glob('test_*.py')) if 'pytest.mark.cuda' in p.read_text(encoding='utf-8')]
    with tempfile.TemporaryDirectory() as d:
        xml = Path(d)/'report.xml'
        marks = 'cuda' if all(map(find_spec, ('onnxruntime','onnxscript','torch_pruning'))) else 'cuda and not extra'
        cmd = [sys.executable,'-m','pytest','-q','-p','no:cacheprovider','-m',marks,'--junitxml',xml,*files]
        p = subprocess.run(cmd, cwd=here.parent, capture_output=True, text=True, timeout=240)
        if not xml.exists(): raise RuntimeError(p.stdout[-300:]+p.stderr[-300:])
        good,bad,out = outcomes(xml)
    return Found(bad==0 and (good>0 and out==0 if place.cuda else out>0), f'{good} pass, {bad} fail, {out} left out',
                 '0 fail, 0 left out' if place.cuda else '0 fail')

def all_checks():
    "Each check, in the order of the table"
    import gpu_masks,gpu_keeping,gpu_speed    # each lists its checks
    from gpu_kit import Check,checks
    return [Check(run_tests.__doc__, run_tests), *checks]

# ---- the table

words = {True:'ok', False:'WRONG', None:'left out'}
def line(name, ok, figure, bound, seconds): return f'{name:<60} {ok:<8} {figure:<46} {bound:<22} {seconds:>7}'
def shown(row):
    "A line, and one for each thing that was warned of: on a new card these may tell what comes"
    return '\n    '.join([line(row.name, words[row.ok], row.figure, row.bound, f'{row.seconds:.1f}'), *row.warned])

def about(place):
    "What the checks run on"
    what = f'torch {torch.__version__}, Python {platform.python_version()}'
    if not place.cuda: return f'CPU, small: no GPU takes part, and times mean nothing; {what}'
    p = torch.cuda.get_device_properties(place.device)
    return f'{p.name}, {p.total_memory/2**30:.0f} GiB, compute {p.major}.{p.minor}, CUDA {torch.version.cuda}; {what}'

def play(checks, place, most=360):
    "Print a row for each check as it comes; the rows, and on a card one for the time of all"
    print(about(place), line('', '', 'found', 'should be', 'seconds'), sep='\n', flush=True)
    gc.freeze()    # what was imported is not looked through after each check
    t,rows = time.perf_counter(),[]
    for c in checks:
        rows.append(row_of(c, place))
        print(shown(rows[-1]), flush=True)
    secs = time.perf_counter()-t
    if place.cuda:
        rows.append(Row('all of it', secs<=most, f'{secs:.0f} s', f'{most} s', secs))
        print(shown(rows[-1]))
    return rows

def summed_up(rows):
    "The last line, and the exit code"
    bad,out = ([r.name for r in rows if r.ok is o] for o in (False,None))
    left = f', {len(out)} left out' if out else ''
    if bad: return f'{len(bad)} of {len(rows)} are WRONG{left}: '+'; '.join(bad), 1
    return f'All {len(rows)-len(out)} are ok{left}', 0

def parsed(args):
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--cpu', action='store_true', help='run the same code on the CPU, small')
    p.add_argument('--broken', action='store_true', help='break one mask on purpose in each training that is watched: this must fail')
    p.add_argument('--only', default='*', metavar='GLOB', help='only checks whose names match, such as "masks exact*"')
    return p.parse_args(args)

def main(args=None):
    o = parsed(args)
    if not o.cpu and not torch.cuda.is_available():
        print(no_gpu)
        return 0
    if o.cpu:    # said before the checks are imported, which take their sizes from it, and before anybody asks for a GPU
        os.environ.update(LOTTERY_BENCH='tiny', CUDA_VISIBLE_DEVICES='')
    from gpu_kit import Place
    checks = all_checks()
    asked = [c for c in checks if fnmatch(c.name, o.only)]
    if not asked: sys.exit(f'no check matches {o.only!r}; they are:\n  '+'\n  '.join(c.name for c in checks))
    says,code = summed_up(play(asked, Place('cpu' if o.cpu else 'cuda', o.broken)))
    print(says)
    return code

if __name__=='__main__': sys.exit(main())
